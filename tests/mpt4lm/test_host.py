"""A text-only LLM with a tower beside it, as an ordinary transformers model."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmpt.mpt4lm import VisionBesideLM

LMS = ["llama", "t5"]


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_saved_and_loaded(tools, tmp_path, lm):
    host, batch = tools.make_host(lm=lm), tools.make_batch(lm=lm)
    host.generation_config.eos_token_id = 5
    host.save_pretrained(tmp_path)
    loaded = VisionBesideLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).logits, host(**batch).logits)
    assert torch.equal(
        loaded.get_image_features(batch["pixel_values"]), host.get_image_features(batch["pixel_values"])
    )
    assert loaded.generation_config.eos_token_id == 5
    assert loaded.config.is_encoder_decoder == (lm == "t5")


@torch.no_grad()
def test_a_head_of_its_own_stays_so(tools, tmp_path):
    """Flan-T5's checkpoints have one, whatever the configuration says of tying."""
    batch = tools.make_batch(lm="t5")
    llm = tools.make_host(lm="t5").language_model
    llm.save_pretrained(tmp_path / "llm")
    file = tmp_path / "llm" / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.randn(97, 48)}, file, metadata={"format": "pt"})
    llm = type(llm).from_pretrained(tmp_path / "llm").eval()
    text = {k: v for k, v in batch.items() if k not in ("pixel_values", "has_image")}
    expected = llm(**text).logits
    host = VisionBesideLM.of(tools.make_host().vision_tower, llm)
    assert host.language_model is llm and not host.training
    assert torch.equal(host(**batch).logits, expected)
    host.save_pretrained(tmp_path / "host")
    assert torch.equal(VisionBesideLM.from_pretrained(tmp_path / "host").eval()(**batch).logits, expected)


def test_the_tower_stays_in_use(tools):
    host = tools.make_host().train()
    assert host.training and host.language_model.training and not host.vision_tower.training
