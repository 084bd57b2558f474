"""The training loop: its loss is the model's own, its data follow from seed and step, a broken run resumes exactly."""

import errno
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_hosts
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from helpers import tiny_backbone
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import mmpt
import mmpt.data
import mmpt.methods
import mmpt.runs
import mmpt.train
from mmpt.data import conversation
from mmpt.errors import InputError
from mmpt.m2pt import M2PTConfig
from mmpt.precision import PRECISIONS, make_scaler
from mmpt.rates import make_optimizer
from mmpt.scenes import SEEDS
from mmpt.start import begin
from mmpt.train import AnswerLoss, TrainConfig, schedule, train

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_dropout": 0.1}
METHODS = {
    "lora": lambda: LoraConfig(**LORA, init_lora_weights=False),
    "m2pt": lambda: M2PTConfig(num_textual_prompts=3, num_visual_prompts=2),
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def settings(out, **changes):
    return TrainConfig(
        **{"out": out, "steps": 6, "pictures": 2, "turns": 2, "save_every": 2, "log_every": 2} | changes
    )


def run(out, method="lora", **changes):
    """Weights by name of a run on a fresh backbone."""
    folder = train(tiny_backbone(), METHODS[method](), settings(out, **changes))
    return load_file(folder / "adapter_model.safetensors")


def batch(backbone, pictures=3, **changes):
    pairs = [conversation(settings("x", **changes), 0, i) for i in range(pictures)]
    return backbone.training_inputs([scene.image for scene, _ in pairs], [turns for _, turns in pairs])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_the_models_own(method):
    backbone = tiny_backbone()
    model = get_peft_model(backbone.model, METHODS[method]()).eval()
    inputs = batch(backbone)
    n = (inputs["labels"][:, 1:] != -100).sum()
    assert 0 < n < inputs["labels"].numel() / 2
    lengths = inputs["attention_mask"].sum(1)
    assert lengths.min() < lengths.max() == inputs["input_ids"].shape[1]  # padded, and only to the longest

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    reference = model(**inputs).loss
    expected = gradients(reference)
    loss = AnswerLoss(model)(inputs) / n
    found = gradients(loss)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    assert any(g.abs().max() > 1e-4 for g in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)


def test_the_head_sees_labelled_positions_only():
    backbone = tiny_backbone()
    inputs, seen = batch(backbone), []
    handle = backbone.model.lm_head.register_forward_hook(lambda head, args, output: seen.append(output.shape))
    AnswerLoss(backbone.model)(inputs)
    handle.remove()
    assert seen == [((inputs["labels"] != -100).sum(), backbone.model.config.text_config.vocab_size)]


def test_no_hook_is_left():
    backbone = tiny_backbone()
    inputs = batch(backbone)
    AnswerLoss(backbone.model)(inputs)
    with pytest.raises(ValueError):
        AnswerLoss(backbone.model)(inputs | {"pixel_values": inputs["pixel_values"][:1]})
    assert not backbone.model.lm_head._forward_pre_hooks


# --- the data ----------------------------------------------------------------------------------------------------


def test_data_follow_from_seed_and_step():
    def pictures(config, step):
        pairs = [conversation(config, step, i) for i in range(config.pictures)]
        return [scene.seed for scene, _ in pairs], [turns for _, turns in pairs]

    config = settings("x", pictures=8, turns=3)
    seeds, turns = pictures(config, 5)
    random.random()
    assert (seeds, turns) == pictures(settings("y", pictures=8, turns=3, lr=1.0), 5)
    assert all(SEEDS["tuning"] <= seed < SEEDS["tuning"] + (1 << 32) for seed in seeds)
    assert len(set(seeds)) == 8 and all(len(t) == 3 for t in turns)
    assert seeds != pictures(config, 6)[0]
    assert seeds != pictures(settings("x", pictures=8, turns=3, seed=1), 5)[0]


def test_scenes_and_tasks_can_be_limited():
    few = settings("x", pictures=4, scenes=3)
    seeds = [conversation(few, step, i)[0].seed for step in range(5) for i in range(4)]
    assert len(set(seeds)) == 3 and [seeds.count(s) for s in set(seeds)] in ([7, 7, 6], [7, 6, 7], [6, 7, 7])
    assert len({tuple(conversation(few, step, 0)[1]) for step in range(9)}) > 3  # but other questions each time
    signs = settings("x", pictures=4, tasks=["where_sign"])
    assert all(conversation(signs, step, 0)[0].word for step in range(5))


def test_scenes_that_fit_no_task_are_said_so(monkeypatch):
    monkeypatch.setattr(mmpt.data, "ask_about", lambda *args: [])
    with pytest.raises(InputError, match="None of the 2 scenes fits the tasks parity; use more scenes"):
        conversation(settings("x", scenes=2, tasks="parity"), 0, 0)


def test_schedule():
    config = settings("x", steps=100, warmup=0.1)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(0, settings("x", steps=1, warmup=0)) == 1


# --- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, one_thread):
    """An unbroken LoRA run's folder (dropout on, so that its random numbers count too)."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    run(out)
    return out


def test_what_a_run_leaves(unbroken):
    assert {p.name for p in unbroken.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "training.json",
    }
    rows = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["questions"] == 24 and rows[-1]["seconds"] > 0
    record = json.loads((unbroken / "training.json").read_text())
    assert record["final_loss"] == pytest.approx(sum(row["loss"] for row in rows) / 3)
    assert record["backbone"] == "tiny-random" and record["method"]["r"] == 4 and record["config"]["steps"] == 6
    assert record["questions"] == 24 and set(record["versions"]) == {"torch", "transformers", "peft", "accelerate"}
    loaded = PeftModel.from_pretrained(tiny_backbone().model, unbroken)
    assert record["tuned_parameters"] == sum(p.numel() for n, p in loaded.named_parameters() if "lora" in n)
    assert json.loads((unbroken / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-random"


def test_only_the_adapter_learns_and_the_backbone_carries_it(tmp_path):
    backbone, before = tiny_backbone(), tiny_backbone().model.state_dict()
    out = train(backbone, METHODS["m2pt"](), settings(tmp_path / "out", gradient_checkpointing=True))
    assert isinstance(backbone.model, PeftModel) and not backbone.model.training
    assert not backbone.model.get_base_model().is_gradient_checkpointing
    with backbone.use(None):
        after = backbone.model.unload().state_dict()
    assert same(before, after)
    start = tiny_backbone()
    torch.manual_seed(0)
    start = get_peft_model(start.model, METHODS["m2pt"]())
    learnt = load_file(out / "adapter_model.safetensors")
    start.save_pretrained(tmp_path / "start")
    first = load_file(tmp_path / "start" / "adapter_model.safetensors")
    assert learnt.keys() == first.keys() and not any(torch.equal(learnt[k], first[k]) for k in learnt)


def test_it_learns(tmp_path):
    out = tmp_path / "out"
    run(out, steps=40, pictures=4, scenes=4, tasks=["background"], turns=1, lr=0.03, log_every=5)
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]


def test_two_learning_rates(tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        seen.append([(group["lr"], len(group["params"])) for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(tmp_path / "out", "m2pt", steps=2, lr=0.01, projector_lr=0.001, warmup=0.5)
    prompts, projector = seen[0]
    assert (prompts[0], projector[0]) == (0.01, 0.001)
    assert prompts[1] >= 4 and projector[1] == 4  # two linear layers with biases


def test_relative_rates_follow_the_size_of_the_prompts():
    tuned = {
        "textual_prompts.0": torch.tensor([[0.1, -0.1], [0.1, 0.1], [30.0, 30.0]]),  # the last: an attention sink
        "textual_prompts.1": torch.full((3, 2), 5.0),
        "textual_prompts.2": torch.zeros(3, 2),  # added to what the slots carry
        "projector.weight": torch.ones(2, 2),
    }
    tuned = {name: torch.nn.Parameter(value) for name, value in tuned.items()}
    model = SimpleNamespace(active_peft_config=SimpleNamespace(init_token_ids=[5, 6, 7]), base_model=SimpleNamespace())
    inputs = [torch.zeros(3, 2), torch.full((3, 2), 4.0), torch.full((3, 2), 1.0)]
    model.base_model.layer = SimpleNamespace(backbone=SimpleNamespace(layer_inputs=lambda ids: inputs[: len(ids)]))
    optimizer = make_optimizer(model, tuned, TrainConfig("x", relative_lr=0.02, projector_lr=0.3))
    rates = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in tuned.values()] == pytest.approx([0.002, 0.1, 0.06, 0.3])


@pytest.mark.parametrize("method", ["lora", "prompt tuning"])
def test_relative_rates_want_prompts_of_ours(tmp_path, method):
    with pytest.raises(InputError, match="relative_lr is 0.5, and this method has no prompts of M²PT; give lr"):
        run(tmp_path, method, relative_lr=0.5)


def test_a_prefix_is_not_tuned_with_checkpointing(tmp_path):
    with pytest.raises(InputError, match="A prefix is a cache, which gradient checkpointing leaves out"):
        run(tmp_path, "prefix tuning", gradient_checkpointing=True)


def test_weights_that_are_elsewhere_are_not_tuned(tmp_path):
    backbone = tiny_backbone()
    backbone.model.lm_head.to("meta")
    with pytest.raises(InputError, match="weights are kept off the devices, where no adapter can stand"):
        train(backbone, METHODS["m2pt"](), settings(tmp_path))


def test_accumulation_does_not_change_the_result(tmp_path):
    changes = {"pictures": 4, "steps": 3}
    whole = run(tmp_path / "whole", "m2pt", **changes)
    parts = run(tmp_path / "parts", "m2pt", accumulate=4, **changes)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=2e-5, rtol=1e-3)


def test_the_launchers_environment_does_not_change_the_result(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", steps=2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state(reset_partial_state=True)  # which else keeps what it was told first
    GradientState._reset_state()
    assert same(run(tmp_path / "launched", steps=2), plain)


def test_gradient_checkpointing_does_not_change_the_result(tmp_path):
    plain = run(tmp_path / "plain", steps=2)
    saving = run(tmp_path / "saving", steps=2, gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "m2pt"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_frozen_weights_are_held_in_16_bits_and_what_is_tuned_in_32(tmp_path, method, precision):
    backbone = tiny_backbone()
    train(backbone, METHODS[method](), settings(tmp_path / "out", precision=precision, steps=2))
    types = {(p.requires_grad, p.dtype) for p in backbone.model.parameters()}
    assert types == {(False, PRECISIONS[precision]), (True, torch.float32)}
    log = (tmp_path / "out" / "log.jsonl").read_text()
    exact = tmp_path / "exact"
    run(exact, method, steps=2)
    expected = json.loads((exact / "log.jsonl").read_text())["loss"]
    assert json.loads(log)["loss"] == pytest.approx(expected, rel=0.02)
    scene, _ = conversation(settings("x"), 0, 0)
    assert len(backbone.answer([scene.image], ["Hello?"], 3)) == 1


@pytest.mark.parametrize("loaded, precision", [(None, "bf16"), (None, "fp16"), (torch.bfloat16, None)])
def test_a_copy_of_the_projector_is_left_in_the_type_of_what_stands_before_it(tmp_path, loaded, precision):
    backbone = tiny_backbone()
    backbone.model.to(loaded)
    lora = mmpt.methods.METHODS["lora"].configure(backbone.processor.tokenizer)
    out = train(backbone, lora, settings(tmp_path / "out", precision=precision, steps=2))
    assert {value.dtype for value in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}
    scene, _ = conversation(settings("x"), 0, 0)
    assert len(backbone.answer([scene.image], ["Hello?"], 3)) == 1


@pytest.mark.parametrize("can, dtype", [({"amx_bf16": True}, torch.bfloat16), ({"amx_bf16": False}, torch.float32)])
def test_precision_auto_is_bf16_where_the_processor_has_units_for_it(tmp_path, monkeypatch, can, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    backbone = tiny_backbone()
    used, original = set(), mmpt.train._step

    def step(*args):
        used.add(backbone.model.config.text_config._attn_implementation)
        return original(*args)

    monkeypatch.setattr(mmpt.train, "_step", step)
    before = backbone.model.config._attn_implementation
    out = train(backbone, METHODS["lora"](), settings(tmp_path / "out", precision="auto", steps=1))
    assert {p.dtype for p in backbone.model.parameters() if not p.requires_grad} == {dtype}
    said = json.loads((out / "training.json").read_text())["config"]["precision"]
    assert said == {torch.bfloat16: "bf16", torch.float32: None}[dtype]
    assert used == ({"eager"} if dtype == torch.bfloat16 else {before})
    assert backbone.model.config.text_config._attn_implementation == before == "sdpa"


@pytest.mark.parametrize("loaded, precision", [(None, "bf16"), (None, "fp16"), (torch.bfloat16, None)])
def test_full_fine_tuning_in_16_bits_leaves_a_model_that_can_be_asked(tmp_path, loaded, precision):
    backbone = tiny_backbone()
    backbone.model.to(loaded)
    out = train(backbone, None, settings(tmp_path / "out", precision=precision, steps=2))
    scene, _ = conversation(settings("x"), 0, 0)
    assert {p.dtype for p in backbone.model.parameters()} == {loaded or torch.float32}
    answers = backbone.answer([scene.image], ["Hello?"], 3)
    assert answers == mmpt.load(out, dtype=loaded).answer([scene.image], ["Hello?"], 3)
    exact = tiny_backbone()
    train(exact, None, settings(tmp_path / "exact", steps=2))
    told, expected = (json.loads((tmp_path / n / "log.jsonl").read_text())["loss"] for n in ("out", "exact"))
    assert told == pytest.approx(expected, rel=0.02)


def test_fp16_is_refused_where_activations_overflow():
    model = AutoModelForImageTextToText.from_config(tiny_hosts.config_of("gemma3"))
    make_scaler(model, Accelerator(cpu=True))
    with pytest.raises(InputError, match="Gemma 3 overflows in fp16; hold the weights in bf16 or fp32"):
        make_scaler(model.half(), Accelerator(cpu=True))


def test_fp16_is_refused_for_t5(tmp_path):
    t5 = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True), parameters=lambda: [torch.zeros(1).half()])
    t5.modules = list
    with pytest.raises(InputError, match="T5 overflows in fp16; hold the weights in bf16 or fp32"):
        make_scaler(t5, Accelerator(cpu=True))


def test_fp16_finds_a_scale_at_which_no_gradient_overflows(tmp_path, monkeypatch):
    scalers, scaler = [], torch.amp.GradScaler

    def too_high(*args, **kwargs):
        scalers.append(scaler(*args, **kwargs, init_scale=2.0**24))
        return scalers[-1]

    monkeypatch.setattr(torch.amp, "GradScaler", too_high)
    first = run(tmp_path / "first", precision="fp16", steps=1)
    assert scalers[0].get_scale() == 2.0**23  # the step was left out
    start = get_peft_model_state_dict(begin(tiny_backbone(), METHODS["lora"](), settings("x")))
    assert same(first, {name: value.cpu() for name, value in start.items()})
    whole = run(tmp_path / "whole", precision="fp16", steps=12)
    assert not same(first, whole) and all(value.isfinite().all() for value in whole.values())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", precision="fp16", steps=12)
    assert same(run(tmp_path / "parts", precision="fp16", steps=12, resume=True), whole)
    assert scalers[-1].get_scale() == scalers[1].get_scale() < 2.0**23


# --- broken runs -------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, step, error=KeyboardInterrupt):
    original = mmpt.train._step

    def broken(*args):
        if args[-1] == step:
            raise error
        return original(*args)

    monkeypatch.setattr(mmpt.train, "_step", broken)


def rows(out):
    """The log without its times."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


@pytest.mark.parametrize("step, kept", [(1, "no checkpoint was due yet"), (5, "a checkpoint is kept")])
def test_ctrl_c_says_how_to_go_on_and_the_run_ends_the_same(tmp_path, monkeypatch, unbroken, step, kept):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt, match=f"Stopped after step {step} of 6; {kept}.*--resume"):
            run(out)
    assert not (out / "adapter_config.json").exists()
    assert same(run(out, resume=True), load_file(unbroken / "adapter_model.safetensors"))
    assert rows(out) == rows(unbroken)


