"""Suites through a model: everything is asked, joined by id and scored; limits keep pairs and splits whole."""

import json
from collections import Counter

import pytest
from helpers import tiny_backbone

from mmpt.errors import InputError
from mmpt.evaluate import evaluate, render
from mmpt.mini_mme import MME_SUBTASKS
from mmpt.scenes import SEEDS, make_scene
from mmpt.suites import SUITES, TOGETHER
from mmpt.tasks import TASKS
from mmpt.tiny.describe import describe


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def mini(backbone):
    return evaluate(backbone, "mini", limit=1, batch=4)


def test_mini_asks_every_suite(mini):
    assert tuple(mini["suites"]) == TOGETHER["mini"]
    assert mini["suites"]["mini-mme"]["n"] == 2 * len(MME_SUBTASKS)  # pairs stay whole: a limit of 1 gives 2
    assert mini["suites"]["mini-pope"]["n"] == 2 * 3 and mini["suites"]["mini-vsr"]["n"] == 2
    assert mini["n"] == sum(result["n"] for result in mini["suites"].values())
    rest = [mini["figures"][name] for name in TOGETHER["mini"] if name != "mini-mme"]
    assert mini["figures"]["average"] == pytest.approx(sum(rest) / 7)
    assert json.loads(json.dumps(mini)) == mini
    shown = render(mini)
    assert all(name in shown for name in TOGETHER["mini"]) and "average" in shown
    lines = {line.split()[0]: line for line in shown.splitlines()[1:]}
    vsr = mini["suites"]["mini-vsr"]
    assert lines["mini-vsr"].endswith(
        f"likeliest {vsr['choice']['figures']['accuracy']:5.1f} %   {vsr['unparsed']:.1f} % cannot be parsed"
    )
    assert "likeliest" not in lines["mini-textvqa"] and "chance 300.0     likeliest" in lines["mini-mme"]


def test_mpt4lms_suites_go_together(backbone):
    found = evaluate(backbone, "mpt4lm", limit=2, batch=4)
    assert list(found["suites"]) == ["mini-vqa", "mini-gqa", "mini-snli-ve"] and found["n"] == 3 * 2 + 6 * 2 + 2
    assert {"accuracy", "consistency"} <= set(found["suites"]["mini-gqa"]["figures"])
    mean = sum(result["figures"]["accuracy"] for result in found["suites"].values()) / 3
    assert found["figures"]["average"] == pytest.approx(mean) and json.loads(json.dumps(found)) == found


def test_closed_sets_are_scored_twice(mini):
    twice = {name for name, result in mini["suites"].items() if "choice" in result}
    assert twice == set(TOGETHER["mini"]) - {"mini-textvqa"}
    for result in mini["suites"].values():
        if "choice" in result:
            assert result["choice"]["unparsed"] == 0  # an option is always an answer


def test_answers_belong_to_their_questions(backbone, monkeypatch):
    """A model that knows the truth gets full marks, whatever the order in which it is asked."""
    truth = {(q.question, suite.picture(q.seed).tobytes()): q.answers[0]
             for suite in (SUITES["mini-vsr"], SUITES["mini-textvqa"]) for q in suite.questions()[:20]}  # fmt: skip

    class Known:
        def __init__(self, backbone, images, questions):
            self.truth = [truth[question, image.tobytes()] for image, question in zip(images, questions)]

        def answer(self, max_new_tokens):
            return self.truth

    monkeypatch.setattr("mmpt.evaluate.read", Known)
    monkeypatch.setattr("mmpt.evaluate.likeliest", lambda reading, options: reading.truth)
    vsr = evaluate(backbone, "mini-vsr", limit=20, batch=3)
    assert vsr["figures"]["accuracy"] == vsr["choice"]["figures"]["accuracy"] == 100
    assert evaluate(backbone, "mini-textvqa", limit=20, batch=3)["figures"]["accuracy"] == 100


def test_some_tasks_are_asked_what_they_are_asked_among_all(backbone, monkeypatch):
    asked = []
    monkeypatch.setattr(
        type(backbone), "answer", lambda self, images, texts, n: (asked.append(texts), ["one"] * len(texts))[1]
    )
    every = evaluate(backbone, "tasks", limit=2, batch=1)
    of_all, asked[:] = sum(asked, []), []
    some = evaluate(backbone, "tasks", limit=2, batch=1, tasks=["one_or_several", "count"])
    assert every["n"] == 2 * len(TASKS) and some["n"] == 4 and Counter(sum(asked, [])) <= Counter(of_all)
    assert list(some["figures"]) == ["count", "one_or_several", "mean"] == list(some["chance"])
    for name in ("count", "one_or_several"):
        assert (some["figures"][name], some["chance"][name]) == (every["figures"][name], every["chance"][name])
    assert some["figures"]["mean"] == pytest.approx((some["figures"]["count"] + some["figures"]["one_or_several"]) / 2)


def test_skipped_questions_are_not_asked(backbone, monkeypatch):
    asked = []

    def answer(self, images, texts, n):
        asked.extend((image.tobytes(), text) for image, text in zip(images, texts))
        return ["one"] * len(texts)

    monkeypatch.setattr(type(backbone), "answer", answer)

    def of(**options):
        asked.clear()
        evaluate(backbone, "tasks", tasks=["count", "colour"], **options)
        return Counter(asked)

    assert of(limit=2) + of(limit=2, skip=2) == of(limit=4)


def test_descriptions_are_compared_with_their_scenes(backbone, monkeypatch):
    """A model that says of the first half of the scenes all there is, and nothing of the others."""
    scenes = [make_scene(SEEDS["base_test"] + i) for i in range(8)]
    said = iter([describe(scene) for scene in scenes[:4]] + [""] * 4)
    monkeypatch.setattr(type(backbone), "answer", lambda self, images, texts, n: [next(said) for _ in texts])
    figures = evaluate(backbone, "base", limit=8)["figures"]
    share = sum(len(s.objects) for s in scenes[:4]) / sum(len(s.objects) for s in scenes)
    assert figures["objects named"] == pytest.approx(100 * share)
    assert (figures["names said that are not there"], figures["background"]) == (0, 50)


def test_the_first_questions_of_a_suite_are_of_every_label():
    labels = Counter(q.answers[0] for q in SUITES["mini-snli-ve"].questions()[:6])
    assert labels == {"entailment": 2, "neutral": 2, "contradiction": 2}


def test_what_cannot_be_evaluated(backbone):
    with pytest.raises(InputError, match="no suite 'maxi'; choose one of base, tasks, mini, mpt4lm, mini-mme"):
        evaluate(backbone, "maxi")
    with pytest.raises(InputError, match="--limit is 0"):
        evaluate(backbone, "mini", limit=0)
