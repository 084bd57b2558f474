"""Attribution by gradients: integrated gradients, gradient SHAP and layer conductance, through Captum.

Notation: B rows, L places of P prompts, D width, K + 1 points of a path.

Prompts take part with their strengths (`mmpt.explain.interventions`), one a place and prompt, on the way from switched
off to as tuned. A way through the vectors, from zero, would be no way at all: a pre-norm LLM divides a prompt by its
own size, so that it is the same prompt until the last thousandth before zero, where no sample of a path falls.
Conductance, which needs vectors, takes each layer's mean prompt as its baseline instead.

What a prompt does goes with the logarithm of its strength rather than with the strength: on one picture under an
m2pt adapter, all textual prompts at strength 0, 0.001, 0.01, 0.1 and 1 gave the answer a log-probability of -22, -17,
-12, -6 and -2. So along a path the strength grows as s(u) = (exp κu - 1) / (exp κ - 1), u from 0 to 1, and samples
fall where something happens; the ends are the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from heapq import heapify, heappop, heappush

import numpy as np
import torch
from captum._utils.gradient import compute_layer_gradients_and_eval
from captum.attr import GradientShap, IntegratedGradients
from torch import Tensor, nn

from mmpt.errors import InputError
from mmpt.explain.attribution import Attribution, Inputs, inputs, patch_sums, result
from mmpt.explain.interventions import BASELINES, baseline_pixels
from mmpt.explain.segments import prompt_layer
from mmpt.explain.targets import Case, Target

GROWTH = 9.2  # κ: s(1/2) is 0.01
PIECES, NODES = 4, 4  # of a way at first; points a piece, by the Gauss-Legendre rule


def integrated_gradients(
    case: Case, of: Sequence[str] | None = None, *, steps: int = 96, tolerance: float = 0.05, baseline: str = "mean"
) -> Attribution:
    """Gradients summed along the way from the baseline (Sundararajan et al., arXiv 1703.01365).

    All parts move together, picture and question straight; those not named in `of` stay as they are. The values add up
    to score - base but for the gap. What closes it is not more points but points in the right place: an answer can be
    won or lost within a hundredth of the way, and 32 even steps missed 145 % of a difference. So the way is cut into
    pieces of `NODES` points, each with a gap of its own, and the piece with the largest is halved, until the gaps'
    sizes add up to at most `tolerance` of the difference or `steps` gradients were taken.

    On the embedded model 80 to 96 points brought the picture's gap below 5 %, on two looks under one m2pt adapter, and
    32 on a third under another. With prompts moving as well 112 were not enough: take ablation or Shapley values for
    these.

    Raises:
        InputError: a part or baseline that there is none of, or too few steps for the first pieces.
    """
    if steps < PIECES * NODES:
        raise InputError(f"steps={steps}: the first pieces of the way need {PIECES * NODES}; give at least as many.")
    x = inputs(case, of, baseline)
    forward = _growing(x)
    captum = IntegratedGradients(forward)
    score, base = x.ends()
    scores = {0.0: base, 1.0: score}

    def at(u):
        return tuple(nothing + u * (given - nothing) for given, nothing in zip(x.given, x.nothing))

    def piece(start, end):
        for u in (start, end):
            if u not in scores:
                with torch.no_grad():
                    scores[u] = forward(*at(u)).item()
        values = captum.attribute(at(end), at(start), n_steps=NODES)
        gap = sum(v.sum().item() for v in values) - (scores[end] - scores[start])
        return -abs(gap), gap, start, end, values  # a heap's first is its least

    pieces = [piece(i / PIECES, (i + 1) / PIECES) for i in range(PIECES)]
    heapify(pieces)
    points = PIECES * NODES
    while points + 2 * NODES <= steps and -sum(p[0] for p in pieces) > tolerance * abs(score - base):
        points += 2 * NODES
        _, _, start, end, _ = heappop(pieces)
        middle = (start + end) / 2
        heappush(pieces, piece(start, middle))
        heappush(pieces, piece(middle, end))
    values = [sum(parts) for parts in zip(*(p[-1] for p in pieces))]
    gap = sum(p[1] for p in pieces)
    return _by_part(x, values, f"integrated gradients, {points} points", x.words, score, base, gap)


def gradient_shap(case: Case, of: Sequence[str] | None = None, *, samples: int = 20, seed: int = 0) -> Attribution:
    """Gradients at random points of ways from random baselines (Lundberg & Lee, arXiv 1705.07874; expected gradients).

    A baseline is one of `BASELINES` for the picture and a random word of the vocabulary for each token; prompts start
    switched off. No noise is added, since a strength must not become negative.

    Raises:
        InputError: a part that there is none of.
    """
    x = inputs(case, of, "mean")
    generator = torch.Generator().manual_seed(seed)
    pictures = [baseline_pixels(case.pixels, name, case.patch) for name in BASELINES]
    several = {"patch": torch.cat(pictures), "question": case.random_words(16, generator)}
    nothing = tuple(several.get(name, value) for name, value in zip(x.names, x.nothing))
    total, gaps = [torch.zeros_like(v) for v in x.given], []
    with _seeded(seed):
        for start in range(0, samples, case.rows):
            n = min(case.rows, samples - start)
            values, delta = GradientShap(_growing(x)).attribute(
                x.given, nothing, n_samples=n, return_convergence_delta=True
            )
            total = [t + v.detach() * n / samples for t, v in zip(total, values)]
            gaps.append(delta)
    score, gap = x.ends()[0], torch.cat(gaps).mean().item()
    base = score + gap - sum(t.sum().item() for t in total)
    words = {
        "patch": f"for the picture at random {', '.join(BASELINES.values())}",
        "question": "for each word a random one",
    }
    words = [words.get(name, "prompts switched off") for name in x.names]
    return _by_part(x, total, f"gradient SHAP, {samples} samples", "; ".join(dict.fromkeys(words)), score, base, gap)


def _growing(x: Inputs) -> Callable[..., Tensor]:
    """The case as a function of u instead of the strengths."""

    def forward(*values):
        grown = [
            torch.expm1(GROWTH * v) / math.expm1(GROWTH) if name in ("textual", "visual") else v
            for name, v in zip(x.names, values)
        ]
        return x.forward(*grown)

    return forward


def _by_part(x: Inputs, values, method, baseline, score, base, gap):
    values = dict(zip(x.names, values))
    if "patch" in values:
        values["patch"] = patch_sums(x.case, values["patch"])
    if "question" in values:
        values["question"] = values["question"].sum((0, 2))
    values |= {kind: values[kind][0] for kind in ("textual", "visual") if kind in values}
    return result(x.case, values, method=method, baseline=baseline, score=score, base=base, gap=gap)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Captum draws from torch's and numpy's global generators; afterwards they go on as if it had not."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)


def conductance(case: Case, *, steps: int = 16) -> Attribution:
    """Layer by layer, what of the prompts' effect passes through each slot (Dhamdhere et al., arXiv 1805.12233).

    All layers' prompts move together from the mean prompt of their layer to themselves, and a slot y at the input of a
    layer gets the sum of ∂f/∂y · Δy along the way. So what counts is what a prompt has of its own. Under "replace" y
    is the prompt itself, at the layers that have prompts of their own, and the values add up to score - base but for
    the gap; under "carry" y also holds what earlier layers left there, which each layer counts anew, so that there are
    neither totals nor a gap.

    Raises:
        InputError: the active adapter has no prompts.
    """
    layer, settings = prompt_layer(case.backbone)
    if not case.prompts:
        raise InputError("Layer conductance is of prompts, and the active adapter has none; load an M²PT adapter.")
    sides = (s[layer.active] for s in (layer.m2pt_textual_prompts, layer.m2pt_visual_prompts) if layer.active in s)
    tuned = [p for side in sides for p in side.values()]
    names = {id(p): name for name, p in case.backbone.model.named_parameters()}
    names = [names[id(p)] for p in tuned]
    ends = [p.detach() for p in tuned]
    starts = [p.mean(0, keepdim=True).expand_as(p) for p in ends]

    def forward(part, *prompts):
        return part(parameters=dict(zip(names, prompts)))

    slots = _slots(case, layer, settings)
    rows = [0] * len(slots)
    for sign, answer in zip((1, -1), case.target.answers):
        # One answer at a time, since Captum remembers a layer's last call alone.
        part = case if case.target.other is None else Case(case.backbone, case.image, case.question, Target(answer))
        found = _along(partial(forward, part), starts, ends, slots, steps, case.rows)
        rows = [row + sign * value for row, value in zip(rows, found)]
    values, places = {}, {}
    for (kind, place, _, _), row in zip(slots, rows):
        values.setdefault(kind, []).append(row)
        places.setdefault(kind, []).append(place)
    with torch.no_grad():
        score, base = (forward(case, *(p[None] for p in side)).item() for side in (ends, starts))
    out = result(
        case,
        {kind: torch.stack(rows) for kind, rows in values.items()},
        method=f"layer conductance, {steps} steps",
        baseline="for each prompt the mean prompt of its layer",
        score=score,
        base=base,
        places=places,
    )
    if "carry" in (settings.config.textual_update, settings.config.visual_update):
        out.totals = {}
    else:
        out.gap = sum(out.totals.values()) - (score - base)
    return out


def _slots(case, layer, settings):
    """(kind, place in words, block, columns of the slots in the block's input), place by place."""
    slots, b, config, device = [], layer.backbone, settings.config, case.pixels.device
    if "textual" in case.prompts:
        columns, depth = case.segments.where("textual").to(device), len(b.textual_blocks)
        for j in _counted(settings.textual_layers, config.textual_update, depth):
            slots.append(("textual", f"LLM layer {j + 1}", b.textual_blocks[j], columns))
    if "visual" in case.prompts:
        columns = torch.arange(-config.num_visual_prompts, 0, device=device)
        for i in _counted(settings.visual_layers, config.visual_update, max(b.reach)):
            slots.append(("visual", f"vision layer {i + 1}", b.visual_blocks[i], columns))
        if config.visual_readout == "parameter":  # the LLM reads the prompts themselves, past the tower
            slots.append(("visual", "LLM", b.textual_blocks[0], case.segments.where("visual").to(device)))
    return slots


def _counted(layers, update, depth):
    """The layers at whose input a slot is counted: where it is overwritten, or holds more than before."""
    return [j for j in range(layers[0], depth) if j in layers or update == "carry"]


def _along(forward, starts, ends, slots, steps, rows):
    """Of each of the slots (P,) the sum of ∂f/∂y · Δy, by the trapezoidal rule."""
    blocks = list(dict.fromkeys(block for _, _, block, _ in slots))
    path = [([], []) for _ in slots]  # gradients and states at the points of the path
    with _one_argument(blocks):
        for alphas in torch.linspace(0, 1, steps + 1, device=ends[0].device).split(rows):
            alphas = alphas[:, None, None]
            prompts = tuple((a + alphas * (z - a)).requires_grad_() for a, z in zip(starts, ends))
            found = compute_layer_gradients_and_eval(forward, blocks, prompts, attribute_to_layer_input=True)
            for parts, (_, _, block, columns) in zip(path, slots):
                for part, of_blocks in zip(parts, found):
                    part.append(of_blocks[blocks.index(block)][0][:, columns].detach())
    for gradients, states in path:
        g, y = torch.cat(gradients), torch.cat(states)  # (K + 1, P, D)
        yield ((g[1:] + g[:-1]) / 2 * y.diff(dim=0)).sum((0, 2))


@contextmanager
def _one_argument(blocks: list[nn.Module]) -> Iterator[None]:
    """Captum takes every positional argument of a layer for a tensor, and a vision tower passes its mask, None."""

    def by_name(block, args, kwargs):
        return args[:1], kwargs | dict(zip(("attention_mask",), args[1:]))

    handles = [block.register_forward_pre_hook(by_name, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
