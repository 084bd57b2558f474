"""Attention: where the layers looked. It says nothing about what the answer depended on; attribution does.

Notation: L layers, H heads, T positions inside the LLM or the vision tower, prompt slots included, N patches. A weight
[l, h, i, j] is the share of its attention that position i gives to position j; i sees itself and what stands before it
in the LLM, everything in the vision tower.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor, nn

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.order import Order, order
from mmpt.explain.segments import SEGMENTS, Segments, encode, prompt_layer, segments, vision_segments
from mmpt.explain.targets import still
from mmpt.m2pt.backbone import find_backbone, self_attention

PREDICTING = "predicting"  # as a source: the positions that the answer's tokens are predicted from
SINK = 0.3  # the threshold of Gu et al., arXiv 2410.10781


@dataclass
class Attention:
    """The attention of all layers in one call.

    A source or a target is a segment's name, a position, or several; as a source also "predicting": the position
    before each of the answer's tokens, whose row is what the model looked at while that token was chosen. (The row of
    a token itself belongs to the choice of the next one.) Layers and heads count from 0; left out, they are averaged,
    over the layers that have the source.

    Attributes:
        weights: (L, H, T, T) float32 on the CPU; zero in rows and columns of slots that a layer does not have yet.
            Rows sum to 1, but to less with prompts inside attention (num_kv_prompts) and PEFT's own prompt methods:
            those prompts are no positions here, and what is missing went to them.
        segments: what the T positions are.
        question, answer: the text that was read; empty for the vision tower.
        order: on attention from textual to visual prompts; None for the vision tower.
        left_out: labels of the sinks that are left out, whose share the others have among them.
    """

    weights: Tensor
    segments: Segments
    question: str = ""
    answer: str = ""
    order: Order | None = None
    left_out: tuple[str, ...] = ()

    def positions(self, place: str | int | Sequence[int]) -> Tensor:
        """Positions of a source or a target.

        Raises:
            InputError: the sequence has no such position or segment.
        """
        T = len(self.segments)
        if isinstance(place, str):
            if place not in (*SEGMENTS, PREDICTING):
                names = ", ".join((*self.segments.present, PREDICTING))
                raise InputError(f"There is no segment {place!r}; choose one of {names}.")
            found = self.segments.where("answer") - 1 if place == PREDICTING else self.segments.where(place)
            if not len(found):
                raise InputError(
                    f"Nothing in this sequence is {place!r}; it has {', '.join(self.segments.present)}: choose one."
                )
            return found
        found = torch.as_tensor(place).reshape(-1)
        if not len(found) or found.min() < 0 or found.max() >= T:
            raise InputError(f"Positions {found.tolist()} were asked for; give some from 0 to {T - 1}.")
        return found

    @property
    def there(self) -> Tensor:
        """(L, T) bool, which positions a layer has: slots exist from the first layer that writes them."""
        there = torch.ones(len(self.weights), len(self.segments), dtype=torch.bool)
        if self.segments.written:
            there[: self.segments.written[0], self.segments.where(self.segments.slots)] = False
        return there

    def pick(self, layer: int | None = None, head: int | None = None) -> Tensor:
        """(T, T) the weights of a layer and a head.

        Raises:
            InputError: no such layer or head.
        """
        weights = self.weights
        for name, value, n in (("layer", layer, weights.shape[0]), ("head", head, weights.shape[1])):
            if value is not None and not 0 <= value < n:
                raise InputError(f"There is no {name} {value}; give one from 0 to {n - 1}, or None for the mean.")
        weights = weights.sum(0) / self.there.sum(0)[:, None] if layer is None else weights[layer]  # (H, T, T)
        return weights.mean(0) if head is None else weights[head]

    def share(self, source, target) -> Tensor:
        """(L, H) the share of their attention that the source's positions give to the target's, on average.

        NaN in layers without the source.
        """
        source = self.positions(source)
        given = self.weights[:, :, source][..., self.positions(target)].sum((-1, -2))
        return given / self.there[:, source].sum(1)[:, None]

    def matrix(self, layer: int | None = None, head: int | None = None) -> Tensor:
        """(S, S) the same for every pair of `segments.present`, source by target; rows sum as those of `weights`."""
        weights, present = self.pick(layer, head), self.segments.present
        member = torch.stack([torch.tensor([k == kind for k in self.segments.kinds]) for kind in present]).float()
        return member @ weights @ member.T / member.sum(1, keepdim=True)

    def seen_from(self, source, layer: int | None = None, head: int | None = None) -> Tensor:
        """(T,) how the source's attention falls on every position."""
        return self.pick(layer, head)[self.positions(source)].mean(0)

    def on_picture(self, source, layer: int | None = None, head: int | None = None) -> Tensor:
        """(rows, columns) how the source's attention falls on the patches."""
        return self.seen_from(source, layer, head)[self.positions("patch")].view(self.segments.grid)

    def received(self) -> Tensor:
        """(L, H, T) the mean attention that each position gets from the others that can see it."""
        others = ~torch.eye(len(self.segments), dtype=torch.bool)
        if not self.weights.triu(1).any():
            others = others.tril()
        looking = (others & self.there[:, :, None]).sum(-2).clamp(min=1)  # (L, T)
        return (self.weights * others).sum(-2) / looking[:, None]

    def sinks(self, threshold: float = SINK) -> Tensor:
        """Positions that soak up more than `threshold` of the others' attention, on average over layers and heads.

        After the measure of Gu et al. ("When attention sink emerges in language models", ICLR 2025, arXiv 2410.10781),
        which they take head by head. In SmolLM2 it is the first position, at 0.38 to 0.39; the next has 0.07 to 0.13.
        """
        received = self.received().mean(1).sum(0) / self.there.sum(0)  # (T,)
        return (received > threshold).nonzero()[:, 0]

    def without_sinks(self, threshold: float = SINK) -> "Attention":
        """The same without the columns of the sinks: shares of the attention that is not on them.

        `left_out` names them. A row that looked at nothing else stays empty.
        """
        weights, sinks = self.weights.clone(), self.sinks(threshold)
        whole = weights.sum(-1, keepdim=True)
        weights[..., sinks] = 0
        # Prompts inside attention get a share too and are no positions; what 16 bits round off is none.
        rest = weights.sum(-1, keepdim=True) + (1 - whole).where(whole < 0.98, 0)
        names = tuple(self.segments.labels[i] for i in sinks.tolist())
        return replace(self, weights=weights / rest.where(rest > 1e-6, 1), left_out=self.left_out + names)


