"""Stage `report`: the folders of all stages in; `report.html`, `figures/` and what W&B shows of them out.

A few seconds. The page holds no time of day: the same inputs give the same bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.report import html, sections
from cathpc.report.figures import chart, draw
from cathpc.report.gather import gather
from cathpc.tracking import shown

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
    size_kb = len(text.encode()) / 1e3
    return {
        "html": "report.html",
        "figures": sorted(f"figures/{picture.png.name}" for picture in pictures.values()),
        "size_kb": round(size_kb, 1),
        "line": f"report.html, {len(pictures)} figures, {size_kb:,.0f} kB",
    }


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
