"""What the foreground prints: a line a stage, bars for those that run, plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cathpc import terminal
from cathpc.pipeline import OPTIONAL, STAGES
from cathpc.progress import duration

if TYPE_CHECKING:
    from cathpc.dispatch.graph import Row

PLAIN_EVERY_S = 20.0


class Show:
    """Progress of a walk; `console` decides between live bars (a terminal) and lines (a file, a pipe)."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal.console()
        self.worked = 0
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, float]] = {}
        self._spoke: dict[str, float] = {}
        if terminal.lively(self.console):
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )

    def up_to_date(self, name: str, manifest: dict[str, Any]) -> None:
        """A stage that need not run."""
        self.console.print(f"[dim]· {name:<10} {'up to date':>12}  {escape(_line(manifest))}[/dim]")

    def started(self, name: str) -> None:
        """A stage was started."""
        self.worked += 1
        self._began.pop(name, None)
        self._spoke[name] = time.monotonic()
        if self._live is not None:
            self._live.start()
            self._tasks[name] = self._live.add_task(name, total=None, text="starting")

    def progress(self, name: str, report: dict[str, Any] | None) -> None:
        """How far a running stage is."""
        if report is None or not report["total"]:
            return
        done, total, now = float(report["done"]), float(report["total"]), float(report["time"])
        first = self._began.setdefault(name, (now, done))
        rate = (done - first[1]) / (now - first[0]) if now > first[0] and done > first[1] else 0.0
        text = f"{done:,.0f}/{total:,.0f} {report['unit']}"
        if rate:
            text += f"  {rate:,.1f}/s  {duration((total - done) / rate)} left"
        if report.get("note"):
            text += f"  {report['note']}"
        if self._live is not None and name in self._tasks:
            self._live.update(self._tasks[name], completed=done, total=total, text=text)
        elif self._live is None and time.monotonic() - self._spoke.get(name, 0.0) > PLAIN_EVERY_S:
            self._spoke[name] = time.monotonic()
            self.console.print(f"  {name:<10} {text}", markup=False)

    def done(self, name: str, manifest: dict[str, Any]) -> None:
        """A stage was finished by this walk."""
        self._remove(name)
        took = duration(manifest.get("seconds", 0.0))
        self.console.print(f"[green]✓[/green] {name:<10} {took:>12}  {escape(_line(manifest))}")

    def failed(self, name: str) -> None:
        """A stage failed."""
        self._remove(name)
        self.console.print(f"[red]✗[/red] {name:<10} {'failed':>12}")

    def note(self, text: str) -> None:
        """A remark."""
        self.console.print(f"  {text}", markup=False)

    def close(self) -> None:
        """End the live view."""
        if self._live is not None:
            self._live.stop()

    def _remove(self, name: str) -> None:
        if self._live is not None and name in self._tasks:
            self._live.remove_task(self._tasks.pop(name))


def _line(manifest: dict[str, Any]) -> str:
    return str(manifest.get("summary", {}).get("line", ""))


def job_table(title: str, rows: list[Row]) -> Table:
    """The table of a submission: a line a stage."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "state", "jobs", "what", "after"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row.stage, row.state, row.ids, escape(row.what), row.after)
    return table


def stage_table(title: str, states: dict[str, tuple[str, str]], times: dict[str, str]) -> Table:
    """A table of all stages; `states` maps a stage to its state and a remark, `times` to how long it takes."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("time")
    table.add_column("what", overflow="fold")
    for stage in (*STAGES, *(s for s in OPTIONAL if s.name in states)):
        state, remark = states.get(stage.name, ("", ""))
        table.add_row(stage.name, state, times.get(stage.name, ""), remark or stage.does)
    return table
