"""The questions of mini-GQA: programs drawn for a scene, worded, with some of the questions that they entail.

Six types, each with `EACH` questions, and within a type no answer more often than `MOST` says, so that knowing the
type helps little. An entailed question is asked about the same picture, for GQA's consistency.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mmpt.programs import LARGER, RELATIONS, THING, Program, Unsettled, entailed, execute, kind_of
from mmpt.scenes import BACKGROUNDS, GROUPS, PLACES, Scene, article, at, make_scene
from mmpt.settled import absent

EACH = 80
MOST = {"exist": 40, "query": 5, "verify": 40, "choose": 40, "compare": 20, "logical": 40}
TRIES = 12  # programs drawn for one picture before the next is taken
NOUNS = ("animal", "bird", "bug", "fruit", "vegetable", "vehicle", "building", "tool", "instrument", "plant", "toy")
_WHERE = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Asked:
    """A program put to a scene; `entailed` are numbers of others, whose answers follow from this one's."""

    number: int
    seed: int
    kind: str
    program: Program
    answer: str
    entailed: tuple[int, ...]


def scene_of(seed: int) -> Scene:
    """Without digit and sign, of which one may doubt whether they are things."""
    return make_scene(seed, text=0)


def questions(first: int) -> Iterator[Asked]:
    """All questions, from consecutive seeds: on a picture one of the rarest type, and up to two that it entails."""
    kinds, answers, seed, number = Counter(dict.fromkeys(MOST, 0)), Counter(), first, 0
    while min(kinds.values()) < EACH:
        scene, rng, family = scene_of(seed), random.Random(seed), {}
        for program in _family(scene, rng, min(kinds, key=kinds.get)):
            kind, key = kind_of(program), _key(program, execute(program, scene))
            if kinds[kind] < EACH and answers[kind, key] < MOST[kind]:
                kinds[kind] += 1
                answers[kind, key] += 1
                family[program] = number + len(family)
        for program, place in family.items():
            answer = execute(program, scene)
            follows = (family[other] for other in entailed(program, answer) if other in family)
            yield Asked(place, seed, kind_of(program), program, answer, tuple(sorted(follows)))
        number, seed = number + len(family), seed + 1


def _family(scene, rng, kind):
    """A program of that kind which the scene settles, and two that it entails; nothing where none was found."""
    for _ in range(TRIES):
        program = _DRAWS[kind](scene, rng)
        try:
            answer = execute(program, scene)
        except Unsettled:
            continue
        others = list(entailed(program, answer))
        return [program, *rng.sample(others, min(2, len(others)))]
    return []


def _key(program, answer):
    """By what answers are balanced: where the right one stands, or where there is no such place, what it is."""
    if program[0] == "choose":
        return program[2:4].index(answer)
    if program[0] == "which":
        return [things[1] for things in program[2:]].index(answer)
    return answer


# --- drawing programs ---


def _one(scene, rng):
    """What may be one object of the scene, without its name."""
    thing, other = rng.choice(scene.objects), rng.choice(scene.objects)
    what = rng.choice([THING, *{thing.group} & {*NOUNS}])
    return rng.choice(
        [
            ("relate", what, rng.choice(list(RELATIONS)), ("select", other.name)),
            ("filter", "colour", thing.colour or "red", ("select", what)),
            ("filter", "size", thing.size, ("select", what)),
        ]
    )


def _value(scene, rng, attribute):
    """A value that some object has, or by even chance any."""
    if rng.random() < 0.5 and (value := getattr(rng.choice(scene.objects), attribute)) is not None:
        return value
    every = {"colour": BACKGROUNDS, "size": ("small", "large"), "group": GROUPS, "place": sum(PLACES, ())}
    return rng.choice(list(every[attribute]))


def _said(things, attribute):
    """Whether the words for the object tell this of it."""
    return attribute in things or (attribute == "group" and THING not in (things[1], things[-1][1]))


def _about(rng, things, attributes):
    return rng.choice([a for a in attributes if not _said(things, a)])


def _exist(scene, rng):
    name = rng.choice([rng.choice(scene.objects).name, *absent(scene, rng, 1)])
    what = rng.choice([name, THING, rng.choice(NOUNS)])
    if rng.random() < 0.5:
        other = rng.choice(scene.objects).name
        return "exist", ("relate", what, rng.choice(list(RELATIONS)), ("select", other))
    attribute = rng.choice(("colour", "size"))
    what = rng.choice(NOUNS) if what == name or attribute == "size" else what
    return "exist", ("filter", attribute, _value(scene, rng, attribute), ("select", what))


