"""Attention: where the layers looked while the last answer was written."""

from functools import partial

import gradio as gr
import plotly.graph_objects as go

from app import cross_attention, export
from app.state import Asked, Studio, told
from app.whose import answer_of, picker, when_open
from mmpt import figures
from mmpt.explain.attention import PREDICTING, Attention, attention, vision_attention
from mmpt.m2pt.backbone import find_backbone

LLM, TOWER = "language model", "vision tower"
PICTURE, POSITIONS, SEGMENTS, HEADS, TOKENS, FLOW = VIEWS = (
    "Over the picture", "From here to all positions", "Between segments", "Layer by head", "Token by token",
    "Followed back",
)  # fmt: skip
READ = """*How to read it.* Attention says where a layer looked. It does not say what the answer depended on: for that
see *Attribution*. Much of it rests on a few positions whatever is asked (sinks); leave them out to see the rest."""


def seen(studio: Studio, asked: Asked | None, adapter: str | None, tower: str) -> Attention:
    """The attention behind a model's last answer, kept for a while.

    Raises:
        InputError: nothing was asked.
    """
    answer = answer_of(asked, adapter)

    def look():
        with studio.looking.use(adapter) as backbone:
            if tower == TOWER:
                return vision_attention(backbone, asked.image())
            return attention(backbone, asked.image(), asked.question, answer)

    return studio.keep(("attention", tower, asked.picture, asked.question, adapter, answer), look)


def places(found: Attention) -> list[tuple[str, str | int]]:
    """(label, source or target) of all that can be looked from and at, patches apart."""
    known = [(figures.NAMES[kind], kind) for kind in found.segments.present]
    if found.answer:
        known.insert(0, (figures.NAMES[PREDICTING], PREDICTING))
    kinds, labels = found.segments.kinds, found.segments.labels
    return known + [(f"{figures.NAMES[kinds[i]]}: {labels[i]!r}", i) for i in tokens(found)]


def tokens(found: Attention) -> list[int]:
    """All positions but the patches."""
    return [i for i, kind in enumerate(found.segments.kinds) if kind != "patch"]


@told(5)
def offer(studio: Studio, asked: Asked | None, adapter: str | None, tower: str):
    """(sources, targets, tokens to click, picture to click, sentence) for the last answer."""
    if studio.text_only(adapter):
        return cross_attention.offer(studio, asked, adapter)
    found = seen(studio, asked, adapter, tower)
    choices = places(found)
    strip = [(found.segments.labels[i].strip() or "␣", figures.NAMES[found.segments.kinds[i]]) for i in tokens(found)]
    sentence = found.order.sentence if found.order else "In the vision tower every position sees all the others."
    source = choices[0][1]
    targets = [(label, value) for label, value in choices if value != PREDICTING]
    return (
        gr.Dropdown(choices=choices, value=source), gr.Dropdown(choices=targets, value="patch"), strip, asked.shown(),
        sentence,
    )  # fmt: skip


@told(1)
def draw(
    studio: Studio, asked: Asked | None, adapter: str | None, tower: str, view: str, source, target, layer: int,
    head: int, sinks: bool,
) -> tuple[go.Figure]:  # fmt: skip
    """(figure,); a layer or head of 0 is the mean, and what is not chosen yet is what `offer` would choose."""
    if studio.text_only(adapter):
        return (_of_text_only(studio, asked, adapter, view, source),)
    found = seen(studio, asked, adapter, tower)
    source, target = places(found)[0][1] if source is None else source, "patch" if target is None else target
    if not sinks:
        found = found.without_sinks()
    which = (int(layer) - 1 if layer else None, int(head) - 1 if head else None)
    if view == PICTURE:
        return (figures.attention.on_picture(found, asked.shown(), source, *which),)
    if view == POSITIONS:
        return (figures.attention.seen_from(found, source, *which),)
    if view == SEGMENTS:
        return (figures.attention.between_segments(found, *which),)
    if view == HEADS:
        return (figures.attention.overview(found, source, target),)
    if view == TOKENS:
        return (figures.attention.between_positions(found, *which),)
    return (figures.attention.flow(found, source),)


def _of_text_only(studio, asked, adapter, view, source):
    if view == PICTURE:
        return cross_attention.over_picture(studio, asked, adapter, source)
    if view == TOKENS:
        return cross_attention.by_word(studio, asked, adapter)
    raise cross_attention.no_such(f"“{view}”")


@told(1)
def click_patch(studio: Studio, asked: Asked | None, adapter: str | None, tower: str, event: gr.SelectData):
    """(source,): the patch at the place that was clicked."""
    if studio.text_only(adapter):
        raise cross_attention.no_such("What a patch looked at")
    found = seen(studio, asked, adapter, tower).segments
    x, y = event.index
    boxes = found.boxes(*asked.shown().size)
    inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
    if not inside.any():  # cropped away by the processor
        return (gr.skip(),)
    i = found.where("patch")[inside.nonzero()[0, 0]].item()
    choices = places(seen(studio, asked, adapter, tower)) + [(f"patch: {found.labels[i]}", i)]
    return (gr.Dropdown(choices=choices, value=i),)


