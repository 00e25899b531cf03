"""The import of an agent file into the store.

An imported agent is made as a hidden memory (storage.sql.transfer_import), and becomes visible once the whole file is
stored. If the import fails before that, all parts that it has made are deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.agent_file import AgentFile, PortableAgent, PortableArchive, PortableFolder
from gateway.agents.core.kinds import BUILT_IN_NUMBERS, FILE_TOOLS
from gateway.agents.files.file_exchanges import ConversationLines, make_conversation_lines
from gateway.agents.files.folder_contents import FolderContents, UploadedFile
from gateway.agents.registry.memory_scope import make_scope
from gateway.agents.registry.registry import Registry
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.file_text import split_passages, split_text
from gateway.errors import GatewayError
from gateway.run.admin.transfer.transfer_lines import LineReader
from gateway.run.admin.transfer.transfer_operations import LINES_OF_TRANSACTION
from storage.definition_records import DefinitionKind
from storage.errors import NotFound, StoreError
from storage.listing import AgentEntry, PassageDraft
from storage.records import DEFAULT_CONVERSATION, Agent
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")


class ImportServices(Struct, frozen=True):
    """The services that an import of an agent file uses."""

    # The store to which the parts of files are added.
    store: Store
    # Makes agents and tools.
    registry: Registry
    # Saves the files of folders.
    contents: FolderContents
    # Decides which tools can run here.
    defined_tools: DefinedTools
    # Returns seconds since the epoch.
    now: Callable[[], float]


class _HiddenAgent(NamedTuple):
    """An agent that stays hidden until its transfer ends."""

    # The memory of the agent.
    memory: Agent
    # The number after the numbers of the memory's messages and passages.
    next_seq: int


class AgentImport:
    """One import of an agent file into a project.

    Besides the errors that a method names, it raises NotFound, WriteConflict, LimitExceeded and StoreUnavailable.
    """

    def __init__(self, services: ImportServices, project: str, file: AgentFile) -> None:
        self._store = services.store
        self._registry = services.registry
        self._contents = services.contents
        self._defined_tools = services.defined_tools
        self._now = services.now
        self._project = project
        self._file = file
        # The tools that were made or found so far, by their names.
        self._tools: dict[str, ToolView] = {}
        # The uids of the folders, archives and blocks that were made or found so far, by their keys in the file.
        self._folders: dict[str, str] = {}
        self._archives: dict[str, str] = {}
        self._blocks: dict[str, str] = {}
        # The functions that delete the parts that the import has made, in the order in which these were made.
        self._undo_steps: list[Callable[[], Awaitable[object]]] = []
        # The names of the parts of the file that are left out.
        self.left_out = list(file.left_out)

    async def run(self, *, overrides_tools: bool) -> Sequence[str]:
        """Makes the agents of the file. Returns their uids. Raises: Conflict.

        overrides_tools: True if the file's tools replace existing tools of the same names.
        """
        for agent in self._file.agents:
            self._registry.check_name(agent.name)
        try:
            await self._make_tools(overrides=overrides_tools)
            await self._collect_existing_blocks()
            await self._make_folders_and_archives()
            hidden_agents = [await self._make_agent(agent) for agent in self._file.agents]
            for hidden_agent in hidden_agents:
                await self._store.import_writer.finish(hidden_agent.memory, hidden_agent.next_seq)
            for agent, hidden_agent in zip(self._file.agents, hidden_agents, strict=True):
                if agent.definition.sleeptime is not None:
                    await self._turn_sleeptime_on(hidden_agent.memory)
        except BaseException:
            await asyncio.shield(self._roll_back())
            raise
        finally:
            self._registry.clear_cache()
        return [_read_uid(hidden_agent.memory) for hidden_agent in hidden_agents]

    async def _roll_back(self) -> None:
        """Deletes the parts that were made, the last first. Logs a part that cannot be deleted, without its content."""
        for undo_step in reversed(self._undo_steps):
            try:
                await undo_step()
            except (StoreError, GatewayError) as error:
                _log.warning(
                    "An agent file could not be imported, and a part of what it had made is still there (%s). Look for "
                    "agents, blocks, folders and archives that were made now, and delete them.",
                    type(error).__name__,
                )

    # -- parts that agents share

    async def _make_tools(self, *, overrides: bool) -> None:
        """Makes the tools of the file. overrides: True if they replace existing tools of the same names."""
        project = self._project
        registry = self._registry.tools
        for name, definition in self._file.tools.items():
            existing_tool = await registry.find_named(project, name)
            can_run = await self._defined_tools.explain_refusal(definition) is None
            # A tool that cannot run here replaces no tool. It is stored, so that callers can make it usable.
            if existing_tool is not None and not (can_run and overrides):
                self._tools[name] = existing_tool
                continue
            if not can_run:
                self.left_out.append(f"tools.{name}.{definition.source_type}")
            if existing_tool is None:
                new_tool = self._tools[name] = await registry.create(project, name, definition)
                self._undo_steps.append(partial(registry.delete, project, new_tool.uid))
                continue
            assert existing_tool.definition is not None  # a file defines no built-in tool
            before = ToolDefinition.of(existing_tool.definition.body)
            self._tools[name] = await registry.put(project, name, definition)
            self._undo_steps.append(partial(registry.put, project, name, before))

    async def _collect_existing_blocks(self) -> None:
        """Adds the blocks of the file that exist already to `_blocks`.

        Other blocks are made with the first agent that has them.
        """
        for key, uid in self._file.block_uids.items():
            with suppress(NotFound):
                self._blocks[key] = (await self._store.named_blocks.get(self._project, uid)).block.uid

    async def _make_folders_and_archives(self) -> None:
        """Makes the folders and archives of the file, unless the project has them already."""
        for key, folder in self._file.folders.items():
            existing_uid = await self._find_uid(DefinitionKind.FOLDER, folder.uid)
            self._folders[key] = existing_uid or await self._make_folder(folder)
        for key, archive in self._file.archives.items():
            existing_uid = await self._find_uid(DefinitionKind.ARCHIVE, archive.uid)
            self._archives[key] = existing_uid or await self._make_archive(archive)

    async def _find_uid(self, kind: DefinitionKind, uid: str | None) -> str | None:
        """Returns the uid if the project has a folder or an archive with this uid, or None."""
        if uid is None or await self._store.definitions.find(self._project, kind, uid) is None:
            return None
        return uid

    async def _make_folder(self, folder: PortableFolder) -> str:
        """Makes a folder, which stays hidden until it is complete. Returns its uid."""
        uid = folder.uid or ids.new_uid()
        namesakes = await self._store.definitions.find_by_name(
            self._project, DefinitionKind.FOLDER, folder.name
        )
        name = f"{folder.name}_{ids.new_uid()[:8]}" if namesakes else folder.name
        line = _make_definition_line(DefinitionKind.FOLDER, name, folder.body, self._now())
        memory = await self._make_memory(DefinitionKind.FOLDER, uid, [line], 1)
        for file in folder.files:
            # Letta's server reads PDFs and the like, and the file has only their text.
            upload = UploadedFile(file.name, file.mime_type, file.text.encode())
            await self._contents.save(memory.id, upload, file.text, "suffix")
        next_seq = 1 + await asyncio.to_thread(_count_passages, folder)
        await self._store.import_writer.finish(memory, next_seq)
        return uid

    async def _make_archive(self, archive: PortableArchive) -> str:
        """Makes an archive, which stays hidden until it is complete. Returns its uid."""
        uid = archive.uid or ids.new_uid()
        passages = await asyncio.to_thread(_split_passages, archive.passages)
        lines = [
            _make_definition_line(DefinitionKind.ARCHIVE, archive.name, archive.body, self._now()),
            *_make_passage_lines(passages, 1),
        ]
        next_seq = len(passages) + 1
        memory = await self._make_memory(DefinitionKind.ARCHIVE, uid, lines, next_seq)
        await self._store.import_writer.finish(memory, next_seq)
        return uid

    # -- agents

    async def _make_agent(self, agent: PortableAgent) -> _HiddenAgent:
        """Makes an agent, hidden until its transfer ends."""
        now = self._now()
        uid = agent.uid or ids.new_uid()
        messages, next_seq = await asyncio.to_thread(_make_message_lines, agent)
        passages = await asyncio.to_thread(_split_passages, agent.passages)
        lines = [
            *messages,
            _make_definition_line(
                DefinitionKind.AGENT, agent.name, agent.definition.dump(), now, agent.created_at
            ),
            *self._make_block_lines(agent, now),
            *_make_passage_lines(passages, next_seq),
            *({"tag": {"tag": tag}} for tag in dict.fromkeys(agent.tags)),
            *[line async for line in self._make_attachment_lines(agent)],
        ]
        next_seq += len(passages)
        return _HiddenAgent(await self._make_memory(DefinitionKind.AGENT, uid, lines, next_seq), next_seq)

    async def _make_memory(
        self, kind: DefinitionKind, uid: str, lines: Iterable[dict[str, Any]], next_seq: int
    ) -> Agent:
        """Makes a memory of the lines of an export. The memory stays hidden until its transfer ends."""
        writer = self._store.import_writer
        memory = await writer.begin(self._store.agents.make_draft(make_scope(self._project, kind, uid)))
        self._undo_steps.append(partial(self._store.forgetting.wipe, memory.id))
        reader = LineReader(self._store, memory, next_seq)
        remaining_lines = iter(lines)
        while batch := list(islice(remaining_lines, LINES_OF_TRANSACTION)):
            await writer.write(memory, [await reader.read(line) for line in batch])
        return memory

    def _make_block_lines(self, agent: PortableAgent, now: float) -> Iterator[dict[str, Any]]:
        """Yields the lines of an agent's blocks. Blocks that an earlier agent of the file has are attached."""
        for key in agent.blocks:
            draft = self._file.blocks[key]
            block = draft.block
            exists = key in self._blocks
            if not exists:
                self._blocks[key] = self._file.block_uids.get(key) or ids.new_uid()
            fields = {
                "uid": self._blocks[key],
                "label": block.label,
                "description": block.description,
                "limit": block.limit,
                "read_only": block.read_only,
                "details": draft.details,
            }
            if exists:
                yield {"attached": {"kind": "block", **fields, "value": block.value}}
            else:
                yield {"block": fields}
                version = {
                    "block": block.label,
                    "version": 1,
                    "restores": None,
                    "at": now,
                    "origin": "import",
                    "exchange": None,
                    "sources": [],
                    "value": block.value,
                }
                yield {"version": version}

    async def _make_attachment_lines(self, agent: PortableAgent) -> AsyncIterator[dict[str, Any]]:
        """Yields the lines of an agent's attachments other than blocks."""
        names = [*agent.tools, *(FILE_TOOLS if agent.folders else ())]
        for name in dict.fromkeys(names):
            tool = self._tools.get(name) or await self._registry.tools.find_named(self._project, name)
            if tool is None:
                self.left_out.append(f"tools.{name}")
                continue
            if tool.definition is None:
                attachment: dict[str, Any] = {"built_in": -BUILT_IN_NUMBERS[name]}
            else:
                attachment = {"uid": tool.uid, "name": tool.name, "body": tool.definition.body}
            yield {"attached": {"kind": "tool", **attachment}}
        for key in agent.folders:
            yield {"attached": {"kind": "folder", "uid": self._folders[key]}}
        for key in agent.archives:
            yield {"attached": {"kind": "archive", "uid": self._archives[key]}}
        for identity in agent.identities:
            body = identity.definition.dump()
            yield {"attached": {"kind": "identity", "uid": identity.uid, "name": identity.key, "body": body}}

    async def _turn_sleeptime_on(self, memory: Agent) -> None:
        """Gives an agent a sleeptime agent of its own."""
        sleeptime_agents = self._registry.sleeptime_agents

        async def load_entry() -> AgentEntry:
            return await self._store.defined_agents.get(self._project, _read_uid(memory))

        async def turn_off() -> None:
            await sleeptime_agents.turn_off(await load_entry())

        # Before the sleeptime agent is made, since `turn_off` does nothing if there is none.
        self._undo_steps.append(turn_off)
        await sleeptime_agents.turn_on(await load_entry())


