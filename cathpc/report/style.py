"""How the report's figures look: colours, marks, line styles, matplotlib's settings.

Colours are Okabe and Ito's (2008), which readers with any of the usual colour-vision deficiencies tell apart; where
colour carries meaning, a marker, a hatch or a line style says the same, so that a print in black and white reads too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axis import Axis

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8A8F98", "#20242B"
PALE, SHADE = "#F6D5BF", "#EEF0F3"
"""A tint of vermilion, hatched, for what was dropped; the ground on the far side of a cut."""

COMPONENT_COLOURS = {
    "general": BLUE,
    "reasoning": ORANGE,
    "health": GREEN,
    "science": SKY,
    "roleplay": PINK,
    "refusal": VERMILION,
}
COMPONENT_MARKERS = {"general": "o", "reasoning": "^", "health": "s", "science": "v", "roleplay": "D", "refusal": "X"}
COMPONENT_LINES: dict[str, Any] = {
    "general": "-",
    "reasoning": (0, (6, 1.5)),
    "health": (0, (1, 1)),
    "science": (0, (4, 1, 1, 1)),
    "roleplay": (0, (3, 1, 1, 1, 1, 1)),
    "refusal": (0, (2, 2)),
}

WIDTH = 4.8
"""Inches of a figure: at a phone's 340 points its smallest letters are 9 pixels high."""
DPI = 200

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "figure.titlesize": 11.0,
    "figure.titleweight": "bold",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "cathpc",  # element ids, hence bytes, that are the same from run to run
}
"""Settings of matplotlib (for `matplotlib.rc_context`) that the figures are drawn under."""


def in_order(components: Iterable[str]) -> list[str]:
    """The components that occur, each once: the known ones in their usual order, then the others by name."""
    present = set(components)
    return [name for name in COMPONENT_COLOURS if name in present] + sorted(present - set(COMPONENT_COLOURS))


def point_size(count: int) -> float:
    """The area, in square points, of a mark among `count`."""
    return min(max(20000 / max(count, 1), 5.0), 22.0)


def plain_log(axis: Axis) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())
