"""Bokeh's charts on the page: their common look, and the JSON that the page draws them from.

A chart stands in the page's grid as one or several panels. Text that can be text (titles, legends) is HTML, so that it
wraps, is read aloud and follows the theme; colours of axes and grids are CSS variables of the page, which Bokeh reads.
Nothing here needs `eval`: no callback in JavaScript, no WebGL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bokeh
from bokeh.document import Document
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    BoxZoomTool,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    ResetTool,
    TapTool,
    WheelZoomTool,
)
from bokeh.models.annotations import Span
from bokeh.plotting import figure as _figure

INK = "#6b7380"
"""Marks that carry no colour of their own: grey enough for white paper and for the dark page."""
SOURCE = "records"
"""Name of the data source of the sampled records, by which the page's script finds it."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend; with `name` it is a button that hides and shows the renderers of this name."""

    label: str
    colour: str
    mark: str
    """'dot', 'ring', 'line', 'dash', 'bar' or 'hatch'."""
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """One figure of the page: panels of (title, Bokeh figure), with legend and caption ('': that of the picture)."""

    panels: Sequence[tuple[str, Any]]
    keys: Sequence[Key] = ()
    caption: str = ""
    stacked: bool = False
    """Panels stand below each other, not side by side."""
    wide: bool = False
    """As wide as the page, also where a figure of half its width would have room beside it."""

    @property
    def full(self) -> bool:
        """Whether it takes the page's width."""
        return self.wide or (len(self.panels) > 1 and not self.stacked)


def canvas(
    height: int,
    *,
    x: str = "",
    y: str = "",
    names: Sequence[str] | None = None,
    zoom: Literal["", "width", "both"] = "",
    tap: bool = False,
    **options: Any,
) -> Any:
    """An empty figure as wide as its place; `names` makes the y-axis one of names, from top to bottom.

    `zoom` is '' (none, no toolbar), 'width' or 'both': the tools lie in a toolbar and are off until chosen, so that a
    finger or a wheel scrolls the page. `tap` lets points be chosen.
    """
    tools: list[Any] = []
    if zoom:
        tools = [BoxZoomTool(dimensions=zoom), PanTool(dimensions=zoom), WheelZoomTool(dimensions=zoom), ResetTool()]
    if tap:
        tools.append(TapTool())
    if names is not None:
        options["y_range"] = list(reversed(names))
    plot = _figure(
        height=height,
        min_width=200,
        sizing_mode="stretch_width",
        tools=tools,
        toolbar_location="above" if zoom else None,
        active_drag=None,
        active_scroll=None,
        background_fill_alpha=0.0,
        border_fill_alpha=0.0,
        outline_line_color=None,
        lod_threshold=None,
        min_border_right=14,
        **options,
    )
    plot.toolbar.logo = None
    if height < 300:  # small ones have no room for a row of tools: they show while the pointer is over the chart
        plot.toolbar.autohide = True
        plot.toolbar_inner = True
    for axis, label in ((plot.xaxis, x), (plot.yaxis, y)):
        axis.axis_label = label or None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = "12px"
        axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
        axis.major_tick_in = 0
    if names is not None:
        plot.ygrid.grid_line_color = None
        plot.yaxis.major_tick_line_color = None
    return plot


def hover(plot: Any, rows: Sequence[tuple[str, str]], renderers: Sequence[Any], **options: Any) -> None:
    """Show `rows` of (label, value), both with Bokeh's @fields, where the pointer is over one of `renderers`: one mark
    at a time. Bokeh escapes what the fields hold."""
    lines = "".join(f'<div><span style="color:#4d5765">{label}</span> {value}</div>' for label, value in rows)
    told = f'<div style="max-width:24rem">{lines}</div>'
    plot.add_tools(HoverTool(tooltips=told, renderers=list(renderers), limit=1, visible=False, **options))


def source(**columns: Any) -> ColumnDataSource:
    """Columns of one length."""
    return ColumnDataSource(data=columns)


