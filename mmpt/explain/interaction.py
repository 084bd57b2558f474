"""Interaction: which textual prompt works through which visual prompt.

    second difference (i, j) = f(all) - f(without i) - f(without j) + f(without i and j)

f is the target, and "without" means switched off (`mmpt.explain.interventions`). The value is what textual prompt i
does while visual prompt j is there, less what it does while j is not; it is the same with the two exchanged. Zero
means that they work side by side. It is a statement on causes, whatever the order of the prompts in the sequence and
whichever of them can look at the other.

Notation: I = 1 + Pt choices of a textual prompt to do without (0: none), J = 1 + Pv of a visual one, S columns with
slots, s of them shared, n tokens of an answer, D width.

All I · J combinations are scored, but what several have in common is computed once: the vision tower runs J times; and
since the LLM is causal, columns before the first picture's depend on i alone (or, where the textual prompts come after
the picture, columns before those on j alone), so their keys and values are computed I (or J) times.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from mmpt.errors import InputError
from mmpt.explain.interventions import StrengthHooks, prompt_strength, slot_columns
from mmpt.explain.segments import prompt_layer
from mmpt.explain.targets import Case, still
from mmpt.m2pt.slots import CALL, Call


@dataclass
class Interaction:
    """Second differences in nats, on the CPU.

    Attributes:
        matrix: (Pt, Pv) positive where the two do more together than one by one, for targets that they raise.
        textual, visual: (Pt,), (Pv,) by how much the target falls without that prompt alone.
        score: the target's value with all prompts.
        target: in words.
    """

    matrix: Tensor
    textual: Tensor
    visual: Tensor
    score: float
    target: str


def interaction(case: Case) -> Interaction:
    """The matrix of textual × visual prompts of the active adapter.

    Raises:
        InputError: the adapter lacks one of the two kinds.
    """
    f = scores(case)
    return Interaction(
        matrix=f[0, 0] - f[1:, :1] - f[:1, 1:] + f[1:, 1:],
        textual=f[0, 0] - f[1:, 0],
        visual=f[0, 0] - f[0, 1:],
        score=f[0, 0].item(),
        target=case.target.words(),
    )


@torch.no_grad()
def scores(case: Case) -> Tensor:
    """(I, J) the target without textual prompt i - 1 and visual prompt j - 1, where 0 is without none.

    Raises:
        InputError: the adapter lacks one of the two kinds.
    """
    if len(case.prompts) < 2:
        have = f"{next(iter(case.prompts))} ones only" if case.prompts else "none"
        raise InputError(f"Interaction is between textual and visual prompts, and the active adapter has {have}.")
    keep = {kind: 1 - torch.eye(P + 1, P).roll(1, 0) for kind, (_, P) in case.prompts.items()}  # (I or J, P)
    keep = {kind: value.to(case.pixels) for kind, value in keep.items()}
    if prompt_layer(case.backbone)[0].backbone.family.image_type:  # nothing can be read once where patches look ahead
        sizes = [len(rows) for rows in keep.values()]
        textual = keep["textual"].repeat_interleave(sizes[1], 0)
        return case(textual=textual, visual=keep["visual"].repeat(sizes[0], 1)).view(*sizes).cpu()
    with still(case.backbone.model):
        host = prompt_layer(case.backbone)[0].backbone.host
        with prompt_strength(case.backbone, visual=keep["visual"]):
            pixels = case.pixels.expand(len(keep["visual"]), -1, -1, -1)
            features = torch.stack(list(host.get_image_features(**case.picture_inputs(pixels)).pooler_output))
        logps = [_Grid(case, ids, features, keep).log_probabilities(labels) for ids, labels in case.parts]
    return case.target.score(logps).cpu()


class _Grid:
    """All combinations for one answer.

    Args:
        ids: (1, T) up to the answer's last token but one.
        features: (J, Pv + N, D) the picture as the LLM gets it.
        keep: strengths (I, Pt) and (J, Pv).
    """

    def __init__(self, case: Case, ids: Tensor, features: Tensor, keep: dict[str, Tensor]):
        self.case, self.keep = case, keep
        self.layer, self.settings = prompt_layer(case.backbone)
        b = self.layer.backbone
        is_image = ids == b.image_token_id
        self.layout = self.layer.layout(self.layer.active, is_image, [int(is_image.sum())], None)
        ids = self.layout.ids(ids, b.image_token_id)
        self.embeds = b.host.get_input_embeddings()(ids).repeat(len(features), 1, 1)  # (J, S, D)
        self.embeds[:, ids[0] == b.image_token_id] = features.to(self.embeds)
        self.columns = slot_columns(self.layout, self.settings)
        picture, prompts = int((ids[0] == b.image_token_id).int().argmax()), int(self.layout.textual.min())
        self.first, self.shared = ("textual", picture) if prompts < picture else ("visual", prompts)

    def log_probabilities(self, labels: Tensor) -> Tensor:
        """(I, J, n)"""
        i, j = (torch.arange(len(self.keep[kind])) for kind in ("textual", "visual"))
        if self.first == "textual":
            early, _ = self._run(i, torch.zeros_like(i), None)
        else:
            early, _ = self._run(torch.zeros_like(j), j, None)
        size = len(i), len(j)
        i, j = (index.flatten() for index in torch.meshgrid(i, j, indexing="ij"))
        head, logps = self.case.backbone.model.get_output_embeddings(), []
        whole = self.embeds.shape[1]
        at_once = self.case.rows * whole // (whole - self.shared)  # as many columns as `rows` whole sequences have
        for rows in torch.arange(len(i)).split(at_once):
            mine = (i if self.first == "textual" else j)[rows]
            cache = DynamicCache([(layer.keys[mine], layer.values[mine]) for layer in early.layers])
            _, hidden = self._run(i[rows], j[rows], cache)
            logp = head(hidden[:, -len(labels) :]).float().log_softmax(-1)  # (rows, n, V)
            logps.append(logp.gather(-1, labels.expand(len(rows), -1)[..., None])[..., 0])
        return torch.cat(logps).view(*size, -1)

    def _run(self, i: Tensor, j: Tensor, cache: DynamicCache | None) -> tuple[DynamicCache, Tensor]:
        """The columns before `shared`, or with their cache those from there on, for the pairs (i, j)."""
        span = slice(0, self.shared) if cache is None else slice(self.shared, None)
        embeds = self.embeds[j, span]
        start, end = span.start, span.start + embeds.shape[1]
        slots = self.layout.textual
        inside = start <= int(slots.min()) < end
        layout = replace(self.layout, textual=(slots - start).expand(len(i), -1)) if inside else None
        call = Call(self.layer.active, layout, self._early(start, end) if self.settings.late else None, None)
        strengths = {}
        for kind, rows in (("textual", i), ("visual", j)):
            places = len(self.case.prompts[kind][0])
            strengths[kind] = self.keep[kind][rows][:, None].expand(-1, places, -1)
        columns = {kind: value.expand(len(i), -1) for kind, value in self.columns.items()}
        with StrengthHooks(self.layer, self.settings, strengths, columns):
            out = self.layer.backbone.llm(inputs_embeds=embeds, past_key_values=cache, use_cache=True, **{CALL: call})
        return out.past_key_values, out.last_hidden_state

    def _early(self, start: int, end: int) -> Tensor:
        """(1, 1, Q, K) bool, what layers before the first one with textual prompts may look at."""
        places = torch.arange(end, device=self.embeds.device)
        return ((places <= places[start:, None]) & (self.columns["textual"][:, :end] < 0))[None]
