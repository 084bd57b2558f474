"""Whether a map can be believed, and what prompts and tuning do to an answer: change something and ask again.

Notation: N patches, K points of a curve, R random orders, P prompts of a kind, A adapters, C candidate answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.interventions import baseline_pixels, prompt_strength, replace_patches
from mmpt.explain.targets import Case, still
from mmpt.likelihood import log_probabilities
from mmpt.reading import read

METRICS = ("probability", "log-probability")


@dataclass
class Curve:
    """The metric while patches are taken away, or put in, in the order of a map and in random orders.

    Attributes:
        shares: (K,) of the patches that are gone, or there; from 0 to 1.
        values: (K,) in the map's order.
        random: (R, K) in random orders.
        low: whether a small area speaks for the map (deletion) or a large one (insertion).
    """

    shares: Tensor
    values: Tensor
    random: Tensor
    low: bool

    @property
    def area(self) -> float:
        """Area under the curve."""
        return torch.trapezoid(self.values, self.shares).item()

    @property
    def random_areas(self) -> Tensor:
        """(R,)"""
        return torch.trapezoid(self.random, self.shares)

    @property
    def chance(self) -> tuple[float, float]:
        """Mean and standard deviation of the random orders' areas."""
        return self.random_areas.mean().item(), self.random_areas.std().item()

    @property
    def beaten(self) -> float:
        """Share of the random orders that the map is better than: 0.5 is no better than chance."""
        better = self.random_areas > self.area if self.low else self.random_areas < self.area
        return better.float().mean().item()


@dataclass
class Curves:
    """Deletion and insertion; `metric` and `target` in words."""

    deletion: Curve
    insertion: Curve
    metric: str
    target: str


def curves(
    case: Case,
    patches: Tensor,
    *,
    steps: int = 10,
    orders: int = 10,
    metric: str = "probability",
    baseline: str = "mean",
    seed: int = 0,
) -> Curves:
    """Deletion and insertion (Petsiuk et al., arXiv 1806.07421) of patches by falling value of a map, beside chance.

    Args:
        patches: (rows, columns) the map, such as `Attribution.patches`; among equals the first goes first.
        steps: points after the first.
        orders: random orders, whose insertion is the deletion of the reverse order read backwards.
        metric: "probability" is the exponential of the target. A difference of two answers stays as it is.

    Raises:
        InputError: a map of another shape, fewer than 2 orders, no such metric or baseline.
    """
    if tuple(patches.shape) != case.grid:
        raise InputError(f"The map has the shape {tuple(patches.shape)}, but the picture has patches {case.grid}.")
    if metric not in METRICS:
        raise InputError(f"There is no metric {metric!r}; choose one of {', '.join(METRICS)}.")
    if orders < 2 or steps < 1:
        raise InputError(f"orders={orders}, steps={steps}: chance has a spread from 2 orders on, a curve 1 step.")
    metric = "difference of log-probabilities" if case.target.kind == "difference" else metric
    N = patches.numel()
    counts = [round(N * k / steps) for k in range(steps + 1)]
    generator = torch.Generator().manual_seed(seed)
    mine = patches.flatten().cpu().argsort(descending=True, stable=True)
    drawn = [torch.randperm(N, generator=generator) for _ in range(orders)]

    def kept(order, count, low):
        keep = torch.zeros(N).index_fill(0, order[:count], 1)
        return tuple((1 - keep if low else keep).tolist())

    plan = {True: [mine, *drawn], False: [mine, *(order.flip(0) for order in drawn)]}
    wanted = dict.fromkeys(kept(order, k, low) for low, rows in plan.items() for order in rows for k in counts)
    values = _with_patches(case, torch.tensor(list(wanted)), baseline)
    values = values.exp() if metric == "probability" else values
    known = dict(zip(wanted, values.tolist()))
    shares, found = torch.tensor(counts) / N, {}
    for low, rows in plan.items():
        values = torch.tensor([[known[kept(order, k, low)] for k in counts] for order in rows])
        found[low] = Curve(shares, values[0], values[1:], low)
    return Curves(found[True], found[False], metric, case.target.words())


@torch.no_grad()
def _with_patches(case: Case, keep: Tensor, baseline: str) -> Tensor:
    """(B, N) which patches are there → (B,) the target."""
    blank, values = baseline_pixels(case.pixels, baseline, case.patch), []
    for rows in keep.view(-1, *case.grid).to(case.pixels).split(case.rows):
        values.append(case(patch=replace_patches(case.pixels, rows, blank, case.patch)))
    return torch.cat(values).float().cpu()


