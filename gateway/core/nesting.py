"""How deep JSON may be nested that is kept or counted here, which means that it is written again."""

from __future__ import annotations

from typing import Any, Final

import orjson

# Chosen: far above any message or schema, and what is read is written again within JSON of ours.
MOST_LEVELS: Final = 128
_WRITTEN_LEVELS: Final = 254  # by orjson, which reads 1,024


def is_too_deep(data: bytes, json: Any) -> bool:
    """Returns whether JSON has more than `MOST_LEVELS` of lists and objects. json: of what is parsed, what matters."""
    if data.count(b"[") + data.count(b"{") <= MOST_LEVELS:
        return False
    # To have it written is a quarter of the work of looking at all that is in it.
    for _ in range(_WRITTEN_LEVELS - MOST_LEVELS):
        json = [json]
    try:
        orjson.dumps(json)
    except orjson.JSONEncodeError:
        return True
    return False
