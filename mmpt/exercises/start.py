"""Exercises of notebook 0: when an answer is right, and how sure a score is."""

import math

from mmpt.exercises.check import exercise
from mmpt.questions import Question, correct

_ANSWERS = (("a cow", "A cow."), ("a cow", "the cow"), ("2", "2"), ("2", "12"), ("no", "I do not know"),
            ("a cat", "a cat and a dog"), ("an apple", " An  apple"), ("No", "no."), ("a moon", "a bell"),
            ("top left", "Top left."), ("a fox", "fox"), ("yes", "Yes, there is"), ("top left", "left top"),
            ("3.5", "35"), ("a cow", "a cow.."), ("red", "re d"),
            ("a cat and dog", "a cat and a dog"), ("a horse", "orse"))  # fmt: skip


def _contains(truth, given):
    return truth.lower() in given.lower()


def _exactly(truth, given):
    return truth == given


@exercise(
    "same_answer",
    lambda rng: rng.choice(_ANSWERS),
    (_contains, 'that the truth occurs in the answer does not make it right: "no" occurs in "I do not know".'),
    (_exactly, 'letter for letter is too strict: "A cow." says the same as "a cow".'),
    always=_ANSWERS,
)
def same_answer(truth: str, given: str) -> bool:
    return correct(Question("", "", truth, "name"), given)


def _without_196(right):
    share, half = interval(right)
    return share, half / 1.96


def _variance(right):
    share = sum(right) / len(right)
    return share, 1.96 * share * (1 - share) / len(right)


@exercise(
    "interval",
    lambda rng: ([rng.random() < 0.6 for _ in range(rng.randint(8, 60))] + [True, False],),
    (_without_196, "this is one standard error; a 95 % interval reaches 1.96 of them to either side."),
    (_variance, "the root is missing: the standard error is the square root of p (1 − p) / n."),
)
def interval(right: list[bool]) -> tuple[float, float]:
    share = sum(right) / len(right)
    return share, 1.96 * math.sqrt(share * (1 - share) / len(right))
