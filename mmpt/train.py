"""Tune an adapter on pictures and questions: one loop for any PEFT method, on a CPU, a GPU or several.

Several processes are started by `accelerate launch`, on CPUs by torchrun; `mmpt/fsdp.yaml` cuts a model up among GPUs.

What a step sees follows from the seed and the step's number alone, so an interrupted run that is resumed ends with the
same weights as an unbroken one. Several questions on a picture are packed as turns of one conversation, as LLaVA packs
them: the picture's tokens are paid for once. A later turn can look back at earlier answers; asked alone, nothing can.

The output head sees only the positions that have a label: at 49,152 words it would cost nearly half of a step's time.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from mmpt.adapters import adapter_folder, taken_off
from mmpt.backbones import Backbone, load
from mmpt.batches import batches
from mmpt.data import own_examples, seed_of
from mmpt.errors import InputError
from mmpt.precision import PRECISIONS, autocast, make_scaler, quick_attention, suited
from mmpt.rates import make_optimizer, schedule
from mmpt.runs import check_same, check_tracker, describe, find_run, finish, log, open_run, save, start_tracker
from mmpt.sharding import whole
from mmpt.start import begin, prepare, restore, tuned_of
from mmpt.tasks import check_tasks

_LEAST_SCALE = 1e-3  # of the loss under fp16: a gradient that overflows still will do so at any


@dataclass
class TrainConfig:
    """How to tune. A step's pictures are shared out among processes and accumulated parts: neither changes the result
    but for the masks of LoRA's dropout.

    Raises:
        InputError: a field out of its range.
    """

    out: str | Path  # folder for log.jsonl, checkpoint.pt, and in the end the adapter and training.json
    steps: int = 1000
    pictures: int = 16  # a step, over all processes and accumulated parts
    turns: int = 4  # questions a picture
    lr: float = 3e-3  # peak, of prompts and whatever else is tuned
    relative_lr: float | None = None  # peak, of prompts instead of lr: the share of its own size that a step changes
    projector_lr: float = 5e-4  # peak, of the projector between vision encoder and LLM
    weight_decay: float = 0.0
    warmup: float = 0.03  # share of the steps over which the learning rate rises; then it falls along a cosine to 0
    accumulate: int = 1  # parts that a step's pictures are cut into, to save memory
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0
    precision: str | None = None  # of the frozen weights: of PRECISIONS, None: as loaded. What is tuned is fp32
    # "auto": bf16 on a CPU with units for its matrix products (AMX), else as loaded; resumed, as the run began
    gradient_checkpointing: bool = False  # compute activations twice, keep fewer of them
    save_every: int = 100  # steps
    log_every: int = 10  # steps
    report_to: str | None = None  # "tensorboard" or "wandb": gets what log.jsonl gets. TensorBoard's files are in out
    resume: bool = False  # go on from out/checkpoint.pt if there is one
    tasks: tuple[str, ...] | None = None  # None: all ("all" among others too); one named twice comes twice as often
    scenes: int | None = None  # how many different pictures are used; None: always new ones
    data: str | Path | None = None  # pictures and questions of one's own (mmpt.data), again and again; None: scenes
    start: str | Path | None = None  # adapter of the same method to go on from; None: as the method starts

    def __post_init__(self):
        for name in ("steps", "pictures", "turns", "accumulate", "save_every", "log_every", "scenes"):
            value = getattr(self, name)
            if not (value is None and name == "scenes") and (type(value) is not int or value < 1):
                raise InputError(f"{name} is {value!r}; give a whole number of at least 1.")
        for name in ("lr", "projector_lr", "clip", "weight_decay", "warmup"):
            value, least = getattr(self, name), 0 if name in ("weight_decay", "warmup") else 1e-12
            if type(value) not in (int, float) or not least <= value < math.inf:
                raise InputError(f"{name} is {value!r}; give a number {'of at least' if least == 0 else 'above'} 0.")
        if self.relative_lr is not None and not 0 < self.relative_lr <= 1:
            raise InputError(f"relative_lr is {self.relative_lr!r}; give a share above 0 and up to 1, or None.")
        if self.warmup > 1:
            raise InputError(f"warmup is {self.warmup}; give the share of the steps, from 0 to 1.")
        if type(self.seed) is not int or not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; give a whole number from -2^63 to 2^63 - 1.")
        if self.precision not in (None, "auto", *PRECISIONS):
            names = ", ".join(map(repr, ("auto", *PRECISIONS)))
            raise InputError(f"precision is {self.precision!r}; give one of {names}, or None (as loaded).")
        if self.report_to is not None:
            check_tracker(self.report_to)
        if self.pictures % self.accumulate:
            raise InputError(
                f"{self.pictures} pictures a step cannot be cut into {self.accumulate} equal parts; "
                "make pictures a multiple of accumulate."
            )
        self.tasks = None if self.tasks is None else check_tasks(self.tasks)
        if self.data is not None:
            if self.tasks or self.scenes:
                raise InputError("tasks and scenes are of drawn pictures; leave them out when data is given.")
            folder = os.path.dirname(self.data) if str(self.data).lower().endswith(".json") else self.data
            if os.path.realpath(folder) == os.path.realpath(self.out):
                raise InputError(f"out is {self.out}, the folder of the data; give another folder for the adapter.")
            self.data = str(self.data)
        if self.start is not None:
            adapter_folder(self.start)
            self.start = str(self.start)
        self.out = Path(self.out)


def train(
    backbone: Backbone,
    peft_config: PeftConfig | None,
    config: TrainConfig,
    on_start: Callable[[], None] | None = None,
) -> Path:
    """Tune the adapter of `peft_config` on `backbone`, which carries it afterwards; returns the adapter's folder.

    One process calls `on_start` when all has been checked, before the first step.

    Under FSDP the backbone is left sharded: load the folder afresh to ask it.

    With None the LLM and the projector themselves are tuned (full fine-tuning; the vision encoder stays frozen, as in
    LLaVA), and the folder holds a whole model for `mmpt.load`.

    `log.jsonl` gets a line every `log_every` steps (step, loss, rate as a share of its peak, questions, seconds); in
    the end `training.json` says how the adapter came about. With `resume`, a finished run is loaded and returned as it
    is.

    Raises:
        InputError: `out` is a file or holds another run, the backbone carries an adapter already, `start` does not
            fit, `data` holds nothing to tune on, the pictures do not divide among the processes, FSDP with PEFT's own
            prompt methods, checkpointing with a prefix, T5 in fp16, weights kept off the devices, something cannot be
            written, another process is tuning into `out`, or the loss or its gradient is no longer a number.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    if backbone.model.device.type == "cuda":
        torch.cuda.set_device(backbone.model.device)  # else accelerate would move the model to the first
    # LoRA may lie on layers that no feature comes from, such as LLaVA-1.5's last one of the vision encoder.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    cpu = backbone.model.device.type == "cpu"
    state = PartialState(cpu=cpu)
    if state.num_processes == 1:  # else an earlier run's types and device would hold
        AcceleratorState._reset_state(reset_partial_state=state.device.type != backbone.model.device.type)
    accelerator = Accelerator(
        cpu=cpu,
        # Given, since else the launcher's environment would say, and change what is computed.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[unused],
        log_with=config.report_to,
        project_dir=config.out,
    )
    if config.pictures % (config.accumulate * accelerator.num_processes):
        raise InputError(
            f"{config.pictures} pictures a step in {config.accumulate} part(s) cannot be shared out evenly among "
            f"{accelerator.num_processes} processes; make pictures a multiple of their product."
        )
    if accelerator.distributed_type == "FSDP" and getattr(peft_config, "is_prompt_learning", False):
        raise InputError(f"PEFT cannot save {peft_config.peft_type.value} under FSDP; start the processes without it.")
    if isinstance(backbone.model, PeftModel):
        raise InputError("The backbone carries an adapter already; load it afresh with mmpt.load and tune that.")
    examples = own_examples(config, tell=accelerator.is_main_process)
    before, saved = find_run(config.out, config.resume)
    if config.precision == "auto":
        config = replace(config, precision=before["precision"] if before else suited(backbone.model))
    run = describe(backbone, peft_config, config, examples)
    if before:
        check_same(before, run, config.out)
    if before and not saved:  # finished
        if peft_config is None:
            backbone.model = load(config.out, device=backbone.model.device, dtype=backbone.model.dtype).model
        else:
            backbone.add_adapter(config.out)
        return config.out
    accelerator.wait_for_everyone()  # all have looked; now one may write
    with open_run(config.out, len(saved["losses"]) if saved else 0) if accelerator.is_main_process else nullcontext():
        _tune(backbone, peft_config, config, examples, run, saved, accelerator, on_start)
    return config.out


