"""An agent file: agents with all that travels with them, as values between its dialect and who performs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from gateway.core.definition import (
    AgentDefinition,
    ConversationDefinition,
    IdentityDefinition,
    ToolDefinition,
)
from storage.listing import PassageDraft
from storage.records import Block


class CarriedMessage(Struct, frozen=True):
    """A message as it is stored, with when it was said. model: that made a reply; "" for others."""

    message: dict[str, Any]
    at: float
    model: str = ""


class CarriedConversation(Struct, frozen=True):
    """A conversation beside an agent's `default`. begun: seconds since the epoch. messages: oldest first."""

    uid: str
    definition: ConversationDefinition
    begun: float
    messages: Sequence[CarriedMessage] = ()


class CarriedArchive(Struct, frozen=True):
    """An archive. passages: oldest first. uid: that it keeps; None: it is given one, as in the classes below."""

    name: str
    body: dict[str, Any]
    passages: Sequence[PassageDraft] = ()
    uid: str | None = None


class CarriedFolder(Struct, frozen=True):
    """A folder. files: (name, type, text)."""

    name: str
    body: dict[str, Any]
    files: Sequence[tuple[str, str, str]] = ()
    uid: str | None = None


class CarriedIdentity(Struct, frozen=True):
    """An identity, by the application's key. What has its uid or its key is not made again but attached."""

    uid: str
    key: str
    definition: IdentityDefinition


class CarriedAgent(Struct, frozen=True):
    """An agent. blocks, folders, archives: by their keys in the file. tools: by name. messages: of `default`.

    begun: when it was made, where that was before.
    """

    name: str
    definition: AgentDefinition
    tags: Sequence[str] = ()
    blocks: Sequence[str] = ()
    tools: Sequence[str] = ()
    folders: Sequence[str] = ()
    archives: Sequence[str] = ()
    passages: Sequence[PassageDraft] = ()
    messages: Sequence[CarriedMessage] = ()
    conversations: Sequence[CarriedConversation] = ()
    uid: str | None = None
    identities: Sequence[CarriedIdentity] = ()
    begun: float | None = None


class AgentFile(Struct, frozen=True):
    """The content of a file. tools: those that are defined in it, by name. blocks: each with what else is said of it.

    block_uids: those that blocks keep. What keeps its uid and is there already is not made again but attached.
    left_out: names of what the file has and the gateway does not take.
    """

    agents: Sequence[CarriedAgent]
    tools: Mapping[str, ToolDefinition] = field(default_factory=dict)
    blocks: Mapping[str, tuple[Block, dict[str, Any]]] = field(default_factory=dict)
    folders: Mapping[str, CarriedFolder] = field(default_factory=dict)
    archives: Mapping[str, CarriedArchive] = field(default_factory=dict)
    block_uids: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()
