"""Searches of messages in the agents API: their bodies, and the JSON of their hits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.wire.struct_fields import NO_TEMPLATES, Body, Maybe, refused

_PROJECT = refused("A key opens one project, and a search is of that.")


class SearchMessages(Body):
    """A search of messages, by words, by meaning, or both: of one agent, of one conversation, or of all agents."""

    query: Annotated[str, Meta(min_length=1)]
    agent_id: Maybe[str] = UNSET
    conversation_id: Maybe[str] = UNSET
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    search_mode: Literal["vector", "fts", "hybrid"] = "hybrid"
    roles: Maybe[list[Literal["user", "assistant"]]] = UNSET
    start_date: Maybe[str] = UNSET
    end_date: Maybe[str] = UNSET


class SearchAgents(SearchMessages):
    """A `SearchMessages` with the fields that older programs send."""

    project_id: Annotated[str | None, _PROJECT] | UnsetType = UNSET
    template_id: Annotated[str | None, NO_TEMPLATES] | UnsetType = UNSET


# Message type -> the field that a search shows of it.
_TEXT_FIELDS = {
    "user_message": "content",
    "assistant_message": "content",
    "system_message": "content",
    "reasoning_message": "reasoning",
}


def search_hit_json(message: Mapping[str, Any], agent_id: str, conversation_id: str) -> dict[str, Any] | None:
    """Returns the JSON of a hit; None if the message has no text. message: its JSON in lists."""
    message_type = message["message_type"]
    field = _TEXT_FIELDS.get(message_type)
    if field is None:
        return None
    return {
        "message_id": message["id"],
        "message_type": message_type,
        field: message[field],
        "created_at": message["date"],
        "agent_id": agent_id,
        "conversation_id": conversation_id,
    }


def older_search_hit_json(message: Mapping[str, Any], rank: int) -> dict[str, Any] | None:
    """Returns the JSON of a hit in an older search; None if the message has no text. rank: from 0."""
    field = _TEXT_FIELDS.get(message["message_type"])
    if field is None:
        return None
    return {
        "embedded_text": message[field],
        "message": dict(message),
        "fts_rank": None,
        "vector_rank": None,
        "rrf_score": 1 / (1 + rank),
    }