def attention(backbone: Backbone, image: Image.Image, question: str, answer: str | None = None) -> Attention:
    """The LLM's attention over picture, question and answer with the active adapter, in one teacher-forced call.

    Without `answer`, the backbone's own greedy answer is read. Memory: 4 L·H·T² bytes.
    """
    if answer is None:
        answer = backbone.answer([image], [question])[0]
    host = find_backbone(backbone.model)
    batch = {k: v for k, v in encode(backbone, image, question, answer).items() if k != "labels"}
    with still(backbone.model), capture(host.textual_blocks, backbone.model) as seen, torch.inference_mode():
        backbone.model(**batch, use_cache=False, logits_to_keep=1)
    found = segments(backbone, image, question, answer)
    settings = prompt_layer(backbone)[1]
    return Attention(_stack(seen, found), found, question, answer, order(settings, len(seen)))


def vision_attention(backbone: Backbone, image: Image.Image) -> Attention:
    """The vision tower's attention between CLS, patches and visual prompts, in the layers that the LLM sees."""
    host = find_backbone(backbone.model)
    blocks = host.visual_blocks[: max(host.reach)]
    pixels = encode(backbone, image, "?")["pixel_values"]
    with still(backbone.model), capture(blocks, backbone.model) as seen, torch.inference_mode():
        host.host.get_image_features(pixel_values=pixels)
    found = vision_segments(backbone, image)
    return Attention(_stack(seen, found), found)


@contextmanager
def capture(blocks: list[nn.Module], model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context each block's attention weights (B, H, T, T) are appended to the list that is yielded.

    The fused implementations never form the weights, so the eager one is in force meanwhile; hooks and implementation
    are as before afterwards, whatever happens.
    """
    seen = []
    # Outer configurations come first, and setting one sets those inside of it: so inner ones are put back last.
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    configs = [c for c in configs if hasattr(c, "_attn_implementation")]
    before = [c._attn_implementation for c in configs]
    hooks = []
    try:
        for block in blocks:
            hooks.append(self_attention(block).register_forward_hook(lambda m, args, output: seen.append(output[1])))
        for config in configs:
            config._attn_implementation = "eager"
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for config, implementation in zip(configs, before):
            config._attn_implementation = implementation


def _stack(seen, found):
    """(L, H, T, T), with zeros where the slots have not come into being, without keys that are no position."""
    T = len(found)
    weights = torch.zeros(len(seen), seen[0].shape[1], T, T)
    for layer, w in enumerate(seen):
        t = min(w.shape[-2], T)  # in the tower the slots stand at the end, and are not there before their first layer
        weights[layer, :, :t, :t] = w[0, :, -t:, -t:].float()  # prompts of other methods stand in front
    if found.written:
        weights[: found.written[0], :, found.where(found.slots)] = 0
    return weights
