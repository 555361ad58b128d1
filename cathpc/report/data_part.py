"""The report's sections on data: flow of records, population, answer lengths, scoring models, cards.

`Facts` and pictures in, the words and tables of each section out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cathpc.data import filters
from cathpc.data.config import SelectConfig
from cathpc.report import auroc
from cathpc.report.gather import Facts
from cathpc.report.html import number, percent, words
from cathpc.report.measures import floats, generator_rows, of_component, ok, quality_cuts, rule_counts, source_counts
from cathpc.report.picture import Picture
from cathpc.report.sampling import nearest
from cathpc.report.style import in_order
from cathpc.report.tables import LABELS, first_user, label, table

QUALITY = {
    "contrast": "the contrast, by how many nats a token the reference GPT likes the answer better than the pool does",
    "perplexity": "the perplexity of its answer under the reference GPT",
}


def flow(facts: Facts) -> dict[str, Any]:
    """Where records went: by rule, by source, and the rows that never became records."""
    drops = rule_counts(facts)
    entered, kept = facts.scored.num_rows, kept_rows(facts).num_rows
    counted = source_counts(facts)
    rules = [rule for rule, _ in drops]
    by_source = []
    for source, seen in facts.sources.items():
        by_rule = [counted[source, rule] for rule in rules]
        by_source.append(
            [source, seen["component"], seen["rows"], sum(seen["rejected"].values()), *by_rule, counted[source, ""]]
        )
    totals = [sum(row[i] for row in by_source) for i in range(2, len(rules) + 5)]
    reasons: Counter[str] = Counter()
    for seen in facts.sources.values():
        reasons.update(seen["rejected"])
    rejects = [
        [words(reason), *(seen["rejected"].get(reason, 0) for seen in facts.sources.values()), count]
        for reason, count in reasons.most_common()
    ]
    settings = facts.config("select", "select")
    by_rule_rows = [
        [words(rule), count, percent(count / max(entered, 1), 1), _setting(settings, rule), _threshold(facts, rule)]
        for rule, count in drops
    ]
    pulled, labels = facts.summary("pull"), facts.summary("pull")["labels"]
    text = (
        f"{pulled['rows']:,} rows were read from {len(facts.sources)} sources; {pulled['set_aside']:,} were set aside "
        f"while reading. Of the {entered:,} scored records {kept:,} are kept."
    )
    if labels:
        text += f" {labels:,} labelled refusals train the refusal classifier and never reach the mix."
    if quotas := {name: most for name, most in settings["quotas"].items() if most}:
        listed = ", ".join(f"{most:,} of {name}" for name, most in sorted(quotas.items()))
        text += f" The mix takes at most {listed}."
    if settings["max_records"]:
        text += f" The mix is limited to {settings['max_records']:,} records."
    return {
        "text": text,
        "by_rule": table(
            "Records dropped by each rule, in the order in which the rules are applied",
            ["rule", "dropped", "of scored", "setting", "threshold"],
            by_rule_rows,
            foot=["kept", kept, percent(kept / max(entered, 1), 1), "", ""],
        ),
        "by_source": table(
            "From the rows of each source to the records that are kept",
            ["source", "component", "rows", "set aside", *map(words, rules), "kept"],
            by_source,
            foot=["all", "", *totals],
        ),
        "rejects": table("Rows set aside while reading, by reason", ["reason", *facts.sources, "all"], rejects),
        "nearest": table(
            "Of the records that each rule dropped, the one that came nearest to passing",
            ["rule", "record", "source", "value", "threshold"],
            [[words(rule), *row] for rule, _ in drops if (row := _nearest(facts, rule))],
            link=1,
        ),
    }


def population(facts: Facts) -> dict[str, Any]:
    """The scored records by component."""
    settings = facts.config("select", "select")
    quality, cuts = settings["quality"], quality_cuts(facts)
    rows = []
    for component in in_order(facts.scored["component"].unique().to_pylist()):
        every = of_component(facts.scored, component)
        scored, kept = ok(every, facts), every.filter(every["kept"])
        rows.append(
            [
                component,
                every.num_rows,
                kept.num_rows,
                _median(scored["refusal"]),
                _median(scored[quality]),
                cuts.get(component),
                _median(scored["diagnosis"]),
                _share_at_least(kept["correlatives"], 1),
                _share_at_least(kept["steps"], 2),
            ]
        )
    limit, share = settings["refusal_max"], settings["population"]
    refused = f"A refusal score above {number(limit)} drops a record" if limit is not None else "No score is a refusal"
    outside = dict(rule_counts(facts)).get(filters.POPULATION, 0)
    main = (
        f" Of what the rules before it left, each component's main population stays: the smallest region of the plane "
        f"of both scores that holds {percent(share)} of it; {outside:,} records lie outside."
    )
    return {
        "text": (
            f"Two scores place every record: how likely its answer is a refusal, and its quality ({QUALITY[quality]}). "
            f"{refused}, and of each component the worst {percent(settings['drop_quality'])} by quality go, among "
            f"those that the other rules left.{main if share else ''} The diagnosis says how much an answer looks "
            "like a step-by-step diagnosis, from 0 to 1."
        ),
        "table": table(
            "Scores by component (medians over all scored records; shares over the kept ones)",
            [
                "component",
                "scored",
                "kept",
                "refusal",
                quality,
                "quality cut",
                "diagnosis",
                "with a correlative",
                "two or more steps",
            ],
            rows,
        ),
    }


def lengths(facts: Facts, pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """The figures of answer lengths."""
    settings = facts.config("select", "select")
    return {
        "text": (
            f"Answers have {settings['min_answer_tokens']:,} to {settings['max_answer_tokens']:,} tokens; reasoning "
            "and health ask for more, because short answers there state a result without the way to it. A score that "
            "rose with the length alone would select long answers, not good ones: how scores and length go together "
            "is shown for each component."
        ),
        "figures": [key for key in pictures if key.startswith(("length-", "score-length-"))],
    }


def models(facts: Facts, pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Held-out figures of the three scoring models."""
    gpts = [(name, facts.summary(name)) for name in ("reference", "pool")]
    rows: list[list[Any]] = [
        [LABELS[key], *(summary.get(key) for _, summary in gpts)]
        for key in (
            "records",
            "train_tokens",
            "heldout_records",
            "heldout_tokens",
            "heldout_ppl_before",
            "heldout_ppl_after",
        )
    ]
    looks = [summary.get("heldout_curve", []) for _, summary in gpts]
    rows.append(["perplexity of some of them while training", *(number([x["perplexity"] for x in c]) for c in looks)])
    rows.append(["generators", *(", ".join(summary["generators"]) for _, summary in gpts)])
    judged = [
        [r.generator, r.answers, r.contrast, r.equal_length, r.pairs, r.perplexity, r.length]
        for r in generator_rows(facts)
    ]
    refusal = facts.summary("refusal")
    shown = [[label(k), v, _band(refusal["bands"].get(k))] for k, v in refusal.items() if k not in ("line", "bands")]
    shown.append([label("best_cutoff"), None, _band(refusal["bands"]["best_cutoff"])])
    return {
        "text": (
            "No scoring model has seen the prompts that it is measured on. The reference GPT learns from the reference "
            "generators alone, the pool GPT from all others; the refusal classifier from labelled answers, each "
            "judged here by a classifier that never saw its prompt."
        ),
        "figures": [key for key in ("auroc", "reliability") if key in pictures],
        "tables": [
            table(
                "AUROC of the reference generators' answers against those of each other one, on held-out prompts, by "
                f"each score and by length; equal: pairs whose lengths differ by at most {percent(auroc.TOLERANCE)}",
                ["against", "answers", "contrast", "contrast, equal length", "pairs", "perplexity", "length"],
                judged,
            ),
            table("GPTs: perplexity on held-out answers of their own side", ["", "reference", "pool"], rows),
            table(
                "Refusal classifier on held-out answers; intervals: 95% of a bootstrap over prompts",
                ["", "value", "interval"],
                shown,
            ),
        ],
    }


