"""Equal to the literal reference of the paper's equations: every field of the configuration, every kind of batch."""

from pathlib import Path
from runpy import run_path

import pytest
import torch

reference = run_path(str(Path(__file__).with_name("reference.py")))["forward"]

PAPER = {}
CASES = [
    PAPER,
    {"visual_update": "carry"},
    {"textual_update": "carry"},
    {"textual_position": "before_instruction"},
    {"textual_position": "before_instruction", "textual_update": "carry", "visual_update": "carry"},
    {"visual_readout": "parameter"},
    {"visual_readout": "none"},
    {"tune_projector": False},
    {"num_textual_prompts": 0},
    {"num_visual_prompts": 0},
    {"num_textual_prompts": 1, "num_visual_prompts": 7},
    {"textual_layers": "first", "visual_layers": "first"},
    {"textual_layers": "last", "visual_layers": "last"},
    {"textual_layers": "first_half", "visual_layers": "second_half"},
    {"textual_layers": [1], "visual_layers": [0, 2], "textual_update": "carry", "visual_update": "carry"},
    {"textual_layers": [1, 2], "textual_position": "before_instruction"},
    {"textual_layers": [0, 2], "visual_layers": [1], "visual_readout": "parameter"},
]


def check(tools, model, host, batch, images, **kwargs):
    config = model.peft_config["default"]
    visual, textual, projector = tools.prompts_of(model)
    logits = model(**batch, **kwargs).logits
    assert logits.shape[:2] == batch["input_ids"].shape
    for r, (row, keep) in enumerate(tools.split(batch, images)):
        pixels = row.get("pixel_values", torch.zeros(0, 3, 24, 24))
        expected = reference(host, config, visual, textual, row["input_ids"][0], pixels, projector)
        tools.assert_close(logits[r][keep], expected)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("tower", "lm"), [("clip", "llama"), ("siglip", "qwen2")])
@pytest.mark.parametrize("training", [False, True])
def test_equals_reference(tools, tower, lm, case, training):
    images = (0, 1, 2)
    model = tools.tuned(tools.make_host(tower, lm), **case).train(training)
    check(tools, model, tools.make_host(tower, lm), tools.make_batch(images), images)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("images", [(1,), (1, 1, 1), (2, 0), (0, 0), (2, 2)], ids=str)
@pytest.mark.parametrize(
    "case", [PAPER, {"textual_position": "before_instruction", "textual_layers": [1, 2]}], ids=str
)
@pytest.mark.parametrize("training", [False, True])
def test_batches(tools, images, padding, case, training):
    model, host = tools.tuned(**case).train(training), tools.make_host()
    batch = tools.make_batch(images, padding)
    check(tools, model, host, batch, images)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    check(tools, model, host, batch, images, position_ids=positions)


