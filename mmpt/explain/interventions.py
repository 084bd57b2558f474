"""Switching prompts off or scaling them, and replacing patches of a picture.

Notation: B rows, P prompts of a kind, L layers, S columns with slots, Q queries and K keys of a layer's attention,
H × W pixels.

What it means to switch a prompt off, here and wherever a prompt is ablated: nobody can look at its slot. Its strength
s multiplies the weight that every other position gives to the slot before the softmax normalises:

    a = s · exp(q·k / √d) / Σ          that is, log s is added to the attention's logits

So 1 leaves the model as it is, and 0 makes it blind to the slot, with every position where it was. Two other readings
were ruled out. A vector of zeros is not absence: its key gives a logit of 0 and takes its share of the softmax. And a
vector scaled by s is the same prompt, since a pre-norm LLM divides each prompt by its own size before it is looked at.

A visual prompt is switched off in the vision tower and, where the LLM reads it, in the LLM. A prompt that stands
first may be the LLM's attention sink (mmpt/m2pt/README.md): without it, heads that rest there must look elsewhere.
That effect is real, and large.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.segments import prompt_layer
from mmpt.m2pt.backbone import self_attention
from mmpt.m2pt.layer import M2PTLayer, Settings
from mmpt.m2pt.layout import Layout
from mmpt.m2pt.slots import CALL

BASELINES = {
    "mean": "the picture's mean colour",
    "grey": "the grey in the middle of the model's range",
    "blur": "the picture, blurred until patches merge",
}
KINDS = ("textual", "visual")


def prompt_rows(backbone: Backbone) -> dict[str, tuple[list[str], int]]:
    """For "textual" and "visual", as far as the active adapter has them: names of the L places where such a prompt can
    be looked at, and P.

    The places of a textual prompt are the LLM's layers from the first one with prompts; those of a visual prompt the
    vision tower's layers, as far as the LLM sees them, and last, where it reads the slots, all of the LLM.
    """
    layer, settings = prompt_layer(backbone)
    rows = {}
    if settings is not None and settings.textual_layers:
        places = range(settings.textual_layers[0], len(layer.backbone.textual_blocks))
        rows["textual"] = [f"LLM layer {j + 1}" for j in places], settings.config.num_textual_prompts
    if settings is not None and settings.visual_layers:
        places = [f"vision layer {i + 1}" for i in range(settings.visual_layers[0], max(layer.backbone.reach))]
        rows["visual"] = places + ["LLM"] * (settings.extra_tokens > 0), settings.config.num_visual_prompts
    return rows


@contextmanager
def prompt_strength(backbone: Backbone, textual: Tensor | None = None, visual: Tensor | None = None) -> Iterator[None]:
    """Within the context the active adapter's prompts have the given strengths, in calls and in `generate`.

    Args:
        textual, visual: strengths of 0 or more, (P,), a row of a batch each (B, P), or (B, L, P) for the L places of
            `prompt_rows`; B is 1 or the rows of every call. None leaves that kind as it is. Gradients flow into them.

    Raises:
        InputError: the active adapter has no such prompts, or another number of them; or the attention's
            implementation takes no mask of weights.
    """
    rows, given = prompt_rows(backbone), {}
    for kind, strength in zip(KINDS, (textual, visual)):
        if strength is not None:
            given[kind] = _checked(kind, strength, rows)
    with StrengthHooks(*prompt_layer(backbone), given) if given else nullcontext():
        yield


@contextmanager
def without(backbone: Backbone, textual=(), visual=(), place: int | None = None) -> Iterator[None]:
    """Within the context the prompts of these indices are switched off, everywhere or at one place of `prompt_rows`.

    Raises:
        InputError: no such prompt or place.
    """
    rows, strengths = prompt_rows(backbone), {}
    for kind, indices in zip(KINDS, (textual, visual)):
        if len(indices) == 0:
            continue
        names, P = rows.get(kind, ([], 0))
        if not all(0 <= i < P for i in indices):
            raise InputError(f"{kind} prompts {list(indices)} were named, but there are {P}, counted from 0.")
        if place is not None and not 0 <= place < len(names):
            raise InputError(f"place={place}: {kind} prompts have the places 0 to {len(names) - 1}.")
        strengths[kind] = torch.ones(1, len(names), P)
        strengths[kind][:, slice(None) if place is None else [place], list(indices)] = 0
    with prompt_strength(backbone, **strengths):
        yield


def _checked(kind, strength, rows):
    """As (B or 1, L, P)."""
    if kind not in rows:
        raise InputError(f"The active adapter has no {kind} prompts to switch off or scale; load an M²PT adapter.")
    names, P = rows[kind]
    wide = strength[None, None] if strength.ndim == 1 else strength[:, None] if strength.ndim == 2 else strength
    if wide.ndim != 3 or wide.shape[2] != P or wide.shape[1] not in (1, len(names)):
        raise InputError(
            f"The strengths of {kind} prompts have the shape {tuple(strength.shape)}; give ({P},), (rows, {P}) or "
            f"(rows, {len(names)}, {P})."
        )
    if (strength.detach() < 0).any():
        raise InputError(f"A strength of {strength.min().item():g} was given; 0 switches off, 1 is as tuned.")
    return wide.expand(-1, len(names), -1)


class StrengthHooks:
    """The hooks that add log s to the attention's logits. They run after M²PT's own, which put the slots in place.

    Args:
        strengths: "textual" and "visual", or one of them, (B or 1, L, P).
        columns: see `slot_columns`; by default those of the sequence that was begun last.
    """

    def __init__(
        self,
        layer: M2PTLayer,
        settings: Settings,
        strengths: dict[str, Tensor],
        columns: dict[str, Tensor] | None = None,
    ):
        self.backbone, self.settings = layer.backbone, settings
        self.logits = {kind: s.log() for kind, s in strengths.items()}
        self.columns, self.follow = columns, columns is None
        self.handles = []

    def __enter__(self) -> None:
        b = self.backbone
        blocks = b.textual_blocks + b.visual_blocks
        used = {self_attention(block).config._attn_implementation for block in blocks}
        if not used <= {"eager", "sdpa"}:
            raise InputError(
                f"Prompts are switched off by a mask of weights, which {', '.join(sorted(used))} does not take; load "
                'the model with attn_implementation="sdpa".'
            )
        add = self.handles.append
        add(b.llm.register_forward_pre_hook(self.before_llm, with_kwargs=True))
        for j, block in enumerate(b.textual_blocks):
            add(block.register_forward_pre_hook(partial(self.before_textual_block, j), with_kwargs=True))
        if "visual" in self.logits:
            places = range(self.settings.visual_layers[0], max(b.reach))
            for place, i in enumerate(places):
                hook = partial(self.before_visual_attention, place)
                add(self_attention(b.visual_blocks[i]).register_forward_pre_hook(hook, with_kwargs=True))

    def __exit__(self, *error) -> None:
        while self.handles:
            self.handles.pop().remove()

    def before_llm(self, llm: nn.Module, args: tuple, kwargs: dict) -> None:
        call = kwargs.get(CALL)
        if llm.training:
            raise ValueError(
                "Prompts are switched off and scaled by their columns, of which textual ones may have none in "
                "training mode: call model.eval() first."
            )
        if self.follow and call is not None and call.layout is not None:
            self.columns = slot_columns(call.layout, self.settings)
        elif self.columns is None:
            raise ValueError(
                "This call goes on from a cache that was begun elsewhere, or the adapter is off: begin the sequence "
                "within the context, under the adapter whose prompts are meant."
            )
        self.masks = {}  # blocks mostly get one mask and one set of strengths, so each is made once

    def before_textual_block(self, j: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple:
        hidden, mask, cache = args[0], kwargs.get("attention_mask"), kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length(j)
        place = j - next(iter(self.settings.textual_layers), 0)  # an adapter may have visual prompts alone
        logits = self.logits.get("textual") if place >= 0 else None
        same = logits is None or logits.stride(1) == 0  # in all layers
        key = id(mask), logits is None, None if same else place
        if key not in self.masks:
            bias = hidden.new_zeros(1, self.columns["textual"].shape[1])
            if logits is not None:
                bias = bias + _spread(logits[:, place], self.columns["textual"])
            if "visual" in self.logits and self.settings.extra_tokens:
                bias = bias + _spread(self.logits["visual"][:, -1], self.columns["visual"])
            # The mask is kept beside its id, which could be given away again otherwise.
            self.masks[key] = mask, _with_bias(mask, bias, hidden, past, causal=True)
        return args, kwargs | {"attention_mask": self.masks[key][1]}

    def before_visual_attention(self, place: int, attention: nn.Module, args: tuple, kwargs: dict) -> tuple:
        # Not before the block, as with text: InternVL's hand no mask on.
        hidden, mask = args[0] if args else kwargs["hidden_states"], kwargs.get("attention_mask")
        logits = self.logits["visual"][:, place].to(hidden)  # the slots stand at the end
        bias = F.pad(logits, (hidden.shape[1] - logits.shape[1], 0))
        return args, kwargs | {"attention_mask": _with_bias(mask, bias, hidden, 0, causal=False)}


def slot_columns(layout: Layout, settings: Settings) -> dict[str, Tensor]:
    """For either kind (B, S): which prompt a column is the slot of, or -1."""
    nobody = torch.full(layout.shape, -1, device=layout.visual.device)
    order = torch.arange(layout.textual.shape[1], device=nobody.device).expand_as(layout.textual)
    # A row's pictures have their P slots each, one after the other.
    visual = (layout.visual.cumsum(1) - 1) % max(settings.config.num_visual_prompts, 1)
    return {"textual": nobody.scatter(1, layout.textual, order), "visual": torch.where(layout.visual, visual, nobody)}


def _spread(logits: Tensor, columns: Tensor) -> Tensor:
    """(B or 1, P) at the columns (B, S) of the slots, 0 elsewhere."""
    if len(logits) not in (1, len(columns)):
        raise ValueError(f"Strengths for {len(logits)} rows were given, but the call has {len(columns)}.")
    logits = F.pad(logits, (1, 0)).to(columns.device).expand(len(columns), -1)
    return logits.gather(1, columns + 1)


def _with_bias(mask: Tensor | None, bias: Tensor, hidden: Tensor, past: int, causal: bool) -> Tensor:
    """(B, 1, Q, K) what to add to the logits: the block's own mask, and the bias of each key but on its own query."""
    keys = past + hidden.shape[1]
    least = torch.finfo(hidden.dtype).min
    places = torch.arange(keys, device=hidden.device)
    behind = places[past:, None] - places  # (Q, K)
    bias = F.pad(bias.to(hidden), (0, keys - bias.shape[1]))[:, None, None]  # cuts off columns still to come
    bias = bias.masked_fill(behind == 0, 0)  # nobody looks at a slot then, but its own row stays a distribution
    if mask is None:
        mask = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, least)
    return (mask[..., :keys] + bias[..., -mask.shape[-1] :]).clamp(min=least)  # a sliding window's mask is narrower


