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
    "cards": "cathpc.acts.cards",
    "serve": "cathpc.acts.serve",
    "score": "cathpc.acts.score",
    "evaluate": "cathpc.acts.evaluate",
    "export": "cathpc.acts.export",
    "select": "cathpc.acts.select",
    "diff": "cathpc.acts.diff",
    "explain": "cathpc.acts.explain",
    "report": "cathpc.acts.report",
    "compare": "cathpc.acts.compare",
    "sync": "cathpc.acts.sync",
    "doctor": "cathpc.acts.doctor",
    "drill": "cathpc.acts.drill",
    "gc": "cathpc.acts.gc",
}

GROUPS = {
    "run": ("run", "plan", "fetch", "pin"),
    "watch": ("status", "logs", "cancel", "retry"),
    "data": ("score", "select", "diff", "explain", "cards"),
    "model": ("export", "chat", "serve", "evaluate"),
    "results": ("report", "compare", "sync"),
    "site": ("doctor", "drill", "gc"),
}
"""How `--help` sorts the acts; one that stands in no group comes last."""

EXAMPLES = {
    "+experiment=demo": "the whole pipeline on this machine, in minutes",
    "plan +experiment=cat70b": "what would run, what it needs and what is missing",
    "+experiment=cat70b cluster=NAME": "submit the whole graph to a Slurm cluster and return",
    "status +experiment=cat70b cluster=NAME --watch": "stages, jobs and why they wait, steps, time left",
    "-m +experiment=smoke train.lr=1e-5,3e-5": "a sweep; stages that are equal run once",
}


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are `UserError`s in the house style."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See: {self.prog} --help")


def pick(argv: list[str]) -> tuple[Any, argparse.Namespace]:
    """The act that `argv` names ('run' where it names none) and its parsed arguments."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(), flush=True)
        sys.exit(0)
    if argv[0] == "--version":
        print(f"cathpc {__version__}", flush=True)
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
    grouped = {name: [act for act in members if act in ACTS] for name, members in GROUPS.items()}
    if others := [act for act in ACTS if not any(act in members for members in grouped.values())]:
        grouped["others"] = others
    lines = [
        "cathpc: from public instruction data to a chat model that obeys its system prompt.",
        "",
        "usage: python -m cathpc [ACT] [--options] [overrides]        (or: cathpc ...)",
        "",
        "acts; run, where none is named (`python -m cathpc ACT --help` shows an act's options):",
    ]
    for group, members in grouped.items():
        lines.append(f"  {group}")
        lines += [f"    {act:<{width}}  {importlib.import_module(ACTS[act]).HELP}" for act in members]
    lines += ["", "groups of the configuration (take one with group=option; change a value with key=value):"]
    groups = ("dataset", "model", "gpt", "refusal", "score", "select", "cards", "train", "cluster", "tracker")
    for group in ("+experiment", *groups, "+sweep"):
        lines.append(f"  {group + '=':<12} {', '.join(choices(group.lstrip('+')))}")
    lines += ["", "examples:", *(f"  python -m cathpc {words:<46}  {what}" for words, what in EXAMPLES.items())]
    lines += [
        "",
        "exit codes: 0 done, 2 the command or its input is wrong, 75 try again, 1 a fault of cathpc or the machine.",
    ]
    return "\n".join(lines)
