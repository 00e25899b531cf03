"""Agent files: agents with all that travels with them, read out of the store and brought in.

An agent that is brought in grows in a hidden memory (storage.sql.transfer), and takes its place when all of
the file is there. Whatever goes wrong before that, nothing of the file is left.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
from msgspec.structs import replace

from gateway.agents.core.agent_file import (
    AgentFile,
    CarriedAgent,
    CarriedArchive,
    CarriedFolder,
    CarriedMessage,
)
from gateway.agents.core.kinds import BUILT_IN, FILE_TOOLS
from gateway.agents.files.file_exchanges import conversation_lines
from gateway.agents.files.folder_search import Folders, SentFile, folder_scope
from gateway.agents.registry.archives import Archives
from gateway.agents.registry.registry import Registry, api_scope
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.tools.foreign import ForeignTools
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.file_text import passages_in, split_text
from gateway.errors import GatewayError
from gateway.run.admin.transfer_operations import WRITTEN, LineReader
from gateway.run.memory.keeper import TurnEvents
from storage.errors import NotFound, StoreError
from storage.listing import AgentEntry, Page, PassageDraft
from storage.records import API_PROFILE, DEFAULT, Agent, DefinitionKind, Exchange, Scope
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")
_PAGE = 50
_PASSAGES = 500
Undo = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class _Done:
    """The things that a file has made so far, by what names them, and how each is undone. left_out: names."""

    tools: dict[str, ToolView] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    undo: list[Undo] = field(default_factory=list)
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
        events: TurnEvents,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._registry = registry
        self._archives = archives
        self._folders = folders
        self._foreign = foreign
        self._events = events
        self._now = now

    # -- read out

    async def messages(self, agent: Agent, conversation: str = DEFAULT) -> Sequence[CarriedMessage]:
        """Returns the messages of a conversation, oldest first; hidden rounds as messages."""
        try:
            found = await self._store.messages.conversation(agent.id, conversation)
        except NotFound:
            if conversation == DEFAULT:
                return []
            raise
        carried: list[CarriedMessage] = []
        after = -1
        while True:
            page = Page(after, None, _PAGE, newest_first=False)
            rows = await self._store.messages.page(agent.id, page, conversation=found.id)
            for row in rows:
                carried += _carried(row.exchange)
            if len(rows) < _PAGE:
                return carried
            e = rows[-1].exchange
            after = e.seq + len(e.inputs) + 1

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

    async def archives(self, agent: Agent) -> Sequence[CarriedArchive]:
        """Returns the archives that an agent has attached."""
        rows = await self._store.attached.targets(agent.id, DefinitionKind.ARCHIVE)
        definitions = await self._store.definitions.of_memories(DefinitionKind.ARCHIVE, rows)
        memories = await self._store.defined_agents.memories(agent.scope.project, rows)
        return [
            CarriedArchive(definitions[each.id].name, definitions[each.id].body, await self.passages(each))
            for each in memories
            if each.id in definitions
        ]

    # -- brought in

    async def bring_in(
        self, project: str, file: AgentFile, *, overrides_tools: bool
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Makes the agents of a file. overrides_tools: the file's tools take the place of those with their names.

        Returns their public names, and what was left out. Raises: Conflict.
        """
        done = _Done(left_out=list(file.left_out))
        for agent in file.agents:
            self._registry.check_name(agent.name)
        try:
            await self._make_tools(project, file.tools, done, overrides=overrides_tools)
            await self._make_stores(project, file, done)
            made = [await self._grow(project, agent, file, done) for agent in file.agents]
            for memory, next_seq in made:
                await self._store.transfer.finish_import(memory, next_seq)
            for agent, (memory, _) in zip(file.agents, made, strict=True):
                if agent.definition.sleeptime is not None:
                    await self._sleep_on(project, memory, done)
        except BaseException:
            await asyncio.shield(_undo(done))
            raise
        finally:
            self._registry.changed()
        for memory, next_seq in made:
            self._events.index_outdated(memory.id)
            self._events.turn_stored(memory.id, next_seq)
        return [_uid(memory) for memory, _ in made], done.left_out

    async def _sleep_on(self, project: str, memory: Agent, done: _Done) -> None:
        """Gives an agent a sleeptime agent of its own."""

        async def entry() -> AgentEntry:
            return await self._store.defined_agents.get(project, _uid(memory))

        sleepers = self._registry.sleepers
        # Before it is made: what is not there is not taken back.
        done.undo.append(lambda: _then(entry(), sleepers.turn_off))
        await sleepers.turn_on(await entry())

    async def _make_tools(
        self, project: str, tools: Mapping[str, ToolDefinition], done: _Done, *, overrides: bool
    ) -> None:
        registry = self._registry.tools
        for name, definition in tools.items():
            found = await registry.named(project, name)
            runs = await self._foreign.refusal(definition) is None
            # What cannot run here takes nothing's place: it is there until it can, or is made something that runs.
            if found is not None and not (runs and overrides):
                done.tools[name] = found
                continue
            if not runs:
                done.left_out.append(f"tools.{name}.{definition.source_type}")
            if found is None:
                made = done.tools[name] = await registry.create(project, name, definition)
                done.undo.append(lambda uid=made.uid: registry.delete(project, uid))  # type: ignore[misc]
                continue
            assert found.definition is not None
            before = ToolDefinition.of(found.definition.body)
            done.tools[name] = await registry.put(project, name, definition)
            done.undo.append(lambda name=name, before=before: registry.put(project, name, before))  # type: ignore[misc]

    async def _make_stores(self, project: str, file: AgentFile, done: _Done) -> None:
        for key, uid in file.block_uids.items():
            with suppress(NotFound):
                done.blocks[key] = (await self._store.named_blocks.get(project, uid)).block.uid
        for key, folder in file.folders.items():
            if await self._is_there(project, DefinitionKind.FOLDER, folder.uid, key, done.folders):
                continue
            named = await self._store.definitions.named(project, DefinitionKind.FOLDER, folder.name, 1)
            name = f"{folder.name}_{ids.new_uid()[:8]}" if named else folder.name
            done.folders[key] = await self._make_folder(project, name, folder, done)
        for key, archive in file.archives.items():
            if await self._is_there(project, DefinitionKind.ARCHIVE, archive.uid, key, done.archives):
                continue
            done.archives[key] = await self._make_archive(project, archive, done)

    async def _make_folder(self, project: str, name: str, folder: CarriedFolder, done: _Done) -> str:
        """Makes a folder, which stays hidden until it is complete. Returns its public name."""
        uid = folder.uid or ids.new_uid()
        line = _definition_line(DefinitionKind.FOLDER, name, folder.body, self._now())
        memory = await self._fill(folder_scope(project, uid), [line], 1, done)
        for file_name, type, text in folder.files:
            # Letta's server reads PDFs and the like: what it carries is their text.
            await self._folders.save(memory.id, SentFile(file_name, type, text.encode()), text, "suffix")
        next_seq = 1 + await asyncio.to_thread(_count_parts, folder)
        await self._settle(memory, next_seq)
        return uid

    async def _settle(self, memory: Agent, next_seq: int) -> None:
        """Puts a memory that was filled in its place. next_seq: the number of what comes to it next."""
        await self._store.transfer.finish_import(memory, next_seq)
        self._events.index_outdated(memory.id)
        self._events.turn_stored(memory.id, next_seq)

    async def _make_archive(self, project: str, archive: CarriedArchive, done: _Done) -> str:
        """Makes an archive, which stays hidden until it is complete. Returns its public name."""
        uid = archive.uid or ids.new_uid()
        passages = await asyncio.to_thread(_cut, archive.passages)
        lines = [
            _definition_line(DefinitionKind.ARCHIVE, archive.name, archive.body, self._now()),
            *_passage_lines(passages, 1),
        ]
        next_seq = len(passages) + 1
        memory = await self._fill(
            Scope(project, API_PROFILE, f"{DefinitionKind.ARCHIVE}:{uid}"), lines, next_seq, done
        )
        await self._settle(memory, next_seq)
        return uid

    async def _is_there(
        self, project: str, kind: DefinitionKind, uid: str | None, key: str, made: dict[str, str]
    ) -> bool:
        """Returns whether what keeps its uid is there already; then it counts as made."""
        if uid is None or await self._store.definitions.find(project, kind, uid) is None:
            return False
        made[key] = uid
        return True

    async def _grow(
        self, project: str, agent: CarriedAgent, file: AgentFile, done: _Done
    ) -> tuple[Agent, int]:
        """Makes the memory of an agent, which is hidden as yet. Returns it, and its next number."""
        now = self._now()
        scope = api_scope(project, agent.uid or ids.new_uid())
        definitions, next_seq = await asyncio.to_thread(_message_lines, agent)
        lines = [
            *definitions,
            _definition_line(DefinitionKind.AGENT, agent.name, agent.definition.body(), now, agent.begun),
            *_block_lines(agent, file, done, now),
            *_passage_lines(agent.passages, next_seq),
            *({"tag": {"tag": tag}} for tag in dict.fromkeys(agent.tags)),
            *[{"attached": each} async for each in self._attached(project, agent, done)],
        ]
        end = next_seq + len(agent.passages)
        return await self._fill(scope, lines, end, done), end

    async def _fill(self, scope: Scope, lines: Iterable[dict[str, Any]], next_seq: int, done: _Done) -> Agent:
        """Makes a memory of lines, which stays hidden until its transfer ends."""
        transfer = self._store.transfer
        draft = Agent(0, ids.new_uid(), scope, secrets.token_bytes(16), 0, created=self._now())
        memory = await transfer.begin_import(draft)
        done.undo.append(lambda: self._store.forgetting.wipe(memory.id))
        reader, rest = LineReader(self._store, memory, next_seq), iter(lines)
        while some := list(islice(rest, WRITTEN)):
            await transfer.write(memory, [await reader.read(line) for line in some])
        return memory

    async def _attached(self, project: str, agent: CarriedAgent, done: _Done) -> Any:
        """Yields what an agent has attached, without its blocks."""
        names = [*agent.tools, *(FILE_TOOLS if agent.folders else ())]
        for name in dict.fromkeys(names):
            if name in done.tools:
                tool = done.tools[name]
            elif (named := await self._registry.tools.named(project, name)) is not None:
                tool = named
            else:
                done.left_out.append(f"tools.{name}")
                continue
            if tool.definition is None:
                yield {"kind": "tool", "built_in": BUILT_IN.index(name) + 1}
            else:
                yield {"kind": "tool", "uid": tool.uid, "name": tool.name, "body": tool.definition.body}
        for kind, keys, uids in (
            ("folder", agent.folders, done.folders),
            ("archive", agent.archives, done.archives),
        ):
            for key in keys:
                yield {"kind": kind, "uid": uids[key]}
        for each in agent.identities:
            yield {"kind": "identity", "uid": each.uid, "name": each.key, "body": each.definition.body()}


