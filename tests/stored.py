"""Turns through a real store, planned and written as a gateway does it, for tests of what is stored and sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import storage.open
from gateway.core.conversation import settle
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.change import plan_change
from gateway.core.conversation.fast_path import finish_plain, plan_plain
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.lookup import make_probes_for_list, make_probes_for_plain_turn
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.openings import begins_conversation, digest_opening, digest_openings
from gateway.core.conversation.plan import Plan, plan_turn
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, make_shown_reply, read_text
from gateway.core.memory.rules import RULES
from gateway.core.prompt.compose import compose, find_known_note
from gateway.core.prompt.composition import Composition
from gateway.run.memory.contents import retry_with_contents
from storage.commands import (
    CandidateExchanges,
    CommittedTurn,
    MemorySnapshot,
    PlainTurn,
    Probes,
    RecallRow,
    TurnChange,
    TurnWrite,
)
from storage.database import Connection
from storage.forget_commands import ForgetTarget
from storage.open import is_url
from storage.operator_records import SizedMemory
from storage.postgres.postgres_limits import PostgresLimits
from storage.reader_commands import LearnedChanges
from storage.records import Agent, Block, Exchange, MemoryEdit, Passage, Scope, SentSection
from storage.run_records import Run
from storage.search.blob import make_document_type, open_blob
from storage.search.document import PRESENT, Document
from storage.search.index import Index
from storage.search.rank import rank
from storage.search.tail import Tail
from storage.sql import exchanges
from storage.sql.agents_api.runs import begin_run, find_or_create_run
from storage.sql.exchange_rows import make_exchange_with_content
from storage.sql.passages import insert_passage
from storage.sql.statements import make_statement
from storage.sql.store import Store
from storage.sql.turn_edits import add_edit
from storage.sqlite.connection import DatabaseFile
from storage.sqlite.database import connect_current
from storage.sqlite.writer import WriterLimits
from tests.core.conversations import GATEWAY_TOOLS, IDLE_S, call_name, memory_insert
from tests.doubles.statements import noting
from tests.inflated import with_inflated
from tests.patience import PATIENCE_S
from tests.postgres import EmptyDatabase, empty_database, query

# No test's result depends on how busy the machine is. A gateway opens all its connections as it starts, and the server
# reads the tables' definitions for each. Another process's work is taken over as soon as its lease ends.
PATIENT = PostgresLimits(
    size=4, read_timeout_s=PATIENCE_S, acquire_timeout_s=PATIENCE_S, slow_wait_s=PATIENCE_S, settle_s=0.0
)
PATIENT_WRITER = WriterLimits(slow_s=PATIENCE_S)


class Clock:
    """A clock that advances at each call. Fractions of a second have to survive in the store."""

    def __init__(self, now: float = 1_760_000_000.0, step_s: float = 1.25) -> None:
        # The seconds since the epoch.
        self.now = now
        self._step_s = step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


class Server:
    """A PostgreSQL server that stands in for the files of one test: a database for each."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._databases: dict[str, str] = {}

    def url_of(self, file: str | Path) -> str:
        """Returns the URL of the database for a file. The first call empties that database."""
        name = str(file)
        if name not in self._databases:
            self._databases[name] = empty_database(self._url, len(self._databases)).url
        return self._databases[name]


# The PostgreSQL server of the running test. None: the test's stores are SQLite files.
server: Server | None = None


async def open_store(path: str | Path, **options: Any) -> Store:
    """Opens a store with the rules of the gateway, in a file or in the database that stands in for it."""
    if is_url(path) and hasattr(factory := options.get("factory"), "note"):
        # The factory counts the statements of SQLite; the same count is needed for PostgreSQL.
        options["factory"] = noting(factory.note)
    if is_url(path):
        return await storage.open.open_store(path, RULES, **{"limits": PATIENT, **options})
    if server is None:
        lay_new_file(Path(path))
        return await storage.open.open_store(path, RULES, **{"limits": PATIENT_WRITER, **options})
    if "connect" in options:
        pytest.skip("for SQLite alone: a PostgreSQL store takes no `connect`")
    taken: dict[str, Any] = {name: options[name] for name in ("now", "tick") if name in options}
    taken["limits"] = PATIENT
    if (factory := options.get("factory")) is not None:
        taken["factory"] = noting(factory.note)
    return await storage.open.open_store(server.url_of(path), RULES, **taken)


