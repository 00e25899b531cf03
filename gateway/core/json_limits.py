"""Bounds of JSON: the most values that are read, and the deepest nesting of JSON that is written again."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.errors import BodyTooLarge

# orjson reads 1,024 levels and writes 254. Of these, the reserved ones are for the gateway's JSON around a value.
MAX_LEVELS: Final = 240
_RESERVED_LEVELS: Final = 254 - MAX_LEVELS
# The most values in a body: lists, objects and their items. A batch of 10,000 requests has fewer. A value may take 70
# bytes of memory where its JSON takes three, and time of the loop that serves all requests.
MAX_VALUES: Final = 1_000_000
# The signs before a value: each list, object or item has one of them.
_SIGNS: Final = (b",", b"[", b"{")


def is_too_deep(json: Any) -> bool:
    """Returns whether JSON has more than `MAX_LEVELS` of lists and objects."""
    # Writing costs a seventh of reading, and less than counting brackets.
    return not can_be_written(json) and _has_levels(json, MAX_LEVELS + 1)


def can_be_written(json: Any) -> bool:
    """Returns whether orjson writes JSON: whole characters, integers of 64 bits, and at most `MAX_LEVELS` of levels."""
    for _ in range(_RESERVED_LEVELS):
        json = [json]
    try:
        orjson.dumps(json)
    except orjson.JSONEncodeError:
        return False
    return True


def check_values(*texts: bytes) -> None:
    """Refuses JSON of very many values in all before it is read. Raises: BodyTooLarge."""
    # Three upper bounds of the number of values. Each is closer than the bound before, and takes longer.
    for bound in (len, _count_signs, _count_values):
        if sum(map(bound, texts)) <= MAX_VALUES:
            return
    raise BodyTooLarge(f"The JSON has more than {MAX_VALUES:,} lists, objects and values in them.")


def _has_levels(json: Any, count: int) -> bool:
    """Returns whether a value has lists and objects within one another, `count` levels deep or more."""
    level_values = [json]
    for _ in range(count):
        lists = [
            each.values() if isinstance(each, dict) else each
            for each in level_values
            if isinstance(each, dict | list)
        ]
        if not lists:
            return False
        level_values = [each for values in lists for each in values]
    return True


def _count_signs(text: bytes) -> int:
    # `bytes.count` looks at each byte, while `bytes.replace` jumps from sign to sign: a text of 8 MB takes it 4 ms
    # instead of 30. The bound ends the search in a text of nothing but signs.
    return sum(len(text) - len(text.replace(sign, b"", MAX_VALUES + 1)) for sign in _SIGNS)


def _count_values(text: bytes) -> int:
    """Returns an upper bound of the values in JSON: the signs before values, without those within texts."""
    # Signs within texts do not count. At least every second text is a value; the others may be names.
    plain_text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain_text.count(b'"') > 4 * MAX_VALUES:
        return MAX_VALUES + 1
    return _count_signs(b"".join(plain_text.split(b'"')[::2]))
