"""Faults inside a process of a command or of a job: a `sitecustomize.py` on PYTHONPATH, so that no product code has a
hook for a test. sbatch hands the environment on, so jobs get it too.
"""

from __future__ import annotations

import shutil

from tests.slurm.site import ROOT, USER, Site, wait

_PREAMBLE = '''
import importlib.abc, importlib.util, os, signal, sys, time
from pathlib import Path

HOOKS = Path(__file__).parent
_patches = {}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        patch = _patches.pop(name, None)
        spec = importlib.util.find_spec(name) if patch else None
        if spec:
            inner = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (inner(module), patch(module))
        return spec


sys.meta_path.insert(0, _Finder())


def after_import(name):
    """Decorator: the function gets the module once it is imported."""
    return lambda patch: _patches.__setitem__(name, patch)


def once(name):
    """Whether this is the first process ever to ask for it."""
    try:
        os.close(os.open(HOOKS / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def say(name):
    """Tell the test this process's id, and that it has come here."""
    (HOOKS / f".{name}").write_text(str(os.getpid()))
    os.replace(HOOKS / f".{name}", HOOKS / name)


def until(name):
    """Wait for the test."""
    while not (HOOKS / name).exists():
        time.sleep(0.05)


def die():
    os.kill(os.getpid(), signal.SIGKILL)
'''


def plant(site: Site, code: str) -> dict[str, str]:
    """The environment in which `code`, which may use what stands above, runs first in every Python of this home."""
    folder = site.folder / "hooks"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_PREAMBLE + code)
    for path in (folder, folder / "sitecustomize.py"):
        shutil.chown(path, USER, USER)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def reached(site: Site, name: str, seconds: float = 120) -> int:
    """Wait until a process said `name`; returns its id."""
    path = site.folder / "hooks" / name
    wait(path.exists, seconds, what=name)
    return int(path.read_text())


def let(site: Site, name: str) -> None:
    """Let go what waits `until(name)`."""
    (site.folder / "hooks" / name).touch()
