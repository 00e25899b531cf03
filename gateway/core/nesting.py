"""How deep JSON may be nested that is kept or counted here, which means that it is written again."""

from __future__ import annotations

from typing import Any, Final

import orjson

# orjson reads 1,024 levels and writes 254. The rest is for the JSON of ours within which it is written.
MOST_LEVELS: Final = 240
_OURS: Final = 254 - MOST_LEVELS


def is_too_deep(json: Any) -> bool:
    """Returns whether JSON has more than `MOST_LEVELS` of lists and objects."""
    # To have it written costs a seventh of reading it, and less than counting its brackets.
    for _ in range(_OURS):
        json = [json]
    try:
        orjson.dumps(json)
    except orjson.JSONEncodeError:
        return True
    return False
