"""What is installed: bounds and the versions that ran, a wheel with all its files, imports that answer at once."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cathpc import acts

ROOT = Path(__file__).parents[2]
NEEDS_GPU = ("bnb", "flash", "liger")
"""Extras that no test here can run with."""
BY_MAKE = ("demo",)
"""Installed by the Makefile without what they depend on."""
HEAVY = (
    "accelerate", "bokeh", "datasets", "deepspeed", "matplotlib", "openai", "peft", "scipy", "sklearn", "tokenizers",
    "torch", "transformers", "wandb",
)  # fmt: skip


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def pinned() -> dict[str, Version]:
    """Package -> version, of the constraints and of the Makefile."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines += re.findall(r"^[A-Z_]+ := (.+)$", (ROOT / "Makefile").read_text(), re.M)
    words = [word for line in lines if not line.startswith("#") for word in line.split() if "==" in word]
    found: dict[str, Version] = {}
    for name, _, version in (word.partition("==") for word in words):
        assert found.setdefault(canonicalize_name(name), Version(version)) == Version(version), (
            f"two versions of {name}"
        )
    return found


def required(project: dict[str, Any]) -> list[Requirement]:
    """Everything that the project depends on, but what only a GPU can run."""
    extras = [r for name, listed in project["optional-dependencies"].items() if name not in NEEDS_GPU for r in listed]
    found = [Requirement(text) for text in [*project["dependencies"], *extras]]
    return [r for r in found if r.name != project["name"]]  # an extra may name another


def test_every_dependency_has_a_lower_bound_and_the_version_that_ran_is_within_it(project: dict[str, Any]) -> None:
    versions = pinned()
    for requirement in required(project):
        assert [s for s in requirement.specifier if s.operator == ">="], f"{requirement} has no lower bound"
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt does not say which version of {requirement.name} ran"
        assert version in requirement.specifier, f"{requirement}, but {version} ran"


def test_the_versions_that_run_here_are_those_of_the_constraints(project: dict[str, Any]) -> None:
    versions = pinned()
    for requirement in required(project):
        name = canonicalize_name(requirement.name)
        try:
            installed = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
        assert installed.public == versions[name].public, f"{name} {installed} is installed, {versions[name]} ran"


def test_extras_and_the_console_script_are_there(project: dict[str, Any]) -> None:
    assert {"bnb", "demo", "flash", "liger", "test", "workspace"} <= set(project["optional-dependencies"])
    module, _, name = project["scripts"]["cathpc"].partition(":")
    done = subprocess.run([sys.executable, "-c", f"from {module} import {name}; {name}(['--version'])"], cwd=ROOT)
    assert done.returncode == 0


def test_a_wheel_holds_every_module_every_config_and_every_asset(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    copied = tmp_path / "tree"  # a build leaves folders behind
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    files = [Path(name) for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    for file in files:
        if file.parts[0] in ("cathpc", "conf") or len(file.parts) == 1:
            (copied / file).parent.mkdir(parents=True, exist_ok=True)
            (copied / file).write_bytes((ROOT / file).read_bytes())
    subprocess.run([*command, str(copied)], check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("cathpc-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(f) for f in files if f.parts[0] == "cathpc"}
    wanted |= {f"cathpc/{f}" for f in files if f.parts[0] == "conf" and f.name != "lock.yaml"}
    assert wanted - packed == set()


IMPORTED = """
import sys
from cathpc.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
print("\\n" + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("plan", "+experiment=smoke"),
        ("plan", "+experiment=demo"),
        ("status", "+experiment=smoke"),
        ("status", "+experiment=smoke", "--json"),
        *((act, "--help") for act in acts.ACTS),
    ],
    ids=" ".join,
)
def test_what_only_looks_loads_no_heavy_library(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "cathpc" in loaded and loaded & set(HEAVY) == set()


def test_the_package_itself_imports_nothing_that_is_not_pythons_own() -> None:
    code = "import sys; before = set(sys.modules); import cathpc; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["cathpc"]


def test_help_lists_every_act_once_and_gives_five_examples() -> None:
    text = acts.overview()
    for act, module in acts.ACTS.items():
        assert len(re.findall(rf"^    {act} +\S", text, re.M)) == 1, act
        assert sys.modules[module].HELP in text
    examples = text.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 5 and all(line.startswith("  python -m cathpc ") for line in examples)
    for line in examples:
        words = re.split(r"\s{2,}", line.strip())[0].removeprefix("python -m cathpc ").split()
        act, arguments = acts.pick(words)
        assert act.__name__.startswith("cathpc.acts.") and arguments.overrides


# --- the container ---------------------------------------------------------------------------------------------------

DEFINITION = ROOT / "slurm" / "cathpc.def"
SECTIONS = ("arguments", "files", "post", "environment", "runscript", "test", "labels", "help")


def sections() -> dict[str, str]:
    """Name -> text of the definition's sections; the head is ''."""
    parts = re.split(r"^%(\w+)\n", DEFINITION.read_text(), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_the_container_has_the_sections_that_apptainer_knows_and_all_its_arguments_are_given() -> None:
    found = sections()
    assert set(found) == {"", *SECTIONS}
    assert re.search(r"^Bootstrap: docker$", found[""], re.M) and re.search(r"^From: \S", found[""], re.M)
    given = dict(re.findall(r"^ +(\w+)=(\S+)$", found["arguments"], re.M))
    assert set(re.findall(r"\{\{ (\w+) \}\}", DEFINITION.read_text())) == set(given)
    assert given["TORCH"] == str(pinned()["torch"])


@pytest.mark.parametrize("name", ["post", "environment", "runscript", "test"])
def test_the_scripts_of_the_container_parse(name: str) -> None:
    script = re.sub(r"\{\{ (\w+) \}\}", r"\1", sections()[name])
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_what_the_container_takes_and_calls_is_there(project: dict[str, Any]) -> None:
    found = sections()
    for line in found["files"].strip().splitlines():
        source, target = line.split()
        assert (ROOT / source).exists() and target == f"/opt/cathpc/{source}"
    extras = re.search(r"EXTRAS=(\S+)", found["arguments"])
    assert extras and set(extras.group(1).split(",")) <= set(project["optional-dependencies"])
    for line in found["test"].strip().splitlines():
        words = line.split()
        if words[:3] == ["python3", "-m", "cathpc"] or words[0] == "cathpc":
            with pytest.raises(SystemExit) as left:
                acts.pick([w for w in words[words.index("cathpc") + 1 :] if not w.startswith((">", "/"))])
            assert left.value.code == 0
    example = re.search(r"apptainer run --nv cathpc\.sif (.+)", found["help"])
    assert example and acts.pick(example.group(1).split())[0].__name__ == "cathpc.acts.plan"
