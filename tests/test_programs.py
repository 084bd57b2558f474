"""Programs on a scene made by hand, their answers worked out by hand; and what an answer entails is true."""

import random

import pytest
from PIL import Image

from mmpt.mini_gqa import _DRAWS, scene_of
from mmpt.programs import Unsettled, entailed, execute, kind_of
from mmpt.scenes import Scene, Thing

SIDE = 112


def thing(name, group, x, y, size):
    """Its centre at (x, y)."""
    side = {"small": 20, "large": 40}[size]
    return Thing(name, group, (x - side // 2, y - side // 2, side, side), size, SIDE)


# A small orange dog top left, a large red apple right of it, a small gray key at the bottom, an apple there too.
SCENE = Scene(
    0, SIDE, "blue",
    (thing("dog", "animal", 18, 18, "small"), thing("apple", "fruit", 90, 22, "large"),
     thing("key", "tool", 56, 92, "small"), thing("apple", "fruit", 93, 96, "small")),
    None, None, Image.new("RGB", (SIDE, SIDE)),
)  # fmt: skip
DOG, KEY, APPLE, THING = (("select", what) for what in ("dog", "key", "apple", "thing"))
LARGE = ("filter", "size", "large", THING)
ABOVE_KEY = ("relate", "fruit", "above", KEY)  # the large apple; the other is not clearly so


@pytest.mark.parametrize(
    "program, answer",
    [
        (("exist", APPLE), "Yes"),
        (("exist", ("select", "cat")), "No"),
        (("exist", ("select", "fruit")), "Yes"),
        (("exist", ("filter", "size", "large", ("select", "animal"))), "No"),
        (("exist", ("relate", "thing", "left of", DOG)), "No"),
        (("exist", ("relate", "apple", "right of", DOG)), "Yes"),
        (("query", "name", LARGE), "apple"),
        (("query", "group", ("relate", "thing", "left of", KEY)), "animal"),
        (("query", "colour", LARGE), "red"),
        (("query", "place", LARGE), "top right"),
        (("verify", "colour", "red", LARGE), "Yes"),
        (("verify", "colour", "blue", LARGE), "No"),
        (("verify", "group", "vehicle", DOG), "No"),
        (("verify", "place", "bottom", KEY), "Yes"),
        (("choose", "colour", "blue", "red", LARGE), "red"),
        (("choose", "size", "large", "small", KEY), "small"),
        (("same", "size", DOG, KEY), "Yes"),
        (("same", "size", DOG, LARGE), "No"),
        (("same", "colour", LARGE, ("background",)), "No"),
        (("which", "left of", KEY, DOG), "dog"),
        (("which", "below", KEY, DOG), "key"),
        (("which", "larger", KEY, LARGE), "apple"),
        (("and", ("exist", DOG), ("exist", ("select", "cat"))), "No"),
        (("or", ("exist", DOG), ("exist", ("select", "cat"))), "Yes"),
        (("and", ("exist", DOG), ("not", ("exist", ("select", "cat")))), "Yes"),
    ],
)
def test_answers(program, answer):
    assert execute(program, SCENE) == answer


@pytest.mark.parametrize(
    "program",
    [
        ("query", "colour", APPLE),  # there are two
        ("query", "colour", ("select", "cat")),  # there is none
        ("exist", ABOVE_KEY),  # the lower apple is level with the key
        ("which", "above", DOG, LARGE),
        ("which", "larger", DOG, KEY),
        ("verify", "colour", "orange", LARGE),  # near red
        ("verify", "group", "bird", DOG),  # may be taken for animals
        ("exist", ("select", "vegetable")),  # may be taken for fruit
        ("verify", "place", "top", DOG),  # and top left
        ("choose", "colour", "blue", "green", LARGE),
        ("same", "size", DOG, DOG),
    ],
)
def test_what_is_not_settled(program):
    with pytest.raises(Unsettled):
        execute(program, SCENE)


def test_entailed_by_hand():
    fruit = ("relate", "fruit", "right of", DOG)
    assert entailed(("query", "colour", fruit), "red") == {
        ("verify", "colour", "red", fruit): "Yes",
        ("exist", ("filter", "colour", "red", fruit)): "Yes",
        ("exist", fruit): "Yes",
        ("exist", DOG): "Yes",
        ("exist", ("select", "fruit")): "Yes",
    }
    assert entailed(("choose", "group", "tool", "bug", LARGE), "tool") == {
        ("verify", "group", "tool", LARGE): "Yes",
        ("verify", "group", "bug", LARGE): "No",
    }
    both = ("and", ("exist", DOG), ("not", ("exist", KEY)))
    assert entailed(both, "Yes") == {("exist", DOG): "Yes", ("exist", KEY): "No"}
    assert entailed(both, "No") == entailed(("exist", DOG), "No") == {}
    assert entailed(("which", "above", DOG, KEY), "dog") == {
        ("exist", ("relate", "dog", "above", KEY)): "Yes",
        ("exist", ("relate", "key", "above", DOG)): "No",
        ("exist", DOG): "Yes",
        ("exist", KEY): "Yes",
    }


def test_what_an_answer_entails_is_true():
    rng, checked = random.Random(0), dict.fromkeys(_DRAWS, 0)
    for seed in range(60):
        scene = scene_of(seed)
        for kind, draw in _DRAWS.items():
            for _ in range(8):
                program = draw(scene, rng)
                assert kind_of(program) == kind
                try:
                    answer = execute(program, scene)
                except Unsettled:
                    continue
                for other, value in entailed(program, answer).items():
                    assert execute(other, scene) == value, (program, answer, other)
                    checked[kind] += 1
    assert min(checked.values()) > 30
