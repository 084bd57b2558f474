"""Textual prompts as keys and values, which spares the LLM their columns while it is trained.

Where prompts come first and overwrite their slots in every layer, all that anybody ever sees of a slot are its keys
and values, and these depend on the prompt and its position alone: K = RoPE(W_k norm(p)), V = W_v norm(p). What a layer
puts out there is overwritten by the next one. So each layer may take the prompts' keys and values in front of its
sequence's: the same numbers at every token that is not padding, projected once for all rows. It is done in training
mode only: an answer to one question gains nothing, since its time goes into reading the weights, and whoever looks
inside expects the columns.

Shapes: B rows, T caller's tokens, P textual prompts, G key/value heads, d width of a head.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention, rotate_half
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from mmpt.m2pt.attention_prompts import PromptedCache
from mmpt.m2pt.backbone import Backbone
from mmpt.m2pt.layout import Layout

if TYPE_CHECKING:
    from mmpt.m2pt.layer import Settings

# Attention whose keys and values are those above; with others there are norms or rotations in between.
PLAIN = LlamaAttention, MistralAttention, Qwen2Attention


@dataclass(frozen=True)
class Folded:
    """How the prompts' keys are rotated: cos and sin (B, 1, P, d)."""

    cos: Tensor
    sin: Tensor

    def enter(self, block: nn.Module, prompts: Tensor, kwargs: dict) -> dict:
        """The keyword arguments of a call of `block.self_attn` with `prompts` (P, D) or (B, P, D) in front."""
        hidden, mask, attention = kwargs["hidden_states"], kwargs["attention_mask"], block.self_attn
        prompts = block.input_layernorm(prompts.to(hidden))
        keys, values = (
            project(prompts).unflatten(-1, (-1, attention.head_dim)).transpose(-3, -2)  # (G, P, d)
            for project in (attention.k_proj, attention.v_proj)
        )
        keys = keys * self.cos.to(keys.device) + rotate_half(keys) * self.sin.to(keys.device)
        keys, values = (x.expand(len(hidden), -1, -1, -1) for x in (keys, values))
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = PromptedCache(None, keys, values)
        else:
            cache.update(keys, values, attention.layer_idx)
        seen = mask.dtype == torch.bool  # True there, and 0 where masks are added to the scores
        return kwargs | {"past_key_values": cache, "attention_mask": F.pad(mask, (keys.shape[2], 0), value=seen)}


def folds(backbone: Backbone, settings: "Settings", kwargs: dict[str, Any], T: int) -> bool:
    """Whether a call of the host with T tokens may have its textual prompts folded.

    Not so for whoever brings a cache or asks for all columns, where prompts in columns would slide out of a window,
    and where no mask is made for the layers, because nothing is padded or their attention needs none: half of the
    scores are then never computed, which is worth more.
    """
    llm, config, mask = backbone.llm, settings.config, kwargs.get("attention_mask")
    asked = ("output_hidden_states", "output_attentions")
    return (
        llm.training
        and kwargs.get("past_key_values") is None
        and not any(kwargs.get(name, getattr(llm.config, name, False)) for name in asked)
        and llm.config._attn_implementation in ("sdpa", "eager")
        and not getattr(llm.config, "sliding_window", None)
        and len(settings.textual_layers) == len(backbone.textual_blocks)
        and (config.textual_update, config.textual_position, config.num_kv_prompts) == ("replace", "first", 0)
        and all(type(block.self_attn) in PLAIN for block in backbone.textual_blocks)
        and mask is not None
        and not mask[:, :T].all()  # what is behind may be of a cache yet to come
    )


def fold(backbone: Backbone, layout: Layout, P: int, kwargs: dict[str, Any]) -> Folded:
    """P prompts in front of `layout`, which has no textual slots; sets the positions in `kwargs`, or moves them."""
    given, (B, T) = kwargs.get("position_ids"), layout.tokens.shape
    if given is None:  # as the LLM counts, padding included
        given = torch.arange(T, device=layout.tokens.device) + layout.added - layout.shift
    first = given.expand(B, T).gather(1, layout.textual_at[:, None])
    slots = first + torch.arange(P, device=first.device)
    kwargs["position_ids"] = layout.positions(given) + P
    like = torch.empty(0, dtype=backbone.llm.dtype, device=first.device)
    # All positions, since some rotations depend on how far they reach.
    rotation = backbone.llm.rotary_emb(like, torch.cat([slots, kwargs["position_ids"]], 1))
    return Folded(*(part[:, None, :P] for part in rotation))