def _tune(backbone, peft_config, config, examples, run, saved, accelerator, on_start):
    """From the checkpoint `saved`, if there is one, to the end."""
    loaded = backbone.model.dtype
    try:
        model = backbone.model = begin(backbone, peft_config, config)
        tuned = prepare(model, backbone.name, config)
        scaler = make_scaler(model, accelerator)
        loss_of, optimizer = accelerator.prepare(AnswerLoss(model), make_optimizer(model, tuned, config))
        tuned = tuned_of(model)  # by FSDP put in the place of what was there
        state = {"run": run} | restore(saved, tuned, optimizer, scaler)
        losses = state["losses"]
        if on_start and accelerator.is_main_process:
            on_start()
        start_tracker(accelerator, config.out, run, len(losses))
    except BaseException:  # nothing was tuned, and it can be tried again
        if isinstance(backbone.model, PeftModel):
            backbone.model = taken_off(backbone.model)
        changed = (peft_config is None or config.precision) and not getattr(backbone.model, "is_quantized", False)
        _leave(backbone.model, config, loaded if changed else None)
        raise
    started = time.monotonic() - state["seconds"]
    try:
        bar = tqdm(total=config.steps, initial=len(losses), disable=not accelerator.is_main_process)
        place = accelerator.process_index, accelerator.num_processes
        feed = batches(backbone, config, examples, len(losses), *place)
        with bar, closing(feed), quick_attention(model):
            for step, given in enumerate(feed, len(losses)):
                loss, asked = _step(given, loss_of, optimizer, scaler, list(tuned.values()), accelerator, config, step)
                losses.append(loss)
                state |= {"questions": state["questions"] + asked, "seconds": time.monotonic() - started}
                speed = state["questions"] / state["seconds"]
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:.1f} questions/s", refresh=False)
                bar.update()
                _keep(state, tuned, optimizer, scaler, accelerator, config)
        weights = whole(tuned if peft_config else model.state_dict(), accelerator.is_main_process)
        if accelerator.is_main_process:
            finish(config.out, backbone, weights, state, accelerator)
        accelerator.wait_for_everyone()
    except KeyboardInterrupt:
        kept = "a checkpoint is kept" if (config.out / "checkpoint.pt").exists() else "no checkpoint was due yet"
        raise KeyboardInterrupt(
            f"Stopped after step {len(losses)} of {config.steps}; {kept} in {config.out}. To go on, repeat the "
            "command with --resume (in Python: resume=True)."
        ) from None
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        _leave(model, config, loaded if peft_config is None else None)


