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
from storage.listing import BlockDraft, PassageDraft


class PortableMessage(Struct, frozen=True):
    """A message with the data that is stored with it."""

    # The message as it is stored.
    message: dict[str, Any]
    # The time of the message, in seconds since the epoch.
    at: float
    # The model that made a reply; "" for other messages.
    model: str = ""


class PortableConversation(Struct, frozen=True):
    """A conversation of an agent other than its `default`."""

    # The uid of the conversation.
    uid: str
    # The model and the settings of the conversation.
    definition: ConversationDefinition
    # The time when the conversation began, in seconds since the epoch.
    began_at: float
    # The messages, oldest first.
    messages: Sequence[PortableMessage] = ()


class PortableArchive(Struct, frozen=True):
    """An archive with its passages."""

    # The name of the archive.
    name: str
    # The body of its definition.
    body: dict[str, Any]
    # The passages, oldest first.
    passages: Sequence[PassageDraft] = ()
    # The uid of the new archive; None: a new uid is made.
    uid: str | None = None


class PortableFile(Struct, frozen=True):
    """The text of a folder's file."""

    # The name of the file in its folder.
    name: str
    # The MIME type of the file from which the text was read.
    mime_type: str
    # The text of the file.
    text: str


class PortableFolder(Struct, frozen=True):
    """A folder with the texts of its files."""

    # The name of the folder.
    name: str
    # The body of its definition.
    body: dict[str, Any]
    # The files that have a text.
    files: Sequence[PortableFile] = ()
    # The uid of the new folder; None: a new uid is made.
    uid: str | None = None


class PortableIdentity(Struct, frozen=True):
    """An identity. An existing identity with this uid or this key is attached instead."""

    # The uid of the identity.
    uid: str
    # The application's key of the identity.
    key: str
    # The name, the type and the properties of the identity.
    definition: IdentityDefinition


class PortableAgent(Struct, frozen=True):
    """An agent with the parts that belong to it alone. `AgentFile` has the parts that agents share."""

    # The name of the agent.
    name: str
    # The configuration of the agent.
    definition: AgentDefinition
    # The tags of the agent.
    tags: Sequence[str] = ()
    # The keys of the agent's blocks in the file.
    blocks: Sequence[str] = ()
    # The names of the agent's tools.
    tools: Sequence[str] = ()
    # The keys of the agent's folders in the file.
    folders: Sequence[str] = ()
    # The keys of the agent's archives in the file.
    archives: Sequence[str] = ()
    # The passages of the agent's own archive, oldest first.
    passages: Sequence[PassageDraft] = ()
    # The messages of the conversation `default`.
    messages: Sequence[PortableMessage] = ()
    # The other conversations.
    conversations: Sequence[PortableConversation] = ()
    # The uid of the new agent; None: a new uid is made.
    uid: str | None = None
    # The identities to which the agent belongs.
    identities: Sequence[PortableIdentity] = ()
    # The time when the agent was created, in seconds since the epoch; None: it is created now.
    created_at: float | None = None


class AgentFile(Struct, frozen=True):
    """The agents of a file, and the parts that they share."""

    # The agents, in their order in the file.
    agents: Sequence[PortableAgent]
    # The tools that the file defines, by name.
    tools: Mapping[str, ToolDefinition] = field(default_factory=dict)
    # The blocks by their keys in the file.
    blocks: Mapping[str, BlockDraft] = field(default_factory=dict)
    # The folders by their keys in the file.
    folders: Mapping[str, PortableFolder] = field(default_factory=dict)
    # The archives by their keys in the file.
    archives: Mapping[str, PortableArchive] = field(default_factory=dict)
    # The uids of new blocks, by their keys in the file. An existing block with such a uid is attached instead.
    block_uids: Mapping[str, str] = field(default_factory=dict)
    # The names of parts of the file that the gateway ignores.
    left_out: Sequence[str] = ()
