"""The learning rate of each tuned parameter: its peak, which may follow its size, and how that rises and falls."""

import math

import torch

from mmpt.m2pt.hosts import PROJECTORS


def schedule(step: int, config) -> float:
    """Share of the peak learning rate at `step` (from 0): linear up over the warm-up, then a cosine down to 0."""
    up = math.ceil(config.warmup * config.steps)
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, config.steps - up)))


def make_optimizer(model, tuned: dict[str, torch.nn.Parameter], config) -> torch.optim.AdamW:
    """AdamW over `tuned`, parameters by name; a group for each peak of the `TrainConfig`, which it keeps as "peak"."""
    parts = {"projector", *PROJECTORS}  # of names; M²PT tunes a copy of its own
    peaks = {name: config.projector_lr if any(part in name for part in parts) else config.lr for name in tuned}
    if config.relative_lr:
        peaks |= {name: config.relative_lr * size for name, size in _sizes(model, tuned).items()}
    groups = [
        {"params": [tuned[name] for name in peaks if peaks[name] == peak], "peak": peak, "lr": peak}
        for peak in dict.fromkeys(peaks.values())
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _sizes(model, tuned):
    """Root mean square of a typical vector of each layer's prompts (P, D), by name.

    A normalisation reads the prompts of a layer, so only their change relative to their size matters to it, while
    AdamW's step has one size whatever the parameter's: under one rate, prompts that start as hidden states move 200
    times less, for their size, in the last layer than in the first (mmpt/m2pt/README.md). Prompts that start at zero
    are added to what a slot carries; theirs is the size of what the layer before adds to its input.
    """
    prompts = {name: p.detach() for name, p in tuned.items() if "textual_prompts" in name or "visual_prompts" in name}
    sizes = {name: _typical_size(p) for name, p in prompts.items()}
    zero = [name for name in sizes if sizes[name] == 0]
    if zero:
        inputs = model.base_model.layer.backbone.layer_inputs(model.active_peft_config.init_token_ids)
        for name in zero:
            layer = int(name.rpartition(".")[2])
            sizes[name] = _typical_size(inputs[layer] - inputs[layer - 1])
    return sizes


def _typical_size(vectors):
    return vectors.square().mean(-1).sqrt().median().item()
