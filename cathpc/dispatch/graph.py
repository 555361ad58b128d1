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
from cathpc.shards import clear_failed, marked

WAIT_S = 300.0
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


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Say of a Slurm that does not answer that nothing is lost."""
    try:
        yield
    except slurm.QueueError as error:
        raise slurm.QueueError(f"{error}. The same command goes on from here once Slurm answers") from None


@_kept()
def submit(
    config: Config, run: Run, *, stages: frozenset[str] | None = None, note: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """Submit what the experiment lacks; returns a row a stage. With `stages` these alone; their inputs are among them.

    Raises `UserError` before the first sbatch where the site cannot run what is asked, and `QueueError` where Slurm
    does not answer; what was submitted by then is kept and found by the next call.
    """
    cluster = config.cluster
    queue = _Queue(cluster)
    places = {n: p for n, p in store.places(config).items() if stages is None or n in stages}
    refuse_offline(config, places)
    limit = slurm.max_array(cluster)
    check_site(config, places)
    config = replace(config, cluster=replace(cluster, arrays=site.capped(cluster)))
    Path(config.paths.cache).mkdir(parents=True, exist_ok=True, mode=0o700)  # a container ends at a missing mount
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


def check_site(config: Config, places: dict[str, store.Place]) -> None:
    """Raise `UserError` where Slurm would refuse a job of these stages, or let it wait for ever."""
    site.check(_drafts(config, places, slurm.max_array(config.cluster)), config.cluster)


class _Queue:
    """What squeue says: once a call, and anew where a job seems to be gone."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._jobs = slurm.queue(cluster)

    def jobs(self) -> list[slurm.QueueJob]:
        """The user's jobs."""
        return self._jobs

    def again(self) -> list[slurm.QueueJob]:
        """The same, as of now. Asked while it is our turn, it holds whatever anybody has submitted for the stage."""
        self._jobs = slurm.queue(self._cluster)
        return self._jobs


