"""Makes texts that any database stores.

PostgreSQL takes no U+0000 in a text, and neither database takes half a surrogate pair. People and models send both, in
JSON. Content that is stored as bytes, messages above all, retains them.
"""

from __future__ import annotations

from collections.abc import Sequence


def replace_unstorable(values: Sequence[object]) -> list[object]:
    """Returns a statement's values with texts that any database stores: without U+0000, U+FFFD for half a pair."""
    return [_replace_unstorable(value) for value in values]


def _replace_unstorable(value: object) -> object:
    if isinstance(value, str):
        text = value.replace("\0", "")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return replace_unstorable(value)
    return value
