"""The words ask what the programs compute: each question is read again, by hand, and answered from the truth alone."""

import json
import re
from collections import Counter

import pytest

from mmpt.mini_gqa import EACH, MOST, questions, scene_of, worded
from mmpt.scenes import SEEDS
from mmpt.suites import SUITES

SUFFIX = " Answer the question using a single word or phrase."
WHERE = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
FURTHER = {"further to the left": (0, -1), "further to the right": (0, 1), "higher up": (1, -1), "lower down": (1, 1)}
ATTRIBUTES = {"what is it called": "name", "which colour does it have": "colour", "of what kind is it": "group",
              "whereabouts does it stand": "place"}  # fmt: skip
VALUE = r"(?:something of the kind [\w ]+?|(?:in|at) the [\w ]+?|an? \w+|\w+)"


@pytest.fixture(scope="module")
def asked():
    return SUITES["mini-gqa"].questions()


def centre(thing):
    x, y, w, h = thing["box"]
    return x + w / 2, y + h / 2


def meant(phrase, truth):
    """The objects that a phrase without article may mean."""
    phrase = re.sub(r"^(an?|the) ", "", phrase)
    if phrase == "background":
        return [{"name": "background", "colour": truth["background"]}]
    near = re.fullmatch(rf"(.+?) ({'|'.join(WHERE)}) the (\w+)", phrase)
    *adjectives, noun = (near[1] if near else phrase).split()
    found = [thing for thing in truth["objects"]
             if noun in ("thing", thing["name"], thing["group"])
             and all(word in (thing["size"], thing["colour"]) for word in adjectives)]  # fmt: skip
    if near:
        (other,), (axis, sign) = meant(near[3], truth), WHERE[near[2]]
        found = [t for t in found if sign * (centre(t)[axis] - centre(other)[axis]) > 0]
    return found


def is_so(thing, value):
    value = re.sub(r"^(something of the kind|in the|at the|an?) ", "", value.lower())
    return value in (thing["name"], thing["group"], thing["colour"], thing["size"], thing["place"])


def yes(truth):
    return "Yes" if truth else "No"


def read(question, truth):
    def match(pattern):
        found = re.fullmatch(pattern, question)
        return found and found.groups()

    def there(phrase):
        return bool(meant(phrase, truth))

    if parts := match(r"Are there both (.+) and (.+)\?"):
        return yes(all(map(there, parts)))
    if parts := match(r"Is there (.+) but no (.+)\?"):
        return yes(there(parts[0]) and not there(parts[1]))
    if parts := match(r"Is there (.+) or (.+)\?"):
        return yes(any(map(there, parts)))
    if parts := match(r"Is there (.+?)(?: in the scene)?\?"):
        return yes(there(parts[0]))
    if parts := match(r"The (.+): (.+)\?"):
        (thing,) = meant(parts[0], truth)
        return thing[ATTRIBUTES[parts[1]]]
    if parts := match(rf"({VALUE}) or ({VALUE}): (?:which of these is|where does) the (.+?)(?: stand)?\?".replace(
        "something", "[sS]omething").replace("(?:in|at)", "(?:[iI]n|[aA]t)").replace("an?", "[aA]n?")):  # fmt: skip
        (thing,) = meant(parts[2], truth)
        (value,) = [v for v in parts[:2] if is_so(thing, v)]
        return re.sub(r"^(something of the kind|in the|at the|an?) ", "", value.lower())
    if parts := match(r"Are the (.+) and the (.+) (of one colour|equally large)\?"):
        (a,), (b,) = meant(parts[0], truth), meant(parts[1], truth)
        key = "colour" if "colour" in parts[2] else "size"
        return yes(a[key] == b[key])
    if parts := match(r"Which one is (.+), the (\w+) or the (\w+)\?"):
        (a,), (b,) = meant(parts[1], truth), meant(parts[2], truth)
        if parts[0] == "larger":
            return max(a, b, key=lambda t: t["size"] == "large")["name"]
        axis, sign = FURTHER[parts[0]]
        return max(a, b, key=lambda t: sign * centre(t)[axis])["name"]
    phrase, value = match(rf"(?:Is|Does) the (.+?) (?:stand )?({VALUE})\?")
    (thing,) = meant(phrase, truth)
    return yes(is_so(thing, value))


def test_every_answer_is_that_of_the_words(asked):
    truths = {q.seed: scene_of(q.seed).truth() for q in asked}
    for q in asked:
        assert read(q.question.removesuffix(SUFFIX), truths[q.seed]) == q.answers[0], q


def test_types_and_answers_are_balanced(asked):
    assert Counter(q.group for q in asked) == dict.fromkeys(MOST, EACH)
    for kind in ("exist", "verify", "logical"):
        assert Counter(q.answers[0] for q in asked if q.group == kind) == {"Yes": 40, "No": 40}
    assert max(Counter(q.answers[0] for q in asked if q.group == "query").values()) <= MOST["query"]
    first, which = [], []
    for q in asked:
        operation, *given = json.loads(q.program)
        if operation == "choose":
            first.append(given[1] == q.answers[0])
        if operation == "which":
            which.append(given[1][1] == q.answers[0])
    assert sum(first) == 40 == len(first) / 2 and sum(which) == 20 == len(which) / 2


def test_entailed_questions_are_on_the_same_picture_and_stand_behind_no_other(asked):
    by_id = {q.id: q for q in asked}
    linked = [(q, by_id[id]) for q in asked for id in q.entailed]
    assert len({q.id for q, _ in linked}) >= 100
    assert all(q.seed == other.seed and q.id != other.id for q, other in linked)


def test_a_question_is_its_program_in_words():
    one = next(questions(SEEDS["suites"]))
    program = ("exist", ("relate", "cat", "left of", ("select", "owl")))
    assert worded(program) == "Is there a cat to the left of the owl?"
    assert one == next(questions(SEEDS["suites"])) and worded(one.program).endswith("?")
