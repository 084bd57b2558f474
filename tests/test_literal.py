"""The literal implementation that the benchmark times computes what the library's does."""

import torch
from helpers import tiny_backbone
from peft import get_peft_model

from mmpt.literal import LiteralM2PT
from mmpt.m2pt import M2PTConfig
from mmpt.scenes import make_scene
from mmpt.train import AnswerLoss


def test_same_loss_gradients_and_answers():
    torch.manual_seed(0)
    backbone = tiny_backbone()
    plain = backbone.model
    plain.generation_config.eos_token_id = None
    images = [make_scene(seed).image for seed in (1, 2)]
    inputs = backbone.training_inputs(images, [[("What?", "a cat")], [("Where is it?", "left"), ("Why?", "so")]])
    asked = backbone.inputs(images[:1], ["What is it?"])

    config = M2PTConfig(num_textual_prompts=3, num_visual_prompts=4, init="normal", init_std=0.5, tune_projector=False)
    model = get_peft_model(plain, config).eval()
    named = list(model.named_parameters())
    prompts = {kind: [p for name, p in named if f"{kind}_prompts" in name] for kind in ("textual", "visual")}
    n = (inputs["labels"] != -100).sum()
    loss = AnswerLoss(model)(inputs) / n
    loss.backward()
    expected = {kind: torch.stack([p.grad for p in found]) for kind, found in prompts.items()}
    answer = model.generate(**asked, max_new_tokens=5, do_sample=False)[:, -5:]
    copies = {kind: torch.stack([p.detach() for p in found]) for kind, found in prompts.items()}
    model.unload()

    literal = LiteralM2PT(plain, copies["textual"], copies["visual"])
    same = literal(**inputs)
    same.backward()
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(literal.textual.grad, expected["textual"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(literal.visual.grad, expected["visual"], atol=1e-5, rtol=1e-4)
    assert literal.generate(**asked, max_new_tokens=5).tolist() == answer.tolist()
