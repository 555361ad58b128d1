"""A key at its default is in no fingerprint, so that a key which a later version brings along redoes nothing.

So a default may change only together with the versions of the stages that read it. `tests/golden/defaults.json` holds
those of today: `CATHPC_WRITE_GOLDEN=1 pytest tests/unit/test_defaults.py` writes it anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from cathpc.keys import keys
from cathpc.pipeline import BY_NAME, Stage
from cathpc.schema import identity, speed

GOLDEN = Path(__file__).parents[1] / "golden" / "defaults.json"


def today(stage: Stage) -> dict[str, Any]:
    found = {key.path: key.default for section in stage.config for key in keys(section) if key.redoes}
    return {"version": stage.version, "defaults": found}


@pytest.mark.parametrize("name", BY_NAME)
def test_no_default_changes_without_the_version_of_its_stages(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    then, now = golden.get(name), today(BY_NAME[name])
    if then is not None and then["version"] == now["version"]:
        was, is_ = then["defaults"], now["defaults"]
        changed = {key: (was[key], is_[key]) for key in was.keys() & is_.keys() if was[key] != is_[key]}
        assert not changed, f"raise the version of stage {name} in cathpc/pipeline.py: {changed}"
    if os.environ.get("CATHPC_WRITE_GOLDEN"):  # what raised no version is refused before
        GOLDEN.write_text(json.dumps({**golden, name: now}, indent=1) + "\n", encoding="utf-8")
    else:
        assert then == now, "write tests/golden/defaults.json anew"


@dataclass
class Inner:
    size: int = 3
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Outer:
    path: str
    rate: float = 0.5
    threads: int = speed(2)
    inner: Inner = field(default_factory=Inner)
    several: dict[str, Inner] = field(default_factory=dict)


def test_what_stands_at_its_default_is_left_out() -> None:
    assert identity(Outer("p"), defaults=False) == {"path": "p"}  # without a default: always there
    other = Outer("p", rate=0.25, threads=9, inner=Inner(names=["b"]), several={"x": Inner()})
    assert identity(other, defaults=False) == {
        "path": "p",
        "rate": 0.25,
        "inner": {"names": ["b"]},
        "several": {"x": {}},
    }
    assert identity(Outer("p")) == {"path": "p", "rate": 0.5, "inner": {"size": 3, "names": ["a"]}, "several": {}}


def test_a_key_that_a_later_version_brings_along_changes_nothing() -> None:
    later = make_dataclass("Later", [("path", str), ("rate", float, 0.5), ("warmth", float, 0.0)])
    earlier = make_dataclass("Earlier", [("path", str), ("rate", float, 0.5)])
    assert identity(later("p", 0.25), defaults=False) == identity(earlier("p", 0.25), defaults=False)
    assert identity(later("p", 0.25, 1.0), defaults=False) != identity(earlier("p", 0.25), defaults=False)
