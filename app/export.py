"""Files to take along: every figure as HTML or PNG, the answers as JSON."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import plotly.io

from app.state import Asked, alert
from mmpt import figures
from mmpt.errors import InputError

SECONDS = 120  # that a file is kept; Gradio copies it at once
_folder = TemporaryDirectory(prefix="mmpt-app-", ignore_cleanup_errors=True)  # gone with the app
KINDS = {"heatmap", "scatter", "bar"}  # of traces
_names = count()


def new_file(name: str) -> Path:
    """A path for a file of that name; those of some minutes ago are removed."""
    folder = Path(_folder.name)
    for old in folder.glob("*/*"):
        if old.is_file() and time.time() - old.stat().st_mtime > SECONDS:
            old.unlink(missing_ok=True)
    place = folder / str(next(_names) % 100)
    place.mkdir(exist_ok=True)
    return place / name


def save_figure(ending: str, name: str, plot) -> tuple[str, str | None]:
    """(message, path) of what a `gr.Plot` shows, as "html" or "png"."""
    try:
        if plot is None:
            raise InputError("There is no figure yet to save.")
        path = new_file(f"{name}.{ending}")
        figures.save(_own(plot.plot), path)
        return "", str(path)
    except InputError as error:
        return alert(error), None


def _own(text):
    """The figure in JSON, which may come from anybody, if it is of a kind that this page shows: a PNG is drawn by a
    browser on the server, which would fetch whatever else a figure names."""
    try:
        shown = plotly.io.from_json(text)
        sources = [image.source or "" for image in shown.layout.images]
        kinds, known = {trace.type for trace in shown.data}, shown.layout.title.text is not None
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known or not kinds <= KINDS or not all(source.startswith("data:image/") for source in sources):
        raise InputError("This is no figure of this page; draw it anew.")
    return shown


def save_answers(asked: Asked | None, rated: dict) -> tuple[str, str | None]:
    """(message, path) of the last question with its answers as JSON; `rated`: {answer: probability} by adapter."""
    if asked is None:
        return alert("There is no answer yet to save: ask a question first."), None
    row = asdict(asked) | {"picture": Path(asked.picture).name}
    row["probabilities"] = rated
    path = new_file("mmpt-answers.json")
    path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return "", str(path)


def button(label: str, make: Callable, inputs, message: gr.HTML) -> None:
    """A button that makes a file, (message, path), and has the browser download it."""
    name = f"file-{next(_names)}"
    press = gr.Button(label, size="sm", min_width=110)
    file = gr.DownloadButton("file", elem_id=name, visible="hidden")
    made = press.click(
        make, inputs, [message, file], show_progress="minimal", show_progress_on=message, concurrency_id="export",
        concurrency_limit=2,
    )  # fmt: skip
    click = f"(file) => file && setTimeout(() => document.getElementById('{name}').click(), 200)"
    made.then(None, file, None, js=click)


def figure_buttons(name: str, plot: gr.Plot, message: gr.HTML) -> None:
    """A row of buttons that save what `plot` shows."""
    with gr.Row():
        for ending in ("html", "png"):

            def make(shown, ending=ending):
                return save_figure(ending, name, shown)

            button(f"Save figure ({ending.upper()})", make, plot, message)
