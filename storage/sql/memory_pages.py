"""Pages of a memory's content for operators: the newest first, from the last row of the page before."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import orjson

from storage.database import Connection, Row
from storage.listing import FIRST_PAGE, PageEnd
from storage.operator_records import (
    Branch,
    ExchangeRef,
    FoundMemory,
    ShownBlock,
    SizedConversation,
    SizedMemory,
    SourceExchange,
    SummaryText,
    UnindexedTexts,
    UnindexedVersion,
)
from storage.records import CALL_ATOM, REPLY, RESULT_ATOM, Exchange, ExchangeState, Revision, Scope
from storage.sql import exchanges
from storage.sql.blocks import load_blocks, make_block, make_revision
from storage.sql.exchange_rows import (
    ATOM_BYTES,
    ShownExchange,
    make_exchange_with_content,
    make_shown_exchanges,
)
from storage.sql.group import StoreGroup, as_method, long_reads, reads
from storage.sql.statements import load, load_rows, lower_ascii

SQL = load("memory_pages.sql")

T = TypeVar("T")

# A text with this character at its end comes after all texts that begin with that text.
LAST_CHARACTER = chr(sys.maxunicode)
# The signs between the words of an id, as in `words_of_subject`.
_SIGNS_OF_ID = re.compile("[:.@_-]")
# The least characters that are looked for within the words of an id. Three of them are in too many ids ("ann", "123").
_MIN_PART_CHARS = 4
# Conversations of a list that one statement takes.
_CONVERSATIONS_PER_READ = 64
# Branches that end further up in a conversation, and the exchanges there, are not found and not counted.
_DEEPEST = 2_000
# The most branches that are listed. Not measured.
_MAX_BRANCHES = 50
# Texts that no index has are looked for among so many numbers of messages, the newest.
_NEWEST_SEQS = 4_000
# The most of these texts of each kind that are read, and their bytes: words are looked for in a megabyte in some 100 ms
# of processor time.
_MAX_UNINDEXED = 200
_MAX_UNINDEXED_BYTES = 1 << 18
# The index has the first 4,000 different terms of a text. A shorter exchange has no more.
_LONG_BYTES = 8_000


class CalledPerson(NamedTuple):
    """A memory of a person with a name in their id, or in one of the memory's own blocks."""

    # The memory.
    memory: SizedMemory
    # The text of the block; "": no block has it.
    block_text: str


class NamedExchange(NamedTuple):
    """An exchange, and the public id of the memory that has it."""

    # The public id of the memory.
    memory_uid: str
    # The exchange with its content.
    shown: ShownExchange


