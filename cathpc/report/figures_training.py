"""Figures of the training, of fidelity and of time: `Facts` in, pictures out."""

from __future__ import annotations

from pathlib import Path

from cathpc.progress import duration
from cathpc.report import plots
from cathpc.report.gather import Facts
from cathpc.report.html import number, percent, words
from cathpc.report.measures import column, fidelity_rows
from cathpc.report.picture import Picture, canvas, save


def training(facts: Facts, folder: Path) -> dict[str, Picture]:
    """Loss (with the held-out loss), learning rate, gradient norm and throughput over the global step."""
    loss = {"training": "loss", "held out": "eval_loss"}
    wanted = (
        ("train-loss", "loss in nats a token", loss, "Loss", "Cross entropy of the answer tokens"),
        ("train-lr", "learning rate", {"learning rate": "lr"}, "Learning rate", "Learning rate"),
        ("train-norm", "norm", {"gradient norm": "grad_norm"}, "Gradient", "Norm of the gradient before clipping"),
        (
            "train-speed",
            "tokens a second",
            {"tokens a second": "tokens_per_s"},
            "Throughput",
            "Throughput of all ranks",
        ),
    )
    pictures = {}
    for key, ylabel, columns, title, what in wanted:
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
