"""Time and memory of pull, deduplication and select: `python -m tests.bench.scale [--records 10000 100000 1000000]`.

Makes records with a text that is like that of instruction data (words by Zipf's law, in sentences; lengths lognormal)
in four files of four formats, among them exact and near-duplicates, consultations with their courtesies, rows that are
broken, and text of the evaluation sets; then scores for what `pull` leaves, drawn at random. Each stage runs in a
process of its own. Printed: seconds, records a second, the most memory that the stage's process and its workers had at
one time (looked at every `INTERVAL`): their own, which nothing but swap could take from them, and with the pages of
files that they have mapped and the system drops where it is short; the exponent of time in the number of records, and
what follows for 10 million. CPU seconds are those of all processes, their start included; on a machine with other work
they tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
SHARES = {"general.jsonl": 0.5, "health.jsonl": 0.2, "science.parquet": 0.2, "chat.jsonl.zst": 0.1}
EXACT, NEAR, BROKEN, CONTAMINATED = 0.03, 0.05, 0.005, 0.0005
TARGET, TARGET_SHARDS = 10_000_000, 1000
VOCABULARY = 60_000
SEED = 20_260_101
INTERVAL = 0.05
"""Seconds between two looks at the memory."""

PULL = """
import json, resource, sys, time
from pathlib import Path
from types import SimpleNamespace
from cathpc.data import pull
from cathpc.data.config import Component, DatasetConfig, Format, SourceConfig
def main():
    top, out = Path(sys.argv[1]), Path(sys.argv[2])
    own = {"license": "cc0-1.0", "columns": {"generator": "generator"}}
    health = {"format": Format.chatdoctor, "component": Component.health}
    science = {"format": Format.question_answer, "component": Component.science}
    sources = {
        "general": SourceConfig(path="general.jsonl", **own),
        "health": SourceConfig(path="health.jsonl", **health, **own),
        "science": SourceConfig(path="science.parquet", **science, **own),
        "chat": SourceConfig(path="chat.jsonl.zst", format=Format.sharegpt, component=Component.roleplay, **own),
    }
    started = time.perf_counter()
    dataset = DatasetConfig(root=str(top), sources=sources, workers=int(sys.argv[3]))
    summary = pull.run(SimpleNamespace(dataset=dataset), {}, out)
    seconds = time.perf_counter() - started
    mine, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(used.ru_utime + used.ru_stime for used in (mine, theirs))
    answer = {"seconds": seconds, "cpu": cpu, "parts": summary["seconds"]}
    print(json.dumps(answer | {key: summary[key] for key in ("records", "rows", "reasons")}))
if __name__ == "__main__":
    main()
"""

SELECT = """
import json, resource, sys, time
from pathlib import Path
from types import SimpleNamespace
from cathpc.data import select
from cathpc.data.config import SelectConfig
top = Path(sys.argv[1])
settings = SelectConfig(population=0.95, drop_quality=0.3, quotas={"health": 50_000})
inputs = {"pull": top / "pull", "score": top / "score"}
started = time.perf_counter()
summary = select.run(SimpleNamespace(select=settings), inputs, Path(sys.argv[2]))
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "parts": summary["seconds"], "records": summary["kept"]}))
"""


def main() -> None:
    """Run all sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--folder", type=Path, help="where the records are made (default: the system's temporary folder)"
    )
    chosen = parser.parse_args()
    found: list[dict[str, Any]] = []
    for count in sorted(chosen.records):
        with tempfile.TemporaryDirectory(prefix="cathpc-scale-", dir=chosen.folder) as folder:
            found.append(measure(Path(folder), count, chosen.workers))
    table(found, chosen.workers)


def measure(top: Path, count: int, workers: int) -> dict[str, Any]:
    """Both stages on `count` records."""
    make(top, count)
    size = sum(file.stat().st_size for file in top.iterdir())
    (top / "pull").mkdir()
    pulled = run(top, PULL, top, top / "pull", workers)
    scores(top)
    (top / "select").mkdir()
    selected = run(top, SELECT, top, top / "select")
    print(f"{count:,} rows, {size / 1e6:,.0f} MB: {pulled} {selected}", file=sys.stderr)
    return {"count": count, "bytes": size, "pull": pulled, "select": selected}


