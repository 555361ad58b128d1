"""The cluster and the trainings of tests/slurm, for faults that take minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.slurm.conftest import calm, cluster, finished, homes, passage, site, training  # noqa: F401
from tests.slurm.site import Cluster


@pytest.fixture
def settings(cluster: Cluster) -> Iterator[Callable[..., None]]:  # noqa: F811
    """Changes slurm.conf for the length of a test."""
    changed: dict[str, str] = {}
    before = dict(line.split("=", 1) for line in (cluster.folder / "slurm.conf").read_text().splitlines())

    def change(*, grace_s: int = 30, **values: str) -> None:
        changed.update(values)
        cluster.must("set", *(f"{k}={v}" for k, v in values.items()), "--grace-time", str(grace_s))

    yield change
    cluster.must("set", *(f"{k}={before.get(k, '')}" for k in changed), "--grace-time", "30")


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Cluster]:  # noqa: F811
    """A cluster whose nodes may be lost; they are all there again afterwards."""
    yield cluster
    cluster.must("up")
