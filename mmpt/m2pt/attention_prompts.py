"""Prompts inside the LLM's attention, as APrompt has them (Wang et al., EMNLP 2023): keys and values of their own in
front of the sequence's, and features appended to queries and keys.

Our reading of the features: they are learned for each head and the same for all tokens, and prompt keys have zeros in
their place. So they weigh tokens against prompts; had prompt keys the same features, softmax would cancel them. The
scale of the scores stays that of the head's own width.

Shapes: B rows, H query heads on G key/value heads, P prompts, F features, T queries, S keys, D width of a head.
"""

import torch
from torch import Tensor, nn
from transformers import Cache


class AttentionPrompts(nn.Module):
    """One layer's: keys, values (G, P, D); query_features, key_features (H, F)."""

    def __init__(self, attention: nn.Module, num_prompts: int, num_features: int):
        """`attention`: the layer's own, whose shape they take."""
        super().__init__()
        config, weight = attention.config, attention.k_proj.weight
        kind = {"device": weight.device, "dtype": weight.dtype if weight.is_floating_point() else None}
        shape = config.num_key_value_heads, num_prompts, attention.head_dim
        features = config.num_attention_heads, num_features
        self.keys, self.values = (nn.Parameter(torch.empty(shape, **kind)) for _ in range(2))
        self.query_features, self.key_features = (nn.Parameter(torch.empty(features, **kind)) for _ in range(2))

    def enter(self, attention: nn.Module, kwargs: dict) -> dict:
        """The keyword arguments of a call of `attention`, with the prompts in them.

        Raises:
            ValueError: an attention implementation without a mask that can be added to the scores.
        """
        mask, cache, hidden = (kwargs.get(name) for name in ("attention_mask", "past_key_values", "hidden_states"))
        if attention.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError('Prompts inside attention need attn_implementation "sdpa" or "eager".')
        T = hidden.shape[1]
        S = T + (0 if cache is None else cache.get_seq_length(attention.layer_idx))
        if mask is None:  # nothing is hidden but what is to come
            mask = torch.ones(1, 1, T, S, dtype=torch.bool, device=hidden.device).tril(S - T)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        H, P = len(self.query_features), self.keys.shape[1]
        tokens = (self.query_features * self.key_features).sum(1) * attention.scaling  # (H,) what their scores gain
        prompts = -tokens.to(mask)[:, None, None].expand(len(mask), H, T, P)  # the same to softmax
        mask = torch.cat([prompts, mask.expand(-1, H, -1, -1)], -1)  # (B, H, T, P + S)
        before = (p.to(hidden).expand(len(hidden), -1, -1, -1) for p in (self.keys, self.values))
        return kwargs | {"attention_mask": mask, "past_key_values": PromptedCache(cache, *before)}


class PromptedCache:
    """What attention takes for its cache: what comes back has prompts (B, G, P, D) in front, what is kept has not."""

    def __init__(self, cache: Cache | None, keys: Tensor, values: Tensor):
        self.cache, self.keys, self.values = cache, keys, values

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
