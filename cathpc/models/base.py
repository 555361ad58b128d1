"""Stage `base`: the model to fine-tune, checked, with its control tokens.

In: the sections `model` and `paths`, and the lock file. Out: `model/`, a Hugging Face folder with `template.json`, made
of hard links to the cached one where the disk allows; the summary says of each control token's rows what they were and
what they are, and which licence the model is under.
Time: the first preparation (download, conversion); linking costs nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.data import lock
from cathpc.models import shape, surgery, weights
from cathpc.models.source import identity, prepare
from cathpc.models.template import MARKERS, Template

if TYPE_CHECKING:
    from cathpc.config import Config


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Prepare `model.base` and put it into `out/model`; returns parameters, template hash and the norms of token
    rows."""
    cache = Path(config.paths.cache)
    prepared = prepare(config.model.base, config.model.template, cache)
    shape.check(config.model, prepared / "config.json")
    model = out / "model"
    if model.exists():
        shutil.rmtree(model)  # of an attempt that was killed
    model.mkdir()
    for file in sorted(prepared.iterdir()):
        weights.place(file, model / file.name, link=True)
    template = Template.load(model)
    stored = weights.tensors(model)
    count = weights.parameters(model)
    rows = template.facts["rows"]
    new = list(dict.fromkeys(t["token"] for table in rows for t in table["tokens"] if t["initialised"]))
    line = f"{config.model.base}: {count:,} parameters, template {template.facts['name']} {template.hash[:8]}"
    return {
        "line": line + (f", new rows for {' '.join(new)}" if new else ""),
        "model": config.model.base,
        "license": lock.read()["models"].get(config.model.base, {}).get("license"),
        "identity": identity(config.model.base, cache=cache / "model-digests.json"),
        "parameters": count,
        "bytes": sum(f.stat().st_size for f in weights.files(model)),
        "dtypes": sorted({t.dtype for t in stored.values()}),
        "template": {k: template.facts[k] for k in ("name", *MARKERS, "others", "opening", "hash")},
        "rows": rows,
        "norms": surgery.words(rows),
        "initialised": new,
    }
