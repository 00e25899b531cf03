"""Views of memories, a screen at a time: all of them, one memory, its lists, a block, a fact, a conversation.

Each operation only reads, and only the memory that is named. The command line prints the records, a template of the
page renders them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, cast

from msgspec import UNSET, Struct

from gateway.core.memory.mcp_tools import through_mcp
from gateway.core.memory.standing import standing_block
from gateway.core.memory.visibility import recallable_messages
from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, MemoryNotFound, UnknownId
from gateway.run.admin.exchange_messages import message_records, shortened
from gateway.run.admin.hits import message_href, passage_href
from gateway.run.admin.operation_arguments import read_cursor, record_number, unreadable_cursor
from gateway.run.admin.page_records import (
    BLOCK_ORIGINS,
    BlockOrigin,
    BlockRecord,
    FactOrigin,
    FactRecord,
    HitRecord,
    MemoryKind,
    MemoryRecord,
    MessageRecord,
    RunSummary,
    SourceRecord,
    VersionRecord,
)
from gateway.run.admin.request_operations import name_of
from storage.batch_records import call_of_origin
from storage.listing import (
    FIRST_PAGE,
    LAST_NUMBER,
    FoundMemory,
    Page,
    PageEnd,
    PassageFilter,
    ShownBlock,
    SizedConversation,
    SizedMemory,
    SourceExchange,
)
from storage.records import Exchange, Fact, Passage, Revision, StandingFact
from storage.sql.store import Store

S = TypeVar("S")
T = TypeVar("T")

# Items of a page where no limit is named, and the highest limit.
PAGE, MAX_LIMIT = 50, 200
# How many of each list the page of a memory shows.
_SHOWN_FACTS, _SHOWN_CONVERSATIONS, _SHOWN_PASSAGES = 20, 10, 5
# A name is looked for in the blocks of so many people, and so many are shown. It has no index.
PEOPLE_LOOKED_AT, _SHOWN_PEOPLE = 500, 10
# How many of the exchanges that something came from are shown: in a list, and on its own page.
_LISTED_SOURCES, _PAGE_SOURCES = 2, 8
_SOURCE_CHARS = 1_000
_PASSAGE_CHARS = 4_000
_OPENING_CHARS = 80
# In an exchange that is stored in more bytes no opening words, and no question, are looked for.
_OPENING_BYTES = 100_000
# How the ids of agents begin.
_AGENT_ID = "agent-"
_DAY_S = 86_400.0


class ListPage(Struct, Generic[T], frozen=True):
    """A page of a list. next: `after` of the next page; None: this is the last one."""

    items: tuple[T, ...]
    next: str | None


class ConversationRecord(Struct, frozen=True):
    """A conversation."""

    id: str
    # The client's own id.
    client_id: str | None
    begun: float
    last_turn: float
    messages: int
    bytes: int


class MemoryPage(Struct, frozen=True):
    """A memory on one page: all blocks, and the newest of each list."""

    memory: MemoryRecord
    blocks: tuple[BlockRecord, ...]
    facts: tuple[FactRecord, ...]
    conversations: tuple[ConversationRecord, ...]
    passages: tuple[SourceRecord, ...]


class AgentMemoryPage(MemoryPage, frozen=True):
    """An agent's memory on one page, with its newest runs."""

    runs: tuple[RunSummary, ...]


class BlockDiff(Struct, frozen=True, rename={"from_": "from"}):
    """The difference of two versions of a block. from_, to: their numbers."""

    from_: int
    to: int
    parts: tuple[DiffPart, ...]


class BlockPage(Struct, frozen=True):
    """A block with a page of its versions, the newest first."""

    block: BlockRecord
    versions: tuple[VersionRecord, ...]
    next: str | None
    # None: there is one version alone.
    diff: BlockDiff | None


class ChangedBlock(Struct, frozen=True):
    """The versions of a block: that of an earlier time, and the present one."""

    # None: it is forgotten, or the block was made later.
    before: int | None
    now: int


