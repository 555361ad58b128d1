"""A run of very many one-record shards: its data, its command, and the same rows from one machine."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

from tests.slurm.site import ROOT, Site

DATASET = """
root: data
sources:
  numbers:
    path: numbers.jsonl
    format: prompt_response
    license: cc0-1.0
    columns: {generator: generator}
  refusals:
    path: refusals.jsonl
    format: prompt_response
    component: refusal
    license: cc0-1.0
    limit: 60
    columns: {answer: completion, label: label}
    labels: {1_full_compliance: 0, 2_full_refusal: 1, 3_partial_refusal: 1}
near_duplicates: 0
"""
WORDS = ("because", "therefore", "so", "however", "although", "if", "then", "since")
MANY = (
    "+experiment=smoke",
    "dataset=many",
    "dataset.shard_records=1",
    "cards.model=''",  # plain cards: no torch
    "cards.shard_records=1",
    "select.languages=[]",
    "select.min_answer_tokens=0",
    "select.reasoning_min_tokens=0",
    "select.health_min_tokens=0",
    "select.min_correlatives=0",
    "select.drop_quality=0",
    "select.max_records=null",
    "pack.max_tokens=3000",
    "train.ranks_per_node=1",
)
CLUSTER = (
    "cluster=devcluster",
    "cluster.cpus=1",
    "cluster.gpus_per_node=0",
    "cluster.partition=cpu",
    "cluster.cpu_mem_gb=2",
    "cluster.health_check=false",
)


def prepare(site: Site, records: int) -> None:
    """Data of so many records in the home, and a dataset of the user's own that names it."""
    folder, conf = site.folder / "data", site.folder / "conf" / "dataset"
    folder.mkdir()
    conf.mkdir(parents=True)
    shutil.copy(ROOT / "cathpc" / "assets" / "demo" / "refusals.jsonl", folder)
    with open(folder / "numbers.jsonl", "w") as file:
        for number in range(records):
            draw = random.Random(number)
            said = " ".join(draw.choice(WORDS) + f" {draw.randrange(1000)}" for _ in range(24))
            generator = ("careful", "other")[number % 2]
            row = {"prompt": f"What is number {number}?", "response": f"{said}.", "generator": generator}
            file.write(json.dumps(row) + "\n")
    (conf / "many.yaml").write_text(DATASET)
    site.own()


def on_one_machine(site: Site, *overrides: str) -> None:
    """Make the stages up to `cards` in the home without Slurm, as its user: what all else is compared with."""
    code = (
        "import sys; from cathpc.acts.run import foreground; from cathpc.config import compose\n"
        "words = sys.argv[1:]; stages = {'pull', 'reference', 'pool', 'refusal', 'score', 'select', 'cards'}\n"
        "foreground(compose(words), words, targets=stages)"
    )
    words = site.command(*MANY, *overrides)
    at = words.index("-m")
    words[at : at + 2] = ["-c", code]
    done = subprocess.run(words, cwd=site.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


KILL_SOME = """
import random

@after_import("cathpc.shards")
def patch(module):
    inner = module.whole
    @module.contextmanager
    def whole(path, **options):
        with inner(path, **options) as file:
            yield file
            stage, name = path.parents[2].name, f"{path.parents[2].name}-{path.parent.name}-{path.name}"
            files = {"score": 3, "cards": 4}.get(stage, 0)  # of a shard
            if files and random.Random(name).random() < float(os.environ["KILL_SHARE"]) / files and once(name):
                die()
    module.whole = whole
"""
"""Kills the processes that write this share of the shards, each in one of the files of a shard."""
