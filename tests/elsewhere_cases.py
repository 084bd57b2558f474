"""Everything on a device that is not the CPU, with the numbers of the CPU; run by test_devices.py."""

import json
import threading

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from elsewhere import ELSEWHERE, Dispatch, Made
from helpers import backbone_for, config_for, tuned_backbone
from peft import get_peft_model
from tiny_hosts import FAMILIES, collate, make_host, make_rows

import mmpt
from mmpt.evaluate import evaluate
from mmpt.explain.attention import attention, vision_attention
from mmpt.explain.checks import compare, curves, prompt_effects
from mmpt.explain.cross_attention import cross_attention
from mmpt.explain.gradients import conductance, gradient_shap, integrated_gradients
from mmpt.explain.interaction import scores
from mmpt.explain.nearest import nearest_words
from mmpt.explain.perturbations import feature_ablation, occlusion
from mmpt.explain.shapley import shapley
from mmpt.explain.targets import Case, Target
from mmpt.methods import METHODS
from mmpt.scenes import make_scene
from mmpt.train import TrainConfig, train

SCENE = make_scene(0)


@pytest.fixture
def elsewhere(monkeypatch):
    """The device is there, in all threads."""
    run = threading.Thread.run

    def run_there(thread):
        with Dispatch(), Made():
            run(thread)

    monkeypatch.setattr(threading.Thread, "run", run_there)
    with Dispatch(), Made():
        yield


def test_it_is_a_device(elsewhere):
    tensor = torch.arange(3.0, device=ELSEWHERE)
    assert tensor.device == ELSEWHERE and torch.equal((tensor + 1).cpu(), torch.tensor([1.0, 2, 3]))
    with pytest.raises(RuntimeError, match="aten::add: .* are on the CPU"):
        tensor + torch.ones(3)


def same(found, expected):
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, elsewhere):
    batch = collate(make_rows(family))
    model = get_peft_model(make_host(family), mmpt.M2PTConfig(num_textual_prompts=3, num_visual_prompts=2))
    results = []
    for device in ("cpu", ELSEWHERE):
        model.eval().to(device).zero_grad()
        given = {name: value.to(device) for name, value in batch.items()}
        out = model(**given, labels=given["input_ids"])
        out.loss.backward()
        tuned = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        tokens = model.generate(**given, max_new_tokens=3, do_sample=False)
        model.generate(**given, max_new_tokens=3, do_sample=False, num_beams=2)
        results.append([out.logits, tokens, *tuned])
    for expected, found in zip(*results, strict=True):
        assert found.device == ELSEWHERE
        same(found, expected)


def tuned(method, device):
    if method == "m2pt":
        backbone = tuned_backbone()
    else:
        backbone = backbone_for(method)
        backbone.model = get_peft_model(backbone.model, config_for(method, backbone)).eval()
    backbone.model.to(device)
    return backbone


VIEWS = {
    "attention": lambda b: attention(b, SCENE.image, "a?", "b").weights,
    "vision attention": lambda b: vision_attention(b, SCENE.image).weights,
    "integrated gradients": lambda b: integrated_gradients(case(b), steps=16).patches,
    "gradient SHAP": lambda b: gradient_shap(case(b), samples=2).patches,
    "conductance": lambda b: conductance(case(b), steps=8).textual,
    "occlusion": lambda b: occlusion(case(b)).patches,
    "ablation": lambda b: feature_ablation(case(b), ["textual"]).textual,
    "Shapley values": lambda b: torch.tensor(list(shapley(case(b), samples=2).totals.values())),
    "interaction": lambda b: scores(case(b)),
    "curves": lambda b: curves(case(b), torch.eye(4), steps=2, orders=2).deletion.random,
    "prompts' effects": lambda b: prompt_effects(case(b), 3).effects["textual"],
    "before and after": lambda b: compare(b, SCENE.image, "a?", max_new_tokens=3).scores,
    "nearest words": lambda b: nearest_words(b).values,
}


def case(backbone):
    return Case(backbone, SCENE.image, "a or b?", Target("b"))


@pytest.mark.parametrize("view", VIEWS)
def test_views(view, elsewhere):
    same(*(VIEWS[view](tuned("m2pt", device)) for device in (ELSEWHERE, "cpu")))


def test_cross_attention(elsewhere):
    same(*(cross_attention(tuned("mpt4lm", d), SCENE.image, "a?").to_words for d in (ELSEWHERE, "cpu")))


@pytest.mark.parametrize("method", ["m2pt", "mpt4lm"])
def test_answers(method, elsewhere):
    found, expected = (tuned(method, device) for device in (ELSEWHERE, "cpu"))
    questions = ["a?", "is there a cat?"]
    assert found.answer([SCENE.image] * 2, questions, 4) == expected.answer([SCENE.image] * 2, questions, 4)
    found, expected = (evaluate(backbone, "mini-mnist", limit=2)["choice"] for backbone in (found, expected))
    assert found == expected


@pytest.mark.parametrize("method", METHODS)
def test_tuning(method, elsewhere, tmp_path):
    losses = []
    for device in (torch.device("cpu"), ELSEWHERE):
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState().device = device
        backbone = backbone_for(method)
        backbone.model.to(device)
        out = tmp_path / device.type
        train(backbone, config_for(method, backbone), TrainConfig(out, steps=3, pictures=2, turns=2, log_every=1))
        losses.append([json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
