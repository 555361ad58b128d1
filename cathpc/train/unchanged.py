"""Whether what a training stands on is still what was recorded when it was made.

In: the folders of the stages `pack` and `base`. Out: nothing, or a ChangedError on all ranks that names the file. Each
stage's manifest holds the hash of every file that the stage wrote; a training that went on over altered bytes would
carry the fingerprint of others. Costs one read of the files, divided over the ranks (SHA-256: about 1 GB/s a core).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cathpc import store
from cathpc.errors import ChangedError, UserError
from cathpc.models import weights
from cathpc.train import ranks

PACK = "pack.json"


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a stage's folder, by the stage's manifest; of packed rows without one, by `pack.json`.

    Raises ChangedError where the manifest itself was edited.
    """
    manifest = store.read_json(folder / store.MANIFEST)
    if isinstance(manifest, dict) and "outputs" in manifest:
        outputs: dict[str, str] = manifest["outputs"]
        if store.digest(outputs) != manifest["digest"]:
            raise ChangedError(_message(folder / store.MANIFEST))
        return outputs
    pack = store.read_json(folder / PACK)
    return dict(pack["files"]) if isinstance(pack, dict) else {}


def changed(folder: Path, names: Sequence[str], hashes: dict[str, str], *, whole: bool) -> str:
    """The first of the files `names` in `folder` that is not as `hashes` says; '' where all are.

    Without `whole`, weights are looked at by their headers alone, which state their size.
    """
    for name in names:
        path = folder / name
        try:
            if path.suffix == ".safetensors" and not whole:
                weights.header(path)
            elif not hashes[name].startswith("->") and store.file_hash(path) != hashes[name]:
                return name
        except (OSError, UserError):
            return name
    return ""


def verify_pack(folder: Path, share: int = 0, shares: int = 1) -> str:
    """The file of packed rows that is not as it was recorded, '' where there is none; every `shares`-th is read."""
    hashes = recorded(folder)
    return changed(folder, _shared(folder, hashes)[share::shares], hashes, whole=True)


def require(folders: Sequence[Path], *, whole: bool) -> None:
    """Raise ChangedError on all ranks where a file in the folders of finished stages is not the one that was recorded.

    Called by all ranks; each reads its share. `whole` reads the weights of `base` too: a training that begins learns
    from them, and adapters go on standing on them; one that goes on from a checkpoint has all weights from there.
    """
    for folder in folders:
        hashes = recorded(folder)
        names = _shared(folder, hashes)
        found = changed(folder, names[ranks.rank() :: ranks.world_size()], hashes, whole=whole)
        everyone = ranks.gather([float(names.index(found)) if found else -1.0])
        wrong = [int(row[0]) for row in everyone if row[0] >= 0]
        if wrong:
            raise ChangedError(_message(folder / names[min(wrong)]))


def _shared(folder: Path, hashes: dict[str, str]) -> list[str]:
    """The recorded files, large ones first, so that every rank's share is about as large."""

    def size(name: str) -> int:
        path = folder / name
        return path.stat().st_size if path.is_file() else 0

    return sorted(hashes, key=lambda name: (-size(name), name))


def _message(path: Path) -> str:
    return (
        f"{path} is not the file that was recorded when it was made: a training does not go on over other data, "
        f"another tokenizer or other settings. Bring the file back, or move {path.parent} away and run the same "
        f"command: it is made anew."
    )