def numbers(axis: Any, form: str = "0,0", count: int = 5) -> None:
    """Plain numbers at about `count` ticks, in the format `form` of numeral.js ('': with the digits that they need)."""
    axis.formatter = NumeralTickFormatter(format=form) if form else BasicTickFormatter()
    axis.ticker = BasicTicker(desired_num_ticks=count, num_minor_ticks=0)


def ticks(axis: Any, places: Mapping[float, str]) -> None:
    """Ticks at these places, with these words."""
    axis.ticker = FixedTicker(ticks=list(places))
    axis.major_label_overrides = dict(places)


def exponents(axis: Any, count: int = 5) -> None:
    """Small numbers as 2.0e-5."""
    axis.formatter = BasicTickFormatter(precision=1)
    axis.ticker = BasicTicker(desired_num_ticks=count, num_minor_ticks=0)


def decades(axis: Any, low: float, high: float, most: int = 8) -> None:
    """Ticks of a logarithmic axis from `low` to `high`: at 1, 2 and 5 times powers of ten, as far as they are few, or
    at round numbers where none of these lies within."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        places = [m * 10.0**e for e in range(-9, 13) for m in steps if low <= m * 10.0**e <= high]
        if len(places) <= most:
            break
    if len(places) < 2:
        places = sorted({float(f"{low * (high / low) ** share:.2g}") for share in (0.2, 0.5, 0.8)})
    ticks(axis, {place: f"{place:,g}" for place in places})


def span(range_: tuple[float, float]) -> Any:
    """A range that goes back to where it was by the tool 'reset'."""
    return Range1d(start=range_[0], end=range_[1])


def cut(
    plot: Any, at: float, dimension: Literal["width", "height"], *, colour: str = INK, dash: str = "dashed"
) -> None:
    """A line across the plot: 'height' at x = `at`, 'width' at y = `at`."""
    plot.add_layout(
        Span(
            location=at,
            dimension=dimension,
            line_color=colour,
            line_dash=dash,
            line_width=1.5,
            tags=["ink"] if colour == INK else [],
        )
    )


def embed(charts: Mapping[str, Chart]) -> str:
    """JSON of all charts: {"doc": Bokeh's document, "roots": {model: id of the element that it is drawn in}}.

    Safe within a script element. The ids of models are numbered anew, so that the same run gives the same bytes.
    """
    document = Document(title="report")
    roots: dict[str, str] = {}
    with document.models.freeze():  # else all models are gone through anew after each root
        for key, chart in charts.items():
            for number, (_, plot) in enumerate(chart.panels):
                document.add_root(plot)
                roots[plot.id] = element(key, number)
    told: Any = document.to_json(deferred=False)
    known: dict[str, str] = {}
    _renumber(told, known)
    text = json.dumps(
        {"doc": told, "roots": {known[id]: place for id, place in roots.items()}},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return text.replace("<", "\\u003c")


def element(key: str, number: int) -> str:
    """Id of the element that holds a panel of a chart."""
    return f"chart-{key}-{number}"


def script() -> str:
    """BokehJS, as it ships with the package: what draws in the page."""
    text = (Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js").read_text(encoding="utf-8")
    return re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE)


_TEX = re.compile(r"\$\$|\\[(\[]")


def _renumber(node: Any, known: dict[str, str]) -> None:
    """New ids in the order of their first place; and no text is taken for TeX, which Bokeh would load MathJax for."""
    if isinstance(node, list):
        for place, part in enumerate(node):
            if isinstance(part, str):
                node[place] = _TEX.sub(lambda found: f"{found[0][0]}\u200b{found[0][1]}", part)
            else:
                _renumber(part, known)
    elif isinstance(node, dict):
        name = node.get("id")
        if isinstance(name, str) and re.fullmatch(r"p\d+", name):
            node["id"] = known.setdefault(name, f"m{len(known)}")
        for part in node.values():
            _renumber(part, known)
