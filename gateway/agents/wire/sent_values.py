"""Reads the fields and parameters that a request may leave out."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from gateway.agents.wire.struct_fields import Maybe, T


def find_sent(value: Maybe[T]) -> T | None:
    """Returns the value of a field or a parameter; None if it was left out, or is null."""
    return None if isinstance(value, UnsetType) else value


def get_sent_or(value: Maybe[T], default: T) -> T:
    """Returns the value of a field or a parameter, or a default if it was left out, or is null."""
    return default if isinstance(value, UnsetType) or value is None else value


def get_sent_fields(body: Struct) -> dict[str, Any]:
    """Returns the fields that were sent, by name, for callers to whom a null differs from a field that was left out."""
    return {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not UNSET}
