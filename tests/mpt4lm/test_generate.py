"""Generation with both kinds of LLM: caches, beams, rows without pictures, and what must not mix up silently."""

import copy

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from mmpt.mpt4lm import VisionBesideLM

CASES = [{}, {"num_instruction_tokens": 0}, {"condition_on_question": False, "adapter_placement": "mlp"}]
LMS = ["llama", "t5"]


def inputs(batch):
    return {k: v for k, v in batch.items() if k != "decoder_input_ids"}


def generate(model, batch, **kwargs):
    kwargs = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True} | kwargs
    return model.generate(**inputs(batch), **kwargs)


def greedy(model, batch, steps):
    """Tokens and logits of decoding without any cache, written out; the question stays what was asked."""
    batch, scores, encoder_decoder = inputs(batch), [], model.config.is_encoder_decoder
    said = torch.zeros(len(batch["input_ids"]), 1, dtype=torch.long)
    question = batch["attention_mask"]
    for _ in range(steps):
        more = {"decoder_input_ids": said} if encoder_decoder else {"question_mask": question}
        scores.append(model(**batch, **more, use_cache=False).logits[:, -1])
        token = scores[-1].argmax(-1, keepdim=True)
        said = torch.cat([said, token], 1)
        if not encoder_decoder:
            batch["input_ids"] = torch.cat([batch["input_ids"], token], 1)
            batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(token)], 1)
    return said if encoder_decoder else batch["input_ids"], scores


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("has", [(1,), (1, 0, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("lm", LMS)
def test_greedy(tools, lm, has, case):
    model, batch = tools.tuned(tools.make_host(lm=lm), **case), tools.make_batch(has)
    tokens, scores = greedy(model, batch, 5)
    for kwargs in ({}, {"use_cache": False}):
        out = generate(model, batch, **kwargs)
        assert torch.equal(out.sequences, tokens)
        for mine, expected in zip(out.logits, scores, strict=True):
            tools.assert_close(mine, expected, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_batch_equals_single(tools, lm):
    model, has = tools.tuned(tools.make_host(lm=lm)), (0, 1, 1)
    batch = tools.make_batch(has)
    together = generate(model, batch)
    first = together.logits[0]
    assert min((first[a] - first[b]).abs().max() for a, b in [(0, 1), (0, 2), (1, 2)]) > 0.1
    for r, (row, _) in enumerate(tools.split(batch, has)):
        alone = generate(model, row)
        assert torch.equal(alone.sequences[0, -5:], together.sequences[r, -5:])
        for mine, expected in zip(alone.logits, together.logits, strict=True):
            tools.assert_close(mine[0], expected[r], atol=2e-5)
        ids = row.pop("input_ids")
        assert torch.equal(model.generate(ids, **row, max_new_tokens=5, do_sample=False), alone.sequences)


@torch.no_grad()
@pytest.mark.parametrize("has", [(1,), (1, 0, 1)], ids=str)
@pytest.mark.parametrize("lm", LMS)
def test_beams(tools, lm, has):
    """Scores of the beams are those of teacher forcing, for every row and beam; cache or no cache."""
    model, batch = tools.tuned(tools.make_host(lm=lm)), tools.make_batch(has)
    kwargs = dict(num_beams=3, num_return_sequences=3, output_scores=True, length_penalty=0.0)
    out = generate(model, batch, **kwargs)
    assert torch.equal(generate(model, batch, use_cache=False, **kwargs).sequences, out.sequences)
    for r, (row, _) in enumerate(tools.split(batch, has)):
        for beam in range(3):
            sequence = out.sequences[3 * r + beam]
            tokens = sequence[-5:]
            if lm == "t5":
                full = dict(row, decoder_input_ids=sequence[None])
            else:
                ids = torch.cat([row["input_ids"], tokens[None]], 1)
                full = dict(
                    row, input_ids=ids, attention_mask=torch.ones_like(ids), question_mask=row["attention_mask"]
                )
            logp = model(**full).logits[0, -6:-1].log_softmax(-1)
            tools.assert_close(out.sequences_scores[3 * r + beam], logp.gather(1, tokens[:, None]).sum(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_disabled_is_the_text_only_llm(tools, lm):
    """With any number of pictures and in every mode, the LLM by itself; the host without an adapter too."""
    batch, host = tools.make_batch((1, 0), lm=lm), tools.make_host(lm=lm)
    text = {k: v for k, v in batch.items() if k not in ("pixel_values", "has_image")}
    model = tools.tuned(tools.make_host(lm=lm))
    expected, said = host.language_model(**text).logits, host.language_model.generate(**inputs(text), max_new_tokens=4)
    assert torch.equal(host(**batch).logits, expected)
    assert torch.equal(host.generate(**inputs(batch), max_new_tokens=4), said)
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, expected)
        for kwargs in ({}, {"num_beams": 2}, {"use_cache": False}):
            said = host.language_model.generate(**inputs(text), max_new_tokens=4, **kwargs)
            assert torch.equal(model.generate(**inputs(batch), max_new_tokens=4, **kwargs), said)


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_padding_found_by_generate(tools, lm):
    """Without a mask generate tells padding by its token, as transformers does."""
    model, batch = tools.tuned(tools.make_host(lm=lm)), tools.make_batch((1, 1))
    expected = generate(model, batch).logits
    del batch["attention_mask"]
    for mine, theirs in zip(generate(model, batch).logits, expected, strict=True):
        assert torch.equal(mine, theirs)


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_a_mask_of_booleans(tools, lm):
    model, batch = tools.tuned(tools.make_host(lm=lm)), tools.make_batch((1, 0, 1))
    masked = batch | {"attention_mask": batch["attention_mask"].bool()}
    assert torch.equal(generate(model, masked).sequences, generate(model, batch).sequences)


@torch.no_grad()
def test_assisted(tools):
    """Drafted tokens that are cut off again do not take prompts with them."""
    model, batch = tools.tuned(), tools.make_batch((1,))
    batch["input_ids"][0, -4:] = torch.tensor([7, 8, 7, 8])
    expected = generate(model, batch, max_new_tokens=12).sequences
    out = generate(model, batch, max_new_tokens=12, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    assert torch.equal(out.sequences, expected)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_generate_continues_a_conversation(tools, case):
    """generate() goes on from a cache that holds prompts, made by the first question, given the whole conversation."""
    model, batch = tools.tuned(**case), tools.make_batch((1, 0))
    cache = DynamicCache()
    first = generate(model, batch, past_key_values=cache).sequences
    ids = torch.cat([first, torch.tensor([[9, 8, 7, 6, 11]] * 2)], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 10, dtype=torch.long)], 1)
    whole = dict(batch, input_ids=ids, attention_mask=mask)
    expected = generate(model, whole, question_mask=batch["attention_mask"])
    out = generate(model, {"input_ids": ids, "attention_mask": mask}, past_key_values=cache)
    assert torch.equal(out.sequences, expected.sequences)
    for mine, theirs in zip(out.logits, expected.logits, strict=True):
        tools.assert_close(mine, theirs, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("positions", [True, False])
def test_forward_in_two_parts(tools, positions, padding):
    """Plain forward with a cache: with or without positions, and with the mask that a caller would give."""
    model, has = tools.tuned(), (1, 0, 1)
    batch = tools.make_batch(has, padding)
    pos = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    question = batch["attention_mask"][:, :-3]
    expected = model(**batch, question_mask=question).logits[:, -3:]
    head = {k: v[:, :-3] if k in ("input_ids", "attention_mask") else v for k, v in batch.items()}
    head_pos, tail_pos = ({"position_ids": pos[:, :-3]}, {"position_ids": pos[:, -3:]}) if positions else ({}, {})
    cache = model(**head, **head_pos, use_cache=True).past_key_values
    tail = {"input_ids": batch["input_ids"][:, -3:], "attention_mask": batch["attention_mask"]}
    mine = model(**tail, **tail_pos, past_key_values=copy.deepcopy(cache)).logits
    keep = batch["attention_mask"][:, -3:].bool()
    tools.assert_close(mine[keep], expected[keep])
    with pytest.raises(ValueError, match="pass the mask of all"):
        model(input_ids=tail["input_ids"], attention_mask=tail["attention_mask"][:, :-1], past_key_values=cache)


@torch.no_grad()
def test_shared_cache(tools):
    """Rows of a cache chosen by `select_rows`, some twice, keep their prompts: mask and positions go with them."""
    from mmpt.m2pt.slots import added_columns, select_rows

    model, batch = tools.tuned(), tools.make_batch((1, 0))
    rows, token = torch.tensor([1, 0, 1]), torch.tensor([[5], [6]])
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    cache = model(**batch, use_cache=True).past_key_values
    assert added_columns(cache) == 3 + 4
    other = copy.deepcopy(cache)
    expected = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits[rows]
    select_rows(other, rows)
    tools.assert_close(model(input_ids=token[rows], attention_mask=mask[rows], past_key_values=other).logits, expected)


@torch.no_grad()
def test_refusals(tools):
    """What cannot be right says so."""
    model, batch = tools.tuned(), tools.make_batch((1,))
    with pytest.raises(ValueError, match="static cache"):
        generate(model, batch, cache_implementation="static")
    with pytest.raises(ValueError, match="attention_mask"):
        model(**dict(batch, attention_mask=torch.ones(1, 1, 5, 5)))
    with pytest.raises(ValueError, match="holds 2 pictures for 1 rows: give one a row"):
        model(**dict(batch, pixel_values=batch["pixel_values"].repeat(2, 1, 1, 1)))
    with pytest.raises(ValueError, match="Row 0 has no question"):
        model(**batch, labels=batch["input_ids"])
    cache = model(**batch, use_cache=True).past_key_values
    token = {"input_ids": torch.tensor([[5]])}
    with pytest.raises(ValueError, match="first call of a cache"):
        model(**batch, past_key_values=copy.deepcopy(cache))
    with model.disable_adapter():
        with pytest.raises(ValueError, match="start from an empty cache"):
            model(**token, past_key_values=cache)
        plain = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="start from an empty cache"):
        model(**token, past_key_values=plain)


@torch.no_grad()
def test_prompts_do_not_slip_out_of_a_sliding_window(tools):
    """A batch equals its rows as long as all columns are within a window, and is refused from there on."""
    sizes = dict(hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=97)
    torch.manual_seed(0)
    llm = MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=2, sliding_window=18, eos_token_id=None))
    host = VisionBesideLM.of(tools.make_host().vision_tower, llm.eval())
    model, batch = tools.tuned(host), tools.make_batch((1, 0, 1))  # 9 columns behind 3 + 4 of prompts
    together = generate(model, batch, max_new_tokens=3).logits
    for r, (row, _) in enumerate(tools.split(batch, (1, 0, 1))):
        for mine, expected in zip(generate(model, row, max_new_tokens=3).logits, together, strict=True):
            tools.assert_close(mine[0], expected[r])
    for call in (
        lambda: generate(model, batch, max_new_tokens=4),
        lambda: generate(model, tools.make_batch((1,) * 5)),
    ):
        with pytest.raises(
            ValueError, match="sliding windows of 18, out of which the prompts would slip: give shorter"
        ):
            call()


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_exception_leaves_no_trace(tools, lm):
    """An error in the tower, in the LLM or behind it does not reach the next call."""
    model, batch, other = (
        tools.tuned(tools.make_host(lm=lm)),
        tools.make_batch((1, 1), lm=lm),
        tools.make_batch((0, 1), seed=5, lm=lm),
    )
    expected = model(**other).logits
    host = model.get_base_model()

    def fail(*_):
        raise RuntimeError("out of memory")

    llm = host.language_model
    block = llm.encoder.block[1] if lm == "t5" else llm.model.layers[1]
    for module in (host.vision_tower, block, llm.lm_head):
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**batch)
        with pytest.raises(RuntimeError, match="out of memory"):
            model.generate(**inputs(batch), max_new_tokens=2)
        handle.remove()
        assert torch.equal(model(**other).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_interleaved_threads(tools, lm):
    """Several questions through one model at the same time do not see each other's pictures."""
    from concurrent.futures import ThreadPoolExecutor

    model = tools.tuned(tools.make_host(lm=lm))
    batches = [tools.make_batch(has, seed=s) for s, has in enumerate([(1, 1), (0, 1), (1,), (0,)])]
    expected = [generate(model, b).sequences for b in batches]
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda b: generate(model, b).sequences, batches * 3))
    for out, sequence in zip(outs, expected * 3, strict=True):
        assert torch.equal(out, sequence)


@torch.no_grad()
@pytest.mark.parametrize("lm", LMS)
def test_switching_lengths_needs_nothing_of_the_caller(tools, lm):
    """Adapters of other lengths run on the same inputs, also in generate."""
    from mmpt.mpt4lm import MPT4LMConfig

    host, batch = tools.make_host(lm=lm), tools.make_batch((0, 1, 1))
    model = tools.tuned(host)
    other = tools.SMALL | {"num_visual_prompts": 6, "num_instruction_tokens": 1, "adapter_placement": "mlp"}
    model.add_adapter("long", MPT4LMConfig(**other))
    tools.randomize(model, seed=3, adapter="long")
    first = generate(model, batch).logits[-1]
    model.set_adapter("long")
    long = generate(model, batch).logits[-1]
    assert not torch.equal(first, long)
    model.set_adapter("default")
    assert torch.equal(generate(model, batch).logits[-1], first)
