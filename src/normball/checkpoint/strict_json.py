"""JSON as strictly as it is defined, in memory that a hostile text can't drive up: objects are read member by member.

`json.loads` would build all of a text's values first (20 times its size and more), takes the last of two equal keys
and recurses as deeply as the text says.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from normball.checkpoint.errors import CheckpointError, printable

_SPACE = rb"[ \t\r\n]*+"
_OPEN = re.compile(_SPACE + rb"\{" + _SPACE)
_CLOSE = re.compile(rb"\}")
_STRING = re.compile(_SPACE + rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")' + _SPACE, re.DOTALL)
_COLON = re.compile(rb":" + _SPACE)
_NEXT = re.compile(_SPACE + rb"([,}])")
_END = re.compile(_SPACE + rb"\Z")


class Text:
    """A JSON text, and what to call it in messages."""

    def __init__(self, raw: bytes, where: str) -> None:
        self.raw, self.where = raw, where

    def members(self, at: int, read: Callable[[str, int], int]) -> int:
        """Read the object at `at`: `read(name, begin)` reads a member's value and returns where it ends."""
        at = self._match(_OPEN, at).end()
        if close := _CLOSE.match(self.raw, at):
            return close.end()
        names = set()
        while True:
            name, at = self.string(at)
            if name in names:
                raise CheckpointError(f"{self.where} names '{printable(name)}' twice")
            names.add(name)
            at = read(name, self._match(_COLON, at).end())
            comma = self._match(_NEXT, at)
            at = comma.end()
            if comma[1] == b"}":
                return at

    def string(self, at: int) -> tuple[str, int]:
        """The string at `at`, and where it ends."""
        found = self._match(_STRING, at)
        try:
            text = _decoder.raw_decode(found[1].decode())[0]
            text.encode()  # which half of a surrogate pair, escaped, has no way to be
        except ValueError:
            raise self.broken(found.start(1)) from None
        return text, found.end()

    def value(self, at: int, limit: int) -> tuple[Any, int]:
        """The value at `at`, of at most `limit` bytes, and where it ends; an object comes as its pairs."""
        # Incrementally: the last character may be cut in half.
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(self.raw[at : at + limit])
            value, end = _decoder.raw_decode(text)
        except (ValueError, RecursionError):
            raise self.broken(at, f" (or a value of more than {limit:,} bytes)") from None
        return value, at + (end if text.isascii() else len(text[:end].encode()))

    def finish(self, at: int) -> None:
        """Nothing but white space may follow."""
        self._match(_END, at)

    def broken(self, at: int, more: str = "") -> CheckpointError:
        """What to raise where the text is no JSON."""
        excerpt = printable(self.raw[at : at + 24].decode("utf-8", "replace"))
        return CheckpointError(f"{self.where} is not JSON at byte {at:,}{more}: {excerpt or 'it ends'}")

    def _match(self, pattern: re.Pattern[bytes], at: int) -> re.Match[bytes]:
        found = pattern.match(self.raw, at)
        if found is None:
            raise self.broken(at)
        return found


class Pairs(list[tuple[str, Any]]):
    """An object's members, in order, repeated ones too."""


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_pairs: Callable[[Iterable[tuple[str, Any]]], Pairs] = Pairs
_decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant)
