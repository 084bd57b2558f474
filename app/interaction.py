"""Interaction: which textual prompt works through which visual prompt, for the last answer."""

import math
from functools import partial

import gradio as gr
import plotly.graph_objects as go

from app import export
from app.attribution import ANSWER, DIFFERENCE, target_of
from app.progress import watched
from app.state import Asked, Studio, plain, told
from app.whose import name_of, picker
from mmpt import figures
from mmpt.explain.interaction import interaction
from mmpt.explain.targets import Case

READ = """*How to read it.* Each cell compares four runs: with both prompts, without the one, without the other, and
without both. Blue: T does more for the answer (or less against it) while V is there. Red: less for it, or more against
it. Zero: they work side by side. It is a statement on causes, whatever the order of the prompts and whichever can look
at the other."""


@told(2)
def draw(
    studio: Studio,
    asked: Asked | None,
    adapter: str | None,
    target: str,
    progress=gr.Progress(),  # noqa: B008
) -> tuple[go.Figure, str]:
    """(figure, the strongest pair in words)."""
    wanted = target_of(asked, adapter, target)

    def look():
        with studio.looking.use(adapter) as backbone:
            case = Case(backbone, asked.image(), asked.question, wanted)
            pairs = math.prod(P + 1 for _, P in case.prompts.values())
            calls = 2 + pairs / case.rows * len(wanted.answers)
            with watched(case, progress, calls, "switching prompts off, pair by pair"):
                return interaction(case)

    found = studio.keep(("interaction", asked.picture, asked.question, adapter, wanted), look)
    i, j = divmod(found.matrix.abs().argmax().item(), found.matrix.shape[1])
    sentence = (
        f"The {plain(found.target)} is {found.score:.2f} nats. The strongest pair is T{i + 1} and V{j + 1}: "
        f"{found.matrix[i, j]:+.3f} nats; alone, T{i + 1} is worth {found.textual[i]:+.3f} and V{j + 1} "
        f"{found.visual[j]:+.3f}."
    )
    title = "Which textual prompt works through which visual prompt"
    return figures.interaction(found.matrix, title, f"{name_of(adapter)}, {found.target}."), sentence


def tab(studio: Studio, asked: gr.State, item: gr.Tab) -> None:
    """Lay the tab out."""
    plot, sentence = gr.Plot(label="Interaction", show_label=False, render=False), gr.Markdown(render=False)
    whose, message, _ = picker(asked, [plot, sentence])
    target = gr.Radio([ANSWER, DIFFERENCE], value=ANSWER, label="Target")
    press = gr.Button("Compute (about half a minute)", variant="primary")
    plot.render()
    sentence.render()
    export.figure_buttons("mmpt-interaction", plot, message)
    gr.Markdown(READ)
    pressed = press.click(
        partial(draw, studio), [asked, whose, target], [message, plot, sentence], show_progress_on=plot,
        concurrency_id="looking",
    )  # fmt: skip
    gr.on([asked.change, whose.input], None, cancels=[pressed], show_progress="hidden")
