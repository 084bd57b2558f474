"""Exercises of notebook 5: the loss at the answer, and the learning rate's course."""

import torch
from torch import Tensor
from torch.nn import functional

from mmpt.exercises.check import exercise, tensor
from mmpt.train import TrainConfig, schedule


def _labelled(rng):
    B, T, V = rng.randint(1, 3), rng.randint(5, 8), rng.randint(4, 7)
    labels = torch.tensor([[rng.randrange(V) for _ in range(T)] for _ in range(B)])
    for row in labels:
        row[: rng.randint(1, T - 1)] = -100
    return 2 * tensor(rng, B, T, V), labels


def _unshifted(logits, labels):
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _summed(logits, labels):
    return answer_loss(logits, labels) * (labels[:, 1:] != -100).sum()


def _row_by_row(logits, labels):
    return torch.stack([answer_loss(*row) for row in zip(logits.split(1), labels.split(1))]).mean()


def _over_all(logits, labels):
    return _summed(logits, labels) / labels[:, 1:].numel()


@exercise(
    "answer_loss",
    _labelled,
    (_unshifted, "the logits at position t are about the token at t + 1; this compares them with the token at t."),
    (_summed, "this is the sum; divide it by the number of labels that count."),
    (_row_by_row, "this is a mean of the rows' means; a row with more labels counts for more."),
    (_over_all, "the mean is over the labels that count; this divides by all positions."),
)
def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def _moment(rng):
    steps = rng.randint(20, 200)
    return rng.randrange(steps), steps, rng.choice((0.03, 0.1, 0.2))


def _linear(step, steps, warmup):
    up = -int(-warmup * steps // 1)
    return (step + 1) / up if step < up else 1 - (step - up) / max(1, steps - up)


def _without_warmup(step, steps, warmup):
    return rate(step, steps, 0)


@exercise(
    "rate",
    _moment,
    (_linear, "after the warm-up this falls along a line; a cosine is asked."),
    (_without_warmup, "there is no warm-up in this: the first ceil(warmup · steps) steps rise to 1."),
)
def rate(step: int, steps: int, warmup: float) -> float:
    return float(schedule(step, TrainConfig(out="", steps=steps, warmup=warmup)))
