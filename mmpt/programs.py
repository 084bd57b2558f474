"""Functional programs over the graph of a scene, as GQA asks by (Hudson and Manning, 2019, arXiv 1902.09506).

A program is a tuple, an operation and what it is given, programs among it:
`("query", "colour", ("relate", "thing", "left of", ("select", "dog")))`. A *what* is a name, a group or "thing", which
is any object. Operations give objects or an answer; where a scene does not settle it, they raise `Unsettled`.
"""

from collections import namedtuple
from collections.abc import Callable

from mmpt.scenes import GROUPS, Scene, Thing
from mmpt.settled import alike, clear_groups, close_colours, in_place, placed

THING = "thing"
RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}  # axis, its direction
LARGER = "larger"  # as a relation: of two objects
CLEAR = 0.15  # of the side, by which centres are apart where one is left of the other or above it
Program = tuple
Background = namedtuple("Background", "name colour")


class Unsettled(Exception):
    """The scene does not say: a tie, several objects where one is meant, a thing near a line, a colour near one."""


def execute(program: Program, scene: Scene):
    """What the program gives on the scene: a tuple of objects, or an answer.

    Raises:
        Unsettled: the scene does not settle it.
    """
    operation, *given = program
    return OPERATIONS[operation](scene, *(execute(a, scene) if isinstance(a, tuple) else a for a in given))


def kind_of(program: Program) -> str:
    """GQA's structural type: exist, query, verify, choose, compare or logical."""
    return {"same": "compare", "which": "compare", "and": "logical", "or": "logical"}.get(program[0], program[0])


def entailed(program: Program, answer: str) -> dict[Program, str]:
    """All questions that whoever knows this one's answer can answer too, with their answers."""
    found = {}
    for implied, value in _implied(program, answer):
        found |= {implied: value} | entailed(implied, value)
    return found


def _implied(program, answer):
    operation, *given = program
    things, yes = given[-1], answer == "Yes"
    if operation == "query":
        yield ("verify", given[0], answer, things), "Yes"
    elif operation == "verify":
        yield from _present(("filter", *given) if yes and given[0] in ("colour", "size") else things)
    elif operation == "choose":
        yield from ((("verify", given[0], value, things), _yes(value == answer)) for value in given[1:3])
    elif operation == "which":
        a, b = given[1:] if answer == given[1][1] else given[:0:-1]
        if given[0] != LARGER:
            yield ("exist", ("relate", a[1], given[0], b)), "Yes"
            yield ("exist", ("relate", b[1], given[0], a)), "No"
    elif operation == "exist" and yes and things[0] in ("filter", "relate"):
        yield from _present(things[-1])
        if things[0] == "relate":
            yield from _present(("select", things[1]))
    elif (operation, answer) in (("and", "Yes"), ("or", "No")):
        yield from ((part, answer) for part in given if part[0] != "not")
        yield from ((part[1], "No") for part in given if part[0] == "not" and yes)


def _present(things):
    of_any_size = things[:2] == ("filter", "size") and things[-1] == ("select", THING)
    if not of_any_size and things != ("select", THING):  # true of every scene that settles it: sizes if there are both
        yield ("exist", things), "Yes"


# --- operations ---


def _select(scene, what):
    if what in GROUPS and what not in clear_groups(scene):
        raise Unsettled
    return tuple(t for t in scene.objects if what in (THING, t.name, t.group))


def _filter(scene, attribute, value, things):
    return tuple(thing for thing in things if _holds(scene, thing, attribute, value))


def _relate(scene, what, relation, things):
    other = _the(things)
    return tuple(t for t in _select(scene, what) if t is not other and _before(scene, relation, t, other))


def _query(scene, attribute, things):
    thing = _the(things)
    value = getattr(thing, attribute)
    if value is None or not _holds(scene, thing, attribute, value):
        raise Unsettled
    return value


def _choose(scene, attribute, one, other, things):
    held = [value for value in (one, other) if _holds(scene, _the(things), attribute, value)]
    if len(held) != 1:
        raise Unsettled
    return held[0]


def _same(scene, attribute, things, others):
    a, b = _the(things), _the(others)
    if a is b or None in (getattr(a, attribute), getattr(b, attribute)):
        raise Unsettled
    return _yes(_holds(scene, a, attribute, getattr(b, attribute)))


def _which(scene, relation, things, others):
    a, b = _the(things), _the(others)
    if a is b or (relation == LARGER and a.size == b.size):
        raise Unsettled
    first = a.size == "large" if relation == LARGER else _before(scene, relation, a, b)
    return a.name if first else b.name


OPERATIONS: dict[str, Callable] = {
    "select": _select,
    "background": lambda scene: (Background("background", scene.background),),
    "filter": _filter,
    "relate": _relate,
    "exist": lambda scene, things: _yes(things),
    "query": _query,
    "verify": lambda scene, attribute, value, things: _yes(_holds(scene, _the(things), attribute, value)),
    "choose": _choose,
    "same": _same,
    "which": _which,
    "and": lambda scene, *answers: _yes(set(answers) == {"Yes"}),
    "or": lambda scene, *answers: _yes("Yes" in answers),
    "not": lambda scene, answer: _yes(answer == "No"),
}


def _yes(truth):
    return "Yes" if truth else "No"


def _the(things):
    if len(things) != 1:
        raise Unsettled
    return things[0]


def _before(scene: Scene, relation: str, thing: Thing, other: Thing) -> bool:
    axis, direction = RELATIONS[relation]
    distance = direction * (other.centre[axis] - thing.centre[axis]) / scene.size
    if abs(distance) <= CLEAR:
        raise Unsettled
    return distance > 0


def _holds(scene: Scene, thing: Thing | Background, attribute: str, value: str) -> bool:
    if _DOUBTFUL[attribute](scene, thing, value):
        raise Unsettled
    return getattr(thing, attribute) == value


_DOUBTFUL = {
    "name": lambda scene, thing, value: False,
    "group": lambda scene, thing, value: thing.group != value and alike(thing.group, value),
    "colour": lambda scene, thing, value: thing.colour is None or close_colours(thing.colour, value),
    "size": lambda scene, thing, value: len({t.size for t in scene.objects}) == 1,
    "place": lambda scene, thing, value: _near_another(thing, value),
}


def _near_another(thing, place):
    if place == thing.place:
        return not placed([thing])
    return in_place(thing, place, 0.03) or place in thing.place or thing.place in place
