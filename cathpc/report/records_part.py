"""The report's sections on single records and on conversations: `Facts` in, words and tables out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cathpc.report.gather import Facts
from cathpc.report.html import words
from cathpc.report.tables import first_user, table

_THOUGHT = re.compile(r"<(think|thinking|thought|thoughts)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)


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
    passes = {True: "passes", False: "fails", None: "not known"}
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
    """A conversation in the forms in which evaluate may write it: `messages`, then `answer`, `answers` or `parts`."""
    title = " · ".join(str(row[key]) for key in ("title", "name", "model", "step") if row.get(key) not in (None, ""))
    messages = [{"role": m["role"], "parts": _parts(m)} for m in row.get("messages", [])]
    if not messages or messages[-1]["role"] != "assistant":
        last = {"content": row.get("answer", ""), **{key: row[key] for key in ("parts", "thoughts") if key in row}}
        messages.append({"role": "assistant", "parts": _parts({"role": "assistant", **last})})
    return {"title": title or "Conversation", "messages": messages}


def _parts(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    """[('thought' or 'said', text)]: as given in `parts` or `thoughts`, else by the tags <think> and alike."""
    given: Sequence[Mapping[str, Any]] = message.get("parts") or ()
    if given:
        return [("thought" if "thought" in str(part.get("kind")) else "said", str(part["text"])) for part in given]
    found: list[tuple[str, str]] = []
    if thoughts := message.get("thoughts"):
        found.append(("thought", thoughts if isinstance(thoughts, str) else "\n".join(thoughts)))
    content, at = str(message.get("content", "")), 0
    if message.get("role") == "assistant":
        for match in _THOUGHT.finditer(content):
            found += [("said", content[at : match.start()]), ("thought", match[2])]
            at = match.end()
    found.append(("said", content[at:]))
    return [(kind, text.strip()) for kind, text in found if text.strip()]
