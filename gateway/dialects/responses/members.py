"""JSON objects as members with encoded values: a value may be nested more deeply than orjson writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import orjson

from adapters.json_escapes import without_lone_surrogates
from gateway.core.json_object import read_members

# The exceptions of the functions below for bytes that are no object.
NOT_READABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_members(data: bytes) -> dict[str, bytes]:
    """Returns the members of an object, each value as it is written. Raises: `NOT_READABLE`."""
    return {key: bytes(value) for key, value in read_members(data).items()}


def decode_upstream_members(data: bytes) -> dict[str, bytes]:
    """Returns the members of an upstream's object, with U+FFFD in place of halves of characters.

    Raises: `NOT_READABLE`.
    """
    try:
        return decode_members(data)
    except msgspec.DecodeError:
        return decode_members(without_lone_surrogates(data))


def encode_members(fields: Mapping[str, bytes]) -> bytes:
    """Returns the object with these members. fields: each value as it is written."""
    return b"{%b}" % b",".join(orjson.dumps(key) + b":" + value for key, value in fields.items())
