"""Figures of any values: over a picture, over words, as a matrix, along a line.

Notation: N patches in a grid, n bars, S steps.
"""

import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor

from mmpt.figures.style import AMOUNT, COLOURS, INK, NAMES, SIGNED, ink_on, see_through, shown, titled


def overlay(
    image: Image.Image,
    values: Tensor,
    boxes: Tensor,
    title: str,
    note: str = "",
    unit: str = "",
    signed: bool = False,
) -> go.Figure:
    """Values (rows, columns) of the patches over the picture, which is grey so that all colour is the map's.

    Under amounts it is also dark, so that what is bright has much.

    Args:
        boxes: (N, 4) left, top, right, bottom of each patch in pixels of `image`: `Segments.boxes(*image.size)`.
        signed: red is below 0, blue above; otherwise amounts from 0.
    """
    rows, columns = values.shape
    width, height = image.size
    corners = boxes.view(rows, columns, 4)
    heat = go.Heatmap(
        x=[*corners[0, :, 0].tolist(), corners[0, -1, 2].item()],
        y=[*corners[:, 0, 1].tolist(), corners[-1, 0, 3].item()],
        z=values.tolist(),
        customdata=[[f"row {r + 1}, column {c + 1}" for c in range(columns)] for r in range(rows)],
        hovertemplate="%{customdata}<br>%{z:.4g} " + unit + "<extra></extra>",
        colorscale=see_through(SIGNED if signed else AMOUNT),
        **_range(values, signed),
        colorbar=_colourbar(unit),
    )
    figure, shown = go.Figure(heat), image.convert("L")
    shown.thumbnail((1344, 1344))  # twice what the app shows; a whole photograph would make the file megabytes larger
    figure.add_layout_image(
        source=shown.point(lambda v: v if signed else v // 2),
        x=0,
        y=0,
        xref="x",
        yref="y",
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
    )
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
    figure.update_yaxes(visible=False, range=[height, 0], scaleanchor="x", constrain="domain")
    return titled(figure, title, note, 560)


def bars(
    values: Tensor,
    labels: list[str],
    kinds: list[str],
    title: str,
    note: str = "",
    unit: str = "",
) -> go.Figure:
    """A bar (n,) for each token, prompt or segment, coloured by segment."""
    figure = go.Figure()
    for kind in dict.fromkeys(kinds):
        at = [i for i, k in enumerate(kinds) if k == kind]
        figure.add_bar(
            x=at, y=values[at].tolist(), name=NAMES[kind], marker_color=COLOURS[kind],
            customdata=[shown(labels[i]) for i in at], hovertemplate="%{customdata}: %{y:.4g} " + unit,
        )  # fmt: skip
    legible = len(labels) <= 60
    figure.update_xaxes(
        tickvals=list(range(len(labels))) if legible else [], ticktext=[shown(label) for label in labels],
        tickangle=-60 if len(labels) > 8 else 0, showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(title_text=unit)
    figure.update_layout(bargap=0.15, showlegend=len(set(kinds)) > 1, legend_y=-0.2 if len(labels) <= 8 else -0.5)
    return titled(figure, title, note)


def matrix(
    values: Tensor,
    rows: list[str],
    columns: list[str],
    title: str,
    note: str = "",
    unit: str = "",
    signed: bool = False,
    row_title: str = "",
    column_title: str = "",
    text: list[list[str]] | None = None,
) -> go.Figure:
    """Values (rows, columns) as coloured cells, the first row at the top; NaN stays empty. `text` is written in."""
    scale, limits = SIGNED if signed else AMOUNT, _range(values, signed)
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            customdata=[[f"{shown(r)} → {shown(c)}" for c in columns] for r in rows],
            hovertemplate="%{customdata}<br>%{z:.4g} " + unit + "<extra></extra>",
            colorscale=scale,
            **limits,
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar=_colourbar(unit),
        )
    )
    if text:
        places = (values - limits["zmin"]) / (limits["zmax"] - limits["zmin"])
        figure.add_scatter(
            x=list(range(len(columns))) * len(rows),
            y=[r for r in range(len(rows)) for _ in columns],
            text=sum(text, []),
            textfont=dict(color=[ink_on(place, scale) for place in places.flatten().tolist()], size=11),
            mode="text",
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=list(map(shown, columns)), title_text=column_title
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=list(map(shown, rows)), title_text=row_title)
    figure.update_xaxes(showgrid=False, zeroline=False, range=[-0.5, len(columns) - 0.5])
    figure.update_yaxes(showgrid=False, zeroline=False, range=[len(rows) - 0.5, -0.5])
    return titled(figure, title, note, max(380, 160 + 20 * len(rows)))


