"""Attention weights against softmax(q kᵀ) by hand, and what is read off them against sums written out."""

import math
from dataclasses import replace

import helpers
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

import mmpt
from mmpt.errors import InputError
from mmpt.explain.attention import Attention, attention, capture, vision_attention
from mmpt.explain.segments import Segments, encode, prompt_layer
from mmpt.m2pt.backbone import find_backbone
from mmpt.scenes import make_scene

QUESTION, ANSWER = "how many?", "two"
IMAGE = make_scene(0, 64).image


def tuned(**fields):
    backbone = helpers.tiny_backbone()
    fields = {"num_textual_prompts": 3, "num_visual_prompts": 2, "init": "normal", "init_std": 1.0} | fields
    backbone.model = get_peft_model(backbone.model, mmpt.M2PTConfig(**fields)).eval()
    return backbone


def implementations(model):
    return [
        m.config._attn_implementation for m in model.modules() if hasattr(getattr(m, "config", None), "sub_configs")
    ]


def hooks(model):
    """How many each module has; transformers puts on hooks of its own in the first call, so one comes before."""
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def by_hand(backbone, blocks, call):
    """The weights (L, H, T, T) from each block's own input, in a call that captures nothing else."""
    inputs = []
    handles = [
        b.self_attn.register_forward_pre_hook(lambda m, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
        for b in blocks
    ]
    call()
    for handle in handles:
        handle.remove()
    out = []
    for block, (args, kwargs) in zip(blocks, inputs):
        attn = block.self_attn
        hidden = (args[0] if args else kwargs["hidden_states"])[0]  # (T, D)
        T = len(hidden)
        q, k = attn.q_proj(hidden), attn.k_proj(hidden)
        q, k = (x.view(T, -1, attn.head_dim).transpose(0, 1) for x in (q, k))  # (H, T, d)
        if "position_embeddings" in kwargs:  # the LLM: rotary, grouped queries, causal
            theta = 10000 ** (-torch.arange(0, attn.head_dim, 2) / attn.head_dim)
            angle = torch.arange(T)[:, None] * theta  # (T, d/2)
            q, k = (
                torch.cat(
                    [
                        x[..., : x.shape[-1] // 2] * angle.cos() - x[..., x.shape[-1] // 2 :] * angle.sin(),
                        x[..., x.shape[-1] // 2 :] * angle.cos() + x[..., : x.shape[-1] // 2] * angle.sin(),
                    ],
                    -1,
                )
                for x in (q, k)
            )
            k = torch.stack([k[h * len(k) // len(q)] for h in range(len(q))])
            causal = torch.ones(T, T, dtype=torch.bool).tril()
        else:
            causal = torch.ones(T, T, dtype=torch.bool)
        scores = q @ k.transpose(1, 2) / math.sqrt(attn.head_dim)
        out.append(scores.masked_fill(~causal, -torch.inf).softmax(-1))
    return out


@pytest.mark.parametrize("position", ["first", "before_instruction"])
def test_weights_are_those_of_q_and_k(position):
    backbone = tuned(textual_position=position)
    batch = {k: v for k, v in encode(backbone, IMAGE, QUESTION, ANSWER).items() if k != "labels"}
    with torch.no_grad():
        expected = by_hand(
            backbone, find_backbone(backbone.model).textual_blocks, lambda: backbone.model(**batch, use_cache=False)
        )
    backbone.model.train()  # in which textual prompts would have no columns
    found = attention(backbone, IMAGE, QUESTION, ANSWER)
    assert backbone.model.training and found.weights.dtype == torch.float32
    torch.testing.assert_close(found.weights, torch.stack(expected), atol=1e-5, rtol=0)
    assert found.weights.var() > 1e-4  # far from uniform, so that a mix-up of heads or rows would show


def test_weights_of_the_tower_are_those_of_q_and_k():
    backbone = tuned()
    blocks = find_backbone(backbone.model).visual_blocks
    pixels = encode(backbone, IMAGE, "?")["pixel_values"]
    with torch.no_grad():
        expected = by_hand(
            backbone, blocks, lambda: find_backbone(backbone.model).host.get_image_features(pixel_values=pixels)
        )
    found = vision_attention(backbone, IMAGE)
    torch.testing.assert_close(found.weights, torch.stack(expected), atol=1e-5, rtol=0)
    assert found.share("patch", "visual").min() > 0 and found.share("visual", "patch").min() > 0


def test_prompts_inside_attention_are_no_positions_but_take_their_share():
    backbone = tuned(num_kv_prompts=2)
    batch = {k: v for k, v in encode(backbone, IMAGE, QUESTION, ANSWER).items() if k != "labels"}
    found = attention(backbone, IMAGE, QUESTION, ANSWER)
    with torch.no_grad():
        expected = by_hand(
            backbone, find_backbone(backbone.model).textual_blocks, lambda: backbone.model(**batch, use_cache=False)
        )
    total = found.weights.sum(-1, keepdim=True)
    assert total.max() < 1 and total.min() > 0
    torch.testing.assert_close(found.weights / total, torch.stack(expected), atol=1e-5, rtol=0)


def test_slots_that_come_late_neither_look_nor_are_looked_at_before():
    backbone = tuned(textual_layers=[1], visual_layers=[1])
    for found, kind in (
        (attention(backbone, IMAGE, QUESTION, ANSWER), "textual"),
        (vision_attention(backbone, IMAGE), "visual"),
    ):
        slots = found.segments.where(kind)
        assert found.weights[0][:, slots].eq(0).all() and found.weights[0][..., slots].eq(0).all()
        assert found.weights[1][..., slots].sum() > 0
        rows = torch.ones(2, len(found.segments), dtype=torch.bool)
        rows[0, slots] = False
        torch.testing.assert_close(found.weights.sum(-1).mean(1), rows.float())


def test_means_are_over_the_layers_that_have_the_source():
    backbone = tuned(textual_layers=[1], textual_position="before_instruction", visual_layers=[1])
    for found, kind in (
        (attention(backbone, IMAGE, QUESTION, ANSWER), "textual"),
        (vision_attention(backbone, IMAGE), "visual"),
    ):
        slots = found.segments.where(kind)
        torch.testing.assert_close(found.seen_from(kind), found.weights[1, :, slots].mean((0, 1)))
        torch.testing.assert_close(found.matrix().sum(1), torch.ones(len(found.segments.present)))
        assert found.share(kind, "patch")[0].isnan().all() and found.share("patch", kind)[0].eq(0).all()
        torch.testing.assert_close(found.share(kind, "patch")[1].mean(), found.on_picture(kind).sum())


def test_the_tower_stops_at_the_layer_that_the_llm_sees():
    backbone = helpers.tiny_backbone()
    backbone.model.config.vision_feature_layer = -2
    assert vision_attention(backbone, IMAGE).weights.shape == (1, 4, 17, 17)


def test_capturing_leaves_model_and_logits_as_they_were():
    backbone = tuned()
    batch = encode(backbone, IMAGE, QUESTION)
    with torch.no_grad():
        logits = backbone.model(**batch).logits
        before = implementations(backbone.model), hooks(backbone.model)
        with capture(find_backbone(backbone.model).textual_blocks, backbone.model) as seen:
            assert set(implementations(backbone.model)) == {"eager"}
            inside = backbone.model(**batch).logits
        after = backbone.model(**batch).logits
    assert len(seen) == 2
    assert "eager" not in before[0]
    assert (implementations(backbone.model), hooks(backbone.model)) == before
    torch.testing.assert_close(inside, logits, atol=1e-5, rtol=0)
    assert torch.equal(after, logits)


def test_mixed_implementations_come_back_each_to_its_own_place():
    backbone = helpers.tiny_backbone()
    backbone.model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    before = implementations(backbone.model)
    assert len(set(before)) == 2
    with capture([], backbone.model):
        pass
    assert implementations(backbone.model) == before


def test_nothing_is_left_after_an_exception(monkeypatch):
    backbone = tuned()
    backbone.answer([IMAGE], [QUESTION])
    before = implementations(backbone.model), hooks(backbone.model)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    for blocks, look in (
        (find_backbone(backbone.model).textual_blocks, lambda: attention(backbone, IMAGE, QUESTION, ANSWER)),
        (find_backbone(backbone.model).visual_blocks, lambda: vision_attention(backbone, IMAGE)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(blocks[1].mlp, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                look()
        assert (implementations(backbone.model), hooks(backbone.model)) == before


@pytest.mark.parametrize("method", ["none", "lora", "prompt tuning"])
def test_without_prompts(method):
    backbone = helpers.tiny_backbone()
    if method == "prompt tuning":
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        backbone.model = get_peft_model(backbone.model, config).eval()
    if method == "lora":
        backbone.model = get_peft_model(backbone.model, LoraConfig(target_modules=["q_proj"])).eval()
    found = attention(backbone, IMAGE, QUESTION, ANSWER)
    assert (
        len(found.segments)
        == found.weights.shape[-1]
        == encode(backbone, IMAGE, QUESTION, ANSWER)["input_ids"].shape[1]
    )
    assert prompt_layer(backbone)[1] is None and "No M²PT adapter" in found.order.sentence
    with pytest.raises(InputError, match="Nothing in this sequence is 'textual'; it has patch, question"):
        found.share("answer", "textual")


def test_an_answer_is_generated_where_none_is_given():
    backbone = tuned()
    found = attention(backbone, IMAGE, QUESTION)
    assert found.answer == backbone.answer([IMAGE], [QUESTION])[0]


# ---- what is read off the weights, on weights made up for it -------------------------------------------------------


@pytest.fixture
def made_up():
    """Two layers of three heads over T1, four patches (2 × 2), two words of a question, a word and the end."""
    kinds = ["textual", *["patch"] * 4, "question", "question", "answer", "answer"]
    weights = torch.rand(2, 3, 9, 9).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    return Attention(weights, Segments(kinds, [str(i) for i in range(9)], list(range(9)), (2, 2)))


def test_share_and_matrix(made_up):
    w = made_up.weights
    assert made_up.segments.present == ["textual", "patch", "question", "answer"]
    expected = sum(w[1, 2, i, k] for i in (5, 6) for k in (1, 2, 3, 4)) / 2
    torch.testing.assert_close(made_up.share("question", "patch")[1, 2], expected)
    torch.testing.assert_close(made_up.matrix(1, 2)[2, 1], expected)
    torch.testing.assert_close(made_up.matrix().sum(1), torch.ones(4))
    torch.testing.assert_close(made_up.matrix(layer=0)[2, 1], made_up.share("question", "patch")[0].mean())
    torch.testing.assert_close(made_up.matrix(head=1)[2, 1], made_up.share("question", "patch")[:, 1].mean())


def test_on_the_picture(made_up):
    w = made_up.weights
    torch.testing.assert_close(made_up.on_picture(7, 0, 1), w[0, 1, 7, 1:5].view(2, 2))
    torch.testing.assert_close(made_up.on_picture("answer", 0, 1), w[0, 1, 7:9, 1:5].mean(0).view(2, 2))
    torch.testing.assert_close(made_up.seen_from([5, 6]), w.mean((0, 1))[5:7].mean(0))


def test_a_token_is_predicted_from_the_position_before_it(made_up):
    assert made_up.positions("predicting").tolist() == [6, 7]
    assert made_up.positions(3).tolist() == [3] and made_up.positions([0, 8]).tolist() == [0, 8]


def test_a_sink_is_found_where_it_is_and_taken_out(made_up):
    assert made_up.sinks().tolist() == []
    w = made_up.weights.clone()
    w[:, :, 3:] *= 0.3
    w[:, :, 3:, 2] += 0.7
    sunk = Attention(w, made_up.segments)
    torch.testing.assert_close(sunk.received()[1, 2, 2], w[1, 2, 3:, 2].mean())
    assert sunk.sinks().tolist() == [2] and sunk.sinks(0.9).tolist() == []
    clear = sunk.without_sinks()
    assert clear.left_out == ("2",) and clear.without_sinks().left_out == ("2",)
    assert clear.weights[..., 2].eq(0).all() and sunk.weights[..., 2].gt(0).any()
    torch.testing.assert_close(clear.weights.sum(-1), torch.ones(2, 3, 9))
    torch.testing.assert_close(clear.weights[0, 0, 4, 1] / clear.weights[0, 0, 4, 3], w[0, 0, 4, 1] / w[0, 0, 4, 3])


def test_a_row_that_saw_only_the_sink_stays_empty(made_up):
    w = made_up.weights.clone()
    w[:, :, 1:, 0] += 9
    clear = Attention(w / w.sum(-1, keepdim=True), made_up.segments).without_sinks()
    assert clear.weights[:, :, 0].eq(0).all() and clear.weights.isfinite().all()


def test_shares_without_sinks_leave_out_what_went_to_no_position(made_up):
    """Prompts inside attention have no column: what they got is not given to the others."""
    w = made_up.weights * 0.8
    w[:, :, 3:] *= 0.3
    w[:, :, 3:, 2] += 0.5
    clear = Attention(w, made_up.segments).without_sinks()
    assert clear.left_out == ("2",)
    torch.testing.assert_close(clear.weights[0, 0, 5, 4], w[0, 0, 5, 4] / (1 - w[0, 0, 5, 2]))
    none = Attention(made_up.weights * 0.8, made_up.segments).without_sinks()
    torch.testing.assert_close(none.weights, made_up.weights * 0.8)


def test_shares_without_sinks_of_weights_in_16_bits(made_up):
    w = made_up.weights.clone()
    w[:, :, 3:] *= 0.01
    w[:, :, 3:, 2] += 0.99
    clear = Attention(w.bfloat16().float(), made_up.segments).without_sinks()
    torch.testing.assert_close(clear.weights.sum(-1), torch.ones(2, 3, 9))


def test_slots_of_later_layers_receive_what_those_layers_give(made_up):
    w = made_up.weights.clone()
    w[:, :, 1:] *= 0.5
    w[:, :, 1:, 0] += 0.5
    w[0, :, :, 0] = w[0, :, 0] = 0  # not written yet
    found = Attention(w, replace(made_up.segments, written=(1,)))
    torch.testing.assert_close(found.received()[0, 0, 1], w[0, 0, 2:, 1].mean())
    assert found.sinks().tolist() == [0]


def test_what_everybody_sees_is_averaged_over_everybody(made_up):
    w = torch.rand(1, 1, 9, 9)
    found = Attention(w, made_up.segments).received()[0, 0, 4]
    torch.testing.assert_close(found, (w[0, 0, :, 4].sum() - w[0, 0, 4, 4]) / 8)


@pytest.mark.parametrize(
    "ask, said",
    [
        (
            lambda a: a.positions("image"),
            "no segment 'image'; choose one of textual, patch, question, answer, predicting",
        ),
        (lambda a: a.positions(9), r"Positions \[9\] were asked for; give some from 0 to 8"),
        (lambda a: a.positions([]), r"Positions \[\] were asked for"),
        (lambda a: a.pick(layer=2), "no layer 2; give one from 0 to 1"),
        (lambda a: a.pick(head=-1), "no head -1; give one from 0 to 2"),
    ],
)
def test_what_does_not_exist_is_refused(made_up, ask, said):
    with pytest.raises(InputError, match=said):
        ask(made_up)


def test_the_first_position_is_the_sink_of_the_embedded_model(tiny):
    found = attention(tiny, make_scene(3).image, "How many objects are in the picture?", "There are two.")
    assert found.sinks().tolist() == [0]
    assert found.weights.shape[:2] == (30, 9)
