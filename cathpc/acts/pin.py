"""`pin`: write commit, licence, gating and size of every Hub repository that an experiment uses to the lock file.

A dataset whose card states another licence than the config is refused.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.config import Config, compose
from cathpc.data import lock
from cathpc.errors import TryAgainError, UserError
from cathpc.models.fetch import is_hub_id

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HELP = "resolve the Hub's commits, licences and sizes into the lock file"

_MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""What is fetched of a model; other weights (.bin, .pth, folders beside) are neither read nor counted."""


def options(parser: argparse.ArgumentParser) -> None:
    """--all pins anew what is pinned already."""
    parser.add_argument("--all", action="store_true", help="also move what is pinned already to its newest commit")


def main(arguments: argparse.Namespace) -> int:
    """Pin what an experiment lacks and print the table of what it uses."""
    config = compose(arguments.overrides)
    wanted = hub_ids(config) if arguments.all else unpinned(config)
    path = lock.lock_file()
    if not wanted:
        what = f"everything is pinned in {path}" if hub_ids(config) else "it uses nothing of the Hub"
        print(f"{config.name}: {what}")
        return 0
    datasets, models = ([i for k, i in wanted if k == kind] for kind in ("dataset", "model"))
    rows = pin(datasets, models, path, licences(config))
    print(table(rows))
    print(f"written to {path}")
    return 0


def hub_ids(config: Config) -> list[tuple[str, str]]:
    """(kind, Hub id) of every repository that an experiment uses; kind is 'dataset' or 'model'."""
    found = [("dataset", source.hub) for source in config.dataset.sources.values() if source.hub]
    models = (config.model.base, config.gpt.base, config.refusal.base, *config.cards.models)
    found += [("model", name) for name in models if name and is_hub_id(name)]
    return list(dict.fromkeys(found))


def unpinned(config: Config) -> list[tuple[str, str]]:
    """Those of `hub_ids` that the lock file does not hold."""
    entries = lock.read()
    return [(kind, hub_id) for kind, hub_id in hub_ids(config) if hub_id not in entries[f"{kind}s"]]


def licences(config: Config) -> dict[str, dict[str, str]]:
    """Hub id of a dataset -> key of the config -> the licence that it states there."""
    found: dict[str, dict[str, str]] = {}
    for name, source in config.dataset.sources.items():
        if source.hub:
            found.setdefault(source.hub, {})[f"dataset.sources.{name}.license"] = source.license
    return found


def pin(
    dataset_ids: list[str], model_ids: list[str], lock_path: Path, stated: Mapping[str, Mapping[str, str]] | None = None
) -> list[dict[str, Any]]:
    """Ask the Hub (HF_ENDPOINT) for the newest commit of each repository and write all to the lock file at once.

    Returns the rows written: {kind, id, commit, license, gated, size_gb}. What could be resolved is written even when
    others fail; then one `UserError` names each failure: a dataset whose card states another licence than `stated`
    (see `licences`) is one. A card without a licence contradicts none. Raises `TryAgainError` when the Hub is out of
    reach.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    entries = lock.read(lock_path)
    rows, faults = [], []
    for kind, hub_id in [("dataset", i) for i in dataset_ids] + [("model", i) for i in model_ids]:
        try:
            row = _resolve(api, kind, hub_id)
            if kind == "dataset":
                _same_licence(row, (stated or {}).get(hub_id, {}))
        except UserError as error:
            faults.append(str(error))
            continue
        entries[f"{kind}s"][hub_id] = {key: row[key] for key in ("commit", "license", "gated", "size_gb")}
        rows.append(row)
    if rows:
        lock.write(entries, lock_path)
    if faults:
        done = f"; the other {len(rows)} are pinned" if rows else ""
        total = len(rows) + len(faults)
        raise UserError(f"{len(faults)} of {total} could not be pinned{done}:\n  " + "\n  ".join(faults))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `pin` as aligned text."""
    cells = [("kind", "id", "commit", "licence", "gated", "size")]
    for row in rows:
        gated = "yes" if row["gated"] else "no"
        license = row["license"] or "not stated"
        cells.append((row["kind"], row["id"], row["commit"][:12], license, gated, _size(row["size_gb"])))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _size(gigabytes: float) -> str:
    return f"{gigabytes:,.1f} GB" if gigabytes >= 0.1 else f"{gigabytes * 1000:.1f} MB"


def _resolve(api: HfApi, kind: str, hub_id: str) -> dict[str, Any]:
    """What the Hub says of one repository. No message quotes the request: there may be a token in it."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    from cathpc.data import remote

    no_network: tuple[type[Exception], ...] = (*remote.errors(), OSError)
    page = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
    no_access = f"{kind} {hub_id} is gated: accept its terms on {page}, then set HF_TOKEN to a token of that account"
    try:
        ask = api.dataset_info if kind == "dataset" else api.model_info
        info: Any = ask(hub_id, files_metadata=True, timeout=30)
        if info.gated:
            if get_token() is None:
                raise UserError(no_access)
            api.auth_check(hub_id, repo_type=kind)
    except GatedRepoError:
        raise UserError(no_access) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{kind} {hub_id} is not on the Hub ({page}), or it is private and HF_TOKEN is not set. Check the id"
        ) from None
    except HFValidationError:
        raise UserError(f"{hub_id!r} is no id of a {kind} on the Hub: expected 'org/name'") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        if status == 401:
            raise UserError(f"{kind} {hub_id}: the Hub refused the token (401). Set HF_TOKEN to a valid one") from None
        raise TryAgainError(f"{kind} {hub_id}: the Hub at {api.endpoint} answered {status}. Try again later") from None
    except no_network as error:
        raise TryAgainError(
            f"the Hub at {api.endpoint} cannot be reached ({type(error).__name__}). "
            "Check the network, HF_ENDPOINT and the proxy, or run `pin` on a node that has a network"
        ) from None
    files = [(f.rfilename, f.size or 0) for f in info.siblings or []]
    if kind == "model":
        files = [(name, size) for name, size in files if "/" not in name and name.endswith(_MODEL_FILES)]
    return {
        "kind": kind,
        "id": hub_id,
        "commit": info.sha,
        "license": _license(info),
        "gated": bool(info.gated),
        "size_gb": round(sum(size for _, size in files) / 1e9, 3),
    }


def _same_licence(row: dict[str, Any], stated: Mapping[str, str]) -> None:
    """Raise `UserError` where the card of a dataset states another licence than the config; several may stand there,
    separated by commas."""
    on_card = _names(row["license"])
    for key, licence in stated.items():
        if on_card and _names(licence) != on_card:
            raise UserError(
                f"dataset {row['id']}: its card states the licence '{row['license']}', {key} is '{licence}'. "
                "Read the card, and state in the config what holds"
            )


def _names(licences: str) -> set[str]:
    return {name.strip().casefold() for name in licences.split(",") if name.strip()}


def _license(info: Any) -> str:
    """The licence that the card states; '' where it states none."""
    card = info.card_data.to_dict() if info.card_data else {}
    stated = card.get("license") or [t.removeprefix("license:") for t in info.tags or [] if t.startswith("license:")]
    stated = [stated] if isinstance(stated, str) else stated
    names = [card.get("license_name") or name if name == "other" else name for name in stated]
    return ", ".join(map(str, names))
