"""Shapley values: a fair split of the target among segments, or the things in a picture, through Captum.

Notation: B coalitions, n players, H × W pixels.
"""

from collections.abc import Sequence

import torch
from captum.attr import ShapleyValues, ShapleyValueSampling
from torch import Tensor

from mmpt.explain.attribution import Attribution, box_mask, inputs, result
from mmpt.explain.targets import Case

EXACT = 6  # up to so many players all coalitions are scored, 2ⁿ of them


def shapley(
    case: Case,
    of: Sequence[str] | None = None,
    *,
    boxes: Sequence[tuple[str, tuple[float, float, float, float]]] | None = None,
    samples: int | None = None,
    seed: int = 0,
    baseline: str = "mean",
) -> Attribution:
    """What each player adds to the target, on average over all orders in which they could join.

    Players are the parts named in `of`: all textual prompts together, all visual prompts, the picture, the question.
    The values add up to score - base exactly.

    Args:
        boxes: name and (x, y, width, height) in pixels of things in the picture, which then play instead of it, and
            beside them its background.
        samples: orders to draw at random (Castro et al. 2009); None takes all orders, up to `EXACT` players, and 25
            beyond.

    Raises:
        InputError: a part or baseline that there is none of, or a box that covers no pixel.
    """
    x = inputs(case, of, baseline)
    mask = torch.zeros_like(case.pixels[:, :1], dtype=torch.long) if boxes is None else box_mask(case, boxes)
    picture = ["patch"] if boxes is None else ["background", *(name for name, _ in boxes)]
    players = [(name, label) for name in x.names for label in (picture if name == "patch" else [name])]
    n = len(players)
    known: dict[tuple[bool, ...], float] = {}

    def score(keep: Tensor) -> Tensor:
        """(B, n) who is there → (B,)"""
        rows = [tuple(row) for row in keep.bool().tolist()]
        new = list(dict.fromkeys(row for row in rows if row not in known))
        if new:
            with torch.no_grad():
                known.update(zip(new, x.forward(*_parts(x, players, mask, torch.tensor(new))).tolist()))
        return torch.tensor([known[row] for row in rows])

    everybody = torch.ones(1, n)
    if samples is None and n <= EXACT:
        score(torch.cartesian_prod(*[torch.tensor([0, 1])] * n).view(-1, n))
        method, values = "Shapley values, all orders", ShapleyValues(score).attribute(everybody)
    else:
        samples = samples or 25
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            values = ShapleyValueSampling(score).attribute(
                everybody, n_samples=samples, perturbations_per_eval=case.rows
            )
        method = f"Shapley values, {samples} random orders"
    top, base = score(torch.stack([everybody[0], torch.zeros(n)])).tolist()
    values = values[0].tolist()
    objects = [(label, v) for (name, label), v in zip(players, values) if name == "patch" and boxes is not None]
    totals = {name: sum(v for (part, _), v in zip(players, values) if part == name) for name in x.names}
    return result(
        case,
        {},
        method=method,
        baseline=x.words,
        score=top,
        base=base,
        totals=totals,
        objects=objects,
        gap=sum(values) - (top - base),
    )


def _parts(x, players, mask, keep):
    """The inputs of B coalitions; keep (B, n) bool."""
    parts = []
    for name, given, nothing in zip(x.names, x.given, x.nothing):
        mine = keep[:, [part == name for part, _ in players]].to(given.device)  # (B, 1), or (B, things)
        there = mine[:, mask[0]] if name == "patch" else mine[..., None]  # (B, 1, H, W) or (B, 1, 1)
        parts.append(torch.where(there, given, nothing))
    return parts