def _split_passages(passages: Sequence[PassageDraft]) -> Sequence[PassageDraft]:
    """Returns passages, with long ones in parts of a length that can be searched."""
    return [replace(passage, text=part) for passage in passages for part in split_passages(passage.text)]


def _count_passages(folder: PortableFolder) -> int:
    """Returns the number of passages into which the texts of a folder are split."""
    return sum(1 for file in folder.files for _ in split_text(file.text))


def _make_message_lines(agent: PortableAgent) -> ConversationLines:
    """Returns the lines of all conversations of an agent."""
    lines, next_seq = make_conversation_lines(agent.messages, ids.new_uid(), DEFAULT_CONVERSATION)
    for conversation in agent.conversations:
        conversation_lines, next_seq = make_conversation_lines(
            conversation.messages, conversation.uid, None, began_at=conversation.began_at, first_seq=next_seq
        )
        kind, body = DefinitionKind.CONVERSATION, conversation.definition.dump()
        definition = _make_definition_line(kind, "", body, conversation.began_at, uid=conversation.uid)
        lines += [*conversation_lines, definition]
    return ConversationLines(lines, next_seq)


def _make_definition_line(
    kind: DefinitionKind,
    name: str,
    body: dict[str, Any],
    updated_at: float,
    created_at: float | None = None,
    uid: str = "",
) -> dict[str, Any]:
    """Returns the line of a definition.

    updated_at: the time of the last change, in seconds since the epoch.
    created_at: the time when the object was made, in seconds since the epoch; None: `updated_at`.
    uid: the uid of a conversation; "": the definition is the memory's.
    """
    created_at = updated_at if created_at is None else created_at
    times = {"created": created_at, "updated": updated_at}
    return {"definition": {"kind": kind, "uid": uid, "name": name, "body": body, **times}}


def _make_passage_lines(passages: Sequence[PassageDraft], first_seq: int) -> Iterator[dict[str, Any]]:
    """Yields the lines of passages. first_seq: the number of the first passage."""
    for seq, passage in enumerate(passages, first_seq):
        fields = {"seq": seq, "at": passage.at, "text": passage.text, "tags": list(passage.tags)}
        yield {"passage": {**fields, "metadata": passage.metadata, "exchange": None, "sources": []}}


def _read_uid(memory: Agent) -> str:
    """Returns the uid of the agent that has a memory."""
    return memory.scope.subject.rpartition(":")[2]