def killed_run(out):
    """In a process of its own: killed while the second checkpoint is being written."""
    write = torch.save

    def half(state, path):
        write(state, path)
        if len(state["losses"]) == 4:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    run(out)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, unbroken):
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=killed_run, args=(out,))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert (out / "checkpoint.pt.tmp").exists()  # the kill hit where it was meant to
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # and cut off a line of the log
    assert same(run(out, resume=True), load_file(unbroken / "adapter_model.safetensors"))
    assert rows(out) == rows(unbroken)
    assert {p.name for p in out.iterdir()} == {p.name for p in unbroken.iterdir()}


def test_interrupted_while_the_adapter_is_written(tmp_path, monkeypatch, unbroken):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:

        def write(self, folder, **kwargs):
            Path(folder).mkdir()
            (Path(folder) / "adapter_model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

        patch.setattr(PeftModel, "save_pretrained", write)
        with pytest.raises(KeyboardInterrupt, match="Stopped after step 6 of 6"):
            run(out)
    assert {p.name for p in out.iterdir()} == {"log.jsonl", "checkpoint.pt"}
    assert same(run(out, resume=True), load_file(unbroken / "adapter_model.safetensors"))


def test_a_finished_run_is_returned_as_it_is(tmp_path, unbroken, monkeypatch):
    monkeypatch.setattr(mmpt.train, "_step", None)  # nothing is computed
    backbone = tiny_backbone()
    assert train(backbone, METHODS["lora"](), settings(unbroken, resume=True)) == unbroken
    assert isinstance(backbone.model, PeftModel)
    with pytest.raises(InputError, match="holds another run: lr was 0.003 and is 0.1. Resume with the same settings"):
        train(tiny_backbone(), METHODS["lora"](), settings(unbroken, resume=True, lr=0.1))


def test_only_the_same_run_is_resumed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    with pytest.raises(InputError, match="holds another run: seed was 0 and is 3"):
        run(out, resume=True, seed=3)
    with pytest.raises(InputError, match="r was 4 and is 8"):
        train(tiny_backbone(), LoraConfig(**LORA | {"r": 8}), settings(out, resume=True))
    with pytest.raises(InputError, match="holds a run already; go on with --resume"):
        run(out)
    backbone = tiny_backbone()
    backbone.quantize = "4bit"
    with pytest.raises(InputError, match="holds another run: quantize was None and is '4bit'"):
        train(backbone, METHODS["lora"](), settings(out, resume=True))
    with pytest.raises(InputError, match="dtype was 'float32' and is 'bfloat16'"):
        backbone.model.bfloat16()
        train(backbone, METHODS["lora"](), settings(out, resume=True))


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"gradient_checkpointing": True}])
def test_a_run_may_go_on_with_less_memory(tmp_path, monkeypatch, changes):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", "m2pt")
    saving, plain = run(tmp_path / "out", "m2pt", resume=True, **changes), run(tmp_path / "plain", "m2pt")
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], atol=2e-5, rtol=1e-3)


