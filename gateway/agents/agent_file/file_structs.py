"""The parts of an agent file (Letta's `.af`) that the gateway reads.

The structs have the names of the file's fields.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.agents.agent_file.file_fields import EXTENSION
from gateway.agents.agent_file.file_messages import FileMessage
from gateway.agents.api.groups import Count
from gateway.agents.api.identities import CreateIdentity
from gateway.agents.registry.memory_passages import MAX_MEMORIES_SEARCHED
from gateway.agents.wire.struct_fields import BOUNDED_LIST, Name, Strings

# The paths of the file and its extension in the request, for errors.
FILE_FIELD = ("body", "file")
EXTENSION_FIELD = (*FILE_FIELD, "metadata", EXTENSION)
# Databases index tags. A user's memory has a tag with the user's id, which may be longer than other tags.
_Tag = Annotated[str, Meta(max_length=300)]
# The most parts of each kind in a file. Messages and passages have no limit: an agent may have very many.
_MAX_FILE_PARTS = Meta(max_length=10_000)


class FileAgent(msgspec.Struct):
    """The parts of an agent that are not fields of its definition, which `read_definition` reads from the JSON."""

    # The id of the agent in the file.
    id: str
    # The name; None: the id is the name.
    name: Name | None = None
    # The kind of the agent; None: the default kind.
    agent_type: str | None = None
    # The ids of the agent's tools in the file.
    tool_ids: Strings | None = None
    # The ids of the agent's blocks in the file.
    block_ids: Strings | None = None
    # The ids of the agent's folders in the file.
    source_ids: Strings | None = None
    # The tags of the agent.
    tags: Annotated[list[_Tag], BOUNDED_LIST] | None = None
    # The messages of the conversation `default`.
    messages: list[FileMessage] | None = None
    # Secrets by name, under the older name of the field. An export wipes the values.
    tool_exec_environment_variables: dict[str, str | None] | None = None
    # Secrets by name. An export wipes the values.
    secrets: dict[str, str | None] | None = None


class FileTool(msgspec.Struct):
    """A tool. `read_tools` reads the other fields of a custom tool from the JSON."""

    # The id of the tool in the file.
    id: str
    # The name by which models call the tool.
    name: Name
    # Letta's type of the tool: `custom`, `external_mcp`, or a type of built-in tools.
    tool_type: str = "custom"


class FileSkill(msgspec.Struct):
    """A file with instructions, which other programs of Letta read."""

    # The name of the skill.
    name: str


class FileSource(msgspec.Struct):
    """A folder, which Letta's form calls a source."""

    # The id of the folder in the file.
    id: str
    # The name of the folder.
    name: Name
    # The description of the folder; None: it has none.
    description: str | None = None
    # The instructions for agents, which are stored and have no effect here.
    instructions: str | None = None
    # The application's own fields.
    metadata: dict[str, Any] | None = None
    # Letta's settings of the embedding model, which are stored and have no effect here.
    embedding_config: dict[str, Any] | None = None


class FileOfSource(msgspec.Struct):
    """A file in a folder."""

    # The id of the file in the agent file.
    id: str
    # The id of the folder in the agent file.
    source_id: str
    # The name with the folder's name before it.
    file_name: str | None = None
    # The name in the folder.
    original_file_name: str | None = None
    # The MIME type.
    file_type: str | None = None
    # The text; None: the file was not read.
    content: str | None = None


class FilePassage(msgspec.Struct):
    """A passage of an archive."""

    # The text of the passage.
    text: Annotated[str, Meta(min_length=1)]
    # The tags of the passage.
    tags: Strings = []
    # The metadata of the passage, an object of any names.
    metadata: dict[str, Any] = {}
    # The time in ISO 8601; None: the time of the import.
    created_at: str | None = None


class FileArchive(msgspec.Struct):
    """An archive that is attached to an agent, other than its own."""

    # The name of the archive.
    name: Name
    # The id that stays; None: a new id is made.
    id: str | None = None
    # The description of the archive; None: it has none.
    description: str | None = None
    # The passages, oldest first.
    passages: list[FilePassage] = []


class FileConversation(msgspec.Struct):
    """A conversation other than `default`."""

    # The id, which stays.
    id: str
    # The time when the conversation began, in ISO 8601; None: the time of the import.
    created_at: str | None = None
    # The summary that the client has given the conversation; None: it has none.
    summary: str | None = None
    # The conversation's own model; None: the agent's model.
    model: str | None = None
    # The conversation's own settings of the model; None: the agent's settings.
    model_settings: dict[str, Any] | None = None
    # The messages, oldest first.
    messages: list[FileMessage] = []


