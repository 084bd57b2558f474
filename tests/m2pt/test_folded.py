"""Textual prompts as keys and values: when they are, and that nothing else changes."""

import pytest
import torch
from peft import get_peft_model
from torch.func import functional_call
from transformers import DynamicCache, LlamaConfig, MistralConfig, MistralModel

from mmpt.m2pt import M2PTConfig

P, V, IMAGES = 3, 2, (1, 1)  # of which rows the first is padded


def columns(model, batch, **kwargs):
    """How many columns the LLM's second layer reads."""
    seen, block = [], model.base_model.layer.backbone.textual_blocks[1]
    handle = block.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        model(**batch, **kwargs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("case", "kwargs", "attention"),
    [
        ({"textual_update": "carry"}, {}, "sdpa"),
        ({"textual_position": "before_instruction"}, {}, "sdpa"),
        ({"textual_layers": "first_half"}, {}, "sdpa"),
        ({"num_kv_prompts": 2}, {}, "sdpa"),
        ({}, {"output_hidden_states": True}, "sdpa"),
        ({}, {"output_attentions": True}, "eager"),
        ({}, {"attention_mask": None}, "sdpa"),
        ({}, {"attention_mask": torch.ones(2, 20, dtype=torch.long)}, "sdpa"),
        ({}, {"attention_mask": (torch.arange(24) < 20).long().expand(2, 24)}, "sdpa"),  # as of a static cache
        ({}, {"past_key_values": DynamicCache()}, "sdpa"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_where_they_stay_columns(tools, case, kwargs, attention):
    """In evaluation mode always; in training mode where outputs at the slots count or are asked for, and unpadded."""
    model, batch = tools.tuned(tools.make_host(attention=attention), **case), tools.make_batch(IMAGES)
    T = batch["input_ids"].shape[1] + V
    assert columns(model, batch) == T + P
    assert columns(model.train(), batch | kwargs) == T + P
    model = tools.tuned(tools.make_host(attention=attention)).train()
    assert columns(model, batch) == T
    model.base_model.layer.backbone.llm.config.output_hidden_states = True
    assert columns(model, batch) == T + P


def test_a_sliding_window_keeps_them(tools):
    """A window of one layer sees the latest columns only."""
    for window in (4, None):
        host = tools.make_host()
        config = host.config.text_config.to_dict() | {"sliding_window": window}
        config = MistralConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
        config._attn_implementation = "sdpa"
        host.model.language_model = MistralModel(config).eval()
        model, batch = tools.tuned(host), tools.make_batch(IMAGES)
        T = batch["input_ids"].shape[1] + V
        assert columns(model.train(), batch) == (T + P if window else T)
        with torch.no_grad():
            trained, expected = (model.train(mode)(**batch).logits for mode in (True, False))
        keep = batch["attention_mask"].bool()
        tools.assert_close(trained[keep], expected[keep])


@torch.no_grad()
def test_rotations_that_depend_on_the_length(tools):
    """A dynamic rotation changes with the farthest position of a call, for prompts as for tokens."""
    host = tools.make_host()
    config = host.config.text_config
    config = LlamaConfig(
        **{k: v for k, v in config.to_dict().items() if k not in ("rope_parameters", "max_position_embeddings")},
        max_position_embeddings=8,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    )
    host.model.language_model.rotary_emb = type(host.model.language_model.rotary_emb)(config)
    model, batch = tools.tuned(host), tools.make_batch(IMAGES)
    keep = batch["attention_mask"].bool()
    trained, expected = (model.train(mode)(**batch).logits for mode in (True, False))
    tools.assert_close(trained[keep], expected[keep])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("counted", [False, True])
def test_a_cache_goes_on(tools, attention, padding, counted):
    """A cache that was filled in training mode holds the prompts, wherever the next tokens are read, cut or not."""
    model = tools.tuned(tools.make_host(attention=attention))
    batch = tools.make_batch((2, 1), padding)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    tail = {
        "input_ids": torch.tensor([[8, 9], [10, 11]]),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones(2, 2, dtype=torch.long)], 1),
        "position_ids": positions[:, -1:] + torch.tensor([[1, 2]]),
    }
    given = {"position_ids": positions} if counted else {}
    if not counted:  # by the caller; the model counts columns then, padding included
        del tail["position_ids"]
    found = []
    for mode in (True, False):
        cache = model.train(mode)(**batch, **given, use_cache=True).past_key_values
        found.append(model(**tail, past_key_values=cache).logits)
        cache.crop(-3)  # what was read last, and one token of the first call
        again = {
            "input_ids": torch.cat([batch["input_ids"][:, -1:], tail["input_ids"]], 1),
            "attention_mask": tail["attention_mask"],
        }
        if counted:
            again["position_ids"] = torch.cat([positions[:, -1:], tail["position_ids"]], 1)
        tools.assert_close(model(**again, past_key_values=cache).logits[:, 1:], found[-1])
    tools.assert_close(*found)


def test_prompts_of_their_own_for_each_row(tools):
    """As attributions need them: (B, P, D) in a parameter's place."""
    model, batch = tools.tuned().train(), tools.make_batch(IMAGES)
    prompts = {n: p for n, p in model.named_parameters() if "textual" in n}
    drawn = {n: torch.randn(2, *p.shape) for n, p in prompts.items()}
    with torch.no_grad():
        both = functional_call(model, drawn, (), batch).logits
        for r in range(2):
            alone = functional_call(model, {n: p[r] for n, p in drawn.items()}, (), batch).logits
            keep = batch["attention_mask"][r].bool()
            tools.assert_close(both[r][keep], alone[r][keep])


@torch.no_grad()
def test_attention_both_ways(tools):
    """Who sees whom is for the LLM to say."""
    model, batch = tools.tuned(), tools.make_batch(IMAGES)
    keep = batch["attention_mask"].bool()
    causal = model(**batch).logits[keep]
    model.base_model.layer.backbone.llm.config.is_causal = False
    trained, expected = (model.train(mode)(**batch).logits[keep] for mode in (True, False))
    assert (expected - causal).abs().max() > 1e-3
    tools.assert_close(trained, expected)


def test_in_sixteen_bits(tools):
    """Prompts in fp32 on an LLM in bfloat16, as they are trained."""
    host = tools.make_host().bfloat16()
    model = get_peft_model(host, M2PTConfig(num_textual_prompts=P, num_visual_prompts=V, init="normal"))
    for p in model.parameters():
        p.data = p.data.float() if p.requires_grad else p.data
    batch = tools.make_batch(IMAGES)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    keep = batch["attention_mask"].bool()
    trained, expected = (model.train(mode)(**batch).logits[keep] for mode in (True, False))
    assert trained.dtype == torch.bfloat16 and (trained - expected).abs().max() < 0.1 * expected.abs().max()
    trained.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
