"""Packing: placement, arrays, what is set aside, and that the same records give the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc.data import pack
from cathpc.data.config import PackConfig
from cathpc.errors import UserError
from cathpc.models.config import TemplateConfig
from cathpc.models.template import Template
from cathpc.record import RECORD_SCHEMA, heldout

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


def test_best_fit_decreasing_places_everything_once_and_wastes_little() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 700) for _ in range(5000)]
    bins = pack.best_fit_decreasing(lengths, 1000)
    assert sorted(i for members in bins for i in members) == list(range(5000))
    assert max(sum(lengths[i] for i in members) for members in bins) <= 1000
    assert sum(lengths) / (len(bins) * 1000) > 0.98
    assert pack.best_fit_decreasing(lengths, 1000) == bins


def test_the_longest_goes_first_and_into_the_fullest_row_that_has_room() -> None:
    assert pack.best_fit_decreasing([2, 7, 5, 3], 10) == [[1, 3], [2, 0]]


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


def test_the_first_token_of_a_segment_is_no_label_even_where_the_template_says_so(tmp_path: Path) -> None:
    flat = pack._Flat(tmp_path / "x")
    flat.add("a", [5, 6, 7], [True, True, True])
    pack._write(tmp_path / "train", flat, [0], 8, 0)
    assert np.load(tmp_path / "train/labels.npy").tolist() == [[-100, 6, 7, -100, -100, -100, -100, -100]]


def test_over_long_and_unlearnable_records_are_set_aside_by_name(base: Path, tmp_path: Path) -> None:
    unlearnable = [{"role": "user", "content": "Hello"}]
    summary = packed(base, tmp_path, [conversation(0, 200), unlearnable, conversation(1, 4)])
    aside = [json.loads(line) for line in (tmp_path / "out/aside.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in aside] == [("r0", "too_long"), ("r1", "nothing_supervised")]
    assert summary["aside"] == {"too_long": 1, "nothing_supervised": 1}
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
    expected = {f"r{i}" for i, c in enumerate(conversations) if heldout(c, 0.3, seed=pack.EVAL_SEED)}
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
