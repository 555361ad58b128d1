"""Figures of the training, of fidelity and of time: `Facts` in, pictures out."""

from __future__ import annotations

from pathlib import Path

from cathpc.progress import duration
from cathpc.report import plots
from cathpc.report.gather import Facts
from cathpc.report.html import number, percent, words
from cathpc.report.measures import column, fidelity_rows
from cathpc.report.picture import Picture, canvas, save

CURVES: tuple[tuple[str, str, dict[str, str], str, str], ...] = (
    (
        "train-loss",
        "loss in nats a token",
        {"training": "loss", "held out": "eval_loss"},
        "Loss",
        "Cross entropy of the answer tokens",
    ),
    ("train-lr", "learning rate", {"learning rate": "lr"}, "Learning rate", "Learning rate"),
    ("train-norm", "norm", {"gradient norm": "grad_norm"}, "Gradient", "Norm of the gradient before clipping"),
    ("train-speed", "tokens a second", {"tokens a second": "tokens_per_s"}, "Throughput", "Throughput of all ranks"),
)
"""Curves over the global step: key, axis, {name: column of metrics.jsonl}, title, what it is."""


def training(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Loss (with the held-out loss), learning rate, gradient norm and throughput over the global step."""
    pictures = {}
    for key, ylabel, columns, title, what in CURVES:
        series = {name: column(facts.steps, source) for name, source in columns.items()}
        series = {name: pair for name, pair in series.items() if pair[0]}
        if not series:
            continue
        figure = canvas(title, 3.0)
        axes = plots.training_curve(figure.add_subplot(), series, ylabel=ylabel, resumed=facts.resumed)
        if key == "train-speed":
            axes.set_ylim(bottom=0)
        said = "; ".join(
            f"{name} from {number(float(values[0]))} at step {at[0]} to {number(float(values[-1]))} at step {at[-1]}"
            for name, (at, values) in series.items()
        )
        stops = " Dotted lines: training was stopped and went on." if facts.resumed else ""
        pictures[key] = save(figure, folder, key, f"{what}: {said}.", f"{what} over the global step.{stops}")
    return pictures


def times(facts: Facts) -> list[tuple[str, dict[str, float]]]:
    """[(attempt in words, {part of `plots.TIME_PARTS`: seconds})] of the attempts that held any time."""
    return [
        (f"attempt {a['attempt']}", {part: float(a[part]) for part in plots.TIME_PARTS})
        for a in facts.attempts
        if a["held"] > 0
    ]


def goodput(facts: Facts, folder: Path) -> dict[str, Picture]:
    """What each attempt at the training did with the time that it held."""
    rows = times(facts)
    if not rows:
        return {}
    figure = canvas("Goodput", 1.5 + 0.34 * len(rows))
    plots.time_held(figure.add_subplot(), rows)
    held = sum(sum(parts.values()) for _, parts in rows)
    told = {part: sum(parts[part] for _, parts in rows) for part in plots.TIME_PARTS}
    said = ", ".join(
        f"{label} {duration(told[part])} ({percent(told[part] / held, 1)})"
        for part, (label, _, _) in plots.TIME_PARTS.items()
    )
    caption = (
        f"What {len(rows)} attempt{'s' * (len(rows) > 1)} did with the {duration(held)} held: {said}. "
        "Goodput is the first share. The wait in the queue is not held time."
    )
    return {"goodput": save(figure, folder, "goodput", f"Time held by attempt: {said}.", caption)}


def milestones(facts: Facts) -> dict[str, list[tuple[float, float, float, float]]]:
    """{what was measured: [(step, share, low, high)]} of checkpoints on the way; empty where none was evaluated."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in facts.fidelity.get("milestones") or []:
        if row.get("step") is None:
            continue
        for key, name in (("isr", "instructions"), ("sessions", "whole probes")):
            if share := row.get(key):
                found.setdefault(name, []).append((float(row["step"]), share["share"], share["low"], share["high"]))
    return {name: sorted(points) for name, points in found.items()}


def milestone_curve(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Probes passed by checkpoints on the way."""
    curve = milestones(facts)
    if not curve:
        return {}
    figure = canvas("Fidelity while training", 3.0)
    series = {name: ([p[0] for p in points], [p[1] for p in points]) for name, points in curve.items()}
    plots.training_curve(figure.add_subplot(), series, ylabel="share followed")
    said = "; ".join(
        f"{name} at step {step:,.0f}: {percent(share)} ({percent(low)} to {percent(high)})"
        for name, points in curve.items()
        for step, share, low, high in points
    )
    caption = f"What checkpoints on the way follow of the probes, with 95% intervals: {said}."
    return {"milestones": save(figure, folder, "milestones", f"Share followed by milestone: {said}.", caption)}


def fidelity(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Probes passed by each model, by family."""
    if not facts.fidelity:
        return {}
    rows = fidelity_rows(facts.fidelity)
    figure = canvas("Does it obey its system prompt?", 1.5 + 0.42 * len(rows))
    plots.fidelity(figure.add_subplot(), [(words(family), shares) for family, shares in rows])
    said = "; ".join(
        f"{words(family)}: " + ", ".join(f"{model} {percent(share[0])}" for model, share in shares.items())
        for family, shares in rows
    )
    caption = "Share of probes passed, by family of instruction, with 95% bootstrap intervals."
    return {"fidelity": save(figure, folder, "fidelity", f"Share of probes passed: {said}.", caption)}


def time(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Wall-clock time of each stage."""
    times = [(name, float(manifest["seconds"])) for name, manifest in facts.manifests.items()]
    figure = canvas("Time by stage", 1.1 + 0.28 * len(times))
    plots.stage_times(figure.add_subplot(), times)
    said = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times)
    total = duration(sum(seconds for _, seconds in times))
    caption = f"Wall-clock time of each stage; {total} in all."
    return {"time": save(figure, folder, "time", f"Time by stage: {said}.", caption)}
