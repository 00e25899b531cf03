"""JSON with integers of any size.

orjson reads integers beyond 64 bits as floats, and does not write them. It is used for all other values.
"""

from __future__ import annotations

import json as standard_json
import re
from typing import Any

import orjson

# Digits of a number that may take more than 64 bits.
_LONG_NUMBER = re.compile(r"[0-9]{19}")


def loads(text: str) -> Any:
    """Returns the value of a text. Raises: ValueError: it is no JSON, or has an integer of hundreds of digits."""
    value = orjson.loads(text)
    if _LONG_NUMBER.search(text) is None:
        return value
    try:
        return standard_json.loads(text)
    except RecursionError:  # nested so deeply that no tool uses it
        return value


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Returns the JSON of a value. value: a value of at most `json_limits.MAX_LEVELS` levels."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except orjson.JSONEncodeError:
        text = standard_json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys
        )
        return text.encode()
