"""Tiny random hosts and batches for them: CLIP and SigLIP towers beside a grouped-query Llama or a T5."""

import copy
import types
from functools import cache

import pytest
import torch
from peft import get_peft_model
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)

from mmpt.mpt4lm import MPT4LMConfig, VisionBesideLM

VOCAB, SIZE, WIDTH, VISION_WIDTH = 97, 24, 48, 32
HOSTS = [("clip", "llama"), ("siglip", "llama"), ("clip", "t5")]
SMALL = dict(
    num_visual_prompts=4,
    cross_attention_width=24,
    cross_attention_heads=3,
    num_instruction_tokens=3,
    adapter_rank=5,
)


@cache
def _host(tower, lm, attention):
    torch.manual_seed(0)
    vision = dict(hidden_size=VISION_WIDTH, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4)
    vision |= dict(image_size=SIZE, patch_size=8)
    if tower == "clip":
        eyes = CLIPVisionModel(CLIPVisionConfig(**vision, initializer_factor=4.0))
        features = dict(vision_feature_layer=-2, vision_feature_select_strategy="default")
    else:
        eyes = SiglipVisionModel(SiglipVisionConfig(**vision, vision_use_head=False))
        features = dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
    # Weights large enough that attention is far from uniform.
    if lm == "llama":
        text = LlamaConfig(
            hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCAB, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        mouth = LlamaForCausalLM._from_config(text, attn_implementation=attention)
    else:
        text = T5Config(
            d_model=WIDTH, d_ff=40, d_kv=12, num_layers=2, num_heads=4, vocab_size=VOCAB, initializer_factor=1.0,
            feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=16,
        )  # fmt: skip
        mouth = T5ForConditionalGeneration._from_config(text, attn_implementation=attention)
    mouth.generation_config.eos_token_id = None
    return VisionBesideLM.of(eyes, mouth, **features).eval()


def make_host(tower="clip", lm="llama", attention="sdpa"):
    """A fresh copy of a tiny host: 9 patches of width 32, an LLM of width 48."""
    return copy.deepcopy(_host(tower, lm, attention))


def make_batch(has=(1, 0, 1), padding="left", seed=0, lm="llama"):
    """Rows of tokens of different lengths, each with or without a picture; for T5 also what its decoder reads."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, VOCAB, (5 + 2 * r,), generator=generator).tolist() for r in range(len(has))]
    width = max(map(len, rows))
    pad = [[0] * (width - len(r)) for r in rows]
    order = (lambda p, r: p + r) if padding == "left" else (lambda p, r: r + p)
    batch = {
        "input_ids": torch.tensor([order(p, r) for p, r in zip(pad, rows)]),
        "attention_mask": torch.tensor([order(p, [1] * len(r)) for p, r in zip(pad, rows)]),
    }
    if any(has):
        batch["pixel_values"] = torch.randn(len(has), 3, SIZE, SIZE, generator=generator)
    if any(has) and not all(has):
        batch["has_image"] = torch.tensor(has).bool()
    if lm == "t5":
        batch["decoder_input_ids"] = torch.randint(3, VOCAB, (len(has), 4), generator=generator)
    return batch


def split(batch, has):
    """The rows of a batch on their own: no padding, and no pixels where there is no picture."""
    for r, picture in enumerate(has):
        keep = batch["attention_mask"][r].bool()
        row = {"input_ids": batch["input_ids"][r][keep][None], "attention_mask": keep[keep][None].long()}
        if picture:
            row["pixel_values"] = batch["pixel_values"][r : r + 1]
        if "decoder_input_ids" in batch:
            row["decoder_input_ids"] = batch["decoder_input_ids"][r : r + 1]
        yield row, keep


def randomize(model, seed=1, adapter="default"):
    """Every tuned parameter moved far from its start, so that no mistake stays small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if f".{adapter}." in f"{name}." and "mpt4lm_" in name:
                p.add_(torch.randn(p.shape, generator=generator) * (1.0 if p.ndim == 1 else p.shape[1] ** -0.5))
    return model


def tuned(host=None, randomized=True, **kwargs):
    """A PEFT model of a tiny host."""
    torch.manual_seed(0)
    model = get_peft_model(host if host is not None else make_host(), MPT4LMConfig(**SMALL | kwargs)).eval()
    return randomize(model) if randomized else model


def assert_close(actual, expected, atol=1e-5):
    # Rounding in fp32 goes with the largest number in a sum, so the bound is of the whole tensor, not of each element;
    # and with where buffers lie in memory, so that even the same computation need not agree to the last bit.
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=atol * scale, rtol=0)


@pytest.fixture
def tools():
    """The helpers above, since tests import no modules of the test tree by name."""
    return types.SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})
