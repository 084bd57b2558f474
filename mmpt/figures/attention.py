"""Figures of attention, and of the words near to prompts. Layers and heads count from 1 in what is shown.

Each takes an `mmpt.explain.attention.Attention`, with the sinks in it or without them, of the LLM or the vision tower.
"""

import html
from itertools import groupby

import plotly.graph_objects as go
import torch
from PIL import Image

from mmpt.explain.attention import PREDICTING, Attention
from mmpt.explain.nearest import Nearest
from mmpt.explain.rollout import rollout
from mmpt.figures.plain import bars, matrix, overlay
from mmpt.figures.style import COLOURS, NAMES, shown, titled, visible


def overview(attention: Attention, source=PREDICTING, target="patch") -> go.Figure:
    """Layer × head: the mean share of its attention that the source gives to the target."""
    share = attention.share(source, target)
    layers, heads = share.shape
    return matrix(
        share,
        [str(i + 1) for i in range(layers)],
        [str(i + 1) for i in range(heads)],
        f"Share of attention from {_name(attention, source)} to {_name(attention, target)}, by layer and head",
        f"On average {share.nanmean():.1%} of the attention{_rest(attention)}. "
        "Where a layer looks is not yet what the answer depends on.",
        _share(attention),
        row_title="layer",
        column_title="head",
    )


def between_segments(attention: Attention, layer: int | None = None, head: int | None = None) -> go.Figure:
    """Segment × segment: who looks at whom."""
    values = attention.matrix(layer, head)
    names = [NAMES[kind] for kind in attention.segments.present]
    note = "" if attention.order is None else attention.order.sentence
    text = [[f"{v:.0%}" if v >= 0.005 else f"{v:.1%}" if v > 0 else "0" for v in row] for row in values.tolist()]
    figure = matrix(
        values, names, names, f"Who looks at whom{_where(layer, head)}", note, _share(attention), text=text,
        row_title="looks …", column_title="… at",
    )  # fmt: skip
    return figure.update_layout(height=figure.layout.height + 60)


def between_positions(attention: Attention, layer: int | None = None, head: int | None = None) -> go.Figure:
    """Position × position; bands beside the axes say what the positions are, the words come up under the pointer."""
    weights = attention.pick(layer, head)
    top = torch.quantile(weights[weights > 0], 0.98).item()
    if not weights.triu(1).any():
        weights = weights.masked_fill(torch.ones_like(weights, dtype=torch.bool).triu(1), torch.nan)
    names = attention.segments.labels
    note = f"Colours end at {top:.2g}; of 100 cells that have any attention, 2 have more."
    title = f"What each position looks at{_where(layer, head)}"
    figure = matrix(weights, names, names, title, note, _share(attention), row_title="looks …", column_title="… at")
    figure.update_traces(zmax=top, xgap=0, ygap=0)
    at = 0
    ticks = []
    for kind, run in groupby(attention.segments.kinds):
        end = at + len(list(run))
        box = dict(type="rect", fillcolor=COLOURS[kind], line_width=0)
        figure.add_shape(**box, x0=at - 0.5, x1=end - 0.5, y0=-0.025, y1=-0.005, yref="paper")
        figure.add_shape(**box, y0=at - 0.5, y1=end - 0.5, x0=-0.025, x1=-0.005, xref="paper")
        if end - at > 1:
            ticks.append(((at + end - 1) / 2, NAMES[kind]))
        at = end
    places, texts = zip(*ticks)
    figure.update_xaxes(tickvals=places, ticktext=texts, tickangle=-40, ticklen=14, tickcolor="rgba(0,0,0,0)")
    figure.update_yaxes(tickvals=places, ticktext=texts, ticklen=14, tickcolor="rgba(0,0,0,0)", constrain="domain")
    return figure.update_layout(height=720)


def on_picture(
    attention: Attention, image: Image.Image, source=PREDICTING, layer: int | None = None, head: int | None = None
) -> go.Figure:
    """How the source's attention falls on the patches, over the picture."""
    values = attention.on_picture(source, layer, head)
    return overlay(
        image,
        values,
        attention.segments.boxes(*image.size),
        f"Where in the picture the attention of {_name(attention, source)} goes{_where(layer, head)}",
        f"All patches together get {values.sum():.1%} of the attention{_rest(attention)}; evenly spread, each would "
        f"have {values.mean():.2%}. Yellow: looked at most, which is not yet a reason for the answer.",
        _share(attention),
    )


