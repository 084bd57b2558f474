"""Prompts inside attention against attention written out, and the contract for them."""

import pytest
import torch
from peft import PeftModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

KINDS = dict(num_visual_prompts=0, tune_projector=False, num_kv_prompts=4, num_feature_prompts=3)


def literal(model, embeds, prompts, slots):
    """Logits (T, V) of one row of embeddings (T, D): features appended to Q and K, prompts put before K and V by hand.

    `prompts`: a layer's AttentionPrompts, by layer; `slots`: a layer's deep input prompts (P, D), by layer, or {}.
    """
    lm, x, P = model.model.language_model, embeds, len(next(iter(slots.values()), []))
    x = torch.cat([torch.zeros(P, x.shape[1]), x])
    T = len(x)
    cos, sin = lm.rotary_emb(x[None], torch.arange(T)[None])
    for j, layer in enumerate(lm.layers):
        if j in slots:
            x = torch.cat([slots[j], x[P:]])
        a, h = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (f(h).view(T, -1, a.head_dim).transpose(0, 1) for f in (a.q_proj, a.k_proj, a.v_proj))
        q, k = (y[0] for y in apply_rotary_pos_emb(q[None], k[None], cos, sin))
        H, groups = len(q), len(q) // len(k)
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        visible = torch.ones(T, T, dtype=torch.bool).tril()
        if j in prompts:
            p = prompts[j]
            n, F = p.keys.shape[1], p.key_features.shape[1]
            q = torch.cat([q, p.query_features[:, None].expand(H, T, F)], -1)
            k = torch.cat([k, p.key_features[:, None].expand(H, T, F)], -1)
            before = torch.cat([p.keys.repeat_interleave(groups, 0), torch.zeros(H, n, F)], -1)
            k, v = torch.cat([before, k], 1), torch.cat([p.values.repeat_interleave(groups, 0), v], 1)
            visible = torch.cat([torch.ones(T, n, dtype=torch.bool), visible], 1)
        scores = (q @ k.transpose(1, 2) / a.head_dim**0.5).masked_fill(~visible, -torch.inf)
        x = x + a.o_proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(T, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(lm.norm(x[P:]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("textual, layers", [(0, "all"), (2, "all"), (0, [1])])
@torch.no_grad()
def test_equals_attention_written_out(tools, attention, textual, layers):
    host = tools.make_host(attention=attention)
    model = tools.tuned(host, num_textual_prompts=textual, textual_layers=layers, **KINDS)
    base, own = model.get_base_model(), model.base_model.layer
    tokens = torch.randint(3, 80, (1, 7))
    slots = {int(j): p for j, p in own.m2pt_textual_prompts["default"].items()} if textual else {}
    prompts = {int(j): p for j, p in own.m2pt_attention_prompts["default"].items()}
    assert len(prompts) == (3 if layers == "all" else 1)
    expected = literal(base, base.get_input_embeddings()(tokens[0]), prompts, slots)
    torch.testing.assert_close(model(input_ids=tokens).logits[0], expected, atol=1e-5, rtol=1e-5)
    without = literal(base, base.get_input_embeddings()(tokens[0]), {}, slots)
    assert (expected - without).abs().max() > 1e-2


@torch.no_grad()
def test_features_weigh_tokens_against_prompts(tools):
    """Without them, or with a product of zero, the logits differ; the prompts' own keys are not affected."""
    model = tools.tuned(num_textual_prompts=0, **KINDS)
    tokens = torch.randint(3, 80, (1, 7))
    before = model(input_ids=tokens).logits
    for prompts in model.base_model.layer.m2pt_attention_prompts["default"].values():
        prompts.query_features.zero_()
    after = model(input_ids=tokens).logits
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("textual", [0, 2])
@torch.no_grad()
def test_padding_batch_and_cache(tools, textual):
    model = tools.tuned(num_textual_prompts=textual, **KINDS)
    batch = tools.make_batch(images=(1, 0, 2))
    together = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
    logits = model(**batch).logits[:, -1]
    for r, (row, _) in enumerate(tools.split(batch, (1, 0, 2))):
        torch.testing.assert_close(model(**row).logits[0, -1], logits[r], atol=1e-5, rtol=1e-5)
        alone = model.generate(**row, max_new_tokens=4, do_sample=False)[:, -4:]
        assert torch.equal(alone[0], together[r])
        uncached = model.generate(**row, max_new_tokens=4, do_sample=False, use_cache=False)[:, -4:]
        assert torch.equal(alone, uncached)


@torch.no_grad()
def test_rows_that_pictures_make_uneven(tools):
    """Without a mask, since the caller's rows are of one length; visual prompts make one of them longer."""
    model = tools.tuned(num_textual_prompts=2, **KINDS | {"num_visual_prompts": 3})
    batch = tools.make_batch(images=(1, 0))
    rows = [row for row, _ in tools.split(batch, (1, 0))]
    ids = [row["input_ids"] for row in rows]
    n = max(map(len, (row[0] for row in ids)))
    ids = [torch.cat([row, torch.full((1, n - row.shape[1]), 5)], 1) for row in ids]
    pixels = rows[0]["pixel_values"]
    together = model(input_ids=torch.cat(ids), pixel_values=pixels)
    last = [model(input_ids=ids[0], pixel_values=pixels).logits[0, -1], model(input_ids=ids[1]).logits[0, -1]]
    torch.testing.assert_close(together.logits[:, -1], torch.stack(last), atol=1e-5, rtol=1e-5)
    more = torch.tensor([[7], [8]])
    after = model(input_ids=more, past_key_values=together.past_key_values).logits[:, -1]
    longer = torch.cat([torch.cat(ids), more], 1)
    torch.testing.assert_close(after, model(input_ids=longer, pixel_values=pixels).logits[:, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_base_save_and_load(tools, tmp_path):
    batch = tools.make_batch()
    plain = tools.make_host()(**batch).logits
    model = tools.tuned(num_textual_prompts=2, **KINDS)
    tuned = model(**batch).logits
    assert (tuned - plain).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch).logits, plain)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tools.make_host(), tmp_path)
    torch.testing.assert_close(again(**batch).logits, tuned)
    torch.testing.assert_close(model.unload()(**batch).logits, plain)


def test_gradients_with_and_without_checkpointing(tools):
    batch = tools.make_batch()
    batch["labels"] = batch["input_ids"].clone()
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = tools.tuned(num_textual_prompts=2, **KINDS).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert any("query_features" in n for n in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_report(tools):
    from mmpt import parameter_report

    model = tools.tuned(num_textual_prompts=2, **KINDS)
    report = parameter_report(model, model.peft_config["default"])
    tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.total == tuned and report.attention_prompts == 3 * 2 * (2 * 4 * 12 + 4 * 3)


def test_features_alone_are_refused(tools):
    with pytest.raises(ValueError, match="num_feature_prompts=3 weighs tokens against num_kv_prompts, which is 0"):
        tools.tuned(num_feature_prompts=3)
