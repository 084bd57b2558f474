import threading
import zipfile
from shutil import copytree

import pytest
import torch
from helpers import tiny_backbone
from peft import LoraConfig, get_peft_model

from app.ask import ask
from app.state import Studio
from app.tune import FRESH, Stopped, accuracy, questions, starts, stop, tune
from mmpt.tasks import correct

GIVEN = (["background", "count"], FRESH, 3, 2, 0)


def weights(studio):
    return {name: value.clone() for name, value in studio.plain.model.state_dict().items()}


def test_a_run_ends_in_an_adapter_for_the_other_tabs(studio, picture):
    before = weights(studio)
    *steps, (message, words, curve, left, right, start, file) = tune(studio, "me", *GIVEN)
    name = right.value
    assert message == "" and words.startswith("Done: ") and name in studio.folders and studio.tuned == [name]
    assert [value for _, value in left.choices][-1] == name == start.choices[-1][1] and len(curve.data[0].y) == 3
    assert f"{name}/adapter_config.json" in zipfile.ZipFile(file.value["path"]).namelist()
    assert steps and all(step[0] == "" for step in steps) and studio.runs == {}
    assert all(torch.equal(value, before[key]) for key, value in weights(studio).items())  # the shared weights
    *_, (message, base, tuned, *_) = ask(studio, picture, "What?", "none", name)
    assert message == "" and base != tuned


def test_going_on_from_an_adapter(studio):
    *_, (message, words, *_) = tune(studio, "me", ["background"], "two", 2, 1, 0)
    assert message == "" and words.startswith("Done: ")


def test_only_adapters_of_m2pt_are_gone_on_from(adapters, tmp_path):
    backbone = tiny_backbone()
    get_peft_model(backbone.model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    studio = Studio(tiny_backbone(), [*adapters, tmp_path / "lora"])
    assert "lora" in studio.folders and starts(studio) == [FRESH, "one", "two"]
    studio.add_tuned(copytree(adapters[0], tmp_path / "mine"))
    assert starts(studio)[-1] == "mine"


def test_stop_ends_a_run_within_a_step(studio):
    running = tune(studio, "me", *GIVEN[:2], 200, 1, 0)
    while "Step" not in next(running)[1]:
        pass
    assert stop(studio, "you") == "Nothing is being tuned."
    assert stop(studio, "me") == "Stopping ..."
    done = len(studio.runs["me"].losses())
    run = studio.runs["me"]
    run.thread.join(30)
    assert len(run.losses()) <= done + 2 and isinstance(run.error, Stopped)
    *_, (_, words, *_) = running
    assert words == "Stopped. No adapter was made, and the models are as they were."
    assert studio.tuned == [] and not run.out.exists() and not hasattr(studio.plain.model, "peft_config")


def test_a_closed_page_ends_its_run(studio):
    running = tune(studio, "me", *GIVEN[:2], 200, 1, 0)
    next(running)
    run = studio.runs["me"]
    running.close()
    assert studio.runs == {}
    run.thread.join(30)
    assert isinstance(run.error, Stopped) and not run.out.exists()


def test_others_ask_meanwhile(studio, picture):
    wanted = list(ask(studio, picture, "What?", "one", "two"))[-1][1:3]
    running = tune(studio, "me", *GIVEN[:2], 200, 1, 0)
    next(running)
    for _ in range(3):
        assert list(ask(studio, picture, "What?", "one", "two"))[-1][1:3] == wanted
        assert studio.runs["me"].thread.is_alive()
    running.close()


@pytest.mark.parametrize(
    "tasks, seed, sentence",
    [([], 0, "No task is named"), (["cooking"], 0, "There is no task"), (["count"], None, "The seed is None")],
)
def test_mistakes_are_one_sentence(studio, tasks, seed, sentence):
    *_, (message, *_) = tune(studio, "me", tasks, FRESH, 2, 1, seed)
    assert sentence in message and studio.runs == {}


def test_accuracy_on_fresh_questions():
    asked = questions(("background", "count"), 3)
    assert [q.task for _, q in asked] == ["background"] * 3 + ["count"] * 3

    class Knowing:
        def answer(self, images, texts, max_new_tokens):
            question = next(q for image, q in asked if image is images[0])
            return [question.answer if question.task == "count" else "no idea"]

    assert accuracy(Knowing(), asked, threading.Event()) == 0.5
    assert all(correct(q, q.answer) for _, q in asked)
