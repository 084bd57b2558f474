"""The checker: right answers pass, every slip is told apart, and what differs is said in one sentence."""

import random
import re

import numpy as np
import pytest
import torch

from mmpt.errors import InputError
from mmpt.exercises import EXERCISES, check
from mmpt.exercises.check import difference


@pytest.mark.parametrize("name", EXERCISES)
def test_a_solution_passes(name):
    verdict = check(name, EXERCISES[name].solution)
    assert verdict.passed and "right" in verdict.message


@pytest.mark.parametrize(("name", "slip"), [(name, i) for name, e in EXERCISES.items() for i in range(len(e.slips))])
def test_a_slip_is_recognised(name, slip):
    wrong, advice = EXERCISES[name].slips[slip]
    for seed in range(5):  # whatever the inputs
        verdict = check(name, wrong, seed)
        assert not verdict.passed
        assert advice in verdict.message


@pytest.mark.parametrize("name", EXERCISES)
def test_inputs_are_fresh_and_follow_from_a_seed(name):
    draw = EXERCISES[name].inputs
    drawn = [draw(random.Random(seed)) for seed in range(8)]
    assert difference(drawn[0], draw(random.Random(0))) is None
    assert any(difference(drawn[0], other) for other in drawn[1:])


def stub(*arguments):
    raise NotImplementedError


def broken(*arguments):
    return {}["a key"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (stub, "merge: not written yet. Replace the line that raises NotImplementedError."),
        (broken, "it raised KeyError: 'a key'"),
        (lambda embeds, is_image, features: None, "it returned None; is there a return missing?"),
        (lambda embeds, is_image, features: [1], r"it should return a tensor, but returned [1]."),
        (lambda embeds, is_image, features: embeds[:1], "it should return a tensor of shape"),
        (lambda embeds, is_image, features: embeds.long(), "it should return torch.float32, but returned torch.int64"),
    ],
)
def test_what_is_said_of_a_wrong_function(function, said):
    verdict = check("merge", function)
    assert not verdict.passed and said in verdict.message
    assert "\n" not in verdict.message


def test_the_first_wrong_value_is_named():
    right = torch.arange(6.0).view(2, 3)
    wrong = right.clone()
    wrong[1, 2] = 7
    assert difference(right, wrong) == "the value at [1, 2] should be 5, but is 7 (1 of 6 values differ)"
    assert difference(right, right + 1e-6) is None


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (2.0, 2, None),
        (2.0, 2.1, "it should return 2.0, but returned 2.1"),
        (2.0, torch.tensor(2.0), None),
        (2.0, np.float32(2.0), None),
        (True, np.bool_(True), None),
        (True, torch.tensor(True), None),
        (3, np.int64(3), None),
        (3, 3.0, "it should return 3, but returned 3.0"),
        (True, 1, "it should return True, but returned 1"),
        ((1.0, 2.0), (1.0, 3.0), "in part 1 of what is returned, it should return 2.0, but returned 3.0"),
        ((1.0, 2.0), 1.0, "it should return 2 things, but returned 1.0"),
        ({"a", "b"}, {"a"}, "'b' is missing from what it returned"),
        ({"a"}, {"a", "b"}, "'b' should not be in what it returned"),
    ],
)
def test_difference(expected, got, said):
    assert difference(expected, got) == said


def test_a_function_cannot_change_what_it_is_compared_with():
    def in_place(embeds, is_image, features):
        embeds[is_image] = features
        features.zero_()
        return embeds

    assert check("merge", in_place).passed


def normal(text, leading=("a", "an", "the")):
    words = text.lower().strip().removesuffix(".").split()
    return words[1:] if words[:1] in [[article] for article in leading] else words


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: normal(text, leading=("a", "an")),
        lambda text: normal(text.rstrip(".")),
        lambda text: sorted(normal(text)),
        lambda text: "".join(normal(text)),
        lambda text: normal(text.replace(".", "")),
        lambda text: re.sub(r"^(a|an|the) ", "", text.lower().strip().removesuffix(".")),
    ],
    ids=["minds the", "any dots at the end", "any order", "no spaces", "no punctuation", "minds doubled spaces"],
)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_nearly_the_same_answer_never_passes(wrong, seed):
    assert check("same_answer", lambda truth, given: normal(truth) == normal(given), seed).passed
    assert not check("same_answer", lambda truth, given: wrong(truth) == wrong(given), seed).passed


def test_unknown_exercise():
    with pytest.raises(InputError, match="There is no exercise 'nothing'; choose one of .*merge"):
        check("nothing", stub)


def test_the_box_shows_the_message():
    verdict = check("merge", lambda embeds, is_image, features: "<b>")
    assert repr(verdict).startswith("✗ merge: ")
    assert "&lt;b&gt;" in verdict._repr_html_() and "<b>'" not in verdict._repr_html_()
