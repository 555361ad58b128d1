"""Act `score`: a file of one's own, scored with a finished run's models, in the foreground.

In: JSON Lines, JSON, CSV or Parquet; `+experiment=NAME` and the run's other overrides, which say whose models. Out: one
row for each row of the input, in its order (`cathpc.data.scorefile`). Time grows with the tokens, memory with nothing;
after a kill the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.errors import UserError

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.record import Score
    from cathpc.store import Place

HELP = "score a JSONL or Parquet file of one's own with a finished run's models"
MODELS = ("reference", "pool", "refusal")
REPORT_S = 10.0
"""Between two lines of progress where there is no terminal."""


def options(parser: argparse.ArgumentParser) -> None:
    """Which file, where to, and which columns."""
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="JSON Lines, JSON, CSV or Parquet")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jsonl or .parquet file")
    parser.add_argument("--instruction", default="", metavar="COLUMN", help="column of the prompt")
    parser.add_argument("--answer", default="", metavar="COLUMN", help="column of the answer")
    parser.add_argument("--system", default="", metavar="COLUMN", help="column of the system prompt")
    parser.add_argument("--id", default="", metavar="COLUMN", help="column of the id ('id' where there is one)")


def main(arguments: argparse.Namespace) -> int:
    """Score the file; refuses what is wrong with it, or with the run, before a model is loaded."""
    from cathpc.config import compose
    from cathpc.data import scorefile
    from cathpc.store import digest, file_hash

    config = compose(arguments.overrides)
    file, output = arguments.input, arguments.output
    places = _trained(config, arguments.overrides)
    max_bytes = int(config.dataset.max_row_mb * 1e6)
    scorefile.check_output(output, file)
    named = {key: getattr(arguments, key) for key in ("instruction", "answer", "system")}
    named["identity"] = arguments.id
    seen = scorefile.survey(file, max_bytes, named.values())
    columns = scorefile.fields(seen, **named)
    about = digest({"input": file_hash(file), "columns": vars(columns), "models": _models(config, places)})

    from cathpc.data.likelihood import ScoringModels, score_records
    from cathpc.models.bars import no_bars

    settings = replace(  # every row is asked about
        config.score, min_answer_tokens=0, max_answer_tokens=0, min_correlatives=0, languages=[]
    )
    with no_bars():
        models = ScoringModels.load(settings, **{name: places[name].folder for name in MODELS})
    progress = _Progress(seen.rows)
    before = scorefile.score_file(
        file,
        output,
        columns,
        seen.rows,
        lambda records: score_records(records, models, progress.show),
        about=about,
        max_bytes=max_bytes,
        report=progress.add,
    )
    progress.end()
    print(f"{output}: {seen.rows:,} rows{progress.summary(before)}")
    return 0


def _trained(config: Config, overrides: list[str]) -> dict[str, Place]:
    """The places of the scoring models; a `UserError` where they are not trained, or on other data."""
    from cathpc.pipeline import BY_NAME
    from cathpc.store import places

    found = places(config, tuple(BY_NAME[name] for name in ("pull", *MODELS)))
    missing = [name for name in MODELS if not found[name].fresh()]
    if missing:
        raise UserError(
            f"{config.name} has no finished models to score with yet ({', '.join(missing)}). "
            f"Train them: python -m cathpc {shlex.join(overrides)}"
        )
    return found


def _models(config: Config, places: dict[str, Place]) -> dict[str, object]:
    """All that decides a score, beside the record."""
    from cathpc.pipeline import BY_NAME
    from cathpc.schema import identity

    stage = BY_NAME["score"]
    assert stage.identity is not None
    manifests = {name: (places[name].manifest() or {})["digest"] for name in MODELS}
    return {**manifests, "version": stage.version, "score": identity(config.score), "lexicon": stage.identity(config)}


class _Progress:
    """Rows done, on one line of a terminal, else a line every so often; and the counts for the end."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.statuses: Counter[str] = Counter()
        self.tokens = 0
        self.began = self.told = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, done: int, scores: Sequence[Score]) -> None:
        """A block of rows is written; `done` counts those of an earlier attempt too."""
        self.done = done
        self.statuses.update(score.status for score in scores)
        self.tokens += sum(score.tokens or 0 for score in scores if score.status == "ok")
        self.show(0)

    def show(self, more: int) -> None:
        """Say how far it is: `more` records of the next block are scored."""
        now = time.monotonic()
        if now - self.told < (0.5 if self.terminal else REPORT_S):
            return
        self.told = now
        text = f"{self.done + more:,} of {self.total:,} rows"
        print(f"\r{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line of the terminal."""
        if self.terminal:
            print(file=sys.stderr)

    def summary(self, before: int) -> str:
        """How many of which status, and how fast."""
        counts = ", ".join(f"{count:,} {status}" for status, count in self.statuses.most_common())
        earlier = f", {before:,} of them by an earlier attempt" if before else ""
        rate = self.tokens / max(1e-9, time.monotonic() - self.began)
        return f"{earlier}; {counts}; {self.tokens:,} tokens, {rate:,.0f}/s" if counts else earlier
