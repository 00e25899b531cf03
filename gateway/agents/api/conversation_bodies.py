"""The bodies and queries of requests about conversations, and the JSON of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.agents.api._query import PageQuery, ShownMessagesQuery
from gateway.agents.api.compaction import Compact, CompactionBody
from gateway.agents.api.model_settings import SETTINGS, WindowTokens, set_sampling
from gateway.agents.registry.conversation_registry import read_conversation_definition
from gateway.agents.wire.run_json import StreamRun
from gateway.agents.wire.send import Send
from gateway.agents.wire.sent_values import find_sent, get_sent_fields
from gateway.agents.wire.shown_values import NO_AUTHORS, render_time
from gateway.agents.wire.struct_fields import READ_ONLY, Body, Maybe, NoEffect, UrlQuery, refused
from gateway.core import ids
from gateway.core.definition import ConversationDefinition
from storage.listing import ConversationEntry

_NO_OWN_BLOCKS = refused(
    "An agent's blocks are the same in all its conversations; an agent of its own has others."
)
# The names in `ConversationDefinition` of the fields with the same value in bodies, by the names in bodies.
_PLAIN_FIELDS = {
    **{name: name for name in ("summary", "description", "model")},
    "context_window_limit": "context_window",
}
# The time that a list is sorted by: the value of `order_by` -> the store's name.
_SORTINGS: Mapping[str, Literal["spoken", "completed"]] = {
    "last_message_at": "spoken",
    "last_run_completion": "completed",
}


class CreateConversation(Body):
    """A new conversation. Its model, window and settings count before the agent's."""

    summary: Maybe[str] = UNSET
    description: Maybe[str] = UNSET
    hidden: Maybe[bool] = UNSET
    model: Maybe[str] = UNSET
    model_settings: Annotated[dict[str, Any] | None, SETTINGS] | UnsetType = UNSET
    context_window_limit: Maybe[WindowTokens] = UNSET
    isolated_block_labels: Annotated[list[str] | None, _NO_OWN_BLOCKS] | UnsetType = UNSET


class UpdateConversation(CreateConversation):
    """A change of a conversation; what is left out stays, a null takes a field back to the agent's."""

    archived: Maybe[bool] = UNSET
    last_message_at: Annotated[str | None, READ_ONLY] | UnsetType = UNSET


class CreateConversationQuery(UrlQuery):
    """The agent of a new conversation."""

    agent_id: str


class ConversationsQuery(PageQuery):
    """A page of conversations. Agents' own conversations are left out."""

    order_by: Maybe[Literal["created_at", "last_run_completion", "last_message_at"]] = UNSET  # type: ignore[assignment]
    agent_id: Maybe[str] = UNSET  # left out: conversations of all agents
    archive_status: Literal["unarchived", "archived", "all"] = "unarchived"
    summary_search: Maybe[str] = UNSET

    @property
    def sorting(self) -> Literal["created", "spoken", "completed"]:
        """The name of the time by which conversations are ordered."""
        return _SORTINGS.get(find_sent(self.order_by) or "", "created")


# In the queries and bodies below `agent_id` names the agent if the conversation in the path is `default`.


class ConversationQuery(UrlQuery):
    """The conversation in a path."""

    agent_id: Maybe[str] = UNSET


class ForkConversationQuery(ConversationQuery):
    """A fork of a conversation."""

    hidden: bool = False
    message_id: Maybe[str] = UNSET  # the last message that the two conversations share


class RecompileConversationQuery(ConversationQuery):
    """A new system prompt for a conversation."""

    dry_run: bool = False


class RecompileConversation(Body):
    """The body of the same request."""

    agent_id: Maybe[str] = UNSET
    compaction_settings: NoEffect[CompactionBody] = UNSET


class CompactConversation(Compact):
    """A compaction of a conversation."""

    agent_id: Maybe[str] = UNSET


class StreamConversation(StreamRun):
    """The run of a conversation that a stream follows: the one that is named, else the newest."""

    agent_id: Maybe[str] = UNSET
    otid: Maybe[str] = UNSET  # the client's id of a send
    run_id: Maybe[str] = UNSET  # the id of a run


class ConversationMessagesQuery(ShownMessagesQuery):
    """A page of the messages of a conversation."""

    agent_id: Maybe[str] = UNSET


class ConversationSend(Send):
    """A send to a conversation, which streams by default."""

    streaming: bool = True
    agent_id: Maybe[str] = UNSET


def with_conversation_update(
    definition: ConversationDefinition, body: CreateConversation, *, at: float
) -> ConversationDefinition:
    """Returns a copy of a conversation's definition with the values of a body.

    at: the time of the request, in seconds since the epoch.

    Raises: Unprocessable.
    """
    fields = get_sent_fields(body)
    values: dict[str, Any] = {field: fields[name] for name, field in _PLAIN_FIELDS.items() if name in fields}
    if "hidden" in fields:
        values["hidden"] = fields["hidden"] is True
    if "archived" in fields:
        values["archived"] = (definition.archived or at) if fields["archived"] is True else None
    if "model_settings" in fields:
        settings = fields["model_settings"] or {}
        values["retained"] = {"model_settings": settings} if settings else {}
        values["sampling"] = {}
        set_sampling(values["sampling"], settings)
    return replace(definition, **values)


def render_conversation(
    entry: ConversationEntry, *, message_ids: Sequence[str] | None = None
) -> dict[str, Any]:
    """Returns the JSON of a conversation.

    message_ids: the ids of its newest messages; None: the JSON has no ids.
    """
    definition = read_conversation_definition(entry)
    changed_at = entry.begun if entry.definition is None else entry.definition.updated
    return {
        "id": ids.make_id("conv", entry.conversation.uid),
        "agent_id": ids.make_id("agent", entry.agent.uid),
        "summary": definition.summary,
        "description": definition.description,
        "hidden": definition.hidden,
        "archived": definition.archived is not None,
        "archived_at": render_time(definition.archived),
        "model": definition.model,
        "model_settings": definition.retained.get("model_settings"),
        "context_window_limit": definition.context_window,
        "in_context_message_ids": None if message_ids is None else list(message_ids),
        "isolated_block_ids": [],
        "last_message_at": None if entry.conversation.is_empty else render_time(entry.last_at),
        "created_at": render_time(entry.begun),
        "updated_at": render_time(max(changed_at, entry.last_at)),
        **NO_AUTHORS,
    }