def interaction(values: Tensor, title: str, note: str = "", unit: str = "nats") -> go.Figure:
    """Signed values (textual, visual) of every pair of prompts, such as `Interaction.matrix`."""
    note = f"{note} Blue: T does more for the answer (or less against it) while V is there. ".lstrip()
    note += "Red: less for it, or more against it."
    rows, columns = values.shape
    names = [f"T{i + 1}" for i in range(rows)], [f"V{j + 1}" for j in range(columns)]
    return matrix(
        values, *names, title, note, unit, signed=True, row_title="textual prompt", column_title="visual prompt"
    )


def against_random(
    shares: Tensor,
    curves: dict[str, Tensor],
    random: dict[str, Tensor],
    title: str,
    note: str = "",
    unit: str = "nats",
) -> go.Figure:
    """Deletion and insertion curves, each with the mean of random orders and a band of one standard deviation.

    Args:
        shares: (S,) the share that is taken out or put in, from 0 to 1.
        curves: name → (S,) the target along the order of the map, such as {"deletion": …, "insertion": …}.
        random: name → (orders, S) the same along random orders.
    """
    figure = go.Figure()
    x = shares.tolist()
    for (name, curve), colour in zip(curves.items(), (COLOURS["question"], COLOURS["visual"])):
        mean, spread = random[name].mean(0), random[name].std(0)
        band = (mean + spread).tolist() + (mean - spread).flip(0).tolist()
        figure.add_scatter(
            x=x + x[::-1], y=band, fill="toself", fillcolor=_faded(colour), line_width=0, hoverinfo="skip",
            name=f"{name}, random order ± 1 s.d.", legendgroup=name, mode="lines",
        )  # fmt: skip
        line = dict(color=colour, width=1.5, dash="dot")
        figure.add_scatter(
            x=x, y=mean.tolist(), name=f"{name}, random order", line=line, legendgroup=name, mode="lines"
        )
        line = dict(color=colour, width=3)
        figure.add_scatter(x=x, y=curve.tolist(), name=f"{name}, order of the map", line=line, legendgroup=name)
    figure.update_xaxes(title_text="share taken out or put in", tickformat=".0%")
    figure.update_yaxes(title_text=unit)
    return titled(figure, title, note)


def loss(steps: list[int], losses: list[float], title: str = "The loss while tuning") -> go.Figure:
    """The loss of every step, and its running mean over a tenth of them."""
    window = max(1, len(losses) // 10)
    padded = torch.nn.functional.pad(torch.tensor(losses, dtype=torch.float64).cumsum(0), (1, 0))
    mean = (padded[window:] - padded[:-window]) / window
    figure = go.Figure()
    figure.add_scatter(x=steps, y=losses, name="each step", mode="lines", line=dict(color=COLOURS["visual"], width=1))
    if window > 1:
        line = dict(color=COLOURS["question"], width=3)
        figure.add_scatter(
            x=steps[window - 1 :], y=mean.tolist(), name=f"mean of {window} steps", line=line, mode="lines"
        )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="cross-entropy on the answers’ tokens", rangemode="tozero")
    return titled(figure, title)


def _range(values, signed):
    """Colour limits: symmetric around 0, or from 0."""
    known = values[values.isfinite()].abs().float()
    top = max(known.max().item(), 1e-12) if len(known) else 1.0
    return dict(zmin=-top, zmax=top) if signed else dict(zmin=0, zmax=top)


def _colourbar(unit):
    return dict(title=dict(text=unit, side="right"), thickness=14, outlinewidth=0, tickfont_color=INK, len=0.9)


def _faded(colour):
    return f"rgba({', '.join(str(c) for c in bytes.fromhex(colour[1:]))}, 0.2)"
