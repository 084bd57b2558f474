"""The likeliest option equals the one found by scoring every option in full, and the free answer `generate`'s."""

import pytest
import torch
from helpers import tiny_backbone
from peft import get_peft_model

from mmpt.likelihood import choose_and_answer
from mmpt.m2pt import M2PTConfig
from mmpt.scenes import NAMES, make_scene

QUESTIONS = ["What is it?", "Tell me, which of all these things is the one in the picture?", "Is it?"]
OPTIONS = [NAMES[:30], ("yes it is", "yes", "no", "it is"), NAMES[20:60]]


def in_full(backbone, image, question, option):
    """Sum of the log-probabilities of the option and the end, from one pass over the whole conversation."""
    batch = backbone.training_inputs([image], [[(question, option)]])
    labels = batch.pop("labels")[:, 1:]
    scores = backbone.model(**batch).logits[:, :-1].log_softmax(-1)
    return scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].sum().item()


@pytest.mark.parametrize(
    "config",
    [
        None,
        M2PTConfig(num_textual_prompts=3, num_visual_prompts=2),
        M2PTConfig(
            num_textual_prompts=3,
            num_visual_prompts=2,
            textual_position="before_instruction",
            textual_update="carry",
            textual_layers=[1],
        ),
    ],
    ids=["base", "m2pt", "carry"],
)
@torch.no_grad()
def test_choice_and_answer(config):
    backbone = tiny_backbone()
    if config is not None:
        backbone.model = get_peft_model(backbone.model, config)
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    backbone.model.eval()
    images = [make_scene(seed).image for seed in range(3)]
    chosen, answers = choose_and_answer(backbone, images, QUESTIONS, OPTIONS, max_new_tokens=5)
    assert answers == backbone.answer(images, QUESTIONS, max_new_tokens=5)
    for image, question, options, choice in zip(images, QUESTIONS, OPTIONS, chosen):
        assert choice == max(options, key=lambda option: in_full(backbone, image, question, option))
