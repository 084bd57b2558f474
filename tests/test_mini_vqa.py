"""What the ten say is drawn as promised, and what most of them say is true of the picture."""

import random
import re
from collections import Counter

import pytest

from mmpt.mini_vqa import KINDS, MOST_STRAYS, STRAYS, SYNONYMS, annotators, plural
from mmpt.scenes import NAMES, make_scene
from mmpt.suites import SUITES
from mmpt.vqa import soft_accuracy

SUFFIX = " Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def asked():
    return SUITES["mini-vqa"].questions()


def truth(question):
    return Counter(question.answers).most_common(1)[0][0]


def test_ten_annotators_stray_as_often_as_stated():
    rng, said = random.Random(0), []
    for _ in range(2000):
        ten = annotators("dog", ["puppy", "dogs"], rng)
        assert len(ten) == 10 and ten.count("dog") >= 10 - MOST_STRAYS and soft_accuracy("dog", ten) == 1
        said += ten
    shares = {word: n / len(said) for word, n in Counter(said).items()}
    assert 0.9 * STRAYS < 1 - shares["dog"] <= STRAYS  # a little less: too many strays are drawn anew
    assert shares["puppy"] == pytest.approx(shares["dogs"], rel=0.1)
    assert annotators("no", [], rng) == ("no",) * 10


def test_a_synonym_earns_part_of_the_mark():
    ten = ("airplane",) * 7 + ("plane",) * 2 + ("airplanes",)
    marks = [soft_accuracy(word, ten) for word in ("airplane", "plane", "airplanes", "car")]
    assert marks == pytest.approx([1, 0.6, 0.3, 0])


def test_plurals():
    words = ("dog", "cherry", "key", "bus", "church", "foot", "sheep", "box")
    assert [plural(word) for word in words] == [
        "dogs", "cherries", "keys", "buses", "churches", "feet", "sheep", "boxes",
    ]  # fmt: skip
    assert set(SYNONYMS) <= set(NAMES)


def test_types_and_answers_are_balanced(asked):
    assert Counter(q.group for q in asked) == dict.fromkeys(KINDS, 150)
    assert Counter(truth(q) for q in asked if q.group == "yes/no") == {"yes": 75, "no": 75}
    numbers = Counter(truth(q) for q in asked if q.group == "number")
    assert max(numbers.values()) <= 60 and set(numbers) <= set("012345")
    assert any(len(set(q.answers)) > 1 for q in asked)


def expected(question, scene):
    """The answer, read off the scene's truth."""
    row, names = scene.truth()["objects"], Counter(thing.name for thing in scene.objects)
    size = {thing["name"]: thing["size"] for thing in row}

    def match(pattern):
        found = re.fullmatch(pattern, question)
        return found and found.groups()

    if parts := match(r"Does the (\w+) look bigger than the (\w+)\?"):
        return "yes" if (size[parts[0]], size[parts[1]]) == ("large", "small") else "no"
    if question == "Is anything shown more than once?":
        return "yes" if len(names) < len(row) else "no"
    if parts := match(r"Do you notice more than one (\w+) here\?"):
        return "yes" if sum(thing["group"] == parts[0] for thing in row) > 1 else "no"
    if parts := match(r"How many of the objects are (\w+)\?"):
        return str(sum(thing["size"] == parts[0] for thing in row))
    if parts := match(r"How many objects can be counted in the (\w+) half\?"):
        left = sum(thing["box"][0] + thing["box"][2] / 2 < scene.size / 2 for thing in row)
        return str(left if parts[0] == "left" else len(row) - left)
    if parts := match(r"How many (\w+) objects do you see\?"):
        return str(sum(thing["colour"] == parts[0] for thing in row))
    if question == "Furthest to the right, what is there?":
        return max(row, key=lambda thing: thing["box"][0] + thing["box"][2] / 2)["name"]
    if parts := match(r"What's the colour of the object (?:at|in) the ([\w ]+)\?"):
        (colour,) = [thing["colour"] for thing in row if thing["place"] == parts[0]]
        return colour
    assert question == "Tell what is shown more than once."
    (name,) = [name for name, n in names.items() if n > 1]
    return name


def test_what_most_say_is_true(asked):
    for q in asked:
        assert expected(q.question.removesuffix(SUFFIX), make_scene(q.seed)) == truth(q), q
