"""How visual prompts act: hooks on the vision tower and its blocks, put on and taken off by hooks.py.

Shapes: B pictures or crops, P prompts, N patches and whatever else the tower's sequence has, D width.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from mmpt.m2pt.slots import SLOTS

if TYPE_CHECKING:
    from mmpt.m2pt.layer import M2PTLayer


def before_block(layer: "M2PTLayer", i: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
    # Z¹ = L₁(Pv¹, E);  Zⁱ = Lᵢ(Pvⁱ, Zⁱ⁻¹)
    adapter = layer.active
    if adapter is None:
        return None
    settings = layer.settings[adapter]
    if not settings.visual_layers or i < settings.visual_layers[0]:
        return None
    hidden, *rest = args
    P = settings.config.num_visual_prompts
    if rest and rest[0] is not None:
        rest[0] = _with_slots(rest[0], P)
    if i in settings.visual_layers:
        prompts = layer.m2pt_visual_prompts[adapter][str(i)].to(hidden).expand(len(hidden), -1, -1)
        if i != settings.visual_layers[0]:
            if settings.config.visual_update == "carry":
                prompts = prompts + hidden[:, -P:]
            hidden = hidden[:, :-P]
        hidden = torch.cat([hidden, prompts], 1)
    return (hidden, *rest), kwargs


def after_tower(layer: "M2PTLayer", tower: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    adapter = layer.active
    if adapter is None or not isinstance(output, ModelOutput) or not layer.settings[adapter].visual_layers:
        return
    P = layer.settings[adapter].config.num_visual_prompts
    last, states, layers = output.last_hidden_state, output.hidden_states, layer.backbone.feature_layers
    read = [last] if layers is None else [states[i] for i in layers] if states else []
    if read:
        setattr(output, SLOTS, torch.cat([state[:, -P:] for state in read], -1))
    output.last_hidden_state = last[:, :-P]
    if states:  # those before the first listed layer hold none; the host may keep the ones it reads only
        output.hidden_states = tuple(h[:, :-P] if h is not None and h.shape[1] == last.shape[1] else h for h in states)


def _with_slots(mask: Tensor, P: int) -> Tensor:
    """A tower's mask of padding (B, 1, N, N), bool or added to the scores, the same for all queries, for N + P."""
    mask = torch.cat([mask, mask[:, :, :1].expand(-1, -1, P, -1)], 2)
    return F.pad(mask, (0, P), value=mask.dtype == torch.bool)
