"""Generation: caches, beams, images encoded before the prefill, and everything that must not mix up silently."""

import copy

import pytest
import torch
from transformers import DynamicCache

IMAGE = 90
CASES = [{}, {"textual_position": "before_instruction", "textual_update": "carry"}, {"textual_layers": [1, 2]}]
INSIDE = [{"num_textual_prompts": n, "num_kv_prompts": 4, "num_feature_prompts": 3} for n in (0, 2)]


def greedy(model, batch, steps):
    """Tokens and logits of decoding without any cache, written out."""
    batch, scores = dict(batch), []
    for _ in range(steps):
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        scores.append(model(**batch, position_ids=positions, use_cache=False).logits[:, -1])
        allowed = scores[-1].index_fill(1, torch.tensor(IMAGE), -torch.inf)  # no picture comes with a said placeholder
        batch["input_ids"] = torch.cat([batch["input_ids"], allowed.argmax(-1, keepdim=True)], 1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], batch["attention_mask"][:, -1:]], 1)
    return batch["input_ids"], scores


def generate(model, batch, **kwargs):
    kwargs = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True} | kwargs
    kwargs["suppress_tokens"] = [IMAGE]
    return model.generate(**batch, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("images", [(1,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(("tower", "lm"), [("clip", "llama"), ("siglip", "qwen2")])
def test_greedy(tools, tower, lm, images, case):
    model, batch = tools.tuned(tools.make_host(tower, lm), **case), tools.make_batch(images)
    tokens, scores = greedy(model, batch, 5)
    for kwargs in ({}, {"use_cache": False}):
        out = generate(model, batch, **kwargs)
        assert torch.equal(out.sequences, tokens)
        for mine, expected in zip(out.logits, scores, strict=True):
            tools.assert_close(mine, expected, atol=2e-5)


@torch.no_grad()
def test_batch_equals_single(tools):
    model, images = tools.tuned(), (0, 1, 2)
    batch = tools.make_batch(images)
    together = generate(model, batch).sequences[:, -5:]
    for r, (row, _) in enumerate(tools.split(batch, images)):
        assert torch.equal(generate(model, row).sequences[0, -5:], together[r])


@torch.no_grad()
@pytest.mark.parametrize("images", [(1,), (0, 1, 2), (2, 1)], ids=str)
def test_beams_keep_their_pictures(tools, images):
    """Scores of the beams are those of teacher forcing, for every row and beam."""
    model, batch = tools.tuned(), tools.make_batch(images)
    out = generate(model, batch, num_beams=3, num_return_sequences=3, output_scores=True, length_penalty=0.0)
    for r, (row, _) in enumerate(tools.split(batch, images)):
        for beam in range(3):
            tokens = out.sequences[3 * r + beam, -5:]
            ids = torch.cat([row["input_ids"], tokens[None]], 1)
            full = dict(row, input_ids=ids, attention_mask=torch.ones_like(ids))
            logp = model(**full).logits[0, -6:-1].log_softmax(-1)
            expected = logp.gather(1, tokens[:, None]).sum()
            tools.assert_close(out.sequences_scores[3 * r + beam], expected, atol=1e-4)


@torch.no_grad()
def test_beams_without_prompts_in_the_text(tools):
    """No extra tokens: still the same code for beams as for the base model."""
    batch = tools.make_batch((2, 1))
    base, model = tools.make_host(), tools.tuned()
    with model.disable_adapter():
        expected = generate(base, batch, num_beams=2).sequences
        assert torch.equal(generate(model, batch, num_beams=2).sequences, expected)
    plain = tools.tuned(randomized=False, num_textual_prompts=0, num_visual_prompts=0)
    assert torch.equal(generate(plain, batch, num_beams=2).sequences, expected)


@torch.no_grad()
def test_assisted(tools):
    """Drafted tokens that are cut off again do not take slots with them."""
    model, batch = tools.tuned(), tools.make_batch((1,))
    batch["input_ids"][0, -4:] = torch.tensor([7, 8, 7, 8])
    expected = generate(model, batch, max_new_tokens=12).sequences
    out = generate(model, batch, max_new_tokens=12, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    assert torch.equal(out.sequences, expected)


@torch.no_grad()
def test_from_embeddings(tools):
    model, batch = tools.tuned(), tools.make_batch((1, 0))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    given = {k: v for k, v in batch.items() if k != "input_ids"} | {"inputs_embeds": embeds}
    for beams in (1, 2):
        expected = generate(model, batch, num_beams=beams).sequences[:, batch["input_ids"].shape[1] :]
        assert torch.equal(generate(model, given, num_beams=beams).sequences, expected)


@torch.no_grad()
def test_features_computed_by_the_caller(tools):
    model, batch = tools.tuned(), tools.make_batch((2, 1))
    features = model.get_base_model().get_image_features(batch["pixel_values"], return_dict=True)
    ready = {k: v for k, v in batch.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": features}}
    assert torch.equal(model(**copy.deepcopy(ready)).logits, model(**batch).logits)
    for kwargs in ({}, {"num_beams": 2}):
        expected = generate(model, batch, **kwargs).sequences
        assert torch.equal(generate(model, copy.deepcopy(ready), **kwargs).sequences, expected)
    with model.disable_adapter(), pytest.raises(ValueError, match="do not match"):
        model(**ready)
    with model.disable_adapter():
        ready["mm_encoder_outputs"] = {"image": model.get_base_model().get_image_features(batch["pixel_values"])}
    with pytest.raises(ValueError, match="must come from the adapter that is active"):
        model(**ready)
    with pytest.raises(ValueError, match="both pixel_values and mm_encoder_outputs"):
        model(**batch, mm_encoder_outputs=ready["mm_encoder_outputs"])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES + INSIDE, ids=str)
def test_generate_continues_a_conversation(tools, case):
    """generate() goes on from a cache that holds slots, given the whole conversation."""
    model, batch = tools.tuned(**case), tools.make_batch((1, 1), after=6)
    cache = DynamicCache()
    first = generate(model, batch, past_key_values=cache).sequences
    more = torch.tensor([[9, 8, 7, 6, 11]] * 2)
    ids = torch.cat([first, more], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 10, dtype=torch.long)], 1)
    expected = generate(model, {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]})
    out = generate(model, {"input_ids": ids, "attention_mask": mask}, past_key_values=cache)
    assert torch.equal(out.sequences, expected.sequences)
    for mine, theirs in zip(out.logits, expected.logits, strict=True):
        tools.assert_close(mine, theirs, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES + INSIDE, ids=str)
@pytest.mark.parametrize("positions", [True, False])
def test_forward_in_two_parts(tools, case, positions):
    """Plain forward with a cache: with or without positions and with the mask that a caller would give."""
    model, images = tools.tuned(**case), (0, 2)
    batch = tools.make_batch(images, after=8)
    pos = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = model(**batch).logits[:, -3:]
    head = {k: v if k == "pixel_values" else v[:, :-3] for k, v in batch.items()}
    head_pos, tail_pos = ({"position_ids": pos[:, :-3]}, {"position_ids": pos[:, -3:]}) if positions else ({}, {})
    cache = model(**head, **head_pos, use_cache=True).past_key_values
    tail = {"input_ids": batch["input_ids"][:, -3:], "attention_mask": batch["attention_mask"]}
    mine = model(**tail, **tail_pos, past_key_values=copy.deepcopy(cache)).logits
    tools.assert_close(mine, expected)
    with pytest.raises(ValueError, match="pass the mask of all"):
        model(input_ids=tail["input_ids"], attention_mask=tail["attention_mask"][:, :-1], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cache_that_was_cut(tools, case):
    """What is said next, in two calls, is as without a cache, whatever padding was cut off; prompts must stay."""
    model, batch = tools.tuned(**case), tools.make_batch((1, 1), "right", after=6)
    tail, n = torch.tensor([[5, 6, 7, 8]] * 2), batch["input_ids"].shape[1] - 5
    ids = torch.cat([batch["input_ids"][:, :n], tail], 1)
    mask = torch.cat([batch["attention_mask"][:, :n], torch.ones_like(tail)], 1)
    expected = model(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits[:, n:]
    cache = model(**batch, use_cache=True).past_key_values
    cache.crop(-5)
    for a, b in ((n, n + 2), (n + 2, n + 4)):
        mine = model(input_ids=ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
        tools.assert_close(mine, expected[:, a - n : b - n])
    cache.crop(9 - cache.get_seq_length())
    with pytest.raises(ValueError, match="cut to 9 columns, and prompts of 'default' were cut off: cut it behind"):
        model(input_ids=ids[:, :1], past_key_values=cache)


@torch.no_grad()
def test_refusals(tools):
    """What cannot be right says so."""
    model, batch = tools.tuned(), tools.make_batch((1,))
    with pytest.raises(ValueError, match="static cache"):
        generate(model, batch, cache_implementation="static")
    with pytest.raises(ValueError, match="attention_mask"):
        model(**dict(batch, attention_mask=torch.ones(1, 1, 17, 17)))
    with pytest.raises(ValueError, match="vision_feature_layer=-3"):
        model(**batch, vision_feature_layer=-3)
    cache = model(**batch, use_cache=True).past_key_values
    token = {"input_ids": torch.tensor([[5]])}
    with pytest.raises(ValueError, match="first call of a cache"):
        model(**batch, past_key_values=copy.deepcopy(cache))
    for size in (4, 64):
        with pytest.raises(ValueError, match="leave prefill_chunk_size out"):
            generate(model, batch, prefill_chunk_size=size)
    with model.disable_adapter():
        with pytest.raises(ValueError, match="start from an empty cache"):
            model(**token, past_key_values=cache)
        plain = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="start from an empty cache"):
        model(**token, past_key_values=plain)
    twice = dict(batch, pixel_values=batch["pixel_values"].repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="hold \\[9\\] image placeholders, but the 2 images want \\[9, 9\\]"):
        model(**twice)


@torch.no_grad()
def test_a_picture_that_comes_late(tools):
    """It has its place where it brings no tokens, unless textual prompts ought to follow it."""
    batch, cut = tools.make_batch((2,)), 4 + tools.PATCHES
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    for position in ("first", "before_instruction"):
        model = tools.tuned(visual_readout="none", textual_position=position)
        cache = model(input_ids=ids[:, :cut], pixel_values=pixels[:1], use_cache=True).past_key_values
        rest = {"input_ids": ids[:, cut:], "pixel_values": pixels[1:], "past_key_values": cache}
        if position == "first":
            tools.assert_close(model(**rest).logits, model(**batch).logits[:, cut:])
        else:
            with pytest.raises(ValueError, match="first call of a cache"):
                model(**rest)


@torch.no_grad()
def test_exception_leaves_no_trace(tools):
    """An error between encoder and LLM, or inside the LLM, does not reach the next call."""
    model, batch, other = tools.tuned(), tools.make_batch((1, 1)), tools.make_batch((0, 2), seed=5)
    expected = model(**other).logits
    lm = model.get_base_model().model.language_model

    def fail(*_):
        raise RuntimeError("out of memory")

    for module in (lm, lm.layers[1], model.get_base_model().model.multi_modal_projector):
        handle = module.register_forward_pre_hook(fail)
        for call in (model, model.generate):
            with pytest.raises(RuntimeError, match="out of memory"):
                call(**batch)
        handle.remove()
        assert torch.equal(model(**other).logits, expected)
    cache = DynamicCache()
    handle = lm.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**batch, past_key_values=cache)
    handle.remove()
    with pytest.raises(ValueError, match="start from an empty cache"):
        model(**batch, past_key_values=cache)


@torch.no_grad()
def test_interleaved_threads(tools):
    """Two conversations through one model at the same time do not see each other's pictures."""
    from concurrent.futures import ThreadPoolExecutor

    model = tools.tuned()
    batches = [tools.make_batch(images, seed=s) for s, images in enumerate([(1, 1), (0, 2), (2,), (1,)])]
    expected = [generate(model, b).sequences for b in batches]
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda b: generate(model, b).sequences, batches * 3))
    for out, sequence in zip(outs, expected * 3, strict=True):
        assert torch.equal(out, sequence)


@torch.no_grad()
def test_switching_lengths_needs_nothing_of_the_caller(tools):
    """Adapters of other lengths run on the same inputs, also in generate."""
    from mmpt.m2pt import M2PTConfig

    model, batch = tools.tuned(), tools.make_batch((0, 1, 2))
    model.add_adapter("long", M2PTConfig(num_textual_prompts=6, num_visual_prompts=4))
    tools.randomize(model, seed=3, adapter="long")
    first = generate(model, batch).logits[-1]
    model.set_adapter("long")
    long = generate(model, batch)
    alone = tools.tuned(randomized=False, num_textual_prompts=6, num_visual_prompts=4)
    tools.randomize(alone, seed=3)
    assert torch.equal(long.sequences, generate(alone, batch).sequences)
    model.set_adapter("default")
    assert torch.equal(generate(model, batch).logits[-1], first)


@torch.no_grad()
def test_language_model_that_drops_the_call(tools):
    """Prompts travel to the blocks as a keyword argument; an LLM that does not pass it on is told so, not skipped."""
    model, batch = tools.tuned(), tools.make_batch((1,))
    lm = model.get_base_model().model.language_model
    forward = lm.forward
    lm.forward = lambda m2pt_call=None, **kwargs: forward(**kwargs)
    with pytest.raises(RuntimeError, match="LlamaModel let 0 of 3 layers see their prompts"):
        model(**batch)
