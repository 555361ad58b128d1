"""Packing beside TRL's `bfd`, in one run on the same lengths: `python -m tests.bench.pack`.

TRL is not among our dependencies: whoever runs this installs it into an environment of their own, and names it:

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16.0
    python -m tests.bench.pack --trl-python /tmp/trl/bin/python

Without it our lines are printed alone. The lengths are drawn, with replacement, from the records in `../shared/data`
where it is there: characters / 4 of all texts of a record, and 11 for the template's own tokens of two turns. Else
they are lognormal: median 200 tokens, sigma 0.8. Each line is a process of its own, its time without imports; of
several rounds the median time and the highest memory. RSS is all memory, pages of mapped files too; what is anonymous
is the process's own. What is timed:

- `placement`: lengths in memory to the records of each row.
- `placement and arrays`: a flat file of tokens to the stage's files of ids, labels and segments with their digests.
- TRL: `pack_dataset(strategy="bfd")` of a mapped Arrow file with the columns `input_ids` and `labels`, int32, to
  another one, in datasets' default batches of 1,000 records and in one batch.

Both are timed until what they wrote is on the disk (fsync). CPU seconds are those of all threads: on a busy machine
they compare better than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[2]
CHUNK = 100_000  # records that are made at once

OURS = """
import json, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa
from cathpc.data import bins, encode, pack

folder, seq_len, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
lengths = np.load(folder / "lengths.npy")
began, cpu = time.perf_counter(), time.process_time()
if what == "placement":
    order, starts = bins.best_fit_decreasing(lengths, seq_len)
    rows = len(starts) - 1
else:
    records = np.zeros(len(lengths), encode.RECORD)
    records["row"], records["tokens"], records["supervised"] = np.arange(len(lengths)), lengths, lengths
    ids = pa.array(f"{i:016x}" for i in range(len(lengths)))
    (folder / "scratch").mkdir()
    (folder / "scratch/flat").hardlink_to(folder / "tokens")
    began, cpu = time.perf_counter(), time.process_time()
    counts, _ = pack.write(folder / "scratch/flat", records, np.arange(len(lengths)), ids, seq_len, 0, folder / "out")
    rows = counts["bins"]
print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "rows": rows}))
"""

TRL = """
import json, os, sys, time
try:
    import datasets, trl
    from trl import pack_dataset
except ImportError as error:
    print(json.dumps({"absent": str(error)}))
    sys.exit()
folder, seq_len, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
datasets.disable_progress_bars()
dataset = datasets.Dataset.from_file(folder + "/tokens.arrow")
began, cpu = time.perf_counter(), time.process_time()
packed = pack_dataset(dataset, seq_len, "bfd", map_kwargs={"batch_size": batch})
for file in packed.cache_files:
    with open(file["filename"], "rb") as written:
        os.fsync(written.fileno())
took = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
print(json.dumps({**took, "rows": len(packed), "versions": [trl.__version__, datasets.__version__]}))
"""


def main() -> None:
    """Make the records, measure each line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared/data", help="real records, for their lengths"
    )
    parser.add_argument("--trl-python", default=sys.executable, help="the interpreter that has trl and datasets")
    chosen = parser.parse_args()
    lengths, whence = draw(chosen.data, chosen.records, chosen.seq_len)
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"{len(lengths):,} records of {lengths.mean():.0f} tokens on average, {lengths.max():,} at most, {whence}")
    top = Path(tempfile.mkdtemp(prefix="cathpc-bench-"))
    try:
        make(top, lengths)
        batches = (1000, len(lengths))
        lines: list[tuple[str, list[str]]] = [
            ("cathpc, placement", [sys.executable, "-c", OURS, "placement"]),
            ("cathpc, placement and arrays", [sys.executable, "-c", OURS, "arrays"]),
            *((f"TRL bfd, {batch:,} a batch", [chosen.trl_python, "-c", TRL, str(batch)]) for batch in batches),
        ]
        measured: dict[str, list[dict[str, Any]]] = {title: [] for title, _ in lines}
        for _ in range(chosen.rounds):
            for title, command in lines:
                found = measure([*command[:3], str(top), str(chosen.seq_len), *command[3:]], top)
                if "absent" in found:
                    print(f"TRL is not there ({found['absent']}): see the head of this file")
                    break
                measured[title].append(found)
    finally:
        shutil.rmtree(top)
    table({title: rounds for title, rounds in measured.items() if rounds}, lengths, chosen.seq_len)


