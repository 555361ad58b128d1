"""The stage `pull`, on real files: every row is a record or a written reject, whatever the file looks like."""

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

from cathpc.data import dedup, pull
from cathpc.data.config import Component, DatasetConfig, Format, SourceConfig
from cathpc.data.formats import MOST_COLUMNS
from cathpc.errors import UserError
from cathpc.record import RECORD_SCHEMA

ROOT = Path(__file__).parents[2]


class Pulled:
    """What a run of the stage left."""

    def __init__(self, tmp_path: Path, config: DatasetConfig) -> None:
        self.out = tmp_path / "out"
        self.out.mkdir(exist_ok=True)
        self.summary = pull.run(SimpleNamespace(dataset=config), {}, self.out)  # type: ignore[arg-type]
        self.shards = [pq.read_table(f) for f in sorted((self.out / "records").iterdir())]
        self.records = [row for shard in self.shards for row in shard.to_pylist()]
        self.labels = pq.read_table(self.out / "labels.parquet").to_pylist()
        lines = (self.out / "rejects.jsonl").read_bytes().decode().split("\n")
        self.rejects = [json.loads(line) for line in lines if line]
        self.sources = json.loads((self.out / "sources.json").read_text())
        rows = sum(source["rows"] for source in self.sources.values())
        assert rows == len(self.records) + len(self.labels) + sum(r.get("rows", 1) for r in self.rejects)

    @property
    def reasons(self) -> list[str]:
        return [reject["reason"] for reject in self.rejects]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(r["messages"][0]["content"], r["messages"][-1]["content"]) for r in self.records]


def one(tmp_path: Path, name: str, content: bytes | str, **settings: Any) -> Pulled:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    names = ("max_row_mb", "max_expanded_gb", "shard_records", "near_duplicates", "decontaminate", "workers")
    limits = {k: settings.pop(k) for k in names if k in settings}
    source = SourceConfig(path=name, **{"license": "mit", "format": Format.prompt_response, **settings})
    return Pulled(tmp_path, DatasetConfig(root=str(tmp_path), sources={"k": source}, **limits))


def line(prompt: Any, response: Any, **more: Any) -> str:
    return json.dumps({"prompt": prompt, "response": response, **more}, ensure_ascii=False) + "\n"


def test_broken_lines_are_set_aside_and_the_rest_is_kept(tmp_path: Path) -> None:
    got = one(
        tmp_path,
        "a.jsonl",
        line("a", "b")
        + "{not json\n\n"
        + line("c", None)
        + line(None, "d")
        + line("e", 5)
        + '["f"]\n'
        + line("g", "h"),
    )
    assert got.pairs == [("a", "b"), ("g", "h")]
    assert [(r["origin"], r["reason"]) for r in got.rejects] == [
        ("a.jsonl:2", "not_json"),
        ("a.jsonl:4", "no_answer"),
        ("a.jsonl:5", "no_prompt"),
        ("a.jsonl:6", "wrong_type"),
        ("a.jsonl:7", "wrong_type"),
    ]
    assert got.rejects[0]["excerpt"] == "{not json"
    assert got.sources["k"] == {
        "rows": 7,
        "kept": 2,
        "rejected": {"no_answer": 1, "no_prompt": 1, "not_json": 1, "wrong_type": 2},
        "component": "general",
        "format": "prompt_response",
        "license": "mit",
        "origin": "a.jsonl",
    }
    assert got.summary["line"] == "2 records from 1 source, 5 set aside"
    assert got.shards[0].schema == RECORD_SCHEMA
    assert sorted(p.name for p in got.out.iterdir() if p.name != "progress.json") == [
        "labels.parquet",
        "records",
        "rejects.jsonl",
        "sources.json",
    ]


