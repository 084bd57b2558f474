"""Table: what was measured, sortable, with the figure."""

import json
from pathlib import Path

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
import torch

from app import export
from mmpt import figures
from mmpt.files import ASSETS
from mmpt.rows import ABLATIONS, BUDGETS, rows_of
from mmpt.table import AVERAGE, TUNING, figure, suites_of, summarise

RESULTS = ASSETS / "results"
TASKS = "tuning tasks, per cent right"


def tables(folder: Path = RESULTS) -> dict[str, tuple[pd.DataFrame, go.Figure]]:
    """Every table that there are results for: its name, its cells and its figure."""
    found = {}
    for budget in BUDGETS:
        for name in ("main", *ABLATIONS):
            rows = [
                (experiment, [json.loads(file.read_text()) for file in files])
                for experiment in rows_of(name)
                if (files := sorted((folder / budget).glob(f"{experiment.name}-s[0-9].json")))
            ]
            if len(rows) > 1:  # an ablation shares M²PT's own row with the main table
                summaries = [summarise(*row) for row in rows]
                label = name if name == budget else f"{name} ({budget} budget)"
                found[label] = cells(summaries), figure(summaries)
    files = sorted(folder.glob("tasks-*.json"))
    if files:
        results = {file.stem.removeprefix("tasks-"): json.loads(file.read_text()) for file in files}
        found[TASKS] = tasks(results)
    return found


def cells(summaries: list[dict]) -> pd.DataFrame:
    """A row a method: parameters, speed and each suite's figure."""
    names = {"method": "Method", "seeds": "seeds", "tuned": "tuned", "share": "tuned, %", "questions_s": "questions/s",
             "peak_mib": "peak MiB", "tasks": TUNING, AVERAGE: AVERAGE}  # fmt: skip
    names |= {name: name for name in suites_of(summaries)}
    frame = pd.DataFrame([{shown: row.get(key) for key, shown in names.items()} for row in summaries])
    return frame.dropna(axis=1, how="all").round({name: 4 if name == "tuned, %" else 2 for name in frame})


def tasks(results: dict[str, dict]) -> tuple[pd.DataFrame, go.Figure]:
    """A row a task, a column a model, and what the best guess without the picture gets."""
    first = next(iter(results.values()))
    columns = {f"{name} ({result['n']:,})": result["figures"] for name, result in results.items()}
    columns |= {"best guess": first["chance"]}
    frame = pd.DataFrame(columns).rename_axis("task").reset_index()
    values = torch.tensor(frame[list(columns)].to_numpy())
    text = [[f"{value:.0f}" for value in row] for row in values.tolist()]
    note = (
        "In brackets: how many fresh questions. “Best guess”: without the picture, and without knowing what kind and "
        "colour named things are."
    )
    plot = figures.matrix(
        values, list(frame["task"]), list(columns), "Right answers, task by task", note, "%", text=text
    )
    return frame, plot


def tab() -> None:
    """Lay the tab out."""
    known = tables()
    if not known:
        gr.Markdown(f"There are no results in {RESULTS.name}/ yet: `python -m mmpt table` measures them.")
        return
    first = next(iter(known))
    choice = gr.Dropdown(list(known), value=first, label="Results")
    sheet = gr.Dataframe(
        known[first][0], label="⋮ in a column's head sorts and filters", interactive=False, datatype="auto",
        pinned_columns=1,
    )  # fmt: skip
    plot = gr.Plot(known[first][1], label="The same as a figure", show_label=False, elem_classes="wide")
    message = gr.HTML(elem_classes="message")
    export.figure_buttons("mmpt-table", plot, message)
    choice.input(lambda name: known[name], choice, [sheet, plot])
