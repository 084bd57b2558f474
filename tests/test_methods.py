"""Every method goes through the same loop and gives answers again when it is loaded from its folder."""

import json

import pytest
import tiny_hosts
import torch
from helpers import backbone_for, config_for, tiny_backbone
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from mmpt.backbones import Backbone, load
from mmpt.errors import InputError
from mmpt.m2pt.backbone import find_backbone
from mmpt.methods import METHODS, method
from mmpt.rates import make_optimizer
from mmpt.scenes import make_scene
from mmpt.start import begin
from mmpt.train import TrainConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", METHODS)
def test_tuned_saved_and_loaded(name, tmp_path):
    chosen = METHODS[name]
    backbone = backbone_for(name)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    config = TrainConfig(tmp_path / name, steps=2, pictures=2, turns=2, **chosen.rates)
    folder = train(backbone, config_for(name, backbone), config)
    image, question = make_scene(3).image, "What is it?"
    inputs = backbone.inputs([image], [question])
    with torch.no_grad():
        tuned = backbone.model(**inputs).logits[:, -1]

    if name == "full":
        again = load(folder)
    else:
        again = backbone_for(name)
        again.add_adapter(folder)
    with torch.no_grad():
        torch.testing.assert_close(again.model(**inputs).logits[:, -1], tuned, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(backbone_for(name).model(**inputs).logits[:, -1], tuned, atol=1e-4)
    assert again.answer([image], [question], 4) == backbone.answer([image], [question], 4)

    record = json.loads((folder / "training.json").read_text())
    trained = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    assert record["tuned_parameters"] == sum(backbone.model.get_parameter(n).numel() for n in trained)
    if name != "full":
        base = backbone.model.get_base_model().state_dict()
        frozen = {key: value for key, value in before.items() if key in base}
        assert len(frozen) > 20 and all(torch.equal(base[key], value) for key, value in frozen.items())


def test_finished_full_fine_tuning_is_loaded(tmp_path):
    config = TrainConfig(tmp_path / "full", steps=1, pictures=1, turns=1)
    first = tiny_backbone()
    train(first, None, config)
    config.resume = True
    second = tiny_backbone(seed=1)
    train(second, None, config)
    for key, value in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value)


def test_lora_tunes_all_linear_layers_of_the_llm_and_the_projector():
    backbone = tiny_backbone()
    config = METHODS["lora"].configure(backbone.processor.tokenizer)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
    model = get_peft_model(backbone.model, config)
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    layers = backbone.model.config.text_config.num_hidden_layers
    assert sum("lora_A" in n for n in trained) == 7 * layers
    assert not any("vision_tower" in n or "lm_head" in n or "embed" in n for n in trained)
    projector = sum(n for key, n in trained.items() if "lora" not in key)
    assert projector == sum(p.numel() for p in tiny_backbone().model.model.multi_modal_projector.parameters())


@pytest.mark.parametrize("family", ["idefics3", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_other_families_llm_and_projector_are_tuned_each_at_its_rate(name, family):
    model = AutoModelForImageTextToText.from_config(tiny_hosts.config_of(family))
    config = TrainConfig("x", lr=0.1, projector_lr=0.2)
    model = begin(Backbone("x", model, None), METHODS[name].configure(None), config)
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = make_optimizer(model, tuned, config).param_groups
    rates = {id(p): group["peak"] for group in groups for p in group["params"]}
    projector = {id(p) for p in find_backbone(model).projector.parameters() if p.requires_grad}
    assert projector and projector == {i for i, rate in rates.items() if rate == 0.2} and projector < rates.keys()
    assert all(any(f"layers.{i}." in name for name in tuned) for i in range(3))  # of the LLM


def test_vpt_starts_as_its_code_does():
    backbone = tiny_backbone()
    model = get_peft_model(backbone.model, METHODS["vpt"].configure(backbone.processor.tokenizer))
    prompts = [p for p in model.parameters() if p.requires_grad]
    assert len(prompts) == 2 and all(p.shape == (10, 32) for p in prompts)
    values = torch.cat([p.flatten() for p in prompts])
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert values.abs().max() <= bound and values.abs().max() > 0.97 * bound
    assert abs(values.std() - bound / 3**0.5) < 0.1 * bound


def test_unknown_method():
    with pytest.raises(InputError, match="There is no method 'm3pt'; choose one of m2pt, "):
        method("m3pt")
