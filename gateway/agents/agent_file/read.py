"""Reads an agent file in the form of Letta 0.16, or in an older form (`older_file.py`).

Unknown fields are ignored. Parts that the gateway cannot store (tools of Letta's that it lacks, groups, MCP servers,
values of secrets that an export wipes) are left out, and their names are returned. Any other fault is an Unprocessable
that names the field.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from gateway.agents.agent_file.file_messages import FileMessage
from gateway.agents.agent_file.file_structs import (
    EXTENSION_FIELD,
    FILE_FIELD,
    AgentExtension,
    File,
    FileAgent,
    FileConversation,
    FileExtension,
    FileIdentity,
    FilePassage,
    FileSleeptime,
)
from gateway.agents.agent_file.import_form import ImportForm
from gateway.agents.agent_file.older_file import is_older, translate_older
from gateway.agents.agent_file.read_definition import read_definition
from gateway.agents.agent_file.read_messages import read_messages
from gateway.agents.agent_file.read_shared import (
    read_block,
    read_folders,
    read_groups,
    read_references,
    read_retained_uids,
    read_uid,
)
from gateway.agents.agent_file.read_tools import read_tools
from gateway.agents.api.conversation_bodies import CreateConversation, with_conversation_update
from gateway.agents.api.identities import with_identity_update
from gateway.agents.api.passages import read_moment
from gateway.agents.core.agent_file import (
    AgentFile,
    PortableAgent,
    PortableArchive,
    PortableConversation,
    PortableIdentity,
    PortableMessage,
)
from gateway.agents.core.kinds import choose_kind
from gateway.agents.registry.memory_passages import MAX_MEMORIES_SEARCHED
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import get_sent_or
from gateway.agents.wire.struct_fields import convert, parse
from gateway.core.definition import ConversationDefinition, IdentityDefinition, Sleeptime
from gateway.errors import BadRequest
from gateway.validation import Fault, Path
from storage.listing import PassageDraft


def read_file(data: bytes, form: ImportForm, now: float) -> AgentFile:
    """Returns the contents of a file. now: the time of messages without a time, in seconds since the epoch.

    Raises: Unprocessable; BadRequest if the file has secrets.
    """
    json = _parse_file(data)
    if is_older(json):
        json = translate_older(json, FILE_FIELD)
    file = convert(json, File, FILE_FIELD)
    _check_ids(json)
    return _FileReader(file, form, now).read()


class _FileReader:
    """Reads a file after its lists and ids are checked: first the parts that its agents share, then the agents."""

    def __init__(self, file: File, form: ImportForm, now: float) -> None:
        self._file = file
        self._form = form
        self._now = now
        text = file.metadata.mnemogate
        extension = {} if text is None else parse(text.encode(), EXTENSION_FIELD)
        self._extension = convert(extension, FileExtension, EXTENSION_FIELD)
        # True: Mnemogate wrote the file.
        self._is_own = text is not None and not self._extension.is_moved
        # The uids that agents, blocks and folders retain, by their ids in the file.
        self._retained_uids = read_retained_uids(file) if self._extension.is_moved else {}
        self._groups = read_groups(file)
        self._tools = read_tools(file.tools, is_own=self._is_own)
        self._blocks = {str(block.get("id")): read_block(block, n) for n, block in enumerate(file.blocks)}
        self._folders = read_folders(file, self._retained_uids)
        # The archives of the agents that have been read, by key.
        self._archives: dict[str, PortableArchive] = {}
        # The names of the parts of the file that are left out.
        self._left_out = [
            *self._groups.left_out,
            *(f"mcp_servers.{n}" for n in range(len(file.mcp_servers))),
            *(f"skills.{skill.name}" for skill in file.skills or ()),
            *self._tools.left_out,
        ]

    def read(self) -> AgentFile:
        """Returns the contents of the file. Raises: Unprocessable; BadRequest if an agent has secrets."""
        agents = []
        for n, raw in enumerate(self._file.agents):
            agent = convert(raw, FileAgent, (*FILE_FIELD, "agents", n))
            if agent.id in self._groups.sleeptime_agent_ids:
                # A sleeptime agent is created again with its primary.
                self._left_out.append(f"agents.{n}")
            else:
                agents.append(self._read_agent(agent, raw, n))
        block_uids = {key: uid for key, uid in self._retained_uids.items() if key in self._blocks}
        return AgentFile(
            agents, tools=self._tools.definitions, blocks=self._blocks, folders=self._folders,
            archives=self._archives, block_uids=block_uids, left_out=self._left_out,
        )  # fmt: skip

    def _read_agent(self, agent: FileAgent, raw: Mapping[str, Any], n: int) -> PortableAgent:
        """Returns the agent with the index n in the file. raw: the agent as JSON."""
        path = (*FILE_FIELD, "agents", n)
        extension = self._extension.agents.get(agent.id)
        agent_extension = extension or AgentExtension()
        self._left_out += _read_secrets(agent)
        group = self._groups.sleeptimes.get(agent.id)
        definition = read_definition(raw, extension if self._is_own else None, group, self._form, path)
        sleeptime = (
            agent_extension.sleeptime if group is None else FileSleeptime(group.sleeptime_agent_frequency)
        )
        tools = read_references(agent.tool_ids, self._tools.names, (*path, "tool_ids"))
        portable = PortableAgent(
            self._choose_name(agent),
            replace(definition, sleeptime=None if sleeptime is None else Sleeptime((), sleeptime.frequency)),
            tags=agent.tags or (),
            blocks=self._read_blocks(agent, path),
            tools=[name for tool_id in tools if (name := self._tools.names[tool_id]) is not None],
            folders=self._read_attached_folders(agent, agent_extension, path),
            archives=self._read_archives(agent_extension),
            passages=self._read_passages(agent_extension.passages),
            uid=self._retained_uids.get(agent.id),
            identities=[*map(_read_identity, agent_extension.identities)],
            created_at=read_moment(agent_extension.created_at, EXTENSION_FIELD),
        )
        if self._form.strip_messages:
            return portable
        # On Letta's server an agent that speaks by a tool thinks in text.
        is_text_thought = not self._is_own and choose_kind(agent.agent_type or "").style == "message"
        return replace(
            portable,
            messages=self._read_messages(
                agent.messages or (), f"agents.{n}.messages", is_text_thought=is_text_thought
            ),
            conversations=[
                self._read_conversation(
                    conversation, f"agents.{n}.{conversation.id}", is_text_thought=is_text_thought
                )
                for conversation in agent_extension.conversations
            ],
        )

    def _choose_name(self, agent: FileAgent) -> str:
        """Returns the name of an imported agent. The form's name is for a file with one agent."""
        is_only = len(self._file.agents) - len(self._groups.sleeptime_agent_ids) == 1
        file_name = agent.name or agent.id
        name = get_sent_or(self._form.name, file_name) if is_only else file_name
        return f"{name}_copy" if self._form.append_copy_suffix else name

    def _read_blocks(self, agent: FileAgent, path: Path) -> list[str]:
        """Returns the keys of an agent's blocks. Raises: Unprocessable."""
        keys = read_references(agent.block_ids, self._blocks, (*path, "block_ids"))
        labels = {self._blocks[key].block.label for key in keys}
        if len(labels) < len(keys):
            raise Unprocessable(Fault((*path, "block_ids"), "Two blocks of an agent have the same label"))
        return keys

    def _read_attached_folders(
        self, agent: FileAgent, agent_extension: AgentExtension, path: Path
    ) -> list[str]:
        """Returns the keys of an agent's folders, as many as an agent may have. Raises: Unprocessable."""
        keys = read_references(agent.source_ids, self._folders, (*path, "source_ids"))
        # A search asks the agent's own archive as well.
        room = MAX_MEMORIES_SEARCHED - 1 - len(agent_extension.archives)
        self._left_out += [f"folders.{self._folders[key].name}" for key in keys[room:]]
        return keys[:room]

    def _read_archives(self, agent_extension: AgentExtension) -> list[str]:
        """Adds an agent's archives to `_archives`. Returns their keys. Raises: Unprocessable."""
        keys = []
        for archive in agent_extension.archives:
            key = f"archive-{len(self._archives)}"
            body = {"description": archive.description, "embedding": None, "embedding_config": None}
            uid = None if archive.id is None else read_uid(archive.id, (*EXTENSION_FIELD, "archives", "id"))
            passages = self._read_passages(archive.passages)
            self._archives[key] = PortableArchive(archive.name, body, passages, uid)
            keys.append(key)
        return keys

    def _read_passages(self, passages: Sequence[FilePassage]) -> list[PassageDraft]:
        """Returns the drafts of passages. Raises: Unprocessable if a time cannot be read."""
        return [
            PassageDraft(
                text=passage.text,
                at=self._read_time(passage.created_at),
                tags=passage.tags,
                metadata=passage.metadata,
            )
            for passage in passages
        ]

    def _read_conversation(
        self, conversation: FileConversation, path: str, *, is_text_thought: bool
    ) -> PortableConversation:
        """Returns a conversation other than `default`.

        path: the beginning of the names of messages that are left out.
        is_text_thought: True if text next to calls is a thought, as with Letta's older agents.
        """
        model = conversation.model if self._form.model is UNSET else None
        fields = {
            "summary": conversation.summary,
            "model": model,
            "model_settings": conversation.model_settings,
        }
        body = convert(fields, CreateConversation, EXTENSION_FIELD)
        return PortableConversation(
            uid=read_uid(conversation.id, (*EXTENSION_FIELD, "conversations", "id")),
            definition=with_conversation_update(ConversationDefinition(), body, at=0),
            began_at=self._read_time(conversation.created_at),
            messages=self._read_messages(conversation.messages, path, is_text_thought=is_text_thought),
        )

    def _read_messages(
        self, file_messages: Sequence[FileMessage], path: str, *, is_text_thought: bool
    ) -> list[PortableMessage]:
        """Returns the messages of a list as they are stored.

        path: the beginning of the names of messages that are left out.
        is_text_thought: True if text next to calls is a thought, as with Letta's older agents.
        """
        messages, indices_left_out = read_messages(file_messages, self._now, is_text_thought=is_text_thought)
        self._left_out += [f"{path}.{index}" for index in indices_left_out]
        return messages

    def _read_time(self, text: str | None) -> float:
        """Returns a time in seconds since the epoch; the present time if the file has none."""
        moment = read_moment(text, EXTENSION_FIELD)
        return self._now if moment is None else moment


