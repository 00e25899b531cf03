"""Reads values of upstreams, clients and imports, which may have any type: a value of another type counts as empty."""

from __future__ import annotations

from typing import Any

from adapters.json_escapes import read_json
from adapters.types import Json


def decode_object(data: bytes | str) -> Json:
    """Returns the object that JSON is; {}: the JSON is no object."""
    return as_object(_decode(data))


def decode_list(data: bytes | str) -> list[Any]:
    """Returns the list that JSON is; []: the JSON is no list."""
    return as_list(_decode(data))


def as_object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _decode(data: bytes | str) -> Any:
    if isinstance(data, str):
        data = data.encode(errors="replace")
    return read_json(data)[0]
