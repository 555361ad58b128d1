"""Stage `base`: the model to fine-tune, checked, with its control tokens.

In: the sections `model` and `paths`. Out: `model/`, a Hugging Face folder with `template.json`, made of hard links to
the cached one where the disk allows. Time: the first preparation (download, conversion); linking costs nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.models import shape, weights
from cathpc.models.source import identity, prepare
from cathpc.models.template import Template

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
    return {
        "line": f"{config.model.base}: {count:,} parameters, template {template.facts['name']} {template.hash[:8]}",
        "model": config.model.base,
        "identity": identity(config.model.base, cache=cache / "model-digests.json"),
        "parameters": count,
        "bytes": sum(f.stat().st_size for f in weights.files(model)),
        "dtypes": sorted({t.dtype for t in stored.values()}),
        "template": {k: template.facts[k] for k in ("name", "bos", "start", "stop", "pad", "hash")},
        "rows": rows,
        "initialised": [t["token"] for t in rows[0]["tokens"] if t["initialised"]],
    }
