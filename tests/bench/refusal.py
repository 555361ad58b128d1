"""The refusal classifier, measured: `python -m tests.bench.refusal [--work FOLDER] [PART ...]`.

Pulls `dataset=research` and runs stage `refusal` under `+experiment=research` into FOLDER (kept, and used again), then
prints, for the parts that are named or all of them:

- `oof`: every labelled answer judged by a classifier that never saw its prompt, scaled by the other folds: F1 at the
  shipped cutoff beside XSTest's string matching, by answering model, with a paired bootstrap over prompts; precision
  and recall with bands, ECE with its interval, the best cutoffs.
- `lomo`: every answering model judged by a classifier that learned from the others' answers (kept in FOLDER/lomo). The
  prompts are the same, so this is about manners of refusing; its scaling is that of the out-of-fold log-odds of the
  other models' rows.
- `sealed`: examples that train nothing: hard ones of our own (`tests/golden/refusals.jsonl`), and prompts in the manner
  of XSTest with answers in that of GPT-4, both written by a language model that knew neither the shipped examples nor
  the classifier (`tests/golden/refusals_gpt4.jsonl`).
- `flagged`: every unlabelled answer above the cutoff, to be read (`FOLDER/flagged.jsonl`); answers that trained the
  classifier are left out.
- `speed`: answers a second beside `transformers.pipeline("text-classification")`: the same model, the same pairs.

Needs the files of `../shared/data`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, pipeline

from cathpc.config import Config, compose
from cathpc.data import pull
from cathpc.models import refusal_train
from cathpc.models.calibration import at_cutoff, bands, bootstrap, measure
from cathpc.models.refusal import RefusalModel
from cathpc.models.refusal_rows import Row, examples, labelled, unlabelled
from cathpc.models.source import prepare
from tests.bench import strings

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SEALED = [ROOT / "tests" / "golden" / name for name in ("refusals.jsonl", "refusals_gpt4.jsonl")]
PARTS = ("oof", "lomo", "sealed", "flagged", "speed")
SPEED_PAIRS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--work", type=Path, default=Path("/tmp/cathpc-bench-refusal"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    args = parser.parse_args()
    if wrong := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    if not (DATA / "refusals.jsonl").is_file():
        sys.exit(f"no real data in {DATA}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    overrides = [f"paths.research={DATA}", f"paths.cache={args.work / 'cache'}", *args.set]
    config = compose(["+experiment=research", *overrides])
    stage = _stage(config, args.work)
    for part in args.parts or PARTS:
        began = time.perf_counter()
        print(f"\n== {part}")
        globals()[part](config, stage)
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)


def _stage(config: Config, work: Path) -> Path:
    """The folder of the finished stage; that of pull lies beside it."""
    folders = {name: work / name for name in ("pull", "refusal")}
    for name, function in (("pull", pull.run), ("refusal", refusal_train.run)):
        if not (folders[name] / "done.json").exists():
            folders[name].mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            summary = function(config, {"pull": folders["pull"]}, folders[name])
            (folders[name] / "done.json").write_text(json.dumps(summary))
            print(f"{name}: {time.perf_counter() - began:.0f} s, {summary['line']}", flush=True)
    return folders["refusal"]


def oof(config: Config, stage: Path) -> None:
    rows = labelled(stage.parent / "pull" / "labels.parquet")
    found = {r["id"]: r["probability"] for r in pq.read_table(stage / "heldout.parquet").to_pylist()}
    probabilities = np.array([found[row.id] for row in rows])
    compare(rows, probabilities, config.refusal.cutoff)
    truth = np.array([row.refuses for row in rows])
    keys = [row.key for row in rows]
    figures, intervals = (
        measure(truth, probabilities, config.refusal.cutoff),
        bands(truth, probabilities, keys, config.refusal.cutoff),
    )
    print(f"\n{len(rows)} answers to {len(set(keys))} prompts; in brackets 95% of a bootstrap over prompts")
    for name, value in {**figures, "best_cutoff": config.refusal.cutoff}.items():
        low, high = intervals.get(name, (float("nan"), float("nan")))
        print(f"{name:12} {value:6.3f}  [{low:.3f}, {high:.3f}]")


def compare(rows: Sequence[Row], probabilities: np.ndarray, cutoff: float) -> None:
    """F1 by answering model and of all: ours, string matching's, and the bootstrap interval of the difference."""
    print(f"{'model':16} {'rows':>5} {'refuse':>6} {'prec.':>6} {'recall':>6} {'F1':>6} {'strings':>7}  difference")
    for name in [*sorted({row.generator for row in rows}), ""]:
        chosen = [i for i, row in enumerate(rows) if row.generator == name or not name]
        truth = np.array([rows[i].refuses for i in chosen])
        ours = probabilities[chosen]
        theirs = np.array([float(strings.refuses(rows[i].answer)) for i in chosen])

        def difference(at: np.ndarray, y: Any = truth, a: Any = ours, b: Any = theirs) -> list[float]:
            return [at_cutoff(y[at], a[at], cutoff)["f1"] - at_cutoff(y[at], b[at], 0.5)["f1"]]

        drawn = bootstrap(difference, [rows[i].key for i in chosen])[:, 0]
        low, high = np.quantile(drawn, [0.025, 0.975])
        us, them = at_cutoff(truth, ours, cutoff), at_cutoff(truth, theirs, 0.5)
        print(
            f"{name or 'all':16} {len(chosen):5} {truth.sum():6} {us['precision']:6.3f} {us['recall']:6.3f} "
            f"{us['f1']:6.3f} {them['f1']:7.3f}  {us['f1'] - them['f1']:+.3f} [{low:+.3f}, {high:+.3f}], "
            f"p = {(drawn <= 0).mean():.3f}",
            flush=True,
        )


