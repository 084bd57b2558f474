"""Attribution by taking parts away: occlusion and feature ablation, through Captum.

Notation: B rows, N patches, Q tokens of the question, L places of P prompts, H × W pixels.
"""

from collections.abc import Sequence

import torch
from captum.attr import FeatureAblation, Occlusion

from mmpt.errors import InputError
from mmpt.explain.attribution import Attribution, box_mask, inputs, patch_index, patch_sums, result
from mmpt.explain.targets import Case


def occlusion(case: Case, *, window: int = 2, baseline: str = "mean") -> Attribution:
    """A square of `window` × `window` patches slides over the picture, patch by patch (Zeiler & Fergus, 1311.2901).

    A patch's value is by how much the target falls when a square that covers it is replaced by the baseline, on
    average over those squares.

    Raises:
        InputError: a window larger than the picture, or no such baseline.
    """
    if not 1 <= window <= min(case.grid):
        raise InputError(f"window={window}: the picture has {case.grid[0]} × {case.grid[1]} patches; give at least 1.")
    x = inputs(case, ["patch"], baseline)
    pixels = Occlusion(x.forward).attribute(
        x.given,
        (3, window * case.patch, window * case.patch),
        strides=(3, case.patch, case.patch),
        baselines=x.nothing,
        perturbations_per_eval=case.rows,
    )[0]
    method = f"occlusion, {window} × {window} patches"
    return _apart(x, {"patch": _means(case, pixels)}, method)


def feature_ablation(
    case: Case,
    of: Sequence[str] | None = None,
    *,
    boxes: Sequence[tuple[str, tuple[float, float, float, float]]] | None = None,
    baseline: str = "mean",
) -> Attribution:
    """By how much the target falls when one thing is replaced by the baseline: a patch, a token, a prompt everywhere.

    Args:
        boxes: name and (x, y, width, height) in pixels of things in the picture, taken away instead of patches.

    Raises:
        InputError: a part or baseline that there is none of, or a box that covers no pixel.
    """
    x = inputs(case, of, baseline)
    masks, first = [], 0
    for name, given in zip(x.names, x.given):
        if name == "patch":
            mask = patch_index(case) if boxes is None else box_mask(case, boxes)
        else:
            along = 1 if name == "question" else 2  # one feature a token, or a prompt over all places
            shape = [1, 1, 1]
            shape[along] = -1
            mask = torch.arange(given.shape[along], device=given.device).view(shape)
        masks.append(mask + first)
        first += int(mask.max()) + 1
    values = FeatureAblation(x.forward).attribute(
        x.given, x.nothing, feature_mask=tuple(masks), perturbations_per_eval=case.rows
    )
    # Captum writes a feature's value into each of its elements.
    values = dict(zip(x.names, values))
    objects = []
    if "question" in values:
        values["question"] = values["question"][0, :, 0]
    for kind in ("textual", "visual"):
        if kind in values:
            values[kind] = values[kind][0, :1]
    if "patch" in values and boxes is None:
        values["patch"] = _means(case, values["patch"])
    elif "patch" in values:
        pixels, mask = values.pop("patch"), box_mask(case, boxes)[0, 0]
        names = ["background", *(name for name, _ in boxes)]
        objects = [(name, pixels[0, 0][mask == i][0].item()) for i, name in enumerate(names) if (mask == i).any()]
    out = _apart(x, values, "feature ablation")
    out.objects, out.places = objects, {kind: ["everywhere"] for kind in out.places}
    return out


def _apart(x, values, method):
    """A result whose values are of one thing taken away at a time, so that sums of them mean nothing."""
    with torch.no_grad():
        score = x.forward(*x.given).item()
    return result(x.case, values, method=method, baseline=x.words, score=score, base=None, totals={})


def _means(case, pixels):
    return patch_sums(case, pixels) / patch_sums(case, torch.ones_like(pixels))
