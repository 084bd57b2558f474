"""Exercises of notebook 7: attention from queries to a source, and a bottleneck adapter."""

import torch
from torch import Tensor
from torch.nn.functional import gelu

from mmpt.exercises.check import exercise, tensor


def _queries(rng):
    m, n, w = rng.randint(2, 5), rng.randint(6, 9), rng.choice((4, 8))
    return tensor(rng, m, w), tensor(rng, n, w), tensor(rng, n, w)


def _over_queries(q, k, v):
    return (q @ k.T / q.shape[-1] ** 0.5).softmax(0) @ v


def _unscaled(q, k, v):
    return (q @ k.T).softmax(-1) @ v


@exercise(
    "read",
    _queries,
    (_over_queries, "each query shares itself out among the source's positions, so the softmax runs over these."),
    (_unscaled, "divide the products by the square root of the width before the softmax."),
)
def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5, -1) @ v


def _hidden(rng):
    D, r = rng.randint(4, 8), rng.randint(1, 3)
    return tensor(rng, rng.randint(2, 4), D), tensor(rng, r, D), tensor(rng, r), tensor(rng, D, r), tensor(rng, D)


def _replaced(h, down, down_bias, up, up_bias):
    return gelu(h @ down.T + down_bias) @ up.T + up_bias


def _linear(h, down, down_bias, up, up_bias):
    return h + (h @ down.T + down_bias) @ up.T + up_bias


@exercise(
    "bottleneck",
    _hidden,
    (_replaced, "an adapter adds to what passes through; this replaces it."),
    (_linear, "there is a GELU between down and up."),
)
def bottleneck(h: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    return h + gelu(h @ down.T + down_bias) @ up.T + up_bias
