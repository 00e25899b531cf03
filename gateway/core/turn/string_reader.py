"""Reads the strings of a JSON object while its text comes in: the arguments of a call that a model still writes."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from adapters.json_escapes import REPLACEMENT, join_halves

# Characters of a string before its next escape or its end.
_PLAIN = re.compile(r'[^"\\]+')
# Characters outside of strings that do not change the structure: white space, numbers, `true`.
_NO_STRUCTURE = re.compile(r'[^"{}\[\]:,]+')
# The digits of an escape such as \u00e9.
_HEX_DIGITS = re.compile(r"[0-9A-Fa-f]{4}")
# The characters by the letter of their escape.
_ESCAPED_CHARACTERS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class StringPiece(NamedTuple):
    """The next piece of one of the strings that are read."""

    # The key of the string in its object.
    name: str
    # The text of the piece, without escapes.
    text: str


class StringReader:
    """Reads named strings at the top level of a JSON object that comes in pieces. Broken JSON raises no error."""

    def __init__(self, names: Collection[str]) -> None:
        """Waits for the beginning of the JSON. names: the keys of the strings that are read."""
        self._names = frozenset(names)
        # The number of open objects and lists.
        self._depth = 0
        # The outermost value is an object.
        self._is_object = False
        # The next string of that object is a key.
        self._expects_key = False
        # The pieces of the key that is read.
        self._key_pieces: list[str] = []
        # The key of the current value.
        self._key = ""
        # True: the JSON so far ends within a string.
        self._in_string = False
        # The beginning of an escape, with its backslash.
        self._escape = ""
        # The pieces that the text of this `feed` adds. A first half of a character at their end waits for the second.
        self._pieces: list[StringPiece] = []

    def feed(self, text: str) -> list[StringPiece]:
        """Returns the pieces that the text adds to the strings, in order; neighbouring pieces of one string are joined.

        text: the next piece of the object.
        """
        offset = 0
        while offset < len(text):
            if self._in_string:
                offset = self._read_string(text, offset)
            elif match := _NO_STRUCTURE.match(text, offset):
                offset = match.end()
            else:
                self._read_structure(text[offset])
                offset += 1
        pieces, self._pieces = self._pieces, []
        if self._in_string and pieces and "\ud800" <= pieces[-1].text[-1] < "\udc00":
            name, last_text = pieces.pop()
            pieces.append(StringPiece(name, last_text[:-1]))
            self._pieces.append(StringPiece(name, last_text[-1]))
        groups = groupby(pieces, attrgetter("name"))
        joined_texts = ((name, "".join(piece.text for piece in group)) for name, group in groups)
        return [StringPiece(name, join_halves(text)) for name, text in joined_texts if text]

    def _read_structure(self, char: str) -> None:
        """Reads a character outside of strings."""
        if char == '"':
            self._in_string = True
            if self._is_at_key:
                self._key_pieces = []
        elif char in "{[":
            self._depth += 1
            if self._depth == 1:
                self._is_object = self._expects_key = char == "{"
        elif char in "}]":
            self._depth -= 1
        elif self._depth == 1:
            self._expects_key = char == ","

    @property
    def _is_at_key(self) -> bool:
        return self._depth == 1 and self._is_object and self._expects_key

    def _read_string(self, text: str, offset: int) -> int:
        """Reads on in a string, or its end. Returns the offset of the first character that was not read."""
        if self._escape:
            self._escape += text[offset]
            self._end_escape()
            return offset + 1
        if match := _PLAIN.match(text, offset):
            self._append(match.group())
            return match.end()
        if text[offset] == "\\":
            self._escape = "\\"
        else:
            self._in_string = False
            if self._is_at_key:
                self._key = join_halves("".join(self._key_pieces))
        return offset + 1

    def _end_escape(self) -> None:
        """Adds the character of an escape, when the escape is complete."""
        letter = self._escape[1]
        if letter != "u":
            self._append(_ESCAPED_CHARACTERS.get(letter, letter))
        elif len(self._escape) < 6:
            return
        else:
            digits = self._escape[2:]
            self._append(chr(int(digits, 16)) if _HEX_DIGITS.fullmatch(digits) else REPLACEMENT)
        self._escape = ""

    def _append(self, text: str) -> None:
        """Appends text to the key that is read, or to the piece of a named string; text of other strings is dropped."""
        if self._is_at_key:
            self._key_pieces.append(text)
        elif self._depth == 1 and self._is_object and self._key in self._names:
            self._pieces.append(StringPiece(self._key, text))