def cards(facts: Facts) -> dict[str, Any]:
    """Cards by verdict, the rules that they hold, the checks that refused some, and examples."""
    total, summary = facts.card_counts.total(), facts.summary("cards")
    rows = [[verdict, count, percent(count / max(total, 1), 1)] for verdict, count in facts.card_counts.most_common()]
    refused = summary.get("refused_by_check", {})
    return {
        "text": (
            f"{total:,} records carry a system card. A verified card was written by a model and passed every check; "
            "a given one is built on the record's own system prompt; where neither could be, a plain card holds the "
            "rules alone. The examples are chosen by a hash of their ids."
        ),
        "tables": [
            table("Cards by verdict", ["verdict", "cards", "share"], rows),
            table("Rules that the cards hold", ["rule", "cards"], [[words(k), v] for k, v in summary["rules"].items()]),
            table("Written cards refused, by check", ["check", "cards"], [[words(k), v] for k, v in refused.items()]),
        ],
        "examples": [_card_example(row) for row in facts.card_examples],
    }


def _card_example(row: Mapping[str, Any]) -> dict[str, Any]:
    record, attempts = row["record"], int(row["attempts"])
    return {
        "id": row["id"],
        "verdict": row["verdict"],
        "component": record["component"],
        "source": record["source"],
        "origin": record["origin"],
        "license": record["license"],
        "attempts": {0: "not written by a model", 1: "written once"}.get(attempts, f"written {attempts} times"),
        "checked": "Checks of the last card that was written" if row["verdict"] == "plain" else "Checks",
        "headline": first_user(record["messages"]),
        "messages": record["messages"],
        "passed": [words(check) for check, seen in row["checks"].items() if not seen],
        "failed": [f"{words(check)} ({seen})" for check, seen in row["checks"].items() if seen],
    }


def kept_rows(facts: Facts) -> pa.Table:
    """The scored records that selection kept."""
    return facts.scored.filter(facts.scored["kept"])


def _nearest(facts: Facts, rule: str) -> list[Any] | None:
    """[id, source, value, threshold] of the record that `rule` dropped by least; None where it compares no numbers."""
    rows = nearest(facts.scored, rule).select(["id", "source", "value", "threshold"]).to_pylist()
    return list(rows[0].values()) if rows else None


def _setting(settings: Mapping[str, Any], rule: str) -> str:
    """The keys of group `select` that set a rule, and their values."""
    keys = filters.keys(SelectConfig(**settings), rule)
    return ", ".join(f"{key}: {_value(settings[key])}" for key in keys) or "not scored"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {number(most)}" for name, most in sorted(value.items()))
    return number(value)


def _threshold(facts: Facts, rule: str) -> str:
    """The values that a rule's figure was held against, as the verdicts say."""
    values = facts.scored.filter(pc.equal(facts.scored["rule"], rule))["threshold"]
    distinct = sorted(v for v in values.unique().to_pylist() if v is not None)
    if not distinct:
        return "–"
    return number(distinct[0]) if len(distinct) == 1 else f"{number(distinct[0])} to {number(distinct[-1])}"


def _band(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def _median(values: pa.ChunkedArray) -> float | None:
    plain = floats(values)
    return float(np.median(plain)) if plain.size else None


def _share_at_least(values: pa.ChunkedArray, least: int) -> str:
    return percent(float(np.mean(floats(values) >= least))) if len(values) else "–"
