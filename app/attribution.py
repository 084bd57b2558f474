"""Attribution: what the last answer depended on, method by method."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gradio as gr
import plotly.graph_objects as go
import torch
from PIL import Image

from app import export
from app.progress import watched
from app.state import Asked, Studio, alert, plain, told
from app.whose import answer_of, name_of, picker, when_open
from mmpt import figures
from mmpt.errors import InputError
from mmpt.explain import gradients, perturbations, shapley
from mmpt.explain.attribution import Attribution
from mmpt.explain.checks import curves
from mmpt.explain.interventions import BASELINES
from mmpt.explain.segments import Segments
from mmpt.explain.targets import Case, Target

ANSWER, DIFFERENCE = "the whole answer", "against the other model's answer"
LARGE = 0.2  # a completeness gap, as a share of what is explained
ORDERS = 10  # random ones beside the map's
NOTHING = "Nothing is drawn yet: press “Compute” first."
PICTURE, WORDS, TEXTUAL, VISUAL, TOTALS = (
    "Over the picture", "Words of the question", "Textual prompts", "Visual prompts", "All parts together"
)  # fmt: skip
READ = """*How to read it.* Attribution says what the answer's log-probability depended on, against a baseline in which
a part says nothing; another baseline gives other numbers. Blue speaks for the answer, red against it. One map is a
hypothesis: compare two methods. Gradients are taken of the picture; for words and prompts choose ablation or Shapley
values."""


@dataclass(frozen=True)
class Method:
    """How to compute it, what it says in a line, and about how many calls of the model it takes."""

    run: Callable[..., Attribution]
    words: str
    calls: Callable[[Case], float]
    baselines: bool = True


def _features(case):
    return case.grid[0] * case.grid[1] + len(case.words) + sum(P for _, P in case.prompts.values())


# Gradients of the picture alone: with words and prompts moving as well, the points are too few, as the gap tells.
METHODS = {
    "Integrated gradients": Method(
        partial(gradients.integrated_gradients, of=["patch"]), "gradients summed while the picture appears",
        lambda c: 38,
    ),
    "Gradient SHAP": Method(
        partial(gradients.gradient_shap, of=["patch"]), "gradients at random points while the picture appears",
        lambda c: 2 + 20 / c.rows, False,
    ),
    "Layer conductance": Method(
        gradients.conductance, "what passes through each prompt's slot, layer by layer",
        lambda c: 2 + 17 / c.rows, False,
    ),
    "Occlusion": Method(
        perturbations.occlusion, "a square is laid over the picture, place by place",
        lambda c: 2 + (c.grid[0] - 1) * (c.grid[1] - 1) / c.rows,
    ),
    "Ablation one by one": Method(
        perturbations.feature_ablation, "one patch, word or prompt is taken away at a time",
        lambda c: 2 + _features(c) / c.rows,
    ),
    "Shapley values": Method(
        shapley.shapley, "a fair split among all parts, over all orders in which they could join",
        lambda c: 2 + 2 ** (2 + len(c.prompts)) / c.rows,
    ),
}  # fmt: skip


def target_of(asked: Asked | None, adapter: str | None, target: str | int) -> Target:
    """What the picker of targets means: the whole answer, a token of it, or the difference.

    Raises:
        InputError: nothing was asked, or both models gave the same answer.
    """
    answer = answer_of(asked, adapter)
    if target == ANSWER:
        return Target(answer)
    if target != DIFFERENCE:
        return Target(answer, token=int(target))
    other = next((text for name, text in asked.answers.items() if name != adapter), answer)
    if not other or other == answer:
        raise InputError("There is no other answer to compare with: both models said the same, or one said nothing.")
    return Target(answer, other=other)


@told(2)
def offer(studio: Studio, asked: Asked | None, adapter: str | None):
    """(targets, the answer's tokens to click) for the last answer."""
    answer = answer_of(asked, adapter)
    with studio.looking.use(adapter) as backbone:
        tokens = [backbone.processor.tokenizer.decode([i]) for i in backbone.answer_tokens(answer)[:-1]]
    tokens.append("(end)")
    choices = [(ANSWER, ANSWER)] + [(f"token {i + 1}: {text!r}", i) for i, text in enumerate(tokens)]
    if len(asked.answers) > 1:
        choices.append((DIFFERENCE, DIFFERENCE))
    return gr.Dropdown(choices=choices, value=ANSWER), [
        (text.strip() or "␣", figures.NAMES["answer"]) for text in tokens
    ]


def explain(
    studio: Studio, asked: Asked | None, adapter: str | None, name: str, target, baseline: str, progress
) -> tuple[Attribution, Segments]:
    """The attribution and where its patches lie, kept for a while.

    Raises:
        InputError: what was asked for cannot be had of this model and answer.
    """
    wanted, method = target_of(asked, adapter, target), METHODS[name]
    options = {"baseline": baseline} if method.baselines else {}

    def look():
        with studio.looking.use(adapter) as backbone:
            case = Case(backbone, asked.image(), asked.question, wanted)
            with watched(case, progress, method.calls(case)):
                return method.run(case, **options), case.segments

    return studio.keep((name, asked.picture, asked.question, adapter, wanted, baseline), look)


@told(4)
def draw(
    studio: Studio, asked: Asked | None, adapter: str | None, name: str, target, baseline: str, view: str,
    progress=gr.Progress(),  # noqa: B008
):  # fmt: skip
    """(figure, views that there are, the numbers in words, what was drawn: adapter, method, target, baseline)."""
    drawn = adapter, name, target, baseline
    found, segments = explain(studio, asked, *drawn, progress)
    views = views_of(found)
    view = view if view in views else views[0]
    return (
        figure(found, segments, adapter, view, asked.shown()),
        gr.Dropdown(choices=views, value=view),
        summary(found),
        drawn,
    )


def show(studio: Studio, asked: Asked | None, drawn: tuple | None, view: str, progress=gr.Progress()):  # noqa: B008
    """(message, …) as `draw`: another view of what was drawn last, whatever is chosen for the next."""
    if drawn is None:
        return alert(NOTHING), *[gr.skip()] * 4
    return draw(studio, asked, *drawn, view, progress)


def views_of(found: Attribution) -> list[str]:
    """The figures that an attribution has values for."""
    there = {
        PICTURE: found.patches is not None, WORDS: found.question is not None, TEXTUAL: found.textual is not None,
        VISUAL: found.visual is not None, TOTALS: len(found.totals) > 1,
    }  # fmt: skip
    return [view for view, has in there.items() if has]


def figure(found: Attribution, segments: Segments, adapter: str, view: str, image: Image.Image) -> go.Figure:
    """One of `views_of`."""
    if found.totals:
        what = f"what each adds to the {found.target}, from {found.base:.2f} at the baseline to {found.score:.2f}"
    elif found.base is None:
        gone = "a square that it is in, on average" if found.method.startswith("occlusion") else "it"
        what = f"by how much the {found.target} falls without {gone}"
    else:
        what = f"what of the {found.target} passes through each slot, counted anew in each layer"
    note = f"{name_of(adapter)}, {found.method}: {what}. Baseline: {found.baseline}."
    if view == PICTURE:
        boxes = segments.boxes(*image.size)
        return figures.overlay(image, found.patches, boxes, "Which patches the answer came from", note, "nats", True)
    if view == WORDS:
        kinds = ["question"] * len(found.words)
        return figures.bars(found.question, found.words, kinds, "Which words the answer came from", note, "nats")
    if view == TOTALS:
        values = torch.tensor(list(found.totals.values()))
        labels = [figures.NAMES[kind] for kind in found.totals]
        return figures.bars(values, labels, list(found.totals), "Which parts the answer came from", note, "nats")
    kind = "textual" if view == TEXTUAL else "visual"
    values, letter = getattr(found, kind), "T" if kind == "textual" else "V"
    names = [f"{letter}{i + 1}" for i in range(values.shape[1])]
    title = f"Which {kind} prompts the answer came from"
    if len(values) == 1:
        return figures.bars(values[0], names, [kind] * len(names), title, note, "nats")
    return figures.matrix(values, found.places[kind], names, title, note, "nats", signed=True)


def summary(found: Attribution) -> str:
    """The numbers in words, with the completeness gap where there is one."""
    text = f"The {plain(found.target)} is {found.score:.2f} nats"
    text += "." if found.base is None else f", and {found.base:.2f} at the baseline."
    if found.gap is not None:
        span = abs(found.score - found.base)
        text += f" The values miss the difference by {found.gap:+.3f} nats"
        text += f" ({abs(found.gap) / span:.1%} of it)." if span else "."
        if span and abs(found.gap) > LARGE * span:
            text += " That is a lot: do not trust the sizes, and compare another method."
    return text


@told(2)
def check(studio: Studio, asked: Asked | None, drawn: tuple | None, progress=gr.Progress()):  # noqa: B008
    """(figure, verdict) of deletion and insertion along the map that was drawn last, beside random orders."""
    if drawn is None:
        raise InputError(NOTHING)
    adapter, name, target, baseline = drawn
    found, _ = explain(studio, asked, adapter, name, target, baseline, progress)
    if found.patches is None:
        raise InputError(f"{name} gives no map over the picture; check one that does, such as integrated gradients.")
    wanted = target_of(asked, adapter, target)

    def look():
        with studio.looking.use(adapter) as backbone:
            case = Case(backbone, asked.image(), asked.question, wanted)
            with watched(case, progress, 2 + 2 * 9 * (1 + ORDERS / 2) / case.rows, "taking patches away"):
                return curves(case, found.patches, baseline=baseline, orders=ORDERS)

    result = studio.keep(("curves", name, asked.picture, asked.question, adapter, wanted, baseline), look)
    sides = {"deletion": result.deletion, "insertion": result.insertion}
    verdict = all(curve.beaten > 0.9 for curve in sides.values())
    words = f"**{'The map does better than chance' if verdict else 'The map is hardly better than chance'}**: "
    words += "; ".join(
        f"{side} area {curve.area:.3f} against {curve.chance[0]:.3f} ± {curve.chance[1]:.3f} for random orders, "
        f"better than {curve.beaten:.0%} of them"
        for side, curve in sides.items()
    )
    plot = figures.against_random(
        result.deletion.shares, {side: curve.values for side, curve in sides.items()},
        {side: curve.random for side, curve in sides.items()}, "Does the map find what matters?",
        f"{name_of(adapter)}, {found.method}, {found.target}. Patches are taken away (deletion should fall fast) or "
        "put in (insertion should rise fast), most in favour first.", result.metric,
    )  # fmt: skip
    return plot, words + "."


def click_token(event: gr.SelectData):
    """The target that is the clicked token."""
    return event.index


def tab(studio: Studio, asked: gr.State, item: gr.Tab, opened: gr.State) -> None:
    """Lay the tab out; `opened` holds the name of the tab that is open."""
    plot, numbers = gr.Plot(label="Attribution", show_label=False, render=False), gr.Markdown(render=False)
    curve, verdict = gr.Plot(label="Check of the map", show_label=False, render=False), gr.Markdown(render=False)
    drawn = gr.State()
    tokens = gr.HighlightedText(
        label="Click a word of the answer to explain it alone", show_inline_category=False,
        color_map={figures.NAMES["answer"]: figures.COLOURS["answer"]}, elem_classes="strip", render=False,
    )  # fmt: skip
    whose, message, renewed = picker(asked, [plot, numbers, curve, verdict, drawn, tokens])
    with gr.Row():
        with gr.Column(min_width=280):
            first = next(iter(METHODS))
            method = gr.Dropdown(list(METHODS), value=first, label="Method", info=METHODS[first].words)
            target = gr.Dropdown([(ANSWER, ANSWER)], value=ANSWER, label="Target", info="what is explained")
            tokens.render()
            baseline = gr.Dropdown([(words, name) for name, words in BASELINES.items()], value="mean",
                                   label="In place of a patch that is taken away")  # fmt: skip
            press = gr.Button("Compute", variant="primary")
            view = gr.Dropdown([PICTURE], value=PICTURE, label="Show")
        with gr.Column(min_width=300, scale=2):
            plot.render()
            numbers.render()
            export.figure_buttons("mmpt-attribution", plot, message)
            gr.Markdown(READ)
            test = gr.Button("Check the map against chance")
            verdict.render()
            curve.render()
            export.figure_buttons("mmpt-check", curve, message)
    looking = {"concurrency_id": "looking", "trigger_mode": "always_last"}
    method.change(lambda name: gr.Dropdown(info=METHODS[name].words), method, method, show_progress="hidden")
    tokens.select(click_token, None, target, show_progress="hidden", trigger_mode="multiple")
    given = [asked, whose, method, target, baseline, view]
    shown = {"outputs": [message, plot, view, numbers, drawn], "show_progress_on": plot} | looking
    tested = test.click(
        partial(check, studio), [asked, drawn], [message, curve, verdict], show_progress_on=curve,
        concurrency_id="looking",
    )  # fmt: skip
    # Curves belong to one map. (What one event starts runs in this order.)
    press.click(None, None, [curve, verdict], js="() => [null, '']", cancels=tested, show_progress="hidden")
    running = [
        press.click(partial(draw, studio), given, **shown),
        view.input(partial(show, studio), [asked, drawn, view], **shown),
        tested,
    ]
    gr.on([asked.change, whose.input], None, cancels=running, show_progress="hidden")
    offers = {"outputs": [message, target, tokens], "show_progress": "hidden"} | looking
    gr.on([item.select, whose.input], partial(offer, studio), [asked, whose], **offers)
    renewed.success(when_open("attribution", partial(offer, studio), 3), [opened, asked, whose], **offers)
