"""The parameter report equals the formula, what is really trained, and the paper's 0.09 %."""

import pytest
import torch
from tiny_hosts import make_host
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mmpt.m2pt import M2PTConfig, parameter_report


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"visual_layers": "first"},
        {"num_textual_prompts": 0},
        {"tune_projector": False},
        {"textual_layers": [0, 2]},
    ],
    ids=str,
)
def test_equals_what_is_trained(tools, case):
    model = tools.tuned(**case)
    counts = {kind: 0 for kind in ("visual_prompts", "textual_prompts", "projector")}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[name.split("m2pt_")[1].split(".")[0]] += parameter.numel()
    host = tools.make_host()
    for where in (model, host):
        report = parameter_report(where, model.peft_config["default"])
        assert counts == {kind: getattr(report, kind) for kind in counts}
        assert report.total == model.get_nb_trainable_parameters()[0]
        projector = sum(p.numel() for p in host.model.multi_modal_projector.parameters())
        assert report.base == sum(p.numel() for p in host.parameters()) - projector


@pytest.fixture(scope="module")
def llava_7b():
    """LLaVA-1.5-7B with the paper's CLIP ViT-L/14 at 224, without weights."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32000)  # the defaults are those of the 7B
    with torch.device("meta"):
        return LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=31999)
        )


def test_papers_arithmetic(llava_7b):
    """The paper's projector is one Linear(1024 -> 4096), and its code has prompts in all 24 vision layers."""
    projector = llava_7b.model.multi_modal_projector
    llava_7b.model.multi_modal_projector = nn.Linear(1024, 4096, device="meta")
    rows = [
        (10, 20, 1_802_240, 6_000_640, 0.085),
        (10, 10, 1_556_480, 5_754_880, 0.082),
        (20, 10, 2_867_200, 7_065_600, 0.100),
    ]
    for textual, visual, prompts, total, percent in rows:
        config = M2PTConfig(num_textual_prompts=textual, num_visual_prompts=visual, visual_readout="parameter")
        report = parameter_report(llava_7b, config)
        assert (report.prompts, report.projector, report.total) == (prompts, 4_198_400, total)
        assert round(report.percent, 3) == percent
    llava_7b.model.multi_modal_projector = projector


def test_hub_model(llava_7b):
    """The hub's LLaVA-1.5 has a projector of two layers, and with readout "output" the last vision layer is unseen."""
    report = parameter_report(llava_7b, M2PTConfig())
    assert report.projector == 1024 * 4096 + 4096 + 4096 * 4096 + 4096 == 20_979_712
    assert (report.visual_prompts, report.textual_prompts) == (23 * 20 * 1024, 32 * 10 * 4096)
    assert round(report.percent, 2) == 0.32


def test_meta_injection(llava_7b):
    """An adapter can be put on a model without weights."""
    from peft import get_peft_model

    model = get_peft_model(llava_7b, M2PTConfig())
    assert model.get_nb_trainable_parameters()[0] == parameter_report(model, M2PTConfig()).total
    model.unload()


def test_a_projector_inside_the_tower_is_none_of_the_base():
    host = make_host("qwen2_5_vl")
    merger = sum(p.numel() for p in host.model.visual.merger.parameters())
    report = parameter_report(host, M2PTConfig(num_textual_prompts=3, num_visual_prompts=2))
    assert report.projector == merger and report.base == sum(p.numel() for p in host.parameters()) - merger
    assert (report.visual_prompts, report.textual_prompts) == (3 * 2 * 32, 3 * 3 * 48)