# ---- patches -------------------------------------------------------------------------------------------------------


def baseline_pixels(pixels: Tensor, baseline: str, patch: int) -> Tensor:
    """A picture that says nothing, of the shape of `pixels` (B, 3, H, W); `baseline` is one of `BASELINES`.

    Raises:
        InputError: no such baseline.
    """
    if baseline not in BASELINES:
        raise InputError(f"There is no baseline {baseline!r}; choose one of {', '.join(BASELINES)}.")
    if baseline == "grey":
        return torch.zeros_like(pixels)
    if baseline == "mean":
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    for _ in range(3):  # three box filters are close to a Gaussian
        pixels = F.avg_pool2d(pixels, 2 * patch + 1, 1, patch, count_include_pad=False)
    return pixels


def patch_mask(keep: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """(B, rows, columns), a value a patch → (B, 1, H, W), the same a pixel; what lies beyond the last patch gets 1."""
    wide = keep.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return F.pad(wide, (0, size[1] - wide.shape[2], 0, size[0] - wide.shape[1]), value=1)[:, None]


def replace_patches(pixels: Tensor, keep: Tensor, baseline: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W): `pixels` where `keep` (B, rows, columns) is 1, and `baseline` where it is 0."""
    keep = patch_mask(keep.to(pixels), pixels.shape[-2:], patch)
    return keep * pixels + (1 - keep) * baseline
