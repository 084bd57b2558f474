"""A training run's folder: log.jsonl and checkpoint.pt while it goes on; in the end the adapter, README.md, its model
card, and training.json.

Checkpoint and adapter are written under another name first and then renamed, so an interruption leaves no half of one.
"""

import json
import platform
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError

import psutil
import torch
from accelerate.utils import is_tensorboard_available, is_wandb_available
from peft import PeftModel
from safetensors import SafetensorError

from mmpt.errors import InputError
from mmpt.hub import card

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
_LOG, _CHECKPOINT, _ADAPTER, _RECORD = "log.jsonl", "checkpoint.pt", "adapter_config.json", "training.json"


def open_run(out: Path, run: dict, resume: bool, accelerator) -> dict | str | None:
    """Make or check the folder of `run`, a JSON-able description of what is run.

    Returns:
        the checkpoint to go on from (`run`, `tuned`, `optimizer`, `losses`, `questions`, `seconds`), "finished", or
        None where there is no checkpoint.

    Raises:
        InputError: `out` is a file, holds a run that is not to be resumed or another one, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the adapter.")
    if not resume and any((out / name).exists() for name in (_LOG, _CHECKPOINT, _ADAPTER, _RECORD)):
        raise InputError(f"{out} holds a run already; go on with --resume (resume=True), or give another folder.")
    saved = None
    try:
        if (out / _RECORD).exists():
            _check_same(json.loads((out / _RECORD).read_text()), run, out)
            return "finished"
        if (out / _CHECKPOINT).exists():
            saved = torch.load(out / _CHECKPOINT, map_location="cpu", weights_only=True)
            _check_same(saved["run"], run, out)
        accelerator.wait_for_everyone()  # all have looked; now one may write
        if accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            _cut_log(out / _LOG, len(saved["losses"]) if saved else 0)
    except (OSError, RuntimeError, KeyError, json.JSONDecodeError, UnpicklingError) as error:
        raise InputError(f"{out} cannot be read or written ({error}); give another folder.") from error
    return saved


def check_tracker(name: str) -> None:
    """InputError if `name` is none of `TRACKERS`, or its package is not installed."""
    if name not in TRACKERS:
        raise InputError(f"report_to is {name!r}; give {' or '.join(map(repr, TRACKERS))}, or None.")
    if not TRACKERS[name]():
        raise InputError(f"report_to is {name!r}, which is not installed: pip install {name}.")


def start_tracker(accelerator, out: Path, run: dict, steps: int) -> None:
    """Start what `accelerator` logs with, if anything, with the settings of `run`, of which `steps` are done.

    Raises:
        InputError: it would not start.
    """
    settings = {k: v if type(v) in (bool, int, float) else str(v) for k, v in (run["method"] | run["config"]).items()}
    options = {"tensorboard": {"purge_step": steps + 1}, "wandb": {"name": out.name, "dir": str(out)}}
    try:
        accelerator.init_trackers("mmpt", settings | {"backbone": run["backbone"]}, options)
    except Exception as error:  # each of them has errors of its own
        raise InputError(f"The tracker did not start ({error}); mend that, or leave report_to out.") from error


def log(out: Path, state: dict, n: int, rate: float) -> dict:
    """Append a row with the mean loss of the last `n` steps and return it; `state` holds losses, questions and seconds
    so far."""
    recent = state["losses"][-n:]
    row = {"step": len(state["losses"]), "loss": sum(recent) / len(recent), "rate": rate}
    row |= {"questions": state["questions"], "seconds": round(state["seconds"], 2)}
    try:
        with (out / _LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise _unwritten(out, error) from error
    return row


def save(out: Path, state: dict) -> None:
    """Replace the checkpoint by `state`, in one go or not at all."""
    temporary = out / f"{_CHECKPOINT}.tmp"
    try:
        torch.save(state, temporary)
        temporary.replace(out / _CHECKPOINT)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise _unwritten(out, error) from error


def finish(out: Path, backbone, weights: dict, state: dict, accelerator) -> None:
    """Write the adapter (or the whole model, if it has none), its model card and `training.json`, and drop the
    checkpoint; `weights` are what was tuned (or all), by name, `state` holds run, losses, questions and seconds.

    Files are moved in from a temporary folder, those last by which an adapter and a finished run are known.
    """
    model, temporary, last = backbone.model, out / "unfinished", state["losses"][-100:]
    record = state["run"] | {
        "final_loss": sum(last) / len(last),  # mean of the last steps, at most 100
        "questions": state["questions"],
        "seconds": round(state["seconds"], 1),
        "tuned_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "peak_mib": round(peak_mib(accelerator.device)),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine(),
        "processes": accelerator.num_processes,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
    }
    late = (_ADAPTER, _RECORD)
    try:
        if isinstance(model, PeftModel):
            model.save_pretrained(temporary, state_dict=weights, save_embedding_layers=False)
        else:
            model.save_pretrained(temporary, state_dict=weights)
            backbone.processor.save_pretrained(temporary)
        (temporary / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (temporary / "README.md").write_text(card(record), encoding="utf-8")
        names = {file.name for file in temporary.iterdir()}
        for name in (*sorted(names - set(late)), *(name for name in late if name in names)):
            (temporary / name).replace(out / name)
    except (OSError, SafetensorError) as error:
        raise _unwritten(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    (out / _CHECKPOINT).unlink(missing_ok=True)


def peak_mib(device):
    """The most memory that was taken so far: on a GPU by torch, else by this process as a whole, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":  # where getrusage also counts what the process was a fork of
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def _check_same(before, now, out):
    before, now = ({"backbone": run["backbone"]} | run["method"] | run["config"] for run in (before, now))
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise InputError(f"{out} holds another run: {'; '.join(changed)}. Resume with the same settings.")


def _cut_log(path, steps):
    """Drop what the log says of later steps than the checkpoint's, and a line that a kill cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    path.write_text("".join(line for line in whole if json.loads(line)["step"] <= steps))


def _unwritten(out, error):
    return InputError(f"The run could not be written to {out} ({error}); make room, then go on with --resume.")
