"""Word → visual prompt → patch: the weights that the module used, against attention written out by hand."""

from functools import partial

import pytest
import torch
from helpers import backbone_for, config_for
from peft import get_peft_model

import mmpt
from mmpt import figures
from mmpt.errors import InputError
from mmpt.explain.cross_attention import cross_attention
from mmpt.explain.views import view
from mmpt.mpt4lm import MPT4LMLayer
from mmpt.scenes import make_scene

IMAGE, QUESTION = make_scene(3).image, "What is it?"


def tuned(**changes):
    torch.manual_seed(0)
    backbone = backbone_for("mpt4lm")
    config = config_for("mpt4lm", backbone)
    for name, value in changes.items():
        setattr(config, name, value)
    backbone.model = get_peft_model(backbone.model, config).eval()
    if not config.num_visual_prompts:
        return backbone
    reads = method(backbone).mpt4lm_cross_attention["default"]
    with torch.no_grad():
        reads.queries.normal_()
        for parameter in reads.picture.parameters():
            parameter.add_(torch.randn_like(parameter))
    return backbone


def method(backbone):
    return next(m for m in backbone.model.modules() if isinstance(m, MPT4LMLayer))


def by_hand(read, queries, source):
    """softmax(q k / √d) of each head: (H, m, S)."""
    attention, q, s = read.attention, read.query_norm(queries), read.source_norm(source)
    w, heads = attention.embed_dim, attention.num_heads
    q_bias, k_bias, _ = attention.in_proj_bias.split(w)
    q = (q @ attention.q_proj_weight.T + q_bias).unflatten(-1, (heads, -1)).transpose(0, 1)
    k = (s @ attention.k_proj_weight.T + k_bias).unflatten(-1, (heads, -1)).transpose(0, 1)
    return (q @ k.mT / (w // heads) ** 0.5).softmax(-1)


@torch.no_grad()
def test_weights_are_those_of_the_forward_pass():
    backbone = tuned()
    maps, reads = cross_attention(backbone, IMAGE, QUESTION), method(backbone).mpt4lm_cross_attention["default"]
    batch, host = backbone.inputs([IMAGE], [QUESTION]), method(backbone).host
    text = host.get_input_embeddings()(batch["input_ids"])
    torch.testing.assert_close(maps.to_words, by_hand(reads.question, reads.queries, text[0]))
    moved = reads.queries + reads.question(reads.queries[None], text, None)[0]
    patches = host.get_image_features(batch["pixel_values"])[0]
    torch.testing.assert_close(maps.to_patches, by_hand(reads.picture, moved, patches))
    asked = [word for word, kind in zip(maps.words, maps.kinds) if kind == "question"]
    assert "".join(asked) == QUESTION
    assert "".join(maps.words).count(QUESTION) == 1 and maps.to_words.shape[-1] == len(maps.words)
    assert maps.grid == (4, 4) and maps.boxes[-1].tolist() == [84, 84, 112, 112]


@torch.no_grad()
def test_an_encoder_decoder():
    backbone = mmpt.load("tiny-t5", adapter="mpt4lm-t5")
    seen = view(backbone, IMAGE, "What colour is the background?", "cross-attention")
    maps = cross_attention(backbone, IMAGE, "What colour is the background?")
    assert maps.grid == (7, 7) and " colour" in maps.words and seen.answer
    torch.testing.assert_close(maps.to_patches.sum(-1), torch.ones(maps.to_patches.shape[:2]))


def test_maps_are_shares_and_react_to_picture_and_word():
    backbone = tuned()
    maps, other = (cross_attention(backbone, make_scene(seed).image, QUESTION) for seed in (3, 4))
    chosen = maps.on_picture([0, 2]), maps.on_picture(), maps.of_word(5)
    for found in chosen:
        assert found.shape == (4, 4) and found.sum().item() == pytest.approx(1, abs=1e-5)
    assert (maps.on_picture() - other.on_picture()).abs().max() > 1e-4
    share = maps.to_words.mean(0)[:, 5]
    expected = sum(w * maps.on_picture([i]) for i, w in enumerate(share / share.sum()))
    torch.testing.assert_close(maps.of_word(5), expected)


def test_nothing_stays_behind_after_an_error(monkeypatch):
    backbone = tuned()
    reads = method(backbone).mpt4lm_cross_attention["default"]

    def fail(*args):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(type(reads), "forward", fail)
        with pytest.raises(RuntimeError, match="stop"):
            cross_attention(backbone, IMAGE, QUESTION)
    for read in (reads.question, reads.picture):
        assert not read.attention._forward_hooks and not read.attention._forward_pre_hooks


def test_without_the_question():
    maps = cross_attention(tuned(condition_on_question=False), IMAGE, QUESTION)
    assert maps.to_words is None
    for of_words in (lambda: maps.of_word(0), lambda: figures.cross_attention.words(maps)):
        with pytest.raises(InputError, match="do not read the question"):
            of_words()


def test_figures_and_view():
    backbone = tuned()
    maps = cross_attention(backbone, IMAGE, QUESTION)
    for figure in (
        figures.cross_attention.words(maps),
        figures.cross_attention.patches(maps, IMAGE, [1]),
        figures.cross_attention.word(maps, IMAGE, 5),
    ):
        assert figure.layout.title.text and figure.data[0].z is not None
    seen = view(backbone, IMAGE, QUESTION, "cross-attention", answer="a cat")
    assert len(seen.data["to_words"]) == len(maps.to_words[0]) and seen.data["words"] == maps.words
    at = maps.words.index("W")  # one byte a token
    seen = view(backbone, IMAGE, QUESTION, "cross-attention", answer="a cat", word=" w")
    torch.testing.assert_close(torch.tensor(seen.data["word_to_patches"]), maps.of_word(at))
    assert seen.data["word"] == "W" and "“W”" in seen.figure.layout.title.text
    with pytest.raises(InputError, match="The queries read no word 'dog'; give one of .*'W'"):
        view(backbone, IMAGE, QUESTION, "cross-attention", answer="a cat", word="dog")
    with pytest.raises(InputError, match="There is no view 'attention' of .*; choose one of cross-attention"):
        view(backbone, IMAGE, QUESTION, "attention", answer="a cat")


@pytest.mark.parametrize("made", [partial(backbone_for, "mpt4lm"), partial(tuned, num_visual_prompts=0)])
def test_without_visual_prompts_there_is_no_map(made):
    with pytest.raises(InputError, match="no such adapter is active"):
        cross_attention(made(), IMAGE, QUESTION)