@told(1)
def click_token(studio: Studio, asked: Asked | None, adapter: str | None, tower: str, event: gr.SelectData):
    """(source,): the token or prompt that was clicked."""
    if studio.text_only(adapter):
        return (cross_attention.from_word(studio, asked, adapter, event.index),)
    found = seen(studio, asked, adapter, tower)
    return (gr.Dropdown(choices=places(found), value=tokens(found)[event.index]),)


def tab(studio: Studio, asked: gr.State, item: gr.Tab, opened: gr.State) -> None:
    """Lay the tab out; `opened` holds the name of the tab that is open."""
    config, host = studio.plain.model.config, find_backbone(studio.plain.model)
    sizes = {LLM: (len(host.textual_blocks), config.text_config.num_attention_heads),
             TOWER: (max(host.reach), config.vision_config.num_attention_heads)}  # fmt: skip
    plot, order = gr.Plot(label="Attention", show_label=False, render=False), gr.Markdown(render=False)
    picture = gr.Image(
        label="Click a patch: where does it look?", interactive=False, buttons=[], height=300, format="png",
        alt_text="The last picture; a click chooses the patch there", render=False,
    )  # fmt: skip
    strip = gr.HighlightedText(
        label="Click a word or a prompt: where does it look?", color_map={
            figures.NAMES[kind]: colour for kind, colour in figures.COLOURS.items()
        }, show_legend=True, combine_adjacent=False, scale=2, elem_classes="strip", render=False,
    )  # fmt: skip
    whose, message, renewed = picker(asked, [plot, order, picture, strip])
    order.render()
    with gr.Row():
        with gr.Column(min_width=280):
            tower = gr.Radio([LLM, TOWER], value=LLM, label="Look into the")
            view = gr.Dropdown(list(VIEWS), value=PICTURE, label="Show")
            source = gr.Dropdown([], label="From", info="or click a patch or a word below")
            target = gr.Dropdown([], label="To", info="for “Layer by head”")
            layer = gr.Slider(0, sizes[LLM][0], 0, step=1, label="Layer (0: mean over all)")
            head = gr.Slider(0, sizes[LLM][1], 0, step=1, label="Head (0: mean over all)")
            sinks = gr.Checkbox(True, label="Count sinks too")
        with gr.Column(min_width=300, scale=2):
            plot.render()
            export.figure_buttons("mmpt-attention", plot, message)
            gr.Markdown(READ)
    with gr.Row():
        picture.render()
        strip.render()

    last = [asked, whose, tower]
    looking = {"concurrency_id": "looking", "trigger_mode": "always_last"}
    shown = [message, source, target, strip, picture, order]
    given = [*last, view, source, target, layer, head, sinks]
    limits = tower.input(
        lambda name: [gr.Slider(maximum=size, value=0) for size in sizes[name]], tower, [layer, head],
        show_progress="hidden",
    )  # fmt: skip
    draws = {"fn": partial(draw, studio), "inputs": given, "outputs": [message, plot]} | looking
    offers = {"fn": partial(offer, studio), "inputs": last, "outputs": shown, "show_progress_on": plot} | looking
    offered = limits.then(**offers)
    entered = item.select(**offers)
    switched = whose.input(None, js="() => []").then(**offers)  # which lets go first what the former model began
    chosen = [view.input, source.input, target.input, layer.input, head.input, sinks.input]
    # Not `then`, which Gradio also runs after what was cancelled.
    running = [offered, offered.success(**draws), entered, entered.success(**draws), gr.on(chosen, **draws)]
    running.append(switched.success(**draws))
    # No event that reads where a click was may be deferred: Gradio would give it the first click's place.
    to_source = {"inputs": last, "outputs": [message, source], "show_progress": "hidden"} | looking
    to_source["trigger_mode"] = "multiple"

    def on_picture(asked, adapter, tower, event: gr.SelectData):  # Gradio finds no event in a partial
        return click_patch(studio, asked, adapter, tower, event)

    def on_strip(asked, adapter, tower, event: gr.SelectData):
        return click_token(studio, asked, adapter, tower, event)

    for clicked in (picture.select(on_picture, **to_source), strip.select(on_strip, **to_source)):
        running += [clicked, clicked.success(**draws)]
    gr.on([asked.change, whose.input], None, cancels=running, show_progress="hidden")
    gr.on(asked.change, None, cancels=[switched], show_progress="hidden")
    when = {"inputs": [opened, *last], "fn": when_open("attention", partial(offer, studio), 6)}
    again = renewed.success(**offers | when)
    when = {"inputs": [opened, *given], "fn": when_open("attention", partial(draw, studio), 2)}
    drawn = again.success(**draws | when)
    gr.on(whose.input, None, cancels=[again, drawn], show_progress="hidden")
