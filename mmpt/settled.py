"""What a scene settles beyond doubt: the objects, places and groups that a question with one answer can be about."""

import random
from collections import Counter

from mmpt.scenes import GROUP_OF, GROUPS, NAMES, PLACES, Scene, Thing

# Groups whose members may be taken for each other's: a duck is an animal too. Never set against each other.
_ALIKE = (
    {"animal", "bird", "sea animal", "bug"},
    {"fruit", "vegetable", "food", "plant"},
    {"tool", "household", "sport", "toy", "instrument"},
)
# What a name may also be called, so that "Is there a bear?" has no clear answer where there is a panda.
_ALSO_CALLED = {"panda": "bear", "palm": "tree", "boot": "shoe", "cap": "hat", "canoe": "boat", "shark": "fish",
                "sun": "star", "trophy": "cup"}  # fmt: skip
_CLOSE_COLOURS = {
    "red": "orange pink brown", "orange": "red yellow brown", "yellow": "orange brown", "brown": "red orange yellow",
    "pink": "red purple", "purple": "pink blue", "blue": "purple", "white": "gray", "gray": "white", "green": "",
}  # fmt: skip
_MEMBERS = {group: [name for name in NAMES if GROUP_OF[name] == group] for group in GROUPS}


def pick(rng: random.Random, options):
    """A random one of `options`, None if there is none."""
    options = list(options)
    return rng.choice(options) if options else None


def single(scene: Scene) -> list[Thing]:
    """Objects whose name no other object has, so that "the dog" is one."""
    count = Counter(thing.name for thing in scene.objects)
    return [thing for thing in scene.objects if count[thing.name] == 1]


def no_text(scene: Scene) -> bool:
    """Neither digit nor sign, which one may or may not count among the objects."""
    return not scene.digit and not scene.word


def names_of(scene: Scene) -> set[str]:
    """What is in the scene, under every name that it may be called by."""
    names = {thing.name for thing in scene.objects}
    return names | {_ALSO_CALLED[name] for name in names if name in _ALSO_CALLED}


def absent(scene: Scene, rng: random.Random, n: int) -> list[str]:
    """`n` names of nothing in the scene, each by even chance from a present object's group."""
    there, names = names_of(scene), []
    while len(names) < n:
        name = rng.choice(rng.choice((NAMES, _MEMBERS[rng.choice(scene.objects).group])))
        if name not in there and name not in names:
            names.append(name)
    return names


def in_place(thing: Thing, place: str, slack: float) -> bool:
    """Whether the centre lies in the cell `place`, its inner sides moved out by `slack` (a share of the picture)."""
    row, column = next((r, cells.index(place)) for r, cells in enumerate(PLACES) if place in cells)
    x, y = (v / thing.picture_size for v in thing.centre)
    return all(i / 3 - slack * (i > 0) < v < (i + 1) / 3 + slack * (i < 2) for i, v in ((column, x), (row, y)))


def placed(things) -> list[Thing]:
    """Those of `things` whose place is clear: centre 3 % of the side or more away from the lines of the grid."""
    return [thing for thing in things if in_place(thing, thing.place, -0.03)]


def alone(scene: Scene) -> list[Thing]:
    """Objects with a clear place that no other thing shares, nor nearly so; at "top" none may be "top left" either."""

    def shares(other, place):
        return place in other.place or in_place(other, place, 0.03)

    things = scene.things
    return [t for t in placed(scene.objects) if not any(shares(other, t.place) for other in things if other is not t)]


def first(scene: Scene, axis: int, end: int = 1) -> Thing | None:
    """The object that comes first on `axis` (0 from the left, 1 from the top; `end` -1 from the other side).

    First by centre, by 8 % of the side, and by outer edge, among two things or more.
    """
    found, *others = sorted(scene.things, key=lambda thing: end * thing.centre[axis])

    def edge(thing):
        return thing.box[axis] if end == 1 else -thing.box[axis] - thing.box[axis + 2]

    clear = (
        end * (other.centre[axis] - found.centre[axis]) > 0.08 * scene.size and edge(other) > edge(found)
        for other in others
    )
    return found if others and found in scene.objects and all(clear) else None


def apart(scene: Scene, rng: random.Random, axis: int) -> tuple[Thing, Thing] | None:
    """Two objects of single names whose centres are 15 % of the side or more apart on `axis`, in random order."""
    objects = single(scene)
    pairs = ((a, b) for a in objects for b in objects)
    return pick(rng, ((a, b) for a, b in pairs if abs(a.centre[axis] - b.centre[axis]) > 0.15 * scene.size))


def alike(group: str, other: str) -> bool:
    """Whether the groups are one or may be taken for each other."""
    return group == other or any(group in groups and other in groups for groups in _ALIKE)


def clear_groups(scene: Scene) -> list[str]:
    """Groups that can be counted: no object is of another group that may be taken for them."""
    present = {thing.group for thing in scene.objects}
    return [group for group in GROUPS if not any(alike(group, other) for other in present - {group})]


def close_colours(colour: str, other: str) -> bool:
    """Whether two colours may be taken for each other; one and the same may not."""
    return other in _CLOSE_COLOURS[colour].split()


def of_clear_colour(scene: Scene) -> list[Thing]:
    """Objects of a colour that no other object has or comes close to."""

    def unlike(thing, other):
        return other.colour and other.colour != thing.colour and not close_colours(thing.colour, other.colour)

    return [
        thing
        for thing in scene.objects
        if thing.colour and all(unlike(thing, other) for other in scene.things if other is not thing)
    ]


def even_count(rng: random.Random, counts: dict[str, int], share: float) -> str | None:
    """A key of `counts` with 2 or more; else, in 2 · `share` of the cases, one with 0 or 1, each as often.

    `share` is chosen so that over many scenes none, one and several come equally often.
    """
    several = [key for key, count in counts.items() if count > 1]
    wanted = rng.random() // share  # 0, 1, or more: not asked
    return pick(rng, several or [key for key, count in counts.items() if count == wanted])


def empty_halves(scene: Scene) -> dict[str, bool]:
    """For each half (left, right, upper, lower) whether it is free of things; halves merely touched are left out."""
    middle, free = scene.size / 2, {}
    for half, axis, end in (("left", 0, 1), ("right", 0, -1), ("upper", 1, 1), ("lower", 1, -1)):
        edges = (end * (middle - t.box[axis] - (end < 0) * t.box[axis + 2]) for t in scene.things)
        centres = (end * (middle - t.centre[axis]) for t in scene.things)
        if max(edges) < 0:  # how far things reach into the half
            free[half] = True
        elif max(centres) > 0.1 * scene.size:
            free[half] = False
    return free
