"""How far a score could be off by the choice of questions: percentile intervals from samples with replacement."""

import random
from collections import defaultdict
from dataclasses import replace

import numpy as np


def bootstrap(figures, rows, draws: int, seed: int, mark=None) -> dict[str, list[float]]:
    """95 % percentile intervals of each figure, from `draws` samples of the questions with replacement.

    Questions on one picture of MME stay together; each group keeps its number of questions.

    Args:
        figures: rows of (Answered, parsed prediction) → name → per cent.
        mark: where the one figure is "accuracy", 100 times the mean of `mark(answered, parsed)`: that function. The
            intervals are the same, and each row is marked once, however often it is drawn.
    """
    units = defaultdict(lambda: defaultdict(list))
    for row in rows:
        units[row[0].group][row[0].picture or row[0].id].append(row)
    strata = [list(stratum.values()) for stratum in units.values()]
    rng, samples = random.Random(seed), defaultdict(list)
    sample = _means(mark, strata) if mark else _figures(figures, strata)
    for _ in range(draws):
        for name, value in sample(rng).items():
            samples[name].append(value)
    low, high = int(0.025 * draws), int(0.975 * draws)
    return {name: [sorted(values)[low], sorted(values)[high]] for name, values in samples.items()}


def _figures(figures, strata):
    def sample(rng):
        drawn = []
        for stratum in strata:
            for i, unit in enumerate(rng.choices(stratum, k=len(stratum))):
                drawn += [(replace(row, picture=str(i)), parsed) for row, parsed in unit] if len(unit) > 1 else unit
        return figures(drawn)

    return sample


def _means(mark, strata):
    tallies = [np.array([(sum(mark(*row) for row in unit), len(unit)) for unit in stratum]) for stratum in strata]

    def sample(rng):
        total, n = sum(tally[rng.choices(range(len(tally)), k=len(tally))].sum(0) for tally in tallies)
        return {"accuracy": float(100 * total / n)}

    return sample
