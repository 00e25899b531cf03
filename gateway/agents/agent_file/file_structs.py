"""The parts of an agent file (Letta's `.af`) that the gateway reads, and the form fields that are sent with a file.

The structs have the names of the file's fields.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.agents.agent_file.file_fields import EXTENSION
from gateway.agents.agent_file.file_messages import FileMessage
from gateway.agents.api.groups import Count
from gateway.agents.api.identities import CreateIdentity
from gateway.agents.registry.memory_passages import MAX_MEMORIES_SEARCHED
from gateway.agents.wire.struct_fields import (
    BOUNDED_LIST,
    NO_SECRETS,
    ONE_PROJECT,
    Form,
    Maybe,
    Name,
    Strings,
)

# The paths of the file and its extension in the request, for errors.
FILE_FIELD = ("body", "file")
EXTENSION_FIELD = (*FILE_FIELD, "metadata", EXTENSION)
# Databases index tags. A user's memory has a tag with the user's id, which may be longer than other tags.
_Tag = Annotated[str, Meta(max_length=300)]
# The most parts of each kind in a file. Messages and passages have no limit: an agent may have very many.
_MAX_FILE_PARTS = Meta(max_length=10_000)


class ImportForm(Form):
    """The form fields sent with an agent file. The second names of three of them are those of older clients."""

    append_copy_suffix: bool = False
    override_existing_tools: bool = True
    strip_messages: bool = False
    name: Maybe[Name] = UNSET
    override_name: Maybe[Name] = UNSET
    model: Maybe[Name] = UNSET
    override_model_handle: Maybe[Name] = UNSET
    embedding: Maybe[str] = UNSET
    override_embedding_handle: Maybe[str] = UNSET
    env_vars_json: Annotated[str | None, NO_SECRETS] | UnsetType = UNSET
    secrets: Annotated[str | None, NO_SECRETS] | UnsetType = UNSET
    project_id: Annotated[str | None, ONE_PROJECT] | UnsetType = UNSET


class FileAgent(msgspec.Struct):
    id: str
    name: Name | None = None
    agent_type: str | None = None
    tool_ids: Strings | None = None
    block_ids: Strings | None = None
    source_ids: Strings | None = None
    tags: Annotated[list[_Tag], BOUNDED_LIST] | None = None
    messages: list[FileMessage] | None = None
    tool_exec_environment_variables: dict[str, str | None] | None = None
    secrets: dict[str, str | None] | None = None


class FileTool(msgspec.Struct):
    id: str
    name: Name
    tool_type: str = "custom"


class FileSkill(msgspec.Struct):
    """A file with instructions, which other programs of Letta read."""

    name: str


class FileSource(msgspec.Struct):
    id: str
    name: Name
    description: str | None = None
    instructions: str | None = None
    metadata: dict[str, Any] | None = None
    embedding_config: dict[str, Any] | None = None


class FileOfSource(msgspec.Struct):
    id: str
    source_id: str
    file_name: str | None = None
    original_file_name: str | None = None
    file_type: str | None = None
    content: str | None = None


class FilePassage(msgspec.Struct):
    text: Annotated[str, Meta(min_length=1)]
    tags: Strings = []
    metadata: dict[str, Any] = {}
    created_at: str | None = None


class FileArchive(msgspec.Struct):
    name: Name
    id: str | None = None
    description: str | None = None
    passages: list[FilePassage] = []


class FileConversation(msgspec.Struct):
    id: str
    created_at: str | None = None
    summary: str | None = None
    model: str | None = None
    model_settings: dict[str, Any] | None = None
    messages: list[FileMessage] = []


class FileSleeptime(msgspec.Struct):
    """The rule by which sleeptime agents read an agent."""

    # The turns between two readings; None: they read after each turn.
    frequency: Count | None = None


class FileGroupConfig(msgspec.Struct):
    manager_type: str | None = None
    manager_agent_id: str | None = None
    sleeptime_agent_frequency: Count | None = None


class FileGroup(msgspec.Struct):
    agent_ids: list[str] = []
    manager_config: FileGroupConfig | None = None


class FileIdentity(CreateIdentity, kw_only=True):
    """An identity of an agent."""

    id: str


class AgentExtension(msgspec.Struct):
    mnemogate: dict[str, Any] = {}
    created_at: str | None = None
    sleeptime: FileSleeptime | None = None
    message_buffer_limit: int | None = None
    message_buffer_min: int | None = None
    passages: list[FilePassage] = []
    archives: Annotated[list[FileArchive], Meta(max_length=MAX_MEMORIES_SEARCHED - 1)] = []
    identities: Annotated[list[FileIdentity], BOUNDED_LIST] = []
    conversations: Annotated[list[FileConversation], _MAX_FILE_PARTS] = []


class FileExtension(msgspec.Struct):
    """The parts of a file that Letta's form lacks."""

    # The agents by their ids.
    agents: dict[str, AgentExtension] = {}
    # `mnemogate from-letta` made the file of an agent of Letta's server, so the ids in the file stay.
    is_moved: bool = False


_Raw = Annotated[list[msgspec.Raw], _MAX_FILE_PARTS] | None


class FileLists(msgspec.Struct):
    """The lists of a file with unparsed entries, by which the lengths are checked before the entries are parsed."""

    blocks: _Raw = None
    tools: _Raw = None
    sources: _Raw = None
    files: _Raw = None
    groups: _Raw = None
    mcp_servers: _Raw = None
    skills: _Raw = None


class FileMetadata(msgspec.Struct, frozen=True):
    """The metadata of a file."""

    # The JSON of a `FileExtension`; None: the file is of another program.
    mnemogate: str | None = None


class File(msgspec.Struct):
    """A whole file. Agents, blocks and tools are parsed one by one, and MCP servers are only counted."""

    agents: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=100)]
    blocks: Annotated[list[dict[str, Any]], _MAX_FILE_PARTS] = []
    tools: Annotated[list[dict[str, Any]], _MAX_FILE_PARTS] = []
    sources: Annotated[list[FileSource], _MAX_FILE_PARTS] = []
    files: Annotated[list[FileOfSource], _MAX_FILE_PARTS] = []
    groups: Annotated[list[FileGroup], _MAX_FILE_PARTS] = []
    mcp_servers: Annotated[list[dict[str, Any]], _MAX_FILE_PARTS] = []
    skills: Annotated[list[FileSkill], _MAX_FILE_PARTS] | None = None
    metadata: FileMetadata = FileMetadata()
