"""The batch scripts: what they ask of Slurm, what stands in them, and what must never."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cathpc import store
from cathpc.config import Config, compose
from cathpc.data.lock import lock_file
from cathpc.dispatch import graph, jobs, requests, script
from cathpc.dispatch.script import Request
from cathpc.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "cat70b.sh"
SMOKE = ["+experiment=smoke", "cluster=devcluster"]


def planned(config: Config, stage: str, **how: object) -> list[requests.Planned]:
    place = store.places(config)[stage]
    record = jobs.Record(stage=stage, run="smoke", nonce="abcdef")
    settings: dict[str, object] = {"shards": None, "max_array": 1000, "logs": Path("logs"), **how}
    return requests.plan(place, config, record, **settings)  # type: ignore[arg-type]


def request(*overrides: str, stage: str = "train") -> tuple[Request, Config]:
    config = compose([*SMOKE, *overrides])
    return planned(config, stage)[0].request, config


def text(*overrides: str, stage: str = "train") -> str:
    found, config = request(*overrides, stage=stage)
    return script.script(found, config.cluster)


def test_the_scripts_of_cat70b_are_those_that_were_read_and_approved() -> None:
    """After a wanted change run this with CATHPC_WRITE_GOLDEN=1 and read the difference."""
    config = compose(["+experiment=cat70b", "cluster=a100_2x8"])
    found = graph.scripts(config, store.unnamed_places(config), Path("/runs/cat70b/logs"))
    whole = "\n".join(f"# --- {name} ---\n{body}" for name, body in found)
    whole = whole.replace(sys.executable, "PYTHON").replace(os.getcwd(), "/here")
    if os.environ.get("CATHPC_WRITE_GOLDEN"):
        GOLDEN.write_text(whole)
    assert whole == GOLDEN.read_text()


def test_a_dry_run_prints_every_script_and_submits_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cathpc", "+experiment=cat70b", "cluster=a100_2x8", "dry_run=true"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^# --- cathpc\.(\w+)\.", done.stdout, re.M)
    assert names == [
        *("pull", "base", "reference", "pool", "refusal", "score", "score", "select", "cards", "cards"),
        *("pack", "train", "export", "evaluate", "report"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_every_script_is_sound_bash() -> None:
    for name in ("pull", "score", "train"):
        checked = subprocess.run(["bash", "-n"], input=text(stage=name), capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_a_training_asks_for_a_task_a_gpu_a_warning_and_another_chance() -> None:
    found = text("train.ranks_per_node=8", "train.nodes=2", "train.global_batch=16", "cluster.timeout_min=30")
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gres=gpu:a100:8",
        "#SBATCH --signal=USR2@45",
        "#SBATCH --time=30",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --kill-on-invalid-dep=yes",
    ):
        assert line in found.splitlines(), line
    assert "--kill-on-bad-exit=1" in found
    assert "trap cathpc_end EXIT" in found
    assert found.index("cathpc.dispatch.health") < found.index("cathpc.dispatch.job")


def test_the_warning_grows_with_the_measured_save(tmp_path: Path) -> None:
    config = compose([*SMOKE, f"paths.store={tmp_path}"])
    place = store.places(config)["train"]
    assert requests.lead_s(place.folder, config, place.stage) == 45
    place.folder.mkdir(parents=True)
    (place.folder / "metrics.jsonl").write_text(
        '{"seconds": {"save": 400.0}}\n{"seconds": {"data": 1, "forward": 20, "backward": 30, "step": 9}}\ntorn'
    )
    assert requests.lead_s(place.folder, config, place.stage) == 2 * 400 + 2 * 60 + 30


def test_evaluate_takes_as_many_gpus_as_its_model_needs() -> None:
    def asked(*overrides: str) -> tuple[int, float]:
        config = compose(["+experiment=cat70b", *overrides])
        took = requests.shape(store.unnamed_places(config)["evaluate"].stage, config)
        return took.gpus, took.mem_gb

    assert asked() == (2, 163)  # 141 GB of weights
    assert asked("cluster.gpu_memory_gb=42.9") == (4, 163)
    assert asked("model=llama3_8b") == (1, 64)
    assert asked("model.base=some/model") == (1, 64)
    assert asked("+cluster.stages={evaluate: {gpus: 8, mem_gb: 300}}") == (8, 300)


def test_an_array_has_its_width_whatever_the_number_of_shards_and_a_last_small_job() -> None:
    config = compose([*SMOKE, "cluster.arrays={score: 16, cards: 2}"])
    work, last = planned(config, "score")
    assert (work.request.width, work.job.kind, work.afterok) == (16, "work", True)
    assert (last.request.width, last.job.kind, last.afterany) == (None, "finish", (0,))
    assert "#SBATCH --array=0-15%16" in script.script(work.request, config.cluster)


def test_cards_without_a_model_ask_for_no_gpu_even_where_the_site_gives_them_some() -> None:
    some = "+cluster.stages={cards: {gpus: 4}}"
    assert [request(word, stage="cards")[0].gpus_per_node for word in ("cluster.cpus=2", some)] == [1, 4]
    for word in ("cluster.cpus=2", some):
        plain, _ = request(word, "cards.model=''", stage="cards")
        assert (plain.gpus_per_node, plain.partition) == (0, "cpu")


def test_an_array_over_max_array_size_is_split_and_its_tasks_keep_their_numbers() -> None:
    config = compose([*SMOKE, "cluster.arrays={score: 1500}"])
    first, second, last = planned(config, "score", max_array=1000)
    assert [(p.job.first, p.job.width) for p in (first, second)] == [(0, 1000), (1000, 500)]
    assert {p.request.content["width"] for p in (first, second)} == {1500}
    assert last.afterany == (0, 1)


def test_only_missing_shards_are_asked_for_where_they_are_known() -> None:
    config = compose([*SMOKE, "cluster.arrays={score: 16}"])
    work, _ = planned(config, "score", shards=[3, 7, 9])
    assert (work.request.width, work.request.content["shards"]) == (3, [3, 7, 9])
    (last,) = planned(config, "score", shards=[])
    assert last.job.kind == "finish"


def test_without_scontrol_segments_are_chained_and_what_follows_waits_for_the_last() -> None:
    config = compose([*SMOKE, "cluster.requeue=chain", "cluster.segments=3"])
    chain = planned(config, "train")
    assert [p.afterany for p in chain] == [(), (0,), (1,)]
    assert [p.afterok for p in chain] == [True, False, False]
    assert chain[0].request.content["requeue"] == "chain"


def test_a_name_is_unique_to_the_submission_and_fits_slurm() -> None:
    for name in ("reference", "score", "evaluate"):
        for item in planned(compose(SMOKE), name):
            assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", item.job.name), item.job.name
            assert ".abcdef." in item.job.name


def test_a_site_gets_its_modules_environment_scratch_mail_and_own_lines() -> None:
    found = text(
        "cluster.modules=[cuda/12.8]",
        "+cluster.env.NCCL_SOCKET_IFNAME=ib0",
        "cluster.scratch=/scratch/$SLURM_JOB_ID",
        "cluster.mail=me@example.org",
        "cluster.setup=['ulimit -l unlimited']",
        "cluster.account=physics",
        "cluster.qos=long",
        "cluster.constraint=a100",
        "+cluster.sbatch.reservation=winter",
    )
    for line in (
        "module load cuda/12.8",
        "export NCCL_SOCKET_IFNAME=ib0",
        'export TMPDIR="/scratch/$SLURM_JOB_ID"',
        "ulimit -l unlimited",
        "#SBATCH --mail-user=me@example.org",
        "#SBATCH --account=physics",
        "#SBATCH --qos=long",
        "#SBATCH --constraint=a100",
        "#SBATCH --reservation=winter",
    ):
        assert line in found.splitlines(), line


def test_nodes_without_a_network_are_told_so_and_those_with_one_are_not() -> None:
    switches = "export WANDB_MODE=offline"
    assert switches in text(stage="report").splitlines() and switches not in text(stage="pull")
    assert switches not in text("cluster.offline_nodes=false", stage="report")


def test_a_container_sees_the_users_own_data_and_models() -> None:
    found = requests.mounts(compose([*SMOKE, "dataset.root=/data/mine", "model.base=/models/llama"]))
    assert {Path("/data/mine"), Path("/models/llama"), Path("store").absolute()} <= set(found)
    assert not any("random:" in str(path) for path in found), "no folder: the model of another stage"


@pytest.mark.parametrize(
    ("scratch", "seen"),
    [
        ("/scratch/$SLURM_JOB_ID", "/scratch"),
        ("/local/job-$SLURM_JOB_ID/tmp", "/local"),
        ("/fast/$USER/x", "/fast"),
        ("/scratch/mine", "/scratch/mine"),
        ("$LOCAL/tmp", ""),
        ("/$LOCAL/tmp", ""),
        ("", ""),
    ],
)
def test_a_container_sees_the_scratch_of_its_node(scratch: str, seen: str) -> None:
    without, found = (requests.mounts(compose([*SMOKE, *words])) for words in ([], [f"cluster.scratch='{scratch}'"]))
    assert set(found) - set(without) == ({Path(seen)} if seen else set())


def test_a_container_of_pyxis_or_apptainer_holds_the_work_and_its_folders() -> None:
    pyxis = text("cluster.container.runtime=pyxis", "cluster.container.image=/images/cathpc.sqsh")
    work = pyxis.splitlines()[-1]
    assert "--container-image=/images/cathpc.sqsh" in work
    assert f"{Path('store').absolute()}:{Path('store').absolute()}" in work
    assert " python3 -u -m cathpc.dispatch.job " in work
    apptainer = text("cluster.container.runtime=apptainer", "cluster.container.image=/images/cathpc.sif")
    assert "apptainer exec --nv --bind" in apptainer.splitlines()[-1]
    for found in (pyxis, apptainer):
        assert f"{sys.executable} -m cathpc.dispatch.attempt" in found, "the trap runs outside: it needs scontrol"
        lock = lock_file().absolute()
        assert f"export CATHPC_LOCK={lock}\n" in found, "and not the one that was there when the image was built"
        assert re.search(rf"[,=]{lock.parent}[,: ]", found.splitlines()[-1])


def test_secrets_are_hidden_from_jobs_by_name_and_only_who_needs_a_key_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MY_API_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "canary-4711")
    hidden = {}
    for stage in ("pull", "train", "report"):
        found, config = request(stage=stage)
        prefix = script._prefix(found, config.cluster)
        hidden[stage] = {prefix[n + 1] for n, word in enumerate(prefix) if word == "-u"}
        assert "canary-4711" not in " ".join(prefix) + script.script(found, config.cluster)
    assert {"MY_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"} <= hidden["pull"] & hidden["train"] & hidden[
        "report"
    ]
    assert "HF_TOKEN" not in hidden["pull"] and {"HF_TOKEN", "WANDB_API_KEY"} <= hidden["train"] & hidden["report"]
    found, config = request("cluster.offline_nodes=false", stage="train")
    prefix = script._prefix(found, config.cluster)
    assert "HF_TOKEN" in prefix and "WANDB_API_KEY" not in prefix, "nodes with a network log while they train"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition='gpu\n#SBATCH --uid=0'", r"cluster\.partition"),
        ("cluster.account='a;reboot'", r"cluster\.account"),
        ("cluster.qos='`id`'", r"cluster\.qos"),
        ("+cluster.sbatch.uid=root", r"cluster\.sbatch\.uid is not an allowed Slurm option.*reservation"),
        ("+cluster.sbatch.reservation='a\nrm -rf /'", r"sbatch\.reservation"),
        ("+cluster.env.HF_TOKEN=abc", r"cluster\.env\.HF_TOKEN: no secrets"),
        ("+cluster.env.A-B=1", r"no name of a variable"),
        ("cluster.scratch='$(reboot)'", r"cluster\.scratch"),
        ("cluster.container.runtime=apptainer", r"container\.image is empty"),
        ("name='x\nrm -rf /'", r"name is"),
        ("+cluster.arrays.select=4", r"cluster\.arrays\.select: only these stages are arrays"),
        ("+cluster.stages={trian: {cpus: 4}}", r"cluster\.stages\.trian"),
        ("cluster.lead_s=70000", r"cluster\.lead_s"),
    ],
)
def test_what_must_not_reach_a_script_is_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose([*SMOKE, override])


def test_values_of_the_environment_are_quoted() -> None:
    found = text("+cluster.env.NOTE='a b; $(id)'")
    assert "export NOTE='a b; $(id)'" in found.splitlines()


def test_memory_is_asked_for_in_whole_units() -> None:
    found, config = request()
    assert "#SBATCH --mem=8GB" in script.script(found, config.cluster)
    assert "#SBATCH --mem=1536MB" in script.script(replace(found, mem_gb=1.5), config.cluster)
    assert "#SBATCH --mem=0" in script.script(replace(found, mem_gb=0.0), config.cluster)


ASKED = (
    "cards.writer=openai",
    "cards.model=''",
    "cards.endpoint.url=https://example.org/v1",
    "cards.endpoint.model=m",
    "cards.endpoint.key_env=MY_CARD_KEY",
)


def test_the_key_of_an_endpoint_reaches_the_cards_job_alone_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CARD_KEY", "canary-5d1e")
    monkeypatch.setenv("OTHER_KEY", "canary-77aa")
    found, config = request(*ASKED, "cluster.network_partition=transfer", stage="cards")
    assert (found.gpus_per_node, found.partition, found.keys) == (0, "transfer", ("MY_CARD_KEY",))
    assert "canary" not in script.script(found, config.cluster) + str(found.content)
    prefix = script._prefix(found, config.cluster)
    assert "OTHER_KEY" in prefix and "MY_CARD_KEY" not in prefix
    other, config = request(*ASKED, stage="score")
    assert "MY_CARD_KEY" in script._prefix(other, config.cluster)


def test_a_server_in_the_cards_job_takes_its_gpus_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    served = ("cards.writer=openai", "cards.endpoint.serve=vllm", "serving.environment=/shared/vllm")
    found, config = request(*served, "cluster.stages.cards.gpus=4", stage="cards")
    assert (found.gpus_per_node, found.keys) == (4, ()) and "OPENAI_API_KEY" in script._prefix(found, config.cluster)
    with pytest.raises(UserError, match="give either url"):
        compose([*SMOKE, "cards.writer=openai"])
    with pytest.raises(UserError, match="no code of a model is run"):
        compose([*SMOKE, "serving.arguments=['--trust-remote-code']"])


def test_a_served_model_is_a_job_that_does_not_come_back_by_itself() -> None:
    found, config = request(stage="evaluate")
    body = script.script(replace(found, module="cathpc.serving.job"), config.cluster)
    assert "-m cathpc.serving.job " in body and "cathpc_end" not in body and "umask 077" in body