@dataclass
class PromptEffects:
    """What each prompt does to an answer.

    Attributes:
        effects: for "textual" and "visual" (P,) by how much the target falls without that prompt, in nats.
        answers: for both the P greedy answers without it.
        answer: the greedy answer with all prompts.
        score: the target's value with all prompts.
        target: in words.
    """

    effects: dict[str, Tensor]
    answers: dict[str, list[str]]
    answer: str
    score: float
    target: str

    @property
    def changed(self) -> dict[str, list[bool]]:
        """For which prompts the greedy answer changes without them."""
        return {kind: [text != self.answer for text in texts] for kind, texts in self.answers.items()}


def prompt_effects(case: Case, max_new_tokens: int = 32) -> PromptEffects:
    """Switch off each prompt alone (`mmpt.explain.interventions`), score the target and answer anew.

    Raises:
        InputError: the active adapter has no prompts.
    """
    if not case.prompts:
        raise InputError("The active adapter has no prompts to switch off; load an M²PT adapter.")
    sizes = {kind: P for kind, (_, P) in case.prompts.items()}
    total = 1 + sum(sizes.values())  # the first row keeps all
    strengths = 1 - torch.eye(total, total - 1).roll(1, 0)
    strengths = dict(zip(sizes, strengths.to(case.pixels).split(list(sizes.values()), 1)))
    with torch.no_grad():
        scores = case(**strengths).float().cpu()
    answers = []
    with still(case.backbone.model):
        for start in range(0, total, case.rows):
            rows = {kind: strength[start : start + case.rows] for kind, strength in strengths.items()}
            n = len(next(iter(rows.values())))
            with prompt_strength(case.backbone, **rows):
                answers += case.backbone.answer([case.image] * n, [case.question] * n, max_new_tokens)
    effects, texts, at = {}, {}, 1
    for kind, P in sizes.items():
        effects[kind], texts[kind] = scores[0] - scores[at : at + P], answers[at : at + P]
        at += P
    return PromptEffects(effects, texts, answers[0], scores[0].item(), case.target.words())


@dataclass
class Comparison:
    """The same question before and after tuning, or under any adapters.

    Attributes:
        adapters: A names; None is the untouched model.
        greedy: A answers.
        answers: C of them, the greedy ones and their runners-up, likeliest under the last adapter first.
        scores: (A, C) log-probability of each answer as a whole, its end included.
    """

    adapters: list[str | None]
    greedy: list[str]
    answers: list[str]
    scores: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(A, C)"""
        return self.scores.exp()


def compare(
    backbone: Backbone,
    image: Image.Image,
    question: str,
    adapters: Sequence[str | None] | None = None,
    *,
    greedy: Sequence[str] | None = None,
    runners: int = 3,
    max_new_tokens: int = 32,
) -> Comparison:
    """Answers under each of the adapters, by default the untouched model and the active one.

    Args:
        greedy: the greedy answer under each adapter, where they are known.
        runners: runners-up to look for under each adapter, by beam search; equal texts count once, and those that do
            not end within `max_new_tokens` are left out.

    Raises:
        InputError: an adapter that is not loaded.
    """
    if adapters is None:
        active = getattr(backbone.model, "active_adapter", None)
        adapters = [None] if active is None else [None, active]
    greedy, candidates = list(greedy or ()), []
    with still(backbone.model):
        for i, adapter in enumerate(adapters):
            with backbone.use(adapter):
                if i == len(greedy):
                    greedy += backbone.answer([image], [question], max_new_tokens)
                candidates += [greedy[i], *_runners_up(backbone, image, question, runners, max_new_tokens)]
    candidates = list(dict.fromkeys(candidates))
    tokens, n, rows = [backbone.answer_tokens(answer) for answer in candidates], len(candidates), []
    with still(backbone.model):
        for adapter in adapters:
            with backbone.use(adapter):
                rows.append(log_probabilities(read(backbone, [image] * n, [question] * n), tokens))
    scores = torch.stack(rows).cpu()
    order = scores[-1].argsort(descending=True, stable=True)
    return Comparison(list(adapters), greedy, [candidates[i] for i in order], scores[:, order])


@torch.inference_mode()
def _runners_up(backbone, image, question, n, max_new_tokens):
    if n < 1:
        return []
    batch = backbone.inputs([image], [question])
    options = {"num_beams": n + 1, "num_return_sequences": n + 1, "do_sample": False}
    options |= {"max_new_tokens": max_new_tokens, "eos_token_id": backbone.end_ids}
    tokens = backbone.model.generate(**batch, **options)
    if not backbone.model.config.is_encoder_decoder:
        tokens = tokens[:, batch["input_ids"].shape[1] :]
    # A beam without an end was cut off, and is no answer.
    tokens = tokens[torch.isin(tokens, torch.tensor(backbone.end_ids).to(tokens.device)).any(1)]
    return [text.strip() for text in backbone.processor.batch_decode(tokens, skip_special_tokens=True)]
