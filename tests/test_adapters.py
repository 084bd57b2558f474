"""The shipped adapters on the embedded model."""

import json

import pytest

import mmpt
from mmpt.files import ASSETS
from mmpt.scenes import SEEDS, make_scene

ADAPTERS = ("m2pt", "m2pt-carry")


@pytest.fixture(scope="module")
def tuned():
    backbone = mmpt.load("tiny", adapter="m2pt")
    backbone.add_adapter("m2pt-carry")
    return backbone


def test_settings_are_those_promised(tuned):
    configs = tuned.model.peft_config
    assert (configs["m2pt"].textual_position, configs["m2pt"].textual_update) == ("first", "replace")
    carry = configs["m2pt-carry"]
    assert (carry.textual_position, carry.textual_update) == ("before_instruction", "carry")
    for config in configs.values():
        report = mmpt.parameter_report(tuned.model, config)
        assert 100 * report.prompts / report.base < 0.5


def test_one_model_serves_both_adapters_and_the_base(tuned, tiny):
    images, questions = [make_scene(4).image, make_scene(13).image], ["What is the leftmost object?"] * 2
    plain = tiny.answer(images, questions, 12)
    with tuned.use(None):
        assert tuned.answer(images, questions, 12) == plain
    answers = {}
    for name in ADAPTERS:
        with tuned.use(name):
            answers[name] = tuned.answer(images, questions, 12)
            assert [tuned.answer([i], [q], 12)[0] for i, q in zip(images, questions)] == answers[name]
        assert answers[name] != plain


@pytest.mark.parametrize("name", (*ADAPTERS, "mpt4lm"))
def test_measured_results_are_shipped(name):
    results = ASSETS / "results"
    before = json.loads((results / "tasks-none.json").read_text())["figures"]
    after = json.loads((results / f"tasks-{name}.json").read_text())["figures"]
    assert set(after) == set(before) and after["mean"] > before["mean"]
    record = json.loads((ASSETS / "adapters" / name / "training.json").read_text())
    assert record["questions"] > 0 and record["seconds"] > 0


@pytest.mark.parametrize(
    "home, adapter", [("tiny", "mpt4lm"), ("tiny", "mpt4lm-background"), ("tiny-t5", "mpt4lm-t5")]
)
def test_a_text_only_llm_sees_colours(home, adapter):
    """Right about its own picture, and no better than a guess about a picture that it is not shown."""
    backbone = mmpt.load(home, adapter=adapter)
    scenes = [make_scene(SEEDS["validation"] + i) for i in range(100, 112)]
    question, images = "What colour is the background?", [scene.image for scene in scenes]
    for shown, least, most in ((images, 11, 12), (images[1:] + images[:1], 0, 5)):
        answers = backbone.answer(shown, [question] * len(scenes), 6)
        right = sum(answer == scene.background for answer, scene in zip(answers, scenes))
        assert least <= right <= most
