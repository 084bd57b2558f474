"""Attribution: what an answer depended on, method by method through Captum (Kokhlikyan et al., arXiv 2009.07896).

    gradients.py        integrated gradients, gradient SHAP, layer conductance
    perturbations.py    occlusion, feature ablation
    shapley.py          Shapley values of segments and objects

All of them take a `Case` and say how much of its target each part is answerable for, against a baseline in which that
part says nothing: a picture without content, the mean word, prompts switched off (`mmpt.explain.interventions`). Which
baseline is a choice that the numbers depend on, so every result names it.

Notation: N patches, Q tokens of the question, L places of P prompts (`prompt_rows`), H × W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpt.errors import InputError
from mmpt.explain.interventions import BASELINES, baseline_pixels
from mmpt.explain.targets import Case

PARTS = ("textual", "visual", "patch", "question")


@dataclass
class Attribution:
    """A method's answer; values are on the CPU and have the target's unit, nats.

    Attributes:
        method, target, baseline: in words.
        score: the target's value.
        base: its value at the baseline, in gradient SHAP the mean over baselines; None where no call has all of them.
        totals: the sums by part, or in Shapley values by player.
        patches: (rows, columns), or None where the picture was not asked about patch by patch.
        question: (Q,) of the tokens whose texts are `words`.
        textual, visual: (L, P), the L rows named by `places`.
        objects: name and value of every box, where boxes were given, and of the background.
        gap: by how much all values together miss score - base (completeness); None where they need not add up.
    """

    method: str
    target: str
    baseline: str
    score: float
    base: float | None
    totals: dict[str, float]
    patches: Tensor | None = None
    question: Tensor | None = None
    textual: Tensor | None = None
    visual: Tensor | None = None
    words: list[str] = field(default_factory=list)
    places: dict[str, list[str]] = field(default_factory=dict)
    objects: list[tuple[str, float]] = field(default_factory=list)
    gap: float | None = None


@dataclass
class Inputs:
    """The parts of a case that a method varies, in one order everywhere.

    Attributes:
        names: out of `PARTS`.
        given: pixels (1, 3, H, W), embeddings (1, Q, D), strengths (1, L, P) of 1.
        nothing: the same at the baseline.
        words: the baseline in words.
    """

    case: Case
    names: list[str]
    given: tuple[Tensor, ...]
    nothing: tuple[Tensor, ...]
    words: str

    @property
    def forward(self) -> Callable[..., Tensor]:
        """The case as a function of the parts, (B, …) each → (B,)."""
        return lambda *values: self.case(**dict(zip(self.names, values)))

    def ends(self) -> tuple[float, float]:
        """The target as it is, and at the baseline."""
        with torch.no_grad():
            return self.forward(*self.given).item(), self.forward(*self.nothing).item()


def inputs(case: Case, of: Sequence[str] | None, baseline: str) -> Inputs:
    """What `of` names, by default all that the case has.

    Raises:
        InputError: the case has no such part, or there is no such baseline.
    """
    have = [part for part in PARTS if part in case.prompts or part in ("patch", "question")]
    names = have if of is None else [part for part in PARTS if part in of]
    if not names or not set(of or ()) <= set(have):
        raise InputError(
            f"Attribution to {list(of)} was asked for; this model has {', '.join(have)}: name some of them."
        )
    given, nothing, words = {}, {}, []
    for kind, (places, P) in case.prompts.items():
        given[kind] = case.pixels.new_ones(1, len(places), P)
        nothing[kind] = torch.zeros_like(given[kind])
    given |= {"patch": case.pixels, "question": case.embeddings}
    nothing |= {"patch": baseline_pixels(case.pixels, baseline, case.patch), "question": case.nothing}
    words += ["prompts switched off"] * bool({"textual", "visual"} & set(names))
    words += [f"for the picture {BASELINES[baseline]}"] * ("patch" in names)
    words += ["for each word the mean of the vocabulary"] * ("question" in names)
    return Inputs(case, names, *(tuple(side[name] for name in names) for side in (given, nothing)), "; ".join(words))


def result(case: Case, values: dict[str, Tensor], **fields) -> Attribution:
    """From patches (rows, columns), question (Q,), textual and visual (L, P) under the names of `PARTS`."""
    values = {name: value.detach().float().cpu() for name, value in values.items()}
    places = {kind: names for kind, (names, _) in case.prompts.items() if kind in values}
    totals = {name: value.sum().item() for name, value in values.items()}
    maps = {"patches" if name == "patch" else name: value for name, value in values.items()}
    words = case.words if "question" in values else []
    known = {"target": case.target.words(), "places": places, "totals": totals, "words": words}
    return Attribution(**known | maps | fields)


def box_mask(case: Case, boxes: Sequence[tuple[str, tuple[float, float, float, float]]]) -> Tensor:
    """(1, 1, H, W) which box each pixel of the model's picture is in, from 1; 0 is the background.

    Args:
        boxes: name and (x, y, width, height) in pixels of the case's own picture. Where two overlap, the pixel is the
            smaller one's.

    Raises:
        InputError: a box that none of the model's picture is in.
    """
    H, W = case.pixels.shape[-2:]
    left, top, right, bottom = case.segments.view
    # Centres of the model's pixels, in the case's own picture.
    x = (left + (right - left) * (torch.arange(W) + 0.5) / W) * case.image.width
    y = (top + (bottom - top) * (torch.arange(H) + 0.5) / H) * case.image.height
    mask = torch.zeros(H, W, dtype=torch.long)
    for i, (_, box) in sorted(enumerate(boxes, 1), key=lambda item: -item[1][1][2] * item[1][1][3]):
        a, b, w, h = box
        mask[((y >= b) & (y < b + h))[:, None] & (x >= a) & (x < a + w)] = i
    for i, (name, box) in enumerate(boxes, 1):
        if not (mask == i).any():
            raise InputError(f"The box {tuple(box)} of {name!r} covers no pixel of its own; leave it out.")
    return mask[None, None].to(case.pixels.device)


def patch_index(case: Case) -> Tensor:
    """(1, 1, H, W) which patch each pixel is in; pixels beyond the last patch count to it."""
    rows, columns = case.grid
    index = torch.arange(rows * columns, device=case.pixels.device).view(1, 1, rows, columns).float()
    wide = index.repeat_interleave(case.patch, 2).repeat_interleave(case.patch, 3)
    H, W = case.pixels.shape[-2:]
    return F.pad(wide, (0, W - wide.shape[3], 0, H - wide.shape[2]), mode="replicate").long()


def patch_sums(case: Case, pixels: Tensor) -> Tensor:
    """(1, C, H, W) a value a pixel → (rows, columns) their sums."""
    sums = pixels.new_zeros(case.grid[0] * case.grid[1])
    return sums.index_add(0, patch_index(case).flatten(), pixels.sum((0, 1)).flatten()).view(case.grid)
