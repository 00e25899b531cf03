"""Texts as every database keeps them, for the few that one refuses.

PostgreSQL has no U+0000 in a text, and neither database has half a surrogate pair. Both stand in JSON that people and
models send. What is stored as bytes, messages above all, retains them.
"""

from __future__ import annotations

from collections.abc import Sequence


def mended(values: Sequence[object]) -> list[object]:
    """Returns a statement's values with texts that can be stored: without U+0000, with U+FFFD for half a pair."""
    return [_mended(value) for value in values]


def _mended(value: object) -> object:
    if isinstance(value, str):
        whole = value.replace("\0", "")
        return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return mended(value)
    return value