def _query(scene, rng):
    things = _one(scene, rng)
    return "query", _about(rng, things, ("name", "name", "colour", "group", "place")), things


def _verify(scene, rng):
    things = _one(scene, rng)
    attribute = _about(rng, things, ("colour", "size", "group", "place"))
    return "verify", attribute, _value(scene, rng, attribute), things


def _choose(scene, rng):
    things = _one(scene, rng)
    attribute = _about(rng, things, ("colour", "size", "group", "place"))
    pair = [_value(scene, rng, attribute) for _ in range(2)]
    return "choose", attribute, *pair, things


def _compare(scene, rng):
    a, b = (("select", rng.choice(scene.objects).name) for _ in range(2))
    if rng.random() < 0.5:
        return "which", rng.choice([LARGER, *RELATIONS]), a, b
    attribute = rng.choice(("colour", "size"))
    return "same", attribute, a, ("background",) if attribute == "colour" and rng.random() < 0.5 else b


def _logical(scene, rng):
    there = sorted({thing.name for thing in scene.objects})
    names = rng.sample([*rng.sample(there, min(2, len(there))), *absent(scene, rng, 2)], 2)
    one, other = (("exist", ("select", name)) for name in names)
    return rng.choice((("and", one, other), ("or", one, other), ("and", one, ("not", other))))


_DRAWS = {"exist": _exist, "query": _query, "verify": _verify, "choose": _choose, "compare": _compare,
          "logical": _logical}  # fmt: skip


# --- words ---


def worded(program: Program) -> str:
    """The question that a program answers."""
    return _WORDED[program[0]](*program[1:])


def _phrase(things):
    operation, *given = things
    if operation == "filter":
        return f"{given[1]} {_phrase(given[2])}"
    if operation == "relate":
        return f"{given[0]} {_WHERE[given[1]]} the {_phrase(given[2])}"
    return "background" if operation == "background" else given[0]


def _an(things):
    return article(_phrase(things))


def _value_worded(attribute, value):
    if attribute == "place":
        return at(value)
    if attribute == "group" and value not in NOUNS:
        return f"something of the kind {value}"
    return article(value) if attribute in ("group", "name") else value


def _verify_worded(attribute, value, things):
    verb = ("Does", "stand ") if attribute == "place" else ("Is", "")
    return f"{verb[0]} the {_phrase(things)} {verb[1]}{_value_worded(attribute, value)}?"


def _choose_worded(attribute, a, b, things):
    a, b = (_value_worded(attribute, value) for value in (a, b))
    verb = "where does the {} stand" if attribute == "place" else "which of these is the {}"
    return f"{a[0].upper()}{a[1:]} or {b}: {verb.format(_phrase(things))}?"


def _and_worded(one, other):
    if other[0] == "not":
        return f"Is there {_an(one[1])} but no {_phrase(other[1][1])}?"
    return f"Are there both {_an(one[1])} and {_an(other[1])}?"


_QUERIES = {"name": "what is it called", "colour": "which colour does it have", "group": "of what kind is it",
            "place": "whereabouts does it stand"}  # fmt: skip
_SAME = {"colour": "of one colour", "size": "equally large"}
_FURTHER = {"left of": "further to the left", "right of": "further to the right", "above": "higher up",
            "below": "lower down", LARGER: "larger"}  # fmt: skip
_WORDED = {
    "exist": lambda things: f"Is there {_an(things)}{' in the scene' * (things[0] != 'relate')}?",
    "query": lambda attribute, things: f"The {_phrase(things)}: {_QUERIES[attribute]}?",
    "verify": _verify_worded,
    "choose": _choose_worded,
    "same": lambda attribute, a, b: f"Are the {_phrase(a)} and the {_phrase(b)} {_SAME[attribute]}?",
    "which": lambda how, a, b: f"Which one is {_FURTHER[how]}, the {_phrase(a)} or the {_phrase(b)}?",
    "and": _and_worded,
    "or": lambda one, other: f"Is there {_an(one[1])} or {_an(other[1])}?",
}
