"""Exercises of notebook 10: what fits on a GPU, and pictures held out."""

import math

from mmpt.exercises.check import exercise


def _sizes(rng):
    return rng.randint(1, 14) * 10**9, rng.choice((4, 8, 16, 32)), rng.randint(1, 60) * 10**6


def _bits_as_bytes(frozen, bits, tuned):
    return (frozen * bits + 16 * tuned) / 2**30


def _weights_only(frozen, bits, tuned):
    return (frozen * bits / 8 + 4 * tuned) / 2**30


def _decimal(frozen, bits, tuned):
    return (frozen * bits / 8 + 16 * tuned) / 1e9


@exercise(
    "memory",
    _sizes,
    (_bits_as_bytes, "a byte has eight bits."),
    (_weights_only, "each tuned number needs its weight, its gradient and AdamW's two averages: four times 4 bytes."),
    (_decimal, "one GiB is 2³⁰ bytes, not 10⁹."),
)
def memory(frozen: int, bits: int, tuned: int) -> float:
    return (frozen * bits / 8 + 16 * tuned) / 2**30


def _rows(rng):
    names = [f"{c}.png" for c in rng.sample("abcdefgh", rng.randint(3, 8))]
    return [(rng.choice(names), f"question {i}", "answer") for i in range(rng.randint(6, 14))], rng.choice((0.2, 0.5))


def _by_row(rows, share):
    n = math.ceil(share * len(rows))
    return rows[:-n], rows[-n:]


def _turned(rows, share):
    tuning, held = held_out(rows, share)
    return held, tuning


@exercise(
    "held_out",
    _rows,
    (_turned, "the other way round: what is tuned on first, what is held out second."),
    (_by_row, "this holds out rows; a picture can then be on both sides."),
)
def held_out(rows: list[tuple[str, str, str]], share: float) -> tuple[list, list]:
    pictures = sorted({picture for picture, _, _ in rows})
    held = pictures[len(pictures) - math.ceil(share * len(pictures)) :]
    return [row for row in rows if row[0] not in held], [row for row in rows if row[0] in held]