def scripts(config: Config, places: dict[str, store.Place], logs: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every script that would be submitted if nothing were finished, with stages for job ids."""
    for name, place in places.items():
        record = jobs.Record(stage=name, run=config.name, nonce="dryrun", logs=str(logs / name))
        known: list[str] = []
        for planned in _planned(place, config, record, 1000):
            inputs = {i: f"<{i}>" for i in place.inputs}
            request = replace(planned.request, dependency=_dependency(planned, inputs, known))
            known.append(f"<{name}>" if planned.job.kind != "work" else f"<{name}.{len(known)}>")
            yield planned.job.name, script.script(request, config.cluster)


def refuse_offline(config: Config, places: dict[str, store.Place]) -> None:
    """Raise `UserError` where stages need a network and the site has no partition with one."""
    hub = {"pull": any(s.hub for s in config.dataset.sources.values()), "base": fetch.is_hub_id(config.model.base)}
    needy = [n for n, p in places.items() if hub.get(n) and not p.fresh()]
    models = fetch.missing(config)
    if models and "base" in places and places["base"].fresh():
        raise UserError(
            f"the models {', '.join(name for name, _ in models)} are not in {config.paths.cache} and `base`, whose job "
            f"fetches them, is up to date. Fetch them here: python -m cathpc fetch +experiment={config.name}"
        )
    if not config.cluster.network_partition and (needy or models):
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
    record = jobs.read(place.folder)
    seen = [q for q in queue.jobs() if record and record.has(id=q.base, name=q.name)]
    live = slurm.live(seen)
    if record and not (record.whole and record.last in live):  # before a job is called gone, the queue is asked anew
        seen = [q for q in queue.again() if record.has(id=q.base, name=q.name)]
        live = slurm.live(seen)
    if place.fresh() and not after:
        return Row(name, "up to date"), jobs.Record(stage=name, run=run.name)
    if record and record.whole and record.last in live and _stands_on(record, after):
        run.log(stage=name, event="found", fingerprint=place.fingerprint, jobs=record.ids)
        return Row(name, "in the queue", ", ".join(record.ids), f"submitted by {record.run}"), record
    logs = run.logs(name)
    planned = _rest(place, config, record, after, seen, limit) if record else []
    if not record or not planned:
        slurm.cancel(config.cluster, live)  # they wait for jobs that are gone, or nothing would wait for them
        shards = _missing(place, config) if place.stage.sharded and not after else None
        conf = config.cluster.slurm_conf
        record = jobs.Record(name, run.name, after=after, shards=shards, logs=str(logs), slurm_conf=conf)
        held = lease.holder(place.folder) or {}
        if held.get("slurm") and (base := held["job"].partition("_")[0]) not in {q.base for q in queue.jobs()}:
            record.gone = [base]
        planned = _planned(place, config, record, limit)
        record.jobs = [p.job for p in planned]
        clear_failed(place.folder)
        for path in place.folder.glob("error.*.json"):
            path.unlink(missing_ok=True)
        live = set()
    jobs.write(place.folder, record)
    for number, item in enumerate(planned):
        if record.jobs[number].id:
            continue
        known = [j.id if j.id in live else "" for j in record.jobs]
        request = replace(item.request, dependency=_dependency(item, after, known))
        jobs.write_spec(request.spec, request.content)
        record.jobs[number].id = script.send(request, config.cluster)
        live.add(record.jobs[number].id)
        jobs.write(place.folder, record)
    record.whole = True
    jobs.write(place.folder, record)
    run.log(stage=name, event="submitted", fingerprint=place.fingerprint, jobs=record.ids, after=after)
    return Row(
        name,
        "submitted",
        ", ".join(record.ids),
        requests.words(place.stage, config, sum(p.job.width for p in planned)),
        ", ".join(after),
    ), record


def _drafts(config: Config, places: dict[str, store.Place], limit: int) -> list[script.Request]:
    found = []
    for name, place in places.items():
        if not place.fresh():
            record = jobs.Record(stage=name, run=config.name, logs="logs")
            found += [p.request for p in _planned(place, config, record, limit)]
    return found


def _planned(place: store.Place, config: Config, record: jobs.Record, limit: int) -> list[requests.Planned]:
    return requests.plan(place, config, record, shards=record.shards, max_array=limit, logs=Path(record.logs))


def _rest(
    place: store.Place,
    config: Config,
    record: jobs.Record,
    after: dict[str, str],
    seen: list[slurm.QueueJob],
    limit: int,
) -> list[requests.Planned]:
    """The plan of a submission that was cut short, and in `record` the ids of what Slurm took of it.

    Empty where it was not cut short, where nothing of it lives, or where the same jobs would not be planned now: the
    shards are divided by the width, so that arrays of two widths would leave some out.
    """
    live = slurm.live(seen)
    if record.whole or not live or not _stands_on(record, after):
        return []
    planned = _planned(place, config, record, limit)
    if [p.job for p in planned] != [replace(job, id="") for job in record.jobs]:
        return []
    ids = {q.name: q.base for q in seen if q.base in live}
    record.jobs = [replace(job, id=job.id or ids.get(job.name, "")) for job in record.jobs]
    return planned


def _missing(place: store.Place, config: Config) -> list[int] | None:
    """The shards of a sharded stage that have no done-marker, where its inputs are there to count them."""
    if not all((folder / store.MANIFEST).exists() for folder in place.inputs.values()):
        return None
    count = place.stage.count()(config, place.inputs)
    if not store.begun(place):
        return list(range(count))
    finished = marked(place.folder)
    return [n for n in range(count) if n not in finished]


def _stands_on(record: jobs.Record, after: dict[str, str]) -> bool:
    """Whether the queued jobs wait for the very jobs that make their inputs now."""
    return all(record.after.get(name) == job for name, job in after.items())


def _dependency(planned: requests.Planned, after: dict[str, str], known: list[str]) -> str:
    parts = []
    if planned.afterok and after:
        parts.append("afterok:" + ":".join(after.values()))
    if earlier := [known[n] for n in planned.afterany if known[n]]:
        parts.append("afterany:" + ":".join(earlier))
    return ",".join(parts)


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
