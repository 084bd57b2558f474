"""The one look of all figures, and how they are saved.

Readable on light and on dark pages: nothing is painted behind a figure, and text is of a grey that contrasts with both
(4.5 : 1 on white, 4.2 : 1 on Gradio's dark page). Colour-blind safe: segments in the colours of Okabe and Ito (2008),
amounts in viridis, signed values from red over nothing to blue; and no colour without a name, a place or a number.
"""

import html
import math
import textwrap
from pathlib import Path

import plotly.graph_objects as go
from plotly.colors import get_colorscale, sample_colorscale, unlabel_rgb

from mmpt.errors import InputError
from mmpt.files import check_writable, write_whole

INK = "#767676"
FAINT = "rgba(118, 118, 118, 0.25)"
AMOUNT, SIGNED = "Viridis", "RdBu"
COLOURS = {  # Okabe & Ito
    "textual": "#E69F00",
    "visual": "#56B4E9",
    "patch": "#009E73",
    "question": "#D55E00",
    "answer": "#CC79A7",
    "other": "#999999",
}
NAMES = {
    "textual": "textual prompts",
    "visual": "visual prompts",
    "patch": "patches",
    "question": "question",
    "answer": "answer",
    "other": "template",
    "predicting": "positions that predict the answer",
}
WIDTH = 900  # of a PNG, in pixels before doubling

_AXIS = dict(gridcolor=FAINT, zerolinecolor=INK, linecolor=FAINT, automargin=True, title_standoff=8)
TEMPLATE = go.layout.Template(
    layout=dict(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(family="system-ui, 'DejaVu Sans', sans-serif", size=13, color=INK),
        title=dict(
            x=0, xref="container", y=1, yref="container", yanchor="top", font_size=16,
            subtitle_font=dict(size=12, color=INK),
        ),
        modebar=dict(bgcolor="rgba(0,0,0,0)", color=INK, activecolor=COLOURS["visual"]),
        colorway=list(COLOURS.values()),
        margin=dict(l=12, r=12, t=60, b=12),
        xaxis=_AXIS,
        yaxis=_AXIS,
        legend=dict(orientation="h", y=-0.2),
        hoverlabel=dict(font_size=13),
    )
)  # fmt: skip


def titled(figure: go.Figure, title: str, note: str = "", height: int = 460) -> go.Figure:
    """The figure in the one look, with what it shows in words and, smaller, how to read it."""
    title, note = _wrapped(title, 36), _wrapped(note, 50)  # what a phone is wide enough for
    rows = 1 + title.count("<br>"), (1 + note.count("<br>")) * bool(note)
    # Plotly hangs the second of several lines where a single one would be.
    place = dict(t=16 + 12 * (rows[0] - 1), l=12)
    figure.update_layout(template=TEMPLATE, title=dict(text=title, subtitle_text=note, pad=place), height=height)
    return figure.update_layout(margin_t=36 + 21 * rows[0] + 16 * rows[1])


def _wrapped(text, width):
    return "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(text, width))


def see_through(scale: str) -> list:
    """A colour scale for laying over a picture: "Viridis" shows it where there is little, "RdBu" around 0."""
    stops = []
    for place, colour in get_colorscale(scale):
        strength = place if scale == AMOUNT else abs(2 * place - 1)
        rgb = unlabel_rgb(colour) if colour.startswith("rgb") else tuple(bytes.fromhex(colour[1:]))
        stops.append([place, f"rgba({', '.join(f'{c:g}' for c in rgb)}, {0.85 * strength**0.7:.3f})"])
    return stops


def visible(label: str) -> str:
    """A token with what cannot be seen in another sign."""
    label = label.replace("\n", "↵").replace("\t", "⇥")
    label = "".join(c if c.isprintable() or c.isspace() else "·" for c in label)
    return "␣" if label.isspace() else label.strip()


def shown(label: str) -> str:
    """The same for where Plotly reads HTML: what would be taken for a tag is text. (`titled` does so itself.)"""
    return html.escape(visible(label), quote=False)


def ink_on(place: float, scale: str) -> str:
    """Black or white, whichever contrasts more with a colour scale at `place` (0 to 1); on NaN, no colour, `INK`."""
    if math.isnan(place):
        return INK
    colour = unlabel_rgb(sample_colorscale(scale, [place])[0])
    return "black" if luminance(colour) > 0.179 else "white"


def luminance(rgb: tuple[float, float, float]) -> float:
    """Relative luminance (WCAG 2) of a colour from 0 to 255."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def save(figure: go.Figure, path: str | Path) -> None:
    """Write a figure as .html, whole in one file that needs no network, or as .png by Kaleido through a local Chrome.

    Raises:
        InputError: another ending, a place that cannot be written, or no Chrome for a PNG.
    """
    path = Path(path)
    check_writable(path)
    if path.suffix.lower() == ".html":
        write_whole(path, _page(figure))
    elif path.suffix.lower() == ".png":
        try:
            png = figure.to_image("png", width=WIDTH, scale=2)
        except RuntimeError as error:  # of a missing browser; its message runs over ten lines
            raise InputError(
                f"{path} cannot be drawn without Chrome or Chromium; install one, or save the figure as .html."
            ) from error
        write_whole(path, png)
    else:
        raise InputError(f"A figure cannot be saved as {path.name}; end the name in .html or .png.")


def _page(figure):
    """A page that is light or dark as the reader's system is."""
    title = figure.layout.title.text.replace("<br>", " ")
    plot = figure.to_html(full_html=False, include_plotlyjs=True, config={"responsive": True, "displaylogo": False})
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"</head><body>\n{plot}\n</body></html>\n"
    )
