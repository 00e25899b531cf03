"""Views of memories: lists of memories, and a memory with its blocks and its newest facts, conversations and passages.

Each operation only reads, and only the memory that is named. The command line prints the records, a template of the
page renders them. The fields of `MemoryViews` are the views of blocks, facts and the like.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, cast

from msgspec import UNSET, Struct

from gateway.errors import BadRequest, MemoryNotFound
from gateway.run.admin.list_page import (
    PAGE_LIMIT,
    ListPage,
    format_page_end,
    make_next_cursor,
    parse_cursor,
    parse_page_end,
)
from gateway.run.admin.memory.block_views import BlockViews
from gateway.run.admin.memory.conversation_views import (
    ConversationRecord,
    ConversationViews,
    make_conversation_record,
)
from gateway.run.admin.memory.exchange_messages import shorten
from gateway.run.admin.memory.fact_views import FactViews
from gateway.run.admin.memory.message_views import MessageViews
from gateway.run.admin.memory.question_views import QuestionViews
from gateway.run.admin.memory.run_operations import RunSummary
from gateway.run.admin.memory.source_records import make_passage_record
from gateway.run.admin.memory_by_uid import get_memory, load_labels
from gateway.run.admin.memory_names import (
    find_name_line,
    find_name_sentence,
    get_memory_name,
    make_memory_label,
)
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.records.memory_records import (
    BlockRecord,
    FactRecord,
    MemoryKind,
    MemoryRecord,
    SourceRecord,
)
from storage.listing import Page, PageEnd, PassageFilter
from storage.operator_records import FoundMemory, SizedMemory
from storage.sql.store import Store

# The most facts that the page of a memory shows.
_SHOWN_FACTS = 20
# The most conversations that it shows.
_SHOWN_CONVERSATIONS = 10
# The most passages that it shows.
_SHOWN_PASSAGES = 5
# The most people in a search for a name, those with the newest turns: their ids and blocks are read, since names have
# no index.
NAMESAKES_AMONG = 500
# The most of these people that are shown.
_SHOWN_PEOPLE = 10
# The most characters that are shown of the line with the name.
_LINE_CHARS = 80
# The beginning of the ids of agents.
_AGENT_ID_PREFIX = "agent-"


class MemoryPage(Struct, frozen=True):
    """A memory on one page: all blocks, and the newest of each list."""

    memory: MemoryRecord
    # All blocks.
    blocks: tuple[BlockRecord, ...]
    # The newest facts.
    facts: tuple[FactRecord, ...]
    # The conversations with the newest turns.
    conversations: tuple[ConversationRecord, ...]
    # The newest passages.
    passages: tuple[SourceRecord, ...]


class AgentMemoryPage(MemoryPage, frozen=True):
    """An agent's memory on one page, with its newest runs."""

    runs: tuple[RunSummary, ...]


class NamedMemory(NamedTuple):
    """A memory that has a searched name in its person's id or in a block."""

    memory: MemoryRecord
    # The line of the block that has the name, shortened; "": no block has it.
    line: str


class NamedMemories(NamedTuple):
    """The memories that a search for a name shows."""

    # The memories, those with the newest turns first.
    items: list[NamedMemory]
    # True: more memories have the name than are shown.
    has_more: bool


