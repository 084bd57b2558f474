"""Exercises of notebook 8: what LoRA leaves behind, and two models on the same questions."""

import math

from torch import Tensor

from mmpt.exercises.check import exercise, tensor


def _update(rng):
    out, into, r = rng.randint(3, 6), rng.randint(3, 6), rng.choice((2, 4))
    return tensor(rng, out, into), tensor(rng, r, into), tensor(rng, out, r), rng.choice((8.0, 32.0))


def _unscaled(W, A, B, alpha):
    return W + B @ A


def _without_rank(W, A, B, alpha):
    return W + alpha * B @ A


@exercise(
    "merged",
    _update,
    (_unscaled, "the update is scaled by alpha / r; this adds it as it is."),
    (_without_rank, "this scales by alpha; it is alpha / r, with r the number of rows of A."),
)
def merged(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return W + alpha / len(A) * B @ A


def _marks(rng):
    pairs = [(rng.random() < 0.7, rng.random() < 0.5) for _ in range(rng.randint(10, 60))]
    a, b = zip(*pairs, (True, False), (False, True))
    return list(a), list(b)


def _one_sided(a, b):
    return luck(a, b) / 2


def _over_all_questions(a, b):
    wins = min(sum(x > y for x, y in zip(a, b)), sum(x < y for x, y in zip(a, b)))
    return min(1.0, 2 * sum(math.comb(len(a), i) for i in range(wins + 1)) / 2 ** len(a))


@exercise(
    "luck",
    _marks,
    (_over_all_questions, "n is the number of questions on which the two differ, not of all questions."),
    (_one_sided, "this is one tail; either model could have been ahead by luck, so double it (and stop at 1)."),
)
def luck(a: list[bool], b: list[bool]) -> float:
    only_a, only_b = sum(x > y for x, y in zip(a, b)), sum(x < y for x, y in zip(a, b))
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n)