def test_an_earlier_use_of_accelerate_does_not_matter(tmp_path):
    plain = run(tmp_path / "plain", steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16")
    assert same(run(tmp_path / "later", steps=2), plain)


def test_a_run_goes_on_in_the_precision_that_it_began_in(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, precision="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    run(tmp_path, precision="auto", resume=True)
    assert json.loads((tmp_path / "training.json").read_text())["loaded"]["dtype"] == "float32"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("failed writing file")])
def test_full_disk(tmp_path, monkeypatch, error):
    out = tmp_path / "out"

    def write(state, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(InputError, match="could not be written to .*; make room, then go on with --resume"):
        run(out)
    assert {p.name for p in out.iterdir()} == {"log.jsonl"}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    def loss(self, inputs):
        return sum(p.sum() for p in self.parameters()) * torch.nan

    monkeypatch.setattr(AnswerLoss, "forward", loss)
    with pytest.raises(InputError, match=r"The loss is nan at step 1; lower lr \(0.003\)"):
        run(tmp_path / "out")


@pytest.mark.parametrize("precision, step", [(None, 1), ("fp16", 27)])  # from 2^16 down to 1e-3
def test_a_gradient_that_is_no_number_stops_the_run(tmp_path, monkeypatch, precision, step):
    class Steep(torch.autograd.Function):
        forward = staticmethod(lambda context, x: x)
        backward = staticmethod(lambda context, gradient: gradient * torch.inf)

    loss = AnswerLoss.forward
    monkeypatch.setattr(AnswerLoss, "forward", lambda self, inputs: Steep.apply(loss(self, inputs)))
    told = rf"The gradient's norm is (inf|nan) at step {step}; lower relative_lr \(0.02\)"
    with pytest.raises(InputError, match=told):
        run(tmp_path, "m2pt", steps=40, precision=precision, relative_lr=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_starts_from_an_adapter(tmp_path, method):
    first = run(tmp_path / "first", method)
    again = run(tmp_path / "again", method, steps=1, lr=1e-9, projector_lr=1e-9, start=tmp_path / "first")
    assert first.keys() == again.keys()
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=0)
    assert not same(first, run(tmp_path / "fresh", method, steps=1, lr=1e-9, projector_lr=1e-9))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": -1}, "steps is -1; give a whole number of at least 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"pictures": 0}, "pictures is 0"),
        ({"turns": True}, "turns is True"),
        ({"scenes": 0}, "scenes is 0"),
        ({"lr": 0}, "lr is 0; give a number above 0"),
        ({"relative_lr": 2.0}, "relative_lr is 2.0; give a share above 0"),
        ({"projector_lr": float("nan")}, "projector_lr is nan"),
        ({"clip": "1"}, "clip is '1'"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; give a number of at least 0"),
        ({"warmup": 1.5}, "warmup is 1.5; give the share of the steps, from 0 to 1"),
        ({"seed": "x"}, "seed is 'x'; give a whole number"),
        ({"seed": 2**63}, "seed is 9223372036854775808; give a whole number from -2\\^63 to"),
        ({"data": "./x/"}, "out is x, the folder of the data; give another folder for the adapter"),
        ({"data": "x/own.json"}, "out is x, the folder of the data; give another folder for the adapter"),
        ({"precision": "fp8"}, "precision is 'fp8'; give one of 'auto', 'fp32', 'bf16', 'fp16', or None"),
        ({"pictures": 6, "accumulate": 4}, "6 pictures a step cannot be cut into 4 equal parts"),
        ({"tasks": ["count", "dance"]}, "There is no task 'dance'; give all, or some of count, "),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(InputError, match=message):
        settings("x", **changes)


def test_a_file_as_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file; give a folder for the adapter"):
        run(tmp_path / "file")
    with pytest.raises(InputError, match="below cannot be made .*; give another folder"):
        run(tmp_path / "file" / "below")


def test_a_backbone_with_an_adapter_is_refused(tmp_path):
    backbone = tiny_backbone()
    backbone.model = get_peft_model(backbone.model, METHODS["lora"]())
    with pytest.raises(InputError, match="carries an adapter already; load it afresh"):
        train(backbone, METHODS["lora"](), settings(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_start_that_does_not_fit(tmp_path):
    run(tmp_path / "m2pt", "m2pt")
    run(tmp_path / "lora")
    for method, start in (("m2pt", "lora"), ("lora", "m2pt"), ("prompt tuning", "lora")):
        with pytest.raises(InputError, match=f"{start} cannot be the start .* give one of the same method"):
            run(tmp_path / "out" / method, method, start=tmp_path / start)
    for changes in ({"visual_readout": "parameter"}, {"textual_update": "carry"}):
        config = M2PTConfig(num_textual_prompts=3, num_visual_prompts=2, **changes)
        with pytest.raises(InputError, match=f"cannot be the start .{next(iter(changes))} was '"):
            train(tiny_backbone(), config, settings(tmp_path / "other", start=tmp_path / "m2pt"))
    backbone = tiny_backbone()
    backbone.name = "elsewhere"
    with pytest.raises(InputError, match="was tuned on 'tiny-random', and this backbone is 'elsewhere'"):
        train(backbone, METHODS["m2pt"](), settings(tmp_path / "other", start=tmp_path / "m2pt"))
    with pytest.raises(InputError, match="There is no adapter 'nowhere'"):
        settings(tmp_path, start="nowhere")
    with pytest.raises(InputError, match="starts from a backbone, not an adapter"):
        train(tiny_backbone(), None, settings(tmp_path / "full", start=tmp_path / "lora"))