class MemoryPages(StoreGroup):
    """Reads pages of memories and of their content. No read finds content of another memory than `agent_row`."""

    @long_reads
    async def list_memories(
        self,
        connection: Connection,
        project: str | None,
        prefix: str,
        *,
        before: PageEnd = FIRST_PAGE,
        limit: int = 50,
        by_messages: bool = False,
    ) -> list[SizedMemory]:
        """Returns a page of memories.

        project: the project of the memories; None: any.
        prefix: the beginning of their subjects, at least the kind with its colon; the case of ASCII letters is ignored.
        before: the end of the page before: `SizedMemory.end`, or with `by_messages` a number of messages and a row.
        by_messages: True if the most messages come first, for which all memories are sorted; False: the newest turns.
        """
        values = (project, *_make_prefix_bounds(prefix), *before, limit)
        statement = SQL["memories_by_messages" if by_messages else "memories"]
        return [_make_memory(row) for row in await connection.fetch_rows(statement, values)]

    @long_reads
    async def list_agents_named(
        self,
        connection: Connection,
        project: str | None,
        prefix: str,
        *,
        before: PageEnd = FIRST_PAGE,
        limit: int = 50,
    ) -> list[SizedMemory]:
        """Returns a page of the memories of agents by a prefix of their names; ASCII letters count alike."""
        values = (project, *_make_prefix_bounds(prefix), *before, limit)
        return [_make_memory(row) for row in await connection.fetch_rows(SQL["agents_named"], values)]

    @long_reads
    async def list_people_called(
        self, connection: Connection, project: str | None, name: str, *, among: int, limit: int
    ) -> list[CalledPerson]:
        """Returns memories of people with a name in one of their own blocks, or with its words in their id.

        ASCII letters count alike, and signs in an id (li.wei) as spaces. A name of fewer than four characters is only
        found in an id where a word begins.

        among: the number of memories that are looked at: those with the newest turns.
        """
        word = lower_ascii(name)
        # Signs alone are no words: they are looked for unchanged, and an id has no signs between its words.
        id_words = " ".join(_SIGNS_OF_ID.sub(" ", word).split()) or word
        if len(id_words) < _MIN_PART_CHARS:
            id_words = f" {id_words}"
        rows = await connection.fetch_rows(SQL["people_called"], (project, word, among, limit, id_words))
        memories = [_make_memory(row) for row in rows]
        block_rows = await load_rows(connection, SQL["blocks_with"], [memory.id for memory in memories], word)
        texts: dict[int, str] = {row[0]: row[1] for row in block_rows}
        return [CalledPerson(memory, texts.get(memory.id, "")) for memory in memories]

    @reads
    async def find_memory(self, connection: Connection, uid: str, project: str | None) -> FoundMemory | None:
        """Returns the memory with a public id; None: there is no such memory in the project."""
        row = await connection.fetch_row(SQL["memory"], (project, uid))
        if row is None:
            return None
        agent_row, uid, project, profile, subject, *rest = row
        return FoundMemory(agent_row, uid, Scope(project, profile, subject), *rest)

    @long_reads
    async def find_sized_memory(
        self, connection: Connection, uid: str, project: str | None
    ) -> SizedMemory | None:
        """Returns the memory with a public id, with its sizes; None where `find_memory` returns None."""
        row = await connection.fetch_row(SQL["sized_memory"], (project, uid))
        return None if row is None else _make_memory(row)

    @long_reads
    async def list_conversations(
        self, connection: Connection, agent_row: int, *, before: PageEnd = FIRST_PAGE, limit: int = 50
    ) -> list[SizedConversation]:
        """Returns a page of the conversations in which something is left."""
        rows = await connection.fetch_rows(SQL["conversations"], (agent_row, *before, limit))
        return [SizedConversation(*row) for row in rows]

    @reads
    async def find_conversation(
        self, connection: Connection, agent_row: int, name: str
    ) -> SizedConversation | None:
        """Returns the conversation with this public id, or the client's."""
        row = await connection.fetch_row(SQL["conversation"], (agent_row, name))
        return None if row is None else SizedConversation(*row)

    @long_reads
    async def list_branches(
        self, connection: Connection, agent_row: int, conversation_row: int
    ) -> list[Branch]:
        """Returns the branches of a conversation, those spoken in last first, at most `_MAX_BRANCHES`.

        A branch of which nothing is left that another branch does not have is left out.
        """
        rows = await connection.fetch_rows(SQL["deepest"], (agent_row, conversation_row, _DEEPEST))
        return _find_branches([_PathStep(*row) for row in rows])[:_MAX_BRANCHES]

    @long_reads
    async def load_branch_beginnings(
        self, connection: Connection, agent_row: int, conversation_row: int, end_rows: Sequence[int]
    ) -> dict[int, int]:
        """Returns the number of the first message that each branch alone has, by the row with which the branch ends.

        A branch that is alone from further back than the deepest exchanges is left out.

        end_rows: the `exchange_row` of branches of the conversation.
        """
        rows = await connection.fetch_rows(SQL["parents"], (agent_row, conversation_row, _DEEPEST))
        # The rows of exchanges by the rows of the exchanges after them; 0: a message was sent without its history.
        parents: dict[int, int] = {row: parent or 0 for row, parent in rows}
        follower_counts = Counter(parents.values())
        first_rows: dict[int, int] = {}
        for end_row in parents.keys() & {*end_rows}:
            row = end_row
            while follower_counts[parents[row]] == 1 and parents[row] in parents:
                row = parents[row]
            if not parents[row] or parents[row] in parents:
                first_rows[end_row] = row
        refs = await load_rows(connection, SQL["exchange_refs"], sorted({*first_rows.values()}), agent_row)
        seqs = {row[0]: row[2] for row in refs}
        return {end_row: seqs[first_row] for end_row, first_row in first_rows.items()}

    @long_reads
    async def load_merged(
        self, connection: Connection, agent_row: int, conversation_row: int, *, before: int, limit: int
    ) -> list[Exchange]:
        """Returns the exchanges of all branches of a conversation with their content, the newest first.

        before: the number below which exchanges are listed.
        """
        rows = await connection.fetch_rows(
            SQL["merged"], (agent_row, conversation_row, before, limit, _DEEPEST)
        )
        return [make_exchange_with_content(row) for row in rows]

    find_exchange_of_message = reads(as_method(exchanges.find_exchange_of_message))

    @long_reads
    async def compute_first_seq_after(
        self, connection: Connection, agent_row: int, at: float, next_seq: int
    ) -> int:
        """Returns the number of the first exchange that began after a time, or the memory's next number.

        The exchanges are bisected, since no index has their times. So a number within them is returned for a memory
        whose messages were not written in their order, as by an import.

        next_seq: the memory's next number.
        """
        low, high = 0, next_seq
        while low < high:
            middle = (low + high) // 2
            row = await connection.fetch_row(SQL["begun_from"], (agent_row, middle))
            if row is None or row[1] > at:
                high = middle
            else:
                low = row[0] + 1
        first = await connection.fetch_row(SQL["begun_from"], (agent_row, low))
        return next_seq if first is None else first[0]

    @long_reads
    async def load_path(
        self, connection: Connection, agent_row: int, exchange_row: int, *, limit: int
    ) -> list[Exchange]:
        """Returns an exchange and the exchanges before it on its path, with their content, the newest first."""
        rows = await connection.fetch_rows(SQL["path"], (agent_row, exchange_row, limit))
        return [make_exchange_with_content(row) for row in rows]

    @long_reads
    async def find_following(
        self, connection: Connection, agent_row: int, exchange_row: int, conversation_row: int, *, steps: int
    ) -> int | None:
        """Returns the exchange some steps after another of a conversation, or the last one; None: none follows."""
        return await connection.fetch_value(
            SQL["following"], (agent_row, exchange_row, conversation_row, steps)
        )

    @reads
    async def load_exchange_refs(
        self, connection: Connection, agent_row: int, exchange_rows: Sequence[int]
    ) -> dict[int, ExchangeRef]:
        """Returns the positions of some exchanges, by the rows of the exchanges."""
        rows = await load_rows(connection, SQL["exchange_refs"], exchange_rows, agent_row)
        return {row[0]: ExchangeRef(*row[1:]) for row in rows}

    @long_reads
    async def load_sources(
        self, connection: Connection, agent_row: int, exchange_rows: Sequence[int]
    ) -> dict[int, SourceExchange]:
        """Returns some exchanges with their content, by their rows."""
        rows = await load_rows(connection, SQL["sources"], exchange_rows, agent_row)
        shown_exchanges = make_shown_exchanges(row[1:] for row in rows)
        return {
            exchange.id: SourceExchange(exchange, row[0], is_shared)
            for row, (exchange, is_shared, _) in zip(rows, shown_exchanges, strict=True)
        }

    @long_reads
    async def load_short_exchanges(
        self, connection: Connection, agent_row: int, exchange_rows: Sequence[int], max_bytes: int
    ) -> dict[int, ShownExchange]:
        """Returns some exchanges by their rows. max_bytes: the size above which a stored exchange is left out."""
        rows = await load_rows(connection, SQL["short_exchanges"], exchange_rows, agent_row, max_bytes)
        return {shown_exchange.exchange.id: shown_exchange for shown_exchange in make_shown_exchanges(rows)}

    @long_reads
    async def load_short_exchanges_of_all(
        self, connection: Connection, exchange_rows: Sequence[int], max_bytes: int
    ) -> dict[int, NamedExchange]:
        """Returns some exchanges of several memories, by their rows.

        max_bytes: the size above which a stored exchange is left out.
        """
        rows = await load_rows(connection, SQL["short_exchanges_of_all"], exchange_rows, max_bytes)
        shown_exchanges = make_shown_exchanges(row[1:] for row in rows)
        return {
            shown_exchange.exchange.id: NamedExchange(row[0], shown_exchange)
            for row, shown_exchange in zip(rows, shown_exchanges, strict=True)
        }

    @long_reads
    async def list_newest_exchanges(self, connection: Connection, agent_row: int, *, limit: int) -> list[int]:
        """Returns the rows of the newest active, finished exchanges, the newest first."""
        rows = await connection.fetch_rows(SQL["newest_exchanges"], (agent_row, limit, _NEWEST_SEQS))
        return [row[0] for row in rows]

    @long_reads
    async def load_openings(
        self, connection: Connection, agent_row: int, uids: Sequence[str], max_bytes: int
    ) -> dict[str, SourceExchange]:
        """Returns the first active, finished exchange of some conversations, by the public ids of the conversations.

        max_bytes: the size above which a stored exchange is left out.
        """
        by_uid: dict[str, SourceExchange] = {}
        for start in range(0, len(uids), _CONVERSATIONS_PER_READ):
            values = (agent_row, uids[start : start + _CONVERSATIONS_PER_READ], max_bytes)
            rows = await connection.fetch_rows(SQL["openings"], values)
            shown_exchanges = make_shown_exchanges(row[1:] for row in rows)
            by_uid |= {
                row[0]: SourceExchange(exchange, row[0], is_shared)
                for row, (exchange, is_shared, _) in zip(rows, shown_exchanges, strict=True)
            }
        return by_uid

    @reads
    async def list_blocks(self, connection: Connection, agent_row: int) -> list[ShownBlock]:
        """Returns the blocks that a memory sees, in their order."""
        visible_blocks = await load_blocks(connection, agent_row)
        positions = {block.id: position for position, block in enumerate(visible_blocks)}
        rows = await load_rows(connection, SQL["blocks"], list(positions), agent_row)
        shown_blocks = [ShownBlock(make_block(row), row[8], row[9], bool(row[10])) for row in rows]
        return sorted(shown_blocks, key=lambda shown_block: positions[shown_block.block.id])

    @long_reads
    async def list_unindexed(self, connection: Connection, agent_row: int, next_seq: int) -> UnindexedTexts:
        """Returns the newest texts of a memory that no index has. next_seq: the memory's next number."""
        blocks = await load_blocks(connection, agent_row)
        block_rows = [block.id for block in blocks]
        version_rows = await load_rows(connection, SQL["earlier_versions"], block_rows, _MAX_UNINDEXED + 1)
        versions = [UnindexedVersion(*row) for row in version_rows]
        summary_rows = await connection.fetch_rows(SQL["summaries"], (agent_row, _MAX_UNINDEXED + 1))
        summaries = [SummaryText(*row) for row in summary_rows]
        first_seq = next_seq - _NEWEST_SEQS
        values = (agent_row, first_seq, RESULT_ATOM, CALL_ATOM, _LONG_BYTES, ATOM_BYTES - 1)
        candidates = await connection.fetch_rows(SQL["unindexed"], values)
        few_versions = _choose_affordable(versions, [len(version.value) for version in versions])
        few_summaries = _choose_affordable(summaries, [len(summary.text) for summary in summaries])
        exchange_rows = [row[0] for row in _choose_affordable(candidates, [row[1] for row in candidates])]
        chosen_counts = (len(few_versions), len(few_summaries), len(exchange_rows))
        return UnindexedTexts(
            few_versions,
            {block.label: block.value for block in blocks},
            few_summaries,
            await _load_whole_exchanges(connection, agent_row, exchange_rows),
            is_complete=first_seq <= 1 and chosen_counts == (len(versions), len(summaries), len(candidates)),
        )

    @reads
    async def load_versions_at(
        self, connection: Connection, block_rows: Sequence[int], at: float
    ) -> dict[int, Revision]:
        """Returns the versions that some blocks had at a time, without forgotten versions."""
        rows = await load_rows(connection, SQL["versions_at"], block_rows, at)
        return {row[0]: make_revision(row[1:]) for row in rows}


