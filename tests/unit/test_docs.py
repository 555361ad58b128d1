"""What README.md, slurm/README.md and docs/ say is so: commands, keys, files, links, messages, exit codes.

Code stands in fenced blocks with a language. Of `sh` blocks every line is a command: those of cathpc are parsed by its
own parsers and composed, in a folder that holds the files which the pages tell one to write (a `yaml` or `jinja` block
with a comment in its first two lines that is a path). Nothing is run, no network is asked, no model is loaded.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.machinery
import importlib.util
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml

from cathpc import acts, errors, keys
from cathpc.config import Config, compose, expand
from cathpc.errors import UserError
from cathpc.pipeline import BY_NAME

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"sh", "text", "yaml", "json", "jsonl", "python", "jinja", "math"}
OTHERS = {
    ".", "apptainer", "cd", "cp", "curl", "exit", "export", "git", "grep", "hf", "install", "mkdir", "pip", "tail",
    "wandb",
}  # fmt: skip
"""Programs beside cathpc's own that a line of a page may start with."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        mark = line.strip()
        if start is None and mark.startswith("```"):
            start = number
        elif start is not None and mark == "```":
            language = lines[start - 1].strip().removeprefix("```")
            yield Block(str(page.relative_to(ROOT)), start, language, "\n".join(lines[start : number - 1]) + "\n")
            start = None
    assert start is None, f"{page}: the block from line {start} on has no end"


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(language: str = "sh") -> list[tuple[str, list[str]]]:
    """(page:line, words) of each command; comments and variables in front are left out."""
    found = []
    for block in BLOCKS:
        if block.language != language:
            continue
        number, whole = block.line, ""
        for line in block.text.splitlines():
            number += 1
            whole += line.removesuffix("\\")
            if line.endswith("\\"):
                continue
            words = shlex.split(whole, comments=True)
            whole = ""
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append((f"{block.page}:{number}", words))
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def quoted(page: Path) -> list[str]:
    """What stands between backticks in the text of a page."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(page))]


def own_command(words: list[str]) -> list[str] | None:
    """The arguments of `python -m cathpc …`, None for another command."""
    if len(words) > 2 and words[0].endswith("python") and words[1:3] == ["-m", "cathpc"]:
        return words[3:]
    return None


COMMANDS = commands()
OWN = sorted({tuple(argv): place for place, words in COMMANDS if (argv := own_command(words)) is not None}.items())


def told(block: Block) -> str:
    """The file that a block is the content of, by a comment in its first two lines; '' where there is none."""
    name = re.search(r"^(?:#|\{#) *([\w/-]+\.(?:yaml|j2))\b", "\n".join(block.text.splitlines()[:2]), re.M)
    return name.group(1) if name else ""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages tell one to write."""
    folder = tmp_path_factory.mktemp("work")
    for block in BLOCKS:
        name = told(block)
        if name:
            file = folder / name
            assert not file.exists() or file.read_text("utf-8") == block.text, (
                f"{block.page}:{block.line}: two versions"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, "utf-8")
    return folder


@functools.cache
def composed(overrides: tuple[str, ...]) -> Config:
    return compose(list(overrides))


def dry_run(argv: list[str]) -> None:
    """Parse a command with its act's parser, and compose what it would compose; raises what the command would."""
    act, arguments = acts.pick(argv)
    name = act.__name__.rpartition(".")[2]
    overrides = list(arguments.overrides)
    if name in ("drill", "doctor"):
        overrides = overrides if any("experiment=" in o for o in overrides) else ["+experiment=smoke", *overrides]
    elif name in ("compare", "diff"):
        overrides += [word for word in arguments.runs if "=" in word]
    grid = expand(overrides) if name == "compare" or getattr(arguments, "multirun", False) else [overrides]
    for one in {tuple(grid[0]), tuple(grid[-1])}:  # its ends have the extremes of every axis
        if any("experiment=" in o for o in one):
            composed(one)
        elif one:
            raise UserError(f"{name}: overrides without an experiment: {one}")


