"""Reads JSON that has to be an object, strictly. (What upstreams send is read leniently: adapters.json_escapes.)"""

from __future__ import annotations

import orjson

from adapters.types import Json


def parse_object(data: bytes | str) -> Json | None:
    """Returns the object that JSON is; None: it is another value, or no JSON."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