class _PathStep(NamedTuple):
    """An exchange as a step of its path, without content: a row of the statement `deepest`."""

    # The row of the exchange.
    row: int
    # The row of the previous exchange on the path; None: the exchange is an opening.
    parent: int | None
    # The number of the exchange's first message.
    seq: int
    # The number of messages of the path up to the exchange's end, forgotten ones too.
    length: int
    # The number of messages of the exchange, forgotten ones and a missing reply too.
    span: int
    # The state of the exchange, an `ExchangeState`.
    state: str
    # The indices of the messages that are forgotten alone, as a JSON list; None: no message is.
    redactions: bytes | None
    # True if the exchange has no reply that is shown.
    has_no_reply: bool
    # True if the messages of the exchange are shown and recalled.
    is_active: bool
    # The time at which the exchange ended, was cut or began, in seconds since the epoch.
    last_turn: float

    def count_messages(self) -> int:
        """Returns the number of messages that are left of the exchange."""
        if self.state in (ExchangeState.FORGOTTEN, ExchangeState.OFF):
            return 0
        absent_indices = {*orjson.loads(self.redactions or b"[]")}
        if self.has_no_reply:
            absent_indices.add(REPLY)
        return self.span - len(absent_indices)


def _find_branches(steps: Sequence[_PathStep]) -> list[Branch]:
    """Returns the branches of a conversation that have messages left, those spoken in last first.

    steps: the deepest exchanges of the conversation, each after its parent. The messages before them all count.
    """
    # The numbers of messages that are left on the path up to an exchange, by its row.
    counts: dict[int | None, int] = {None: 0}
    # The rows of the last exchanges with a message left on the path up to an exchange, by its row.
    last_rows: dict[int | None, int | None] = {None: None}
    # The rows of the exchanges with a message left that another such exchange follows.
    followed_rows: set[int | None] = {None}
    for step in steps:
        message_count = step.count_messages()
        counts[step.row] = counts.get(step.parent, step.length - step.span) + message_count
        earlier_row = last_rows.get(step.parent, step.parent)
        last_rows[step.row] = step.row if message_count else earlier_row
        if message_count:
            followed_rows.add(earlier_row)
    parents = {step.parent for step in steps}
    ends = [step for step in steps if step.row not in parents]
    branches: list[Branch] = []
    for end in sorted(ends, key=lambda step: (step.last_turn, step.seq), reverse=True):
        # If another branch continues or ends with the last exchange that is left of this branch, it has all of its
        # messages.
        if last_rows[end.row] not in followed_rows:
            followed_rows.add(last_rows[end.row])
            branches.append(Branch(end.row, end.seq, counts[end.row], end.last_turn, bool(end.is_active)))
    return branches


