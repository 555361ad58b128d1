"""The cards of some records, in rounds: write, check, and write again what failed.

In: rows of records and a writer. Out: an `Outcome` a row. A record with a system prompt of its own keeps it ('given'),
or gets it shortened where it is over-long ('summarised'); where a scene would be absurd it gets the plain card
('plain'); for any other the first written card that passes its checks is taken ('verified', or 'unjudged' where the
writer itself was asked for its verdict and gave none), else by `cards.on_failure` the plain card or none ('dropped').
Texts that were written once are in `drafts`, whatever raises after them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.cards import card, facts, form, orders, paraphrase, shapes, verify
from cathpc.cards.config import CardForm, CardsConfig, Mode, OnFailure
from cathpc.cards.rules import Rule, extract
from cathpc.cards.writer import Draft, Task, TooLong, Writer
from cathpc.record import Message, unit_hash

if TYPE_CHECKING:
    from cathpc.cards.cache import Drafts
    from cathpc.cards.opinion import Opinion
    from cathpc.serving.config import ServingConfig

CHARS_PER_TOKEN = 4
FACT_WORDS = 20
"""A question and an answer that are both shorter, where nobody speaks of themselves, need no scene."""
LEAST_WORDS = 12
"""A system prompt is not shortened to fewer."""

Row = dict[str, Any]


@dataclass
class Outcome:
    """What becomes of one record."""

    verdict: str
    card: card.Card
    text: str = ""
    """The card as a system message."""
    checks: dict[str, str] = field(default_factory=dict)
    """Of the last card that was written for it: check -> '' or what was seen."""
    attempts: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    """What its written texts cost."""
    refused: list[str] = field(default_factory=list)
    """The check that refused each written text."""
    answer: str = ""
    """What is said in the place of the record's answer; '' keeps it."""