def test_byte_order_mark_crlf_and_line_separators_inside_strings(tmp_path: Path) -> None:
    text = line("a\u2028b", "c\u0085d") + line("e", "f")
    got = one(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert got.pairs == [("a\u2028b", "c\u0085d"), ("e", "f")]


def test_bad_utf8_spoils_one_row_only(tmp_path: Path) -> None:
    got = one(
        tmp_path,
        "a.jsonl",
        line("ä", "b").encode() + line("c", "X").encode().replace(b"X", b"\xff\xfe") + line("d", "ö").encode(),
    )
    assert got.pairs == [("ä", "b"), ("d", "ö")]
    assert got.reasons == ["bad_text"]


def test_monsters_of_json_are_rows_set_aside(tmp_path: Path) -> None:
    got = one(tmp_path, "a.jsonl", line("a", "b") + "[" * 100_000 + "\n" + "1" * 10_000 + "\n" + '{"prompt": NaN}\n')
    assert got.reasons == ["not_json", "not_json", "wrong_type"]


@pytest.mark.parametrize("indent", [None, 1])
def test_json_arrays_are_read_row_by_row(tmp_path: Path, indent: int | None) -> None:
    rows = [{"prompt": f"question {i}", "response": "x" * 5000} for i in range(500)]
    rows[7:9] = [{"prompt": "2020-01-01", "response": "42"}, 5]  # type: ignore[list-item]
    got = one(tmp_path, "a.json", "\ufeff\n " + json.dumps(rows, indent=indent) + "\n", near_duplicates=0)
    assert len(got.records) == 499 and ("2020-01-01", "42") in got.pairs
    assert [(r["origin"], r["reason"]) for r in got.rejects] == [("a.json:9", "wrong_type")]


def test_json_with_an_array_of_nothing_or_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json holds no rows"):
        one(tmp_path, "a.json", "[ ]")
    assert one(tmp_path, "b.json", line("a", "b")).pairs == [("a", "b")]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            '[{"prompt": "a", "response": "b"},\n {"prompt": oops}, {"prompt": "c", "response": "d"}]',
            "Expecting value at line 2, column 13",
        ),
        (
            '[{"prompt": "a", "response": "b"}\n {"prompt": "c"}]',
            "expected ',' or ']' after an element at line 2, column 2",
        ),
        ('[{"prompt": "a", "response": "b"}', "the array does not end at line 1, column 34"),
        ('[{"prompt": "a", "response": "b"}] x', "text after the end of the array at line 1, column 36"),
    ],
)
def test_what_follows_a_broken_place_of_a_json_array_is_set_aside(tmp_path: Path, text: str, place: str) -> None:
    got = one(tmp_path, "a.json", text)
    assert got.pairs == [("a", "b")] and got.reasons == ["unreadable"]
    assert got.rejects[0]["detail"] == f"not valid JSON: {place}; nothing after it is read"
    assert "DAMAGED: a.json:" in got.summary["line"]


def test_csv_with_quotes_newlines_and_broken_rows(tmp_path: Path) -> None:
    text = 'prompt,response\n"a, ""b""","c\r\nd"\nNA,42\n1,2,3\n"x"y,z\n\ne,f\n'
    got = one(tmp_path, "a.csv", b"\xef\xbb\xbf" + text.encode() + b"g,\xff\n")
    assert got.pairs == [('a, "b"', "c\nd"), ("NA", "42"), ("e", "f")]
    assert got.reasons == ["not_csv", "not_csv", "bad_text"]
    assert got.rejects[0]["detail"] == "line 5: 3 fields, the header has 2"