def _cut(passages: Sequence[PassageDraft]) -> Sequence[PassageDraft]:
    """Returns passages in parts of a length that can be searched."""
    return [replace(each, text=part) for each in passages for part in passages_in(each.text)]


def _count_parts(folder: CarriedFolder) -> int:
    return sum(1 for _, _, text in folder.files for _ in split_text(text))


def _message_lines(agent: CarriedAgent) -> tuple[list[dict[str, Any]], int]:
    """Returns the lines of an agent's conversations, and the next number."""
    lines, next_seq = conversation_lines(agent.messages, ids.new_uid(), DEFAULT)
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


async def _then(found: Awaitable[AgentEntry], do: Callable[[AgentEntry], Awaitable[None]]) -> None:
    await do(await found)


def _uid(memory: Agent) -> str:
    return memory.scope.subject.rpartition(":")[2]


async def _undo(done: _Done) -> None:
    """Takes back what a file has made, the last first. What cannot be taken back is logged, without its content."""
    for undo in reversed(done.undo):
        try:
            await undo()
        except (StoreError, GatewayError) as error:
            _log.warning(
                "An agent file could not be imported, and a part of what it had made is still there (%s). Look for "
                "agents, blocks, folders and archives that were made now, and delete them.",
                type(error).__name__,
            )