def lay_new_file(path: Path) -> None:
    """Copies an empty database of the current schema to a path without a file: ten times as fast as to create one."""
    if path.parent.is_dir() and not path.exists():
        path.touch(0o600)
        path.write_bytes(_new_file())


@cache
def _new_file() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "new.db"
        connect_current(DatabaseFile(str(path))).close()
        return path.read_bytes()


def url_of(file: Path) -> str | None:
    """Returns the URL of the database that stands in for a file. None: the file itself is the database."""
    return None if server is None else server.url_of(file)


def data_of(file: Path) -> bytes:
    """Returns all data that a database promises to erase: all bytes of a file and its log, or all rows of a server."""
    if server is not None:
        return EmptyDatabase(server.url_of(file)).content()
    return with_inflated(b"".join(part.read_bytes() for part in file.parent.glob(file.name + "*")))


def shown(file: Path, sql: str) -> list[tuple[Any, ...]]:
    """Returns the rows of a query on a database that a process may be serving."""
    if server is not None:
        return query(server.url_of(file), make_statement("a test's", sql).postgres)
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


ALICE = Scope("default", "default", "user:alice")
HUMAN = Block(0, "human", "The user", "", 1000)


def indexed_seqs(blob: bytes) -> list[int]:
    """Returns the sequence numbers of the messages in a blob of the search index, ascending."""
    opened = open_blob(blob)
    flags = np.frombuffer(opened.table, make_document_type())["flags"].tolist()
    return [opened.chunk * len(flags) + slot for slot, flag in enumerate(flags) if flag & PRESENT]


@dataclass
class PlannedTurn:
    """A request that is planned, without its reply."""

    agent: Agent
    # The conversation's key; None: the request has no key.
    key: str | None
    snapshot: MemorySnapshot
    plan: Plan
    # The stored tree; None: the turn is plain, and is planned without the tree.
    tree: Tree | None
    composition: Composition
    # The recall notes that are stored, by the positions of their messages in the plan.
    notes: dict[int, str]
    # True: the turn begins a conversation, which no stored message has to show.
    begins_conversation: bool = False

    @property
    def is_plain(self) -> bool:
        return self.tree is None


