"""Submits the graph of an experiment to Slurm, and reconciles: the same call again submits what is missing, no more.

In: a config and its run. Out: a row a stage, and jobs in the queue that depend on each other; nothing stays behind.
For each stage, in order: what is finished is left alone; what is queued or runs is kept, whoever submitted it; the rest
is submitted after its inputs. A submission is written down before sbatch is called and after, so that a command which
died in between finds its job again by name. Two commands at once take turns.

Costs: one squeue, a hash of what changed among local sources, and one sbatch a job, about a tenth of a second each; the
number of shards costs nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cathpc import lease, store
from cathpc.config import Config
from cathpc.dispatch import jobs, requests, script, site, slurm
from cathpc.dispatch.config import ClusterConfig
from cathpc.errors import UserError
from cathpc.models import fetch
from cathpc.pipeline import Place
from cathpc.runs import Run
from cathpc.shards import clear_failed
from cathpc.shards import done as shards_done

WAIT_S = 300.0
CLOCK_S = 5.0
"""How far the clock of a file server may be from this machine's."""
Send = Callable[[script.Request], str]


@dataclass
class Row:
    """What became of a stage in this call."""

    stage: str
    state: str
    """'up to date', 'submitted', 'in the queue'."""
    ids: str = ""
    what: str = ""
    after: str = ""