def lomo(config: Config, stage: Path) -> None:
    settings, pulled, folder = config.refusal, stage.parent / "pull", stage.parent / "lomo"
    rows = labelled(pulled / "labels.parquet")
    corpus = _corpus(config, pulled)
    base = prepare(settings.base, None, Path(config.paths.cache))
    suspects = {json.loads(line)["id"] for line in (stage / "suspects.jsonl").read_text("utf-8").splitlines()}
    found = {r["id"]: r["log_odds"] for r in pq.read_table(stage / "heldout.parquet").to_pylist()}
    probabilities = np.zeros(len(rows))
    for name in sorted({row.generator for row in rows}):
        others = [row for row in rows if row.generator != name]
        mine = [i for i, row in enumerate(rows) if row.generator == name]
        if not (folder / name).exists():
            starts = refusal_train.starts(settings)
            fitted = [refusal_train.fit(base, others, corpus, one, suspects) for one in starts]
            refusal_train.kept(fitted, others, np.array([found[row.id] for row in others]))[0].save(folder / name)
        classifier = RefusalModel.load(folder / name)
        probabilities[mine] = classifier.predict([(rows[i].prompt, rows[i].answer) for i in mine])
        _sealed(classifier, config, f"(without {name})")
    compare(rows, probabilities, settings.cutoff)
    _wrong(rows, probabilities, settings.cutoff)


def sealed(config: Config, stage: Path) -> None:
    _sealed(RefusalModel.load(stage / "model"), config, "")


