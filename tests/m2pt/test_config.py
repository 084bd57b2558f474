"""Validation of M2PTConfig, and where prompts start."""

import math

import pytest
import torch

from mmpt.m2pt import M2PTConfig
from mmpt.m2pt.config import resolve_layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_textual_prompts": -1}, "num_textual_prompts=-1: must be an integer of 0 or more"),
        ({"num_visual_prompts": 2.0}, "num_visual_prompts=2.0: must be an integer"),
        ({"num_visual_prompts": True}, "num_visual_prompts=True: must be an integer"),
        ({"num_textual_prompts": 0, "num_visual_prompts": 0, "tune_projector": False}, "leave nothing to tune"),
        ({"textual_position": "last"}, "textual_position='last': must be one of first, before_instruction"),
        ({"textual_update": "add"}, "textual_update='add': must be one of replace, carry"),
        ({"visual_update": None}, "visual_update=None: must be one of replace, carry"),
        ({"visual_readout": "raw"}, "visual_readout='raw': must be one of output, parameter, none"),
        ({"init": "zeros"}, "init='zeros': must be one of xavier_uniform"),
        ({"textual_layers": "middle"}, "textual_layers='middle': must be one of all, first, last"),
        ({"textual_layers": []}, r"textual_layers=\[\]: .* list of different indices from 0"),
        ({"visual_layers": [-1]}, r"visual_layers=\[-1\]"),
        ({"visual_layers": [1, 1]}, r"visual_layers=\[1, 1\]"),
        ({"visual_layers": 3}, "visual_layers=3"),
        ({"init": "normal", "init_std": 0}, "init_std=0: must be above 0"),
        ({"init_token_ids": [1]}, "init_token_ids is read with init='vocabulary' or 'instruction' only"),
        ({"init": "vocabulary"}, "init_token_ids=None: .*from_text"),
        ({"init": "vocabulary", "init_token_ids": ["a"]}, r"init_token_ids=\['a'\]"),
        (
            {"init": "instruction", "init_token_ids": [3, 4]},
            "=10: .* has 2; set num_textual_prompts=2",
        ),
        (
            {"init": "vocabulary", "init_token_ids": [3], "num_textual_prompts": 0},
            "prompts=0 leaves no room",
        ),
        ({"task_type": "VQA"}, "Invalid task type"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_validation(fields, message):
    with pytest.raises(ValueError, match=message):
        M2PTConfig(**fields)


def test_resolve_layers():
    names = ("all", "first", "last", "first_half", "second_half", [1, 3])
    assert [resolve_layers("x", n, 5) for n in names] == [
        (0, 1, 2, 3, 4),
        (0,),
        (4,),
        (0, 1, 2),
        (3, 4),
        (1, 3),
    ]
    with pytest.raises(ValueError, match="x='second_half' selects none of this model's 1 layers"):
        resolve_layers("x", "second_half", 1)


def test_xavier_is_torchs_rule(tools):
    """Bound sqrt(6 / ((P + 1) D)): what torch's xavier_uniform_ does on a (1, P, D) tensor."""
    model = tools.tuned(randomized=False, num_textual_prompts=40, num_visual_prompts=30)
    visual, textual, _ = tools.prompts_of(model)
    for prompts, (P, D) in ((visual, (30, 32)), (textual, (40, 48))):
        for p in prompts.values():
            bound = math.sqrt(6 / ((P + 1) * D))
            assert p.shape == (P, D) and 0.97 * bound < p.abs().max() <= bound
            torch.testing.assert_close(p.std(), torch.tensor(bound / 3**0.5), rtol=0.1, atol=0)
    example = torch.nn.init.xavier_uniform_(torch.empty(1, 40, 48))
    assert 0.97 * math.sqrt(6 / (41 * 48)) < example.abs().max() <= math.sqrt(6 / (41 * 48))


def test_normal(tools):
    model = tools.tuned(randomized=False, num_textual_prompts=60, num_visual_prompts=60, init="normal", init_std=0.3)
    for prompts in tools.prompts_of(model)[:2]:
        for p in prompts.values():
            torch.testing.assert_close(p.std(), torch.tensor(0.3), rtol=0.1, atol=0)


@pytest.mark.parametrize("update", ["replace", "carry"])
def test_vocabulary(tools, update):
    model = tools.tuned(randomized=False, init="vocabulary", init_token_ids=[7, 9], textual_update=update)
    table = model.get_input_embeddings().weight[[7, 9, 7]]
    _, textual, _ = tools.prompts_of(model)
    assert torch.equal(textual[0], table)
    assert all(torch.equal(textual[j], table if update == "replace" else 0 * table) for j in (1, 2))


WORDS = [11, 22, 33, 44]


@torch.no_grad()
@pytest.mark.parametrize("images", [(1,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        {"textual_update": "replace"},
        {"textual_update": "carry"},
        {"textual_update": "carry", "textual_position": "before_instruction"},
        {"textual_update": "replace", "textual_layers": [0, 1]},
    ],
    ids=str,
)
def test_instruction_starts_at_the_model_told_in_words(tools, case, images):
    """Before any training the model equals the base model that reads the words in the place of the slots."""
    model = tools.tuned(
        randomized=False, init="instruction", init_token_ids=WORDS, num_textual_prompts=4, num_visual_prompts=0, **case
    )
    host, batch = tools.make_host(), tools.make_batch(images)
    logits = model(**batch).logits
    for r, (row, keep) in enumerate(tools.split(batch, images)):
        ids = row["input_ids"][0]
        at = 0
        if "textual_position" in case and images[r]:
            at = int((ids == tools.IMAGE).nonzero().max()) + 1
        told = torch.cat([ids[:at], torch.tensor(WORDS), ids[at:]])[None]
        expected = host(**dict(row, input_ids=told, attention_mask=torch.ones_like(told))).logits[0]
        tools.assert_close(logits[r][keep], torch.cat([expected[:at], expected[at + 4 :]]))


def test_from_text(tools):
    def tokenizer(text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(c) - 90 for c in text]}

    config = M2PTConfig.from_text(tokenizer, "look")
    assert (config.init, config.num_textual_prompts, config.init_text) == ("instruction", 4, "look")
    assert config.init_token_ids == [18, 21, 21, 17]
    words = M2PTConfig.from_text(tokenizer, "look", init="vocabulary", num_visual_prompts=3)
    assert (words.num_textual_prompts, words.num_visual_prompts) == (10, 3)
    tools.tuned(randomized=False, **{k: getattr(config, k) for k in ("init", "init_token_ids", "num_textual_prompts")})
