"""How fast a training step and an answer are, and how much memory a step takes: M²PT beside its floor and its rivals.

The *floor* is what no method that tunes prompts can avoid: the frozen model's own forward and backward pass to its
inputs, pixels and token embeddings, with as many more of these as M²PT has visual prompts; for an answer the same
without the backward pass. All methods see the same pictures and questions. Times are taken in turns, round by round,
and are medians, so that whatever else the machine does falls on all of them; memory is taken in a process each.
What the machine could do at best is a large matrix product's rate.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from mmpt.adapters import taken_off
from mmpt.backbones import Backbone, load
from mmpt.data import conversation
from mmpt.errors import InputError
from mmpt.literal import LiteralM2PT
from mmpt.m2pt import M2PTConfig
from mmpt.methods import METHODS
from mmpt.mpt4lm.backbone import without_projector
from mmpt.runs import peak_mib
from mmpt.train import AnswerLoss, TrainConfig

ANSWER_TOKENS = 8
ROWS = ("floor", "base", "m2pt", "literal", "lora", "prompt_tuning", "prefix_tuning", "full", "mpt4lm")


@dataclass(frozen=True)
class Work:
    """What is timed: a training step of `pictures` with `turns` questions each, a median of `rounds`.

    M²PT has `textual` and `visual` prompts, of which the floor has the visual ones.
    """

    pictures: int = 4
    turns: int = 4
    rounds: int = 9
    textual: int = 10
    visual: int = 20


FULL, QUICK = Work(), Work(2, 2, 3)


@dataclass(frozen=True)
class Runner:
    """A method, ready: `step()` trains once, `answer()` says `ANSWER_TOKENS` tokens."""

    step: Callable[[], None]
    answer: Callable[[], None]
    tunable: int


def bench(backbone_name: str = "tiny", work: Work = FULL, methods: tuple[str, ...] = ROWS) -> list[dict]:
    """A row a method: method, step_s and answer_s (medians, seconds), peak_mib, tunable (parameters),
    pictures_s (tuned on a second), of_peak (the step's operations a second, as a share of a large matrix product's).

    The peak memory is of a whole process that loads the backbone and trains one step; on a GPU of torch's memory.

    Raises:
        InputError: see `check_timed`.
    """
    backbone = load(backbone_name)
    check_timed(backbone)
    times = {name: {"step_s": [], "answer_s": []} for name in methods}
    tunable, operations = {}, {}
    with tqdm(total=work.rounds * len(methods), unit="run") as bar:
        for i in range(work.rounds):
            for name in methods[i % len(methods) :] + methods[: i % len(methods)]:  # nobody is always the first
                bar.set_postfix_str(name, refresh=False)
                with ready(name, backbone, work) as runner:
                    if not i:
                        tunable[name], operations[name] = runner.tunable, flops(runner.step)
                    for what, run in (("step_s", runner.step), ("answer_s", runner.answer)):
                        times[name][what].append(seconds(run, backbone.model.device))
                bar.update()
    medians = {name: {what: median(found) for what, found in times[name].items()} for name in methods}
    rate = matmul_rate(backbone.model.device, backbone.model.dtype)
    del backbone, runner, run
    torch.cuda.empty_cache()  # for the processes that measure memory
    peaks = {name: _peak(name, backbone_name, work) for name in tqdm(methods, desc="memory")}
    rows = [{"method": n} | medians[n] | {"peak_mib": peaks[n], "tunable": tunable[n]} for n in methods]
    for row in rows:
        row["pictures_s"] = work.pictures / row["step_s"]
        row["of_peak"] = operations[row["method"]] / row["step_s"] / rate
    return rows


def check_timed(backbone: Backbone) -> None:
    """InputError if `backbone` is no LLaVA with a CLIP: floor and literal rows are written for these alone."""
    model = backbone.model
    if not isinstance(model, LlavaForConditionalGeneration) or not isinstance(
        model.model.vision_tower, CLIPVisionModel
    ):
        raise InputError(
            f"{backbone.name!r} is of {type(model).__name__}, and what is timed is a LLaVA with a CLIP as its vision "
            "tower; give such a one. --fit takes any backbone."
        )


def render(rows: list[dict]) -> str:
    """The rows as a table, with what each is of the floor."""
    floor = next((row for row in rows if row["method"] == "floor"), None)
    lines = [
        f"{'method':14} {'step':>8} {'answer':>9} {'peak':>9}  {'tunable':>11} {'pictures':>9} {'device':>7}   "
        "step, answer, peak of the floor"
    ]
    for row in rows:
        shares = ""
        if floor:
            shares = "  ".join(f"{row[key] / floor[key]:5.2f}" for key in ("step_s", "answer_s", "peak_mib"))
        lines.append(
            f"{row['method']:14} {row['step_s']:6.2f} s {1000 * row['answer_s']:6.0f} ms {row['peak_mib']:5.0f} MiB"
            f"  {row['tunable']:11,} {row['pictures_s']:7.1f}/s {row['of_peak']:6.0%}    {shares}"
        )
    return "\n".join(lines)


@contextmanager
def ready(name: str, backbone: Backbone, work: Work) -> Iterator[Runner]:
    """The method `name` of `ROWS` on a backbone, which is as it was afterwards."""
    torch.manual_seed(0)
    plain, tokenizer = backbone.model, backbone.processor.tokenizer
    was = [(p.requires_grad, p.dtype) for p in plain.parameters()]
    config = TrainConfig("", pictures=work.pictures, turns=work.turns)
    scenes, turns = zip(*(conversation(config, 0, i) for i in range(work.pictures)))
    images = [scene.image for scene in scenes]
    try:
        plain.requires_grad_(False)
        if name == "mpt4lm":
            backbone = without_projector(backbone)
        inputs = backbone.training_inputs(images, turns)
        asked = dict(backbone.inputs(images[:1], [turns[0][0][0]]))
        if name in ("floor", "base"):
            yield _floor(plain, inputs, asked, work.visual if name == "floor" else 0)
        elif name == "literal":
            yield _literal(plain, inputs, asked, work)
        elif name == "full":
            plain.requires_grad_(True).model.vision_tower.requires_grad_(False)
            yield _tuned(plain, inputs, asked)
        else:
            model = get_peft_model(backbone.model, _config(name, tokenizer, work))
            try:
                yield _tuned(model, inputs, asked)
            finally:
                taken_off(model)
    finally:
        for parameter, (trained, dtype) in zip(plain.parameters(), was):
            parameter.requires_grad_(trained).grad = None
            parameter.data = parameter.data.to(dtype)
        plain.eval()


def _config(name, tokenizer, work):
    if name == "m2pt":
        return M2PTConfig(num_textual_prompts=work.textual, num_visual_prompts=work.visual)
    return METHODS[name.replace("_", "-")].configure(tokenizer)


def _tuned(model, inputs, asked) -> Runner:
    tuned = [p for p in model.parameters() if p.requires_grad]
    types = [p.dtype for p in tuned]
    loss_of, optimizer = AnswerLoss(model), torch.optim.AdamW(tuned, lr=0.0)  # all of its work, and nothing moves
    labels = (inputs["labels"] != -100).sum()

    def step():
        model.train()
        for p in tuned:
            p.data = p.data.float()  # as `train` holds what it tunes
        (loss_of(inputs) / labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def answer():
        model.eval()
        for p, dtype in zip(tuned, types):
            p.data = p.data.to(dtype)
        with torch.inference_mode():  # as `Backbone.answer` has it
            _generate(model, **asked)

    return Runner(step, answer, sum(p.numel() for p in tuned))


def _literal(plain, inputs, asked, work) -> Runner:
    vision, text = plain.config.vision_config, plain.config.text_config
    literal = LiteralM2PT(
        plain,
        0.02 * torch.randn(text.num_hidden_layers, work.textual, text.hidden_size, device=plain.device),
        0.02 * torch.randn(vision.num_hidden_layers, work.visual, vision.hidden_size, device=plain.device),
    )
    projector = plain.model.multi_modal_projector.requires_grad_(True)
    tuned = [*literal.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(tuned, lr=0.0)

    def step():
        literal(**inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Runner(step, lambda: literal.generate(**asked, max_new_tokens=ANSWER_TOKENS), sum(p.numel() for p in tuned))


def _floor(plain, inputs, asked, extra) -> Runner:
    """The frozen model with `extra` more embeddings at each row's beginning."""

    def embedded(input_ids, pixel_values, attention_mask, needs_grad=False, **rest) -> dict[str, Tensor]:
        text = plain.get_input_embeddings()(input_ids).detach().requires_grad_(needs_grad)
        pixels = pixel_values.detach().requires_grad_(needs_grad)
        seen = torch.cat(tuple(plain.model.get_image_features(pixels).pooler_output))  # (B · N, D)
        where = (input_ids == plain.config.image_token_id)[..., None]
        embeds = text.masked_scatter(where, seen)
        more = embeds.new_zeros(len(embeds), extra, embeds.shape[-1]).requires_grad_(needs_grad)
        mask = torch.cat([attention_mask.new_ones(len(embeds), extra), attention_mask], 1)
        return {"inputs_embeds": torch.cat([more, embeds], 1), "attention_mask": mask} | rest

    loss_of = AnswerLoss(plain)
    return Runner(
        lambda: loss_of(embedded(**inputs, needs_grad=True)).backward(),
        torch.inference_mode()(lambda: _generate(plain, **embedded(**asked))),
        0,
    )


def _generate(model: nn.Module, **inputs) -> None:
    model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """How long `run` takes the second time; the first one warms up."""

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    run()
    start = now()
    run()
    return now() - start


def flops(run: Callable[[], None]) -> int:
    """Floating-point operations of `run`'s matrix products, convolutions and, where torch counts it, attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product, the best of five."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def _peak(name, backbone_name, work):
    # glibc keeps of freed memory what it likes, 60 MiB more or less from run to run; with this, large pieces go back.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, name, backbone_name, work).result()


def _peak_here(name, backbone_name, work):
    backbone = load(backbone_name)
    with ready(name, backbone, work) as runner:
        runner.step()
    return round(peak_mib(backbone.model.device))