class FileSleeptime(msgspec.Struct):
    """The rule by which sleeptime agents read an agent."""

    # The turns between two readings; None: they read after each turn.
    frequency: Count | None = None


class FileGroupConfig(msgspec.Struct):
    """The kind of a group, and the agent that its other agents serve."""

    # The kind of the group, such as `sleeptime`.
    manager_type: str | None = None
    # The id of the agent in the file that the other agents serve.
    manager_agent_id: str | None = None
    # The turns between two readings of a sleeptime agent; None: it reads after each turn.
    sleeptime_agent_frequency: Count | None = None
    # The most messages of a voice agent's window; None: the bound of its kind.
    max_message_buffer_length: Count | None = None
    # The fewest messages that a voice agent's window retains; None: the bound of its kind.
    min_message_buffer_length: Count | None = None

    @property
    def window(self) -> dict[str, int | None]:
        """The bounds of a voice agent's window, as fields of an agent; none if one is missing or they do not fit."""
        most, least = self.max_message_buffer_length, self.min_message_buffer_length
        fits = most and least and least < most
        return {"message_buffer_limit": most, "message_buffer_min": least} if fits else {}


class FileGroup(msgspec.Struct):
    """A group of agents, by their ids in the file."""

    # The ids of its agents in the file, sleeptime agents among them.
    agent_ids: list[str] = []
    # The kind of the group, with its manager; None: the group has no manager.
    manager_config: FileGroupConfig | None = None


class FileIdentity(CreateIdentity, kw_only=True):
    """An identity of an agent."""

    id: str


class AgentExtension(msgspec.Struct):
    """The parts of an agent that Letta's form lacks."""

    # The fields of `agent_bodies.Own`.
    mnemogate: dict[str, Any] = {}
    # The time when the agent was made, in ISO 8601; None: it is made by the import.
    created_at: str | None = None
    # The rule by which sleeptime agents read the agent; None: the agent has no sleeptime agent.
    sleeptime: FileSleeptime | None = None
    # The most messages of the window; None: no bound.
    message_buffer_limit: int | None = None
    # The fewest messages that the window retains; None: no bound.
    message_buffer_min: int | None = None
    # The passages of the agent's own archive.
    passages: list[FilePassage] = []
    # The archives that are attached to the agent.
    archives: Annotated[list[FileArchive], Meta(max_length=MAX_MEMORIES_SEARCHED - 1)] = []
    # The identities to which the agent belongs.
    identities: Annotated[list[FileIdentity], BOUNDED_LIST] = []
    # The conversations other than `default`.
    conversations: Annotated[list[FileConversation], _MAX_FILE_PARTS] = []


class FileExtension(msgspec.Struct):
    """The parts of a file that Letta's form lacks."""

    # The agents by their ids.
    agents: dict[str, AgentExtension] = {}
    # `mnemogate from-letta` made the file of an agent of Letta's server, so the ids in the file stay.
    is_moved: bool = False


class FileMetadata(msgspec.Struct, frozen=True):
    """The metadata of a file."""

    # The JSON of a `FileExtension`; None: the file is of another program.
    mnemogate: str | None = None


class File(msgspec.Struct):
    """A whole file. Agents, blocks and tools are parsed one by one, and MCP servers are only counted."""

    # The agents, of which `FileAgent` has some fields.
    agents: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=100)]
    # The blocks of all agents.
    blocks: Annotated[list[dict[str, Any]], _MAX_FILE_PARTS] = []
    # The tools of all agents.
    tools: Annotated[list[dict[str, Any]], _MAX_FILE_PARTS] = []
    # The folders of all agents.
    sources: Annotated[list[FileSource], _MAX_FILE_PARTS] = []
    # The files of all folders.
    files: Annotated[list[FileOfSource], _MAX_FILE_PARTS] = []
    # The groups; a group with sleeptime agents is made again with its manager.
    groups: Annotated[list[FileGroup], _MAX_FILE_PARTS] = []
    # The MCP servers, which the import leaves out.
    mcp_servers: Annotated[list[dict[str, Any]], _MAX_FILE_PARTS] = []
    # The skills, which the import leaves out; None: the file has no list of skills.
    skills: Annotated[list[FileSkill], _MAX_FILE_PARTS] | None = None
    # The metadata, with which the gateway marks its own files.
    metadata: FileMetadata = FileMetadata()
