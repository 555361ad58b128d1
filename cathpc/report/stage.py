"""Stage `report`: the folders of all stages in; `report.html`, `figures/`, the cards of model and data and what W&B
shows of them out.

A few seconds. The page holds no time of day: the same inputs give the same bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.report import data_card, html, model_card, sections
from cathpc.report.figures import chart, draw
from cathpc.report.gather import Facts, gather
from cathpc.tracking import shown
from cathpc.train import history, metrics

if TYPE_CHECKING:
    from cathpc.config import Config


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write the report of the run whose stages lie in `inputs`; raises `DataError` where a file is unreadable."""
    settings = config.report
    facts = gather(inputs, examples=settings.examples, points=settings.max_points, explained=settings.explained)
    pictures = draw(facts, out / "figures", max_points=settings.max_points)
    page = sections.page(facts, pictures, chart(facts), name=config.name, title=settings.title or config.name)
    shown.write(
        out,
        {key: (picture.png, picture.caption) for key, picture in pictures.items()},
        tracker_tables(page),
        **sections.headline(facts),
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
        "line": f"report.html, {len(pictures)} figures, {size_kb:,.0f} kB",
    }


def _model_card(name: str, inputs: dict[str, Path], facts: Facts) -> str:
    """The card of the exported model, with what evaluate measured of it."""
    from cathpc.models.template import Template

    checkpoint = facts.summary("export")["checkpoint"]
    told = model_card.trained(inputs["train"] / metrics.METRICS, history.step_of(Path(checkpoint)))
    template = Template.load(inputs["export"] / "model")
    pack = facts.summary("pack")
    return model_card.model_card(name, template, pack, told, inputs, fidelity=facts.fidelity)


def tracker_tables(page: dict[str, Any]) -> dict[str, shown.Table]:
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
