"""The stage `benchmarks`: tasks of lm-eval (Gao et al., the Language Model Evaluation Harness), base and tuned.

In: `base/model` and `export/model`, `benchmarks.tasks`. Out: `benchmarks.json`: model -> task -> metric -> value, and
`skipped`: task -> why. A tag, or the file of a task, appears under the names of its tasks; a group as itself alone.
lm-eval runs as a process of its own, in the environment of `benchmarks.python` where one is named, so that its pins and
ours do not meet. A task whose data this node does not have is skipped and says so; what lm-eval cannot do for another
reason ends the stage with its last line. Time grows with tasks x questions; one model at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc import progress
from cathpc.errors import DataError
from cathpc.store import write_json

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.evaluate.config import BenchmarksConfig

FETCH = "import sys; from lm_eval.tasks import get_task_dict; get_task_dict(sys.argv[1:])"
"""Reads the data of tasks, from the cache or from the Hub."""
ABSENT = (
    "OfflineModeIsEnabled", "LocalEntryNotFound", "ConnectionError", "ConnectError", "Couldn't reach", "offline mode",
    "MaxRetryError", "Name or service not known", "Temporary failure in name resolution", "Cannot find the requested",
)  # fmt: skip
"""What the Hub's libraries say where they have neither data nor network."""


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Run the stage; raises `DataError` where lm-eval fails for another reason than missing data."""
    settings = config.benchmarks
    python = settings.python or sys.executable
    skipped, tasks = {}, []
    for task in settings.tasks:
        why = missing(python, task)
        if why:
            skipped[task] = f"{why}; then move {out} away and run the same command"
        else:
            tasks.append(task)
    found: dict[str, Any] = {}
    folders = {"base": inputs["base"] / "model", "tuned": inputs["export"] / "model"} if tasks else {}
    for number, (name, folder) in enumerate(folders.items()):
        progress.report(out, number, len(folders), "models")
        found[name] = measured(python, folder, tasks, settings, out / f".{name}")
    write_json(out / "benchmarks.json", {**found, "skipped": skipped})
    lines = [f"{task} {' -> '.join(_main(found[name][task]) for name in found)}" for task in found.get("base", {})]
    lines += [f"{task} skipped: {why}" for task, why in skipped.items()]
    return {**found, "skipped": skipped, "line": "; ".join(lines)}


def missing(python: str, task: str) -> str:
    """Why `task` cannot be run on this node; '' where it can."""
    try:
        tried = _call(python, "-c", FETCH, task)
    except OSError as error:
        return f"benchmarks.python={python} cannot be run ({error.strerror})"
    if tried.returncode == 0:
        return ""
    last = _last(tried.stderr)
    if "No module named 'lm_eval'" in tried.stderr:
        return (
            f"lm-eval is not installed for {python}: make an environment for it (pip install 'lm-eval[hf]<0.5') and "
            "name its Python in benchmarks.python"
        )
    if any(text in tried.stderr for text in ABSENT):
        return (
            f"its data is not on this node and the Hub cannot be reached ({last}); on a node with network: "
            f'{python} -c "{FETCH}" {task}'
        )
    raise DataError(f"benchmarks.tasks: lm-eval does not take {task!r}: {last}")


def measured(
    python: str, folder: Path, tasks: list[str], settings: BenchmarksConfig, scratch: Path
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value of the model in `folder`."""
    shutil.rmtree(scratch, ignore_errors=True)
    arguments = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder},dtype=bfloat16"]
    arguments += ["--tasks", ",".join(tasks), "--batch_size", "auto", "--output_path", str(scratch)]
    if settings.limit is not None:
        arguments += ["--limit", str(settings.limit)]
    done = _call(python, *arguments, "--apply_chat_template")
    files = sorted(scratch.rglob("results*.json"))
    if done.returncode or not files:
        raise DataError(f"lm-eval ended with code {done.returncode} on {folder}: {_last(done.stderr)}")
    written = json.loads(files[-1].read_text(encoding="utf-8"))
    shutil.rmtree(scratch)
    parts = {part for group in written.get("group_subtasks", {}).values() for part in group}
    return {
        task: {key.removesuffix(",none"): v for key, v in metrics.items() if isinstance(v, (int, float))}
        for task, metrics in written["results"].items()
        if task not in parts or task in tasks
    }


def _call(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_TRUST_REMOTE_CODE": "0"}
    return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, check=False)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else "it said nothing"


def _main(metrics: dict[str, float]) -> str:
    """The metric that a task is known for."""
    for name in ("acc_norm", "acc", "exact_match"):
        if name in metrics:
            return f"{metrics[name]:.1%}"
    return "no accuracy"