class Speaker:
    """Sends the requests of one scope."""

    def __init__(
        self,
        store: Store,
        scope: Scope = ALICE,
        now: Callable[[], float] = lambda: 1.0,
        recall: Callable[[str], str] = lambda question: "",
    ) -> None:
        """Reads and writes nothing yet.

        now: returns the seconds since the epoch.
        recall: returns the recall note for a question.
        """
        self.store = store
        self.scope = scope
        self.now = now
        self.recall = recall
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        """The agent after the last turn; before the first turn, a draft."""
        return self._agent or self.store.agents.get_draft(self.scope)

    async def begin(
        self,
        messages: Sequence[WireMessage],
        key: str | None = None,
        memory_use: MemoryUse = MemoryUse.ON,
        offered: Collection[str] = GATEWAY_TOOLS,
    ) -> PlannedTurn:
        """Plans a request as a gateway does.

        messages: the client's whole list.
        key: the conversation's key; None: the messages show which conversation it is.
        offered: the names of the gateway's tools that the model is offered.
        """
        self._agent = await self.store.agents.find(self.scope)
        turns, agent = self.store.turns, self.agent
        listing = HashedList(MessageHasher(agent.secret), list(messages))
        path = (
            listing.hasher.hash_path(listing.list_atoms(listing.answered_count))
            if listing.answered_count
            else None
        )
        snapshot = await turns.find_snapshot(agent, key, path) if agent.id else MemorySnapshot()
        assert snapshot is not None
        conversation_row = snapshot.conversation.id if key is not None and snapshot.conversation else None
        query = Query(
            listing, key is not None, memory_use, self.now(), IDLE_S, conversation_row=conversation_row
        )
        openings = None if snapshot.has_tombstones else turns.find_openings(agent, snapshot)
        is_new = openings is not None and begins_conversation(query, openings)
        plan, tree = plan_plain(snapshot, query), None
        if plan is None:
            tree = await self._load_tree(query, key) if agent.id and not is_new else Tree()
            plan = await retry_with_contents(turns, agent, tree, partial(plan_turn, tree, query))
            if key is None and not listing.answered_count and not is_new:
                turns.cache_openings(agent, snapshot, digest_openings(tree))
        notes = {} if memory_use is MemoryUse.OFF else self._make_notes(tree, plan)
        if tree is None:
            composition = compose(Tree(snapshot.additions.rounds), plan, offered, notes, snapshot.additions)
        else:
            compose_here = partial(compose, tree, plan, offered, notes)
            composition = await retry_with_contents(turns, agent, tree, compose_here)
        stored_notes = {} if plan.is_off_record else notes
        return PlannedTurn(agent, key, snapshot, plan, tree, composition, stored_notes, is_new)

    async def _load_tree(self, query: Query, key: str | None) -> Tree:
        candidates = await self.store.turns.load_candidates(self.agent, make_probes_for_list(query, key))
        return Tree(candidates.exchanges, candidates.contents, candidates.forgotten_hashes)

    def _make_notes(self, tree: Tree | None, plan: Plan) -> dict[int, str]:
        """Returns the notes of the user's messages by their positions: those of the tree, and a new one at the end."""
        messages = plan.messages
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        notes: dict[int, str] = {}
        if tree is not None:
            notes = {i: note for i in questions if (note := find_known_note(tree, plan, i)) is not None}
        if questions and questions[-1] == len(messages) - 1 and questions[-1] not in notes:
            notes[questions[-1]] = self.recall(read_text(messages[-1]))
        return notes

    async def end(self, *arguments: Any, **options: Any) -> CommittedTurn:
        """Writes a turn by `commit`, with its parameters, and caches it."""
        return self.cache(*await self.commit(*arguments, **options))

    async def commit(
        self,
        turn: PlannedTurn,
        full_reply: Sequence[WireMessage],
        inserted_texts: Sequence[str] = (),
        rule: settle.SettleRule = settle.finish,
        *,
        uid: str = "",
        note_change: Callable[[TurnChange], None] = lambda change: None,
        section: SentSection | None = None,
        row: int = -1,
        defaults: Sequence[Block] = (HUMAN,),
        recall_row: RecallRow | None = None,
    ) -> tuple[TurnWrite, CommittedTurn]:
        """Writes a turn. A later call of `cache` caches it.

        inserted_texts: the texts that the turn inserts into the block `human`.
        rule: the rule by which the exchange is settled.
        note_change: a function that is called inside the transaction with the change that it decides on.
        row: the row of an exchange that was written before; -1: the exchange is new.
        """
        plan, key, now = turn.plan, turn.key, self.now()
        gateway_calls = frozenset(
            call["id"]
            for message in full_reply
            for call in message.get("tool_calls") or []
            if call_name(call) in GATEWAY_TOOLS
        )
        request_end = RequestEnd(
            row,
            full_reply,
            make_shown_reply(full_reply, gateway_calls),
            now,
            turn.notes,
            gateway_calls,
            has_edits=bool(inserted_texts),
        )
        plain = None
        if turn.is_plain and rule is settle.finish and turn.snapshot.conversation is not None:
            plain = PlainTurn(finish_plain(plan, request_end), turn.snapshot.conversation.rev)

        def decide(candidates: CandidateExchanges) -> TurnChange:
            change = plan_change(candidates, plan, request_end, rule)
            note_change(change)
            return change

        def list_probes() -> Probes:
            return (
                make_probes_for_plain_turn(plan, key)
                if turn.is_plain
                else make_probes_for_list(plan.query, key)
            )

        write = TurnWrite(
            agent=turn.agent,
            key=key,
            uid=uid or f"conversation {id(turn)} {now}",
            now=now,
            plain=plain,
            probes=list_probes,
            decide=decide,
            change=decide(CandidateExchanges((), None)) if turn.begins_conversation else None,
            planned_next_seq=turn.snapshot.next_seq,
            planned_agent_rev=turn.snapshot.rev,
            opening=digest_opening(plan, now),
            edits=[memory_insert(0, f"{now}-{i}", text) for i, text in enumerate(inserted_texts)],
            section=section,
            defaults=defaults,
            recall=None if recall_row is None else lambda: recall_row,
        )
        return write, await self.store.turns.commit(write)

    def cache(self, write: TurnWrite, committed: CommittedTurn) -> CommittedTurn:
        self.store.turns.cache_committed(write, committed)
        self.store.agents.cache(committed.agent)
        self._agent = committed.agent
        return committed

    async def say(
        self, messages: Sequence[WireMessage], reply: WireMessage, key: str | None = None, **options: Any
    ) -> CommittedTurn:
        return await self.end(await self.begin(messages, key), [reply], **options)

    async def rows(self) -> list[Exchange]:
        """Returns all stored exchanges of this scope, oldest first, with their contents."""
        agent = await self.store.agents.find(self.scope)
        if agent is None:
            return []

        async def read(connection: Connection) -> list[Exchange]:
            sql = make_statement("rows", "SELECT id FROM exchanges WHERE agent = ? ORDER BY id")
            stored_exchanges: list[Exchange] = []
            for (row,) in await connection.fetch_rows(sql, (agent.id,)):
                fetched = await connection.fetch_rows(exchanges.SQL["exchange_get"], (row, agent.id))
                stored_exchanges += map(make_exchange_with_content, fetched)
            return stored_exchanges

        return await self.store.database.read(read)


