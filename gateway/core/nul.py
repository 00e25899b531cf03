"""Text as every database stores it: PostgreSQL has no U+0000 in a text, so it is left out of all that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from gateway.errors import BadRequest

_Value = TypeVar("_Value")
# The escape of a NUL in JSON.
NUL = b"\\u0000"


def without_nul(value: _Value) -> _Value:
    """Returns parsed JSON, or one text, without U+0000 in names and values."""
    if isinstance(value, str):
        return value.replace("\0", "")  # type: ignore[return-value]
    if isinstance(value, list):
        return [without_nul(each) for each in value]  # type: ignore[return-value]
    if isinstance(value, dict):
        return {without_nul(name): without_nul(each) for name, each in value.items()}  # type: ignore[return-value]
    return value


def check_no_nul(fields: Mapping[str, Any]) -> None:
    """Checks that no text among the fields has U+0000: PostgreSQL would find records with the text without U+0000.

    Raises: BadRequest.
    """
    for name, value in fields.items():
        if isinstance(value, str) and "\0" in value:
            raise BadRequest(f"{name} contains U+0000.", param=name)
