"""The shape of the judged cards in tests/golden; what the checks make of them is tested with the checks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("leak", "invented", "contradiction", "language", "injection", "broken")
FIELDS = {"id", "sealed", "kind", "why", "component", "messages", "raw"}


def read(name: str) -> list[dict[str, Any]]:
    lines = (GOLDEN / f"cards_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


BAD, GOOD = read("bad"), read("good")


def test_fifteen_bad_cards_of_each_kind_and_five_of_each_sealed() -> None:
    assert Counter(row["kind"] for row in BAD) == dict.fromkeys(KINDS, 15)
    assert Counter(row["kind"] for row in BAD if row["sealed"] is True) == dict.fromkeys(KINDS, 5)


def test_ninety_good_cards_thirty_of_them_sealed() -> None:
    assert Counter((row["kind"], row["sealed"]) for row in GOOD) == {("good", True): 30, ("good", False): 60}


def test_ids_are_unique_and_no_two_cards_are_the_same() -> None:
    assert len({row["id"] for row in BAD + GOOD}) == len({row["raw"] for row in BAD + GOOD}) == 180


def test_over_a_hundred_records_none_of_them_sealed_in_one_file_and_open_in_the_other() -> None:
    records = {(json.dumps(row["messages"]), row["sealed"]) for row in BAD + GOOD}
    assert len({messages for messages, _ in records}) == len(records) > 100
    assert sum(sealed for _, sealed in records) >= 36


@pytest.mark.parametrize("row", BAD + GOOD, ids=lambda row: row["id"])
def test_each_row_has_its_fields_a_conversation_and_a_reason(row: dict[str, Any]) -> None:
    assert set(row) == FIELDS
    assert row["why"].strip() and row["raw"].strip()
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
    assert all(message["content"].strip() for message in row["messages"])


@pytest.mark.parametrize("row", [row for row in BAD + GOOD if row["kind"] != "broken"], ids=lambda row: row["id"])
def test_a_card_that_is_not_broken_is_an_object_with_a_person(row: dict[str, Any]) -> None:
    card = json.loads(row["raw"])
    assert set(card) - {"place_invented"} == {"place", "time", "people", "style"}
    assert 1 <= len(card["people"]) <= 4
    for person in card["people"]:
        assert set(person) - {"invented"} == {"name", "role", "appearance", "personality", "relation"}
        assert person["name"]
