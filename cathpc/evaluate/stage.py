"""The stage `evaluate`: does the model obey its system prompt? Base and tuned side by side on the same probes.

In: `base/model` and `export/model` (Hugging Face folders with a template), the checkpoints of `train`, the reference
GPT and the refusal classifier. Out: `answers.jsonl` (every answer of both with its verdicts), `requests.jsonl` (answers
to requests that only look unsafe and to some that are, with their refusal scores), `showcase.jsonl` and
`fidelity.json`:

    base, tuned   rates over all probes (`cathpc.evaluate.rates`), `style` (thought, lengths), `perplexity`
    difference    share, low, high of the probes that pass wholly, tuned - base, paired; and of each rate
    families      family -> probes, base, tuned, difference
    taught, unseen   the same over the families outside and inside of `evaluate.unseen`; null where there are none
    refusal       kind of request ('benign', 'unsafe') -> share refused by base and tuned, difference
    milestones    step, probes and rates: of the base (step 0), of each checkpoint kept at an epoch's end, of the tuned
    models        model -> shares of probes that pass wholly, over `all` and by `families`

The rows of one model are on the disk as soon as it has answered, and are not asked for again after a kill. Greedy
decoding; time grows with probes x turns x `evaluate.max_new_tokens`, memory with the batch. The same config gives the
same files.
"""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError
from cathpc.evaluate import measures, probes, rates, showcase
from cathpc.evaluate.sessions import ask
from cathpc.models.weights import write_text
from cathpc.progress import counter

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.evaluate.config import EvaluateConfig
    from cathpc.evaluate.probes import Probe