def seen_from(attention: Attention, source, layer: int | None = None, head: int | None = None) -> go.Figure:
    """How the source's attention falls on every position but the patches, which are one bar together."""
    values = attention.seen_from(source, layer, head)
    found = attention.segments
    groups = []  # (kind, label, share)
    for i, (kind, label) in enumerate(zip(found.kinds, found.labels)):
        if kind == "patch" and groups and groups[-1][0] == "patch":
            groups[-1][2] += values[i].item()
        else:
            groups.append([kind, "all patches" if kind == "patch" else label, values[i].item()])
    kinds, labels, shares = zip(*groups)
    return bars(
        torch.tensor(shares), list(labels), list(kinds),
        f"Where the attention of {_name(attention, source)} goes{_where(layer, head)}", unit=_share(attention),
    )  # fmt: skip


def flow(attention: Attention, source=PREDICTING) -> go.Figure:
    """Rollout by segment: of what the source's last state is made, in terms of the inputs of every layer."""
    rows = rollout(attention, source)  # (L, T)
    figure = go.Figure()
    layers = list(range(1, len(rows) + 1))
    for kind in attention.segments.present:
        share = rows[:, attention.segments.where(kind)].sum(1)
        figure.add_scatter(
            x=layers, y=share.tolist(), name=NAMES[kind], stackgroup="all", mode="lines", line_width=0.5,
            line_color=COLOURS[kind], fillcolor=COLOURS[kind], hovertemplate="%{y:.1%}",
        )  # fmt: skip
    figure.update_xaxes(title_text="followed back to the input of layer", range=[len(rows), 1], showgrid=False)
    figure.update_yaxes(title_text="share", range=[0, 1], tickformat=".0%", showgrid=False)
    figure.update_layout(hovermode="x unified")
    note = (
        "Attention rollout, a rough guess. Further back, in a language model the first position collects nearly all, "
        "whatever is asked: read the left side. Overwritten slots let nothing through."
    )
    if attention.left_out:
        note += f" Attention on {_sinks(attention)} is left out."
    return titled(figure, f"Attention followed back from {_name(attention, source)}", note)


def words(nearest: Nearest) -> go.Figure:
    """Layer × prompt: the nearest word in each cell, coloured by how far it beats chance; five under the pointer."""
    values = nearest.values[..., 0]  # (L, P)
    P, chance = values.shape[1], nearest.chance
    note = {
        "embedding": "Cosine with input embeddings, which says little above layer 1.",
        "layer": "Cosine with what each word alone has become at the input of the same layer.",
        "head": "Logit of the word that the output head would say from such a state.",
    }[nearest.space]
    if nearest.space == "layer":
        note += f" Only the vocabulary's first {nearest.compared:,} tokens were compared."
    if chance is not None:
        note += " Blue: nearer than 19 of 20 random vectors of that length come to a word. Else it says nothing."
    names = [str(j + 1) for j in nearest.layers], [f"T{i + 1}" for i in range(P)]
    unit = "logit" if chance is None else "cosine above that of 19 in 20 random vectors"
    text = [[shown(found[0])[:12] for found in row] for row in nearest.words]
    figure = matrix(
        values if chance is None else values - chance, *names,
        "The word nearest to each textual prompt, layer by layer", note, unit, signed=chance is not None,
        row_title="layer", column_title="textual prompt", text=text,
    )  # fmt: skip
    several = [
        [f"layer {j + 1}, T{i + 1}: {', '.join(map(shown, found))}" for i, found in enumerate(row)]
        for j, row in zip(nearest.layers, nearest.words)
    ]
    if chance is not None:
        several = [
            [f"{words}<br>cosine {v:.2f}, 19 of 20 random vectors up to {c:.2f}" for words, v, c in zip(*row)]
            for row in zip(several, values.tolist(), chance.tolist())
        ]
    return figure.update_traces(customdata=several, selector=dict(type="heatmap"))


def _name(attention: Attention, place) -> str:
    """A source or target in words."""
    if isinstance(place, str):
        return f"the {NAMES[place]}"
    labels = [visible(attention.segments.labels[i]) for i in attention.positions(place)]
    return ("position " if len(labels) == 1 else "positions ") + ", ".join(f"“{label}”" for label in labels[:5])


def _sinks(attention):
    return ", ".join(map(visible, attention.left_out))


def _rest(attention):
    return f" that is not on {_sinks(attention)}" if attention.left_out else ""


def _share(attention):
    return html.escape(f"share of the attention{_rest(attention)}", quote=False)  # where Plotly reads HTML


def _where(layer, head):
    if layer is None and head is None:
        return ", mean over layers and heads"
    places = (("layer", layer), ("head", head))
    return ", " + ", ".join(f"mean over {name}s" if i is None else f"{name} {i + 1}" for name, i in places)