def run(top: Path, code: str, *arguments: object) -> dict[str, Any]:
    """What a program prints last, as JSON, with `own` and `mapped`: the most bytes of it and its workers."""
    program = top / "program.py"
    program.write_text(code)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    peaks = (0, 0)
    with open(top / "said", "w+") as said, open(top / "complaints", "w+") as complaints:
        with psutil.Popen(command, env=environment, stdout=said, stderr=complaints) as process:
            while process.poll() is None:
                peaks = tuple(map(max, peaks, memory(process)))
                time.sleep(INTERVAL)
        if process.returncode:
            complaints.seek(0)
            raise SystemExit(complaints.read()[-3000:])
        said.seek(0)
        answer: dict[str, Any] = json.loads(said.read().splitlines()[-1])
    return answer | {"own": peaks[0], "mapped": peaks[1]}


def memory(process: psutil.Process) -> tuple[int, int]:
    """Bytes that a process and its children hold: their own, and with the pages of files that they have mapped."""
    own = mapped = 0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                held = each.memory_info()
                own, mapped = own + held.rss - held.shared, mapped + held.rss
    return own, mapped


# --- data -------------------------------------------------------------------------------------------------------------


class Writer:
    """Text that looks like text to whatever counts words."""

    def __init__(self) -> None:
        self.draws = np.random.default_rng(SEED)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        lengths = self.draws.integers(2, 11, VOCABULARY)
        self.words = np.array(["".join(self.draws.choice(letters, n)) for n in lengths], dtype=object)
        weights = 1 / np.arange(10, VOCABULARY + 10)
        self.cumulative = np.cumsum(weights / weights.sum())

    def texts(self, lengths: np.ndarray) -> list[list[str]]:
        """Words of texts of these lengths, with full stops."""
        places = np.minimum(np.searchsorted(self.cumulative, self.draws.random(int(lengths.sum()))), VOCABULARY - 1)
        words = self.words[places]
        stops = self.draws.random(len(words)) < 0.07
        words[stops] += "."
        return [part.tolist() for part in np.split(words, np.cumsum(lengths)[:-1])]


def make(top: Path, count: int) -> None:
    """Write the files of `count` rows."""
    writer, held = Writer(), json.loads((ROOT / "cathpc/assets/probes.jsonl").read_text().splitlines()[0])
    leaked = held["messages"][0]["content"]
    for name, share in SHARES.items():
        rows = round(count * share)
        if name.endswith(".parquet"):
            schema = pa.schema([(column, pa.string()) for column in ("question", "answer", "generator")])
            with pq.ParquetWriter(top / name, schema) as parquet:
                for pairs in batches(writer, rows, leaked):
                    columns = [[q for q, _ in pairs], [a for _, a in pairs], ["gpt-4"] * len(pairs)]
                    parquet.write_table(pa.table(columns, schema=schema))
            continue
        compression = "zstd" if name.endswith(".zst") else None
        with pa.output_stream(str(top / name), compression=compression) as file:
            for pairs in batches(writer, rows, leaked):
                broken = writer.draws.random(len(pairs)) < BROKEN
                lines = [line(name, q, a, bad) for (q, a), bad in zip(pairs, broken.tolist(), strict=True)]
                file.write(b"".join(lines))


