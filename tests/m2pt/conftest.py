"""Tiny random LLaVAs and batches for them: CLIP and SigLIP towers, Llama and Qwen2 with grouped-query attention."""

import copy
from functools import cache

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from mmpt.m2pt import M2PTConfig

IMAGE, VOCAB, PATCHES = 90, 97, 9
HOSTS = [("clip", "llama"), ("siglip", "qwen2")]


@cache
def _host(tower, lm, attention):
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4)
    vision = dict(size, image_size=24, patch_size=8)
    # Uneven widths, and weights large enough that attention is far from uniform.
    text = dict(
        size, hidden_size=48, num_hidden_layers=3, num_key_value_heads=2, vocab_size=VOCAB, initializer_range=0.2
    )
    text |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    if tower == "clip":
        vision_config, strategy, layer = CLIPVisionConfig(**vision, initializer_factor=4.0), "default", -2
    else:
        vision_config, strategy, layer = SiglipVisionConfig(**vision, vision_use_head=False), "full", -1
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=LlamaConfig(**text) if lm == "llama" else Qwen2Config(**text),
        image_token_index=IMAGE,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
        image_seq_length=PATCHES,
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


def make_host(tower="clip", lm="llama", attention="sdpa"):
    """A fresh copy of a tiny LLaVA of 4 + 3 layers, 9 patches a picture."""
    return copy.deepcopy(_host(tower, lm, attention))


def make_batch(images=(1, 1), padding="left", seed=0, after=4):
    """What the stock processor makes of rows with so many images each: placeholders, mask, pixels."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for r, n in enumerate(images):
        words = torch.randint(3, IMAGE, (3 + r,), generator=generator).tolist()
        tail = torch.randint(3, IMAGE, (after + r,), generator=generator).tolist()
        rows.append([1, *words] + ([IMAGE] * PATCHES + [5]) * n + tail)
    width = max(map(len, rows))
    pad = [[0] * (width - len(r)) for r in rows]
    order = (lambda p, r: p + r) if padding == "left" else (lambda p, r: r + p)
    batch = {
        "input_ids": torch.tensor([order(p, r) for p, r in zip(pad, rows)]),
        "attention_mask": torch.tensor([order(p, [1] * len(r)) for p, r in zip(pad, rows)]),
    }
    if sum(images):
        batch["pixel_values"] = torch.randn(sum(images), 3, 24, 24, generator=generator)
    return batch


def labels_of(batch):
    """All tokens but each row's first, which padding may predict."""
    mask = batch["attention_mask"]
    return batch["input_ids"].masked_fill(mask * F.pad(mask[:, :-1], (1, 0)) == 0, -100)


def split(batch, images):
    """The rows of a batch on their own, without padding."""
    ends = torch.tensor([0, *images]).cumsum(0)
    for r in range(len(images)):
        keep = batch["attention_mask"][r].bool()
        row = {"input_ids": batch["input_ids"][r][keep][None], "attention_mask": keep[keep][None].long()}
        if images[r]:
            row["pixel_values"] = batch["pixel_values"][ends[r] : ends[r + 1]]
        yield row, keep


def randomize(model, seed=1, adapter="default"):
    """Prompts of the size of hidden states and a projector away from its start, so that no mistake stays small."""
    generator = torch.Generator().manual_seed(seed)
    layer = model.m2pt if hasattr(model, "m2pt") else model.base_model.layer
    with torch.no_grad():
        for container in (layer.m2pt_visual_prompts, layer.m2pt_textual_prompts, layer.m2pt_attention_prompts):
            if adapter in container:
                for p in container[adapter].parameters():
                    p.copy_(torch.randn(p.shape, generator=generator))
        if adapter in layer.m2pt_projector:
            for p in layer.m2pt_projector[adapter].parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def tuned(host=None, randomized=True, **kwargs):
    """A PEFT model of a tiny host."""
    kwargs = {"num_textual_prompts": 3, "num_visual_prompts": 2} | kwargs
    torch.manual_seed(0)
    model = get_peft_model(host if host is not None else make_host(), M2PTConfig(**kwargs))
    model.eval()
    return randomize(model) if randomized else model


def prompts_of(model, adapter="default"):
    """({layer: (P, D)}, {layer: (P, D)}, projector or None)."""
    layer = model.base_model.layer
    sides = [
        {int(k): v for k, v in c[adapter].items()} if adapter in c else {}
        for c in (layer.m2pt_visual_prompts, layer.m2pt_textual_prompts)
    ]
    return *sides, layer.m2pt_projector[adapter] if adapter in layer.m2pt_projector else None


def assert_close(actual, expected, atol=1e-5):
    # Rounding in fp32 goes with the largest number in a sum, so the bound is of the whole tensor, not of each element;
    # and with where buffers lie in memory, so that even the same computation need not agree to the last bit.
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=atol * scale, rtol=0)


@pytest.fixture
def tools():
    """The helpers above, since tests import no modules of the test tree by name."""
    import types

    return types.SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})
