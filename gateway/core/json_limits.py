"""How many values JSON may have that is read here, and how deep it may be nested where it is written again."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.errors import BodyTooLarge

# orjson reads 1,024 levels and writes 254. The rest is for the JSON of the gateway around it.
MAX_LEVELS: Final = 240
_LEVELS: Final = 254 - MAX_LEVELS
# The most values in a body: lists, objects and their items. A batch of 10,000 requests has fewer. A value may take 70
# bytes of memory where its JSON takes three, and time of the loop that serves all requests.
MAX_VALUES: Final = 1_000_000
_SIGNS: Final = (b",", b"[", b"{")


def is_too_deep(json: Any) -> bool:
    """Returns whether JSON has more than `MAX_LEVELS` of lists and objects."""
    # To have it written costs a seventh of reading it, and less than counting its brackets.
    for _ in range(_LEVELS):
        json = [json]
    try:
        orjson.dumps(json)
    except orjson.JSONEncodeError:
        return True
    return False


def check_values(body: bytes) -> None:
    """Refuses JSON of very many values before it is read. Raises: BodyTooLarge."""
    if len(body) > MAX_VALUES and _has_too_many(body):
        raise BodyTooLarge(f"The JSON has more than {MAX_VALUES:,} lists, objects and values in them.")


def _has_too_many(body: bytes) -> bool:
    if sum(map(body.count, _SIGNS)) <= MAX_VALUES:
        return False
    # Most of them may lie in texts. Of two texts one at least is a value; the other may be its name.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 4 * MAX_VALUES:
        return True
    outside = b"".join(plain.split(b'"')[::2])
    return sum(map(outside.count, _SIGNS)) > MAX_VALUES
