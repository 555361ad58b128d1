"""A drawn figure becomes files and the words that go with it."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cathpc.report.html import data_uri
from cathpc.report.style import DPI, WIDTH


@dataclass(frozen=True)
class Picture:
    """A figure on disk, with its words; `uri` is what the page embeds."""

    png: Path
    uri: str
    alt: str
    caption: str
    width: int
    height: int
    title: str = ""


def canvas(title: str, height: float) -> Figure:
    """An empty figure of the report's width, `height` inches high, with its title on the left."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def save(figure: Figure, folder: Path, key: str, alt: str, caption: str, *, points: bool = False) -> Picture:
    """Write `KEY.png` (for W&B and slides) and `KEY.svg`, both with the same bytes from run to run.

    The page embeds the SVG, or the PNG where the figure holds `points` drawn one by one: in the SVG these are an image
    already, which not every browser shows inside another.
    """
    for kind in ("png", "svg"):
        temporary = folder / f".{key}.{kind}"
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
        os.replace(temporary, folder / f"{key}.{kind}")
        figure.set_layout_engine("none")  # the second file stands as the first does, at half the time
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    uri = _lighter(folder / f"{key}.png") if points else data_uri(folder / f"{key}.svg")
    return Picture(folder / f"{key}.png", uri, alt, caption, width, height, figure.get_suptitle())


def _lighter(png: Path) -> str:
    """A PNG as a data URI, in 256 colours: a third of the bytes."""
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    told = io.BytesIO()
    few.save(told, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(told.getvalue()).decode()}"


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` axes of a grid that share x and y, row by row; tick labels at its left and lower rim alone."""
    columns = min(columns, count)
    rows = -(-count // columns)
    first: Axes | None = None
    found: list[Axes] = []
    for place in range(count):
        axes = figure.add_subplot(rows, columns, place + 1, sharex=first, sharey=first)
        first = first or axes
        axes.tick_params(labelleft=place % columns == 0, labelbottom=place + columns >= count)
        found.append(axes)
    return found
