"""The report's sections on single records and on conversations: `Facts` in, words and tables out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cathpc.report.gather import Facts
from cathpc.report.html import words
from cathpc.report.tables import first_user, table


def explain(facts: Facts) -> dict[str, Any]:
    """Records with their scores and every rule's word on them."""
    return {
        "text": (
            "Of each rule the record that came nearest to passing, and others by a hash of their ids: what they say, "
            "where they came from, what each rule saw and how far it was off. A point chosen in a chart above is "
            "explained here too."
        ),
        "records": [_explained(row) for row in facts.explained],
    }


def _explained(row: Mapping[str, Any]) -> dict[str, Any]:
    record, score, verdict = row["record"], row["score"], row["verdict"]
    passes = {True: "passes", False: "fails", None: "not measured"}
    rules = [[words(r["rule"]), passes[r["passes"]], r["value"], r["threshold"], r["off"]] for r in row["rules"]]
    scores = [[words(key), value] for key, value in score.items() if key != "id" and value is not None]
    return {
        **{key: record[key] for key in ("id", "source", "component", "generator", "license", "origin", "messages")},
        "kept": verdict["kept"],
        "verdict": "kept" if verdict["kept"] else words(verdict["rule"]),
        "headline": first_user(record["messages"]),
        "rules": table("What each rule of selection saw", ["rule", "", "value", "threshold", "off by"], rules),
        "scores": table("Scores", ["", "value"], scores),
    }


def showcase(facts: Facts) -> dict[str, Any]:
    """Conversations as the models wrote them: thoughts apart from what is said."""
    if not facts.showcase:
        return {"text": "The stage evaluate wrote no showcase for this run.", "talks": []}
    return {
        "text": "Conversations as the models wrote them. Thoughts are grey, what is said to the user is not.",
        "talks": [_talk(row) for row in facts.showcase],
    }


def _talk(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `cathpc.evaluate.showcase` for the page."""
    messages = [{"role": m["role"], "parts": [("said", m["content"].strip())]} for m in row["messages"]]
    parts = [("thought", row["thoughts"].strip()), ("said", row["answer"].strip())]
    messages.append({"role": "assistant", "parts": [part for part in parts if part[1]]})
    return {"title": f"{row['name']} · {row['model']}", "messages": messages}
