from copy import deepcopy

import pytest
import torch
from helpers import tiny_backbone
from tokenizers.processors import TemplateProcessing

import mmpt
from mmpt.errors import InputError
from mmpt.scenes import make_scene
from mmpt.tiny.describe import QUESTION, compare


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in range(8)]


def test_labels_with_a_tokenizer_that_begins_texts(scenes):
    """LLaVA-1.5's tokenizer puts a token before every text."""
    backbone = tiny_backbone()
    backbone.processor = deepcopy(backbone.processor)
    tokenizer = backbone.processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_end|> $A", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id
    talks = [[("What is it?", "A dog"), ("And where?", "top left")]]
    batch = backbone.training_inputs([scenes[0].image], talks)
    assert batch["input_ids"][0, 0] == tokenizer.eos_token_id
    said = tokenizer.decode(batch["labels"][batch["labels"] != -100])
    assert said == "A dog<|im_end|>top left<|im_end|>"


def test_image_token_takes_a_reserved_place(tiny):
    tokenizer = tiny.processor.tokenizer
    assert tiny.processor.image_token_id == tiny.model.config.image_token_id < 17
    assert len(tokenizer) == tiny.model.get_input_embeddings().num_embeddings == 49152
    assert tiny.model.lm_head.weight.data_ptr() == tiny.model.get_input_embeddings().weight.data_ptr()
    assert tokenizer.decode(tokenizer(" a dog")["input_ids"]) == " a dog"


def test_every_name_is_one_token(tiny):
    from mmpt.scenes import NAMES

    assert all(len(tiny.processor.tokenizer(f" {name}")["input_ids"]) == 1 for name in NAMES)


def test_labels_are_the_answers_and_their_ends(tiny, scenes):
    talks = [[("What is it?", "A dog"), ("And where?", "top left")], [("How many?", "3")]]
    batch = tiny.training_inputs([s.image for s in scenes[:2]], talks)
    tokens, labels = batch["input_ids"], batch["labels"]
    decode = tiny.processor.tokenizer.decode
    assert decode(labels[0][labels[0] != -100]) == "A dog<|im_end|>top left<|im_end|>"
    assert decode(labels[1][labels[1] != -100]) == "3<|im_end|>"
    assert torch.equal(tokens[labels != -100], labels[labels != -100])
    assert (tokens == tiny.processor.image_token_id).sum(1).tolist() == [49, 49]
    assert batch["attention_mask"][:, 0].all() and not batch["attention_mask"][1, -1]


def test_prompt_of_inputs_is_the_start_of_the_training_row(tiny, scenes):
    image = [scenes[0].image]
    prompt = tiny.inputs(image, ["How many?"])["input_ids"][0]
    row = tiny.training_inputs(image, [[("How many?", "3")]])["input_ids"][0]
    assert torch.equal(row[: len(prompt)], prompt)


def test_batch_equals_single(tiny, scenes):
    questions = ["Describe the picture.", "What?", QUESTION]
    images = [s.image for s in scenes[:3]]
    together = tiny.answer(images, questions, max_new_tokens=12)
    assert together == [tiny.answer([i], [q], max_new_tokens=12)[0] for i, q in zip(images, questions)]


def test_descriptions_name_what_is_there(tiny, scenes):
    answers = tiny.answer([s.image for s in scenes], [QUESTION] * len(scenes), max_new_tokens=96)
    totals = [compare(scene, answer) for scene, answer in zip(scenes, answers)]
    assert sum(t["named"] for t in totals) / sum(t["objects"] for t in totals) > 0.8
    assert sum(t["background"] for t in totals) >= 7


def test_the_picture_matters(tiny, scenes):
    blank = make_scene(0).image.point(lambda _: 128)
    assert tiny.answer([blank], [QUESTION]) != tiny.answer([scenes[0].image], [QUESTION])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mmpt.load("no-such-model"), "'no-such-model' could not be loaded .*give \"tiny\""),
        (lambda: mmpt.load("tiny", adapter="m3pt"), "no adapter 'm3pt'; give one of .*or a folder"),
    ],
)
def test_wrong_names_say_what_to_give(call, message):
    with pytest.raises(InputError, match=message):
        call()
