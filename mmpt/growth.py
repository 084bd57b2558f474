"""How the time of a training step grows with prompts, pictures and questions: M²PT beside its floor (`mmpt.bench`)."""

from dataclasses import replace
from statistics import median

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from tqdm import tqdm

from mmpt.backbones import load
from mmpt.bench import Work, check_timed, ready, seconds
from mmpt.figures.style import COLOURS, INK, titled

BASE = Work(2, 2, 5)
ALONG = {  # what grows, and how `Work` calls it; the floor has the visual prompts too, and no textual ones
    "textual prompts": ("textual", (1, 10, 25, 50, 100)),
    "visual prompts": ("visual", (1, 10, 25, 50, 100)),
    "pictures": ("pictures", (1, 2, 4, 8)),
    "questions a picture": ("turns", (1, 2, 4, 8)),
}
LINES = {"floor": ("the frozen model", INK), "m2pt": ("M²PT", COLOURS["textual"])}


def growth(backbone_name: str = "tiny", base: Work = BASE) -> list[dict]:
    """A row a size: along (of `ALONG`), size, and the medians floor and m2pt, in seconds.

    Else it is `base`. Both take turns, and all sizes do, round by round. Raises InputError as `check_timed` does.
    """
    backbone = load(backbone_name)
    check_timed(backbone)
    rows = [{"along": name, "size": size} for name, (_, sizes) in ALONG.items() for size in sizes]
    times = [{name: [] for name in LINES} for _ in rows]
    with tqdm(total=base.rounds * len(rows), unit="size") as bar:
        for _ in range(base.rounds):
            for row, found in zip(rows, times):
                work = replace(base, **{ALONG[row["along"]][0]: row["size"]})
                for name in LINES:
                    with ready(name, backbone, work) as runner:
                        found[name].append(seconds(runner.step, backbone.model.device))
                bar.update()
    return [row | {name: median(values) for name, values in found.items()} for row, found in zip(rows, times)]


def figure(rows: list[dict]) -> go.Figure:
    """A panel a thing that grows: seconds a step of M²PT and of the frozen model."""
    panels = make_subplots(2, 2, subplot_titles=list(ALONG), vertical_spacing=0.2, horizontal_spacing=0.12)
    for i, along in enumerate(ALONG):
        part = [row for row in rows if row["along"] == along]
        for name, (label, colour) in LINES.items():
            panels.add_scatter(
                x=[row["size"] for row in part],
                y=[row[name] for row in part],
                text=[f"{row[name] / row['floor']:.2f} of the floor" for row in part],
                name=label,
                line_color=colour,
                mode="lines+markers",
                legendgroup=name,
                showlegend=i == 0,
                row=i // 2 + 1,
                col=i % 2 + 1,
            )
    panels.update_yaxes(rangemode="tozero", ticksuffix=" s")
    most = max(row["m2pt"] / row["floor"] for row in rows)
    note = f"Forward and backward, seconds. M²PT takes at most {most:.2f} times as long."
    return titled(panels, "A training step beside the frozen model's own", note, 620)
