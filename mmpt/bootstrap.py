"""How far a score could be off by the choice of questions: percentile intervals from samples with replacement."""

from collections import defaultdict

import numpy as np

_AT_ONCE = 10**7  # draws times questions


def bootstrap(figures, rows, draws: int, seed: int) -> dict[str, list[float]]:
    """95 % percentile intervals of each figure, from `draws` samples of the pictures with replacement.

    Questions on one picture stay together: MME's pairs, POPE's three splits, whatever entails another. A question
    without one stands for itself. Each group keeps its number of pictures, unless some are asked about in several.

    Args:
        figures: N rows of (Answered, parsed prediction), and (D, N) how often each was drawn → name → (D,) per cent,
            NaN for a sample that says nothing of it.
    """
    pictures = {}
    of = np.array([pictures.setdefault(row.picture or row.id, len(pictures)) for row, _ in rows])  # row → picture
    asked = {(i, row.group) for i, (row, _) in zip(of, rows)}
    strata = defaultdict(list)
    for i, group in sorted(asked):
        strata[group].append(i)
    if len(asked) > len(pictures):
        strata = {"": range(len(pictures))}
    rng, values = np.random.default_rng(seed), defaultdict(list)
    for some in np.array_split(np.arange(draws), -(-draws * len(rows) // _AT_ONCE)):
        drawn = np.empty((len(some), len(pictures)))
        for at in strata.values():
            drawn[:, at] = rng.multinomial(len(at), [1 / len(at)] * len(at), size=len(some))
        for name, value in figures(rows, drawn[:, of]).items():
            values[name].append(value)
    return {name: np.nanquantile(np.concatenate(parts), (0.025, 0.975)).tolist() for name, parts in values.items()}
