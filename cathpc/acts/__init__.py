"""The acts: what stands behind `python -m cathpc ACT`, one small module each.

A module of an act has `HELP` (one line), `options(parser)` for its own options, and `main(arguments) -> exit code`.
Options are ordinary ones ('--prompt Hello!'); all that is left over are Hydra overrides ('train.lr=3e-5').
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

from cathpc import __version__
from cathpc.errors import UserError

ACTS = {
    "run": "cathpc.acts.run",
    "plan": "cathpc.acts.plan",
    "status": "cathpc.acts.status",
    "logs": "cathpc.acts.logs",
    "cancel": "cathpc.acts.cancel",
    "retry": "cathpc.acts.retry",
    "fetch": "cathpc.acts.fetch",
    "pin": "cathpc.acts.pin",
    "chat": "cathpc.acts.chat",
    "serve": "cathpc.acts.serve",
    "cards": "cathpc.acts.cards",
    "score": "cathpc.acts.score",
    "export": "cathpc.acts.export",
    "select": "cathpc.acts.select",
    "diff": "cathpc.acts.diff",
    "explain": "cathpc.acts.explain",
    "compare": "cathpc.acts.compare",
    "doctor": "cathpc.acts.doctor",
    "drill": "cathpc.acts.drill",
    "gc": "cathpc.acts.gc",
}


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are `UserError`s in the house style."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See: {self.prog} --help")


def pick(argv: list[str]) -> tuple[Any, argparse.Namespace]:
    """The act that `argv` names ('run' where it names none) and its parsed arguments."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0)
    if argv[0] == "--version":
        print(f"cathpc {__version__}")
        sys.exit(0)
    name, rest = "run", argv
    if not argv[0].startswith(("-", "+", "~")) and "=" not in argv[0]:
        name, rest = argv[0], argv[1:]
        if name not in ACTS:
            near = difflib.get_close_matches(name, ACTS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"there is no act {name!r}.{hint} Acts: {', '.join(ACTS)}")
    act: Any = importlib.import_module(ACTS[name])
    parser = _Parser(prog=f"python -m cathpc {name}", description=act.HELP, allow_abbrev=False)
    act.options(parser)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="+experiment=NAME, group=OPTION, key=value")
    arguments = parser.parse_intermixed_args(rest)
    for text in arguments.overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"{text!r} is neither an option of {name} nor an override of the form key=value")
    return act, arguments


def program() -> str:
    """How the user starts cathpc from where he stands: 'python -m cathpc', with the interpreter's path where needed."""
    here, found = Path(sys.executable), shutil.which("python")
    if found and Path(found).parent == here.parent:
        return "python -m cathpc"
    return f"{here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here} -m cathpc"


def overview() -> str:
    """The text of `--help`."""
    from cathpc.config import choices

    width = max(map(len, ACTS))
    lines = [
        "cathpc: from public instruction data to a chat model that obeys its system prompt.",
        "",
        "usage: python -m cathpc [ACT] [--options] [overrides]",
        "",
        "acts (run, where none is named; `python -m cathpc ACT --help` shows its options):",
        *(f"  {name:<{width}}  {importlib.import_module(module).HELP}" for name, module in ACTS.items()),
        "",
        "groups (take one with group=option; change a value with key=value):",
    ]
    groups = ("dataset", "model", "gpt", "refusal", "score", "select", "cards", "train", "cluster")
    for group in ("+experiment", *groups, "+sweep"):
        lines.append(f"  {group + '=':<12} {', '.join(choices(group.lstrip('+')))}")
    lines += [
        "",
        "examples:",
        "  python -m cathpc +experiment=demo                      the whole pipeline on this machine, in minutes",
        "  python -m cathpc plan +experiment=cat70b               what would run, and what is missing for it",
        "  python -m cathpc +experiment=demo train.lr=3e-5        redo the training with another learning rate",
        "  python -m cathpc -m +experiment=smoke train.lr=1e-5,3e-5    a sweep; shared stages run once",
        "  python -m cathpc +experiment=cat70b cluster=NAME       submit the whole graph to a Slurm cluster and return",
        "  python -m cathpc chat +experiment=demo --prompt 'Hello!'    talk to the trained model",
        "  python -m cathpc score +experiment=demo --input mine.jsonl --output out.jsonl    score a file of your own",
        "",
        "exit codes: 0 done, 2 the command or its input is wrong, 1 a fault of cathpc or of the machine.",
    ]
    return "\n".join(lines)
