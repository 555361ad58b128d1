"""`doctor`: each check has a fake answer that is well and one that is not; the parsing of what Slurm and nodes say."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cathpc.__main__ import main
from cathpc.config import Config, compose
from cathpc.dispatch import doctor, slurm
from cathpc.dispatch import doctor_job as job
from cathpc.dispatch import doctor_machine as machine
from cathpc.dispatch import doctor_node as node
from cathpc.dispatch import doctor_parts as parts
from cathpc.dispatch import doctor_site as sites
from cathpc.dispatch import doctor_verdict as verdict
from cathpc.dispatch.config import ClusterConfig, JobConfig, Requeue
from cathpc.dispatch.doctor_check import Check, State, merged, warn, well
from cathpc.dispatch.doctor_site import Need, Site

SMOKE, GPU = "+experiment=smoke", Need("cluster.partition", "gpu", "cluster.timeout_min", 60, 2, 8, 8, 8.0, True)
PARTITIONS = {
    "gpu": dict(
        MaxTime="14-00:00:00", MaxNodes="UNLIMITED", State="UP", TotalNodes="2", PriorityTier="1", GraceTime="0"
    ),
    "cpu": dict(MaxTime="2-00:00:00", MaxNodes="1", State="UP", TotalNodes="2", PriorityTier="1", Default="YES"),
    "preempt": dict(MaxTime="1-00:00:00", MaxNodes="4", State="DOWN", TotalNodes="4", PriorityTier="10"),
}
NODES = """\
NodeName=gpu1 CPUTot=16 AvailableFeatures=ib Gres=gpu:a100:8(S:0-1) RealMemory=512000 State=IDLE Partitions=gpu,preempt
NodeName=gpu2 CPUTot=16 AvailableFeatures=eth Gres=gpu:a100:8 RealMemory=512000 State=MIXED Partitions=gpu,preempt
NodeName=cpu1 CPUTot=8 AvailableFeatures=(null) Gres=(null) RealMemory=64000 State=IDLE Partitions=cpu
"""
SETTINGS = {
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "KillWait": "10 sec",
    "MaxArraySize": "1001",
}
QOS = "Name|GraceTime|MaxWall|MaxSubmitPU|MaxTRESPU|Preempt|PreemptMode\nnormal|00:02:00||||low|cluster\n"


def site(**changes: Any) -> Site:
    known = Site(SETTINGS, {k: dict(v) for k, v in PARTITIONS.items()}, sites.nodes(NODES), sites.table(QOS))
    known.associations = [{"Account": "physics", "QOS": "normal,long", "MaxSubmit": "", "MaxWall": ""}]
    return dataclasses.replace(known, **changes)


def cluster(**changes: Any) -> ClusterConfig:
    known = ClusterConfig(nodes=2, gpus_per_node=8, gpu_type="a100", partition="gpu", cpu_partition="cpu", lead_s=45)
    return dataclasses.replace(known, **changes)


def states(checks: list[Check]) -> list[str]:
    return [check.state.value for check in checks]


@pytest.fixture
def config() -> Config:
    return compose([SMOKE, "cluster=devcluster"])


# --- this machine and its folders -----------------------------------------------------------------------------------


def test_a_missing_package_fails_and_is_named() -> None:
    found = machine.software()
    assert machine.python(found).state is State.passed
    check = machine.python({**found, "deepspeed": "missing"})
    assert check.state is State.failed and "deepspeed" in check.seen


def test_a_key_is_spoken_of_and_never_shown(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-wandb")
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-hub")
    config.tracker.mode = type(config.tracker.mode).auto
    checks = machine.keys(config, machine._hub_token(), machine._wandb_key())
    assert states(checks) == ["pass", "pass"]
    assert "canary" not in str(checks)
    assert machine.keys(config, False, False)[0].state is State.warned


def test_a_gated_model_without_a_token_is_warned_of(config: Config) -> None:
    config.model.base = "meta-llama/Meta-Llama-3-70B"
    check = machine.keys(config, False, True)[1]
    assert check.state is State.warned and "Meta-Llama-3-70B" in check.seen


@pytest.mark.parametrize(
    ("mode", "owner", "state"), [(0o700, 7, "pass"), (0o750, 7, "warn"), (0o770, 7, "fail"), (0o700, 8, "fail")]
)
def test_a_folder_is_its_owners_alone(mode: int, owner: int, state: str) -> None:
    check = machine.private("paths.runs", Path("/r"), stat.S_IFDIR | mode, owner, 7, "nfs")
    assert check.state.value == state
    assert check.advice or state == "pass"


@pytest.mark.parametrize(
    ("free_gb", "free", "inodes", "state"),
    [
        (900, 10**6, 10**7, "pass"),
        (900, 0, 0, "pass"),
        (900, 50, 10**7, "warn"),
        (20, 0, 0, "warn"),
        (0.5, 0, 0, "fail"),
    ],
)
def test_room(free_gb: float, free: int, inodes: int, state: str) -> None:
    assert machine.space("paths.store", free_gb, free, inodes).state.value == state


def test_speed_says_what_it_means_for_a_checkpoint() -> None:
    assert machine.write_speed("paths.store", 2000.0) == well(
        "paths.store speed", "2,000 MB/s by one writer (256 MB with fsync): 1 TB would take 8 min"
    )
    assert machine.write_speed("paths.store", 100.0).state is State.warned
    assert machine.fsync_time("paths.runs", [1.0, 2.0, 300.0]).state is State.passed
    assert machine.fsync_time("paths.runs", [80.0] * 100).state is State.warned


def test_speed_is_measured_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WRITE_MB", 8)
    assert [check.name for check in machine.speed_of("paths.runs", tmp_path)] == [
        "paths.runs speed",
        "paths.runs fsync",
    ]
    assert list(tmp_path.iterdir()) == []


def test_hard_links_are_tried_where_leases_and_markers_lie(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("runs", "store", "cache"):
        (tmp_path / name).mkdir(mode=0o700)
        setattr(config.paths, name, str(tmp_path / name))
    monkeypatch.setattr(machine, "speed_of", lambda key, folder: [])
    probes = {f"paths.{name}": str(tmp_path / name / "probe") for name in ("runs", "store", "cache")}
    seen = dict.fromkeys(probes, "")

    def checks() -> list[Check]:
        here = [check for check in machine.folder_checks(config, {}) if check.name.endswith("links")]
        return here + verdict.hard_links(node.links(probes), seen)

    assert states(checks()) == ["pass", "pass"]
    monkeypatch.setattr(os, "link", none)
    here, there = checks()
    assert (here.name, here.state) == ("paths.store links", State.failed) and "paths.store=FOLDER" in here.advice
    assert there.seen == "no hard links: paths.runs: Operation not permitted, paths.store: Operation not permitted"
    assert verdict.hard_links(node.links(probes), dict.fromkeys(probes, "no such folder")) == [], "that is told already"
    assert states(verdict.hard_links({"error": "x"}, seen)) == ["fail"]
    monkeypatch.setattr(os, "link", lambda source, target: None)
    assert "not refused" in checks()[0].seen
    assert not [path for path in tmp_path.rglob("*") if path.parent != tmp_path]


def test_the_type_of_a_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\nnone {tmp_path}/deep/er tmpfs rw 0 0\n"
    assert machine.file_system(tmp_path / "deep", mounts) == "nfs4"
    assert machine.file_system(Path("/"), mounts) == "ext4"


def test_folders_that_stay_empty_go_away_again(config: Config, tmp_path: Path) -> None:
    config.paths.runs, config.paths.store = str(tmp_path / "a" / "runs"), str(tmp_path / "store")
    config.paths.cache = str(tmp_path / "cache")
    with machine.made(config.paths) as faults:
        assert faults == {} and stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
        (tmp_path / "cache" / "used").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


@pytest.mark.usefixtures("bound_by_permissions")
def test_a_folder_that_cannot_be_made_fails_by_its_key(config: Config, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    config.paths.runs = str(tmp_path / "closed" / "runs")
    config.paths.store, config.paths.cache = str(tmp_path / "store"), str(tmp_path / "cache")
    with machine.made(config.paths) as faults:
        assert faults["paths.runs"].state is State.failed and "paths.runs=" in faults["paths.runs"].advice


# --- Slurm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gres", "kind", "count"),
    [
        ("gpu:8", "", 8),
        ("gpu:a100:8(S:0-1)", "a100", 8),
        ("gpu:a100:8", "h100", 0),
        ("gpu:a100:4(S:0,1),gpu:h100:2,nic:1", "", 6),
        ("gpu", "", 1),
        ("(null)", "", 0),
    ],
)
def test_gpus_of_a_node(gres: str, kind: str, count: int) -> None:
    assert parts.gpus(gres, kind) == count


def test_what_the_stages_ask_for(config: Config) -> None:
    config.cluster.stages["score"] = JobConfig(partition="big", timeout_min=7)
    needs = sites.needs(doctor.whole_site(config))
    training = needs[0]
    assert (training.key, training.nodes, training.gpus, training.mem_gb) == ("cluster.partition", 2, 8, 8)
    score = next(need for need in needs if need.partition == "big")
    assert (score.key, score.timeout_key) == ("cluster.stages.score.partition", "cluster.stages.score.timeout_min")
    assert any(need.network for need in needs)
    config.cluster.network_partition = ""
    assert not any(need.network for need in sites.needs(config))


def test_missing_commands() -> None:
    every = dict.fromkeys((*sites.NEEDED, "sacct", "sacctmgr"), True)
    assert sites.commands(every).state is State.passed
    assert sites.commands({**every, "sacct": False}).state is State.warned
    assert sites.commands({**every, "sbatch": False}).state is State.failed


def test_a_partition_that_is_well() -> None:
    assert states(parts.partition(GPU, cluster(), site(), ["users"])) == ["pass"]


@pytest.mark.parametrize(
    ("need", "seen", "advice"),
    [
        ({"partition": "gpus"}, "cluster.partition is 'gpus': there is no such partition", "valid: cpu, gpu, preempt"),
        ({"partition": "preempt"}, "it is DOWN", "cpu, gpu, preempt"),
        ({"timeout_min": 30_000}, "limit is 20,160 min (MaxTime); cluster.timeout_min is 30,000", "=20160"),
        ({"partition": "cpu"}, "a job gets 1 nodes (MaxNodes); cluster.nodes is 2", "lower it"),
    ],
)
def test_a_partition_that_cannot_take_the_job(need: dict[str, Any], seen: str, advice: str) -> None:
    (check,) = parts.partition(dataclasses.replace(GPU, **need), cluster(), site(), ["users"])
    assert check.state is State.failed
    assert seen in check.seen and advice in check.advice


def test_no_partition_is_the_sites_default_or_a_fault() -> None:
    nameless = dataclasses.replace(GPU, partition="", nodes=1)
    assert states(parts.partition(nameless, cluster(), site(), [])) == ["pass"]
    without = {name: {**fields, "Default": "NO"} for name, fields in PARTITIONS.items()}
    assert states(parts.partition(nameless, cluster(), site(partitions=without), [])) == ["fail"]


@pytest.mark.parametrize(
    ("fields", "changes", "faults"),
    [
        ({"AllowAccounts": "chemistry"}, {}, 1),
        ({"AllowAccounts": "chemistry,physics"}, {}, 0),
        ({"DenyAccounts": "physics"}, {"account": "physics"}, 1),
        ({"AllowQos": "long"}, {}, 1),
        ({"AllowQos": "long"}, {"qos": "long"}, 0),
        ({"AllowGroups": "hpc,staff"}, {}, 1),
        ({"AllowGroups": "hpc,users"}, {}, 0),
    ],
)
def test_who_may_use_a_partition(fields: dict[str, str], changes: dict[str, Any], faults: int) -> None:
    known = site()
    known.partitions["gpu"] |= fields
    assert states(parts.partition(GPU, cluster(**changes), known, ["users"])) == (["fail"] if faults else ["pass"])


def test_nodes_that_fit() -> None:
    assert parts.hardware(GPU, cluster(), site()).state is State.passed


@pytest.mark.parametrize(
    "changes", [{"gpu_type": "h100"}, {"constraint": "ib"}, {"need": {"mem_gb": 900.0}}, {"need": {"cpus": 64}}]
)
def test_nodes_that_do_not_fit_are_described(changes: dict[str, Any]) -> None:
    need = dataclasses.replace(GPU, **changes.pop("need", {}))
    check = parts.hardware(need, cluster(**changes), site())
    assert check.state is State.failed and "gpu:a100:8" in check.seen


def test_nodes_that_are_left_out_or_down() -> None:
    assert parts.hardware(GPU, cluster(), site(excluded=frozenset(["gpu2"]))).state is State.failed
    down = sites.nodes(NODES.replace("State=MIXED", "State=IDLE+DRAIN"))
    check = parts.hardware(GPU, cluster(), site(nodes=down))
    assert check.state is State.warned and "1 of 2" in check.seen


def test_preemption_with_less_warning_than_a_save_needs() -> None:
    check = parts.preemption(GPU, cluster(), site())
    assert check.state is State.warned
    assert "partition preempt preempts (REQUEUE): TERM, then 0 s GraceTime + 10 s KillWait" in check.seen
    known = site()
    known.partitions["gpu"]["GraceTime"] = "60"
    assert parts.preemption(GPU, cluster(), known).state is State.passed
    shards = dataclasses.replace(GPU, training=False)
    assert parts.preemption(shards, cluster(), site()).state is State.passed


@pytest.mark.parametrize(("mode", "state"), [("OFF", "pass"), ("CANCEL", "warn"), ("SUSPEND,GANG", "warn")])
def test_how_a_partition_is_preempted(mode: str, state: str) -> None:
    known = site()
    known.partitions["gpu"] |= {"PreemptMode": mode, "GraceTime": "600"}
    assert parts.preemption(GPU, cluster(), known).state.value == state


def test_preemption_by_a_qos_has_the_grace_of_the_own_qos() -> None:
    rows = QOS + "high|00:00:00||||normal|cluster\n"
    known = site(settings={**SETTINGS, "PreemptType": "preempt/qos"}, qos=sites.table(rows))
    assert "QOS high preempts (REQUEUE): TERM, then 120 s GraceTime" in parts.preemption(GPU, cluster(), known).seen
    assert parts.preemption(GPU, cluster(qos="high"), known).seen == "no job is preempted here"


def test_no_preemption_at_all() -> None:
    known = site(settings={**SETTINGS, "PreemptType": "preempt/none"})
    assert parts.preemption(GPU, cluster(), known).state is State.passed


@pytest.mark.parametrize(("lead_s", "minutes", "state"), [(45, 60, "pass"), (1801, 60, "fail"), (0, 60, "warn")])
def test_the_lead_time_against_the_limit(lead_s: int, minutes: int, state: str) -> None:
    need = dataclasses.replace(GPU, timeout_min=minutes)
    assert sites.lead(cluster(lead_s=lead_s), [need]).state.value == state


def test_arrays_against_the_site_and_the_qos() -> None:
    assert states(sites.arrays(cluster(), site())) == ["pass"]
    (wide,) = sites.arrays(cluster(arrays={"score": 2500}), site())
    assert wide.state is State.warned and "score is split into 3 jobs" in wide.advice
    for limit, state in (("500", "pass"), ("40", "warn"), ("5", "fail")):
        rows = sites.table(QOS.replace("||||low", f"||{limit}||low"))
        assert sites.arrays(cluster(), site(qos=rows))[1].state.value == state


def test_accounts_and_qos_are_those_of_accounting() -> None:
    strict = {**SETTINGS, "AccountingStorageEnforce": "associations,limits,qos"}
    assert states(sites.rights(cluster(account="physics"), site(settings=strict))) == ["pass"]
    assert states(sites.rights(cluster(account="zoology"), site(settings=strict))) == ["fail"]
    assert states(sites.rights(cluster(account="zoology"), site())) == ["warn"]  # nothing enforces it
    assert states(sites.rights(cluster(qos="normal"), site(settings=strict))) == ["pass", "pass"]
    assert states(sites.rights(cluster(qos="fast"), site(settings=strict))) == ["pass", "fail"]
    assert states(sites.rights(cluster(), site(settings=strict, associations=[]))) == ["fail"]
    assert sites.rights(cluster(account="x"), site(accounting="off")) == []


def test_limits_of_the_qos() -> None:
    assert parts.walls([GPU], cluster(), site()) == []
    rows = sites.table(QOS.replace("||||low", "|00:30:00||cpu=64,gres/gpu=8|low"))
    assert [check.seen for check in parts.walls([GPU], cluster(), site(qos=rows))] == [
        "QOS normal ends jobs after 30 min; cluster.timeout_min is 60",
        "QOS normal gives a user gres/gpu=8; the training asks 16",
    ]


def test_accounting_controller_and_requeueing() -> None:
    assert sites.accounting(site()).state is State.passed
    assert sites.accounting(site(accounting="sacct: Slurm accounting storage is disabled")).state is State.warned
    assert sites.controller(site(answer_s=9.0)).state is State.warned
    assert "RequeueExit 85 is" in sites.requeueing(cluster(), site(settings={"RequeueExit": "85,137"})).seen
    assert "chained" in sites.requeueing(cluster(requeue=Requeue.chain), site()).seen


def test_a_container_without_runtime_or_image() -> None:
    assert sites.container(cluster(), False, False) == []
    config = compose([SMOKE, "cluster.container.runtime=apptainer", "cluster.container.image=/images/x.sif"])
    assert states(sites.container(config.cluster, True, True)) == ["pass"]
    assert states(sites.container(config.cluster, False, True)) == ["warn"]
    assert states(sites.container(config.cluster, True, False)) == ["fail"]


# --- the job of a partition -----------------------------------------------------------------------------------------


def test_one_job_a_partition_and_a_tiny_one(config: Config) -> None:
    needs = sites.needs(doctor.whole_site(config))
    small = job.targets(needs, site(), all_gpus=False)
    assert small == [job.Target("gpu", 2, 1, False), job.Target("cpu", 1, 0, True)]
    assert job.targets(needs, site(), all_gpus=True)[0].gpus == 8


def test_the_jobs_environment_is_that_of_a_run_without_the_trap(config: Config) -> None:
    from cathpc.dispatch import script

    request = script.Request(
        name="x", stage="x", spec=Path("/s"), content={}, logs=Path("/l"), partition="", timeout_min=1
    )
    config.cluster.setup = ["module list"]
    setup = script.executor(request, config.cluster).parameters["setup"]
    lines = job.environment(setup)
    assert lines[0] == "umask 077" and lines[-1] == "module list"
    assert any("trap" in line for line in setup) and not any("trap" in line for line in lines)


def test_the_job_sees_in_a_container_what_a_run_does(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cathpc.dispatch import requests, script

    sent: list[script.Request] = []
    made = script.executor
    monkeypatch.setattr(script, "executor", lambda request, cluster: sent.append(request) or made(request, cluster))
    monkeypatch.setattr(script.Executor, "send", lambda self, command: "7")
    config.cluster.scratch = "/scratch/$SLURM_JOB_ID"
    job.submit(job.Target("gpu", 1, 0, False), config, tmp_path / "gpu", {})
    assert Path("/scratch") in sent[0].mounts and sent[0].mounts == requests.mounts(config)


class Queue:
    """A queue that shows, at each question, the next of its answers."""

    def __init__(self, *answers: list[tuple[str, str]] | None) -> None:
        self.answers, self.cancelled = list(answers), []

    def queue(self, _: ClusterConfig) -> list[slurm.QueueJob]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise slurm.QueueError("squeue did not answer")
        return [slurm.QueueJob("7", "7", "cathpc-doctor", state, reason, "", "") for state, reason in answer]

    def cancel(self, _: ClusterConfig, ids: Any) -> None:
        self.cancelled += ids


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[job.Visit, Queue, list[str]]]:
    def run(*answers: Any, seconds: float = 0.0, nodes: int = 0) -> tuple[job.Visit, Queue, list[str]]:
        queue, said = Queue(*answers), []
        monkeypatch.setattr(slurm, "queue", queue.queue)
        monkeypatch.setattr(slurm, "cancel", queue.cancel)
        monkeypatch.setattr(slurm, "history", lambda *_: [])
        monkeypatch.setattr(job, "POLL_S", 0.0)
        monkeypatch.setattr(job, "LAG_S", 0.0)
        for number in range(nodes):
            node.write(tmp_path / f"node-{number}.json", {"node": f"n{number}", "rank": number})
        visit = job.Visit(job.Target("gpu", 2, 1, False), tmp_path, job="7")
        job.wait(cluster(), [visit], seconds, said.append)
        return visit, queue, said

    return run


Follow = Callable[..., tuple[job.Visit, Queue, list[str]]]


def test_a_job_that_answers(follow: Follow) -> None:
    visit, queue, _ = follow([("RUNNING", "None")], nodes=2)
    assert job.outcome(visit, cluster()).state is State.passed
    assert queue.cancelled == []


def test_a_busy_queue_is_a_warning_and_the_job_is_cancelled(follow: Follow) -> None:
    visit, queue, said = follow([("PENDING", "Resources")])
    check = job.outcome(visit, cluster())
    assert check.state is State.warned and "the queue is busy" in check.advice
    assert queue.cancelled == ["7"] and said == ["job 7 on gpu: PENDING: Resources"]


def test_a_job_that_can_never_start_is_not_waited_for(follow: Follow) -> None:
    visit, queue, _ = follow([("PENDING", "PartitionTimeLimit")], seconds=1e9)
    check = job.outcome(visit, cluster())
    assert check.state is State.failed and "PartitionTimeLimit" in check.seen and queue.cancelled == ["7"]


def test_a_job_that_ends_without_an_answer_shows_its_last_words(follow: Follow, tmp_path: Path) -> None:
    (tmp_path / "7_0_log.out").write_text("hello\npython: command not found\n")
    visit, _, _ = follow(None, [("RUNNING", "None")], [], seconds=1e9, nodes=1)
    check = job.outcome(visit, cluster())
    assert check.state is State.failed
    assert "1 of 2 nodes left no answer; its log ends: python: command not found" in check.seen


def test_a_job_that_is_refused() -> None:
    visit = job.Visit(job.Target("gpu", 2, 1, False), Path("/"), fault="sbatch: invalid account")
    assert job.outcome(visit, cluster()).seen == "sbatch: invalid account"


def test_what_sbatch_says_of_the_real_job() -> None:
    said = "sbatch: Job 45 to start at 2026-11-24T06:27:11 using 16 processors on nodes gpu[1-2] in partition gpu\n"
    assert parts.tried(GPU, 0, said).state is State.passed
    check = parts.tried(GPU, 1, "sbatch: error: x\nallocation failure: Requested node configuration is not available\n")
    assert check.state is State.failed and "allocation failure" in check.seen


def test_probes_are_answered_and_go_away(config: Config, tmp_path: Path) -> None:
    config.paths.runs = config.paths.store = config.paths.cache = str(tmp_path)
    with job.probes(config, "n0nce") as probes:
        assert node.folders(probes, "gpu1.0") == dict.fromkeys(probes, "")
        me = {"node": "gpu1", "rank": 0}
        assert all(job.answered(probe, "n0nce", me) for probe in probes.values())
        assert not job.answered(probes["paths.runs"], "n0nce", {"node": "gpu2", "rank": 1})
    assert list(tmp_path.iterdir()) == []
    assert node.folders({"paths.runs": str(tmp_path / "none")}, "x")["paths.runs"] == "No such file or directory"


# --- what nodes see -------------------------------------------------------------------------------------------------


def test_a_nodes_answer_holds_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(node, "torch_process", lambda _: {"import_s": 1.0, "cuda": None})
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"folders": {}, "hub": "http://127.0.0.1:9", "flash": False}))
    assert node.main([str(spec)]) == 0
    seen = json.loads((tmp_path / "node-0.json").read_text())
    assert json.loads(capsys.readouterr().out) == seen
    target = job.Target("cpu", 1, 0, False)
    config = compose([SMOKE, "cluster=devcluster"])
    checks = verdict.verdicts(
        seen,
        target,
        config,
        here=machine.software(),
        unseen=[],
        after=seen["began"],
        until=seen["ended"],
        hub_needed=False,
        commands="/usr/bin/scontrol\n/usr/bin/squeue\n",
    )
    assert "fail" not in states([check for check in checks if check.name not in ("Slurm there", "sizes")])


def test_torch_of_a_node_is_asked_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"flash": True}))
    seen = node.torch_process(str(spec))
    assert seen["import_s"] > 0 and "flash" in seen and "fault" not in seen
    assert "fault" in node.torch_process(str(tmp_path / "none.json"))


def test_lines_of_nvidia_smi() -> None:
    text = "NVIDIA A100-SXM4-80GB, 81920, 535.104.05, 0\nNVIDIA A100-SXM4-80GB, 81920, 535.104.05, [N/A]\n"
    assert node.parse_gpus(text)[1] == {
        "name": "NVIDIA A100-SXM4-80GB",
        "memory_gb": 85.9,
        "driver": "535.104.05",
        "ecc": 0,
    }


def test_the_hub_is_reached_directly_or_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Connection:
        def close(self) -> None:
            pass

    def connect(where: tuple[str, int], timeout: float) -> Connection:
        asked.append(where)
        return Connection()

    monkeypatch.setattr("socket.create_connection", connect)
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert node.reach("https://huggingface.co") == ""
    monkeypatch.setenv("https_proxy", "http://proxy.site:3128")
    assert node.reach("https://huggingface.co") == ""
    monkeypatch.setenv("no_proxy", "hub.site")
    assert node.reach("https://hub.site:8443/hf") == ""
    assert asked == [("huggingface.co", 443), ("proxy.site", 3128), ("hub.site", 8443)]


def test_another_version_on_a_node() -> None:
    here = {"python": "3.11.2", "torch": "2.13.0"}
    assert verdict.software(here, here).state is State.passed
    check = verdict.software({**here, "torch": "2.8.0"}, here)
    assert check.state is State.failed and check.seen == "torch 2.8.0 (here 2.13.0)"
    assert verdict.software({**here, "torch": "2.8.0"}, here, contained=True).state is State.warned


def test_a_folder_that_a_node_does_not_share() -> None:
    assert states(verdict.visible({"paths.runs": "", "paths.cache": ""}, [])) == ["pass"]
    (check,) = verdict.visible({"paths.runs": "", "paths.cache": "No such file or directory"}, [])
    assert check.state is State.failed and "paths.cache=FOLDER" in check.advice
    assert states(verdict.visible({"paths.runs": ""}, ["paths.runs"])) == ["fail"]


def gpu_node(**changes: Any) -> dict[str, Any]:
    gpu = {"name": "A100", "memory_gb": 85.9, "driver": "535.104.05", "ecc": 0}
    return {"node": "gpu1", "nvidia": True, "gpus": [gpu], "torch": {"cuda": "12.8", "available": True}, **changes}


@pytest.mark.parametrize(
    ("changes", "state", "seen"),
    [
        ({}, "pass", "torch's CUDA 12.8"),
        ({"nvidia": False}, "warn", "pretended"),
        ({"gpus": []}, "fail", "sees 0 of 1"),
        ({"gpus": {"error": "NVML: driver mismatch"}}, "fail", "driver mismatch"),
        ({"torch": {"cuda": None, "available": False}}, "fail", "built for CPUs"),
        ({"torch": {"cuda": "13.0", "available": False}}, "fail", "too old for torch's CUDA 13.0 (580 or newer)"),
        ({"torch": {"cuda": "12.8", "available": False}}, "fail", "cannot use them"),
    ],
)
def test_gpus_of_a_job(changes: dict[str, Any], state: str, seen: str) -> None:
    (check,) = verdict.gpu_checks(gpu_node(**changes), job.Target("gpu", 2, 1, False), 85.9)
    assert check.state.value == state and seen in check.seen


def test_gpus_that_are_smaller_than_said_or_have_errors() -> None:
    target, gpu = job.Target("gpu", 2, 1, False), gpu_node()["gpus"][0]
    assert states(verdict.gpu_checks(gpu_node(), target, 141.0)) == ["warn", "pass"]
    broken = gpu_node(gpus=[{**gpu, "ecc": 3}])
    assert states(verdict.gpu_checks(broken, target, 85.9)) == ["warn", "pass"]


@pytest.mark.parametrize(
    ("torch", "state", "text"),
    [
        ({"backend": "nccl", "right": True, "master": "gpu1", "gb_s": 20.0}, "pass", "20.0 GB/s"),
        ({"backend": "gloo", "right": True, "master": "gpu1", "gb_s": 0.1}, "pass", "gloo"),
        ({"backend": "nccl", "right": True, "master": "gpu1", "gb_s": 0.3}, "warn", "NCCL_IB_HCA"),
        ({"backend": "nccl", "right": False, "master": "gpu1", "gb_s": 20.0}, "fail", "sum is wrong"),
        ({"backend": "nccl", "reduce_fault": "timed out"}, "fail", "NCCL_SOCKET_IFNAME"),
        ({"backend": "gloo", "reduce_fault": "timed out"}, "fail", "GLOO_SOCKET_IFNAME"),
    ],
)
def test_the_all_reduce(torch: dict[str, Any], state: str, text: str) -> None:
    (check,) = verdict.reduce_check(torch, first=True)
    assert check.state.value == state and text in check.seen + check.advice
    assert len(verdict.reduce_check(torch, first=False)) == (state != "pass")


def test_flash_attention_where_it_is_asked_for() -> None:
    assert verdict.flash({"flash": "2.8.3"}).state is State.passed
    check = verdict.flash({"flash": "", "flash_fault": "ImportError: undefined symbol"})
    assert check.state is State.failed and "train.attention=sdpa" in check.advice


@pytest.mark.parametrize(
    ("network", "fault", "offline", "needed", "state"),
    [
        (True, "", True, True, "pass"),
        (True, "timed out", True, True, "fail"),
        (True, "timed out", True, False, "warn"),
        (False, "timed out", True, True, "pass"),
        (False, "timed out", False, True, "warn"),
        (False, "", True, True, "pass"),
    ],
)
def test_the_hub_from_a_node(network: bool, fault: str, offline: bool, needed: bool, state: str) -> None:
    seen = {"hub": fault, "offline": False}
    check = verdict.hub(seen, job.Target("x", 1, 0, network), offline=offline, needed=needed)
    assert check.state.value == state
    assert "fetch" in check.advice or state != "fail"


def test_the_hub_switched_off_where_it_is_needed() -> None:
    check = verdict.hub({"hub": "", "offline": True}, job.Target("x", 1, 0, True), offline=True, needed=True)
    assert check.state is State.failed and "HF_HUB_OFFLINE" in check.advice


@pytest.mark.parametrize(
    ("commands", "answer", "requeue", "state"),
    [
        ("/usr/bin/scontrol\n/usr/bin/squeue\n", "", Requeue.scontrol, "pass"),
        ("", "not found", Requeue.scontrol, "fail"),
        ("", "not found", Requeue.chain, "warn"),
        ("/usr/bin/scontrol\n/usr/bin/squeue\n", "not found", Requeue.scontrol, "pass"),  # inside a container
        ("/usr/bin/scontrol\n/usr/bin/squeue\n", "Unable to contact slurm controller", Requeue.scontrol, "fail"),
    ],
)
def test_slurms_commands_on_a_node(commands: str, answer: str, requeue: Requeue, state: str) -> None:
    check = verdict.slurm_commands(commands, answer, requeue)
    assert check.state.value == state
    assert "cluster.requeue=chain" in check.advice or state != "fail"


@pytest.mark.parametrize(
    ("skew", "state"),
    [(0.0, "pass"), (8.0, "pass"), (25.0, "warn"), (-25.0, "warn"), (3600.0, "fail"), (-90.0, "fail")],
)
def test_a_clock_is_off_only_where_no_other_order_of_events_explains_it(skew: float, state: str) -> None:
    check = verdict.clock(began=110 + skew, ended=120 + skew, after=100, until=125)
    assert check.state.value == state


def test_sizes_limits_and_scratch_of_a_node(config: Config) -> None:
    seen = {"cores": 8, "memory_gb": 500.0, "shm_gb": 250.0, "nvidia": True}
    target = job.Target("gpu", 2, 1, False)
    assert verdict.sizes(seen, target, config).state is State.passed
    for worse in ({"cores": 1}, {"memory_gb": 4.0}, {"shm_gb": 0.06}, {"shm_gb": {"error": "x"}}):
        assert verdict.sizes({**seen, **worse}, target, config).state is State.warned
    assert verdict.limits({"nofile": 65536, "memlock": -1}, gpus=True).state is State.passed
    assert verdict.limits({"nofile": 1024, "memlock": -1}, gpus=False).state is State.warned
    assert verdict.limits({"nofile": 65536, "memlock": 65536}, gpus=True).state is State.warned
    assert verdict.scratch({"folder": "/tmp", "free_gb": 80.0}, "").state is State.passed
    assert verdict.scratch({"folder": "/tmp", "free_gb": 1.0}, "").state is State.warned
    assert verdict.scratch({"error": "FileNotFoundError"}, "/scratch").state is State.failed


def test_what_all_nodes_say_alike_stands_once() -> None:
    same, other = well("torch", "fine"), warn("clock", "off", "NTP")
    assert merged({"a": [same, well("clock", "fine")], "b": [same, other]}) == [
        same,
        well("clock", "a: fine"),
        warn("clock", "b: off", "NTP"),
    ]


# --- the act --------------------------------------------------------------------------------------------------------


def paths(folder: Path) -> list[str]:
    return [f"paths.{name}={folder / name}" for name in ("runs", "store", "cache")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WRITE_MB", 8)
    monkeypatch.setattr(machine, "torch_import", lambda: well("import", "not tried"))


@pytest.mark.usefixtures("quick")
def test_this_machine_alone_needs_no_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *paths(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "this machine" in out and "Slurm" not in out
    assert out.splitlines()[-1].endswith(" 0 failures")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_failure_ends_with_the_users_code_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").mkdir()
    os.chmod(tmp_path / "store", 0o777)
    assert main(["doctor", "--json", *paths(tmp_path)]) == 2
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["paths.store"]["state"] == "fail" and rows["paths.store"]["advice"].startswith("chmod 700")


@pytest.mark.usefixtures("quick")
def test_no_slurm_on_this_machine(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "cluster=devcluster", *paths(tmp_path)]) == 2
    assert "✗ commands" in capsys.readouterr().out
