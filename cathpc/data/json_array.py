"""A JSON array of any size, element by element."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from cathpc.data.block import PIECE, too_large
from cathpc.data.formats import UNREADABLE, Reject

_SPACE = re.compile(r"[ \t\n\r]*")
_STRUCTURE = re.compile(r'["\\\[\]{}]')
_CUT = 16
"""Characters before the end of what has arrived that may lack the rest of a token, at most a pair of surrogates."""


def elements(file: io.TextIOWrapper, max_bytes: int) -> Iterator[tuple[int, int, Any]]:
    """(number, characters, element) of one JSON array, parsed as they arrive; one over `max_bytes` characters is passed
    over in pieces.

    Raises `Reject` for all that follows a place where the JSON is broken.
    """
    decoder = json.JSONDecoder()
    text, at = "", 0  # what has arrived and is not dropped yet; where to go on in it
    line, column = 1, 1  # where `text` starts in the file
    ended = False

    def arrive(least: int) -> None:
        """Drop what is parsed, take about `least` characters more."""
        nonlocal text, at, line, column, ended
        breaks = text.count("\n", 0, at)
        column = at - text.rfind("\n", 0, at) if breaks else column + at
        line += breaks
        more = file.read(least)
        ended = not more
        text, at = text[at:] + more, 0

    def peek() -> str:
        """The next character that is not white space, '' at the end."""
        nonlocal at
        while True:
            space = _SPACE.match(text, at)
            assert space is not None  # it matches the empty string too
            at = space.end()
            if at < len(text) or ended:
                return text[at : at + 1]
            arrive(PIECE)

    def broken(what: str, position: int) -> Reject:
        breaks = text.count("\n", 0, position)
        place = position - text.rfind("\n", 0, position) if breaks else column + position
        return Reject(
            UNREADABLE, f"not valid JSON: {what} at line {line + breaks}, column {place}; nothing after it is read"
        )

    def pass_over() -> Reject:
        """Go behind an element that is too large, whatever it holds."""
        nonlocal at
        start, size, depth, quoted = text[at : at + 200], 0, 0, False
        while True:
            for mark in _STRUCTURE.finditer(text, at):
                if mark.start() < at:  # the character behind a backslash
                    continue
                character = mark[0]
                if character == "\\" and quoted:
                    size, at = size + mark.end() + 1 - at, mark.end() + 1
                    continue
                if character == '"':
                    quoted = not quoted
                elif not quoted:
                    depth += (character in "[{") - (character in "]}")
                size, at = size + mark.end() - at, mark.end()
                if not quoted and depth == 0:
                    return too_large(size, max_bytes, start)
            over = max(0, at - len(text))  # the escaped character has not arrived
            size, at = size + len(text) - at + over, len(text)
            arrive(PIECE)
            if ended:
                raise broken("the array does not end", at)
            at += over

    peek()
    at += 1  # the opening bracket
    number = 0
    if peek() == "]":
        at += 1
    else:
        while True:
            peek()
            number += 1
            row: Any
            while True:
                try:
                    row, end = decoder.raw_decode(text, at)
                    if end + _CUT < len(text) or ended:  # else a number may go on
                        size = end - at
                        row = too_large(size, max_bytes, text[at : at + 200]) if size > max_bytes else row
                        at = end
                        break
                except RecursionError:
                    raise broken("nested too deeply", at) from None
                except json.JSONDecodeError as error:
                    cut = error.msg.startswith("Unterminated string") or error.pos + _CUT >= len(text)
                    if ended or not cut:
                        raise broken(error.msg, error.pos) from None
                    if len(text) - at > max_bytes + _CUT:
                        row, size = pass_over(), 0
                        break
                except ValueError as error:  # a number of thousands of digits
                    raise broken(str(error), at) from None
                arrive(max(PIECE, len(text) - at))  # doubles, so that a large row is not parsed over and over
            yield number, size, row
            mark = peek()
            at += 1
            if mark == "]":
                break
            if mark != ",":
                raise broken("expected ',' or ']' after an element" if mark else "the array does not end", at - 1)
    if peek():
        raise broken("text after the end of the array", at)
