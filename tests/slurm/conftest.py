"""The cluster that all tests of this folder share, and a finished smoke run on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.site import DEVCLUSTER, ROOT, USER, Cluster, Site
from tests.slurm.training import calm, training  # noqa: F401  # fixtures


def _missing() -> str:
    """Why no Slurm can be started here; '' where it can."""
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    lacking = [c for c in ("slurmctld", "slurmd", "slurmdbd", "munged", "sbatch", "mariadbd") if not _which(c)]
    return f"Debian's packages for {', '.join(lacking)} are not installed" if lacking else ""


def _which(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real Slurm, up; in CI its absence is a failure, elsewhere a skip that says so."""
    missing = _missing()
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI has to run the tests against a real Slurm: {missing}")
        pytest.skip(f"no Slurm here: {missing}")
    folder = Path(tempfile.mkdtemp(prefix="cathpc-slurm-"))
    folder.rmdir()
    cluster = Cluster(folder)
    try:
        cluster.must("up")
        yield cluster
    finally:
        cluster.act("down", "--purge")


@pytest.fixture(scope="session")
def passage() -> Iterator[None]:
    """Lets the ordinary user pass through the folders above the checkout, which may be for root alone."""
    changed = []
    for folder in ROOT.parents:
        mode = folder.stat().st_mode & 0o7777
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
            changed.append((folder, mode))
    yield
    for folder, mode in changed:
        folder.chmod(mode)


@pytest.fixture(scope="session")
def homes(cluster: Cluster, passage: None) -> Iterator[Callable[[], Site]]:
    """Makes private homes of the ordinary user."""
    made: list[Path] = []

    def make() -> Site:
        folder = Path(tempfile.mkdtemp(prefix="cathpc-home-"))
        made.append(folder)
        shutil.chown(folder, USER, USER)
        readable = subprocess.run(
            [
                sys.executable,
                str(DEVCLUSTER),
                "shell",
                "--folder",
                str(cluster.folder),
                "--",
                "test",
                "-r",
                ROOT / "cathpc",
            ]
        )
        assert readable.returncode == 0, f"{USER} cannot read {ROOT}: clone where an ordinary user may read"
        return Site(cluster, folder)

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(homes: Callable[[], Site]) -> Iterator[Site]:
    """An empty home; what it left in the queue is cancelled afterwards."""
    home = homes()
    yield home
    ids = list(home.queue())
    if ids:
        home.cluster.slurm("scancel", *{i.partition("_")[0] for i in ids})


SMOKE = ("+experiment=smoke", "cluster=devcluster", "train.nodes=2", "train.global_batch=4")


@pytest.fixture(scope="session")
def finished(homes: Callable[[], Site]) -> Site:
    """A smoke run on the cluster, from nothing to its report: 8 shards, 2 nodes x 2 ranks."""
    home = homes()
    home.must(*SMOKE)
    home.settled()
    assert (home.stage("report") / "report.html").exists(), home.run("status", *SMOKE).stdout + home.logs("train")
    return home
