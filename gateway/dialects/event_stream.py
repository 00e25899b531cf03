"""Server-sent events as the dialects write them, and the comment that all of their streams may have."""

from __future__ import annotations

from typing import Final

import orjson

from adapters.types import Json

# Tells the client that its turn is not on disk yet.
NOT_DURABLE: Final = b": mnemogate not durable\n\n"


def encode_event(data: Json, name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, orjson.dumps(data))


def encode_typed_event(kind: str, fields: Json) -> bytes:
    """Returns an event that has its type as its name and among its data."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