async def sized_memory(store: Store, agent: Agent) -> SizedMemory:
    """Returns an agent's memory with its sizes, read from the counters that each write updates."""
    memory = await store.memory_pages.find_sized_memory(agent.uid, None)
    assert memory is not None
    return memory


async def rows(store: Store, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Runs a test's SQL statement in a transaction. Returns the rows."""
    test_statement = make_statement("a test's", statement)
    fetched = await store.database.write(lambda connection: connection.fetch_rows(test_statement, values))
    return [tuple(row) for row in fetched]


async def keeps_emptied_rows(store: Store) -> bool:
    """Returns whether erased records have left emptied rows without an owner, as they do in SQLite.

    A deleted row makes SQLite distribute the rows next to it again (storage/sql/erase.sql).
    """
    emptied = (
        "run_texts WHERE agent = 0", "definition_texts WHERE length(body) = 0", "files WHERE memory = 0",
        "passages WHERE agent <= 0", "facts WHERE agent <= 0", "summaries WHERE agent = 0",
        "block_history WHERE block < 0",
    )  # fmt: skip
    return bool(await rows(store, " UNION ALL ".join(f"SELECT 1 FROM {table}" for table in emptied)))


async def save_passage(
    store: Store, agent_row: int, text: str, *, at: float, sources: Sequence[int] = ()
) -> Passage:
    """Stores an archival memory that no turn has written. at: seconds since the epoch."""
    return await store.database.write(lambda c: insert_passage(c, agent_row, text, at=at, sources=sources))


def ranked(
    blobs: Iterable[bytes], query: str, secret: bytes, *, tail: Iterable[Document] = (), **options: Any
) -> list[int]:
    """Returns the sequence numbers of the messages that a query finds, best first.

    blobs: the blobs of the search index.
    tail: the messages that are not indexed yet.
    """
    index = Index((open_blob(data).chunk, data) for data in blobs)
    return rank(index, query, secret, tail=Tail(tail), **options)


async def forget(store: Store, agent: Agent, target: ForgetTarget) -> None:
    """Forgets a part of a memory, and sweeps old copies from the write-ahead log."""
    assert await store.forgetting.run(await store.forgetting.begin(agent.id, target))
    assert await store.forgetting.sweep()


async def write_learned(
    store: Store, agent: Agent, learned: LearnedChanges, cursor: int = 0, *, at: float = 1.0
) -> None:
    """Writes what was learned. cursor: the cursor of learning before the write; the write moves it by one."""
    await store.database.write(
        store.facts.make_learn_effect(agent, cursor, cursor + 1, at, lambda _: learned)
    )


async def put_edit(store: Store, agent_row: int, edit: MemoryEdit) -> None:
    """Stores a memory edit by `add_edit`, in a transaction that locks its agent."""

    async def write(connection: Connection) -> None:
        await connection.lock(agent_row)
        await add_edit(connection, agent_row, edit)

    await store.database.write(write)


async def put_run(store: Store, draft: Run, *, replaces: int | None = None) -> Run:
    """Stores a run by `find_or_create_run`, in a transaction that locks its agent."""

    async def write(connection: Connection) -> Run:
        await connection.lock(draft.agent_row)
        return await find_or_create_run(connection, draft, replaces=replaces)

    return await store.database.write(write)


async def start_run(store: Store, agent_row: int, run_row: int, at: float) -> Run:
    """Begins a run by `begin_run`, in a transaction that locks its agent. at: seconds since the epoch."""

    async def write(connection: Connection) -> Run:
        await connection.lock(agent_row)
        return await begin_run(connection, agent_row, run_row, at)

    return await store.database.write(write)
