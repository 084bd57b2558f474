"""The suites ask what the tuning tasks never do, the same everywhere, and what they say of a picture is true."""

import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest

import mmpt.suites
from mmpt import mini_gqa
from mmpt.mini_mme import MME_SUBTASKS
from mmpt.scenes import SEEDS, make_scene
from mmpt.scoring import Answered, score
from mmpt.suites import CIFAR_10, CIFAR_100, SUITES, TOGETHER, VERSION
from mmpt.tasks import TASKS, questions_of

QUESTIONS = {name: suite.questions() for name, suite in SUITES.items()}


def test_there_is_a_suite_for_every_column_of_the_papers():
    columns = {
        "mini": {"MME", "Text-VQA", "VSR", "SNLI-VE", "CIFAR-10", "CIFAR-100", "MNIST", "POPE"},
        "mpt4lm": {"VQAv2", "GQA", "SNLI-VE"},
    }
    assert {group: {SUITES[name].column for name in names} for group, names in TOGETHER.items()} == columns
    assert set(SUITES) == {name for names in TOGETHER.values() for name in names}


@pytest.mark.parametrize("name", SUITES)
def test_sizes_and_balance(name):
    questions = QUESTIONS[name]
    assert len(questions) >= 400 and len({q.id for q in questions}) == len(questions)
    labels = Counter(q.answers[0] for q in questions)
    if questions[0].options:
        assert set(labels) == set(questions[0].options) and max(labels.values()) == min(labels.values())
    groups = Counter(q.group for q in questions)
    expected = {"mini-mme": dict.fromkeys(MME_SUBTASKS, 120),
                "mini-pope": dict.fromkeys(("random", "popular", "adversarial"), 400),
                "mini-vqa": dict.fromkeys(("yes/no", "number", "other"), 150),
                "mini-gqa": dict.fromkeys(mini_gqa.MOST, 80)}  # fmt: skip
    assert groups == expected.get(name, {"": len(questions)})


def test_question_files_are_the_same_everywhere():
    text = "".join(suite.jsonl() for suite in SUITES.values())
    fields = {"id", "seed", "question", "answers", "options", "group", "program", "entailed"}
    assert json.loads(text.splitlines()[0]).keys() == fields
    tuned = [
        q for number, name in enumerate(TASKS) for q in questions_of(name, 16, SEEDS["validation"] + (number << 20))
    ]
    text += "".join(f"{q.question}\t{q.answer}\n" for _, q in tuned)  # rows of the tables are asked these, too
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == VERSION


def test_nothing_is_shared_with_the_tuning_tasks():
    assert not {name.removeprefix("mini-") for name in SUITES} & set(TASKS)
    phrasings = [text for task in TASKS.values() for text in task.phrasings]
    patterns = [re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)), re.IGNORECASE) for text in phrasings]
    for questions in QUESTIONS.values():
        for question in {q.question for q in questions}:
            plain = question.removesuffix(" Please answer yes or no.").removesuffix(mmpt.suites._SHORT)
            shared = [p.pattern for p in patterns if p.fullmatch(question) or p.fullmatch(plain)]
            assert not shared, f"{question}: {shared}"


def test_no_scene_is_shared():
    spans = sorted(SEEDS.values())
    for name, questions in QUESTIONS.items():
        if name != "mini-mnist":  # its pictures are no scenes
            assert all(SEEDS["suites"] <= q.seed < SEEDS["suites"] + 2**32 for q in questions)
    assert spans[-1] == SEEDS["suites"] and all(b - a >= 2**32 for a, b in zip(spans, spans[1:]))
    used = [{q.seed for q in questions} for name, questions in QUESTIONS.items() if name != "mini-mnist"]
    assert sum(map(len, used)) == len(set().union(*used))


def box_centre(scene, name):
    return next(thing.centre for thing in scene.objects if thing.name == name)


SIDES = {"to the left of": (0, 1), "left of": (0, 1), "to the right of": (0, -1), "right of": (0, -1),
         "above": (1, 1), "below": (1, -1)}  # fmt: skip


def test_relations_hold_in_the_picture():
    pattern = re.compile(rf"(?:Is the|The) (\w+)(?: is)? ({'|'.join(SIDES)}) the (\w+)")
    asked = [q for q in QUESTIONS["mini-mme"] if q.group == "position"] + QUESTIONS["mini-vsr"]
    for q in asked:
        a, side, b = pattern.match(q.question).groups()
        axis, sign = SIDES[side]
        scene = make_scene(q.seed)
        true = sign * (box_centre(scene, b)[axis] - box_centre(scene, a)[axis]) > 0
        assert true == (q.answers[0] in ("Yes", "True"))


