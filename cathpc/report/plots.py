"""The report's figures: axes in, axes out, nothing is written here.

Each function draws plain numbers (lists, NumPy arrays) on the axes that it is given and returns them, so that a
notebook can place any of them in a figure of its own. Time and memory grow with the points that are drawn; only
`population_plane` sees one point a record, and its caller samples them.

Colours are Okabe and Ito's (2008), which readers with any of the usual colour-vision deficiencies tell apart; where
colour carries meaning, a marker, a hatch or a label says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from cathpc.progress import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8A8F98", "#20242B"

COMPONENT_COLOURS = {
    "general": BLUE,
    "reasoning": ORANGE,
    "health": GREEN,
    "science": SKY,
    "roleplay": PINK,
    "refusal": VERMILION,
}
COMPONENT_MARKERS = {"general": "o", "reasoning": "^", "health": "s", "science": "v", "roleplay": "D", "refusal": "X"}

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "cathpc",  # element ids, hence bytes, that are the same from run to run
}
"""Settings of matplotlib (for `matplotlib.rc_context`) that the figures are drawn under."""


def flow_waterfall(axes: Axes, *, entered: int, drops: Sequence[tuple[str, int]], kept: int) -> Axes:
    """Records that enter selection, that each rule drops (in the order given), and that are left: horizontal bars.

    The first bar is `entered`, the last `kept`; a rule's bar hangs where the bars before it ended, so that the reader
    sees what was still there. Bars are counted in records.
    """
    names = ["pulled", *(name for name, _ in drops), "kept"]
    lefts, widths, left = [0], [entered], entered
    for _, count in drops:
        left -= count
        lefts.append(left)
        widths.append(count)
    lefts.append(0)
    widths.append(kept)
    colours = [GREY, *[VERMILION] * len(drops), BLUE]
    rows = np.arange(len(names))
    axes.barh(rows, widths, left=lefts, color=colours, height=0.7)
    for row in rows[:-1]:  # thin connectors, from where one bar ends to where the next begins
        edge = entered if row == 0 else lefts[row]
        axes.plot([edge, edge], [row - 0.35, row + 1.35], color=GREY, linewidth=0.7, zorder=0)
    for row, (start, width) in enumerate(zip(lefts, widths, strict=True)):
        dropped = 0 < row < len(names) - 1
        if dropped:
            axes.annotate(
                f"−{width:,}", (start, row), (-4, 0), textcoords="offset points", ha="right", va="center", fontsize=9
            )
        else:
            axes.annotate(
                f"{width:,}",
                (start + width, row),
                (4, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                fontsize=9,
            )
    axes.set_yticks(rows, [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, max(entered, 1) * 1.14)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("records")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes


def population_plane(
    axes: Axes,
    top: Axes,
    right: Axes,
    *,
    refusal: ArrayLike,
    quality: ArrayLike,
    component: Sequence[str],
    kept: ArrayLike,
    refusal_max: float | None,
    quality_cuts: Mapping[str, float],
    quality_name: str,
) -> tuple[Axes, Axes, Axes]:
    """Each scored record by its refusal score (x, 0..1) and its quality (y), with the marginals and the cuts.

    Filled marks were kept, hollow ones dropped. `refusal_max` is drawn as a vertical line; `quality_cuts` holds the
    threshold of each component, drawn as horizontal lines in the component's colour. `top` and `right` are axes that
    share x and y with `axes`. Refusal scores pile up near 0 and 1, so x is a logit scale, clipped at 0.001 and 0.999.
    """
    x = np.clip(np.asarray(refusal, dtype=float), 0.001, 0.999)
    y = np.asarray(quality, dtype=float)
    groups = np.asarray(component, dtype=object)
    alive = np.asarray(kept, dtype=bool)
    if y.size:
        low, high = np.quantile(y, [0.002, 0.998])
        cuts = list(quality_cuts.values())
        low, high = min([low, *cuts]), max([high, *cuts])
        pad = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - pad, high + pad)
        y = np.clip(y, low - 0.8 * pad, high + 0.8 * pad)  # the few beyond are drawn on the rim
    size = float(np.clip(8000 / max(x.size, 1), 3, 30))
    edges_x = (1 / (1 + np.exp(-np.linspace(-6.91, 6.91, 28)))).tolist()
    edges_y = np.linspace(*axes.get_ylim(), 28).tolist()
    axes.set_xscale("logit", nonpositive="clip")
    for name in _component_order(groups):
        mine = groups == name
        colour, marker = COMPONENT_COLOURS.get(name, GREY), COMPONENT_MARKERS.get(name, "o")
        axes.scatter(
            x[mine & alive], y[mine & alive], s=size, c=colour, marker=marker, alpha=0.75, linewidths=0, label=name
        )
        axes.scatter(
            x[mine & ~alive], y[mine & ~alive], s=size, facecolors="none", edgecolors=colour, marker=marker, alpha=0.75,
            linewidths=0.8,
        )  # fmt: skip
        top.hist(x[mine], bins=edges_x, histtype="step", color=colour, linewidth=1.2)
        right.hist(y[mine], bins=edges_y, histtype="step", color=colour, linewidth=1.2, orientation="horizontal")
        if name in quality_cuts:
            axes.axhline(quality_cuts[name], color=colour, linestyle="--", linewidth=1.1, label="_cut")
    if refusal_max is not None:
        axes.axvline(refusal_max, color=INK, linestyle="--", linewidth=1.1, label="_cut")
        top.axvline(refusal_max, color=INK, linestyle="--", linewidth=1.1)
    axes.set_xlim(0.0008, 0.9992)
    axes.xaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("refusal score (logit scale)")
    axes.set_ylabel(quality_name)
    axes.grid()
    for marginal in (top, right):
        marginal.tick_params(labelbottom=False, labelleft=False, length=0)
        marginal.tick_params(which="minor", length=0)
        for spine in marginal.spines.values():
            spine.set_visible(False)
        marginal.set_yticks([]) if marginal is top else marginal.set_xticks([])
    return axes, top, right


def answer_lengths(axes: Axes, *, kept: ArrayLike, dropped: ArrayLike, threshold: int | None) -> Axes:
    """Histogram of answer lengths (tokens, logarithmic) of kept and dropped records, with the rule's threshold."""
    alive, gone = np.asarray(kept, dtype=float), np.asarray(dropped, dtype=float)
    both = np.concatenate([alive, gone])
    high = max(float(both.max()) if both.size else 1.0, float(threshold or 1), 10.0)
    edges = np.geomspace(1, high * 1.15, 28).tolist()
    axes.hist(
        [np.maximum(alive, 1), np.maximum(gone, 1)], bins=edges, stacked=True, color=[BLUE, VERMILION],
        label=[f"kept ({alive.size:,})", f"dropped ({gone.size:,})"], alpha=0.9, edgecolor="white", linewidth=0.4,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    if threshold:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"must exceed {threshold:,}")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("answer length in tokens")
    axes.set_ylabel("records")
    axes.legend(loc="upper left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.grid(axis="y")
    return axes


def reliability(axes: Axes, *, label: ArrayLike, probability: ArrayLike, bins: int = 10) -> Axes:
    """Reliability curve of a classifier: observed share against the mean predicted probability, in equal-width bins.

    `label` is in 0..1 (soft labels count as they are), `probability` the prediction. Bins without a record are
    left out; the bars show each bin's share of the records. A calibrated classifier lies on the diagonal.
    """
    predicted, observed, count = reliability_bins(label, probability, bins)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.0, label="calibrated")
    total = max(int(count.sum()), 1)
    axes.bar(predicted, count / total, width=0.6 / bins, color=SKY, alpha=0.5, label="share of records")
    axes.plot(predicted, observed, color=BLUE, marker="o", markersize=5, label="held-out records")
    for x, y, n in zip(predicted, observed, count, strict=True):
        axes.annotate(f"{n:,}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.09)
    axes.set_xlabel("predicted probability of a refusal")
    axes.set_ylabel("observed share of refusals")
    axes.legend(loc="upper left")
    axes.grid()
    return axes


def reliability_bins(
    label: ArrayLike, probability: ArrayLike, bins: int = 10
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(mean prediction, mean label, records) of each equal-width bin of the prediction that holds a record."""
    truth, guess = np.asarray(label, dtype=float), np.asarray(probability, dtype=float)
    which = np.clip((guess * bins).astype(int), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    there = count > 0
    predicted = np.bincount(which, guess, bins)[there] / count[there]
    observed = np.bincount(which, truth, bins)[there] / count[there]
    return predicted, observed, count[there]


def training_curve(
    axes: Axes,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ylabel: str,
    resumed: Sequence[int] = (),
) -> Axes:
    """Curves over the global step: name -> (steps, values). The second and later are drawn with markers.

    `resumed` holds the steps from which training went on after a stop; each is a dotted vertical line.
    """
    for number, (name, (steps, values)) in enumerate(series.items()):
        steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        marker = "o" if number or steps.size < 30 else None
        axes.plot(
            steps, values, color=(BLUE, VERMILION, GREEN)[number % 3], marker=marker, markersize=5 if number else 3,
            linestyle="--" if number else "-", label=name,
        )  # fmt: skip
    for step in resumed:
        axes.axvline(step, color=GREY, linestyle=":", linewidth=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("global step")
    axes.set_ylabel(ylabel)
    if len(series) > 1:
        axes.legend()
    axes.grid()
    return axes


def fidelity(axes: Axes, rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]]) -> Axes:
    """Share of probes passed, by family: a dot with its interval for each model.

    `rows` is [(family, {model: (share, low, high)})], shares in 0..1, the models in the order of the first row.
    """
    models = list(rows[0][1]) if rows else []
    looks = [(GREY, "s"), (BLUE, "o"), (GREEN, "^"), (ORANGE, "D")]
    for number, model in enumerate(models):
        shift = (number - (len(models) - 1) / 2) * 0.26
        colour, marker = looks[number % len(looks)]
        place = [row + shift for row, (_, shares) in enumerate(rows) if model in shares]
        values = np.array([shares[model] for _, shares in rows if model in shares], dtype=float).reshape(-1, 3)
        mean, low, high = values.T
        # A percentile interval of a bootstrap need not hold the mean; a negative bar length is an error.
        reach = np.maximum([mean - low, high - mean], 0)
        axes.errorbar(
            mean, place, xerr=reach, fmt=marker, color=colour, markersize=6, capsize=3, linewidth=1.4, linestyle="none",
            label=model,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [family.replace("_", " ") for family, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("probes passed")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(len(models), 1))
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes


def stage_times(axes: Axes, times: Sequence[tuple[str, float]]) -> Axes:
    """Wall-clock time of each stage (seconds), in the order of the pipeline: horizontal bars with their times."""
    rows = np.arange(len(times))
    seconds = np.array([value for _, value in times], dtype=float)
    axes.barh(rows, seconds, color=BLUE, height=0.7)
    for row, value in zip(rows, seconds, strict=True):
        axes.annotate(duration(value), (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(rows, [name for name, _ in times])
    axes.invert_yaxis()
    longest = float(seconds.max()) if seconds.size else 1.0
    axes.set_xlim(0, max(longest, 1e-9) * 1.2)
    unit, name = (3600.0, "hours") if longest > 3 * 3600 else (60.0, "minutes") if longest > 180 else (1.0, "seconds")
    axes.xaxis.set_major_locator(FixedLocator([tick * unit for tick in MaxNLocator(5).tick_values(0, longest / unit)]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    axes.set_xlabel(f"time in {name}")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return axes


def _component_order(groups: NDArray[Any]) -> list[str]:
    """The components that occur: the known ones in their usual order, then the others by name."""
    present = {str(name) for name in groups}
    return [name for name in COMPONENT_COLOURS if name in present] + sorted(present - set(COMPONENT_COLOURS))
