"""Prompts: switch single prompts off or scale them, and see what becomes of the answer; and which words are near."""

from functools import partial

import gradio as gr
import plotly.graph_objects as go
import torch

from app import ask, export
from app.progress import watched
from app.state import NONE, Asked, Studio, plain, told
from app.whose import answer_of, name_of, picker
from mmpt import figures
from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.checks import prompt_effects
from mmpt.explain.interventions import prompt_rows, prompt_strength
from mmpt.explain.nearest import nearest_words
from mmpt.explain.targets import Case, Target

LETTERS = {"textual": "T", "visual": "V"}
SPACES = {
    "in the layer's own space": "layer",
    "among the input embeddings": "embedding",
    "through the output head": "head",
}
SILENT = "(ends before a first word)"  # an empty box would look as if nothing had been computed
READ = """*How to read it.* A prompt that is off is one that no position can look at, in any layer; a strength of 2
doubles the weight that it gets before the softmax. A large fall says that this answer needs the prompt as things are.
It does not say that the prompt stands for something: the first prompts often serve as the place where heads rest."""


@told(6)
def offer(studio: Studio, adapter: str | None):
    """(choices of the textual prompts, of the visual ones, strengths of both, no answer, no words), all as tuned.

    There are no choices where the model has no such prompts.
    """
    names = dict.fromkeys(LETTERS, [])
    if adapter is not None:
        with studio.looking.use(adapter) as backbone:
            names = _names(backbone)
    return *(gr.CheckboxGroup(choices=names[kind], value=names[kind]) for kind in LETTERS), 1, 1, None, None


@told(2)
def change(studio: Studio, asked: Asked | None, adapter: str | None, textual, visual, textual_scale, visual_scale):
    """(answer now, what became of the former one in words): prompts named in `textual` and `visual` are on."""
    before = answer_of(asked, adapter)
    image = asked.image()
    with studio.looking.use(adapter) as backbone:
        strengths = _strengths(backbone, {"textual": (textual, textual_scale), "visual": (visual, visual_scale)})
        case = Case(backbone, image, asked.question, Target(before))
        with torch.no_grad():
            p = [case().exp().item(), case(**{kind: s[None] for kind, s in strengths.items()}).exp().item()]
        with prompt_strength(backbone, **strengths):
            now = backbone.answer([image], [asked.question])[0]
    same = "The answer is the same." if now == before else f"The answer was “{plain(before)}”."
    return now or SILENT, f"{same} “{plain(before)}” had a probability of {p[0]:.1%} as tuned, and has {p[1]:.1%} now."


@told(2)
def effects(studio: Studio, asked: Asked | None, adapter: str | None, progress=gr.Progress()):  # noqa: B008
    """(figure, which answers change in words) of what happens when each single prompt is switched off."""
    answer = answer_of(asked, adapter)

    def look():
        with studio.looking.use(adapter) as backbone:
            case = Case(backbone, asked.image(), asked.question, Target(answer))
            n = 1 + sum(P for _, P in case.prompts.values())
            with watched(
                case, progress, n / case.rows * (2 + len(case.parts[0][1])), "switching prompts off one by one"
            ):
                return prompt_effects(case, ask.MAX_NEW_TOKENS)

    found = studio.keep(("effects", asked.picture, asked.question, adapter, answer), look)
    labels = {kind: [f"{LETTERS[kind]}{i + 1}" for i in range(len(v))] for kind, v in found.effects.items()}
    others = [
        f"without {name} “{plain(text or SILENT)}”"
        for kind, names in labels.items()
        for name, text, changed in zip(names, found.answers[kind], found.changed[kind])
        if changed
    ]
    sentence = (
        f"The answer changes: {'; '.join(others)}." if others else "Without any single prompt the answer is the same."
    )
    figure = figures.bars(
        torch.cat(list(found.effects.values())), sum(labels.values(), []),
        [kind for kind, names in labels.items() for _ in names], "What each single prompt is worth to the answer",
        f"{name_of(adapter)}: by how much the {found.target} falls when that prompt alone is switched off.", "nats",
    )  # fmt: skip
    return figure, sentence