@pytest.mark.parametrize(("argv", "place"), OWN, ids=[f"{place} {' '.join(argv)[:60]}" for argv, place in OWN])
def test_every_command_of_cathpc_parses_and_composes(
    argv: tuple[str, ...], place: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    if argv[-1:] == ("--help",) or argv == ("--version",):
        with pytest.raises(SystemExit) as ended:
            acts.pick(list(argv))
        assert ended.value.code == 0, place
        return
    dry_run(list(argv))


@pytest.mark.parametrize("name", sorted({name for block in BLOCKS if (name := told(block))}))
def test_every_file_that_a_page_tells_one_to_write_composes(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    _, group, file = name.split("/")
    option = file.partition(".")[0]
    if group == "sweep":
        assert len(expand(["+experiment=smoke", f"+sweep={option}"])) > 1
    elif group == "experiment":
        assert composed((f"+experiment={option}",)).name == option
    else:
        taken = composed(("+experiment=smoke", f"{group}={option}"))
        assert getattr(taken, group) != getattr(composed(("+experiment=smoke",)), group)


def test_commands_in_the_text_name_acts_that_there_are() -> None:
    seen = 0
    for page in PAGES:
        for text in quoted(page):
            if re.match(r"(\.venv/bin/)?python -m cathpc( |$)", text):
                word = [*text.split()[3:], "run"][0]
                seen += 1
                assert word.startswith(("+", "-", "~")) or "=" in word or word in (*acts.ACTS, "ACT", "[ACT]"), text
    assert seen > 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.page}:{b.line}")
def test_every_block_has_a_language_and_is_well_formed(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.page}:{block.line}: write one of {sorted(LANGUAGES)} behind the fence"
    if block.language == "yaml":
        assert yaml.safe_load(block.text)
    elif block.language == "json":
        assert json.loads(block.text)
    elif block.language == "jsonl":
        assert [json.loads(line) for line in block.text.splitlines()]
    elif block.language == "python":
        assert ast.parse(block.text).body
    elif block.language == "sh":
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_lines_of_json_are_what_their_readers_take(tmp_path: Path) -> None:
    from cathpc.evaluate import probes
    from cathpc.models.refusal_rows import examples

    seen = set()
    for block in (b for b in BLOCKS if b.language == "jsonl"):
        file = tmp_path / f"{len(seen)}.jsonl"
        file.write_text(block.text, "utf-8")
        first = json.loads(block.text.splitlines()[0])
        if "checks" in first:
            assert probes.read(file), block
            seen.add("probes")
        elif "refuses" in first:
            assert examples(str(file))[0], block
            seen.add("examples")
    assert seen == {"probes", "examples"}


def test_other_commands_are_known_make_targets_scripts_and_modules_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    loader = importlib.machinery.SourceFileLoader("devcluster", str(ROOT / "slurm" / "devcluster"))
    spec = importlib.util.spec_from_loader("devcluster", loader)
    assert spec
    devcluster = importlib.util.module_from_spec(spec)
    loader.exec_module(devcluster)
    for place, words in COMMANDS:
        words = words[1:] if words[0] == "sudo" else words
        if own_command(words) is not None:
            continue
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"{place}: no target {words[1:]}"
        elif words[0].endswith("devcluster"):
            assert devcluster.parse(words[1:]), place
        elif words[0].startswith("slurm/"):
            assert os.access(ROOT / words[0], os.X_OK), f"{place}: {words[0]} is no program"
        elif words[:2] == ["python", "-m"]:
            assert words[2] in ("venv", "pip") or module(words[2]), f"{place}: there is no module {words[2]}"
        else:
            assert words[0] in OTHERS, f"{place}: {words[0]} is not among the programs that pages may use"


def module(name: str) -> bool:
    """Whether the repository has a module or package `name`; nothing is imported."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


# --- names in the text ------------------------------------------------------------------------------------------------


def known_key(key: str) -> bool:
    """Whether the schema has `key`; below a mapping the names are the user's."""
    schema: object = Config
    for part in key.split("."):
        if dataclasses.is_dataclass(schema):
            schema = get_type_hints(schema).get(part)
            if schema is None:
                return False
        elif get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            return False
    return True


FILES = (".html", ".json", ".jsonl", ".parquet", ".py", ".yaml")
SECTION_KEY = re.compile(rf"(?:{'|'.join(keys.SECTIONS)})(?:\.[a-z_0-9]+)+(?==|$)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_keys_files_and_modules_that_a_page_names_are_there(page: Path) -> None:
    wrong = [fault for text in quoted(page) if (fault := missing(text))]
    assert not wrong, wrong


def missing(text: str) -> str:
    """What is wrong with a key, a file or a module that stands between backticks; '' where it is there, or none."""
    key = None if text.endswith(FILES) else SECTION_KEY.match(text)
    if key and not known_key(key.group()):
        return f"key {key.group()}"
    path = text.removeprefix("./")
    if re.fullmatch(r"(?:cathpc|conf|docs|tests|slurm)/[\w./-]*", path) and not re.search("NAME|mysite", path):
        return "" if (ROOT / path).exists() or _told(path) else f"file {path}"
    if re.fullmatch(r"(?:cathpc|tests)(?:\.[a-z_0-9]+)+", text):
        return "" if module(text) or module(text.rpartition(".")[0]) else f"module {text}"
    return ""


def _told(path: str) -> bool:
    """Whether a page tells one to write this file."""
    return any(told(block) == path for block in BLOCKS)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+)$", prose(page), re.M):
        one, number = slug(heading), 0
        while one in found:
            number += 1
            one = f"{slug(heading)}-{number}"
        found.add(one)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong, wrong


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)}" in readme, f"README.md does not lead to {page.relative_to(ROOT)}"


