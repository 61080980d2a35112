"""JSON as strictly as it is defined, in memory that a hostile text can't drive up: objects are read member by member.

`json.loads` would build all of a text's values first (20 times its size and more), takes the last of two equal keys
and recurses as deeply as the text says.
"""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

from normball.checkpoint.errors import CheckpointError, printable

MEMBERS = 300_000  # of one object
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")'
_BEGIN = re.compile(_SPACE + rb"\{" + _SPACE + rb"(\}?)")
_TEXT = re.compile(_STRING, re.DOTALL)
_NAME = re.compile(_SPACE + _STRING + _SPACE + rb":" + _SPACE, re.DOTALL)
_NEXT = re.compile(_SPACE + rb"([,}])")
_END = re.compile(_SPACE + rb"\Z")


class Text:
    """A JSON text, and what to call it in messages."""

    def __init__(self, raw: bytes | bytearray, where: str) -> None:
        self.raw, self.where = raw, where

    def members(self, at: int, read: Callable[[str, int], int]) -> int:
        """Read the object at `at`: `read(name, begin)` reads a member's value and returns where it ends."""
        raw = self.raw
        found = _BEGIN.match(raw, at)
        if found is None:
            raise self.broken(at)
        names: set[str] = set()
        at = found.end()
        while found[1] != b"}":
            found = _NAME.match(raw, at)
            if found is None:
                raise self.broken(at)
            name = self._string(found)
            if name in names:
                raise CheckpointError(f"{self.where} has '{printable(name[:80])}' twice")
            if len(names) == MEMBERS:
                raise CheckpointError(f"{self.where} has more than {MEMBERS:,} names, which is as many as are read")
            names.add(name)
            at = read(name, found.end())
            found = _NEXT.match(raw, at)
            if found is None:
                raise self.broken(at)
            at = found.end()
        return at

    def string(self, at: int) -> tuple[str, int]:
        """The string at `at`, and where it ends."""
        found = _TEXT.match(self.raw, at)
        if found is None:
            raise self.broken(at)
        return self._string(found), found.end()

    def value(self, at: int, limit: int) -> tuple[Any, int]:
        """The value at `at`, of at most `limit` bytes, and where it ends; an object comes as a tuple of its pairs."""
        try:
            text = codecs.utf_8_decode(self.raw[at : at + limit], "strict", False)[0]  # its end may be half a character
            value, end = _decode(text)
        except (ValueError, RecursionError):
            raise self.broken(at, f" (or a value of more than {limit:,} bytes)") from None
        return value, at + (end if text.isascii() else len(text[:end].encode()))

    def finish(self, at: int) -> None:
        """Nothing but white space may follow."""
        if _END.match(self.raw, at) is None:
            raise self.broken(at)

    def broken(self, at: int, more: str = "") -> CheckpointError:
        """What to raise where the text is no JSON."""
        excerpt = printable(self.raw[at : at + 24].decode("utf-8", "replace"))
        return CheckpointError(f"{self.where} is not JSON at byte {at:,}{more}: {excerpt or 'it ends'}")

    def _string(self, found: re.Match[bytes]) -> str:
        try:
            text: str = _decode(found[1].decode())[0]
            if not text.isascii():
                text.encode()  # which half of a surrogate pair, escaped, can't be
        except ValueError:
            raise self.broken(found.start(1)) from None
        return text


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_decode = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_no_constant).raw_decode
