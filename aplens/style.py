"""How aplens figures look: colours told apart by colour-blind readers, sizes for a notebook."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito's palette. Orange-red always stands for "incorrect", blue for "correct".
INCORRECT, CORRECT, GREEN = "#D55E00", "#0072B2", "#009E73"
PURPLE, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
GREY, INK = "#767676", "#222222"

#: A colormap for log-normalized patterns, and the colour of what AP-MAE does not see of them.
PATTERN_COLORS, HIDDEN = "magma", "#c4c8cc"

#: What a head's pattern follows, by the name of the template (`aplens.patterns.TEMPLATES`).
TEMPLATE_COLORS = {
    "previous_token": CORRECT,
    "duplicate_token": GREEN,
    "induction": INCORRECT,
    "first_token": GREY,
    "self": PURPLE,
    "local": SKY,
    "uniform": YELLOW,
    "mixed": "#B9C0C8",
}

#: Width of a figure that fills a notebook cell, in inches.
WIDTH = 7.5


class NotebookFigure(Figure):
    """A figure that draws itself in a notebook, also where nobody imported pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> NotebookFigure:
    """An empty figure, in inches, that belongs to no pyplot state and needs no display."""
    return NotebookFigure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, grid: str | None = None) -> None:
    """Take the box away; draw light lines across `grid`, "x" or "y"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if grid is not None:
        direction: Any = grid
        axes.grid(axis=direction, color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "aplens", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
