"""Exercises of notebook 3: the values that a prompt turns into, and how large a random start is."""

import math

from torch import Tensor

from mmpt.exercises.check import exercise, tensor


def _layer(rng):
    heads, size, D = rng.randint(2, 3), 4, 6
    return 0.01 * (3 * tensor(rng, rng.randint(2, 5), D) + 1), tensor(rng, D), tensor(rng, heads * size, D), heads


def _without_norm(prompts, weight, w_v, heads):
    return (prompts @ w_v.T).view(len(prompts), heads, -1).transpose(0, 1)


def _without_weight(prompts, weight, w_v, heads):
    return prefix_values(prompts, weight.new_ones(len(weight)), w_v, heads)


def _layer_norm(prompts, weight, w_v, heads):
    return prefix_values(prompts - prompts.mean(-1, keepdim=True), weight, w_v, heads)


def _mixed_heads(prompts, weight, w_v, heads):
    return prefix_values(prompts, weight, w_v, heads).transpose(0, 1).reshape(heads, len(prompts), -1)


@exercise(
    "prefix_values",
    _layer,
    (_without_norm, "the layer normalises its input first; W_v sees norm(p), not p."),
    (_without_weight, "RMSNorm ends with a product by its learned weight; that is missing."),
    (_layer_norm, "RMSNorm does not take the mean away; that would be LayerNorm."),
    (_mixed_heads, "a view as (heads, P, size) mixes prompts and heads; cut the width first, then swap the two axes."),
)
def prefix_values(prompts: Tensor, weight: Tensor, w_v: Tensor, heads: int) -> Tensor:
    size = prompts.square().mean(-1, keepdim=True).add(1e-5).sqrt()
    values = (prompts / size * weight) @ w_v.T
    return values.view(len(prompts), heads, -1).transpose(0, 1)


@exercise(
    "typical_size",
    lambda rng: (rng.randint(1, 40), rng.choice((192, 576, 1024, 4096))),
    (lambda P, D: math.sqrt(6 / ((P + 1) * D)), "this is the bound b; the typical size is b / √3, smaller than it."),
    (lambda P, D: math.sqrt(2 / (P + D)), "this takes the fans of a (P, D) matrix; of a (1, P, D) tensor they are P D "
                                          "and D."),
)  # fmt: skip
def typical_size(P: int, D: int) -> float:
    bound = math.sqrt(6 / (P * D + D))
    return bound / math.sqrt(3)
