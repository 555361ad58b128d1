"""Reads what the stages left behind into plain values: folders in, one `Facts` out.

Nothing is judged or drawn here. Memory grows with the number of scored records (some 100 bytes each: the columns of
verdicts and scores, no text); the text of records is read for the few that are shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from cathpc.data.config import SelectConfig
from cathpc.errors import DataError
from cathpc.record import unit_hash
from cathpc.report import sampling, training_log
from cathpc.report.sampling import SAMPLE_SEED
from cathpc.train import metrics

HELDOUT_COLUMNS = ["id", "component", "contrast", "perplexity", "answer_tokens"]
SCORE_COLUMNS = [
    "id",
    "status",
    "perplexity",
    "contrast",
    "refusal",
    "answer_tokens",
    "correlatives",
    "steps",
    "diagnosis",
]


@dataclass(frozen=True)
class Facts:
    """What a report shows of one run."""

    manifests: dict[str, dict[str, Any]]
    """Manifest of each stage, in the order of the inputs."""
    sources: dict[str, dict[str, Any]]
    """What pull read of each source."""
    scored: pa.Table
    """One row a scored record: the columns of its verdict, and `SCORE_COLUMNS`."""
    cuts: dict[str, dict[str, float]]
    """Component -> rule that compares records -> what it held them against."""
    answers_heldout: pa.Table
    """Answers to prompts that no GPT was trained on: `HELDOUT_COLUMNS`, generator, reference (bool)."""
    heldout: pa.Table
    """Held-out answers of the refusal classifier: label, probability."""
    steps: list[dict[str, Any]]
    """Training, one row a global step, rising, without superseded steps; a held-out loss is in the row of its step."""
    resumed: list[int]
    """Steps after which training stopped and went on."""
    card_counts: Counter[str]
    """Cards by verdict."""
    card_examples: list[dict[str, Any]]
    """Some cards (the rows of cards.jsonl) with the `record` that each was written for."""
    fidelity: dict[str, Any]
    answers: list[dict[str, Any]]
    showcase: list[dict[str, Any]]
    """Conversations that evaluate held to be shown; empty where it wrote none."""
    superseded: list[dict[str, Any]]
    """Rows of steps that a resume took again: what was logged of them first."""
    attempts: list[dict[str, Any]]
    """Attempts at the training: what each held its nodes for."""
    sampled: pa.Table
    """Rows of `scored` that the page's charts show one by one."""
    words: dict[str, str]
    """Id -> first words of the record's first question, of `sampled` and `answers_heldout`."""
    explained: list[dict[str, Any]]
    """Records that are shown whole: `record`, `score`, `verdict` and `rules`."""

    def summary(self, stage: str) -> dict[str, Any]:
        """What `stage` returned."""
        summary: dict[str, Any] = self.manifests[stage]["summary"]
        return summary

    def config(self, stage: str, section: str) -> dict[str, Any]:
        """The section of the config that `stage` ran under."""
        settings: dict[str, Any] = self.manifests[stage]["config"][section]
        return settings


def gather(inputs: dict[str, Path], *, examples: int, points: int = 6_000, explained: int = 24) -> Facts:
    """Read the finished folders of the stages; a missing or broken file raises `DataError` with its name.

    `examples` cards, `points` records drawn one by one, and about `explained` shown whole, besides those that came
    nearest to passing. One pass over the text of all records finds the words of these.
    """
    steps = metrics.by_step(_present(inputs["train"] / metrics.METRICS))
    card_counts, card_examples = _cards(inputs["cards"], examples)
    scored = _scored(inputs["select"], inputs["score"])
    manifests = {name: _json(folder / "manifest.json") for name, folder in inputs.items()}
    cuts = _json(inputs["select"] / "flow.json")["cuts"]
    settings = SelectConfig(**manifests["select"]["config"]["select"])
    answers_heldout = _answers(inputs, scored)
    sampled, words, explained_rows = sampling.sampled(
        scored, inputs, cuts, settings, points=points, explained=explained, also=answers_heldout["id"].to_pylist()
    )
    logged = training_log.read(inputs["train"] / metrics.METRICS)
    return Facts(
        manifests=manifests,
        sources=_json(inputs["pull"] / "sources.json"),
        scored=scored,
        cuts=cuts,
        answers_heldout=answers_heldout,
        heldout=pq.read_table(inputs["refusal"] / "heldout.parquet", columns=["label", "probability"]),
        steps=steps,
        resumed=[one["global_step"] for one, two in pairwise(steps) if two["attempt"] != one["attempt"]],
        card_counts=card_counts,
        card_examples=card_examples,
        fidelity=_json(inputs["evaluate"] / "fidelity.json"),
        answers=list(_lines(inputs["evaluate"] / "answers.jsonl")),
        showcase=list(_lines(showcase)) if (showcase := inputs["evaluate"] / "showcase.jsonl").is_file() else [],
        superseded=logged.superseded,
        attempts=logged.attempts,
        sampled=sampled,
        words=words,
        explained=explained_rows,
    )


def _scored(select: Path, score: Path) -> pa.Table:
    verdicts = pq.read_table(select / "verdicts.parquet")
    scores = pads.dataset(sorted((score / "scores").glob("*.parquet"))).to_table(columns=SCORE_COLUMNS)
    return verdicts.join(scores, "id", join_type="inner").sort_by("id")


def _answers(inputs: dict[str, Path], scored: pa.Table) -> pa.Table:
    """The scored records among those that the GPTs' stages held out."""
    parts = []
    for name in ("reference", "pool"):
        part = pq.read_table(_present(inputs[name] / "heldout.parquet"))
        parts.append(part.append_column("reference", pa.array([name == "reference"] * part.num_rows, pa.bool_())))
    good = scored.filter(pc.equal(scored["status"], "ok")).select(HELDOUT_COLUMNS)
    return pa.concat_tables(parts).join(good, "id", join_type="inner").sort_by("id")


def _cards(folder: Path, examples: int) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Cards by verdict, and examples: a third of them plain cards where there are as many, the rest verified."""
    counts: Counter[str] = Counter()
    smallest: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for row in _lines(folder / "cards.jsonl"):
        counts[row["verdict"]] += 1
        best = smallest.setdefault(row["verdict"], [])
        best.append((unit_hash(row["id"], SAMPLE_SEED), row))
        best.sort(key=lambda pair: pair[0])
        del best[examples:]
    plain = smallest.get("plain", [])
    others = sorted((p for verdict, best in smallest.items() if verdict != "plain" for p in best), key=lambda p: p[0])
    take_plain = min(len(plain), max(examples // 3, examples - len(others)))
    chosen = [row for _, row in others[: examples - take_plain] + plain[:take_plain]]
    found = sampling.rows_of([folder / "carded.parquet"], {row["id"] for row in chosen})
    records = {row["id"]: row for row in found.to_pylist()}
    return counts, [{**row, "record": records[row["id"]]} for row in chosen if row["id"] in records]


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing: remove its folder and run the same command again, which makes it anew")
    return path


def _json(path: Path) -> Any:
    try:
        return json.loads(_present(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): remove its folder and run the same command again") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(_present(path), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number} is not JSON ({error}): {line[:80]!r}. "
                    "Remove its folder and run the same command again"
                ) from None
