"""Searches of messages in the agents API: their bodies, and the JSON of their hits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

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


# Message type -> the field with the text.
TEXT_FIELDS = {
    "user_message": "content",
    "assistant_message": "content",
    "system_message": "content",
    "reasoning_message": "reasoning",
}


class Hit(NamedTuple):
    """A message that a search has found, of a type in `TEXT_FIELDS`."""

    # The JSON of the message in lists.
    message: Mapping[str, Any]
    # The rank of the stored message, from 0. One stored message may be shown as several hits.
    rank: int
    agent_id: str
    conversation_id: str

    def render(self) -> dict[str, Any]:
        """Returns the JSON of a hit."""
        message_type = self.message["message_type"]
        field = TEXT_FIELDS[message_type]
        return {
            "message_id": self.message["id"],
            "message_type": message_type,
            field: self.message[field],
            "created_at": self.message["date"],
            "agent_id": self.agent_id,
            "conversation_id": self.conversation_id,
        }

    def render_as_older(self) -> dict[str, Any]:
        """Returns the JSON of a hit in a search of Letta 0.16."""
        return {
            "embedded_text": self.message[TEXT_FIELDS[self.message["message_type"]]],
            "message": self.message,
            "fts_rank": None,
            "vector_rank": None,
            "rrf_score": 1 / (1 + self.rank),
        }
