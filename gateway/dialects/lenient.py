"""Reads what an upstream or an importer wrote, which may be of any type: a value of another type counts as empty."""

from __future__ import annotations

from typing import Any

import orjson

from adapters.types import Json


def decode_object(data: bytes | str) -> Json:
    """Returns the object that this JSON is; {}: it is none."""
    try:
        return as_object(orjson.loads(data))
    except orjson.JSONDecodeError:
        return {}


def decode_list(data: bytes | str) -> list[Any]:
    """Returns the list that this JSON is; []: it is none."""
    try:
        return as_list(orjson.loads(data))
    except orjson.JSONDecodeError:
        return []


def as_object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""
