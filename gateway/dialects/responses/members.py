"""Objects as their members, each value as it is written: it may be nested more deeply than orjson writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import orjson

_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
# What `members` raises for bytes that are no object.
NOT_READABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def members(data: bytes) -> dict[str, bytes]:
    """Returns the members of an object, their values as they are written. Raises: those of `NOT_READABLE`."""
    return {key: bytes(value) for key, value in _decoder.decode(data).items()}


def written(fields: Mapping[str, bytes]) -> bytes:
    """Returns an object of these members with encoded values."""
    return b"{%b}" % b",".join(orjson.dumps(key) + b":" + value for key, value in fields.items())