async def _load_whole_exchanges(
    connection: Connection, agent_row: int, exchange_rows: Sequence[int]
) -> list[SourceExchange]:
    """Returns the exchanges in these rows, in this order."""
    rows = await load_rows(connection, SQL["whole_exchanges"], exchange_rows, agent_row)
    sources = [SourceExchange(make_exchange_with_content(row), uid, False) for uid, *row in rows]
    return sorted(sources, key=lambda source: exchange_rows.index(source.exchange.id))


def _choose_affordable(texts: Sequence[T], sizes: Sequence[int]) -> list[T]:
    """Returns the first texts, as many as may be looked through: `_MAX_UNINDEXED`, `_MAX_UNINDEXED_BYTES` together.

    A text that would exceed the bytes is left out, and later texts may still be taken.

    sizes: the bytes of each text.
    """
    chosen: list[T] = []
    remaining_bytes = _MAX_UNINDEXED_BYTES
    for text, size in zip(texts, sizes, strict=True):
        if size <= remaining_bytes and len(chosen) < _MAX_UNINDEXED:
            chosen.append(text)
            remaining_bytes -= size
    return chosen


def _make_prefix_bounds(prefix: str) -> tuple[str, str]:
    """Returns the texts between which all texts with a prefix stand, in small letters."""
    folded = lower_ascii(prefix)
    return folded, folded + LAST_CHARACTER


def _make_memory(row: Row) -> SizedMemory:
    agent_row, uid, project, profile, subject, *rest = row
    return SizedMemory(agent_row, uid, Scope(project, profile, subject), *rest)
