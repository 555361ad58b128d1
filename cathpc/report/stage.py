"""Stage `report`: the folders of all stages in; `report.html`, `figures/`, the cards of model and data
and a W&B run out.

A few seconds plus what W&B takes. The page holds no time of day: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.report import data_card, html, model_card, sections, wandb
from cathpc.report.figures import chart, draw
from cathpc.report.gather import Facts, gather
from cathpc.train import history, metrics

if TYPE_CHECKING:
    from cathpc.config import Config


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write the report of the run whose stages lie in `inputs`; raises `DataError` where a file is unreadable."""
    settings = config.report
    facts = gather(inputs, examples=settings.examples, points=settings.max_points, explained=settings.explained)
    pictures = draw(facts, out / "figures", max_points=settings.max_points)
    page = sections.page(facts, pictures, chart(facts), name=config.name, title=settings.title or config.name)
    tracked = wandb.replay(
        config.tracker,
        out,
        name=config.name,
        run_id=run_id(config.name, facts),
        steps=tracker_rows(facts),
        config={name: manifest["config"] for name, manifest in facts.manifests.items()},
        summary=sections.headline(facts),
        figures={key: (picture.png, picture.caption) for key, picture in pictures.items()},
        tables=tracker_tables(page),
    )
    text = html.render(page)
    _write(out / "report.html", text)
    _write(out / data_card.NAME, data_card.data_card(config.name, inputs))
    if (inputs["export"] / "model").is_dir():
        _write(out / model_card.NAME, _model_card(config.name, inputs, facts))
    size_kb = len(text.encode()) / 1e3
    return {
        "html": "report.html",
        "figures": sorted(f"figures/{picture.png.name}" for picture in pictures.values()),
        "size_kb": round(size_kb, 1),
        "wandb": tracked,
        "line": f"report.html, {len(pictures)} figures, {size_kb:,.0f} kB; {tracked['line']}",
    }


def _model_card(name: str, inputs: dict[str, Path], facts: Facts) -> str:
    """The card of the exported model, with what evaluate measured of it."""
    from cathpc.models.template import Template

    checkpoint = facts.summary("export")["checkpoint"]
    told = model_card.trained(inputs["train"] / metrics.METRICS, history.step_of(Path(checkpoint)))
    template = Template.load(inputs["export"] / "model")
    pack = facts.summary("pack")
    return model_card.model_card(name, template, pack, told, inputs, fidelity=facts.fidelity)


def run_id(name: str, facts: Facts) -> str:
    """Id of the W&B run: the same for the same experiment and training, whenever and wherever it is sent."""
    text = f"{name} {facts.manifests['train']['fingerprint']}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tracker_rows(facts: Facts) -> list[dict[str, Any]]:
    """The training's steps under W&B's names: `global_step`, `train/…`, `eval/…`; one row a step."""
    rows = []
    for step in facts.steps:
        row: dict[str, Any] = {wandb.AXIS: step["global_step"]}
        flat = {key: value for key, value in step.items() if isinstance(value, (int, float))}
        flat |= {f"seconds/{key}": value for key, value in step["seconds"].items()}
        for key, value in flat.items():
            if key != "global_step":
                row[f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"] = value
        rows.append(row)
    return rows


def tracker_tables(page: dict[str, Any]) -> dict[str, wandb.Table]:
    """The page's tables, for W&B."""
    wanted = {
        "flow_by_rule": page["flow"]["by_rule"],
        "flow_by_source": page["flow"]["by_source"],
        "population": page["population"]["table"],
        "fidelity": page["fidelity"]["table"],
    }
    return {key: (table["head"], table["rows"]) for key, table in wanted.items()}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
