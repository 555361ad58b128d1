"""Thoughts and answer of a text that a card asked to think aloud.

In: a text, whole or a piece at a time. Out: what of it is thought and what is the answer. Thoughts stand between tags
(<think>, <thinking>, <thought>, <thoughts>, <reasoning>, <scratchpad>), or behind a marker line ('Thoughts:',
'Reasoning:') at the start, until the marker of the answer ('Answer:', 'Final answer:') at the start of a line. Neither
tags nor markers are shown. A text without them is all answer; thoughts that never end are thoughts. Linear in the text.
"""

from __future__ import annotations

import re

NAMES = "think|thinking|thoughts?|reasoning|scratchpad"
OPEN = re.compile(rf"<(?P<name>{NAMES})>", re.I)
MARKER = re.compile(r"\s*[*_#]*\s*(?:thoughts?|thinking|reasoning)\s*[*_]*:[*_]*[ \t]*\n?", re.I)
ANSWER = re.compile(r"\n[*_#]*[ \t]*(?:final |my )?answer[*_]*:[*_]*[ \t]*\n?", re.I)
LONGEST = 48
"""Characters in which a tag or a marker has been told from other text."""

THOUGHT, SAID = "thought", "answer"
Part = tuple[str, str]
"""(THOUGHT or SAID, text)."""


class Splitter:
    """Splits a text that comes in pieces; holds back no more than might be the start of a tag or a marker."""

    def __init__(self) -> None:
        self._held = ""
        self._kind = SAID
        self._end = OPEN
        self._begun = False

    def feed(self, piece: str, *, last: bool = False) -> list[Part]:
        """The parts that are known with `piece`; with `last` all that is left."""
        self._held += piece
        parts: list[Part] = []
        while self._held:
            if not self._begun:
                if not last and len(self._held) < LONGEST and _unsure(self._held):
                    return parts
                self._begun = True
                if found := MARKER.match(self._held):
                    self._kind, self._end = THOUGHT, ANSWER
                    self._held = self._held[found.end() :]
                    continue
            found = self._end.search(self._held)
            if found is None or (found.end() == len(self._held) and self._end is ANSWER and not last):
                keep = 0 if last else _undecided(self._held, self._end)
                self._put(parts, self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                return parts
            self._put(parts, self._held[: found.start()])
            self._held = self._held[found.end() :]
            self._turn(found)
        return parts

    def _turn(self, found: re.Match[str]) -> None:
        if self._end is OPEN:
            self._kind, self._end = THOUGHT, re.compile(rf"</{found['name']}>", re.I)
        else:
            self._kind, self._end = SAID, OPEN

    def _put(self, parts: list[Part], text: str) -> None:
        if text and parts and parts[-1][0] == self._kind:
            parts[-1] = (self._kind, parts[-1][1] + text)
        elif text:
            parts.append((self._kind, text))


def _unsure(text: str) -> bool:
    """Whether a text may yet begin with a marker."""
    return bool(re.fullmatch(r"\s*[*_#]*\s*[A-Za-z]*\s*[*_]*:?[*_]*[ \t]*", text))


def _undecided(text: str, end: re.Pattern[str]) -> int:
    """How many last characters may be the start of what `end` looks for."""
    starts = "\n" if end is ANSWER else "<"
    at = text.rfind(starts, max(0, len(text) - LONGEST))
    if at < 0 or (starts == "<" and ">" in text[at:]):
        return 0
    if starts == "\n" and not re.fullmatch(r"\n[*_# \t]*[A-Za-z ]*[*_]*:?[*_]*[ \t]*", text[at:]):
        return 0
    return len(text) - at


def split(text: str) -> tuple[str, str]:
    """(thought, answer) of a whole text, each trimmed."""
    parts = Splitter().feed(text, last=True)
    thought, answer = ("".join(t for kind, t in parts if kind == wanted).strip() for wanted in (THOUGHT, SAID))
    return thought, answer
