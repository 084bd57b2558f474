"""Training: gradients, checkpointing, the Trainer."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import tiny_backbone
from PIL import Image
from transformers import Trainer, TrainingArguments


def gradients(tools, model, batch):
    model.zero_grad()
    model(**batch, labels=tools.labels_of(batch)).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "case", [{}, {"textual_layers": [1, 2], "visual_layers": [1]}, {"textual_update": "carry"}], ids=str
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(tools, reentrant, case):
    model, batch = tools.tuned(**case), tools.make_batch((0, 1, 2))
    expected = gradients(tools, model, batch)
    plain = gradients(tools, model.train(), batch)
    assert set(plain) == {n for n, p in model.named_parameters() if p.requires_grad}
    host = model.get_base_model()
    host.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    host.enable_input_require_grads()
    saved = gradients(tools, model, batch)
    assert saved.keys() == plain.keys()
    for name in plain:
        tools.assert_close(plain[name], expected[name], atol=1e-6)
        tools.assert_close(saved[name], plain[name], atol=1e-6)


def test_gradients_are_right(tools):
    """Finite differences along the gradient, for every prompt and the projector."""
    model, batch = tools.tuned(tools.make_host().double()), tools.make_batch((2, 1))
    model.double()
    batch["pixel_values"] = batch["pixel_values"].double()
    keep = batch["attention_mask"].bool()

    def loss():  # in double precision; the host's norms and rotations stay single, hence the wide step
        return model(**batch).logits[keep].log_softmax(-1)[:, 7].mean()

    loss().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction, losses = grads[name] / grads[name].norm(), []
        for step in (3e-3, -3e-3):
            with torch.no_grad():
                parameter.add_(step * direction)
                losses.append(loss())
                parameter.sub_(step * direction)
        slope = (losses[0] - losses[1]) / 6e-3
        torch.testing.assert_close(slope, grads[name].norm(), rtol=1e-2, atol=1e-6)


def test_only_the_adapter_moves(tools):
    model, batch = tools.tuned(), tools.make_batch((0, 1, 2))
    model.train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("road", ["peft", "transformers"])
def test_trainer(tools, tmp_path, road):
    """Two steps with transformers' Trainer; what it saves is the adapter, and loads."""
    from peft import PeftModel

    from mmpt.m2pt import M2PTConfig

    if road == "peft":
        model = tools.tuned()
    else:
        model = tools.make_host()
        model.add_adapter(M2PTConfig(num_textual_prompts=3, num_visual_prompts=2))
        tools.randomize(model)
    batch = tools.make_batch((1, 1))
    rows = [
        {"input_ids": batch["input_ids"][r], "pixel_values": batch["pixel_values"][r], "labels": batch["input_ids"][r]}
        for r in (0, 1, 0, 1)
    ]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    assert trainer.train().global_step == 2
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 40_000
    model.eval()
    loaded = PeftModel.from_pretrained(tools.make_host(), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_the_readmes_trainer(tmp_path, monkeypatch):
    """The code in mmpt/m2pt/README.md, on a smaller model and for fewer steps, and going on from its checkpoint."""
    import mmpt

    readme = Path(mmpt.__file__).parent / "m2pt" / "README.md"
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", readme.read_text(), re.S) if "Trainer(" in c)
    code = code.replace("max_steps=400", "max_steps=4, use_cpu=True, disable_tqdm=True, report_to=[]")
    code = code.replace("save_steps=100", "save_steps=2").replace("batch_size=4", "batch_size=2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mmpt, "load", lambda name: tiny_backbone())
    Path("pictures").mkdir()
    lines = []
    for colour, answer in (("red", "a red one"), ("blue", "blue"), ("green", "it is green")):
        Image.new("RGB", (40, 40), colour).save(f"pictures/{colour}.png")
        lines.append(json.dumps({"image": f"{colour}.png", "question": "What colour?", "answer": answer}))
    Path("pictures/questions.jsonl").write_text("\n".join(lines))

    exec(code, names := {})
    assert names["trainer"].state.global_step == 4 and not names["problems"]
    tuned = names["model"].eval()
    whole = {name: p.clone() for name, p in tuned.named_parameters() if p.requires_grad}
    backbone = tiny_backbone()
    backbone.add_adapter("runs/trainer/adapter")
    batch = names["collate"](names["examples"])
    with torch.no_grad():
        assert torch.equal(backbone.model(**batch).logits, tuned(**batch).logits)

    again = code.replace("trainer.train()", 'trainer.train(resume_from_checkpoint="runs/trainer/checkpoint-2")')
    exec(again, names)
    for name, parameter in names["model"].named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, whole[name], atol=1e-6, rtol=0)