class BlocksSince(Struct, frozen=True):
    """The blocks of a memory by their labels, divided by whether they were changed after a time."""

    # The texts of those that were not.
    same: dict[str, str]
    changed: dict[str, ChangedBlock]


class FactPage(Struct, frozen=True):
    """A fact, those whose place it took, and the one that took its place."""

    fact: FactRecord
    before: tuple[FactRecord, ...]
    after: FactRecord | None


class BranchRecord(Struct, frozen=True):
    """A branch of a conversation, named by the number of its last exchange."""

    id: int
    # Of its path.
    messages: int
    last_turn: float
    # It is the one that was spoken in last.
    current: bool


class ConversationPage(Struct, frozen=True):
    """A page of a branch, oldest first."""

    conversation: ConversationRecord
    branches: tuple[BranchRecord, ...]
    # None: the conversation is empty.
    branch: int | None
    items: tuple[MessageRecord, ...]
    # `before` of the page with earlier messages.
    next: str | None


class LaterMessages(Struct, frozen=True):
    """The page after a page of a conversation."""

    # As for `MemoryViews.conversation`.
    branch: int
    # As for `MemoryViews.conversation`.
    before: int | None
    # The number of its first message that the page before has not.
    first: int


class MessagesAround(Struct, frozen=True):
    """Messages of a conversation, oldest first. conversation: its id."""

    conversation: str
    items: tuple[MessageRecord, ...]