class MemoryViews:
    """Reads memories.

    The parameter `project` of all methods is the only project that the caller sees; None: all projects. The methods and
    the methods of the fields raise UnknownId if there is no such memory.
    """

    def __init__(self, store: Store, now: Callable[[], float], keep_why_days: float = 7.0) -> None:
        """Makes views of the memories of a store.

        now: a function that returns the seconds since the epoch.
        keep_why_days: the days for which the recall of a request is stored.
        """
        self.store = store
        self.blocks = BlockViews(store)
        self.facts = FactViews(store)
        self.retention = RecallRetention(now, keep_why_days)
        self.conversations = ConversationViews(store, self.retention)
        self.messages = MessageViews(store)
        self.questions = QuestionViews(store, self.retention)

    async def list_page(
        self,
        project: str | None,
        kind: MemoryKind = "user",
        q: str = "",
        *,
        by_messages: bool = False,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
    ) -> ListPage[MemoryRecord]:
        """Returns a page of memories, those with the newest turns first.

        q: the beginning of the names of memories; for agents also of their ids.
        by_messages: True if memories with the most messages come first, which agents cannot be listed by.

        Raises: BadRequest: `after` cannot be read, or agents are to be listed by messages.
        """
        before = parse_page_end(after)
        if by_messages:
            return await self._list_by_messages(project, kind, q, before, limit)
        if kind == "agent":
            memories = await self._list_agents(project, q, before, limit + 1)
        else:
            pages = self.store.memory_pages
            memories = await pages.list_memories(project, f"{kind}:{q}", before=before, limit=limit + 1)
        items = tuple(map(make_memory_record, memories[:limit]))
        return ListPage(items, make_next_cursor(memories, limit, lambda last: format_page_end(last.end)))

    async def _list_by_messages(
        self, project: str | None, kind: MemoryKind, q: str, before: PageEnd, limit: int
    ) -> ListPage[MemoryRecord]:
        """Returns a page of memories, those with the most messages first. Raises: BadRequest: `kind` is "agent"."""
        if kind == "agent":
            raise BadRequest("Agents are listed by their newest turns alone.", param="order")
        memories = await self.store.memory_pages.list_memories(
            project, f"{kind}:{q}", before=before, limit=limit + 1, by_messages=True
        )
        items = tuple(map(make_memory_record, memories[:limit]))
        next_page = make_next_cursor(memories, limit, lambda last: format_page_end((last.messages, last.id)))
        return ListPage(items, next_page)

    async def list_people_called(self, project: str | None, name: str) -> NamedMemories:
        """Returns the memories with a name in their id or a block, among the `NAMESAKES_AMONG` with the newest turns.

        In an id four characters count anywhere, fewer at the beginning of a word. If there are no such memories, those
        with first and last name in the other order are returned.
        """
        for order in _list_name_orders(name):
            people = await self.store.memory_pages.list_people_called(
                project, order, among=NAMESAKES_AMONG, limit=_SHOWN_PEOPLE + 1
            )
            if people:
                shown = [
                    NamedMemory(make_memory_record(memory), _cut_line_with(text, order))
                    for memory, text in people[:_SHOWN_PEOPLE]
                ]
                return NamedMemories(shown, len(people) > _SHOWN_PEOPLE)
        return NamedMemories([], has_more=False)

    async def show(self, project: str | None, uid: str) -> MemoryPage:
        """Returns a memory with all its blocks, and its newest facts, conversations and passages."""
        pages = self.store.memory_pages
        memory = await pages.find_sized_memory(uid, project)
        if memory is None:
            raise MemoryNotFound
        facts = await self.store.facts.list_page(memory.id, limit=_SHOWN_FACTS)
        conversations = await pages.list_conversations(memory.id, limit=_SHOWN_CONVERSATIONS)
        passages = await self.store.passages.list_page(
            memory.id, Page(limit=_SHOWN_PASSAGES), PassageFilter()
        )
        return MemoryPage(
            memory=make_memory_record(memory),
            blocks=await self.blocks.list_by_row(memory.id),
            facts=await self.facts.make_records(memory, facts),
            conversations=tuple(map(make_conversation_record, conversations)),
            passages=tuple(make_passage_record(uid, passage) for passage in passages),
        )

    async def list_passages(
        self, project: str | None, uid: str, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> ListPage[SourceRecord]:
        """Returns a page of passages, the newest first."""
        memory = await get_memory(self.store, project, uid)
        page = Page(after=parse_cursor(after, None), limit=limit + 1)
        passages = await self.store.passages.list_page(memory.id, page, PassageFilter())
        items = tuple(make_passage_record(uid, passage) for passage in passages[:limit])
        return ListPage(items, make_next_cursor(passages, limit, lambda passage: str(passage.seq)))

    async def get_name(self, project: str | None, uid: str) -> str:
        """Returns the name of a memory, with its id if it is an agent's."""
        return make_memory_label(await get_memory(self.store, project, uid))

    async def load_labels(self, uids: Collection[str]) -> dict[str, str]:
        """Returns the names of memories by their uids, without those that are gone; of agents with their ids."""
        return await load_labels(self.store, uids)

    async def find_name_line(self, memory: FoundMemory) -> str | None:
        """Returns the line of a memory's blocks or facts that names its person, if there is such a line."""
        shown_blocks = await self.store.memory_pages.list_blocks(memory.id)
        blocks = ((shown.block.label, shown.block.value) for shown in shown_blocks if not shown.is_shared)
        return await self.find_name_line_with(memory.id, blocks)

    async def find_name_line_with(self, agent_row: int, blocks: Iterable[tuple[str, str]]) -> str | None:
        """Returns the result of `find_name_line`, by blocks that the caller has read.

        blocks: the labels and values of blocks that no other memory sees.
        """
        return find_name_line(blocks) or find_name_sentence(await self.store.facts.list_naming(agent_row))

    async def get(self, project: str | None, uid: str) -> FoundMemory:
        """Returns a memory without its sizes."""
        return await get_memory(self.store, project, uid)

    async def _list_agents(
        self, project: str | None, q: str, before: PageEnd, limit: int
    ) -> list[SizedMemory]:
        """Returns the memories of agents with a name or id that begins with `q`, those with the newest turns first."""
        pages = self.store.memory_pages
        # `q` may be a beginning of all ids.
        if _AGENT_ID_PREFIX.startswith(q):
            return await pages.list_memories(project, "agent:", before=before, limit=limit)
        agents = await pages.list_agents_named(project, q, before=before, limit=limit)
        if q.startswith(_AGENT_ID_PREFIX):
            # Subjects have an agent's id without its kind and dashes.
            prefix = f"agent:{q[len(_AGENT_ID_PREFIX) :].replace('-', '')}"
            agents_with_id = await pages.list_memories(project, prefix, before=before, limit=limit)
            distinct_agents = {agent.id: agent for agent in (*agents, *agents_with_id)}.values()
            agents = sorted(distinct_agents, key=lambda agent: agent.end, reverse=True)
        return agents[:limit]


def _list_name_orders(name: str) -> list[str]:
    """Returns a name, and if it is "Keller, Maria" or "Keller Maria" also "Maria Keller"."""
    parts = [part.strip() for part in name.split(",")] if "," in name else name.split()
    return [name, " ".join(reversed(parts))] if len(parts) == 2 and all(parts) else [name]


def _cut_line_with(text: str, name: str) -> str:
    """Returns the first line of a text that has a name, shortened."""
    line = next((line for line in text.splitlines() if name.casefold() in line.casefold()), text)
    return shorten(" ".join(line.split()), _LINE_CHARS)


def make_memory_record(memory: SizedMemory) -> MemoryRecord:
    """Returns the record of a memory."""
    scope = memory.scope
    return MemoryRecord(
        uid=memory.uid,
        kind=cast(MemoryKind, scope.subject.partition(":")[0]),
        name=get_memory_name(scope),
        project=scope.project,
        profile=scope.profile,
        created=memory.created,
        last_turn=memory.last_turn,
        conversations=memory.conversations,
        messages=memory.messages,
        bytes=memory.bytes,
        blocks=memory.blocks,
        facts=memory.facts,
        paused=memory.paused_at is not None,
        agent_name=memory.agent_name or UNSET,
    )
