"""Equal to the literal reference of the equations: every field of the configuration, every kind of batch."""

from pathlib import Path
from runpy import run_path

import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import GemmaConfig, GemmaForCausalLM

from mmpt.mpt4lm import VisionBesideLM

reference = run_path(str(Path(__file__).with_name("reference.py")))["forward"]
HOSTS = [("clip", "llama"), ("siglip", "llama"), ("clip", "t5")]
CASES = [
    {},
    {"condition_on_question": False},
    {"num_visual_prompts": 0},
    {"num_visual_prompts": 1, "num_instruction_tokens": 7},
    {"num_instruction_tokens": 0},
    {"adapter_rank": 0},
    {"adapter_placement": "attention"},
    {"adapter_placement": "mlp"},
    {"num_visual_prompts": 0, "num_instruction_tokens": 0},
    {"cross_attention_width": 32, "cross_attention_heads": 1},  # as wide as the tower
]


def check(tools, model, host, batch, has, **kwargs):
    config, tensors = model.peft_config["default"], get_peft_model_state_dict(model)
    logits = model(**batch, **kwargs).logits
    assert logits.shape[:2] == batch.get("decoder_input_ids", batch["input_ids"]).shape
    for r, (row, keep) in enumerate(tools.split(batch, has)):
        said = row.get("decoder_input_ids", [None])[0]
        expected = reference(host, config, tensors, row["input_ids"][0], row.get("pixel_values"), said)
        tools.assert_close(logits[r][keep] if said is None else logits[r], expected)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("tower", "lm"), HOSTS)
