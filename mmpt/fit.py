"""The largest step that fits: how many pictures M²PT can tune on at once in a GPU's memory."""

import torch

from mmpt.backbones import Backbone
from mmpt.bench import Work, ready
from mmpt.errors import InputError

MOST = 4096  # pictures that are tried


def largest_step(backbone: Backbone, gib: float) -> int:
    """Pictures, of one question each, that one training step of M²PT takes within `gib` GiB of the GPU; 0 if none.

    Doubled until they do not fit, then halved in between.

    Raises:
        InputError: the model is not on a GPU, or that has less memory.
    """
    device = backbone.model.device
    if device.type != "cuda":
        raise InputError(f"The model is on {device.type!r}, whose memory cannot be limited; this needs a GPU.")
    whole = torch.cuda.get_device_properties(device).total_memory / 2**30
    if not 0 < gib <= whole:
        raise InputError(f"{gib} GiB asked for, and the GPU has {whole:.1f}; give more than 0 and at most these.")
    torch.cuda.set_per_process_memory_fraction(gib / whole, device)
    try:
        return search(lambda pictures: _fits(backbone, pictures), MOST)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def search(fits, most: int) -> int:
    """The largest number up to `most` that `fits`, which no larger one does; 0 if none."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(backbone, pictures):
    torch.cuda.empty_cache()
    try:
        with ready("m2pt", backbone, Work(pictures, turns=1)) as runner:
            runner.step()
        return True
    except torch.OutOfMemoryError:
        return False