class MemoryViews(Struct, frozen=True):
    """Reads memories. All methods raise UnknownId where there is no such memory, or part of it.

    project: the caller's, whose memories alone are seen; None: all are.
    """

    store: Store
    # Seconds since the epoch.
    now: Callable[[], float]
    # How long it is noted which request a reply answers.
    keep_why_days: float = 7.0

    async def memories(
        self,
        project: str | None,
        kind: MemoryKind = "user",
        q: str = "",
        *,
        after: str | None = None,
        limit: int = PAGE,
    ) -> ListPage[MemoryRecord]:
        """Returns a page of memories, those with the newest turns first.

        q: how their names begin; of agents also the ids.

        Raises: BadRequest: `after` cannot be read.
        """
        before = FIRST_PAGE if after is None else _parse_page_end(after)
        if kind == "agent":
            memories = await self._list_agents(project, q, before, limit + 1)
        else:
            pages = self.store.memory_pages
            memories = await pages.memories(project, f"{kind}:{q}", before=before, limit=limit + 1)
        items = tuple(map(_memory_record, memories[:limit]))
        return ListPage(items, _next_cursor(memories, limit, lambda each: _format_page_end(each.end)))

    async def people_called(self, project: str | None, name: str) -> list[tuple[MemoryRecord, str]]:
        """Returns memories with a name in a block, each with the line that has it.

        Looks at the `PEOPLE_LOOKED_AT` with the newest turns.
        """
        people = await self.store.memory_pages.people_called(
            project, name, among=PEOPLE_LOOKED_AT, limit=_SHOWN_PEOPLE
        )
        return [(_memory_record(memory), _line_with(text, name)) for memory, text in people]

    async def memory(self, project: str | None, uid: str) -> MemoryPage:
        """Returns a memory."""
        pages = self.store.memory_pages
        memory = await pages.sized_memory(uid, project)
        if memory is None:
            raise MemoryNotFound
        facts = await self.store.facts.list(memory.id, limit=_SHOWN_FACTS)
        conversations = await pages.conversations(memory.id, limit=_SHOWN_CONVERSATIONS)
        passages = await self.store.passages.page(memory.id, Page(limit=_SHOWN_PASSAGES), PassageFilter())
        return MemoryPage(
            _memory_record(memory),
            await self._block_records(memory.id),
            await self._fact_records(memory, facts),
            tuple(map(_conversation_record, conversations)),
            tuple(_passage_record(uid, each) for each in passages),
        )

    async def facts(
        self,
        project: str | None,
        uid: str,
        *,
        is_all: bool = False,
        as_of: float | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> ListPage[FactRecord]:
        """Returns a page of facts, the newest first.

        is_all: with those that are no longer true.
        as_of: those that were true then, in seconds since the epoch.
        """
        memory = await self.find(project, uid)
        before = read_cursor(after, LAST_NUMBER)
        facts = await self.store.facts.list(
            memory.id, is_all=is_all, as_of=as_of, before=before, limit=limit + 1
        )
        items = await self._fact_records(memory, facts[:limit])
        return ListPage(items, _next_cursor(facts, limit, lambda fact: str(fact.seq)))

    async def conversations(
        self, project: str | None, uid: str, *, after: str | None = None, limit: int = PAGE
    ) -> ListPage[ConversationRecord]:
        """Returns a page of the conversations in which something is left, the newest first."""
        memory = await self.find(project, uid)
        before = FIRST_PAGE if after is None else _parse_page_end(after)
        conversations = await self.store.memory_pages.conversations(memory.id, before=before, limit=limit + 1)
        items = tuple(map(_conversation_record, conversations[:limit]))
        return ListPage(items, _next_cursor(conversations, limit, lambda each: _format_page_end(each.end)))

    async def openings(self, project: str | None, uid: str, conversations: Sequence[str]) -> dict[str, str]:
        """Returns the first words of the user by the ids of some conversations, as far as they may be seen."""
        return await self.openings_of((await self.find(project, uid)).id, conversations)

    async def openings_of(self, agent: int, conversations: Sequence[str]) -> dict[str, str]:
        """Returns what `openings` does, for a memory by its row."""
        openings = await self.store.memory_pages.openings(agent, conversations, _OPENING_BYTES)
        texts: dict[str, str] = {}
        for id, opening in openings.items():
            messages = recallable_messages(opening.exchange, opening.prefix_is_shared, None)
            text = next((m.text for m in messages if m.role == "user"), "")
            if words := " ".join(text[: 4 * _OPENING_CHARS].split()):
                texts[id] = shortened(words, _OPENING_CHARS)
        return texts

    async def questions(self, project: str | None, uid: str, requests: Sequence[str]) -> dict[str, str]:
        """Returns what was asked by some requests, by their ids, as far as it is known and may be seen."""
        memory = await self.find(project, uid)
        since = self.now() - self.keep_why_days * _DAY_S
        found = await self.store.recalls.exchanges(memory.id, requests, since, _OPENING_BYTES)
        texts = dict[str, str]()
        for id, (exchange, prefix_is_shared, _) in found.items():
            asked = [m for m in recallable_messages(exchange, prefix_is_shared, None) if m.role == "user"]
            if asked and (words := " ".join(asked[-1].text[: 4 * _OPENING_CHARS].split())):
                texts[id] = shortened(words, _OPENING_CHARS)
        return texts

    async def passages(
        self, project: str | None, uid: str, *, after: str | None = None, limit: int = PAGE
    ) -> ListPage[SourceRecord]:
        """Returns a page of passages, the newest first."""
        memory = await self.find(project, uid)
        page = Page(after=read_cursor(after, None), limit=limit + 1)
        passages = await self.store.passages.page(memory.id, page, PassageFilter())
        items = tuple(_passage_record(uid, passage) for passage in passages[:limit])
        return ListPage(items, _next_cursor(passages, limit, lambda passage: str(passage.seq)))

    async def block(
        self,
        project: str | None,
        uid: str,
        label: str,
        *,
        from_: int | None = None,
        to: int | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> BlockPage:
        """Returns a block with a page of its versions.

        from_, to: the versions that are compared; None: the newest with the one before it.

        Raises: BadRequest: there is no such version.
        """
        memory = await self.find(project, uid)
        shown = await self._find_block(memory.id, label)
        before = read_cursor(after, LAST_NUMBER)
        versions = await self.store.memory_pages.versions(shown.block.id, before=before, limit=limit + 1)
        sources = await self._list_sources(memory, versions[:limit], _LISTED_SOURCES)
        waiting = (await self.store.blocks.list_waiting_labels(memory.id)).count(label)
        return BlockPage(
            _block_record(shown, waiting),
            tuple(map(_version_record, versions[:limit], sources)),
            _next_cursor(versions, limit, lambda version: str(version.version)),
            await self._compare_versions(shown.block.id, from_, to),
        )

    async def undos(self, project: str | None, uid: str, label: str | None = None) -> dict[str, BlockDiff]:
        """Returns what an undo would change, by the labels of the blocks that have a change left to undo.

        label: of the only block that matters; None: all do.
        """
        memory = await self.find(project, uid)
        shown = await self.store.memory_pages.blocks(memory.id)
        blocks = [each.block for each in shown if label in (None, each.block.label)]
        undone = [(each, await self.store.blocks.find_undone(each.id, each.version)) for each in blocks]

        def compare() -> dict[str, BlockDiff]:
            return {
                block.label: BlockDiff(block.version, before[0], diff_words(block.value, before[1]))
                for block, before in undone
                if before is not None
            }

        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        return await asyncio.to_thread(compare)

    async def fact(self, project: str | None, uid: str, seq: int) -> FactPage:
        """Returns a fact."""
        memory = await self.find(project, uid)
        facts = self.store.facts
        fact = await facts.find(memory.id, seq)
        if fact is None:
            raise UnknownId("There is no such fact.")
        before = await facts.list_replaced(memory.id, fact.id)
        after = None if fact.successor is None else await facts.find(memory.id, fact.successor)
        (record,) = await self._fact_records(memory, [fact], _PAGE_SOURCES)
        others = await self._fact_records(memory, [*before, *([] if after is None else [after])])
        return FactPage(record, others[: len(before)], others[-1] if after is not None else None)

    async def conversation(
        self,
        project: str | None,
        uid: str,
        id: str,
        *,
        branch: int | None = None,
        before: str | None = None,
        limit: int = PAGE,
        most_chars: int | None = None,
    ) -> ConversationPage:
        """Returns a page of a conversation, the newest messages where `before` is None.

        branch: the number of the exchange with which the path ends; None: the one that was spoken in last.
        before: `next` of the page with the messages after these.
        most_chars: of the texts of all items, as far as there are more items than one.
        """
        memory = await self.find(project, uid)
        pages = self.store.memory_pages
        conversation = await pages.conversation(memory.id, id)
        if conversation is None or not conversation.messages:
            raise _no_conversation()
        record = _conversation_record(conversation)
        branches = await pages.branches(memory.id, conversation.id)
        current = next((b for b in branches if b.is_active), branches[0] if branches else None)
        branch_records = tuple(BranchRecord(b.seq, b.messages, b.last_turn, b is current) for b in branches)
        if branch is None:
            if current is None:
                return ConversationPage(record, branch_records, None, (), None)
            branch = current.seq
        # The path of the first message of the page before goes on above it; other numbers are of other conversations.
        first = read_cursor(before, branch, "before")
        end = await self._exchange_of(memory.id, conversation.id, first)
        if end is None:
            raise _no_conversation()
        path = await pages.path(memory.id, end, limit=limit + 2)
        newest_first = await self._newest_first(memory.id, path, None if before is None else first)
        items, is_full = _take_messages(newest_first, limit, most_chars)
        is_more = is_full or path[-1].parent is not None
        oldest = items[-1].seq if items else path[-1].seq
        earlier = str(oldest) if is_more else None
        return ConversationPage(record, branch_records, branch, tuple(reversed(items)), earlier)

    async def _exchange_of(self, agent: int, conversation: int, seq: int) -> int | None:
        """Returns the row of the exchange with a message of a conversation; None: the conversation has no such message.

        It also has the messages of those from which it was forked.
        """
        rows = await self.store.memory_pages.exchange_of_message(agent, seq)
        if rows is None or rows.conversation not in await self.store.messages.past(agent, conversation):
            return None
        return rows.exchange

    async def _newest_first(
        self, agent: int, path: Sequence[Exchange], before: int | None
    ) -> Iterator[MessageRecord]:
        """Returns the messages of a path before a number, each reply with its request. None: all messages."""
        since = self.now() - self.keep_why_days * _DAY_S
        requests = await self.store.recalls.requests(agent, [e.id for e in path], since)
        return (
            record
            for e in path
            for record in reversed(message_records(e, requests.get(e.id)))
            if before is None or record.seq < before
        )

    async def exchange(self, project: str | None, uid: str, seq: int) -> list[MessageRecord]:
        """Returns the messages of an exchange, in order. seq: of its first one. Raises: UnknownId, StoreError."""
        memory = await self.find(project, uid)
        pages = self.store.memory_pages
        rows = await pages.exchange_of_message(memory.id, seq)
        path = [] if rows is None else await pages.path(memory.id, rows.exchange, limit=1)
        return [record for exchange in path for record in message_records(exchange, None)]

    async def later(
        self, project: str | None, uid: str, page: ConversationPage, *, is_cut: bool, limit: int = PAGE
    ) -> LaterMessages | None:
        """Returns where a conversation goes on below a page of it; None: the page has the last message.

        is_cut: the page ends before a message, maybe within an exchange.
        """
        if not page.items:
            return None
        memory = await self.find(project, uid)
        pages = self.store.memory_pages
        last = page.items[-1].seq
        rows = await pages.exchange_of_message(memory.id, last)
        if rows is None:
            return None
        place = (await pages.places(memory.id, [rows.exchange])).get(rows.exchange)
        if place is None or place.conversation != page.conversation.id:
            return None  # a fork has it of another conversation, which went on by itself
        if is_cut and last < place.reply_seq:
            before = last + 1 + limit
            return LaterMessages(place.seq, before if before <= place.reply_seq else None, last + 1)
        next_row = await pages.following(memory.id, *rows, steps=1)
        end_row = await pages.following(memory.id, *rows, steps=max(1, limit // 2))
        places = await pages.places(
            memory.id, sorted({row for row in (next_row, end_row) if row not in (None, rows.exchange)})
        )
        next_place, end_place = places.get(next_row or 0), places.get(end_row or 0)
        if next_place is None or end_place is None:
            return None
        return LaterMessages(end_place.seq, None, next_place.seq)

    async def around(self, project: str | None, uid: str, seq: int, limit: int) -> MessagesAround:
        """Returns messages of a conversation, oldest first: one with those before and after it on its path."""
        memory = await self.find(project, uid)
        pages = self.store.memory_pages
        rows = await pages.exchange_of_message(memory.id, seq)
        if rows is None:
            raise _no_message()
        last = await pages.following(memory.id, *rows, steps=limit // 2)
        place = (await pages.places(memory.id, [rows.exchange])).get(rows.exchange)
        if last is None or place is None:
            raise _no_message()
        path = await pages.path(memory.id, last, limit=2 * limit)
        records = [
            record
            for exchange in reversed(path)
            for record in message_records(exchange, None)
            if record.text is not None
        ]
        index = next((n for n, record in enumerate(records) if record.seq == seq), None)
        if index is None:
            raise _no_message()
        start = max(0, min(index - limit // 2, len(records) - limit))
        return MessagesAround(place.conversation, tuple(records[start : start + limit]))

    async def message(self, project: str | None, uid: str, id: str, seq: int) -> str:
        """Returns the whole text of a message of a conversation."""
        memory = await self.find(project, uid)
        pages = self.store.memory_pages
        conversation = await pages.conversation(memory.id, id)
        row = None if conversation is None else await self._exchange_of(memory.id, conversation.id, seq)
        if row is None:
            raise _no_message()
        (exchange,) = await pages.path(memory.id, row, limit=1)
        records = message_records(exchange, None, is_whole=True)
        text = next((record.text for record in records if record.seq == seq), None)
        if text is None:
            raise _no_message()
        return text

    async def name(self, project: str | None, uid: str) -> str:
        """Returns the name of a memory, as its record has it."""
        return name_of((await self.find(project, uid)).scope)

    # -- parts

    async def find(self, project: str | None, uid: str) -> FoundMemory:
        """Returns a memory. Raises: UnknownId."""
        memory = await self.store.memory_pages.memory(uid, project)
        if memory is None:
            raise MemoryNotFound
        return memory

    async def _list_agents(
        self, project: str | None, q: str, before: PageEnd, limit: int
    ) -> list[SizedMemory]:
        """Returns the memories of agents whose names or ids begin with `q`, those with the newest turns first."""
        pages = self.store.memory_pages
        if _AGENT_ID.startswith(q):  # as all ids do
            return await pages.memories(project, "agent:", before=before, limit=limit)
        agents = await pages.agents_named(project, q, before=before, limit=limit)
        if q.startswith(_AGENT_ID):
            # Subjects have an agent's id without its kind and dashes.
            prefix = f"agent:{q[len(_AGENT_ID) :].replace('-', '')}"
            by_id = await pages.memories(project, prefix, before=before, limit=limit)
            distinct = {agent.id: agent for agent in (*agents, *by_id)}.values()
            agents = sorted(distinct, key=lambda agent: agent.end, reverse=True)
        return agents[:limit]

    async def speakers(self, project: str | None, uid: str, hits: Iterable[HitRecord]) -> dict[int, str]:
        """Returns the speakers of the messages among some hits, by name or role, by the messages' numbers."""
        memory = await self.find(project, uid)
        seqs = sorted({each.seq for each in hits if each.kind == "message" and each.text is not None})
        messages = await self.store.recall.load(memory.id, seqs)
        return {seq: message.speaker or message.role for seq, message in messages.items()}

    async def blocks(self, project: str | None, uid: str) -> tuple[BlockRecord, ...]:
        """Returns the blocks of a memory. Raises: UnknownId, StoreError."""
        return await self._block_records((await self.find(project, uid)).id)

    async def standing_facts(self, uid: str, before: float = math.inf) -> tuple[FactRecord, ...]:
        """Returns the standing facts that are in each prompt, newest first, as far as there is room.

        before: those that were learned by then, in seconds since the epoch.

        Raises: UnknownId, StoreError.
        """
        memory = await self.find(None, uid)
        standing = await self.store.facts.standing(memory.id)
        facts = [fact for fact in standing if not fact.muted and fact.at <= before]
        if not facts:
            return ()
        blocks = [each.block for each in await self.store.memory_pages.blocks(memory.id)]
        candidates = [StandingFact(fact.seq, fact.text, fact.valid_from) for fact in facts]
        _, shown_seqs = standing_block(candidates, blocks, None)
        return await self._fact_records(memory, [fact for fact in facts if fact.seq in shown_seqs])

    async def blocks_since(self, uid: str, since: float) -> BlocksSince:
        """Returns the blocks, and which were changed after a time. Raises: UnknownId, StoreError."""
        memory = await self.find(None, uid)
        shown = await self.store.memory_pages.blocks(memory.id)
        blocks = [each.block for each in shown if each.changed_at > since]
        before = (
            await self.store.memory_pages.versions_at([each.id for each in blocks], since) if blocks else {}
        )
        same = {each.block.label: each.block.value for each in shown if each.changed_at <= since}
        changed = {each.label: ChangedBlock(before.get(each.id), each.version) for each in blocks}
        return BlocksSince(same, changed)

    async def _block_records(self, agent: int) -> tuple[BlockRecord, ...]:
        waiting = await self.store.blocks.list_waiting_labels(agent)
        blocks = await self.store.memory_pages.blocks(agent)
        return tuple(_block_record(each, waiting.count(each.block.label)) for each in blocks)

    async def _find_block(self, agent: int, label: str) -> ShownBlock:
        blocks = await self.store.memory_pages.blocks(agent)
        shown = next((each for each in blocks if each.block.label == label), None)
        if shown is None:
            raise UnknownId("There is no such block.")
        return shown

    async def _compare_versions(self, block: int, from_: int | None, to: int | None) -> BlockDiff | None:
        """Returns the difference of two versions; None: there is no version before `to`. Raises: BadRequest."""
        new = (
            await self._find_last_version(block) if to is None else await self._find_version(block, to, "to")
        )
        if new is None:
            return None
        if from_ is None:
            old = await self._find_last_version(block, new.version)
        else:
            old = await self._find_version(block, from_, "from")
        if old is None:
            return None
        parts = await asyncio.to_thread(diff_words, old.value, new.value)
        return BlockDiff(old.version, new.version, parts)

    async def _find_last_version(self, block: int, before: int = LAST_NUMBER) -> Revision | None:
        versions = await self.store.memory_pages.versions(block, before=before, limit=1)
        return versions[0] if versions else None

    async def _find_version(self, block: int, version: int, param: str) -> Revision:
        revision = await self._find_last_version(block, version + 1)
        if revision is None or revision.version != version:
            raise BadRequest(f"The block has no version {version}.", param=param)
        return revision

    async def _fact_records(
        self, memory: FoundMemory | SizedMemory, facts: Sequence[Fact], most: int = _LISTED_SOURCES
    ) -> tuple[FactRecord, ...]:
        return tuple(map(_fact_record, facts, await self._list_sources(memory, facts, most)))

    async def _list_sources(
        self, memory: FoundMemory | SizedMemory, items: Sequence[Fact | Revision], most: int
    ) -> list[tuple[SourceRecord, ...]]:
        """Returns the messages that each of these came from. most: how many exchanges are read for each."""
        origins = [_source_exchanges(each)[:most] for each in items]
        exchanges = await self.store.memory_pages.sources(
            memory.id, sorted({id for ids in origins for id in ids})
        )
        records = {id: _source_records(memory.uid, exchange) for id, exchange in exchanges.items()}
        return [tuple(record for id in ids for record in records.get(id, ())) for ids in origins]


def _line_with(text: str, name: str) -> str:
    """Returns the first line of a text that has a name, shortened."""
    line = next((line for line in text.splitlines() if name.casefold() in line.casefold()), text)
    return shortened(" ".join(line.split()), _OPENING_CHARS)


def _next_cursor(items: Sequence[S], limit: int, cursor_of: Callable[[S], str]) -> str | None:
    """Returns the cursor of the next page; None: there is none. items: of the page, up to one more than it has."""
    return cursor_of(items[limit - 1]) if len(items) > limit else None


def _memory_record(memory: SizedMemory) -> MemoryRecord:
    scope = memory.scope
    return MemoryRecord(
        memory.uid,
        cast(MemoryKind, scope.subject.partition(":")[0]),
        name_of(scope),
        scope.project,
        scope.profile,
        memory.created,
        memory.last_turn,
        memory.conversations,
        memory.messages,
        memory.bytes,
        memory.blocks,
        memory.facts,
        memory.paused is not None,
        memory.agent_name or UNSET,
    )


def _conversation_record(conversation: SizedConversation) -> ConversationRecord:
    return ConversationRecord(
        conversation.uid,
        conversation.key,
        conversation.begun,
        conversation.last_turn,
        conversation.messages,
        conversation.bytes,
    )


def _passage_record(uid: str, passage: Passage) -> SourceRecord:
    text = shortened(passage.text, _PASSAGE_CHARS)
    return SourceRecord("passage", passage.seq, text, passage.at, href=passage_href(uid, passage.seq))


def _fact_record(fact: Fact, sources: tuple[SourceRecord, ...]) -> FactRecord:
    return FactRecord(
        fact.seq,
        fact.text,
        fact.about,
        fact.valid_from,
        fact.at,
        fact.ended_at,
        fact.successor,
        fact.muted,
        cast(FactOrigin, fact.origin.partition(":")[0]),
        sources,
        (fact.standing and not fact.muted and fact.ended_at is None) or UNSET,
    )


def _source_records(uid: str, source: SourceExchange) -> tuple[SourceRecord, ...]:
    exchange = source.exchange
    messages = recallable_messages(exchange, source.prefix_is_shared, None)
    quoted = [m for m in messages if m.role == "user"] or messages[:1]
    if not quoted:
        return (SourceRecord("message", exchange.seq, None, exchange.begun, forgotten=True),)
    return tuple(
        SourceRecord(
            "message",
            m.seq,
            shortened(m.text, _SOURCE_CHARS),
            m.at,
            href=message_href(uid, source.conversation, exchange, m.seq),
            speaker=m.speaker or (UNSET if m.role == "user" else m.role),
        )
        for m in quoted
    )


def _block_record(shown: ShownBlock, waiting: int) -> BlockRecord:
    block = shown.block
    return BlockRecord(
        block.label,
        block.description,
        block.value,
        block.version,
        len(block.value),
        block.limit,
        block.read_only,
        shown.is_shared,
        shown.changed_at,
        writer_of(shown.origin),
        waiting,
    )


def _version_record(r: Revision, sources: tuple[SourceRecord, ...]) -> VersionRecord:
    return VersionRecord(r.version, r.at, writer_of(r.origin), r.restores, len(r.value), r.value, sources)


def writer_of(stored: str) -> BlockOrigin:
    """Returns who wrote a version, by what is stored of it; a name of a program's own is the API's."""
    if (call := call_of_origin(stored)) is not None:
        # A run that writes without an exchange in this memory reads it in the background.
        return "sleeptime" if call[0] else "tool"
    kind = stored.partition(":")[0] if through_mcp(stored) else stored
    return next((origin for origin in BLOCK_ORIGINS if origin == kind), "api")


def _source_exchanges(item: Fact | Revision) -> list[int]:
    """Returns the exchanges that something came from, the one where it was stated first."""
    stated = [] if item.exchange is None else [item.exchange]
    return list(dict.fromkeys([*stated, *item.sources]))


def _take_messages(
    records: Iterable[MessageRecord], limit: int, most_chars: int | None
) -> tuple[list[MessageRecord], bool]:
    """Returns the first messages, and whether there are more.

    most_chars: of the texts of all, as far as there are more messages than one.
    """
    items: list[MessageRecord] = []
    chars = 0
    for record in records:
        chars += _chars(record)
        if len(items) == limit or (items and most_chars is not None and chars > most_chars):
            return items, True
        items.append(record)
    return items, False


def _chars(record: MessageRecord) -> int:
    rounds = sum(len(r.arguments) + len(r.result) for r in record.rounds)
    return len(record.text or "") + len(record.note or "") + rounds


def _format_page_end(end: PageEnd) -> str:
    return f"{end[0]!r}_{end[1]}"


def _parse_page_end(after: str) -> PageEnd:
    """Returns the end of a page that a list gave as `next`. Raises: BadRequest."""
    at, _, row = after.partition("_")
    number = record_number(row)
    try:
        seconds = float(at)
    except ValueError:
        seconds = math.nan
    if number is None or not math.isfinite(seconds):
        raise unreadable_cursor()
    return seconds, number


def _no_conversation() -> UnknownId:
    return UnknownId("There is no such conversation.")


def _no_message() -> UnknownId:
    return UnknownId("There is no such message.")
