"""The subtasks of mini-MME: on each picture a question to be answered by yes and one to be answered by no.

A subtask is a function `(scene, rng)` that returns both questions in this order, or None where the scene does not fit.
"""

from mmpt.scenes import BACKGROUNDS, WORDS, article, at
from mmpt.settled import (
    absent,
    alike,
    alone,
    apart,
    clear_groups,
    close_colours,
    no_text,
    of_clear_colour,
    pick,
    single,
)


def _existence(scene, rng):
    there = rng.choice(scene.objects).name
    return [f"Is there {article(name)} in this image?" for name in (there, absent(scene, rng, 1)[0])]


def _count(scene, rng):
    n = len(scene.objects)
    other = rng.choice([i for i in (n - 1, n + 1) if 1 <= i <= 5])
    return no_text(scene) and [f"Is the total number of objects in this image {i}?" for i in (n, other)]


def _position(scene, rng):
    axis = rng.randrange(2)
    pair = apart(scene, rng, axis)
    if not pair:
        return None
    sides = [("to the left of", "to the right of"), ("above", "below")][axis]
    sides = sides if pair[0].centre[axis] < pair[1].centre[axis] else sides[::-1]
    return [f"Is the {pair[0].name} {side} the {pair[1].name} in this image?" for side in sides]


def _color(scene, rng):
    thing = pick(rng, [thing for thing in single(scene) if thing in of_clear_colour(scene)])
    if not thing:
        return None
    far = [c for c in BACKGROUNDS if c not in (thing.colour, "brown", "orange", "gray")]
    other = rng.choice([c for c in far if not close_colours(thing.colour, c)])
    return [f"Is the {thing.name} in this image mainly {colour}?" for colour in (thing.colour, other)]


def _scene(scene, rng):
    there = rng.choice(scene.objects).group
    other = pick(rng, [g for g in clear_groups(scene) if not any(alike(g, t.group) for t in scene.objects)])
    return other and [f"Does this image show something of the kind {group}?" for group in (there, other)]


def _ocr(scene, rng):
    if not scene.word:
        return None
    other = rng.choice([word for word in WORDS if word != scene.word.name])
    return [f'Is the word on the sign in this image "{word}"?' for word in (scene.word.name, other)]


_USES = {
    "eat": ("fruit", "vegetable", "food"),
    "travel in or on": ("vehicle",),
    "wear": ("clothing",),
    "make music with": ("instrument",),
    "live in": ("house", "castle"),
}  # a use → groups or names


def _commonsense(scene, rng):
    fitting = {t.name: use for t in alone(scene) for use, kinds in _USES.items() if {t.group, t.name} & {*kinds}}
    thing = pick(rng, [t for t in alone(scene) if t.name in fitting])
    if not thing:
        return None
    right = fitting[thing.name]
    other = rng.choice([use for use in _USES if use != right])
    return [f"Can people usually {use} what is {at(thing.place)} of this image?" for use in (right, other)]


def _calculation(scene, rng):
    if not scene.digit:
        return None
    added = rng.randint(1, 5)
    total = int(scene.digit.name) + added
    other = total + rng.choice((-2, -1, 1, 2))
    return [f"Is the digit in this image plus {added} equal to {value}?" for value in (total, other)]


MME_SUBTASKS = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
    "scene": _scene,
    "OCR": _ocr,
    "commonsense_reasoning": _commonsense,
    "numerical_calculation": _calculation,
}