def test_parquet_with_nulls_nans_and_bad_text(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff\xfe", b"c", None, b"e"], pa.binary()).view(pa.string())
    table = pa.table(
        {"prompt": column, "response": ["b", "b", None, "d", "f"], "n": [1.0, float("nan"), None, 2.0, 3.0]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    got = one(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert got.pairs == [("a", "b"), ("e", "f")]
    assert got.reasons == ["bad_text", "no_answer", "no_prompt"]


def test_a_wrong_column_is_one_error_with_the_columns_seen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row of a\.jsonl has a column 'reply'. Columns seen: prompt, response"):
        one(tmp_path, "a.jsonl", line("a", "b"), columns={"answer": "reply"})


def test_a_wrong_column_of_parquet_is_one_error_with_all_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", "n": 1, "reply": "c"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x")
    with pytest.raises(UserError, match=r"a column 'answer'. Columns seen: n, prompt, reply, response"):
        one(tmp_path, "a.parquet", (tmp_path / "x").read_bytes(), columns={"answer": "answer"})


def test_columns_are_remembered_up_to_a_number_and_those_of_the_config_always(tmp_path: Path) -> None:
    text = "".join(line(f"q {i}", "b", **{f"id {i} {j}": 1 for j in range(40)}) for i in range(100))
    got = one(tmp_path, "a.jsonl", text + line("last", "b", late="c"), columns={"generator": "late"}, near_duplicates=0)
    assert len(got.records) == 101 and got.records[-1]["generator"] == "c"
    with pytest.raises(UserError, match="Columns seen") as error:
        one(tmp_path, "a.jsonl", text, columns={"generator": "later"})
    assert str(error.value).count(", ") < MOST_COLUMNS + 10


def test_a_wrong_format_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 2 rows of a\.jsonl can be read as sharegpt \(no_prompt 2\)"):
        one(tmp_path, "a.jsonl", line("a", "b") * 2, format=Format.sharegpt)


def test_nothing_left_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 rows of k give no record \(too_large 1\)"):
        one(tmp_path, "a.jsonl", line("a", "b" * 2000), max_row_mb=0.001)


def test_the_same_prompt_and_answer_is_a_duplicate_whatever_case_and_spaces(tmp_path: Path) -> None:
    got = one(
        tmp_path,
        "a.jsonl",
        line("Why?", "Because  it is.") + line("why? ", "because\nit is.") + line("Why?", "Who knows."),
    )
    assert ("Why?", "Who knows.") in got.pairs and len(got.records) == 2
    kept = next(r for r in got.records if "ecause" in r["messages"][1]["content"])
    assert got.reasons == ["duplicate"] and kept["id"] in got.rejects[0]["detail"]


PROMPT = "Explain in a few sentences how a lock on a canal lifts a boat from the lower water to the upper water."
ANSWER = (
    "The boat enters the chamber through the lower gate, which closes behind it. Then valves let water flow from the "
    "upper reach into the chamber, and because the boat floats it rises with the water. When both levels are equal the "
    "upper gate opens and the boat leaves. Going down works the other way round: the chamber is emptied into the lower "
    "reach first, and no pump is needed, since water only ever flows downhill through the valves of the lock."
)


def test_near_duplicates_need_both_sides_and_name_what_they_repeat(tmp_path: Path) -> None:
    near = ANSWER + " That is all."
    curt = "I'm sorry, but I cannot help with that request, because it is against the rules that I have to follow."
    text = (
        line(PROMPT, ANSWER)
        + line(PROMPT, near)
        + line("What does a canal lock do? Tell me in detail, please, with every step in its order.", ANSWER)
        + line(PROMPT, "A lock is a chamber with two gates that is filled or emptied with water.")
        + line("How do I pick the lock of a door?", curt)
        + line("How do I pick the lock of a car?", curt)
    )
    got = one(tmp_path, "a.jsonl", text)
    assert got.reasons == ["near_duplicate"]
    kept = [r for r in got.records if r["messages"][0]["content"] == PROMPT and ANSWER in r["messages"][1]["content"]]
    assert len(kept) == 1 and kept[0]["id"] in got.rejects[0]["detail"]
    assert not one(tmp_path, "a.jsonl", text, near_duplicates=0).rejects


def test_the_bands_find_nearly_all_pairs_at_the_threshold(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = [f"w{i}" for i in range(2000)]
    conversations, pairs = [], 0
    for _ in range(200):
        text = rng.choices(words, k=120)
        changed = [*text[:112], *rng.choices(words, k=8)]  # 108 of 124 grams are shared: Jaccard 0.87
        for version in (text, changed):
            conversations.append(
                [{"role": "user", "content": "q"}, {"role": "assistant", "content": " ".join(version)}]
            )
        found, counts = dedup.grams(conversations[-2:])
        _, a, _, b = (np.unique(side) for side in np.split(found, np.cumsum(counts)[:-1]))
        pairs += dedup.jaccard(a, b) >= 0.85
    bands = dedup.Bands(tmp_path, 0.85)
    for start in range(0, 400, 150):
        bands.add(dedup.signatures(conversations[start : start + 150], 0.85))
    bands.close()
    found = list(bands.near_duplicates(np.arange(400), conversations.__getitem__, 0.85))
    assert pairs == 200 and len(found) >= 196
    assert all(number == other + 1 for number, other in found)


def test_of_many_near_duplicates_one_stays_and_a_chain_does_not_swallow_its_far_end(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(200)]
    chain = [" ".join(words[i * 8 : i * 8 + 100]) for i in range(8)]  # neighbours: 0.85; two apart: 0.72; three: 0.61
    text = "".join(line("q", answer) for answer in chain) + "".join(line("q", f"{chain[0]} {i}") for i in range(300))
    got = one(tmp_path, "a.jsonl", text, near_duplicates=0.8)
    answers = [answer for _, answer in got.pairs]
    grams = [set(zip(*(a.split()[i:] for i in range(5)))) for a in answers]
    pairs = [(a, b) for i, a in enumerate(grams) for b in grams[:i]]
    assert all(len(a & b) / len(a | b) < 0.8 for a, b in pairs)
    assert 3 <= len(answers) <= 6 and set(got.reasons) == {"near_duplicate"}


def test_what_is_kept_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [
        line(f"{PROMPT} {i % 7}", ANSWER + " more" * (i % 5), generator="gpt-4" if i % 3 else None) for i in range(60)
    ]
    rows += [line(f"question {i}", f"answer {i}") for i in range(40)]
    kept = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        got = one(tmp_path, "a.jsonl", "".join(rows), columns={"generator": "generator"}, limit=70)
        kept.add(frozenset((r["id"], r["generator"], got.pairs[i]) for i, r in enumerate(got.records)))
        assert {"duplicate", "over_limit"} <= set(got.reasons)
    assert len(kept) == 1


def test_of_duplicates_the_one_with_a_known_generator_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line("a", "b"))
    (tmp_path / "z.jsonl").write_text(line("a", "b"))
    sources = {
        "a": SourceConfig(path="a.jsonl", license="mit", format=Format.prompt_response),
        "z": SourceConfig(path="z.jsonl", license="mit", format=Format.prompt_response, generator="gpt-4"),
    }
    got = Pulled(tmp_path, DatasetConfig(root=str(tmp_path), sources=sources))
    assert [(r["source"], r["generator"]) for r in got.records] == [("z", "gpt-4")]
    assert [(r["source"], r["origin"]) for r in got.rejects] == [("a", "a.jsonl:1")]


def test_a_limit_keeps_all_answers_to_a_prompt_together(tmp_path: Path) -> None:
    text = "".join(line(f"question {i}", f"answer {i} of {model}") for model in "abcd" for i in range(50))
    got = one(tmp_path, "a.jsonl", text, limit=40)
    prompts = [prompt for prompt, _ in got.pairs]
    assert len(prompts) == 40 and len(set(prompts)) == 10
    assert got.reasons == ["over_limit"] * 160


@pytest.mark.parametrize(("limit", "kept"), [(42, 40), (43, 40), (44, 44), (3, 3)])
def test_at_the_border_of_a_limit_no_prompt_is_parted_but_one_that_is_too_many(
    tmp_path: Path, limit: int, kept: int
) -> None:
    text = "".join(line(f"question {i}", f"answer {i} of {model}") for model in "abcd" for i in range(50))
    got = one(tmp_path, "a.jsonl", text, limit=limit)
    assert len(got.pairs) == kept and len({prompt for prompt, _ in got.pairs}) == -(-kept // 4)


def test_records_are_cut_into_shards_in_order(tmp_path: Path) -> None:
    text = "".join(line(f"question {i}", f"answer {i}") for i in range(1200))
    got = one(tmp_path, "a.jsonl", text, shard_records=500, near_duplicates=0)
    assert [len(shard) for shard in got.shards] == [500, 500, 200] and got.summary["shards"] == 3
    assert [r["origin"] for r in got.records] == [f"a.jsonl:{i}" for i in range(1, 1201)]
    assert [len(s) for s in one(tmp_path, "a.jsonl", text, shard_records=600, near_duplicates=0).shards] == [600, 600]


def test_labelled_refusals_go_to_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line("a", "b") + line("c", "I cannot."))
    (tmp_path / "l.jsonl").write_text(
        line("c", "I cannot.", l="full") + line("d", "Sure.", l="none") + line("e", "?", l="x")
    )
    sources = {
        "a": SourceConfig(path="a.jsonl", license="mit", format=Format.prompt_response),
        "l": SourceConfig(
            path="l.jsonl",
            license="mit",
            format=Format.prompt_response,
            component=Component.refusal,
            columns={"label": "l"},
            labels={"none": 0.0, "full": 1.0},
        ),
    }
    got = Pulled(tmp_path, DatasetConfig(root=str(tmp_path), sources=sources))
    assert len(got.records) == 2
    assert [(r["messages"][0]["content"], r["label"]) for r in got.labels] == [("c", 1.0), ("d", 0.0)]
    assert got.reasons == ["bad_label"]


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "records").mkdir(parents=True)
    (out / "staging").mkdir()
    (out / "staging" / "records.arrow").write_bytes(b"half")
    (out / "records" / "records-00007.parquet").write_bytes(b"half")
    assert one(tmp_path, "a.jsonl", line("a", "b")).pairs == [("a", "b")]


def test_real_research_data_is_read_whole(tmp_path: Path, research_data: Path) -> None:
    sources = {
        "gpt4": SourceConfig(path="instruct_gpt4.jsonl", license="cc", columns={"generator": "generator"}, limit=50),
        "mixed": SourceConfig(path="instruct_mixed.jsonl", license="cc", columns={"generator": "generator"}, limit=40),
        "roleplay": SourceConfig(path="roleplay.json", license="mit", columns={"output": "response"}, limit=20),
        "health": SourceConfig(path="chatdoctor.json", license="a", format=Format.chatdoctor, limit=20),
    }
    got = Pulled(tmp_path, DatasetConfig(root=str(research_data), sources=sources))
    assert [got.sources[k]["rows"] for k in ("gpt4", "mixed", "roleplay", "health")] == [2500, 1999, 1500, 4000]
    assert set(got.reasons) <= {"over_limit", "duplicate"}
    prompts = {
        s: {p for r, (p, _) in zip(got.records, got.pairs, strict=True) if r["source"] == s} for s in ("gpt4", "mixed")
    }
    assert prompts["gpt4"] == prompts["mixed"] and len(prompts["gpt4"]) == 10
    assert not any("If you are a doctor" in p for p, _ in got.pairs)


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*?.jsonl", "a::b.jsonl", "a b#%20ü.jsonl", "hf:x.jsonl", "{a}.jsonl"])
def test_a_file_name_is_a_name_and_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "a1.jsonl").write_text(line("other", "file"))
    folder = tmp_path / "[x] y"
    folder.mkdir()
    assert one(folder, name, line("a", "b")).pairs == [("a", "b")]