def _parse_file(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises: Unprocessable."""
    data = data.removeprefix(BOM_UTF8)  # editors on Windows begin files with it
    json = parse(data, FILE_FIELD)
    if isinstance(json, str):
        # Programs that save the client's answer as JSON write the file as one text.
        json = parse(json.encode(), FILE_FIELD)
    if not isinstance(json, dict):
        raise Unprocessable(Fault(FILE_FIELD, "Input should be an object", "model_type"))
    return json


def _check_ids(json: Mapping[str, Any]) -> None:
    """Checks the ids of the file's parts. Raises: Unprocessable if an id is missing, or occurs twice."""
    for part in ("agents", "blocks", "tools", "sources", "files"):
        known_ids: set[str] = set()
        for n, record in enumerate(json.get(part) or ()):
            part_id = record.get("id")
            path = (*FILE_FIELD, part, n, "id")
            if not isinstance(part_id, str):
                raise Unprocessable(Fault(path, "Field required", "missing"))
            if part_id in known_ids:
                raise Unprocessable(Fault(path, f"The id {part_id!r} is there twice"))
            known_ids.add(part_id)


def _read_secrets(agent: FileAgent) -> Iterable[str]:
    """Yields the names of secrets, whose values an export wipes. Raises: BadRequest if a secret has a value."""
    for key in ("tool_exec_environment_variables", "secrets"):
        values: dict[str, str | None] = getattr(agent, key) or {}
        if any(values.values()):
            message = f"{key}: Definitions hold no secrets; the gateway's settings do (tools.headers)."
            raise BadRequest(message, param=key)
        yield from (f"secrets.{name}" for name in values if key == "secrets" or not agent.secrets)


def _read_identity(identity: FileIdentity) -> PortableIdentity:
    uid = read_uid(identity.id, (*EXTENSION_FIELD, "identities", "id"))
    definition = with_identity_update(IdentityDefinition(identity.name), identity)
    return PortableIdentity(uid, identity.identifier_key, definition)
