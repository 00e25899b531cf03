"""What a provider gives with a reply for itself to read later: signed thoughts, blocks OpenAI has no form for.

A client may send it back; most drop it. It is put back from our own copy where the reply came back word for word and
the same upstream and model are asked: nobody else can read it, and a strict upstream refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["has_opaque", "refilled", "without_opaque"]

FIELDS = ("thinking_blocks", "provider_blocks")  # as adapters/claude writes them
_THOUGHTS = frozenset((*FIELDS, "reasoning_content"))


def has_opaque(message: Mapping[str, Any]) -> bool:
    return any(message.get(field) for field in FIELDS)


def refilled(message: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The client's message with what it dropped of ours; None where it dropped nothing."""
    missing = {field: said[field] for field in FIELDS if said.get(field) and field not in message}
    return {**message, **missing} if missing else None


def without_opaque(message: dict[str, Any]) -> dict[str, Any]:
    """Of a message of ours what another model is shown: no thoughts, not even readable ones (OpenAI refuses them)."""
    return {key: value for key, value in message.items() if key not in _THOUGHTS}