def test_equals_reference(tools, tower, lm, case):
    has = (1, 0, 1)
    host, batch = tools.make_host(tower, lm), tools.make_batch(has, lm=lm)
    base = host(**batch).logits
    model = tools.tuned(tools.make_host(tower, lm), **case)
    check(tools, model, host, batch, has)
    assert (model(**batch).logits - base).abs().amax((1, 2)).min() > 0.1  # and it does something, in every row


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("has", [(1,), (0,), (1, 1, 1), (0, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("case", [{}, {"num_instruction_tokens": 0}], ids=str)
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_batches(tools, lm, case, has, padding):
    model, host = tools.tuned(tools.make_host(lm=lm), **case), tools.make_host(lm=lm)
    batch = tools.make_batch(has, padding, lm=lm)
    check(tools, model, host, batch, has)
    if lm == "llama":
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        check(tools, model, host, batch, has, position_ids=positions)
        check(tools, model, host, batch, has, position_ids=positions + 5)
    elif len(has) == 1:
        del batch["attention_mask"]
        expected = model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits
        tools.assert_close(model(**batch).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_eager_attention(tools, lm):
    has = (1, 0, 1)
    model = tools.tuned(tools.make_host(lm=lm, attention="eager"))
    check(tools, model, tools.make_host(lm=lm), tools.make_batch(has, lm=lm), has)


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_inputs_embeds(tools, lm):
    model, batch = tools.tuned(tools.make_host(lm=lm)), tools.make_batch((1, 0), lm=lm)
    embeds = dict(batch, inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))
    del embeds["input_ids"]
    tools.assert_close(model(**embeds).logits, model(**batch).logits)


@torch.no_grad()
def test_answers_are_not_read_before_they_are_said(tools):
    """The queries stand before the text and read it: an answer among it must not reach the logits that precede it."""
    model, host, batch = tools.tuned(), tools.make_host(), tools.make_batch((1, 1), "right")
    config, tensors = model.peft_config["default"], get_peft_model_state_dict(model)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][:, 4] = 7
    for marks in ({"labels": labels}, {"question_mask": torch.ones(2, 3)}, {"question_mask": labels == -100}):
        logits = model(**batch, **marks).logits
        tools.assert_close(model(**other, **marks).logits[:, :4], logits[:, :4], atol=1e-6)
        for r, (row, keep) in enumerate(tools.split(batch, (1, 1))):
            question = torch.arange(len(row["input_ids"][0])) < 3
            expected = reference(host, config, tensors, row["input_ids"][0], row["pixel_values"], question=question)
            tools.assert_close(logits[r][keep], expected)
    assert (model(**other).logits[:, 2] - model(**batch).logits[:, 2]).abs().max() > 1e-3  # all of it is the question
    tools.assert_close(
        model(**batch, labels=labels, question_mask=batch["attention_mask"]).logits, model(**batch).logits
    )


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_the_prompts_depend_on_the_question(tools, lm):
    """Unless they are told not to."""
    batch = tools.make_batch((1, 1), lm=lm)
    layer_inputs = []
    for conditioned in (True, False):
        model = tools.tuned(tools.make_host(lm=lm), condition_on_question=conditioned)
        handle = model.base_model.layer.mpt4lm_cross_attention["default"].register_forward_hook(
            lambda module, args, output: layer_inputs.append(output)
        )
        one_picture = dict(batch, pixel_values=batch["pixel_values"][:1].repeat(2, 1, 1, 1))
        model(**one_picture)
        handle.remove()
    conditioned, unconditioned = layer_inputs
    assert (conditioned[0] - conditioned[1]).abs().max() > 1e-2
    tools.assert_close(unconditioned[0], unconditioned[1])


@torch.no_grad()
def test_only_a_question_that_is_read_must_be_there(tools):
    """Where all of a row is labelled, its own words cannot tell the queries anything."""
    batch = tools.make_batch((1, 0))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    unread = tools.tuned(condition_on_question=False)
    assert torch.equal(unread(**batch, labels=labels).logits, unread(**batch).logits)
    labels[0, :-1] = -100  # the row with a picture
    model = tools.tuned()
    logits = model(**batch, labels=labels).logits[1]
    tools.assert_close(logits, model(**batch).logits[1])
    labels[0] = batch["input_ids"][0]
    with pytest.raises(ValueError, match="Row 0 has no question"):
        model(**batch, labels=labels)


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_pixels_that_are_no_picture_are_not_looked_at(tools, lm):
    model, batch = tools.tuned(tools.make_host(lm=lm)), tools.make_batch((1, 0, 1), lm=lm)
    expected = model(**batch).logits
    batch["pixel_values"][1] = torch.nan
    assert torch.equal(model(**batch).logits, expected)


@torch.no_grad()
def test_labels_and_loss(tools):
    model, batch = tools.tuned(), tools.make_batch((1, 0))
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    out = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    tools.assert_close(out.loss, expected, atol=1e-6)
    kept = model(**batch, question_mask=labels == -100, logits_to_keep=2).logits
    tools.assert_close(kept, out.logits[:, -2:], atol=1e-6)

    model, batch = tools.tuned(tools.make_host(lm="t5")), tools.make_batch((1, 0), lm="t5")
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    assert batch["decoder_input_ids"].tolist() == [[0, 5, 6], [0, 7, 0]]
    out = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    tools.assert_close(out.loss, expected, atol=1e-6)


@torch.no_grad()
def test_inner_outputs(tools):
    """Hidden states and attentions hold the prompts in front; a tuple has the caller's length too."""
    model, batch = tools.tuned(tools.make_host(attention="eager")), tools.make_batch((1, 0))
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    T = batch["input_ids"].shape[1]
    layer = model.base_model.layer
    assert out.hidden_states[0].shape[1] == 3 + 4 + T and out.logits.shape[1] == T
    tools.assert_close(out.hidden_states[0][1, :3], layer.mpt4lm_instruction["default"])
    assert out.attentions[1][1, :, 8:, 3:7].sum() == 0 < out.attentions[1][0, :, 8:, 3:7].sum()
    tools.assert_close(model(**batch, return_dict=False)[0], out.logits)


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_starts_from_words(tools, lm):
    """With an instruction alone, tuning starts at the LLM that is told those words."""
    ids = [11, 12, 13, 14]
    parts = dict(num_visual_prompts=0, num_instruction_tokens=4)
    model = tools.tuned(tools.make_host(lm=lm), randomized=False, init_token_ids=ids, **parts)
    batch, host = tools.make_batch((1, 1), "right", lm=lm), tools.make_host(lm=lm)
    told = dict(batch, input_ids=torch.cat([torch.tensor([ids] * 2), batch["input_ids"]], 1))
    told["attention_mask"] = torch.cat([torch.ones(2, 4, dtype=torch.long), batch["attention_mask"]], 1)
    expected = host(**told).logits
    expected = expected[:, 4:] if lm == "llama" else expected
    keep = batch["attention_mask"].bool() if lm == "llama" else ...
    tools.assert_close(model(**batch).logits[keep], expected[keep])


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_adapters_start_as_the_identity(tools, lm):
    batch = tools.make_batch((1, 0), lm=lm)
    model = tools.tuned(tools.make_host(lm=lm), randomized=False)
    logits = model(**batch).logits
    model.base_model.layer.mpt4lm_adapters.clear()
    tools.assert_close(model(**batch).logits, logits)
    alone = tools.tuned(tools.make_host(lm=lm), randomized=False, num_visual_prompts=0, num_instruction_tokens=0)
    tools.assert_close(alone(**batch).logits, tools.make_host(lm=lm)(**batch).logits)


def test_prompts_start_as_large_as_token_embeddings(tools):
    host = tools.make_host()
    with torch.no_grad():
        host.get_input_embeddings().weight.mul_(7)
    size = host.get_input_embeddings().weight.square().mean().sqrt()
    model = tools.tuned(host, randomized=False, num_visual_prompts=64, num_instruction_tokens=64)
    layer = model.base_model.layer
    prompts = layer.mpt4lm_cross_attention["default"](
        torch.randn(2, 5, 48), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 9, 32)
    )
    for vectors in (layer.mpt4lm_instruction["default"], prompts):
        assert 0.8 < vectors.square().mean().sqrt() / size < 1.25


@torch.no_grad()
def test_an_llm_that_scales_its_embeddings(tools):
    """Gemma's leave their module larger than they are stored; so do the words and sizes that prompts start from."""
    torch.manual_seed(0)
    host = tools.make_host()
    sizes = dict(hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, head_dim=12)
    llm = GemmaForCausalLM(GemmaConfig(**sizes, num_key_value_heads=2, vocab_size=97)).eval()
    words, ids = torch.tensor([[11, 12, 13]]), torch.tensor([[5, 6, 7, 8]])
    expected = llm(torch.cat([words, ids], 1)).logits[:, 3:]
    size = llm.get_input_embeddings()(torch.arange(97)).square().mean().sqrt()
    host = VisionBesideLM.of(host.vision_tower, llm)
    model = tools.tuned(host, randomized=False, num_instruction_tokens=3, init_token_ids=words[0].tolist())
    tools.assert_close(model(input_ids=ids).logits, expected)
    drawn = tools.tuned(model.unload(), randomized=False, num_instruction_tokens=64).base_model.layer
    assert 0.8 < drawn.mpt4lm_instruction["default"].square().mean().sqrt() / size < 1.25