def test_what_is_said_to_be_there_is_there():
    asked = [q for q in QUESTIONS["mini-mme"] if q.group == "existence"] + QUESTIONS["mini-pope"]
    for q in asked:
        name = re.match(r"Is there an? (\w+) in", q.question)[1]
        there = {t.name for t in make_scene(q.seed).objects}
        assert (name in there) == (q.answers == ("Yes",))
        for thing, kind in (("panda", "bear"), ("palm", "tree"), ("boot", "shoe"), ("cap", "hat"), ("canoe", "boat")):
            assert not (thing in there and kind not in there and name == kind)
    for q in QUESTIONS["mini-textvqa"]:
        assert q.answers == (make_scene(q.seed).word.name,) * 10
    for q in QUESTIONS["mini-mme"]:
        scene, yes = make_scene(q.seed), q.answers == ("Yes",)
        if q.group == "count":
            assert (f"image {len(scene.objects)}?" in q.question) == yes
        if q.group == "color" and not yes:
            name, said = re.search(r"the (\w+) in this image mainly (\w+)", q.question).groups()
            (colour,) = [t.colour for t in scene.objects if t.name == name]
            assert {colour, said} not in [{"red", "pink"}, {"blue", "purple"}, {"red", "orange"}, {"brown", "yellow"}]
        if q.group == "commonsense_reasoning" and "live in" in q.question:
            place = re.search(r"(?:at|in) the ([a-z ]+) of this", q.question)[1]
            (name,) = [t.name for t in scene.objects if t.place == place]
            assert (name in ("house", "castle")) == yes
        if q.group == "OCR":
            assert (f'"{scene.word.name}"' in q.question) == yes
        if q.group == "numerical_calculation":
            added, total = map(int, re.findall(r"\d+", q.question))
            assert (int(scene.digit.name) + added == total) == yes


def test_hypotheses():
    for q in QUESTIONS["mini-snli-ve"]:
        scene, label = make_scene(q.seed), q.answers[0]
        if match := re.search(r'"There is an? (\w+)\.', q.question):
            assert label == ("entailment" if match[1] in {t.name for t in scene.objects} else "contradiction")
        if match := re.search(r"behind everything is (\w+)\.", q.question):
            assert label == ("entailment" if match[1] == scene.background else "contradiction")
        if match := re.search(r"There are (\d) objects", q.question):
            assert label == ("entailment" if int(match[1]) == len(scene.objects) else "contradiction")
        if match := re.search(r"The (\w+) stands towards the (\w+)", q.question):
            place = next(t.place for t in scene.objects if t.name == match[1])
            assert label == ("entailment" if match[2] in place else "contradiction")


def test_classes():
    assert len(CIFAR_10) == 10 and len(CIFAR_100) == 100
    for name in ("mini-cifar-10", "mini-cifar-100"):
        for q in QUESTIONS[name][:40]:
            assert make_scene(q.seed, n_objects=1, text=0).objects[0].name == q.answers[0]


def test_pictures():
    for name, suite in SUITES.items():
        for q in QUESTIONS[name][:3]:
            assert suite.picture(q.seed).size == (112, 112) and suite.picture(q.seed).mode == "RGB"
    q = QUESTIONS["mini-cifar-10"][0]
    found, sharp = (
        np.linalg.svd(np.asarray(image)[..., 0].astype(float), compute_uv=False)
        for image in (SUITES["mini-cifar-10"].picture(q.seed), make_scene(q.seed).image)
    )
    assert found[8] > 30 and found[32] < 7 < sharp[32] / 3  # 32 rows of pixels, enlarged: beyond them only rounding


def test_the_truth_scores_full_marks():
    for name, suite in SUITES.items():
        rows = [
            Answered(q.id, Counter(q.answers).most_common(1)[0][0], q.answers, q.group, str(q.seed), q.entailed)
            for q in QUESTIONS[name]
        ]
        result = score(suite.metric, rows, draws=2)
        chief = next(iter(result["figures"].values()))
        assert chief == pytest.approx(1200 if name == "mini-mme" else 100) and result["unparsed"] == 0
        if name == "mini-gqa":
            assert result["figures"]["consistency"] == 100
            assert result["chance"]["accuracy"] == pytest.approx(100 * 140 / 480)  # "Yes"
