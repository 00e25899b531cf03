"""Reads JSON that strict parsers refuse or round: halves of characters, a byte order mark, NaN, long integers.

A program that cuts a text between two escapes leaves half a character; Python's own module writes NaN and infinity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson

# The text in place of a character that cannot be read.
REPLACEMENT: Final = "\ufffd"
# The escapes of the first and the second half of a character (UTF-16 surrogates), without their backslash.
_HIGH: Final = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
# Larger JSON is read by the fast parser alone: the lenient one would block the loop.
_MAX_LENIENT_BYTES: Final = 1024 * 1024
# An escaped backslash, both halves of a character, or one of them.
_ESCAPES: Final = re.compile(rb"\\(?:\\|%b\\%b|(?P<lone>%b|%b))" % (_HIGH, _LOW, _HIGH, _LOW))
# The beginning of an escape, or a first half that a second half may follow.
_CUT_ESCAPE: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3}|%b(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?\Z" % _HIGH)
_MAX_CUT_BYTES: Final = len(rb"\ud83d\ude0")
# The digits that any integer of 64 bits can have. orjson reads an integer beyond 64 bits as a float.
_SAFE_DIGITS: Final = 18
# Finds more digits in a row: each digit is made a zero, and zeros are searched.
_LONG_ZEROS: Final = b"0" * (_SAFE_DIGITS + 1)
_DIGITS_TO_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")


class JsonPiece(NamedTuple):
    """A piece of JSON."""

    # The piece without `cut_escape`.
    complete: bytes
    # The escape at its end that the next piece may complete; b"": there is none.
    cut_escape: bytes


def read_json(data: bytes) -> tuple[Any, bytes]:
    """Returns the value of an upstream's JSON, and the JSON in the form that strict parsers take.

    Half a character becomes U+FFFD, and NaN or infinity null. The value is None where `data` is no JSON.
    """
    try:
        return orjson.loads(data), data
    except orjson.JSONDecodeError:
        repaired = without_lone_surrogates(data)
    try:
        return orjson.loads(repaired), repaired
    except orjson.JSONDecodeError:
        strict = _make_strict(repaired)
    try:
        return orjson.loads(strict), strict
    except orjson.JSONDecodeError:
        return None, data


def read_json_with_halves(data: bytes) -> Any:
    """Returns the value of an upstream's JSON, with halves of characters as lone surrogates; None: `data` is no JSON.

    `write_json` writes such a value, and `join_halves` joins the halves in it.
    """
    value, strict = read_json(data)
    with_halves = None if strict is data else _read_with_halves(data)
    return value if with_halves is None else with_halves


def write_json(value: Any) -> bytes:
    """Returns the JSON of a value that may have lone surrogates, which become escapes of halves of characters.

    Raises: TypeError, RecursionError: the value cannot be written.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def join_halves(text: str) -> str:
    """Returns a text with each two halves of a character as that character. Any other half becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_json_exactly(data: bytes) -> Any:
    """Returns the value of a whole reply as `read_json` does, with long integers as `read_exact` returns them."""
    value, strict = read_json(data)
    return read_exact(strict, value) if value is not None and may_round(strict) else value


def read_exact(data: bytes, value: Any) -> Any:
    """Returns the value of JSON, with long integers as fragments, which orjson writes as they came.

    value: the value that orjson has read. It is returned unchanged if it is nested too deep for the slow parser.
    """
    try:
        return json.loads(data, parse_int=_parse_integer)
    except RecursionError:
        return value


def may_round(data: bytes) -> bool:
    """Returns False for JSON without an integer beyond 64 bits, which orjson would round; in doubt True."""
    return _LONG_ZEROS in data.translate(_DIGITS_TO_ZEROS)


def _read_with_halves(data: bytes, parse_int: Callable[[str], Any] = int) -> Any:
    """Returns the value of JSON, with halves of characters as lone surrogates; None: no JSON, or too long.

    parse_int: the function that makes the values of integers from their digits.
    """
    if len(data) > _MAX_LENIENT_BYTES:
        return None
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), strict=False, parse_int=parse_int)
    except (ValueError, RecursionError):
        return None


def without_lone_surrogates(data: bytes) -> bytes:
    """Returns a whole JSON text with U+FFFD in place of each escape of half a character."""
    return b"".join(replace_lone_surrogates(data))


def replace_lone_surrogates(data: bytes) -> JsonPiece:
    """Replaces each escape of half a character by the escape of U+FFFD.

    data: a piece of JSON, which does not begin within an escape.
    """
    end = _measure_complete(data)
    complete, cut_escape = data[:end], data[end:]
    if b"\\ud" in complete or b"\\uD" in complete:
        complete = _ESCAPES.sub(lambda match: match[0] if match["lone"] is None else rb"\ufffd", complete)
    return JsonPiece(complete, cut_escape)


def _parse_integer(digits: str) -> Any:
    return orjson.Fragment(digits) if len(digits) > _SAFE_DIGITS else int(digits)


def _make_strict(data: bytes) -> bytes:
    """Returns JSON, without halves of characters, as strict parsers take it; b"": `data` is no JSON, or too long."""
    value = _read_with_halves(data, _parse_integer)  # orjson writes no integer beyond 64 bits
    if value is None:
        return b""
    try:
        return orjson.dumps(value)
    except (TypeError, RecursionError):  # a part of the value cannot be written
        return b""


def _measure_complete(data: bytes) -> int:
    """Returns the number of bytes of a piece that come before an escape which the next piece may complete."""
    start = max(0, len(data) - _MAX_CUT_BYTES)
    while cut := _CUT_ESCAPE.search(data, start):
        before = data[: cut.start()]
        is_escaped = (len(before) - len(before.rstrip(b"\\"))) % 2
        if not is_escaped:
            return cut.start()
        start = cut.start() + 1
    return len(data)