@dataclass
class Rounds:
    """What all rounds over the records of a shard share."""

    cards: CardsConfig
    layout: card.Layout
    writer: Writer
    drafts: Drafts
    opinion: Opinion | None = None
    progress: Callable[[int], None] = lambda done: None

    def outcomes(self, rows: Sequence[Row]) -> list[Outcome]:
        """One outcome for each of `rows`, in order."""
        cards = self.cards
        found = {row["id"]: unwritten(row, rules_of(row, cards.max_rules), self.layout) for row in rows}
        pending = {row["id"]: row for row in rows if self._mode(row, found[row["id"]]) is not None}
        done = len(rows) - len(pending)
        for attempt in range(cards.attempts):
            tasks = self._tasks(pending, found, attempt)
            written = self._write(list(tasks.values()), done if attempt == 0 else None)
            passed = {key for key, task in tasks.items() if self._take(task, written[key], pending[key], found[key])}
            passed -= self._condemned(
                [key for key in sorted(passed) if found[key].verdict == "verified"], pending, found
            )
            pending = {key: row for key, row in pending.items() if key in tasks and key not in passed}
            if not pending:
                break
        for row in rows:
            outcome = found[row["id"]]
            if cards.on_failure is OnFailure.drop and outcome.verdict == "plain" and outcome.refused:
                outcome.verdict = "dropped"
        self._paraphrase(rows, found)
        return [found[row["id"]] for row in rows]

    def _mode(self, row: Row, outcome: Outcome) -> Mode | None:
        """What is written for a row; None leaves it as it is."""
        if outcome.verdict == "given":
            over = self.cards.summarise_over_tokens
            return Mode.summarise if over and len(outcome.card.persona) > over * CHARS_PER_TOKEN else None
        if why := absurd(row["messages"], row["component"]):
            outcome.checks = {"scene_absurd": why}
            return None
        return Mode.write

    def _tasks(self, pending: dict[str, Row], found: dict[str, Outcome], attempt: int) -> dict[str, Task]:
        tasks = {}
        for key, row in pending.items():
            mode = Mode.summarise if found[key].verdict == "given" else Mode.write
            try:
                tasks[key] = self.writer.task(key, row["messages"], row["component"], attempt, mode)
            except TooLong as error:
                found[key].checks = {"context": str(error)}
                found[key].refused.append("context")
        return tasks

    def _write(self, tasks: list[Task], done: int | None = None) -> dict[str, Draft]:
        """A draft for each task, by record; what is in the cache is not written again."""
        missing = [t for t in tasks if t.key not in self.drafts]
        written = (done or 0) + len(tasks) - len(missing)
        for batch in self.writer.write(missing):
            self.drafts.add(batch)
            written += len(batch)
            if done is not None:
                self.progress(written)
        return {t.id: self.drafts[t.key] for t in tasks}

    def _take(self, task: Task, draft: Draft, row: Row, outcome: Outcome) -> bool:
        """Read and check what was written for a row; whether it was taken."""
        outcome.attempts = task.attempt + 1
        _pay(outcome, draft)
        if task.mode is Mode.summarise:
            short = " ".join(draft.text.split())
            outcome.checks = summary_checks(outcome.card.persona, short)
            if verify.clean(outcome.checks):
                outcome.verdict = "summarised"
                outcome.card = card.Card(persona=short, rules=outcome.card.rules)
                outcome.text = self.layout.render(outcome.card)
                return True
        else:
            made, outcome.checks = self.judged(draft.text, row, outcome.card.rules, task.name)
            if made and verify.clean(outcome.checks):
                outcome.verdict, outcome.card, outcome.text = "verified", made, self.layout.render(made)
                return True
        outcome.refused += [name for name, seen in outcome.checks.items() if seen]
        return False

    def judged(self, text: str, row: Row, rules: list[Rule], name: str = "") -> tuple[card.Card | None, dict[str, str]]:
        """The card that a draft's text holds, None where it holds none, and the outcome of the checks."""
        return judged(text, row, rules, self.layout, self.cards.form, name=name, opinion=self.opinion)

    def _condemned(self, keys: list[str], rows: dict[str, Row], found: dict[str, Outcome]) -> set[str]:
        """Those of `keys` whose card the writer itself finds to contradict the answer; they are plain again. The card
        of which it does not say so, yes or no, is 'unjudged'."""
        if not self.cards.own_verdict:
            return set()
        written = self._write(self._quiet(keys, rows, found, Mode.judge))
        guilty = set()
        for key in keys:
            outcome, said = found[key], ""
            if draft := written.get(key):
                _pay(outcome, draft)
                said = draft.text
            verdict = yes_or_no(said)
            if verdict is None:
                outcome.verdict = "unjudged"
                outcome.checks["own_verdict"] = f"no verdict: {said.strip()[:60]!r}" if draft else "too long to ask"
                continue
            outcome.checks["own_verdict"] = "the writer finds a contradiction" if verdict else ""
            if verdict:
                plain = unwritten(rows[key], outcome.card.rules, self.layout)
                outcome.verdict, outcome.card, outcome.text = plain.verdict, plain.card, plain.text
                outcome.refused.append("own_verdict")
                guilty.add(key)
        return guilty

    def _paraphrase(self, rows: Sequence[Row], found: dict[str, Outcome]) -> None:
        """Say a share of the answers again, each in the voice of its card."""
        share, asked = self.cards.paraphrase_share, {}
        for row in rows:
            chosen = unit_hash(f"paraphrase/{row['id']}", self.cards.seed) < share
            if chosen and found[row["id"]].verdict == "verified" and not paraphrase.fixed(row):
                asked[row["id"]] = row
        for key, draft in self._write(self._quiet(sorted(asked), asked, found, Mode.paraphrase)).items():
            outcome, row = found[key], asked[key]
            _pay(outcome, draft)
            old, new = _answers(row["messages"])[0], draft.text.strip()
            checks = paraphrase.checks(old, new, outcome.card.rules)
            if verify.clean(checks) and self.opinion:
                near = self.opinion.similarity(old, new)
                checks["meaning"] = "" if near >= self.cards.paraphrase_similarity else f"similarity {near:.2f}"
            if verify.clean(checks):
                outcome.answer = new
            else:
                outcome.refused += [f"paraphrase_{name}" for name, seen in checks.items() if seen]

    def _quiet(self, keys: list[str], rows: dict[str, Row], found: dict[str, Outcome], mode: Mode) -> list[Task]:
        """Tasks with the card as the system message; none for records that are too long for them."""
        tasks = []
        for key in keys:
            talk = [m for m in rows[key]["messages"] if m["role"] != "system"]
            carded: list[Message] = [{"role": "system", "content": found[key].text}, *talk]
            try:
                tasks.append(self.writer.task(key, carded, rows[key]["component"], found[key].attempts - 1, mode))
            except TooLong:
                found[key].refused.append(f"{mode.value}_context")
        return tasks


def judged(
    text: str,
    row: Row,
    rules: list[Rule],
    layout: card.Layout,
    kind: CardForm,
    *,
    name: str = "",
    opinion: Opinion | None = None,
) -> tuple[card.Card | None, dict[str, str]]:
    """The card that a written text holds, None where it holds none, and the outcome of the checks in their order."""
    try:
        made = form.read(text, kind, rules, name)
    except form.Malformed as error:
        return None, {"schema": str(error)}
    if kind is CardForm.labels:
        facts.mark(made, row["messages"])
        if row["component"] == "health" and (told := facts.situation(row["messages"])):
            made.people.append(card.Person(card.USER, told))
    written = verify.Written(made, layout.render(made), row["messages"], row["component"], kind)
    checks = verify.verify(written)
    if opinion and verify.passed(checks):
        whole = "\n".join(m["content"] for m in row["messages"])
        checks |= opinion.of(written.text, written.answers, whole)
    return made, checks


