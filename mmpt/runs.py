"""A training run's folder: log.jsonl and checkpoint.pt while it goes on; in the end the adapter, README.md, its model
card, and training.json.

Checkpoint and adapter are written under another name first and then renamed, so an interruption leaves no half of one.
"""

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from accelerate.utils import is_tensorboard_available, is_wandb_available
from filelock import FileLock, Timeout
from peft import PeftModel
from safetensors import SafetensorError

from mmpt.data import fingerprint
from mmpt.errors import InputError
from mmpt.files import flush_to_disk, make_folder, write_whole
from mmpt.hub import card
from mmpt.precision import PRECISIONS

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
_LOG, _CHECKPOINT, _ADAPTER, _RECORD = "log.jsonl", "checkpoint.pt", "adapter_config.json", "training.json"
_PASSING = ("out", "save_every", "log_every", "resume", "report_to")  # no part of what a run is
_MAY_CHANGE = {"accumulate", "gradient_checkpointing"}  # when it is resumed, such as where memory ran out


def describe(backbone, peft_config, config, examples) -> dict:
    """What makes a run the same run, as plain JSON: of a `TrainConfig`, with the `examples` that its data hold."""
    passing = ("peft_version", "base_model_name_or_path", "revision")
    dtype = PRECISIONS.get(config.precision, backbone.model.dtype)
    run = {
        "backbone": backbone.name,
        "method": {k: v for k, v in peft_config.to_dict().items() if k not in passing} if peft_config else {},
        "config": {k: v for k, v in asdict(config).items() if k not in _PASSING},
        "loaded": {"dtype": str(dtype).removeprefix("torch."), "quantize": backbone.quantize},
    }
    if examples:
        run["loaded"] |= {"examples": len(examples), "examples_hash": fingerprint(examples, config.data)}
    return json.loads(json.dumps(run, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def find_run(out: Path, resume: bool) -> tuple[dict | None, dict | None]:
    """What a run left in its folder: its settings, and the checkpoint to go on from (`run`, `tuned`, `optimizer`,
    `scaler`, `losses`, `questions`, `seconds`). A finished run has no checkpoint; without a run both are None.

    Raises:
        InputError: `out` is a file, holds a run that is not to be resumed, or what it holds cannot be read.
    """
    if os.path.isfile(out):
        raise InputError(f"{out} is a file; give a folder for the adapter.")
    if not resume and any(os.path.exists(out / name) for name in (_LOG, _CHECKPOINT, _ADAPTER, _RECORD)):
        raise InputError(f"{out} holds a run already; go on with --resume (resume=True), or give another folder.")
    if os.path.exists(out / _RECORD):
        return _read(out / _RECORD, lambda file: (_settings(json.loads(file.read_text())), None))
    if os.path.exists(out / _CHECKPOINT):
        return _read(out / _CHECKPOINT, _read_checkpoint)
    return None, None


def check_same(before: dict, run: dict, out: Path) -> None:
    """InputError if `before`, the settings of the run in `out`, are not those of `run`."""
    before = run["loaded"] | before  # which runs of older versions do not tell
    now = _settings(run)
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted((before.keys() | now.keys()) - _MAY_CHANGE)
        if not _alike(name, before.get(name), now.get(name))
    ]
    if changed:
        raise InputError(f"{out} holds another run: {'; '.join(changed)}. Resume with the same settings.")


@contextmanager
def open_run(out: Path, steps: int) -> Iterator[None]:
    """Make the folder of a run of which `steps` are done, and keep other processes from tuning into it meanwhile.

    Raises:
        InputError: it cannot be written, or another process is tuning into it.
    """
    make_folder(out)
    lock = FileLock(out / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"Another process is tuning into {out}; let it end, or give another folder.") from None
    except PermissionError:
        raise InputError(
            f"{out / '.lock'} is another account's, which may be tuning into {out}; remove it, or give another folder."
        ) from None
    except (OSError, NotImplementedError) as error:  # as on some network disks
        print(f"{out} cannot be locked ({error}): see that no other process tunes into it.", file=sys.stderr)
    try:
        if os.path.exists(out / _LOG):
            write_whole(out / _LOG, _read(out / _LOG, lambda file: _log_until(file, steps)))
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # on Windows it goes with its release
                os.unlink(out / ".lock")
        lock.release()


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
    settings = {k: v if type(v) in (bool, int, float) else str(v) for k, v in _settings(run).items()}
    options = {"tensorboard": {"purge_step": steps + 1}, "wandb": {"name": out.name, "dir": str(out)}}
    try:
        accelerator.init_trackers("mmpt", settings, options)
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
        flush_to_disk(temporary)
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
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill may have left
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
            if (temporary / name).is_dir():  # of further chat templates
                shutil.rmtree(out / name, ignore_errors=True)
            else:
                flush_to_disk(temporary / name)
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


def _read(file, read):
    try:
        return read(file)
    except Exception as error:  # whatever a broken file leads the libraries to
        raise InputError(f"{file} cannot be read or is damaged; delete it and start again with --resume.") from error


def _read_checkpoint(file):
    saved = torch.load(file, map_location="cpu", weights_only=True)
    return _settings(saved["run"]), saved


def _settings(run):
    return {"backbone": run["backbone"]} | run["method"] | run["config"] | run.get("loaded", {})


def _alike(name, a, b):
    if name in ("backbone", "data", "start") and a and b:  # a folder may be written in several ways
        return os.path.abspath(a) == os.path.abspath(b)
    return a == b


def _log_until(path, steps):
    """The log without what it says of later steps than the checkpoint's, and without a line that a kill cut off."""
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    return "".join(line for line in whole if json.loads(line)["step"] <= steps)


def _unwritten(out, error):
    return InputError(f"The run could not be written to {out} ({error}); make room, then go on with --resume.")
