"""The contents of an agent file: agents with their conversations, tools, blocks, folders and archives."""

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


class PortableMessage(Struct, frozen=True):
    """A message as it is stored."""

    message: dict[str, Any]
    # Its time, in seconds since the epoch.
    at: float
    # The model that made a reply; "" for other messages.
    model: str = ""


class PortableConversation(Struct, frozen=True):
    """A conversation of an agent other than its `default`."""

    uid: str
    definition: ConversationDefinition
    # When the conversation began, in seconds since the epoch.
    began_at: float
    # The messages, oldest first.
    messages: Sequence[PortableMessage] = ()


class PortableArchive(Struct, frozen=True):
    """An archive with its passages."""

    name: str
    body: dict[str, Any]
    # The passages, oldest first.
    passages: Sequence[PassageDraft] = ()
    # The uid to create it with; None for a new one.
    uid: str | None = None


class PortableFile(Struct, frozen=True):
    """The text of a folder's file."""

    name: str
    # The type of the file that the text was read from.
    mime_type: str
    text: str


class PortableFolder(Struct, frozen=True):
    """A folder with the texts of its files."""

    name: str
    body: dict[str, Any]
    files: Sequence[PortableFile] = ()
    # The uid to create it with; None for a new one.
    uid: str | None = None


class PortableIdentity(Struct, frozen=True):
    """An identity, by the application's key. An existing one with its uid or its key is attached instead."""

    uid: str
    key: str
    definition: IdentityDefinition


class PortableAgent(Struct, frozen=True):
    """An agent with what belongs to it alone. `AgentFile` has what agents share."""

    name: str
    definition: AgentDefinition
    tags: Sequence[str] = ()
    # Blocks, by their keys in the file.
    blocks: Sequence[str] = ()
    # Names of tools.
    tools: Sequence[str] = ()
    # Folders and archives, by their keys in the file.
    folders: Sequence[str] = ()
    archives: Sequence[str] = ()
    passages: Sequence[PassageDraft] = ()
    # The messages of the conversation `default`.
    messages: Sequence[PortableMessage] = ()
    conversations: Sequence[PortableConversation] = ()
    # The uid to create it with; None for a new one.
    uid: str | None = None
    identities: Sequence[PortableIdentity] = ()
    # When the agent was created, in seconds since the epoch; None for now.
    created_at: float | None = None


class AgentFile(Struct, frozen=True):
    """The agents of a file, and what they share."""

    agents: Sequence[PortableAgent]
    # Tools that the file defines, by name.
    tools: Mapping[str, ToolDefinition] = field(default_factory=dict)
    # Blocks and their details, by key in the file.
    blocks: Mapping[str, tuple[Block, dict[str, Any]]] = field(default_factory=dict)
    folders: Mapping[str, PortableFolder] = field(default_factory=dict)
    archives: Mapping[str, PortableArchive] = field(default_factory=dict)
    # Uids to create blocks with, by key; an existing block with that uid is attached instead.
    block_uids: Mapping[str, str] = field(default_factory=dict)
    # Names of parts of the file that the gateway ignores.
    left_out: Sequence[str] = ()
