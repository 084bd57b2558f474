"""How visual prompts act in a tower that packs all pictures of a call into one sequence, as Qwen2-VL and 2.5-VL do.

A layer takes the patches of all pictures one after the other, and where a chunk of them ends: at a picture's end, or
in a layer of windows at each window's. Our reading of Zⁱ = Lᵢ(Pvⁱ, Zⁱ⁻¹): every chunk has its picture's prompts at its
end, so that every patch sees them in every layer; they have no place on the grid, so nothing rotates them; and what
becomes of a prompt is the mean over its picture's chunks. Between layers the prompts of all pictures stand behind the
patches of all, behind the last layer as whole cells for the merger, which is called inside the tower.

Shapes: B pictures, N patches of all of them, K chunks, P prompts, D width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmpt.m2pt.slots import SLOTS

if TYPE_CHECKING:
    from mmpt.m2pt.layer import M2PTLayer

PICTURES, CHUNKS = "m2pt_pictures", "m2pt_chunks"  # keyword arguments of blocks: patches of each picture; a `Chunks`


@dataclass(frozen=True)
class Chunks:
    """K chunks of N patches with P prompts at the end of each.

    Attributes:
        pictures: patches of each picture.
        picture: (K,) to which picture each belongs.
        ends: (K + 1,) cumulated lengths, prompts counted.
        places: (N + K P,) where patches and then the prompts of chunk after chunk stand.
    """

    pictures: list[int]
    picture: Tensor
    ends: Tensor
    places: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, pictures: list[int], P: int) -> "Chunks":
        """From the cumulated lengths (K + 1,) of the chunks of patches."""
        ends, device = cu_seqlens[1:].long(), cu_seqlens.device
        K = torch.arange(len(ends), device=device)
        patches = torch.arange(sum(pictures), device=device)
        patches = patches + P * torch.searchsorted(ends, patches, right=True)
        prompts = (ends + P * K)[:, None] + torch.arange(P, device=device)
        return cls(
            pictures,
            torch.searchsorted(torch.tensor(pictures, device=device).cumsum(0), ends),
            cu_seqlens + P * torch.arange(len(cu_seqlens), device=device, dtype=cu_seqlens.dtype),
            torch.cat([patches, prompts.flatten()]),
        )

    def fill(self, patches: Tensor, prompts: Tensor) -> Tensor:
        """(N, D) and (K, P, D) -> (N + K P, D)"""
        return torch.cat([patches, prompts.flatten(0, 1)])[self.places.argsort()]

    def empty(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N + K P, D) -> patches (N, D), prompts (B, P, D)"""
        N, B = sum(self.pictures), len(self.pictures)
        patches, prompts = rows[self.places].split([N, len(rows) - N])
        prompts = prompts.unflatten(0, (len(self.picture), -1))
        totals = prompts.new_zeros(B, *prompts.shape[1:]).index_add(0, self.picture, prompts)
        return patches, totals / self.picture.bincount(minlength=B)[:, None, None]


def before_tower(layer: "M2PTLayer", tower: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
    if layer.active is None or not layer.settings[layer.active].visual_layers:
        return None
    return args, kwargs | {PICTURES: kwargs["grid_thw"].prod(-1).tolist()}


def before_block(layer: "M2PTLayer", i: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
    # Z¹ = L₁(Pv¹, E);  Zⁱ = Lᵢ(Pvⁱ, Zⁱ⁻¹)
    pictures = kwargs.pop(PICTURES, None)
    if pictures is None:
        return None
    settings, N = layer.settings[layer.active], sum(pictures)
    if i < settings.visual_layers[0]:
        return args, kwargs
    hidden, *rest = args
    P = settings.config.num_visual_prompts
    prompts = hidden[N:].view(-1, P, hidden.shape[1])  # none yet before the first of these layers
    if i in settings.visual_layers:
        own = layer.m2pt_visual_prompts[layer.active][str(i)].to(hidden).expand(len(pictures), -1, -1)
        prompts = own + prompts if settings.config.visual_update == "carry" and len(prompts) else own
    chunks = Chunks.of(kwargs["cu_seqlens"], pictures, P)
    cos, sin = kwargs["position_embeddings"]
    still = cos.new_ones(len(chunks.picture), P, cos.shape[1])
    longest = kwargs.get("max_seqlen")
    return (chunks.fill(hidden[:N], prompts[chunks.picture]), *rest), kwargs | {
        "cu_seqlens": chunks.ends,
        "max_seqlen": longest and longest + P,
        "position_embeddings": (chunks.fill(cos, still), chunks.fill(sin, 0 * still)),
        CHUNKS: chunks,
    }


def after_block(layer: "M2PTLayer", i: int, block: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Any:
    if CHUNKS not in kwargs:
        return None
    patches, prompts = kwargs[CHUNKS].empty(output)
    if i == len(layer.backbone.visual_blocks) - 1:
        prompts = prompts.repeat_interleave(layer.backbone.tower.spatial_merge_size**2, 1)
    return torch.cat([patches, prompts.flatten(0, 1)])


def after_tower(layer: "M2PTLayer", tower: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    if layer.active is None or not layer.settings[layer.active].visual_layers:
        return
    last, cell, B = output.last_hidden_state, tower.spatial_merge_size**2, len(kwargs["grid_thw"])
    patches, prompts = last.split([N := int(kwargs["grid_thw"].prod(-1).sum()), len(last) - N])
    setattr(output, SLOTS, prompts.view(B, -1, cell, last.shape[1])[:, :, 0])
    output.last_hidden_state, output.pooler_output = patches, output.pooler_output[: N // cell]
    if output.hidden_states:
        output.hidden_states = tuple(state[:N] for state in output.hidden_states)
