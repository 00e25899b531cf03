"""Merges the pieces of one JSON value, as the chunks of a stream bring them."""

from __future__ import annotations

import marshal
from typing import Any

from adapters.types import Json

# String fields of which a later piece replaces the earlier one. All other strings are continued.
REPLACED_FIELDS = frozenset(
    {"role", "type", "id", "name", "format", "object", "model", "index", "mime_type", "expires_at"}
)
# A later piece may continue this many of the last items of a list. Not measured; 16 to 1,000 behave alike.
_NEAR_ITEMS = 64


def merge_field(into: Json, key: str, value: Any) -> None:
    """Sets a field, or continues the value that earlier pieces gave it."""
    old = into.get(key)
    if old is None:
        # Copied, since the value is going to grow, and the chunk that brought it may still be sent.
        into[key] = copy_json(value)
    elif isinstance(old, str) and isinstance(value, str):
        if key in REPLACED_FIELDS:
            into[key] = value
        else:
            # Without another reference Python extends the text where it lies; else each piece would copy all before it.
            into[key] = None
            old += value
            into[key] = old
    elif isinstance(old, dict) and isinstance(value, dict):
        for inner, piece in value.items():
            merge_field(old, inner, piece)
    elif isinstance(old, list) and isinstance(value, list):
        _merge_list(old, value)
    elif value is not None:
        into[key] = copy_json(value)


def copy_json(value: Any) -> Any:
    """Copies JSON. Not by recursion, because orjson reads 1,024 levels, more than Python's own calls may nest."""
    return marshal.loads(marshal.dumps(value)) if isinstance(value, dict | list) else value


def _merge_list(old_items: list[Any], new_items: list[Any]) -> None:
    """Merges each new item into the item that it continues (reasoning details come in pieces), or appends it."""
    for item in new_items:
        begun_item = _find_begun(old_items, item)
        if begun_item is None:
            old_items.append(copy_json(item))
        else:
            for key, value in item.items():
                merge_field(begun_item, key, value)


def _find_begun(old_items: list[Any], item: Any) -> Json | None:
    """Returns the old item that `item` continues, by its `index` and `type`, or None."""
    if not isinstance(item, dict) or not isinstance(item.get("index"), int):
        return None
    for old_item in old_items[-_NEAR_ITEMS:]:
        if (
            isinstance(old_item, dict)
            and old_item.get("index") == item["index"]
            and item.get("type", old_item.get("type")) == old_item.get("type")
        ):
            return old_item
    return None
