"""Agent files: agents with all that travels with them, exported from the store and imported into it.

An agent that is imported is made as a hidden memory (storage.sql.transfer), and takes its place when all of
the file is there. Whatever goes wrong before that, nothing of the file is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
from msgspec.structs import replace

from gateway.agents.core.agent_file import (
    AgentFile,
    PortableAgent,
    PortableArchive,
    PortableFolder,
    PortableMessage,
)
from gateway.agents.core.kinds import BUILT_IN, FILE_TOOLS
from gateway.agents.files.file_exchanges import conversation_lines
from gateway.agents.files.folders import Folders, SentFile, folder_scope
from gateway.agents.registry.archives import Archives
from gateway.agents.registry.registry import Registry, api_scope
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.tools.foreign import ForeignTools
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.file_text import passages_in, split_text
from gateway.errors import GatewayError
from gateway.run.admin.transfer_operations import LINES_OF_TRANSACTION, LineReader
from storage.errors import NotFound, StoreError
from storage.listing import AgentEntry, Page, PassageDraft
from storage.records import API_PROFILE, DEFAULT_CONVERSATION, REPLY, Agent, DefinitionKind, Exchange, Scope
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")
_PAGE = 50
_PASSAGES = 500
Undo = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class _ImportProgress:
    """The parts that the import of a file has made so far."""

    # Tools by their names.
    tools: dict[str, ToolView] = field(default_factory=dict)
    # Public names of folders, archives and blocks by their keys in the file.
    folders: dict[str, str] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    # Takes back what was made, in reverse order.
    undo: list[Undo] = field(default_factory=list)
    # Names of parts of the file that are left out.
    left_out: list[str] = field(default_factory=list)


class AgentFiles:
    """Agent files of all projects. project: the caller's.

    Raises besides what the methods name: NotFound, WriteConflict, OverLimit, Unavailable, as the store does.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        archives: Archives,
        folders: Folders,
        foreign: ForeignTools,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._registry = registry
        self._archives = archives
        self._folders = folders
        self._foreign = foreign
        self._now = now

    # -- export

    async def messages(
        self, agent: Agent, conversation: str = DEFAULT_CONVERSATION
    ) -> Sequence[PortableMessage]:
        """Returns the messages of a conversation, oldest first; hidden rounds as messages."""
        try:
            found = await self._store.messages.conversation(agent.id, conversation)
        except NotFound:
            if conversation == DEFAULT_CONVERSATION:
                return []
            raise
        messages: list[PortableMessage] = []
        after = -1
        while True:
            page = Page(after, None, _PAGE, newest_first=False)
            rows = await self._store.messages.page(agent.id, page, conversation=found.id)
            for row in rows:
                messages += _portable_messages(row.exchange)
            if len(rows) < _PAGE:
                return messages
            exchange = rows[-1].exchange
            after = exchange.next_seq

    async def passages(self, memory: Agent) -> Sequence[PassageDraft]:
        """Returns the passages of a memory, oldest first."""
        found: list[PassageDraft] = []
        after = 0
        while True:
            page = await self._store.passages.list(memory.id, after=after, limit=_PASSAGES)
            whole = await self._store.passages.get(memory.id, [each.seq for each in page])
            found += [
                PassageDraft(each.text, each.at, each.tags, each.metadata)
                for each in (whole[listed.seq] for listed in page if listed.seq in whole)
            ]
            if len(page) < _PASSAGES:
                return found
            after = page[-1].seq

    async def archives(self, agent: Agent) -> Sequence[PortableArchive]:
        """Returns the archives that an agent has attached."""
        rows = await self._store.attached.targets(agent.id, DefinitionKind.ARCHIVE)
        definitions = await self._store.definitions.find_by_memories(DefinitionKind.ARCHIVE, rows)
        memories = await self._store.defined_agents.memories(agent.scope.project, rows)
        return [
            PortableArchive(definitions[each.id].name, definitions[each.id].body, await self.passages(each))
            for each in memories
            if each.id in definitions
        ]

    # -- import

    async def import_agents(
        self, project: str, file: AgentFile, *, overrides_tools: bool
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Makes the agents of a file. overrides_tools: the file's tools take the place of those with their names.

        Returns their public names, and what was left out. Raises: Conflict.
        """
        progress = _ImportProgress(left_out=list(file.left_out))
        for agent in file.agents:
            self._registry.check_name(agent.name)
        try:
            await self._make_tools(project, file.tools, progress, overrides=overrides_tools)
            await self._make_stores(project, file, progress)
            made = [await self._make_agent(project, agent, file, progress) for agent in file.agents]
            for memory, next_seq in made:
                await self._store.transfer.finish_import(memory, next_seq)
            for agent, (memory, _) in zip(file.agents, made, strict=True):
                if agent.definition.sleeptime is not None:
                    await self._turn_sleeptime_on(project, memory, progress)
        except BaseException:
            await asyncio.shield(_undo(progress))
            raise
        finally:
            self._registry.clear_cache()
        return [_uid(memory) for memory, _ in made], progress.left_out

    async def _turn_sleeptime_on(self, project: str, memory: Agent, progress: _ImportProgress) -> None:
        """Gives an agent a sleeptime agent of its own."""

        sleepers = self._registry.sleepers

        async def entry() -> AgentEntry:
            return await self._store.defined_agents.get(project, _uid(memory))

        async def turn_off() -> None:
            await sleepers.turn_off(await entry())

        # Before it is made: what is not there is not taken back.
        progress.undo.append(turn_off)
        await sleepers.turn_on(await entry())

    async def _make_tools(
        self, project: str, tools: Mapping[str, ToolDefinition], progress: _ImportProgress, *, overrides: bool
    ) -> None:
        registry = self._registry.tools
        for name, definition in tools.items():
            found = await registry.named(project, name)
            runs = await self._foreign.refusal(definition) is None
            # What cannot run here takes nothing's place: it is there until it can, or is made something that runs.
            if found is not None and not (runs and overrides):
                progress.tools[name] = found
                continue
            if not runs:
                progress.left_out.append(f"tools.{name}.{definition.source_type}")
            if found is None:
                made = progress.tools[name] = await registry.create(project, name, definition)
                progress.undo.append(lambda uid=made.uid: registry.delete(project, uid))  # type: ignore[misc]
                continue
            assert found.definition is not None
            before = ToolDefinition.of(found.definition.body)
            progress.tools[name] = await registry.put(project, name, definition)
            progress.undo.append(lambda name=name, before=before: registry.put(project, name, before))  # type: ignore[misc]

    async def _make_stores(self, project: str, file: AgentFile, progress: _ImportProgress) -> None:
        for key, uid in file.block_uids.items():
            with suppress(NotFound):
                progress.blocks[key] = (await self._store.named_blocks.get(project, uid)).block.uid
        for key, folder in file.folders.items():
            if await self._use_existing(project, DefinitionKind.FOLDER, folder.uid, key, progress.folders):
                continue
            named = await self._store.definitions.find_by_name(project, DefinitionKind.FOLDER, folder.name, 1)
            name = f"{folder.name}_{ids.new_uid()[:8]}" if named else folder.name
            progress.folders[key] = await self._make_folder(project, name, folder, progress)
        for key, archive in file.archives.items():
            if await self._use_existing(project, DefinitionKind.ARCHIVE, archive.uid, key, progress.archives):
                continue
            progress.archives[key] = await self._make_archive(project, archive, progress)

    async def _make_folder(
        self, project: str, name: str, folder: PortableFolder, progress: _ImportProgress
    ) -> str:
        """Makes a folder, which stays hidden until it is complete. Returns its public name."""
        uid = folder.uid or ids.new_uid()
        line = _definition_line(DefinitionKind.FOLDER, name, folder.body, self._now())
        memory = await self._make_memory(folder_scope(project, uid), [line], 1, progress)
        for file_name, type, text in folder.files:
            # Letta's server reads PDFs and the like: what it carries is their text.
            await self._folders.save(memory.id, SentFile(file_name, type, text.encode()), text, "suffix")
        next_seq = 1 + await asyncio.to_thread(_count_parts, folder)
        await self._store.transfer.finish_import(memory, next_seq)
        return uid

    async def _make_archive(self, project: str, archive: PortableArchive, progress: _ImportProgress) -> str:
        """Makes an archive, which stays hidden until it is complete. Returns its public name."""
        uid = archive.uid or ids.new_uid()
        passages = await asyncio.to_thread(_searchable_parts, archive.passages)
        lines = [
            _definition_line(DefinitionKind.ARCHIVE, archive.name, archive.body, self._now()),
            *_passage_lines(passages, 1),
        ]
        next_seq = len(passages) + 1
        memory = await self._make_memory(
            Scope(project, API_PROFILE, f"{DefinitionKind.ARCHIVE}:{uid}"), lines, next_seq, progress
        )
        await self._store.transfer.finish_import(memory, next_seq)
        return uid

    async def _use_existing(
        self, project: str, kind: DefinitionKind, uid: str | None, key: str, made: dict[str, str]
    ) -> bool:
        """Notes a folder or an archive as made if one with its uid exists. Returns whether it does."""
        if uid is None or await self._store.definitions.find(project, kind, uid) is None:
            return False
        made[key] = uid
        return True

    async def _make_agent(
        self, project: str, agent: PortableAgent, file: AgentFile, progress: _ImportProgress
    ) -> tuple[Agent, int]:
        """Makes an agent, whose memory is hidden as yet. Returns the memory, and its next number."""
        now = self._now()
        scope = api_scope(project, agent.uid or ids.new_uid())
        definitions, next_seq = await asyncio.to_thread(_message_lines, agent)
        passages = await asyncio.to_thread(_searchable_parts, agent.passages)
        lines = [
            *definitions,
            _definition_line(DefinitionKind.AGENT, agent.name, agent.definition.body(), now, agent.begun),
            *_block_lines(agent, file, progress, now),
            *_passage_lines(passages, next_seq),
            *({"tag": {"tag": tag}} for tag in dict.fromkeys(agent.tags)),
            *[line async for line in self._attachment_lines(project, agent, progress)],
        ]
        end = next_seq + len(passages)
        return await self._make_memory(scope, lines, end, progress), end

    async def _make_memory(
        self, scope: Scope, lines: Iterable[dict[str, Any]], next_seq: int, progress: _ImportProgress
    ) -> Agent:
        """Makes a memory of the lines of an export. It stays hidden until its transfer ends."""
        transfer = self._store.transfer
        memory = await transfer.begin_import(self._store.agents.new(scope))
        progress.undo.append(lambda: self._store.forgetting.wipe(memory.id))
        reader, rest = LineReader(self._store, memory, next_seq), iter(lines)
        while some := list(islice(rest, LINES_OF_TRANSACTION)):
            await transfer.write(memory, [await reader.read(line) for line in some])
        return memory

    async def _attachment_lines(
        self, project: str, agent: PortableAgent, progress: _ImportProgress
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields what an agent has attached, without its blocks."""
        names = [*agent.tools, *(FILE_TOOLS if agent.folders else ())]
        for name in dict.fromkeys(names):
            if name in progress.tools:
                tool = progress.tools[name]
            elif (named := await self._registry.tools.named(project, name)) is not None:
                tool = named
            else:
                progress.left_out.append(f"tools.{name}")
                continue
            if tool.definition is None:
                attached: dict[str, Any] = {"built_in": BUILT_IN.index(name) + 1}
            else:
                attached = {"uid": tool.uid, "name": tool.name, "body": tool.definition.body}
            yield {"attached": {"kind": "tool", **attached}}
        for kind, keys, uids in (
            ("folder", agent.folders, progress.folders),
            ("archive", agent.archives, progress.archives),
        ):
            for key in keys:
                yield {"attached": {"kind": kind, "uid": uids[key]}}
        for each in agent.identities:
            body = each.definition.body()
            yield {"attached": {"kind": "identity", "uid": each.uid, "name": each.key, "body": body}}


def _searchable_parts(passages: Sequence[PassageDraft]) -> Sequence[PassageDraft]:
    """Returns passages in parts of a length that can be searched."""
    return [replace(each, text=part) for each in passages for part in passages_in(each.text)]


def _count_parts(folder: PortableFolder) -> int:
    return sum(1 for _, _, text in folder.files for _ in split_text(text))


def _message_lines(agent: PortableAgent) -> tuple[list[dict[str, Any]], int]:
    """Returns the lines of an agent's conversations, and the next number."""
    lines, next_seq = conversation_lines(agent.messages, ids.new_uid(), DEFAULT_CONVERSATION)
    for each in agent.conversations:
        spoken, next_seq = conversation_lines(each.messages, each.uid, None, begun=each.begun, first=next_seq)
        definitions = {
            "kind": DefinitionKind.CONVERSATION, "uid": each.uid, "name": "", "created": each.begun,
            "updated": each.begun, "body": each.definition.body(),
        }  # fmt: skip
        lines += [*spoken, {"definition": definitions}]
    return lines, next_seq


def _definition_line(
    kind: DefinitionKind, name: str, body: dict[str, Any], now: float, begun: float | None = None
) -> dict[str, Any]:
    begun = now if begun is None else begun
    return {"definition": {
        "kind": kind, "uid": "", "name": name, "created": begun, "updated": now, "body": body,
    }}  # fmt: skip


def _passage_lines(passages: Sequence[PassageDraft], first: int) -> Iterator[dict[str, Any]]:
    for n, each in enumerate(passages, first):
        yield {"passage": {
            "seq": n, "at": each.at, "exchange": None, "sources": [], "text": each.text, "tags": list(each.tags),
            "metadata": each.metadata,
        }}  # fmt: skip


def _uid(memory: Agent) -> str:
    return memory.scope.subject.rpartition(":")[2]


async def _undo(progress: _ImportProgress) -> None:
    """Takes back what a file has made, the last first. What cannot be taken back is logged, without its content."""
    for undo in reversed(progress.undo):
        try:
            await undo()
        except (StoreError, GatewayError) as error:
            _log.warning(
                "An agent file could not be imported, and a part of what it had made is still there (%s). Look for "
                "agents, blocks, folders and archives that were made now, and delete them.",
                type(error).__name__,
            )


def _block_lines(
    agent: PortableAgent, file: AgentFile, progress: _ImportProgress, now: float
) -> Iterator[dict[str, Any]]:
    """Yields an agent's blocks: those that an agent before it has are attached."""
    for key in agent.blocks:
        block, details = file.blocks[key]
        if key in progress.blocks:
            yield {"attached": {
                "kind": "block", "uid": progress.blocks[key], "label": block.label, "description": block.description,
                "limit": block.limit, "read_only": block.read_only, "value": block.value, "details": details,
            }}  # fmt: skip
            continue
        progress.blocks[key] = file.block_uids.get(key) or ids.new_uid()
        yield {"block": {
            "label": block.label, "description": block.description, "limit": block.limit,
            "read_only": block.read_only, "uid": progress.blocks[key], "details": details,
        }}  # fmt: skip
        yield {"version": {
            "block": block.label, "version": 1, "restores": None, "at": now, "origin": "import", "exchange": None,
            "sources": [], "value": block.value,
        }}  # fmt: skip


def _portable_messages(exchange: Exchange) -> Iterator[PortableMessage]:
    """Yields the messages of an exchange, but for those that were forgotten."""
    for n, message in enumerate(orjson.loads(exchange.input or b"[]")):
        if n not in exchange.redactions:
            yield PortableMessage(message, exchange.begun)
    if exchange.shown_reply is None or REPLY in exchange.redactions:
        return
    reply = (
        orjson.loads(exchange.full)["messages"]
        if exchange.full is not None
        else [orjson.loads(exchange.shown_reply)]
    )
    for message in reply:
        model = exchange.model.partition("/")[2] if message.get("role") == "assistant" else ""
        yield PortableMessage(message, exchange.ended or exchange.begun, model)