# --- pages that repeat what the code says -----------------------------------------------------------------------------


def test_the_page_of_keys_is_that_of_the_schema() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == keys.page(), "it is stale: make docs"


def test_every_key_says_what_it_does() -> None:
    silent = [key.path for section in keys.SECTIONS for key in keys.keys(section) if not key.does]
    assert not silent, f"write a docstring below: {silent}"


def test_what_a_key_redoes_is_what_its_change_redoes() -> None:
    """Of keys of different kinds: those of one stage, of two, of none, and those that count by something else."""
    from cathpc.schema import identity

    rows = {key.path: key for section in keys.SECTIONS for key in keys.keys(section)}
    plain = Config()
    for path, value in {
        "gpt.lr": 1.0,
        "benchmarks.limit": 5,
        "refusal.folds": 9,
        "select.refusal_max": 0.5,
        "train.lora.rank": 8,
        "train.save_every_steps": 7,
        "train.nodes": 3,
        "score.threads": 5,
        "cluster.lead_s": 9,
    }.items():
        other = Config()
        *parents, last = path.split(".")
        node: object = other
        for part in parents:
            node = getattr(node, part)
        setattr(node, last, value)
        redone = []
        for stage in BY_NAME.values():
            before, after = ({s: identity(getattr(c, s)) for s in stage.config} for c in (plain, other))
            counted = stage.identity if stage.name == "train" else None
            if before != after or (counted and counted(plain) != counted(other)):
                redone.append(f"`{stage.name}`")
        assert rows[path].redoes.partition(" (")[0] == ", ".join(redone), path


@functools.cache
def said() -> list[str]:
    """Every text in cathpc's code, with U+2026 for each value that is put in."""
    found = []
    for file in sorted((ROOT / "cathpc").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
                found.append("".join(_pieces(node)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [" ".join(text.split()) for text in found]


def _pieces(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _pieces(node.left)
        yield from _pieces(node.right)
    elif isinstance(node, ast.JoinedStr):
        yield from (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    else:
        yield node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def messages() -> list[str]:
    """The messages that the page of troubles quotes: its headings of the third rank."""
    return re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.M)


@pytest.mark.parametrize("message", messages() if (ROOT / "docs" / "troubleshooting.md").exists() else [])
def test_each_message_of_the_page_of_troubles_is_one_of_cathpc(message: str) -> None:
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    assert max(map(len, parts)) > 8, "too short to be found for sure"
    pattern = re.compile(".*".join(parts))
    assert any(pattern.search(text) for text in said()), "no text in cathpc/ reads so"


def test_the_tables_of_checks_and_rules_are_those_of_the_code() -> None:
    from cathpc.cards import verify
    from cathpc.data import filters
    from cathpc.evaluate import checkers

    scores, evaluation = ((ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("scores", "evaluation"))
    cards, selection = (scores[scores.index(f"## {name}") :] for name in ("Cards", "Selection"))
    assert re.findall(r"^\| `(\w+)` \|", cards.partition("\n\nFor cards")[0], re.M) == list(verify.CHECKS)
    rules = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", selection.partition("### Quality")[0], re.M)
    assert re.findall(r"`(\w+)`", " ".join(rules)) == list(filters.NAMES)
    told = {name for cell in re.findall(r"[^|\n]+", evaluation) for name in re.findall(r"`(\w+)`", cell)}
    assert set(checkers.CHECKS) <= told, set(checkers.CHECKS) - told


def test_the_exit_codes_of_the_operations_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = page[page.index("## Exit codes") :]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert told == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