Row = dict[str, Any]
PARTS = "parts"


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Run the stage; raises `UserError` for a bad file of probes, and for an unseen family that it does not have."""
    settings = config.evaluate
    every = probes.read(Path(settings.probes) if settings.probes else probes.SHIPPED)
    families = {p.family for p in every}
    if unknown := sorted(set(settings.unseen) - families):
        raise UserError(
            f"evaluate.unseen: the probes have no family {unknown[0]!r}; they have: {', '.join(sorted(families))}"
        )
    chosen = probes.choose(every, settings.max_probes, settings.seed)
    wanted = measures.requests(settings.max_requests)
    some = chosen[: settings.milestone_probes]  # of the probes that base and tuned are asked too
    steps = _milestones(inputs["train"]) if some else []
    others = [*wanted, *showcase.SCENES]  # asked together: a large model takes minutes to load
    asking = _Asking(out, settings, 2 * (_turns(chosen) + len(others)) + len(steps) * _turns(some))

    folders = {"base": inputs["base"] / "model", "tuned": inputs["export"] / "model"}
    rows_of = {name: asking.rows(name, folder, [*chosen, *others]) for name, folder in folders.items()}
    answers = {name: rows[: len(chosen)] for name, rows in rows_of.items()}
    refused = {name: rows[len(chosen) : len(chosen) + len(wanted)] for name, rows in rows_of.items()}
    shown = [row for rows in rows_of.values() for row in rows[len(chosen) + len(wanted) :]]
    asked = {p.id for p in some}
    of_some = {name: [row for row in rows if row["probe"] in asked] for name, rows in answers.items()}
    curve: list[tuple[int | None, list[Row]]] = [(0, of_some["base"])]
    for step in steps:
        name = f"step-{step}"
        with nullcontext(out) if asking.has(name) else _Exported(config, inputs, out, step) as folder:
            curve.append((step, asking.rows(name, folder, some)))
    curve.append((_last(inputs["export"]), of_some["tuned"]))

    result = fidelity(answers, settings)
    for name, rows in answers.items():
        result[name]["style"] = measures.style(rows, settings)
        result[name]["perplexity"] = measures.perplexity(rows, inputs["reference"] / "model", settings)
    if wanted:
        result["refusal"] = measures.refusals(refused, inputs["refusal"] / "model", settings)
    result["milestones"] = [
        {"step": step, "probes": len(rows), **rates.compared({"it": rows}, settings.resamples, settings.seed)["it"]}
        for step, rows in curve
        if rows
    ]
    _write_rows(out / "answers.jsonl", [row for rows in answers.values() for row in rows])
    _write_rows(out / "requests.jsonl", [row for rows in refused.values() for row in rows])
    showcase.write(out, shown)
    write_text(out / "fidelity.json", json.dumps(result, indent=1) + "\n")
    shutil.rmtree(out / PARTS, ignore_errors=True)
    base, tuned, change = (result[name]["isr"] for name in ("base", "tuned", "difference"))
    return {
        "models": result["models"],
        "difference": result["difference"],
        "unseen": result["unseen"],
        "refusal": result.get("refusal"),
        "probes": len(chosen),
        "turns": _turns(chosen),
        "line": (
            f"{len(chosen)} probes: base follows {base['share']:.0%} of the instructions, tuned {tuned['share']:.0%} "
            f"(difference {change['share']:+.0%}, 95% interval {change['low']:+.0%} to {change['high']:+.0%})"
        ),
    }


def fidelity(rows: dict[str, list[Row]], config: EvaluateConfig) -> dict[str, Any]:
    """What `fidelity.json` says of the probes; `rows` by model ('base', 'tuned'), of the same probes in one order."""

    def rated(chosen: set[str]) -> dict[str, Any]:
        return rates.compared(rows, config.resamples, config.seed, lambda row: row["family"] in chosen)

    every = {row["family"] for row in rows["base"]}
    families = {family: rated({family}) for family in sorted(every)}
    over_all = rated(every)
    models = {
        model: {
            "all": over_all[model]["sessions"],
            "families": {family: found[model]["sessions"] for family, found in families.items()},
            "cut_answers": sum(row["cut"] for row in answered),
        }
        for model, answered in rows.items()
    }
    unseen = set(config.unseen) & every
    return {
        "base": over_all["base"],
        "tuned": over_all["tuned"],
        "difference": {**over_all["difference"]["sessions"], **over_all["difference"]},
        "families": families,
        "taught": rated(every - unseen) if every - unseen else None,
        "unseen": rated(unseen) if unseen else None,
        "models": models,
    }


class _Asking:
    """Asks models and keeps their rows: what a model has answered is not asked again after a kill."""

    def __init__(self, out: Path, config: EvaluateConfig, total: int) -> None:
        self._out, self._config = out, config
        self._done, self._total = 0, total
        (out / PARTS).mkdir(exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether the rows of this name are there."""
        return self._path(name).exists()

    def rows(self, name: str, folder: Path, chosen: list[Probe]) -> list[Row]:
        """The rows of the model in `folder`, in the order of `chosen`."""
        path = self._path(name)
        if not self.has(name):
            progress = counter(self._out, self._done, self._total, "answers")
            _write_rows(path, [s.row(name) for s in ask(folder, chosen, self._config, progress)])
            gc.collect()  # the model leaves before the next one comes
        self._done += _turns(chosen)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]

    def _path(self, name: str) -> Path:
        return self._out / PARTS / f"{name}.jsonl"


class _Exported:
    """The model of a milestone as a Hugging Face folder, for as long as it is asked."""

    def __init__(self, config: Config, inputs: dict[str, Path], out: Path, step: int) -> None:
        self._arguments, self._folder = (config, inputs), out / ".milestone"
        self._step = step

    def __enter__(self) -> Path:
        from cathpc.train import export

        self._folder.mkdir(exist_ok=True)
        export.run(*self._arguments, self._folder, step=self._step)
        return self._folder / "model"

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)


def _milestones(train: Path) -> list[int]:
    """Steps of the checkpoints kept at the ends of epochs, rising, without the newest one, which is exported."""
    from cathpc.train import history

    found = history.committed(train / "checkpoints")
    return sorted(history.step_of(c) for c in found[1:] if history.manifest(c).get("milestone"))


def _last(export: Path) -> int | None:
    """The step of the exported checkpoint, as far as the stage that exported it says."""
    from cathpc.store import read_json
    from cathpc.train import history

    name = ((read_json(export / "manifest.json") or {}).get("summary") or {}).get("checkpoint")
    return history.step_of(Path(name)) if name else None


def _turns(chosen: list[Probe]) -> int:
    return sum(p.turns for p in chosen)


def _write_rows(path: Path, rows: list[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