def _sealed(classifier: RefusalModel, config: Config, note: str) -> None:
    for file in SEALED:
        rows, _ = examples(str(file))
        probabilities = classifier.predict([(row.prompt, row.answer) for row in rows])
        truth = np.array([row.refuses for row in rows])
        figures = measure(truth, probabilities, config.refusal.cutoff)
        plain = at_cutoff(truth, np.array([float(strings.refuses(row.answer)) for row in rows]), 0.5)
        print(f"{file.name} {note}: {len(rows)} examples, " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        print(f"string matching: F1 {plain['f1']:.3f}")
        _wrong(rows, probabilities, config.refusal.cutoff)


def _wrong(rows: Sequence[Row], probabilities: np.ndarray, cutoff: float) -> None:
    for row, p in zip(rows, probabilities, strict=True):
        if (p > cutoff) != row.refuses:
            print(f"  {p:.2f} {'refuses ' if row.refuses else 'complies'} {row.prompt[:50]!r}: {row.answer[:110]!r}")


def _corpus(config: Config, pulled: Path) -> refusal_train.Corpus:
    extra = unlabelled(pulled / "records", config.refusal.unlabelled, config.refusal.seed)
    return refusal_train.Corpus(*examples(config.refusal.examples), extra)


def answers() -> list[tuple[str, str, str]]:
    """(id, prompt, answer) of every unlabelled answer of the data: file and row name them."""
    result = []
    for name in ("instruct_gpt4.jsonl", "instruct_mixed.jsonl", "chatdoctor.json", "roleplay.json"):
        text = (DATA / name).read_text("utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
        for number, row in enumerate(rows):
            prompt = "\n\n".join(row[k] for k in ("instruction", "input") if row.get(k))
            result.append((f"{name.split('.')[0]}:{number}", prompt, row.get("output") or row.get("response") or ""))
    return result


def flagged(config: Config, stage: Path) -> None:
    trained = {row.answer for row in _corpus(config, stage.parent / "pull").unlabelled}
    rows = [row for row in answers() if row[2].strip() and row[2].strip() not in trained]
    model = RefusalModel.load(stage / "model")
    probabilities = model.predict([(prompt, text) for _, prompt, text in rows])
    with open(stage.parent / "flagged.jsonl", "w", encoding="utf-8") as file:
        for (name, prompt, text), p in zip(rows, probabilities, strict=True):
            if p > config.refusal.cutoff:
                row = {"id": name, "probability": round(float(p), 3), "prompt": prompt, "answer": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(f"{name:22} {p:.2f}  {' '.join(prompt.split())[-60:]!r}: {' '.join(text.split())[:150]!r}")
    for source in sorted({name.split(":")[0] for name, _, _ in rows}):
        mine = [p for (name, _, _), p in zip(rows, probabilities, strict=True) if name.startswith(source)]
        over = sum(p > config.refusal.cutoff for p in mine)
        print(f"{source}: {over} of {len(mine)} flagged ({over / len(mine):.2%})")


def speed(config: Config, stage: Path) -> None:
    every = answers()
    pairs = [(p, a) for _, p, a in every[:: max(1, len(every) // SPEED_PAIRS)] if a.strip()][:SPEED_PAIRS]
    folder = stage / "model"
    ours, exact = RefusalModel.load(folder), RefusalModel.load(folder, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    classify = pipeline("text-classification", model=plain, tokenizer=tokenizer)
    inputs = [{"text": p, "text_pair": a} for p, a in pairs]
    options = {"truncation": "only_second", "max_length": 512}

    def pipe(batch: int) -> Callable[[], Any]:
        return lambda: classify(inputs, batch_size=batch, **options)

    contenders: dict[str, Callable[[], Any]] = {
        "pipeline, batch 1": pipe(1),
        "pipeline, batch 16": pipe(16),
        "ours, float32": lambda: exact.predict(pairs),
        "ours": lambda: ours.predict(pairs),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for model in (ours, exact):  # to warm up
        model.predict(pairs[:8])
    for _ in range(2):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    fastest = min(times["pipeline, batch 1"] + times["pipeline, batch 16"])
    print(f"{len(pairs)} pairs, {torch.get_num_threads()} threads, best of 2")
    for name, seconds in times.items():
        print(
            f"{name:20} {len(pairs) / min(seconds):8.1f} answers/s  {fastest / min(seconds):5.2f} x the faster pipeline"
        )
    gap = np.abs(ours.predict(pairs) - exact.predict(pairs))
    print(f"bfloat16 against float32: probability differs by {gap.mean():.4f} on average, {gap.max():.4f} at most")


if __name__ == "__main__":
    main()
