"""What the notebooks share: how much they may compute, a library's own source, tables and pictures on the page.

`python -m mmpt.notebooks FOLDER` runs them all and writes them there as pages, with an index.
"""

import base64
import html
import inspect
import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from IPython.display import HTML, Code
from peft import PeftConfig, PeftModel
from PIL import Image
from transformers.utils import logging

from mmpt.adapters import taken_off

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

# What the libraries say to each other; a learner can do nothing about it.
logging.disable_progress_bar()
logging.set_verbosity_error()
logging.get_logger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", message="Adapter name")


def budget(full: Any, fast: Any) -> Any:
    """`full`; `fast` where the environment says MMPT_FAST=1, as the tests do."""
    return fast if os.environ.get("MMPT_FAST") == "1" else full


def put_on(model: PeftModel, name: str, config: PeftConfig) -> None:
    """Add an adapter; one of that name from an earlier run of the cell goes first."""
    if name in model.peft_config:
        model.delete_adapter(name)
    model.add_adapter(name, config)


def unload(backbone: Any) -> None:
    """Take all adapters off, such as those of an earlier run of the cell; the untouched model is left."""
    if isinstance(backbone.model, PeftModel):
        backbone.model = taken_off(backbone.model)


def show_source(thing: Any) -> Code:
    """The source of a function or class as it stands in the library, under its full name."""
    source = inspect.cleandoc("\n" + inspect.getsource(thing))
    return Code(f"# {thing.__module__}.{thing.__qualname__}\n{source}", language="python")


def table(head: list[str], rows: list) -> HTML:
    """Rows of cells as a table; a cell that is a PIL image is shown as a picture."""
    lines = [_row("th", map(html.escape, head)), *(_row("td", map(_cell, row)) for row in rows)]
    return HTML(f"<table>{''.join(lines)}</table>")


def _row(tag, cells):
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{cell}</{tag}>' for cell in cells) + "</tr>"


def _cell(value):
    if not isinstance(value, Image.Image):
        return html.escape(str(value))
    file = io.BytesIO()
    value.save(file, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" width="{value.width}">'


def execute(book: Any, timeout: int | None = None) -> None:
    """Run a notebook (`nbformat`) in a kernel of its own; its outputs are put in place.

    Args:
        timeout: seconds that a cell may take.
    """
    from nbclient import NotebookClient

    client = NotebookClient(book, kernel_name="python3", timeout=timeout, resources={"metadata": {"path": NOTEBOOKS}})
    # Without nbclient's stand-in for Output widgets: it writes to the socket on which nbclient waits for the kernel's
    # reply, which can then go unnoticed for ever. What a widget shows becomes an output of the cell instead.
    client.widget_registry = {}
    client.execute()


def build(folder: str | Path) -> Path:
    """Run all notebooks and write them as HTML pages; returns the index, which has a line and a figure of each."""
    import nbformat
    from nbconvert import HTMLExporter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    root = os.path.relpath(NOTEBOOKS.parent, folder)
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+notebook"  # the kernels': pages carry plotly.js
    entries = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(path.name, flush=True)
        book = nbformat.read(path, 4)
        execute(book)
        page = HTMLExporter().from_notebook_node(book)[0].replace('href="../', f'href="{root}/')
        page = re.sub(r'href="(\d\d-[\w-]+)\.ipynb"', r'href="\1.html"', page)
        page = page.replace("</head>", "<style>.jp-RenderedHTML pre {font-family: monospace}</style></head>", 1)
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        entries.append(_entry(path.stem, book))
    index = folder / "index.html"
    style = "body {font-family: sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem}"
    head = f"<!doctype html><meta charset='utf-8'><title>mmpt: notebooks</title><style>{style}</style>"
    index.write_text(f"{head}<h1>mmpt: notebooks</h1>{''.join(entries)}", encoding="utf-8")
    return index


def _entry(name, book):
    """Title, first thing that is learned, and first figure of a notebook that was run."""
    from plotly.io import to_html

    opening = book["cells"][0]["source"]
    title = re.search(r"^# (.*)", opening, re.M)[1]
    line = re.search(r"^- (.*?)[;.]$", opening, re.M)[1].replace("*", "")
    outputs = (output for cell in book["cells"] for output in cell.get("outputs", ()))
    kind = "application/vnd.plotly.v1+json"
    figure = next(output["data"][kind] for output in outputs if kind in output.get("data", ()))
    first = name.startswith("00")  # brings plotly.js for all
    drawn = to_html(figure, {"staticPlot": True}, full_html=False, include_plotlyjs=first, validate=False)
    return f'<h2><a href="{name}.html">{html.escape(title)}</a></h2><p>{html.escape(line)}</p>{drawn}'


if __name__ == "__main__":
    print(build(sys.argv[1]))
