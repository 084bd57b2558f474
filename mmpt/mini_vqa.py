"""The questions of mini-VQA: short open questions on scenes, each answered by ten simulated annotators.

The noise, all of it drawn from the picture's seed: each of the ten says what is true, but with a chance of `STRAYS`
one of the other things that people say, each as likely: of a thing its synonyms and its plural; of a colour those
that are near; of a number one more or one less; of yes and no the other. At most `MOST_STRAYS` of ten do so (else all
are asked anew), so that the truth earns full marks: the score is out of 100.

A kind of question is a function `(scene, rng)` that returns the question, its answer and what may be said instead, or
None where the scene does not settle it.
"""

import random
from collections import Counter

from mmpt.mini_gqa import NOUNS
from mmpt.scenes import BACKGROUNDS, Scene, at
from mmpt.settled import alone, clear_groups, close_colours, first, no_text, pick, single

STRAYS, MOST_STRAYS = 0.2, 4
EACH = 50
MOST = {"yes/no": 25, "number": 20, "other": 6}  # times that one kind of question may have the same answer
SYNONYMS = {
    "airplane": ("plane", "jet"), "bicycle": ("bike",), "motorcycle": ("motorbike",), "boat": ("sailboat",),
    "bus": ("school bus",), "truck": ("lorry",), "train": ("locomotive",), "helicopter": ("chopper",),
    "television": ("tv",), "phone": ("cell phone", "mobile"), "football": ("soccer ball",), "axe": ("hatchet",),
    "rabbit": ("bunny",), "pig": ("piglet",), "dog": ("puppy",), "cat": ("kitten",),
    "beetle": ("bug",), "worm": ("earthworm",), "hat": ("sun hat",),
    "cap": ("baseball cap",), "shoe": ("sneaker",), "backpack": ("rucksack", "bag"), "cup": ("drink",),
    "toilet": ("loo",), "envelope": ("letter",), "clover": ("shamrock",), "lightning": ("bolt",), "house": ("home",),
    "trophy": ("cup",), "sword": ("dagger",), "balloon": ("air balloon",), "eggplant": ("aubergine",),
}  # fmt: skip
_PLURALS = {"foot": "feet", "tooth": "teeth", "sheep": "sheep", "fish": "fish", "leaf": "leaves"}


def annotators(truth: str, others: list[str], rng: random.Random) -> tuple[str, ...]:
    """What ten people answer whose question has the answer `truth`; some of them may say one of `others`."""
    while True:
        said = tuple(rng.choice(others) if others and rng.random() < STRAYS else truth for _ in range(10))
        if said.count(truth) >= 10 - MOST_STRAYS:
            return said


def plural(name: str) -> str:
    """`plural("cherry")` → "cherries"."""
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name[-1] == "y" and name[-2] not in "aeiou" else f"{name}s"


def _yes_no(question, truth):
    return question, "yes" if truth else "no", ["no" if truth else "yes"]


def _number(question, n):
    return question, str(n), [str(i) for i in (n - 1, n + 1) if i >= 0]


def _name(question, name):
    return question, name, [*SYNONYMS.get(name, ()), *{plural(name)} - {name}]


def _colour(question, colour):
    return question, colour, [other for other in BACKGROUNDS if close_colours(colour, other)]


# --- the kinds of questions ---


def _bigger(scene, rng):
    sizes = {size: pick(rng, [t.name for t in single(scene) if t.size == size]) for size in ("small", "large")}
    names = rng.sample(list(sizes.values()), 2)
    return None not in names and _yes_no(f"Does the {names[0]} look bigger than the {names[1]}?",
                                         names[0] == sizes["large"])  # fmt: skip


def _twice(scene, rng):
    n = max(Counter(thing.name for thing in scene.objects).values())
    return len(scene.objects) > 1 and _yes_no("Is anything shown more than once?", n > 1)


def _several(scene, rng):
    groups = Counter(thing.group for thing in scene.objects)
    group = pick(rng, [group for group in clear_groups(scene) if group in groups and group in NOUNS])
    return group and _yes_no(f"Do you notice more than one {group} here?", groups[group] > 1)


def _large(scene, rng):
    sizes = [thing.size for thing in scene.objects]
    size = rng.choice(("large", "small"))
    return no_text(scene) and len({*sizes}) == 2 and _number(f"How many of the objects are {size}?", sizes.count(size))


def _side(scene, rng):
    sides = [thing.centre[0] / scene.size - 0.5 for thing in scene.objects]
    side = rng.choice(("left", "right"))
    n = sum((x < 0) == (side == "left") for x in sides)
    settled = no_text(scene) and min(map(abs, sides)) > 0.1
    return settled and _number(f"How many objects can be counted in the {side} half?", n)


def _coloured(scene, rng):
    colours = [thing.colour for thing in scene.objects]
    colour = rng.choice([*colours, *BACKGROUNDS])
    settled = colour and None not in colours and not any(close_colours(colour, other) for other in colours)
    return settled and no_text(scene) and _number(f"How many {colour} objects do you see?", colours.count(colour))


def _rightmost(scene, rng):
    thing = first(scene, 0, -1)
    return thing and _name("Furthest to the right, what is there?", thing.name)


def _colour_at(scene, rng):
    thing = pick(rng, [t for t in alone(scene) if t.colour])
    return thing and _colour(f"What's the colour of the object {at(thing.place)}?", thing.colour)


def _pair(scene, rng):
    twice = [name for name, n in Counter(thing.name for thing in scene.objects).items() if n > 1]
    return len(twice) == 1 and _name("Tell what is shown more than once.", twice[0])


KINDS = {
    "yes/no": (_bigger, _twice, _several),
    "number": (_large, _side, _coloured),
    "other": (_rightmost, _colour_at, _pair),
}


def find(scene: Scene, rng: random.Random, kind, given: Counter, most: int) -> tuple[str, tuple[str, ...]] | None:
    """(question, ten answers) of that kind, unless its answer was `given` `most` times already; counts it there."""
    found = kind(scene, rng)
    if not found or given[found[1]] == most:
        return None
    question, truth, others = found
    given[truth] += 1
    return question, annotators(truth, others, rng)
