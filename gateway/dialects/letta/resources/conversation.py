"""Conversations of agents, as the agents API takes and shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import UNSET, UnsetType

from gateway.core import ids
from gateway.core.definition import ConversationDefinition
from gateway.dialects.letta.body import SAID_HERE, Body, Kept, Maybe, given, refused
from gateway.dialects.letta.query import PageQuery, SpokenQuery
from gateway.dialects.letta.resources.agent import (
    SETTINGS_KEPT,
    Compact,
    CompactionBody,
    WindowTokens,
    set_sampling,
)
from gateway.dialects.letta.run import StreamRun
from gateway.dialects.letta.send import Send
from gateway.dialects.letta.shown import time_of
from storage.listing import ConversationEntry


class CreateConversation(Body):
    """A new conversation. Its model, window and settings count before the agent's."""

    summary: Maybe[str] = UNSET
    description: Maybe[str] = UNSET
    hidden: Maybe[bool] = UNSET
    model: Maybe[str] = UNSET
    model_settings: Annotated[dict[str, Any] | None, SETTINGS_KEPT] | UnsetType = UNSET
    context_window_limit: Maybe[WindowTokens] = UNSET
    isolated_block_labels: (
        Annotated[
            list[str] | None,
            refused(
                "An agent's blocks are the same in all its conversations; an agent of its own has others."
            ),
        ]
        | UnsetType
    ) = UNSET


class UpdateConversation(CreateConversation):
    """A change of a conversation; what is left out stays, a null takes a field back to the agent's."""

    archived: Maybe[bool] = UNSET
    last_message_at: Annotated[str | None, SAID_HERE] | UnsetType = UNSET


class CreateConversationQuery(Body):
    agent_id: str


class ConversationsQuery(PageQuery):
    """A page of conversations, agents' own ones left out. agent_id: only that agent's."""

    order_by: Maybe[Literal["created_at", "last_run_completion", "last_message_at"]] = UNSET  # type: ignore[assignment]
    agent_id: Maybe[str] = UNSET
    archive_status: Literal["unarchived", "archived", "all"] = "unarchived"
    summary_search: Maybe[str] = UNSET

    @property
    def sorting(self) -> Literal["created", "spoken", "completed"]:
        """The name of the time by which they are ordered."""
        match self.order_by:
            case "last_message_at":
                return "spoken"
            case "last_run_completion":
                return "completed"
            case _:
                return "created"


class ConversationQuery(Body):
    """The conversation in a path. agent_id: whose `default` it is."""

    agent_id: Maybe[str] = UNSET


class RecompileConversationQuery(ConversationQuery):
    dry_run: bool = False


class RecompileConversation(Body):
    agent_id: Maybe[str] = UNSET
    compaction_settings: Kept[CompactionBody] = UNSET


class CompactConversation(Compact):
    agent_id: Maybe[str] = UNSET


class StreamConversation(StreamRun):
    """The run of a conversation that a stream follows: the one that is named, else the newest.

    agent_id: whose `default` a path names. otid: the client's id of a send.
    """

    agent_id: Maybe[str] = UNSET
    otid: Maybe[str] = UNSET
    run_id: Maybe[str] = UNSET


class ConversationMessagesQuery(SpokenQuery):
    agent_id: Maybe[str] = UNSET


class ConversationSend(Send):
    """A send to a conversation, which streams unless it says otherwise. agent_id: whose `default` it is."""

    streaming: bool = True
    agent_id: Maybe[str] = UNSET


def said_in(said: ConversationDefinition, body: CreateConversation, *, at: float) -> ConversationDefinition:
    """Returns what is said of a conversation after a request. at: now. Raises: Unprocessable."""
    sent = given(body)
    values: dict[str, Any] = {}
    for name, field in (
        ("summary", "summary"),
        ("description", "description"),
        ("model", "model"),
        ("context_window", "context_window_limit"),
    ):
        if field in sent:
            values[name] = sent[field]
    if "hidden" in sent:
        values["hidden"] = sent["hidden"] is True
    if "archived" in sent:
        was = said.archived
        values["archived"] = None if sent["archived"] is not True else was or at
    if "model_settings" in sent:
        settings = sent["model_settings"] or {}
        values["sampling"], values["kept"] = {}, {"model_settings": settings} if settings else {}
        set_sampling(values["sampling"], settings)
    return replace(said, **values)


def conversation_json(
    entry: ConversationEntry, *, name: str, message_ids: Sequence[str] | None = None
) -> dict[str, Any]:
    """Returns a conversation. name: its public id. message_ids: None: they were not asked for."""
    body = {} if entry.definition is None else entry.definition.body
    said = ConversationDefinition.of(body)
    changed = entry.begun if entry.definition is None else entry.definition.updated
    return {
        "id": name,
        "agent_id": ids.named("agent", entry.agent.uid),
        "summary": said.summary,
        "description": said.description,
        "hidden": said.hidden,
        "archived": said.archived is not None,
        "archived_at": time_of(said.archived),
        "model": said.model,
        "model_settings": said.kept.get("model_settings"),
        "context_window_limit": said.context_window,
        "in_context_message_ids": None if message_ids is None else list(message_ids),
        "isolated_block_ids": [],
        "last_message_at": time_of(entry.last_at) if entry.conversation.tip != -1 else None,
        "created_at": time_of(entry.begun),
        "updated_at": time_of(max(changed, entry.last_at)),
        "created_by_id": None,
        "last_updated_by_id": None,
    }
