"""Answers and choices from one shared reading equal those of each question read alone, for every kind of method."""

import pytest
import torch
from helpers import tiny_backbone
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_hosts import backbone_of

from mmpt.errors import InputError
from mmpt.likelihood import likeliest
from mmpt.m2pt import M2PTConfig
from mmpt.reading import read
from mmpt.scenes import NAMES, make_scene

QUESTIONS = ["What is it?", "Tell me, which of all these things is the one in the picture?", "Is it?", "Where is it?"]
PICTURES = [0, 1, 0, 2]  # the first and the third question are on one picture
OPTIONS = [NAMES[:30], ("yes it is", "yes", "no", "it is"), NAMES[20:60], ("at the top", "at", "left")]
METHODS = {
    "base": None,
    "m2pt": M2PTConfig(num_textual_prompts=3, num_visual_prompts=2),
    "carry": M2PTConfig(
        num_textual_prompts=3,
        num_visual_prompts=2,
        textual_position="before_instruction",
        textual_update="carry",
        textual_layers=[1],
    ),
    "lora": LoraConfig(target_modules=["q_proj"], r=2),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.fixture(params=METHODS)
def backbone(request):
    backbone = tiny_backbone()
    if METHODS[request.param] is not None:
        backbone.model = get_peft_model(backbone.model, METHODS[request.param])
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    backbone.model.eval()
    return backbone


@pytest.fixture
def images():
    drawn = [make_scene(seed).image for seed in range(3)]
    return [drawn[i] for i in PICTURES]


def in_full(backbone, image, question, option):
    """Sum of the log-probabilities of the option and the end, from one pass over the whole conversation."""
    batch = backbone.training_inputs([image], [[(question, option)]])
    labels = batch.pop("labels")[:, 1:]
    scores = backbone.model(**batch).logits[:, -labels.shape[1] - 1 : -1].log_softmax(-1)
    return scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].sum().item()


def check_choices_and_answers(backbone, images):
    reading = read(backbone, images, QUESTIONS)
    logits = reading.logits.clone()
    alone = [backbone.model(**backbone.inputs([i], [q])).logits[0, -1] for i, q in zip(images, QUESTIONS)]
    torch.testing.assert_close(logits, torch.stack(alone), atol=2e-5, rtol=1e-4)
    chosen = likeliest(reading, OPTIONS)
    for image, question, options, choice in zip(images, QUESTIONS, OPTIONS, chosen):
        assert choice == max(options, key=lambda option: in_full(backbone, image, question, option))
    expected = [backbone.answer([i], [q], max_new_tokens=5)[0] for i, q in zip(images, QUESTIONS)]
    assert len(set(expected)) > 1
    assert reading.answer(max_new_tokens=5) == expected
    assert reading.answer(max_new_tokens=5) == expected  # nothing of the first answer stays
    assert likeliest(reading, OPTIONS) == chosen


@torch.no_grad()
def test_choices_and_answers(backbone, images):
    check_choices_and_answers(backbone, images)


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "m2pt", "carry", "lora"])
def test_where_a_picture_has_more_tokens_than_positions(name, images):
    backbone = backbone_of("qwen2_5_vl")
    if METHODS[name] is not None:
        backbone.model = get_peft_model(backbone.model, METHODS[name])
    check_choices_and_answers(backbone, images)


@torch.no_grad()
@pytest.mark.parametrize("name", ["m2pt", "carry"])
def test_where_an_answer_leaves_a_sliding_window(name, images):
    backbone = backbone_of("gemma3")
    backbone.model = get_peft_model(backbone.model, METHODS[name])
    check_choices_and_answers(backbone, images)


@torch.no_grad()
def test_pictures_of_different_sizes_are_padded_and_padding_does_not_count(images):
    backbone = backbone_of("llava_next")
    shapes = [(48, 24), (24, 48), (48, 48)]
    sized = {id(image): image.resize(shape) for image, shape in zip({id(i): i for i in images}.values(), shapes)}
    check_choices_and_answers(backbone, [sized[id(image)] for image in images])


def test_numbers_that_overflow_are_told(images):
    backbone = tiny_backbone()
    torch.nn.init.constant_(backbone.model.lm_head.weight, torch.nan)
    with pytest.raises(InputError, match="'tiny-random' overflows in float32; load it with dtype=torch.float32"):
        read(backbone, images, QUESTIONS)


def test_a_picture_is_encoded_once(backbone, images):
    seen = []
    tower = backbone.model.get_base_model() if hasattr(backbone.model, "get_base_model") else backbone.model
    handle = tower.model.vision_tower.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    read(backbone, images, QUESTIONS)
    handle.remove()
    assert [shape[0] for shape in seen] == [3]


@torch.inference_mode()
def test_a_finished_row_waits_for_the_others(backbone, images):
    """A row that ends early gets nothing more, and the others go on."""
    ends = backbone.model.generation_config.eos_token_id
    reading = read(backbone, images, QUESTIONS)
    reading.logits[0] = -torch.inf
    reading.logits[0, ends] = 0.0
    answers = reading.answer(max_new_tokens=5)
    assert answers[0] == ""
    assert answers[1:] == read(backbone, images, QUESTIONS).answer(max_new_tokens=5)[1:]
