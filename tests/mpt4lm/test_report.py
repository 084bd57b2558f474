"""The parameter report equals the formula, what is really trained, and about 0.65 % at the documented settings."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mmpt.mpt4lm import MPT4LMConfig, VisionBesideLM, parameter_report


def formula(config, d, dv, bottlenecks):
    """(instruction, cross-attention, adapters) of an LLM of width d beside a tower of width dv."""
    m, w, r = config.num_visual_prompts, config.cross_attention_width, config.adapter_rank

    def read(source):  # two norms, q and output of w², k and v from the source, biases of all four
        return 2 * w + 2 * source + 2 * w * w + 2 * w * source + 4 * w

    cross_attention = m * w + config.condition_on_question * read(d) + read(dv) + 2 * w + w * d + d
    instruction = config.num_instruction_tokens * d
    return instruction, cross_attention if m else 0, bottlenecks * (2 * d * r + r + d) if r else 0


@pytest.mark.parametrize("lm", ["llama", "t5"])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"num_visual_prompts": 0},
        {"condition_on_question": False},
        {"num_instruction_tokens": 0},
        {"adapter_rank": 0},
        {"adapter_placement": "mlp"},
        {"adapter_placement": "attention"},
    ],
    ids=str,
)
def test_equals_what_is_trained(tools, lm, case):
    model, host = tools.tuned(tools.make_host(lm=lm), **case), tools.make_host(lm=lm)
    counts = {kind: 0 for kind in ("instruction", "cross_attention", "adapters")}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[name.split("mpt4lm_")[1].split(".")[0]] += parameter.numel()
    # A Llama block has one attention, as has an encoder's; a decoder's has two. Three and two and two blocks.
    sublayers = {"attention": (3, 2 + 4), "mlp": (3, 2 + 2), "both": (6, 4 + 6)}
    config = model.peft_config["default"]
    expected = formula(config, 48, 32, sublayers[config.adapter_placement][lm == "t5"])
    assert tuple(counts.values()) == expected
    for where in (model, host):
        report = parameter_report(where, config)
        assert (report.instruction, report.cross_attention, report.adapters) == expected
        assert report.total == model.get_nb_trainable_parameters()[0]
        assert report.base == sum(p.numel() for p in host.language_model.parameters())
        assert report.tower == sum(p.numel() for p in host.vision_tower.parameters())


@pytest.fixture(scope="module")
def tower():
    """CLIP ViT-L/14 at 224, without weights."""
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    with torch.device("meta"):
        return CLIPVisionModel(config)


def test_llama_2_7b(tower):
    """The defaults. LLaMA-2-7B has 6,738,415,616 parameters."""
    with torch.device("meta"):
        host = VisionBesideLM.of(tower, LlamaForCausalLM(LlamaConfig(vocab_size=32000)))  # the defaults are the 7B's
    report = parameter_report(host, MPT4LMConfig())
    assert report.base == 6_738_415_616
    assert (report.instruction, report.cross_attention, report.adapters) == formula(MPT4LMConfig(), 4096, 1024, 64)
    assert (report.instruction, report.adapters) == (81_920, 33_820_672)
    assert round(report.percent, 2) == 0.65


def test_flan_t5_xl(tower):
    """Flan-T5-XL has 2,849,757,184 parameters and 24 + 24 blocks."""
    config = T5Config(
        d_model=2048, d_ff=5120, d_kv=64, num_heads=32, num_layers=24, vocab_size=32128,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        llm = T5ForConditionalGeneration(config)
        # The head is tied to the embeddings until a checkpoint is loaded that has one of its own, as this has.
        llm.lm_head = torch.nn.Linear(2048, 32128, bias=False)
        del llm.all_tied_weights_keys["lm_head.weight"]
        host = VisionBesideLM.of(tower, llm)
    tuned = MPT4LMConfig(adapter_rank=32, cross_attention_width=256, cross_attention_heads=4)
    report = parameter_report(host, tuned)
    assert report.base == 2_849_757_184
    assert (report.instruction, report.cross_attention, report.adapters) == formula(tuned, 2048, 1024, 24 * 2 + 24 * 3)
    assert round(report.percent, 2) == 0.65


def test_meta_injection(tower):
    """An adapter can be put on a model without weights."""
    from peft import get_peft_model

    with torch.device("meta"):
        host = VisionBesideLM.of(tower, LlamaForCausalLM(LlamaConfig(num_hidden_layers=2)))
    model = get_peft_model(host, MPT4LMConfig())
    assert model.get_nb_trainable_parameters()[0] == parameter_report(host, MPT4LMConfig()).total