def submit(config: Config, run: Run, *, note: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Submit what the experiment lacks; returns a row a stage.

    Raises `UserError` before the first sbatch where the site cannot run what is asked, and `QueueError` where Slurm
    does not answer; what was submitted by then is kept and found by the next call.
    """
    cluster = config.cluster
    queue = _Queue(cluster)
    places = store.places(config)
    refuse_offline(config, places)
    limit = slurm.max_array(cluster)
    site.check(_drafts(config, places, limit), cluster)
    config = replace(config, cluster=replace(cluster, arrays=site.capped(cluster)))
    rows: list[Row] = []
    current: dict[str, str] = {}
    with _turn(run.folder / jobs.FOLDER, note):
        for name, place in places.items():
            if place.fresh() and not any(i in current for i in place.inputs):
                rows.append(Row(name, "up to date", what=str((place.manifest() or {})["summary"].get("line", ""))))
                run.link(place)
                continue
            store.prepare_folder(place)
            with _turn(jobs.folder(place.folder), note):
                row, record = _stage(place, config, run, current, queue, limit)
            run.link(place)
            rows.append(row)
            if record.jobs:
                current[name] = record.last
    return rows


class _Queue:
    """What squeue said, asked again where a submission is younger than the answer."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._asked = time.time()
        self._jobs = slurm.queue(cluster)

    def jobs(self, stage_folder: Path) -> list[slurm.QueueJob]:
        """The user's jobs, at least as new as the stage's record."""
        with contextlib.suppress(OSError):
            if (stage_folder / jobs.FOLDER / jobs.RECORD).stat().st_mtime > self._asked - CLOCK_S:
                self._asked = time.time()
                self._jobs = slurm.queue(self._cluster)
        return self._jobs


def scripts(config: Config, places: dict[str, store.Place], logs: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every script that would be submitted if nothing were finished, with stages for job ids."""
    for name, place in places.items():
        record = jobs.Record(stage=name, run=config.name, nonce="dryrun")
        known: list[str] = []
        for planned in _planned(place, config, record, None, 1000, logs / name):
            inputs = {i: f"<{i}>" for i in place.inputs}
            request = replace(planned.request, dependency=_dependency(planned, inputs, known))
            known.append(f"<{name}>" if planned.job.kind != "work" else f"<{name}.{len(known)}>")
            yield planned.job.name, script.script(request, config.cluster)


def refuse_offline(config: Config, places: dict[str, store.Place]) -> None:
    """Raise `UserError` where stages need a network and the site has no partition with one."""
    needy = [n for n, p in places.items() if p.stage.place is Place.network and not p.fresh()]
    if not config.cluster.network_partition and (needy or fetch.missing(config)):
        raise UserError(
            f"{' and '.join(needy) or 'fetching the models'} needs a network and cluster.network_partition names no "
            f"partition with one. Do it here, in the foreground: python -m cathpc fetch +experiment={config.name}"
        )


def _stage(
    place: store.Place, config: Config, run: Run, current: dict[str, str], queue: _Queue, limit: int
) -> tuple[Row, jobs.Record]:
    """Keep the stage's jobs, or submit what it lacks; the caller holds its turn."""
    name = place.stage.name
    after = {i: current[i] for i in place.inputs if i in current}
    if place.stage.place is Place.accelerator and "base" in current and fetch.missing(config):
        after["base"] = current["base"]
    record, seen = jobs.read(place.folder), queue.jobs(place.folder)
    live = slurm.live(seen)
    if place.fresh() and not after:
        return Row(name, "up to date"), jobs.Record(stage=name, run=run.name)
    if record and record.whole and record.last in live:
        if _stands_on(record, after):
            run.log(stage=name, event="found", fingerprint=place.fingerprint, jobs=record.ids)
            return Row(name, "in the queue", ", ".join(record.ids), f"submitted by {record.run}"), record
        slurm.cancel(config.cluster, live & set(record.ids))  # they wait for jobs that are gone
        record = None
    lost = record is not None and not record.whole and any(j.name in {q.name for q in seen} for j in record.jobs)
    if record is None or not lost:
        record = jobs.Record(stage=name, run=run.name)
    shards = _missing(place, config) if place.stage.sharded and not after else None
    logs = run.logs(name)
    record.logs, record.after = str(logs), after
    planned = _planned(place, config, record, shards, limit, logs)
    by_name = {q.name: q.base for q in seen}
    record.jobs = [replace(p.job, id=by_name.get(p.job.name, "")) for p in planned]
    record.whole = False
    clear_failed(place.folder)
    for path in place.folder.glob("error.*.json"):
        path.unlink(missing_ok=True)
    jobs.write(place.folder, record)
    for number, item in enumerate(planned):
        if record.jobs[number].id:
            continue
        request = replace(item.request, dependency=_dependency(item, after, [j.id for j in record.jobs]))
        jobs.write_spec(request.spec, request.content)
        record.jobs[number].id = script.send(request, config.cluster)
        jobs.write(place.folder, record)
    record.whole = True
    jobs.write(place.folder, record)
    run.log(stage=name, event="submitted", fingerprint=place.fingerprint, jobs=record.ids, after=after)
    return Row(name, "submitted", ", ".join(record.ids), _what(planned), ", ".join(after)), record


def _drafts(config: Config, places: dict[str, store.Place], limit: int) -> list[script.Request]:
    found = []
    for name, place in places.items():
        if not place.fresh():
            record = jobs.Record(stage=name, run=config.name)
            found += [p.request for p in _planned(place, config, record, None, limit, Path("logs"))]
    return found


def _planned(
    place: store.Place, config: Config, record: jobs.Record, shards: list[int] | None, limit: int, logs: Path
) -> list[requests.Planned]:
    return requests.plan(place, config, record, shards=shards, max_array=limit, logs=logs)


def _missing(place: store.Place, config: Config) -> list[int] | None:
    """The shards of a sharded stage that have no done-marker, where its inputs are there to count them."""
    if not all((folder / store.MANIFEST).exists() for folder in place.inputs.values()):
        return None
    count = place.stage.count()(config, place.inputs)
    if not store.begun(place):
        return list(range(count))
    finished = shards_done(place.folder)
    return [n for n in range(count) if n not in finished]


def _stands_on(record: jobs.Record, after: dict[str, str]) -> bool:
    """Whether the queued jobs wait for the very jobs that make their inputs now."""
    return all(record.after.get(name) == job for name, job in after.items())


def _dependency(planned: requests.Planned, after: dict[str, str], known: list[str]) -> str:
    parts = []
    if planned.afterok and after:
        parts.append("afterok:" + ":".join(after.values()))
    if planned.afterany:
        parts.append("afterany:" + ":".join(known[n] for n in planned.afterany))
    return ",".join(parts)


def _what(planned: list[requests.Planned]) -> str:
    """'64 tasks on cpu + 1' for people."""
    first = planned[0].request
    width = sum(p.job.width for p in planned)
    if width:
        size = f"{width} tasks"
    elif first.nodes * first.tasks_per_node > 1:
        size = f"{first.nodes} x {first.tasks_per_node} ranks"
    else:
        size = f"{first.cpus_per_task} CPU{'s' * (first.cpus_per_task > 1)}"
    gpus = f", {first.gpus_per_node} GPU{'s' * (first.gpus_per_node > 1)} a node" if first.gpus_per_node else ""
    return f"{size}{gpus} on {first.partition or 'the default partition'}"


@contextlib.contextmanager
def _turn(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """One command at a time; a dead one's turn is taken over, one on another machine is waited for."""
    place = folder / "submit"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + WAIT_S
    said = False
    while True:
        mine = lease.take(place)
        if mine:
            break
        held = lease.holder(place) or {}
        if not said and held:
            note(f"process {held.get('pid')} on {held.get('host')} is submitting the same; waiting for it")
            said = True
        if time.monotonic() > deadline:
            raise UserError(
                f"{place} has been held for {WAIT_S:.0f} s by process {held.get('pid')} on {held.get('host')}. If that "
                "command is gone for good, delete that folder and run this one again"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        lease.release(mine)
