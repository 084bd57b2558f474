"""Exercises of notebook 6: a difference on the same questions, and what two parts are worth together."""

from math import sqrt
from statistics import mean, stdev

from mmpt.exercises.check import exercise


def _losses(rng):
    easy = [rng.uniform(0, 3) for _ in range(rng.randint(8, 30))]
    return [e + rng.gauss(0, 0.2) for e in easy], [e + 0.1 + rng.gauss(0, 0.2) for e in easy]


def _turned(a, b):
    return paired(b, a)


def _unpaired(a, b):
    return mean(b) - mean(a), sqrt((stdev(a) ** 2 + stdev(b) ** 2) / len(a))


def _spread(a, b):
    return mean(b) - mean(a), stdev(y - x for x, y in zip(a, b))


@exercise(
    "paired",
    _losses,
    (_turned, "this is how much higher the first is; return how much higher the second is."),
    (_unpaired, "these are the same questions twice: take each question's difference first, then its spread."),
    (_spread, "this is the spread of single differences; that of their mean is smaller by √n."),
)
def paired(a: list[float], b: list[float]) -> tuple[float, float]:
    differences = [y - x for x, y in zip(a, b)]
    return mean(differences), stdev(differences) / sqrt(len(differences))


def _four(rng):
    return tuple(round(rng.uniform(0.5, 3), 2) for _ in range(4))


def _sum(neither, first, second, both):
    return (neither - first) + (neither - second)


def _loss_not_gain(neither, first, second, both):
    return -together(neither, first, second, both)


@exercise(
    "together",
    _four,
    (_sum, "this is what the two should be worth if they did not care for each other; compare both with it."),
    (_loss_not_gain, "the sign is turned: a gain is a loss that falls."),
)
def together(neither: float, first: float, second: float, both: float) -> float:
    return (neither - both) - ((neither - first) + (neither - second))