def line(name: str, question: str, answer: str, broken: bool) -> bytes:
    """A row of the file `name`."""
    if name.startswith("health"):
        answer = f"Hi, Welcome to Chat Doctor. {answer} Hope this helps. Regards, Dr. John Doe"
        row: dict[str, Any] = {"instruction": "You are a doctor.", "input": question, "output": answer}
    elif name.startswith("chat"):
        row = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
    else:
        row = {"instruction": question, "input": "", "output": answer}
    text = json.dumps({**row, "generator": "gpt-4"}).encode()
    return (text[: len(text) // 2] if broken else text) + b"\n"


def batches(writer: Writer, rows: int, leaked: str, size: int = 10_000) -> Any:
    """Lists of (question, answer), some of which repeat others of their list."""
    for start in range(0, rows, size):
        count = min(size, rows - start)
        lengths = [np.clip(writer.draws.lognormal(np.log(m), 0.7, count), 5, 1500).astype(int) for m in (25, 150)]
        questions, answers = (writer.texts(lengths[n]) for n in range(2))
        fate = writer.draws.random(count)
        other = writer.draws.integers(0, count, count)
        pairs = []
        for place in range(count):
            question, answer = questions[place], answers[place]
            if fate[place] < EXACT + NEAR:
                question, answer = questions[other[place]], list(answers[other[place]])
                if fate[place] < NEAR:
                    answer[len(answer) // 2] = "changed"
            elif fate[place] > 1 - CONTAMINATED:
                answer = [*answer, leaked]
            pairs.append((" ".join(question), " ".join(answer)))
        yield pairs


def scores(top: Path) -> None:
    """Score shards for the record shards of `pull`."""
    from cathpc.record import SCORE_SCHEMA

    (top / "score" / "scores").mkdir(parents=True)
    draws = np.random.default_rng(SEED)
    for path in sorted((top / "pull" / "records").glob("*.parquet")):
        ids = pq.read_table(path, columns=["id"])["id"]
        n = len(ids)
        nll = draws.gamma(4, 0.5, n)
        contrast = draws.normal(0.1, 0.3, n)
        columns = {"id": ids, "status": ["ok"] * n, "nll": nll, "pool_nll": nll + contrast, "perplexity": np.exp(nll)}
        columns |= {"contrast": contrast, "refusal": draws.beta(0.3, 6, n), "language": ["en"] * n}
        tokens = draws.lognormal(5, 0.7, n).astype(np.int32)
        columns |= {"tokens": tokens + 40, "answer_tokens": tokens}
        columns |= {"turn_tokens": tokens.astype(float), "diagnosis": draws.beta(3, 4, n)}
        columns |= {"correlatives": draws.poisson(4, n), "steps": draws.poisson(3, n)}
        table_ = pa.table(
            [pa.array(columns[f.name], f.type) if f.name != "id" else ids for f in SCORE_SCHEMA], schema=SCORE_SCHEMA
        )
        pq.write_table(table_, top / "score" / "scores" / path.name.replace("records", "scores"))


# --- what was found ---------------------------------------------------------------------------------------------------


def table(found: list[dict[str, Any]], workers: int) -> None:
    """A line a stage and size; exponents; 10 million on paper."""
    heads = (("", 20), ("rows", 12), ("out", 12), ("seconds", 10), ("CPU s", 10), ("rows/s", 10))
    heads += (("own MiB", 10), ("mapped too", 12))
    print("\n" + "".join(f"{head:>{width}}" for head, width in heads) + "   seconds of its parts")
    for stage in ("pull", "select"):
        for one in found:
            seen = one[stage]
            rows = one["count"] if stage == "pull" else one["pull"]["records"]
            parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in seen["parts"].items())
            own, mapped = (seen[kind] / 2**20 for kind in ("own", "mapped"))
            name = f"pull, {workers} workers" if stage == "pull" else stage
            print(
                f"{name:<20}{rows:>12,}{seen['records']:>12,}{seen['seconds']:>10.1f}{seen['cpu']:>10.1f}"
                f"{rows / seen['seconds']:>10,.0f}{own:>10,.0f}{mapped:>12,.0f}   {parts}"
            )
    if len(found) < 2:
        return
    rows = np.array([one["count"] for one in found])
    more = TARGET - rows[-1]
    for stage in ("pull", "select"):
        told = []
        for kind in ("seconds", "cpu"):
            times = np.array([one[stage][kind] for one in found])
            power = np.polyfit(np.log(rows), np.log(times), 1)[0]
            each = (times[-1] - times[-2]) / (rows[-1] - rows[-2])
            minutes = (times[-1] + each * more) / 60
            told.append(f"{kind} ~ records^{power:.3f}, {each * 1e6:,.0f} s a million more, {minutes:,.0f} min")
        peaks = [one[stage]["own"] for one in found]
        growth = (peaks[-1] - peaks[-2]) / (rows[-1] - rows[-2])
        print(
            f"{stage}: {'; '.join(told)} for {TARGET:,} records on {TARGET_SHARDS:,} shards; memory grows by "
            f"{growth:,.0f} bytes a record, to {(peaks[-1] + growth * more) / 2**30:.1f} GiB"
        )
    text = found[-1]["bytes"] / found[-1]["count"] * TARGET / 1e9
    print(
        f"and {text + 256 * TARGET / 1e9:,.0f} GB of disk while pull runs: {text:,.0f} of text, 256 bytes of bands each"
    )


if __name__ == "__main__":
    main()
