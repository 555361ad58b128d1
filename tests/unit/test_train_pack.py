"""Packing: placement, arrays, what is set aside, and that the same records give the same bytes."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.data import encode, pack, ragged
from cathpc.data.bins import best_fit_decreasing
from cathpc.data.config import PackConfig
from cathpc.data.workers import in_order
from cathpc.errors import UserError
from cathpc.models import jinja, template
from cathpc.models.config import TemplateConfig
from cathpc.models.template import Template
from cathpc.record import RECORD_SCHEMA, heldout
from cathpc.train import batches

TEMPLATE = TemplateConfig(
    bos="<|begin_of_text|>",
    pad="<|reserved_special_token_2|>",
    renames={"<|reserved_special_token_0|>": "<|im_start|>", "<|reserved_special_token_1|>": "<|im_end|>"},
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cathpc.models.source import prepare

    folder = tmp_path_factory.mktemp("base")
    (folder / "model").symlink_to(prepare("random:llama", TEMPLATE, folder / "cache"))
    return folder


def conversation(number: int, words: int) -> list[dict[str, str]]:
    text = " ".join(["water", "bread", "numbers"][(number + k) % 3] for k in range(words))
    return [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": text}]


def packed(base: Path, folder: Path, conversations: list[list[dict[str, str]]], **config: Any) -> dict[str, Any]:
    rows = [
        dict.fromkeys(RECORD_SCHEMA.names, "") | {"id": f"r{i}", "label": None, "messages": messages}
        for i, messages in enumerate(conversations)
    ]
    cards = folder / "cards"
    cards.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), cards / "carded.parquet")
    out = folder / "out"
    out.mkdir()
    settings = PackConfig(**{"seq_len": 64, "eval_share": 0.0, **config})
    return pack.run(SimpleNamespace(pack=settings), {"cards": cards, "base": base}, out)  # type: ignore[arg-type]


def placed(lengths: list[int], capacity: int) -> list[list[int]]:
    order, starts = best_fit_decreasing(np.array(lengths, np.int32), capacity)
    return [order[start:end].tolist() for start, end in pairwise(starts)]


def one_by_one(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as one would write it down: for each value a look at every bin."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # and since when
    for now, i in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [(room, since, number) for number, (room, since) in enumerate(rooms) if room >= lengths[i]]
        if fitting:
            room, _, number = min(fitting)
        else:
            room, number = capacity, len(bins)
            bins.append([])
            rooms.append((capacity, now))
        bins[number].append(i)
        rooms[number] = (room - lengths[i], now)
    return bins


@pytest.mark.parametrize("seed", range(20))
def test_placement_is_best_fit_decreasing_to_the_value(seed: int) -> None:
    draw = random.Random(seed)
    capacity = draw.randint(1, 80)
    longest = draw.randint(1, capacity)
    lengths = [draw.randint(1, longest) for _ in range(draw.randint(1, 400))]
    assert placed(lengths, capacity) == one_by_one(lengths, capacity)


def test_the_longest_goes_first_and_into_the_fullest_row_that_has_room() -> None:
    assert placed([2, 7, 5, 3], 10) == [[1, 3], [2, 0]]
    assert placed([], 10) == []


def test_three_hundred_thousand_records_are_placed_once_each_within_little_memory() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.7, 300_000), 10, 8192).astype(np.int32)
    tracemalloc.start()
    order, starts = best_fit_decreasing(lengths, 8192)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(np.sort(order), np.arange(300_000))
    full = np.add.reduceat(lengths[order], starts[:-1])
    assert full.max() <= 8192
    assert full.mean() / 8192 > 0.999
    assert peak < 300_000 * 40


def test_values_of_different_lengths_change_places_in_memory_and_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 9, 200)
    values = np.split(np.arange(lengths.sum(), dtype=np.int32), np.cumsum(lengths)[:-1])
    order = draw.permutation(200)
    flat = np.concatenate(values)
    assert np.array_equal(ragged.take(ragged.column(flat, lengths), order), np.concatenate([values[i] for i in order]))
    flat.tofile(tmp_path / "flat")
    groups = draw.integers(-1, 5, 200)
    monkeypatch.setattr(ragged, "CHUNK", 50)
    ragged.group(tmp_path / "flat", tmp_path / "grouped", lengths, groups)
    wanted = [values[i] for group in range(5) for i in np.flatnonzero(groups == group)]
    assert np.array_equal(np.fromfile(tmp_path / "grouped", np.int32), np.concatenate(wanted))


def test_arrays_hold_each_conversation_as_the_template_encodes_it(base: Path, tmp_path: Path) -> None:
    conversations = [conversation(i, 3 + i % 5) for i in range(12)]
    summary = packed(base, tmp_path, conversations)
    out = tmp_path / "out/train"
    ids, labels, segments = (np.load(out / f"{name}.npy") for name in pack.ARRAYS)
    assert (ids.dtype, labels.dtype, segments.dtype) == (np.int32, np.int32, np.int16)
    template = Template.load(base / "model")
    table = pq.read_table(out / "segments.parquet").to_pylist()
    assert sorted(row["id"] for row in table) == sorted(f"r{i}" for i in range(12))
    for row in table:
        here = segments[row["bin"]] == row["segment"]
        expected, supervised = template.encode(conversations[int(row["id"][1:])])
        assert ids[row["bin"]][here].tolist() == expected
        assert labels[row["bin"]][here].tolist() == [
            token if learned else -100 for token, learned in zip(expected, supervised, strict=True)
        ]
        assert (row["tokens"], row["supervised"]) == (len(expected), sum(supervised))
        assert template.stop_id in labels[row["bin"]][here], "the stop token is learned"
    padding = segments == 0
    assert (ids[padding] == template.pad_id).all()
    assert (labels[padding] == -100).all()
    assert summary["train"]["tokens"] == int((~padding).sum())
    assert summary["train"]["efficiency"] == pytest.approx((~padding).mean())


def test_the_first_token_of_a_segment_is_no_label_even_where_the_template_says_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Template, "encode", lambda self, messages: ([5, 6, 7], [True, True, True]))
    packed(base, tmp_path, [conversation(0, 3)], seq_len=16)
    assert np.load(tmp_path / "out/train/labels.npy").tolist() == [[-100, 6, 7] + [-100] * 13]


def test_blocks_of_rows_give_the_bytes_of_one_block(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = [conversation(i, 3 + i % 17) for i in range(40)]
    one = packed(base, tmp_path, conversations)
    monkeypatch.setattr(pack, "BLOCK_TOKENS", 128)  # two rows
    monkeypatch.setattr(pack, "GROUP_TOKENS", 320)  # five
    monkeypatch.setattr(ragged, "CHUNK", 100)
    (tmp_path / "blocks").mkdir()
    assert packed(base, tmp_path / "blocks", conversations)["train"] == one["train"]
    assert one["train"]["bins"] > 10
    for name in (*pack.ARRAYS, "counts"):
        file = f"out/train/{name}.npy"
        assert (tmp_path / file).read_bytes() == (tmp_path / "blocks" / file).read_bytes()
    tables = [pq.read_table(folder / "out/train/segments.parquet") for folder in (tmp_path, tmp_path / "blocks")]
    assert tables[0] == tables[1]


def test_the_number_of_workers_changes_no_byte(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH", 4)
    conversations = [conversation(i, 3 + 11 * i % 60) for i in range(30)]
    digests = set()
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        digests.add(packed(base, folder, conversations, eval_share=0.2, workers=workers)["digest"])
        digests.add((folder / "out/aside.jsonl").read_text())
    assert len(digests) == 2


def test_work_that_is_shared_comes_back_in_order_and_a_fault_is_told() -> None:
    assert list(in_order(abs, range(-20, 0), 2)) == list(range(20, 0, -1))
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_order(int, ["1", "x", *"23456789"], 2))


def test_rows_tell_their_counts(base: Path, tmp_path: Path) -> None:
    summary = packed(base, tmp_path, [conversation(i, 3 + i % 5) for i in range(12)])
    folder = tmp_path / "out/train"
    data = batches.load(folder, summary["pad_id"])
    assert data.bins == summary["train"]["bins"] > 1
    assert data.tokens.tolist() == (data.segment_ids > 0).sum(1).tolist()
    assert data.supervised.tolist() == (data.labels != -100).sum(1).tolist()
    empty = batches.load(tmp_path / "out/eval", summary["pad_id"])
    assert (empty.bins, empty.input_ids.shape, len(empty.tokens)) == (0, (0, 64), 0)


def test_over_long_and_unlearnable_records_are_set_aside_by_name(base: Path, tmp_path: Path) -> None:
    unlearnable = [{"role": "user", "content": "Hello"}]
    summary = packed(base, tmp_path, [conversation(0, 200), unlearnable, conversation(1, 4)])
    aside = [json.loads(line) for line in (tmp_path / "out/aside.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in aside] == [("r0", "too_long"), ("r1", "nothing_supervised")]
    assert summary["aside"] == {"too_long": 1, "nothing_supervised": 1}
    assert summary["train"]["records"] == 1


def test_a_conversation_that_the_template_refuses_is_set_aside_with_what_it_says(base: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict/model"
    shutil.copytree((base / "model").resolve(), strict)
    layout = (strict / jinja.FILE).read_text()
    refuses = "{%- if messages | length > 2 %}{{- raise_exception('one question only') }}{%- endif %}"
    (strict / jinja.FILE).write_text(refuses + layout)
    facts = json.loads((strict / template.FILE).read_text())
    content = json.loads((strict / template.TOKENIZER).read_text())
    facts["hash"] = template.template_hash(content, facts, refuses + layout)
    (strict / template.FILE).write_text(json.dumps(facts))

    summary = packed(strict.parent, tmp_path, [conversation(0, 4), conversation(1, 4) + conversation(2, 4)])
    (aside,) = [json.loads(line) for line in (tmp_path / "out/aside.jsonl").read_text().splitlines()]
    assert (aside["id"], aside["reason"]) == ("r1", "refused_by_template")
    assert "one question only" in aside["detail"]
    assert summary["aside"] == {"refused_by_template": 1}
    assert summary["train"]["records"] == 1


def test_with_nothing_left_it_says_what_to_change(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of its 1 records.*too_long.*pack\.seq_len"):
        packed(base, tmp_path, [conversation(0, 200)])


def test_a_prompt_is_held_out_by_its_hash_alone(base: Path, tmp_path: Path) -> None:
    conversations = [conversation(i % 40, 3 + i // 40) for i in range(80)]  # two answers to each prompt
    summary = packed(base, tmp_path, conversations, eval_share=0.3)
    ids = {
        split: {row["id"] for row in pq.read_table(tmp_path / f"out/{split}/segments.parquet").to_pylist()}
        for split in pack.SPLITS
    }
    expected = {f"r{i}" for i, c in enumerate(conversations) if heldout(c, 0.3, seed=encode.EVAL_SEED)}
    assert ids["eval"] == expected
    assert 5 < summary["eval"]["records"] < 50
    assert {int(i[1:]) % 40 for i in ids["eval"]}.isdisjoint(int(i[1:]) % 40 for i in ids["train"])


def test_a_token_budget_keeps_the_same_records_whatever_else_there_is(base: Path, tmp_path: Path) -> None:
    conversations = [conversation(i, 20) for i in range(30)]
    summary = packed(base, tmp_path, conversations, max_tokens=300)
    kept = set(pq.read_table(tmp_path / "out/train/segments.parquet")["id"].to_pylist())
    assert 0 < summary["train"]["tokens"] <= 300
    assert summary["over_budget"] == 30 - len(kept) > 0
    (tmp_path / "more").mkdir()
    packed(base, tmp_path / "more", conversations, max_tokens=600)
    assert kept < set(pq.read_table(tmp_path / "more/out/train/segments.parquet")["id"].to_pylist())


def test_the_same_records_give_the_same_bytes_and_others_another_digest(base: Path, tmp_path: Path) -> None:
    digests = []
    for name, count in (("a", 9), ("b", 9), ("c", 10)):
        (tmp_path / name).mkdir()
        digests.append(packed(base, tmp_path / name, [conversation(i, 5) for i in range(count)])["digest"])
    assert digests[0] == digests[1] != digests[2]
    assert not list((tmp_path / "a/out").rglob(".*")), "no temporary file stays"
