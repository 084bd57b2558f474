"""Figures of MPT4LM's cross-attention, of an `mmpt.explain.cross_attention.CrossAttentionMaps`."""

import plotly.graph_objects as go
from PIL import Image

from mmpt.explain.cross_attention import CrossAttentionMaps
from mmpt.figures.plain import matrix, overlay
from mmpt.figures.style import visible

SHARE = "share of attention"


def words(maps: CrossAttentionMaps) -> go.Figure:
    """Visual prompt × word: which words each visual prompt was made from, mean over heads.

    Raises:
        InputError: the queries do not read the question.
    """
    prompts = [f"V{i + 1}" for i in range(maps.to_patches.shape[1])]
    note = f"Evenly spread, every word would have {1 / len(maps.words):.1%}. The template's words are read too."
    words, title = [visible(word) for word in maps.words], "Which words each visual prompt read"
    figure = matrix(
        maps.read_words(), prompts, words, title, note, SHARE, row_title="visual prompt", column_title="word"
    )
    return figure.update_xaxes(tickangle=-60)


def patches(maps: CrossAttentionMaps, image: Image.Image, prompts: list[int] | None = None) -> go.Figure:
    """The patches that some visual prompts or all (None) read, over the picture."""
    who = "all visual prompts" if prompts is None else ", ".join(f"V{i + 1}" for i in prompts)
    values = maps.on_picture(prompts)
    return overlay(image, values, maps.boxes, f"Which patches {who} read", _even(values), SHARE)


def word(maps: CrossAttentionMaps, image: Image.Image, index: int) -> go.Figure:
    """Question word → visual prompts → patches, over the picture.

    Raises:
        InputError: the queries do not read the question.
    """
    values = maps.of_word(index)
    title = f"Patches read by the visual prompts that read “{visible(maps.words[index])}”"
    return overlay(image, values, maps.boxes, title, _even(values), SHARE)


def _even(values):
    return f"Evenly spread, every patch would have {1 / values.numel():.1%}. To be read is not yet to be used."
