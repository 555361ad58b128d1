"""Act `evaluate`: the probes, and prompts of one's own, asked of a run's models or of any model folder.

In: `+experiment=NAME`, whose base and tuned model are asked side by side, or `--model PATH`, a Hugging Face folder with
safetensors and a chat template. Out: a table of rates by family, and with `--json FILE` every answer with its verdicts.
In the foreground, on the GPU where there is one; time grows with the probes' turns x `evaluate.max_new_tokens`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError

if TYPE_CHECKING:
    from cathpc.evaluate.config import EvaluateConfig
    from cathpc.evaluate.probes import Probe

HELP = "ask a model the probes, and one's own: does it obey its system prompt?"


def options(parser: argparse.ArgumentParser) -> None:
    """Which model, which probes, and where the answers go."""
    parser.add_argument("--model", type=Path, metavar="PATH", help="any Hugging Face folder, instead of a run's models")
    parser.add_argument("--probes", type=Path, metavar="FILE", help="JSONL of probes of one's own, asked too")
    parser.add_argument("--only", action="store_true", help="ask those of --probes alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rates and every answer with its verdicts")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print; bad probes, and a folder that is none, are refused before a model is loaded."""
    if arguments.only and not arguments.probes:
        raise UserError("--only asks the probes of --probes FILE alone: name that file")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"--json: there is no folder {arguments.json.absolute().parent}; make it first")
    settings, folders = _asked(arguments)
    chosen = _probes(arguments, settings)

    from cathpc.evaluate import rates
    from cathpc.evaluate.sessions import ask

    answers: dict[str, list[dict[str, Any]]] = {}
    for name, folder in folders.items():
        total = sum(p.turns for p in chosen)
        answers[name] = [s.row(name) for s in ask(folder, chosen, settings, _progress(name, total))]

    def rated(family: str = "") -> dict[str, Any]:
        return rates.compared(
            answers, settings.resamples, settings.seed, lambda row: not family or row["family"] == family
        )

    found = {"all": rated(), "families": {f: rated(f) for f in sorted({p.family for p in chosen})}}
    print(table(found, list(folders)))
    if arguments.json:
        from cathpc.models.weights import write_json

        write_json(
            arguments.json,
            {
                "models": {name: str(folder) for name, folder in folders.items()},
                "rates": found,
                "answers": [row for rows in answers.values() for row in rows],
            },
        )
        print(f"answers and verdicts: {arguments.json}")
    return 0


def _asked(arguments: argparse.Namespace) -> tuple[EvaluateConfig, dict[str, Path]]:
    """Settings, and the folders of the models by name."""
    from cathpc.config import compose
    from cathpc.store import places

    config = compose(arguments.overrides, model=arguments.model)
    if arguments.model:
        return config.evaluate, {"model": arguments.model}
    found = places(config)
    missing = [name for name in ("base", "export") if found[name].manifest() is None]
    if missing:
        raise UserError(
            f"{config.name} has no trained model yet ({', '.join(missing)}). Train it: python -m cathpc "
            f"{shlex.join(arguments.overrides)}; or name a Hugging Face folder with --model"
        )
    return config.evaluate, {"base": found["base"].folder / "model", "tuned": found["export"].folder / "model"}


def _probes(arguments: argparse.Namespace, settings: EvaluateConfig) -> list[Probe]:
    """Those of the config, as many as it says, and all of one's own."""
    from cathpc.evaluate import probes

    own = probes.read(arguments.probes) if arguments.probes else []
    if arguments.only:
        return own
    every = probes.read(Path(settings.probes) if settings.probes else probes.SHIPPED)
    if taken := sorted({p.id for p in own} & {p.id for p in every}):
        raise UserError(
            f"{arguments.probes}: the id {taken[0]!r} is that of a probe that is asked anyway; take another"
        )
    return probes.choose(every, settings.max_probes, settings.seed) + own


def _progress(name: str, total: int) -> Any:
    """Answers so far, on one line of a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda done: None
    end = {True: "\n", False: ""}
    return lambda done: print(f"\r{name}: {done:,} of {total:,} answers", end=end[done >= total], file=sys.stderr)


def table(found: dict[str, Any], names: list[str]) -> str:
    """The rates by family, models side by side; with two of them the difference of instructions satisfied."""
    head = ["family", "probes"]
    for name in names:
        head += [f"{name} CSR", "ISR", "SSR"]
    if len(names) > 1:
        head.append("ISR, tuned - base, 95% interval")
    rows = [head]
    for family, rated in {"all": found["all"], **found["families"]}.items():
        cells = [family, str(rated["probes"])]
        for name in names:
            cells += [f"{rated[name][rate]['share']:.0%}" for rate in ("csr", "isr", "ssr")]
        if len(names) > 1:
            change = rated["difference"]["isr"]
            cells.append(f"{change['share']:+.0%}, {change['low']:+.0%} to {change['high']:+.0%}")
        rows.append(cells)
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" if at == 0 else f"{cell:>{w}}" for at, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
