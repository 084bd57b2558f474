"""One view of an answer as a figure, a few sentences and plain data: what `python -m mmpt explain` writes."""

import json
from dataclasses import asdict, dataclass

import plotly.graph_objects as go
from PIL import Image
from torch import Tensor

from mmpt import figures
from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.attention import attention
from mmpt.explain.checks import curves
from mmpt.explain.cross_attention import cross_attention
from mmpt.explain.gradients import integrated_gradients
from mmpt.explain.interaction import interaction
from mmpt.explain.segments import segments
from mmpt.explain.targets import Case, Target
from mmpt.mpt4lm.backbone import TextBackbone


@dataclass
class View:
    """A view of an answer.

    Attributes:
        name: one of `VIEWS`.
        question, answer: what was read.
        figure: the view drawn.
        sentences: how to read it, and what its check says.
        data: the numbers, JSON-able.
    """

    name: str
    question: str
    answer: str
    figure: go.Figure
    sentences: list[str]
    data: dict

    def json(self) -> str:
        """All but the figure."""
        parts = {"view": self.name, "question": self.question, "answer": self.answer, "sentences": self.sentences}
        return json.dumps(parts | {"data": self.data}, indent=1, ensure_ascii=False) + "\n"


def _attention(backbone, image, question, answer):
    seen = attention(backbone, image, question, answer)
    rest = seen.without_sinks()
    kinds = seen.segments.present
    data = {
        "segments": [{"kind": k, "label": label} for k, label in zip(seen.segments.kinds, seen.segments.labels)],
        "between_segments": {k: dict(zip(kinds, row)) for k, row in zip(kinds, seen.matrix().tolist())},
        "patches": _plain(seen.on_picture("predicting")),
        "sinks": rest.left_out,
        "patches_without_sinks": _plain(rest.on_picture("predicting")),
    }
    sinks = ", ".join(rest.left_out) or "nothing"
    sentences = [seen.order.sentence, f"Left out of the map, since attention rests there: {sinks}."]
    return figures.attention.on_picture(rest, image), sentences, data


def _attribution(backbone, image, question, answer):
    case = Case(backbone, image, question, Target(answer))
    found = integrated_gradients(case, ["patch"])
    check = curves(case, found.patches)
    sentences = [
        f"{found.method} of the {found.target}, against {found.baseline}: {found.score:.2f}, at the baseline "
        f"{found.base:.2f}; all values together miss the difference by {found.gap:.2g}.",
        *(
            f"{name.capitalize()}: area {curve.area:.3f}, in random order {curve.chance[0]:.3f} ± "
            f"{curve.chance[1]:.3f}; the map beats {curve.beaten:.0%} of the random orders."
            for name, curve in (("deletion", check.deletion), ("insertion", check.insertion))
        ),
    ]
    boxes = segments(backbone, image, question, answer).boxes(*image.size)
    title = "Which patches spoke for the answer (blue) and which against it (red)"
    figure = figures.overlay(image, found.patches, boxes, title, " ".join(sentences), "nats", signed=True)
    areas = {name: {"area": c.area, "random": list(c.chance), "beaten": c.beaten}
             for name, c in (("deletion", check.deletion), ("insertion", check.insertion))}  # fmt: skip
    return figure, sentences, {k: _plain(v) for k, v in asdict(found).items()} | {"check": areas}


def _interaction(backbone, image, question, answer):
    found = interaction(Case(backbone, image, question, Target(answer)))
    title = "Which textual prompt works through which visual prompt"
    sentences = [f"Second differences, in nats, of the {found.target}: prompts switched off alone and together."]
    data = {k: _plain(v) for k, v in asdict(found).items()}
    return figures.interaction(found.matrix, title, sentences[0]), sentences, data


def _cross_attention(backbone, image, question, answer, word=None):
    maps = cross_attention(backbone, image, question)
    data = {"words": maps.words, "to_patches": _plain(maps.on_picture())}
    if maps.to_words is not None:
        data["to_words"] = _plain(maps.read_words())
    if word is None:
        sentences = ["Patches from which the visual prompts were made, mean over prompts and heads."]
        return figures.cross_attention.patches(maps, image), sentences, data
    found = maps.find(word)
    data |= {"word": maps.words[found], "word_to_patches": _plain(maps.of_word(found))}
    sentences = [f"Patches read by the visual prompts, each counted by how much it read of {word!r}, mean over heads."]
    return figures.cross_attention.word(maps, image, found), sentences, data


VIEWS = {"attention": _attention, "attribution": _attribution, "interaction": _interaction}  # of a LLaVA
TEXT_VIEWS = {"cross-attention": _cross_attention}  # of a text-only LLM under MPT4LM


def view(
    backbone: Backbone,
    image: Image.Image,
    question: str,
    name: str,
    answer: str | None = None,
    word: str | None = None,
) -> View:
    """One of `VIEWS`, or for MPT4LM of `TEXT_VIEWS`, of the answer that the active adapter gives, or of a given one.

    "attention": where the positions that predict the answer looked in the picture, attention sinks left out.
    "attribution": integrated gradients on the picture, with deletion and insertion against random orders.
    "interaction": second differences between textual and visual prompts.
    "cross-attention": from which patches MPT4LM's visual prompts were made, or with `word`, one that the queries read,
    those to which it leads.

    Raises:
        InputError: no such view, no such word, a word for another view, an empty answer, or an adapter without the
            prompts that the view is about.
    """
    views = TEXT_VIEWS if isinstance(backbone, TextBackbone) else VIEWS
    if name not in views:
        raise InputError(f"There is no view {name!r} of {backbone.name}; choose one of {', '.join(views)}.")
    if word is not None and name != "cross-attention":
        raise InputError(f"The view {name!r} is of no single word; leave the word out.")
    answer = backbone.answer([image], [question])[0] if answer is None else answer
    if not answer:
        raise InputError("The model answered nothing, so there is nothing to explain; ask something else.")
    given = {} if word is None else {"word": word}
    return View(name, question, answer, *views[name](backbone, image, question, answer, **given))


def _plain(value):
    return value.tolist() if isinstance(value, Tensor) else value
