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
    """A message as it is stored, with its time. model: the one that made a reply; "" for others."""

    message: dict[str, Any]
    at: float
    model: str = ""


class CarriedConversation(Struct, frozen=True):
    """A conversation of an agent other than its `default`."""

    uid: str
    definition: ConversationDefinition
    # Seconds since the epoch.
    begun: float
    # Oldest first.
    messages: Sequence[CarriedMessage] = ()


class CarriedArchive(Struct, frozen=True):
    """An archive."""

    name: str
    body: dict[str, Any]
    # Oldest first.
    passages: Sequence[PassageDraft] = ()
    # That it keeps; None: it is given one, as in the classes below.
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
    """An agent."""

    name: str
    definition: AgentDefinition
    tags: Sequence[str] = ()
    # By their keys in the file.
    blocks: Sequence[str] = ()
    # By name.
    tools: Sequence[str] = ()
    # folders, archives: by their keys in the file.
    folders: Sequence[str] = ()
    archives: Sequence[str] = ()
    passages: Sequence[PassageDraft] = ()
    # Of `default`.
    messages: Sequence[CarriedMessage] = ()
    conversations: Sequence[CarriedConversation] = ()
    uid: str | None = None
    identities: Sequence[CarriedIdentity] = ()
    # When it was made, where that was before.
    begun: float | None = None


class AgentFile(Struct, frozen=True):
    """The content of a file."""

    agents: Sequence[CarriedAgent]
    # Those that are defined in it, by name.
    tools: Mapping[str, ToolDefinition] = field(default_factory=dict)
    # Each with its details.
    blocks: Mapping[str, tuple[Block, dict[str, Any]]] = field(default_factory=dict)
    folders: Mapping[str, CarriedFolder] = field(default_factory=dict)
    archives: Mapping[str, CarriedArchive] = field(default_factory=dict)
    # Those that blocks keep. What keeps its uid and is there already is not made again but attached.
    block_uids: Mapping[str, str] = field(default_factory=dict)
    # Names of what the file has and the gateway does not take.
    left_out: Sequence[str] = ()
