"""The contract on every family beside LLaVA: literal reference, padding, caches, beams, gradients, files, copies."""

import copy
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import NoMatchingPeftModuleError
from tiny_hosts import FAMILIES, IMAGE, PACKED, QWEN, collate, make_host, make_rows, projector_of
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from mmpt.m2pt import M2PTConfig

reference = SimpleNamespace(**run_path(str(Path(__file__).with_name("host_reference.py"))))
CASES = [
    {},
    {"visual_update": "carry", "textual_update": "carry", "textual_position": "before_instruction"},
    {"visual_readout": "parameter", "tune_projector": False},
    {"visual_readout": "none", "textual_layers": [1, 2]},
    {"visual_layers": [1], "textual_layers": [1, 2], "textual_position": "before_instruction"},
]


OF_ITS_OWN = [family for family in FAMILIES if family not in ("idefics3", "paligemma")]  # others are built alike


@pytest.fixture(params=OF_ITS_OWN)
def family(request):
    return request.param


def expected_logits(tools, host, model, row):
    config = model.peft_config["default"]
    visual, textual, projector = tools.prompts_of(model)
    projector = projector or projector_of(host)
    if row.family in QWEN:
        runs = reference.packed_features(host, config, row.crops, row.sizes, visual, projector)
        return reference.language(host, config, torch.tensor(row.tokens), runs, textual, row.blocks(), row.sizes)
    packed = {"sizes": torch.tensor(row.sizes), "counts": row.counts} if row.family in PACKED else {}
    runs = reference.features(host, config, row.crops, visual, projector, **packed)
    return reference.language(host, config, torch.tensor(row.tokens), runs, textual, row.blocks())


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "case"), [*((f, {}) for f in FAMILIES), *((f, case) for f in OF_ITS_OWN for case in CASES[1:])], ids=str
)
def test_equals_reference(tools, family, case):
    """Every row of a batch, padded on either side, with none, one and two pictures among the words."""
    model, host, rows = tools.tuned(make_host(family), **case), make_host(family), make_rows(family)
    expected = [expected_logits(tools, host, model, row) for row in rows]
    for padding in ("left", "right"):
        batch = collate(rows, padding)
        logits = model(**batch).logits
        assert logits.shape[:2] == batch["input_ids"].shape
        for mine, keep, theirs in zip(logits, batch["attention_mask"].bool(), expected, strict=True):
            tools.assert_close(mine[keep], theirs)


@torch.no_grad()
def test_crops_with_padding(tools):
    """Idefics3 hides the padding of a crop inside its tower; prompts are seen all the same."""
    model, host, rows = tools.tuned(make_host("idefics3")), make_host("idefics3"), make_rows("idefics3", [(0,)])
    visual, textual, projector = tools.prompts_of(model)
    config, shown = model.peft_config["default"], torch.ones(3, 32, 32, dtype=torch.bool)
    shown[1, :, 16:] = False
    runs = reference.features(host, config, rows[0].crops, visual, projector, shown=shown)
    expected = reference.language(host, config, torch.tensor(rows[0].tokens), runs, textual, rows[0].blocks())
    logits = model(**collate(rows), pixel_attention_mask=shown[None]).logits[0]
    tools.assert_close(logits, expected)
    assert (model(**collate(rows)).logits[0] - expected).abs().max() > 1e-3


@torch.no_grad()
def test_nothing_added_is_the_base(tools, family):
    base, batch = make_host(family), collate(make_rows(family))
    expected = base(**batch).logits
    plain = tools.tuned(make_host(family), randomized=False, num_textual_prompts=0, num_visual_prompts=0)
    tools.assert_close(plain(**batch).logits, expected)
    host = make_host(family)
    model = tools.tuned(host)
    assert (model(**batch).logits - expected).abs().max() > 0.1
    with model.disable_adapter():
        tools.assert_close(model(**batch).logits, expected)
        tokens = generate(model, batch, num_beams=2).sequences
    assert torch.equal(tokens, generate(base, batch, num_beams=2).sequences)
    assert model.unload() is host and host.state_dict().keys() == base.state_dict().keys()
    assert "get_image_features" not in host.model.__dict__
    tools.assert_close(host(**batch).logits, expected)


def generate(model, batch, **kwargs):
    options = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    options |= {"suppress_tokens": [IMAGE]}  # which without a cache would be taken for a picture
    return model.generate(**copy.deepcopy(batch), **options | kwargs)