@told(1)
def words(studio: Studio, adapter: str | None, space: str) -> tuple[go.Figure]:
    """(figure,) of the words nearest to each textual prompt."""
    if adapter in (None, NONE):
        raise InputError("The untouched model has no prompts; choose one that was tuned with M²PT.")

    def look():
        with studio.looking.use(adapter) as backbone:
            return nearest_words(backbone, SPACES[space])

    return (figures.attention.words(studio.keep(("words", adapter, space), look)),)


def tab(studio: Studio, asked: gr.State, item: gr.Tab) -> None:
    """Lay the tab out."""
    now = gr.Textbox(label="Answer with these prompts", lines=2, elem_classes="answer", render=False)
    effect = gr.Markdown(render=False)
    bars, near = (
        gr.Plot(label="Each prompt's effect", show_label=False, render=False),
        gr.Plot(label="Nearest words", show_label=False, render=False),
    )
    others = gr.Markdown(render=False)
    whose, message, _ = picker(asked, [now, effect, bars, others, near])
    with gr.Row():
        with gr.Column(min_width=300):
            textual = gr.CheckboxGroup([], label="Textual prompts that are on", elem_classes="prompts")
            textual_scale = gr.Slider(0, 2, 1, step=0.1, label="Strength of the textual prompts")
            visual = gr.CheckboxGroup([], label="Visual prompts that are on", elem_classes="prompts")
            visual_scale = gr.Slider(0, 2, 1, step=0.1, label="Strength of the visual prompts")
            reset = gr.Button("All on, as tuned", size="sm")
        with gr.Column(min_width=300):
            now.render()
            effect.render()
            gr.Markdown(READ)
    press = gr.Button("Measure the effect of each single prompt")
    bars.render()
    others.render()
    export.figure_buttons("mmpt-prompts", bars, message)
    space = gr.Dropdown(list(SPACES), value=list(SPACES)[0], label="Compare the textual prompts with words …")
    name = gr.Button("Show the words nearest to each textual prompt")
    near.render()
    export.figure_buttons("mmpt-words", near, message)

    live = {"outputs": [message, now, effect], "concurrency_id": "looking", "trigger_mode": "always_last",
            "show_progress_on": now}  # fmt: skip
    given = [asked, whose, textual, visual, textual_scale, visual_scale]
    fresh = {"fn": partial(offer, studio), "inputs": whose, "outputs": [message, *given[2:], now, effect],
             "show_progress": "hidden", "concurrency_id": "looking", "trigger_mode": "always_last"}  # fmt: skip
    gr.on([item.select, whose.change], **fresh)
    renewed = reset.click(**fresh)
    running = [
        renewed,
        renewed.success(partial(change, studio), given, **live),
        gr.on(
            [textual.input, visual.input, textual_scale.input, visual_scale.input],
            partial(change, studio), given, **live,
        ),
        press.click(
            partial(effects, studio), [asked, whose], [message, bars, others], show_progress_on=bars,
            concurrency_id="looking",
        ),
        gr.on(
            [name.click, space.input], partial(words, studio), [whose, space], [message, near], show_progress_on=near,
            concurrency_id="looking", trigger_mode="always_last",
        ),
    ]  # fmt: skip
    gr.on([asked.change, whose.input], None, cancels=running, show_progress="hidden")


def _names(backbone: Backbone) -> dict[str, list[str]]:
    """ "T1", "T2", … and "V1", "V2", … of the active adapter."""
    rows = prompt_rows(backbone)
    return {kind: [f"{letter}{i + 1}" for i in range(rows[kind][1] if kind in rows else 0)]
            for kind, letter in LETTERS.items()}  # fmt: skip


def _strengths(backbone, given):
    """(P,) by kind, of the kinds that there are: 0 for what is not named, else the scale."""
    return {
        kind: torch.tensor([scale * (name in on) for name in names], dtype=torch.float32)
        for kind, names in _names(backbone).items()
        if names
        for on, scale in [given[kind]]
    }