def draw(data: Path, count: int, seq_len: int) -> tuple[np.ndarray, str]:
    """Lengths, int32 [count], in tokens, and where they come from."""
    draws = np.random.default_rng(0)
    if data.is_dir():
        real = np.array([characters // 4 + 11 for characters in texts(data)])
        return draws.choice(real[real <= seq_len], count).astype(np.int32), f"drawn from {len(real):,} real ones"
    return np.clip(draws.lognormal(np.log(200), 0.8, count), 16, seq_len).astype(np.int32), "lognormal"


def texts(data: Path) -> Iterator[int]:
    """Characters of each record of instructions."""
    for path in sorted(data.glob("*.json*")):
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines())
        for row in rows:
            yield sum(
                len(row.get(k, "")) for k in ("instruction", "input", "output", "response", "prompt", "completion")
            )


def make(folder: Path, lengths: np.ndarray) -> None:
    """The same tokens as our flat file and as TRL's Arrow file, and the lengths."""
    draws = np.random.default_rng(1)
    np.save(folder / "lengths.npy", lengths)
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])
    with (folder / "tokens").open("wb") as flat, pa.ipc.new_stream(folder / "tokens.arrow", schema) as arrow:
        for first in range(0, len(lengths), CHUNK):
            offsets = np.append(0, np.cumsum(lengths[first : first + CHUNK])).astype(np.int32)
            tokens = draws.integers(0, 128_000, offsets[-1], dtype=np.int32)
            flat.write(tokens.data)
            arrow.write(pa.record_batch([pa.ListArray.from_arrays(offsets, tokens)] * 2, schema=schema))


def measure(command: list[str], folder: Path) -> dict[str, Any]:
    """What the process prints as JSON, with the highest of its memory in MB; what it wrote is removed."""
    kept = set(folder.iterdir())
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    rss = anonymous = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            memory = {
                key: int(value.split()[0])
                for key, _, value in (row.partition(":") for row in status.splitlines())
                if key in ("VmHWM", "RssAnon")
            }
            rss, anonymous = max(rss, memory.get("VmHWM", 0)), max(anonymous, memory.get("RssAnon", 0))
            time.sleep(0.02)
        assert process.stdout
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}; its words are above")
    for path in set(folder.iterdir()) - kept:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {**json.loads(printed.splitlines()[-1]), "rss": rss / 1000, "anonymous": anonymous / 1000}


def table(measured: dict[str, list[dict[str, Any]]], lengths: np.ndarray, seq_len: int) -> None:
    """A line each, and how many times as fast ours are."""
    print(f"\n{'':<34}{'records/s':>12}{'seconds':>10}{'CPU s':>8}{'efficiency':>12}{'RSS MB':>9}{'own MB':>9}")
    speeds = {}
    for title, rounds in measured.items():
        seconds, cpu = (statistics.median(one[key] for one in rounds) for key in ("seconds", "cpu"))
        speeds[title] = len(lengths) / seconds
        efficiency = int(lengths.sum()) / (rounds[0]["rows"] * seq_len)
        rss, own = (max(one[key] for one in rounds) for key in ("rss", "anonymous"))
        print(
            f"{title:<34}{speeds[title]:>12,.0f}{seconds:>10.2f}{cpu:>8.2f}{efficiency:>12.5f}{rss:>9,.0f}{own:>9,.0f}"
        )
        for versions in {tuple(one["versions"]) for one in rounds if "versions" in one}:
            print(f"  trl {versions[0]}, datasets {versions[1]}")
    theirs = [speed for title, speed in speeds.items() if title.startswith("TRL")]
    if theirs:
        for title in [title for title in speeds if title.startswith("cathpc")]:
            print(f"{title}: {speeds[title] / max(theirs):.1f} times TRL's faster line")


if __name__ == "__main__":
    main()