@torch.no_grad()
@pytest.mark.parametrize("case", [CASES[1], {"num_kv_prompts": 2, "num_feature_prompts": 1}], ids=str)
def test_generate(tools, family, case):
    """With the cache as without, a row as in its batch, and beams that keep their pictures."""
    model, rows = tools.tuned(make_host(family), **case), make_rows(family)
    batch = collate(rows)
    out, plain = generate(model, batch), generate(model, batch, use_cache=False)
    assert torch.equal(out.sequences, plain.sequences)
    for mine, theirs in zip(out.logits, plain.logits, strict=True):
        tools.assert_close(mine, theirs, atol=2e-5)
    for row, tokens in zip(rows, out.sequences):
        assert torch.equal(generate(model, collate([row])).sequences[0, -4:], tokens[-4:])
    beams = generate(model, batch, num_beams=2, num_return_sequences=2, output_scores=True, length_penalty=0.0)
    for n, (tokens, score) in enumerate(zip(beams.sequences, beams.sequences_scores)):
        full = copy.copy(rows[n // 2])
        full.tokens, full.types = (
            full.tokens + tokens[-4:].tolist(),
            full.types + [int(family not in ("gemma3", *QWEN))] * 4,
        )
        logp = model(**collate([full])).logits[0, -5:-1].log_softmax(-1)
        tools.assert_close(logp.gather(1, tokens[-4:, None]).sum(), score, atol=1e-4)


@torch.no_grad()
def test_forward_in_two_parts(tools, family):
    model, batch = tools.tuned(make_host(family), **CASES[4]), collate(make_rows(family, after=6))
    expected = model(**batch).logits[:, -2:]
    lengths = batch["input_ids"].shape[1]
    head = {k: v[:, :-2] if v.ndim == 2 and v.shape[1] == lengths else v for k, v in batch.items()}
    cache = model(**head, use_cache=True).past_key_values
    tail = {"input_ids": batch["input_ids"][:, -2:], "attention_mask": batch["attention_mask"]}
    tools.assert_close(model(**tail, past_key_values=cache).logits, expected, atol=2e-5)


def test_training_and_files(tools, family, tmp_path):
    """Gradients reach all of the adapter and nothing else, in every mode the same; files and copies are the model."""
    model, batch = tools.tuned(make_host(family)), collate(make_rows(family))
    host, found = model.get_base_model(), []
    for mode in ("evaluation", "training", "checkpointing"):
        model.train(mode != "evaluation")
        if mode == "checkpointing":
            host.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(**batch, labels=tools.labels_of(batch)).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradients.keys() == trainable for gradients in found) and all(".m2pt." in n for n in trainable)
    assert all(g.abs().sum() > 0 for g in found[0].values())
    for gradients in found[1:]:
        for name, gradient in found[0].items():
            tools.assert_close(gradients[name], gradient, atol=1e-6)

    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch).logits
        loaded, copied = PeftModel.from_pretrained(make_host(family), tmp_path), copy.deepcopy(model)
        for other in (loaded, copied):
            tools.assert_close(other(**batch).logits, expected)
        tools.randomize(copied, seed=9)
        assert (copied(**batch).logits - expected).abs().max() > 1e-3
        tools.assert_close(model(**batch).logits, expected)


def test_segments(tools):
    """Runs of different lengths, several a row."""
    model, rows = tools.tuned(make_host("llava_next")), make_rows("llava_next")
    batch = collate(rows)
    found = model.base_model.segments(**batch)
    assert found.shape[1] == model(**batch, output_hidden_states=True).hidden_states[0].shape[1]
    for row, kinds in zip(rows, found):
        assert (kinds == 1).sum() == 3 and (kinds == 2).sum() == 2 * len(row.sizes)
        assert (kinds == 3).sum() == row.tokens.count(IMAGE)


def test_a_family_that_needs_a_newer_transformers(monkeypatch):
    host = make_host("smolvlm")
    monkeypatch.setattr("transformers.__version__", "5.20.2")
    with pytest.raises(NoMatchingPeftModuleError, match="tunes SmolVLM with transformers 5.21 or newer"):
        get_peft_model(host, M2PTConfig())
    assert get_peft_model(make_host("idefics3"), M2PTConfig())


def test_refusals(tools):
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=50)
    config = Qwen3VLConfig(text_config=size, vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2})
    with torch.device("meta"):
        deep = Qwen3VLForConditionalGeneration(config)
    with pytest.raises(NoMatchingPeftModuleError, match=r"cannot tune Qwen3VL\w+ \(qwen3_vl\): inner layers of its"):
        get_peft_model(deep, M2PTConfig())
    model, batch = tools.tuned(make_host("llava_onevision")), collate(make_rows("llava_onevision"))
    with pytest.raises(ValueError, match="leave videos out"):
        model(**batch, pixel_values_videos=torch.zeros(1, 1, 3, 24, 24))
