"""Reads the strings of a JSON object while its text comes in: the arguments of a call that a model still writes."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

# The characters of a string that are no escape, and those outside of strings that do not change the structure.
_PLAIN = re.compile(r'[^"\\]+')
_NO_STRUCTURE = re.compile(r'[^"{}\[\]:,]+')
_HEX_DIGITS = re.compile(r"[0-9A-Fa-f]{4}")
_ESCAPED_CHARACTERS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# Stands in for half a character.
_REPLACEMENT = "\ufffd"


class StringPiece(NamedTuple):
    """A piece of a string that is read."""

    # The key of the string in its object.
    name: str
    text: str


class StringReader:
    """Reads named strings at the top level of a JSON object that comes in pieces. Broken JSON raises no error."""

    def __init__(self, names: Collection[str]) -> None:
        """names: the keys of the strings that are read."""
        self._names = frozenset(names)
        # How many objects and lists are open.
        self._depth = 0
        # The outermost value is an object.
        self._is_object = False
        # The next string of that object is a key.
        self._wants_key = False
        # The pieces of the key that is read.
        self._key: list[str] = []
        # The key before the present value.
        self._name = ""
        self._in_string = False
        # The beginning of an escape, with its backslash.
        self._escape = ""
        # The first half of a pair of surrogates.
        self._half = ""
        # The new pieces.
        self._pieces: list[StringPiece] = []

    def feed(self, text: str) -> list[StringPiece]:
        """Returns what the text adds to the strings, in order; neighbouring pieces of one string are joined.

        text: the next piece of the object.
        """
        self._pieces = []
        offset = 0
        while offset < len(text):
            if self._in_string:
                offset = self._read_string(text, offset)
            elif match := _NO_STRUCTURE.match(text, offset):
                offset = match.end()
            else:
                self._read_structure(text[offset])
                offset += 1
        by_name = groupby(self._pieces, attrgetter("name"))
        return [StringPiece(name, "".join(piece.text for piece in pieces)) for name, pieces in by_name]

    def _read_structure(self, char: str) -> None:
        """Reads a character outside of strings."""
        if char == '"':
            self._in_string = True
            if self._is_at_key:
                self._key = []
        elif char in "{[":
            self._depth += 1
            if self._depth == 1:
                self._is_object = self._wants_key = char == "{"
        elif char in "}]":
            self._depth -= 1
        elif self._depth == 1:
            self._wants_key = char == ","

    @property
    def _is_at_key(self) -> bool:
        return self._depth == 1 and self._is_object and self._wants_key

    def _read_string(self, text: str, offset: int) -> int:
        """Reads on in a string, or its end. Returns the offset of the first character that was not read."""
        if self._escape:
            self._escape += text[offset]
            self._end_escape()
            return offset + 1
        if match := _PLAIN.match(text, offset):
            self._add(match.group())
            return match.end()
        if text[offset] == "\\":
            self._escape = "\\"
        else:
            self._end_half()
            self._in_string = False
            if self._is_at_key:
                self._name = "".join(self._key)
        return offset + 1

    def _end_escape(self) -> None:
        """Adds the character of an escape, when the escape is complete."""
        letter = self._escape[1]
        if letter != "u":
            self._add(_ESCAPED_CHARACTERS.get(letter, letter))
        elif len(self._escape) < 6:
            return
        else:
            self._add_unit(self._escape[2:])
        self._escape = ""

    def _add_unit(self, digits: str) -> None:
        """Adds a UTF-16 unit; two of them may make one character."""
        unit = int(digits, 16) if _HEX_DIGITS.fullmatch(digits) else 0xFFFD
        if 0xD800 <= unit < 0xDC00:
            self._end_half()
            self._half = chr(unit)
        elif 0xDC00 <= unit < 0xE000:
            half, self._half = self._half, ""
            pair = 0x10000 + ((ord(half) - 0xD800) << 10) + (unit - 0xDC00) if half else 0xFFFD
            self._add(chr(pair))
        else:
            self._add(chr(unit))

    def _end_half(self) -> None:
        """Replaces half a pair of surrogates that the other half does not follow."""
        if self._half:
            self._half = ""
            self._append(_REPLACEMENT)

    def _add(self, text: str) -> None:
        """Adds text to the string that is read."""
        self._end_half()
        self._append(text)

    def _append(self, text: str) -> None:
        if self._is_at_key:
            self._key.append(text)
        elif self._depth == 1 and self._is_object and self._name in self._names:
            self._pieces.append(StringPiece(self._name, text))
