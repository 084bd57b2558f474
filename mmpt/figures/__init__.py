"""Every plot, in Plotly, in one look: functions of the library's dataclasses and tensors that return figures."""

from mmpt.figures import attention, cross_attention
from mmpt.figures.plain import against_random, bars, interaction, loss, matrix, overlay
from mmpt.figures.style import COLOURS, NAMES, TEMPLATE, save, titled

__all__ = [
    "COLOURS",
    "NAMES",
    "TEMPLATE",
    "against_random",
    "attention",
    "bars",
    "cross_attention",
    "interaction",
    "loss",
    "matrix",
    "overlay",
    "save",
    "titled",
]
