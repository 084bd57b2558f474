"""What the tab Attention shows of MPT4LM: question word → visual prompt → patch, in place of the layers' attention."""

from dataclasses import replace

import gradio as gr
import plotly.graph_objects as go

from app.state import Asked, Studio
from app.whose import answer_of
from mmpt import figures
from mmpt.errors import InputError
from mmpt.explain.cross_attention import CrossAttentionMaps, cross_attention
from mmpt.figures.style import visible

ALL = "all visual prompts"
SENTENCE = """This model was tuned with MPT4LM: its visual prompts are made by a cross-attention whose queries read the
question's words, then the patches. Shown is that attention, a mean over its heads: *From* is a word, one visual prompt
or all; layers, heads, sinks and *To* have no meaning here."""


def seen(studio: Studio, asked: Asked | None, adapter: str) -> CrossAttentionMaps:
    """The maps behind that model's last answer, for the picture as it is shown; kept for a while.

    Raises:
        InputError: nothing was asked.
    """
    answer_of(asked, adapter)

    def look():
        image = asked.image()
        with studio.looking.use(adapter, text_only=True) as backbone:
            maps = cross_attention(backbone, image, asked.question)
        return replace(maps, boxes=maps.boxes * (asked.shown().width / image.width))

    return studio.keep(("cross-attention", asked.picture, asked.question, adapter), look)


def places(maps: CrossAttentionMaps) -> list[tuple[str, str | int]]:
    """(label, source): all visual prompts, each of them ("V1" …), each word by its number."""
    prompts = [f"V{i + 1}" for i in range(maps.to_patches.shape[1])]
    words = maps.words if maps.to_words is not None else []
    return [(ALL, ALL), *((f"visual prompt {name}", name) for name in prompts),
            *((f"word: {word!r}", i) for i, word in enumerate(words))]  # fmt: skip


def offer(studio: Studio, asked: Asked | None, adapter: str):
    """(sources, no targets, words to click, picture, sentence) for the last answer."""
    maps = seen(studio, asked, adapter)
    strip = [(visible(word), figures.NAMES[kind]) for word, kind in zip(maps.words, maps.kinds)]
    sources = gr.Dropdown(choices=places(maps), value=ALL)
    return sources, gr.Dropdown(choices=[], value=None), strip, asked.shown(), SENTENCE


def over_picture(studio: Studio, asked: Asked | None, adapter: str, source: str | int | None) -> go.Figure:
    """The patches that a source of `places` leads to."""
    maps, image = seen(studio, asked, adapter), asked.shown()
    if isinstance(source, int):
        return figures.cross_attention.word(maps, image, source)
    single = source in {name for _, name in places(maps)} - {ALL}
    return figures.cross_attention.patches(maps, image, [int(source[1:]) - 1] if single else None)


def by_word(studio: Studio, asked: Asked | None, adapter: str) -> go.Figure:
    """Visual prompt × word."""
    return figures.cross_attention.words(seen(studio, asked, adapter))


def from_word(studio: Studio, asked: Asked | None, adapter: str, index: int) -> gr.Dropdown:
    """The picker of sources with the word that was clicked.

    Raises:
        InputError: the queries do not read the question.
    """
    maps = seen(studio, asked, adapter)
    maps.read_words()
    return gr.Dropdown(choices=places(maps), value=index)


def no_such(what: str) -> InputError:
    """For a view that is one of LLaVAs only."""
    return InputError(
        f"{what} is not there for a model tuned with MPT4LM; choose “Over the picture” or “Token by token”, and as "
        "source a word or a visual prompt."
    )
