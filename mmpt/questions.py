"""What a question is, how a task that asks it is registered, and when an answer is right."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from mmpt.scenes import BACKGROUNDS, GROUPS, PLACES, Scene, article


@dataclass(frozen=True)
class Question:
    """One question on one picture. `options` is the closed set that the answer comes from, () if it is open."""

    task: str
    question: str
    answer: str
    kind: str  # yes/no, choice, number, letter, place, colour, group, name, names or caption
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One kind of question.

    `chance` is the accuracy of the best guess without the picture: uniform over the options that the question itself
    offers, else the share of the most frequent answer, measured over 20,000 scenes. Who knows what the named things
    are needs no picture at all in `group`, `colour` and `same_group`: the mean over all tasks is then 33 %, not 27 %.
    `fits` is the share of scenes that the task can be asked about, measured likewise.
    """

    name: str
    description: str
    make: Callable[[Scene, random.Random], Question | None]
    chance: float
    fits: float
    kind: str
    phrasings: tuple[str, ...]


TASKS: dict[str, Task] = {}
_OPTIONS = {
    "yes/no": ("Yes", "No"),
    "number": tuple("012345"),
    "place": tuple(place for row in PLACES for place in row),
    "colour": tuple(BACKGROUNDS),
    "group": tuple(GROUPS),
}


def task(kind: str, chance: float, fits: float, description: str, *phrasings: str):
    """Register a generator `(scene, rng)` as the task of its own name.

    The generator returns `ask(answer, …)`, or something false where it does not fit the scene. One of the `phrasings`
    is drawn and its fields filled; the field `choices` lists the options.
    """

    def register(generate):
        def make(scene, rng):
            found = generate(scene, rng)
            if not found:
                return None
            answer, options, fields = found
            options = tuple(options or _OPTIONS.get(kind, ()))
            question = rng.choice(phrasings).format(**fields, choices=listed(options, "or"))
            if kind == "name" and "one word" not in question:
                answer = article(answer)
            return Question(name, question, answer, kind, options)

        name = generate.__name__
        TASKS[name] = Task(name, description, make, chance, fits, kind, phrasings)
        return generate

    return register


def ask(answer: str, options=(), **fields: str) -> tuple:
    """What a generator returns: the answer, the options where they are not the kind's own, the phrasings' fields."""
    return answer, options, fields


def ask_letter(rng: random.Random, right: str, wrong: list[str]) -> tuple:
    """A multiple choice: the answer is a letter, the field `letters` reads "A. dog B. cat …"."""
    texts = rng.sample([right, *wrong], 1 + len(wrong))
    letters = "ABCD"[: len(texts)]
    shown = " ".join(f"{letter}. {text}" for letter, text in zip(letters, texts))
    return ask(letters[texts.index(right)], letters, letters=shown)


def listed(words, last: str) -> str:
    """(("a", "b", "c"), "or") → "a, b or c"."""
    return f" {last} ".join(", ".join(words).rsplit(", ", 1))


def correct(question: Question, prediction: str) -> bool:
    """Whether `prediction` is the answer, but for case, spaces, a final dot and an article before a name.

    The order of the parts of a list or caption is free: "a cat and a dog" is right for "a dog, a cat".
    """
    return _normal(question.answer, question.kind) == _normal(prediction, question.kind)


def _normal(text, kind):
    text = " ".join(text.lower().split()).removesuffix(".").rstrip()
    if kind in ("names", "caption"):
        parts = (part.strip() for part in re.split(r",|\band\b|\bon\b", text))
        return sorted(re.sub(r"^(an?|the) ", "", part) for part in parts if part)
    return re.sub(r"^(an?|the) ", "", text) if kind in ("name", "choice") else text