def unwritten(row: Row, rules: list[Rule], layout: card.Layout, **noted: Any) -> Outcome:
    """The outcome without a written card: on the record's own system prompt where it has one, else plain."""
    system = "\n".join(m["content"] for m in row["messages"] if m["role"] == "system").strip()
    made = card.Card(persona=system, rules=rules) if system else card.plain(row["component"], rules)
    return Outcome("given" if system else "plain", made, layout.render(made), **noted)


def rules_of(row: Row, limit: int) -> list[Rule]:
    """The style rules that a row's answers obey."""
    return extract(_answers(row["messages"]), limit)


def absurd(messages: list[Message], component: str) -> str:
    """Why a scene would be out of place: code, data, or a short question of fact; '' where it would not."""
    answers, asked = _answers(messages), messages[0]["content"]
    if any(shapes.code_blocks(a) or shapes.json_value(a) is not None for a in answers):
        return "code or data"
    if (
        component in ("health", "roleplay")
        or len(messages) > 2
        or re.search(r"\b(?:I|my|we|our)\b", asked, re.IGNORECASE)
    ):
        return ""
    if all(len(shapes.words(m["content"])) < FACT_WORDS for m in messages):
        return "a short question of fact"
    return ""


def summary_checks(whole: str, short: str) -> dict[str, str]:
    """Checks of a shortened system prompt: shorter, of the same language, nothing added, no name that was not there."""
    messages: list[Message] = [{"role": "system", "content": whole}]
    as_card = card.Card(people=[card.Person("", short)])
    words, numbers = shapes.words(short), set(re.findall(r"\d+", short)) - set(re.findall(r"\d+", whole))
    injected = orders.INJECTION.search(short) or orders.CONTROL.search(short)
    unknown = facts.unknown(as_card, messages)
    return {
        "length": "" if LEAST_WORDS <= len(words) < len(shapes.words(whole)) * 0.7 else f"{len(words)} words",
        "language": "" if shapes.language(short) == shapes.language(whole) else shapes.language(short),
        "names": unknown or f"numbers that are not in the original: {', '.join(sorted(numbers))}" * bool(numbers),
        "injection": repr(injected[0]) if injected and injected[0] not in whole else "",
        "grounded": "" if facts.grounded(short, [{"role": "user", "content": whole}]) else "says other things",
    }


def yes_or_no(said: str) -> bool | None:
    """What a model says that was asked for yes or no: the first of the two words, in any case and markup; None where
    it says neither. Words that repeat the question ('yes or no') are none."""
    words = re.findall(r"[^\W_]+", re.sub(r"\byes or no\b", " ", said.casefold()))
    return next((word == "yes" for word in words if word in ("yes", "no")), None)


def _answers(messages: list[Message]) -> list[str]:
    return [m["content"] for m in messages if m["role"] == "assistant"]


def _pay(outcome: Outcome, draft: Draft) -> None:
    outcome.tokens += draft.tokens
    outcome.prompt_tokens += draft.prompt_tokens
    outcome.seconds += draft.seconds


def carder(
    cards: CardsConfig,
    cache: Path,
    out: Path,
    shard: int,
    before: int,
    total: int,
    serving: ServingConfig,
    writer: Writer | None = None,
    opinion: Opinion | None = None,
) -> Callable[[Sequence[Row]], list[Outcome]]:
    """What finds the outcomes of records of one shard and tells the progress; with a writer of its own where none is
    given."""
    from cathpc.progress import counter

    layout = layout_of(cards)
    progress = counter(out, before, total, "cards")
    if not cards.writes:

        def plain(rows: Sequence[Row]) -> list[Outcome]:
            progress(len(rows))
            return [unwritten(row, rules_of(row, cards.max_rules), layout) for row in rows]

        return plain

    from cathpc.cards.cache import Drafts

    drafts = Drafts(out / "cache" / f"drafts-{shard:05d}.jsonl")
    if writer is None:
        writer, opinion = ready(cards, cache, serving)
    return Rounds(cards, layout, writer, drafts, opinion, progress).outcomes


def ready(cards: CardsConfig, cache: Path, serving: ServingConfig) -> tuple[Writer, Opinion | None]:
    """The writer and the models that judge, loaded: what fails there is no record's fault."""
    from cathpc.cards.writer import make

    writer, opinion = make(cards, cache, serving), None
    writer.load()
    if cards.embedder or cards.nli:
        from cathpc.cards.opinion import Opinion

        opinion = Opinion(cards, cache)
    return writer, opinion


def layout_of(cards: CardsConfig) -> card.Layout:
    """The template that the config names."""
    return card.Layout(Path(cards.layout) if cards.layout else card.TEMPLATE)