def _leave(model, config, dtype):
    """So that it can be asked, in `dtype` if one is given: what was tuned is in fp32, the rest may not be."""
    model.eval()
    if dtype:
        model.to(dtype)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.to(next(module.original_module.parameters()).dtype)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_disable()


class AnswerLoss(nn.Module):
    """Sum of the cross-entropy over a batch's labels: the same as `model(**batch).loss` times their number.

    The model runs as it always does, through whatever PEFT has put around it; only what reaches the output head is cut
    down to the N positions that a label follows: (B, T, D) → (N, D). A module of its own, so that data-parallel
    training sees its forward pass.
    """

    def __init__(self, model: PeftModel | nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        batch = dict(batch)
        labels = batch.pop("labels")
        # A decoder alone says the next token; behind an encoder its input has been shifted instead.
        targets = labels if self.model.config.is_encoder_decoder else labels[:, 1:]
        rows, columns = (targets != -100).nonzero(as_tuple=True)

        def pick(head, arguments):
            # PEFT's prompt tuning leaves its virtual tokens in front: the last T positions are the caller's.
            hidden = arguments[0][:, -labels.shape[1] :]
            return (hidden[rows.to(hidden.device), columns.to(hidden.device)], *arguments[1:])

        method = getattr(self.model, "active_peft_config", None)
        if not getattr(method, "is_prompt_learning", False):  # prefix tuning's prompt is a cache
            batch["use_cache"] = False
        handle = self.model.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            with autocast(self.model):
                logits = self.model(**batch).logits  # (N, V)
        finally:
            handle.remove()
        return functional.cross_entropy(logits.float(), targets[rows, columns], reduction="sum")


def _step(given, loss_of, optimizer, scaler, tuned, accelerator, config, step):
    """One optimizer step on what `batches` gives; the loss, a mean over all labels, and the number of questions."""
    parts, asked = given
    counts = torch.tensor([asked, sum((part["labels"] != -100).sum() for part in parts)])
    asked, labels = accelerator.reduce(counts.to(accelerator.device)).tolist()
    torch.manual_seed(seed_of(config, "dropout", step, accelerator.process_index))
    total = torch.zeros((), device=accelerator.device)
    for n, part in enumerate(parts, 1):
        with nullcontext() if n == len(parts) else accelerator.no_sync(loss_of):
            loss = loss_of(part) / labels
            over_all = loss * accelerator.num_processes  # of which data-parallel training takes the mean
            accelerator.backward(scaler.scale(over_all))
        total += loss.detach()
    total = accelerator.reduce(total).item()
    _check_finite("loss", total, step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * schedule(step, config)
    scaler.unscale_(optimizer)
    norm = whole(accelerator.clip_grad_norm_(tuned, config.clip), keep=True).item()
    if not scaler.is_enabled() or scaler.get_scale() < _LEAST_SCALE:  # above it fp16 tries a lower one
        _check_finite("gradient's norm", norm, step, config)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total, asked


def _check_finite(what, value, step, config):
    if not math.isfinite(value):
        rate = "relative_lr" if config.relative_lr else "lr"
        raise InputError(
            f"The {what} is {value} at step {step + 1}; lower {rate} ({getattr(config, rate):g}) or projector_lr "
            f"({config.projector_lr:g}) and start again in another folder."
        )


def _keep(state, tuned, optimizer, scaler, accelerator, config):
    """Log and checkpoint, at the steps at which they are due."""
    steps, main = len(state["losses"]), accelerator.is_main_process
    if main and (steps % config.log_every == 0 or steps == config.steps):
        accelerator.log(log(config.out, state, config.log_every, schedule(steps - 1, config)), step=steps)
    if steps % config.save_every == 0 or steps == config.steps:
        parts = whole({"tuned": tuned, "optimizer": optimizer.state_dict()}, main)
        if main:
            save(config.out, state | parts | {"scaler": scaler.state_dict()})
