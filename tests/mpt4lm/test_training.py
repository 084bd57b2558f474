"""Training: gradients, checkpointing, the Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

LMS = ["llama", "t5"]


def labelled(tools, lm, has=(1, 0, 1), padding="right"):
    """A batch with labels on the last tokens of a row, or for the decoder."""
    batch = tools.make_batch(has, padding)
    if lm == "t5":
        return batch | {"labels": torch.tensor([[5, 6, 2], [7, 2, -100], [8, 9, 2]])[: len(has)]}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    return batch | {"labels": labels}


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("lm", LMS)
def test_gradient_checkpointing(tools, lm, reentrant):
    model, batch = tools.tuned(tools.make_host(lm=lm)), labelled(tools, lm)
    for module in model.modules():  # T5 has dropout
        module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    model.train()
    plain = gradients(model, batch)
    assert set(plain) == {n for n, p in model.named_parameters() if p.requires_grad}
    host = model.get_base_model()
    host.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    host.enable_input_require_grads()
    saved = gradients(model, batch)
    assert saved.keys() == plain.keys()
    for name in plain:
        tools.assert_close(saved[name], plain[name], atol=1e-6)


@pytest.mark.parametrize("lm", LMS)
def test_gradients_are_right(tools, lm):
    """Finite differences along the gradient, for every tuned parameter."""
    model, batch = tools.tuned(tools.make_host(lm=lm).double()).double(), labelled(tools, lm, (1, 1))
    batch["pixel_values"] = batch["pixel_values"].double()

    def loss():  # in double precision, as the models' own is not
        return model(**batch).logits.log_softmax(-1)[:, -2, 7].mean()

    loss().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction, losses = grads[name] / grads[name].norm(), []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                parameter.add_(step * direction)
                losses.append(loss().item())
                parameter.sub_(step * direction)
        slope = (losses[0] - losses[1]) / 2e-3
        assert slope == pytest.approx(grads[name].norm().item(), rel=1e-2, abs=1e-6), name


@pytest.mark.parametrize("lm", LMS)
def test_only_the_adapter_moves(tools, lm):
    model, batch = tools.tuned(tools.make_host(lm=lm), randomized=False), labelled(tools, lm)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("lm", LMS)
def test_the_trainer_takes_the_mean_over_parts(tools, tmp_path, lm):
    """Which it leaves to models that say they heed num_items_in_batch."""
    batch, losses = labelled(tools, lm, (1, 1), "left"), []
    rows = [{name: value[r] for name, value in batch.items()} for r in (0, 1)]
    for parts in (1, 2):
        arguments = TrainingArguments(
            output_dir=tmp_path, max_steps=1, per_device_train_batch_size=2 // parts, report_to=[], use_cpu=True,
            gradient_accumulation_steps=parts, logging_steps=1, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=tools.tuned(tools.make_host(lm=lm)), args=arguments, train_dataset=rows)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@pytest.mark.parametrize("lm", LMS)
def test_trainer(tools, tmp_path, lm):
    """Two steps with transformers' Trainer; what it saves is the adapter, and loads."""
    from peft import PeftModel

    model, batch = tools.tuned(tools.make_host(lm=lm)), labelled(tools, lm, (1, 0), "left")
    rows = [{name: value[r] for name, value in batch.items()} for r in (0, 1, 0, 1)]
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
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 80_000
    model.eval()
    loaded = PeftModel.from_pretrained(tools.make_host(lm=lm), tmp_path / "adapter").eval()
    with torch.no_grad():
        tools.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-6)
