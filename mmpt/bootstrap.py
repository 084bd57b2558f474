"""How far a score could be off by the choice of questions: percentile intervals from samples with replacement."""

import random
from collections import defaultdict
from dataclasses import replace

import numpy as np


def bootstrap(figures, rows, draws: int, seed: int, mark=None) -> dict[str, list[float]]:
    """95 % percentile intervals of each figure, from `draws` samples of the questions with replacement.

    Questions on one picture stay together: MME's pairs, and whatever entails another. Otherwise each group keeps its
    number of questions.

    Args:
        figures: rows of (Answered, parsed prediction) → name → per cent.
        mark: where the figures are "accuracy", 100 times the mean of `mark(answered, parsed)`, and that of each of
            several groups: that function. The intervals are the same, and each row is marked once, however often it is
            drawn.
    """
    units, across = defaultdict(lambda: defaultdict(list)), any(row.entailed for row, _ in rows)
    for row in rows:
        units["" if across else row[0].group][row[0].picture or row[0].id].append(row)
    strata = {group: list(stratum.values()) for group, stratum in units.items()}
    rng, samples = random.Random(seed), defaultdict(list)
    sample = _means(mark, strata) if mark else _figures(figures, strata)
    for _ in range(draws):
        for name, value in sample(rng).items():
            samples[name].append(value)
    ends = (0.025, 0.975)  # of as many samples as have the figure
    return {name: [sorted(values)[int(end * len(values))] for end in ends] for name, values in samples.items()}


def _figures(figures, strata):
    def sample(rng):
        drawn = []
        for stratum in strata.values():
            for i, unit in enumerate(rng.choices(stratum, k=len(stratum))):
                drawn += [(replace(row, picture=str(i)), parsed) for row, parsed in unit] if len(unit) > 1 else unit
        return figures(drawn)

    return sample


def _means(mark, strata):
    tallies = {
        group: np.array([(sum(mark(*row) for row in unit), len(unit)) for unit in units])
        for group, units in strata.items()
    }

    def sample(rng):
        drawn = {group: t[rng.choices(range(len(t)), k=len(t))].sum(0) for group, t in tallies.items()}
        marks, n = sum(drawn.values())
        parts = {f"{group} accuracy": float(100 * m / k) for group, (m, k) in drawn.items()} if len(drawn) > 1 else {}
        return {"accuracy": float(100 * marks / n)} | parts

    return sample