def _block_lines(agent: CarriedAgent, file: AgentFile, done: _Done, now: float) -> Iterator[dict[str, Any]]:
    """Yields an agent's blocks: those that an agent before it has are attached."""
    for key in agent.blocks:
        block, details = file.blocks[key]
        if key in done.blocks:
            yield {"attached": {
                "kind": "block", "uid": done.blocks[key], "label": block.label, "description": block.description,
                "limit": block.limit, "read_only": block.read_only, "value": block.value, "details": details,
            }}  # fmt: skip
            continue
        done.blocks[key] = file.block_uids.get(key) or ids.new_uid()
        yield {"block": {
            "label": block.label, "description": block.description, "limit": block.limit,
            "read_only": block.read_only, "uid": done.blocks[key], "details": details,
        }}  # fmt: skip
        yield {"version": {
            "block": block.label, "version": 1, "restores": None, "at": now, "origin": "import", "exchange": None,
            "sources": [], "value": block.value,
        }}  # fmt: skip


def _carried(e: Exchange) -> Iterator[CarriedMessage]:
    """Yields the messages of an exchange, but for those that were forgotten."""
    for n, message in enumerate(orjson.loads(e.input or b"[]")):
        if n not in e.redactions:
            yield CarriedMessage(message, e.begun)
    if e.shown_reply is None or -1 in e.redactions:
        return
    reply = orjson.loads(e.full)["messages"] if e.full is not None else [orjson.loads(e.shown_reply)]
    for message in reply:
        model = e.model.partition("/")[2] if message.get("role") == "assistant" else ""
        yield CarriedMessage(message, e.ended or e.begun, model)
