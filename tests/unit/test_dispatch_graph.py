"""What a submission looks at before it asks Slurm for anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cathpc import lease, store
from cathpc.__main__ import main
from cathpc.acts import run
from cathpc.config import Config, compose
from cathpc.dispatch import graph, jobs, site, slurm, status, work
from cathpc.dispatch.script import Request
from cathpc.errors import EXIT_AGAIN, UserError

SMOKE = ["+experiment=smoke", "cluster=devcluster", "cluster.network_partition=''"]
GPU = {"gpu": {"MaxTime": "1-00:00:00", "State": "UP", "TotalNodes": "2", "Default": "YES"}}


def hub(config: Config) -> Config:
    """The config with a source of the Hub."""
    name, source = next(iter(config.dataset.sources.items()))
    sources = {**config.dataset.sources, name: replace(source, path="", hub="org/name")}
    return replace(config, dataset=replace(config.dataset, sources=sources))


def test_without_a_partition_with_a_network_what_needs_none_may_run() -> None:
    config = compose(SMOKE)
    graph.refuse_offline(config, store.unnamed_places(config))
    with pytest.raises(UserError, match=r"pull needs a network.*python -m cathpc fetch \+experiment=smoke"):
        graph.refuse_offline(hub(config), store.unnamed_places(config))


def test_models_that_are_not_there_though_base_is_up_to_date_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["+experiment=smoke", "cluster=devcluster"])
    monkeypatch.setattr(graph.fetch, "missing", lambda config: [("org/writer", None)])
    graph.refuse_offline(config, store.unnamed_places(config))
    monkeypatch.setattr(store.Place, "fresh", lambda self: True)
    with pytest.raises(UserError, match=r"org/writer are not in cache.*fetch"):
        graph.refuse_offline(config, store.unnamed_places(config))


def request(**changes: object) -> Request:
    facts: dict[str, object] = {
        "name": "n",
        "stage": "cards",
        "spec": Path("spec"),
        "content": {},
        "logs": Path("logs"),
        "partition": "gpu",
        "timeout_min": 60,
        **changes,
    }
    return Request(**facts)  # type: ignore[arg-type]


def check(monkeypatch: pytest.MonkeyPatch, item: Request, *overrides: str) -> None:
    monkeypatch.setattr(site.slurm, "partitions", lambda cluster: GPU)
    site.check([item], compose(["+experiment=smoke", "cluster=devcluster", *overrides]).cluster)


def test_a_limit_over_the_partitions_names_the_key_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lower cluster\.short_timeout_min"):
        check(monkeypatch, request(timeout_min=3000))
    with pytest.raises(UserError, match=r"lower cluster\.stages\.cards\.timeout_min"):
        check(monkeypatch, request(timeout_min=3000), "+cluster.stages={cards: {timeout_min: 3000}}")


def test_each_of_several_partitions_is_checked_and_none_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, request(partition=""))
    check(monkeypatch, request(partition="gpu,gpu"))
    with pytest.raises(UserError, match="there is no partition 'gpux'"):
        check(monkeypatch, request(partition="gpu,gpux"))


def test_reasons_are_told_in_plain_words() -> None:
    assert status.words("ReqNodeNotAvail, UnavailableNodes:gpu1") == "a node that it needs is down or reserved"
    assert status.words("SomethingNew") == "SomethingNew"


def test_a_predecessor_in_a_chain_and_a_job_that_was_seen_gone_are_dead_though_nobody_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.slurm, "job_state", lambda job: None)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    chain = [jobs.Submitted(f"s{n}", "stage", str(11 + n)) for n in range(3)]
    jobs.write(tmp_path, jobs.Record("train", "run", jobs=chain, gone=["7"]))
    state = work._job_state(tmp_path)
    assert [state(job) for job in ("11", "7", "13", "99")] == [False, False, None, None]


def test_what_a_process_holds_is_free_when_it_leaves_without_unwinding(tmp_path: Path) -> None:
    assert lease.take(tmp_path)
    lease.release_all()
    assert lease.holder(tmp_path) is None


def folders(tmp_path: Path) -> list[str]:
    return [f"paths.{name}={tmp_path / name}" for name in ("store", "runs", "cache")]


def test_a_controller_that_does_not_answer_is_to_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(*command: object) -> str:
        raise slurm.QueueError("squeue: Unable to contact slurm controller")

    monkeypatch.setattr(slurm, "ask", down)
    assert main([*SMOKE, *folders(tmp_path)]) == EXIT_AGAIN
    said = capsys.readouterr().err
    assert said.startswith("cathpc: squeue: Unable to contact") and "same command goes on" in said
    assert main([*SMOKE, *folders(tmp_path), "train.lr=-1"]) == 2, "what only the user can mend"


def test_retry_releases_a_held_job_whose_id_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = store.places(compose([*SMOKE, *folders(tmp_path)]))["train"]
    name = f"cathpc.train.{place.fingerprint}.abcdef.s0"
    jobs.write(place.folder, jobs.Record("train", "smoke", jobs=[jobs.Submitted(name, "stage")]))
    held = slurm.QueueJob("7", "7", name, "PENDING", "JobHeldAdmin", "", "")
    other = slurm.QueueJob("8", "8", "another", "PENDING", "JobHeldUser", "", "")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "queue", lambda cluster: [held, other])
    monkeypatch.setattr(slurm, "ask", lambda cluster, *command: asked.append(command) or "")
    monkeypatch.setattr(run, "one", lambda config, overrides: None)
    assert main(["retry", *SMOKE, *folders(tmp_path)]) == 0
    assert asked == [("scontrol", "release", "7")]
    assert "train: released job 7" in capsys.readouterr().out
