"""Textual prompts as keys and values, which spares the LLM their columns while it is trained.

Where prompts come first and overwrite their slots in every layer, all that anybody ever sees of a slot are its keys
and values, and these depend on the prompt alone: K = RoPE(W_k norm(p)), V = W_v norm(p). Everything else that a layer
makes of it is thrown away by the next one. So each layer may take the prompts' keys and values in front of its
sequence's: the same numbers, made once for all rows. It is done in training mode only: an answer to one question gains
nothing, since its time goes into reading the weights, and whoever looks inside expects the columns.

Shapes: B rows, T columns without textual slots, P textual prompts, G key/value heads, d width of a head.
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
    """What the LLM's layers need to take prompts as keys and values.

    Attributes:
        cos, sin: (B, 1, P, d) how the prompts' keys are rotated.
        mask: (B, 1, T, P + T) who sees whom, bool or added to the scores.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor

    def enter(self, block: nn.Module, prompts: Tensor, kwargs: dict) -> dict:
        """The keyword arguments of a call of `block.self_attn` with `prompts` (P, D) or (B, P, D) in front."""
        hidden, attention = kwargs["hidden_states"], block.self_attn
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
        return kwargs | {"past_key_values": cache, "attention_mask": self.mask.to(hidden.device)}


def folds(backbone: Backbone, settings: "Settings", kwargs: dict[str, Any]) -> bool:
    """Whether a call of the host may have its textual prompts folded.

    Not so where a sliding window would lose sight of them, and for whoever asks for all columns.
    """
    llm, config = backbone.llm, settings.config
    asked = ("output_hidden_states", "output_attentions")
    return (
        llm.training
        and kwargs.get("attention_mask") is not None
        and kwargs.get("past_key_values") is None
        and not any(kwargs.get(name, getattr(llm.config, name, False)) for name in asked)
        and llm.config._attn_implementation in ("sdpa", "eager")
        and not getattr(llm.config, "sliding_window", None)
        and len(settings.textual_layers) == len(backbone.textual_blocks)
        and (config.textual_update, config.textual_position, config.num_kv_prompts) == ("replace", "first", 0)
        and all(type(block.self_attn) in PLAIN for block in backbone.textual_blocks)
    )


def fold(backbone: Backbone, layout: Layout, P: int, mask: Tensor, kwargs: dict[str, Any]) -> Folded:
    """Prompts in front of the columns of `layout`, which has no textual slots; positions move, in place in `kwargs`.

    Args:
        mask: (B, P + T) the prompts' and the sequence's.
    """
    B, T = layout.shape
    tokens = layout.tokens.shape[1]
    given = kwargs.get("position_ids")
    given = torch.arange(tokens, device=mask.device)[None] if given is None else given
    first = given.expand(B, tokens).gather(1, layout.textual_at[:, None])
    slots = first + torch.arange(P, device=mask.device)
    kwargs["position_ids"] = layout.positions(given) + P

    embeds = kwargs.get("inputs_embeds")
    like = backbone.host.get_input_embeddings().weight if embeds is None else embeds
    # All positions, since some rotations depend on how far they reach.
    rotation = backbone.llm.rotary_emb(like, torch.cat([slots, kwargs["position_ids"]], 1))
    cos, sin = (part[:, None, :P] for part in rotation)

    seen = F.pad(torch.ones(T, T, dtype=torch.bool, device=mask.device).tril(), (P, 0), value=True)
    seen = seen & (mask != 0)[:, None, None]
    if backbone.llm.config._attn_implementation == "eager":
        seen = torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)
    return Folded(cos, sin, seen)