@torch.no_grad()
@pytest.mark.parametrize("position", ["first", "before_instruction"])
def test_padding_without_instruction(tools, position):
    """Nothing after the image but padding: positions count on from the image, not from the padding's zeros."""
    model, host = tools.tuned(textual_position=position, textual_update="carry"), tools.make_host()
    ids = torch.tensor([[1, 5] + [tools.IMAGE] * 9 + [0] * 9, [1] + ([tools.IMAGE] * 9) * 2 + [7]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": torch.randn(3, 3, 24, 24)}
    positions = (batch["attention_mask"].cumsum(1) - 1).masked_fill(ids == 0, 0)
    check(tools, model, host, batch, (1, 2), position_ids=positions)

    # The next token sees the slots from where it stands: after eleven tokens and after twenty.
    cache = model(**batch, position_ids=positions, use_cache=True).past_key_values
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    said, at = torch.tensor([[8], [9]]), torch.tensor([[11], [20]])
    logits = model(input_ids=said, attention_mask=mask, position_ids=at, past_key_values=cache).logits
    visual, textual, projector = tools.prompts_of(model)
    for r, (row, _) in enumerate(tools.split(batch, (1, 2))):
        tokens = torch.cat([row["input_ids"][0], said[r]])
        expected = reference(
            host, model.peft_config["default"], visual, textual, tokens, row["pixel_values"], projector
        )
        tools.assert_close(logits[r, 0], expected[-1])


@torch.no_grad()
def test_eager_attention(tools):
    model = tools.tuned(tools.make_host(attention="eager"), textual_layers=[1, 2])
    check(tools, model, tools.make_host(), tools.make_batch((0, 1, 2)), (0, 1, 2))


@torch.no_grad()
@pytest.mark.parametrize("textual_layers", ["all", [1, 2]], ids=str)
def test_inputs_embeds(tools, textual_layers):
    model = tools.tuned(textual_layers=textual_layers)
    batch = tools.make_batch((2, 1))
    embeds = dict(batch, inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))
    del embeds["input_ids"]
    tools.assert_close(model(**embeds).logits, model(**batch).logits)


@torch.no_grad()
def test_no_prompts_is_base(tools):
    """With the projector as it was, no prompts on a side leave the base model exactly."""
    base, batch = tools.make_host(), tools.make_batch((0, 1, 2))
    model = tools.tuned(randomized=False, num_textual_prompts=0, num_visual_prompts=0)
    tools.assert_close(model(**batch).logits, base(**batch).logits)
    with model.disable_adapter():
        tools.assert_close(model(**batch).logits, base(**batch).logits)


@torch.no_grad()
def test_inner_model_outputs(tools):
    """Last hidden states have the caller's length, as object and as tuple; positional arguments are understood."""
    model, batch = tools.tuned(), tools.make_batch((2, 1))
    inner = model.base_model.model.model
    out = inner(**batch)
    assert out.last_hidden_state.shape[:2] == batch["input_ids"].shape
    as_tuple = inner(batch["input_ids"], batch["pixel_values"], batch["attention_mask"], return_dict=False)
    tools.assert_close(as_tuple[0], out.last_hidden_state)
    assert [f.shape[0] for f in inner.get_image_features(batch["pixel_values"]).pooler_output] == [2 + 9] * 3


@torch.no_grad()
@pytest.mark.parametrize("position", ["first", "before_instruction"])
def test_segments_name_the_columns(tools, position):
    """`hidden_states` and `attentions` contain the slots, where `segments` says."""
    model, images = tools.tuned(tools.make_host(attention="eager"), textual_position=position), (0, 2)
    batch = tools.make_batch(images)
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    segments = model.base_model.segments(**batch)
    assert segments.shape == out.hidden_states[0].shape[:2]
    visual, textual, projector = tools.prompts_of(model)
    for r in range(2):
        assert torch.equal(out.hidden_states[0][r][segments[r] == 1], textual[0])
        assert [(segments[r] == k).sum().item() for k in (1, 2, 3)] == [3, 2 * images[r], 9 * images[r]]
        seen, hidden = segments[r] != 0, segments[r] == 0
        assert out.attentions[1][r][:, seen][:, :, hidden].sum() == 0  # nothing looks at padding
    features = torch.cat(model.get_base_model().get_image_features(batch["pixel_values"]).pooler_output)
    inserted = out.hidden_states[0][1][(segments[1] == 2) | (segments[1] == 3)]
    tools.assert_close(inserted, features)


@torch.no_grad()
def test_textual_prompts_are_a_prefix_cache(tools):
    """A second, independent road: slots that are replaced act through keys and values alone, so through a cache."""
    from transformers import DynamicCache
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, host, batch = (
        tools.tuned(num_visual_prompts=0, tune_projector=False),
        tools.make_host(),
        tools.make_batch((1,)),
    )
    lm, (_, textual, _) = host.model.language_model, tools.prompts_of(model)
    cache = DynamicCache()
    cos, sin = lm.rotary_emb(textual[0][None], torch.arange(3)[None])
    for j, layer in enumerate(lm.layers):
        x = layer.input_layernorm(textual[j])[None]
        k, v = (f(x).view(1, 3, -1, 12).transpose(1, 2) for f in (layer.self_attn.k_proj, layer.self_attn.v_proj))
        _, k = apply_rotary_pos_emb(k, k, cos, sin)
        cache.update(k, v, j)
    batch["attention_mask"] = torch.cat([torch.ones(1, 3, dtype=torch.long), batch["attention_mask"]], 1)
    expected = host(**batch, past_key_values=cache).logits
    batch["attention_mask"] = batch["attention_mask"][:, 3:]
    tools.assert_close(model(**batch).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("installed_first", [True, False])
def test_capture_hooks_in_either_order(tools, installed_first):
    """transformers captures hidden states by hooks that it installs at first use: order must not matter."""
    host, batch = tools.make_host(), tools.make_batch((1,))
    if installed_first:
        host(**batch, output_hidden_states=True)
    out = tools.tuned(host)(**batch, output_hidden_states=True)
    expected = tools.tuned()(**batch, output_hidden_states=True)
    for a, b in zip(out.hidden_states, expected.hidden_states, strict=True):
        tools.assert_close(a, b)
