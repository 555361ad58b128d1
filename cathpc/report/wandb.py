"""W&B: a finished run is replayed from its own files; nothing ever depends on W&B.

In go the training's steps as `metrics.jsonl` holds them (superseded ones already left out), figures as PNG files and
tables as rows; out comes one W&B run, sent to the server or, without a key or a network, written below the stage's
folder, from where `wandb sync` sends it later. The run's id is the caller's, so that what is sent again lands in the
same run. Whatever goes wrong ends in the `line` of the result, never in an exception.

The training itself does not talk to W&B: offline runs cannot be resumed and a server drops steps that it has seen, so a
replay from the files is the one way in which every step arrives exactly once.
"""

from __future__ import annotations

import contextlib
import io
import netrc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cathpc.report.config import TrackerConfig, WandbMode

if TYPE_CHECKING:
    import wandb

Table = tuple[list[str], list[list[Any]]]
"""Column names and rows."""

SERVER = "https://api.wandb.ai"
AXIS = "global_step"


def replay(
    tracker: TrackerConfig,
    out: Path,
    *,
    name: str,
    run_id: str,
    steps: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    figures: Mapping[str, tuple[Path, str]],
    tables: Mapping[str, Table],
    timeout_s: float = 30.0,
) -> dict[str, Any]:
    """Log a run to W&B and say how that went: {"mode", "steps", "folder", "url", "line"}.

    `steps` are rows with the key `global_step`, rising, one a step; `figures` maps a name to a PNG file and its
    caption. Below `out/wandb` lies what W&B wrote; what an earlier attempt left there is removed first. `timeout_s`
    bounds the wait for the server at the start and, twice as long, at the end.
    """
    folder = out / "wandb"
    shutil.rmtree(folder, ignore_errors=True)
    mode, reason = _mode(tracker)
    result: dict[str, Any] = {"mode": mode, "steps": 0, "folder": None, "url": None}
    if mode == "disabled":
        return result | {"line": "W&B is switched off (tracker.mode=disabled)"}
    failures = []
    for attempt in (mode, "offline") if mode == "online" else (mode,):
        try:
            with _quiet(folder / "data"):
                sent = _log(tracker, out, attempt, name, run_id, steps, config, summary, figures, tables, timeout_s)
        except Exception as error:  # third-party code over a network: any failure may come, none may end the stage
            shutil.rmtree(folder, ignore_errors=True)
            failures.append(f"{attempt}: {type(error).__name__}: {_first_line(error)}")
            continue
        result |= {"mode": attempt, **sent}
        break
    else:
        return result | {"mode": "failed", "line": f"W&B failed, nothing was logged there ({'; '.join(failures)})"}
    if result["mode"] == "online":
        return result | {"line": f"W&B: {result['url']}"}
    why = f"no answer from the server ({failures[0]})" if failures else reason
    return result | {"line": f"W&B offline ({why}); to send it: wandb sync {out / result['folder']}"}


def _mode(tracker: TrackerConfig) -> tuple[str, str]:
    """'online', 'offline' or 'disabled', and for offline the reason. A WANDB_MODE of the environment decides `auto`."""
    wanted = tracker.mode
    if wanted is WandbMode.auto:
        try:
            wanted = WandbMode(os.environ.get("WANDB_MODE", "auto"))
        except ValueError:
            wanted = WandbMode.auto
    if wanted is WandbMode.disabled:
        return "disabled", ""
    if wanted is WandbMode.offline:
        return "offline", "as configured"
    return ("online", "") if _has_key() else ("offline", "no API key")


def _has_key() -> bool:
    """Whether WANDB_API_KEY or the netrc file holds a key; W&B would else ask for one at the terminal."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", SERVER)).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _log(
    tracker: TrackerConfig,
    out: Path,
    mode: str,
    name: str,
    run_id: str,
    steps: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    figures: Mapping[str, tuple[Path, str]],
    tables: Mapping[str, Table],
    timeout_s: float,
) -> dict[str, Any]:
    import wandb

    online = mode == "online"
    try:
        run = wandb.init(
            project=tracker.project,
            entity=tracker.entity or None,
            mode="online" if online else "offline",
            dir=out,
            id=run_id,
            name=name,
            group=name,
            job_type="report",
            resume="allow" if online else None,
            config=dict(config),
            settings=_settings(timeout_s),
        )
        # What the server has must not be logged again.
        seen = dict(run.summary).get(AXIS, -1) if run.resumed else -1
        run.define_metric(AXIS, hidden=True)
        for prefix in ("train", "eval"):
            run.define_metric(f"{prefix}/*", step_metric=AXIS)
        fresh = [row for row in steps if row[AXIS] > seen]
        for row in fresh:
            run.log(dict(row))
        media: dict[str, Any] = {
            f"figures/{key}": wandb.Image(str(path), caption=caption) for key, (path, caption) in figures.items()
        }
        for key, (columns, rows) in tables.items():
            media[f"tables/{key}"] = wandb.Table(columns=[*columns], data=[*rows], allow_mixed_types=True)
        if media:
            run.log(media)
        run.summary.update(dict(summary))
        url, place = run.url, Path(run.dir).parent
        run.finish()
    finally:
        # Also after a failed start: W&B's service would hold the run's id and refuse the offline attempt.
        with contextlib.suppress(Exception):
            wandb.teardown(exit_code=1 if sys.exc_info()[0] else 0)
    return {"steps": len(fresh), "url": url if online else None, "folder": str(place.relative_to(out.absolute()))}


def _settings(timeout_s: float) -> wandb.Settings:
    """Quiet, bounded in time, and nothing of the machine, the account or the code in the run."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        host="",
        symlink=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=timeout_s,
        finish_timeout=2 * timeout_s,
        finish_timeout_raises=True,
    )


@contextlib.contextmanager
def _quiet(staging: Path) -> Iterator[None]:
    """No word on the console, and nothing in the home folder, which may be read-only.

    W&B's cache goes away afterwards; `staging` stays, since an offline run points to the tables that lie there.
    """
    kept = {key: os.environ.get(key) for key in ("WANDB_SILENT", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cathpc-wandb-", ignore_cleanup_errors=True) as scratch:
        os.environ.update(WANDB_SILENT="true", WANDB_CACHE_DIR=scratch, WANDB_DATA_DIR=str(staging.absolute()))
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            for key, value in kept.items():
                os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
