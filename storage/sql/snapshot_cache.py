"""The snapshots that a process caches between turns, so that a turn reads one row instead of the whole memory.

A cached memory is right for one version: the epoch, the `rev` and the next number of its agent. Every change of rows
that a snapshot reads raises one of these numbers, by the triggers `rev_...` in the `schema.sql` of each database. (The
column `exchanges.continued` has no such trigger: it is written only together with a new exchange, which takes a
number.) So a turn reads the numbers, and takes the rest from the cache if they are unchanged. A process that owns its
file does not read the numbers: it is notified of each changed row of an agent (storage/sqlite/watch.py). A turn that
this process commits brings the cached memory up to date (`apply_commit`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import orjson
from msgspec.structs import replace

from storage.commands import (
    NO_ADDITIONS,
    NO_NOTES,
    Additions,
    CommittedTurn,
    MemorySnapshot,
    Opening,
    TurnWrite,
)
from storage.database import Changes
from storage.records import (
    AgentNumbers,
    Block,
    Conversation,
    Exchange,
    MemoryEdit,
    MemoryVersion,
    SentSection,
    StandingFact,
    place_exchange,
)

# The bytes of all cached snapshots: some six thousand open conversations, or five hundred with twenty notes each. Not
# measured.
CACHE_BYTES = 27 << 19
# The most path ends of one memory; a new one takes the place of the oldest. Not measured: a conversation beyond these
# is read again.
_MAX_PATH_ENDS = 64
# The most openings of one memory, as many as the statement `pool_found` reads.
_MAX_OPENINGS = 64
# Measured sizes of the cached objects, without the texts and hashes that are counted one by one.
_MEMORY_BYTES = 800
_BLOCK_BYTES = 400
_EDIT_BYTES = 400
_FACT_BYTES = 200
_PATH_END_BYTES = 1300
_NOTE_BYTES = 110
_ATOM_BYTES = 45
# An exchange with hidden rounds.
_ROUNDS_BYTES = 1000
_OPENING_BYTES = 500
_OPENING_MESSAGE_BYTES = 100

# The client's id of a conversation, and the hash of the path up to its end.
_PathKey = tuple[str | None, bytes | None]


@dataclass(slots=True)
class _PathEnd:
    """The end of a path, and the parts of a snapshot that belong to it, named as in `MemorySnapshot`."""

    # The conversation of the path.
    conversation: Conversation
    # The last exchange of the path, without content and notes.
    exchange: Exchange
    # True if the exchange is a first turn, and other first turns match as well.
    has_rivals: bool
    # The additions of the gateway to the path.
    additions: Additions
    # The memory section of the path; None: the path has none.
    section: SentSection | None
    # The size of these fields, as `SnapshotCache.size_bytes` counts it.
    size_bytes: int = 0


@dataclass(slots=True)
class _CachedMemory:
    """The part that all snapshots of a memory have in common, and the ends of its paths."""

    # The agent's numbers as they were last read or notified.
    current_numbers: AgentNumbers
    # The version for which the fields below are right. The fields are out of date if `current_numbers` has another one.
    version: MemoryVersion
    # As `MemorySnapshot.has_tombstones`.
    has_tombstones: bool
    # The blocks that the agent sees.
    blocks: list[Block]
    # The agent's pending memory edits, of all paths.
    edits: list[MemoryEdit]
    # The newest of the standing facts, newest first.
    standing: list[StandingFact]
    # The size of the fields above; path ends and openings are counted by themselves.
    size_bytes: int
    # The ends of the memory's paths, the newest entry last.
    path_ends: dict[_PathKey, _PathEnd] = field(default_factory=dict)
    # All openings that a client's list may repeat or extend, the newest last, and perhaps some that are too old for
    # that; None: the openings were not read.
    openings: list[Opening] | None = None
    # The size of the openings.
    openings_bytes: int = 0


class SnapshotCache:
    """A cache of the snapshots that were used last. Only the event loop's thread uses it."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # The cached memories by the rows of their agents, the least recently used first.
        self._memories: OrderedDict[int, _CachedMemory] = OrderedDict()
        # The estimated size of all cached memories.
        self.size_bytes = 0

    def has_entry(self, agent_row: int, key: str | None, path_hash: bytes | None) -> bool:
        """Returns whether there is an entry, which `find` returns if it is up to date.

        If both `key` and `path_hash` are None, the request continues nothing, and needs only the part that all
        snapshots of the memory have in common.

        key: the client's id of the conversation.
        path_hash: the hash of the path that the request continues.
        """
        memory = self._memories.get(agent_row)
        return memory is not None and (
            (key is None and path_hash is None) or (key, path_hash) in memory.path_ends
        )

    def apply_changes(self, changes: Changes) -> None:
        """Stores the present numbers of agents. A memory with unknown numbers is dropped."""
        if changes is None:
            self.clear()
            return
        for agent_row, numbers in changes.items():
            memory = self._memories.get(agent_row)
            if memory is not None and numbers is not None:
                memory.current_numbers = numbers
            elif memory is not None:
                self.drop(agent_row)

    def find(self, agent_row: int, key: str | None, path_hash: bytes | None) -> MemorySnapshot | None:
        """Returns a snapshot as it would be read now; None: the cache has no snapshot that is up to date.

        Its lists (`blocks`, `edits`, `standing`) are the cache's own: callers do not change them.

        key: the client's id of the conversation.
        path_hash: the hash of the path that the request continues.
        """
        memory = self._memories.get(agent_row)
        if memory is None:
            return None
        numbers = memory.current_numbers
        # The versions also differ between the notification of a turn's commit and its `apply_commit`.
        if memory.version != numbers.version:
            return None
        end = memory.path_ends.get((key, path_hash))
        if end is None and not (key is None and path_hash is None):
            return None
        self._memories.move_to_end(agent_row)
        shared_part = MemorySnapshot(
            *numbers,
            has_tombstones=memory.has_tombstones,
            blocks=memory.blocks,
            edits=memory.edits,
            standing=memory.standing,
        )
        if end is None:
            return shared_part
        return replace(
            shared_part,
            conversation=end.conversation,
            exchange=end.exchange,
            has_rivals=end.has_rivals,
            additions=end.additions,
            section=end.section,
        )

    def put(self, agent_row: int, key: str | None, path_hash: bytes | None, snapshot: MemorySnapshot) -> None:
        """Caches a snapshot that was read: the fields that all snapshots of the memory share, and the end of its path.

        A snapshot with shared blocks is not cached: other agents may change the blocks.
        """
        if snapshot.shares_blocks:
            self.drop(agent_row)
            return
        numbers = snapshot.numbers
        memory = self._memories.get(agent_row)
        if memory is not None and memory.version == numbers.version:
            memory.current_numbers = numbers
        else:
            self.drop(agent_row)
            memory = _CachedMemory(
                current_numbers=numbers,
                version=numbers.version,
                has_tombstones=snapshot.has_tombstones,
                blocks=snapshot.blocks,
                edits=snapshot.edits,
                standing=snapshot.standing,
                size_bytes=_measure_memory(snapshot),
            )
            self._memories[agent_row] = memory
            self.size_bytes += memory.size_bytes
        # A turn that continues such a path cannot be planned from its snapshot alone, so the end is not cached.
        is_end = path_hash is not None and not (snapshot.is_continued or snapshot.matches_prefix)
        if snapshot.exchange is not None and snapshot.conversation is not None and is_end:
            end = _PathEnd(
                snapshot.conversation,
                snapshot.exchange,
                snapshot.has_rivals,
                snapshot.additions,
                snapshot.section,
            )
            self._put_path_end(memory, (key, path_hash), end)
        self._shrink()

    def find_openings(self, agent_row: int, snapshot: MemorySnapshot) -> list[Opening] | None:
        """Returns all openings of a memory; None: they are not cached for the version of this snapshot."""
        memory = self._memories.get(agent_row)
        if memory is None or memory.version != snapshot.numbers.version:
            return None
        return memory.openings

    def put_openings(self, agent_row: int, snapshot: MemorySnapshot, openings: list[Opening]) -> None:
        """Caches all openings of a memory, which were read after the snapshot."""
        memory = self._memories.get(agent_row)
        if memory is not None and memory.version == snapshot.numbers.version:
            newest_openings = openings[-_MAX_OPENINGS:]
            size_bytes = sum(map(_measure_opening, newest_openings))
            self._set_openings(memory, newest_openings, size_bytes)
            self._shrink()

    def apply_commit(self, write: TurnWrite, committed: CommittedTurn) -> None:
        """Brings a memory up to date with a turn that was committed, or drops it.

        The turn's exchange belongs to the cache from then on.
        """
        agent_row = committed.agent.id
        memory = self._memories.get(agent_row)
        if memory is None:
            return
        epoch, rev, next_seq = memory.version
        if epoch == committed.agent.epoch and 0 < committed.seq < next_seq:
            return  # the memory was read after this turn
        # An edit raises `rev`. If another writer has taken a number, or this turn has taken none, the cached version is
        # not the one before the turn.
        if write.edits or epoch != committed.agent.epoch or committed.seq != next_seq:
            self.drop(agent_row)
            return
        memory.version = MemoryVersion(epoch, rev, committed.next_seq)
        if write.opening is not None:
            self._add_opening(memory, write.opening)
        self._continue_path(memory, write, committed)
        self._shrink()

    def _continue_path(self, memory: _CachedMemory, write: TurnWrite, committed: CommittedTurn) -> None:
        """Moves the cached end of the path that a committed turn continues, or adds the end of a new path."""
        end: _PathEnd | None
        if committed.begun is not None and committed.added is not None:
            exchange = committed.added
            end = _PathEnd(committed.begun, committed.added, False, NO_ADDITIONS, None)
        elif write.plain is not None and committed.is_plain and not committed.matches_prefix:
            exchange = write.plain.exchange
            end = self._pop_parent_end(memory, exchange)
        else:
            # The turn may have continued any of these paths.
            self._drop_path_ends(memory)
            return
        key = write.key, exchange.path_hash
        if key in memory.path_ends:
            # Two conversations without a client's id have the same text. The next snapshot is read, and belongs to the
            # newer conversation.
            self._drop_path_end(memory, key)
        elif end is not None:
            _advance(end, exchange, write, committed)
            self._put_path_end(memory, key, end)

    def drop(self, agent_row: int) -> None:
        """Drops the cached entries of one memory."""
        memory = self._memories.pop(agent_row, None)
        if memory is not None:
            self._drop_path_ends(memory)
            self.size_bytes -= memory.size_bytes + memory.openings_bytes

    def clear(self) -> None:
        """Drops all cached memories."""
        self._memories.clear()
        self.size_bytes = 0

    def _pop_parent_end(self, memory: _CachedMemory, exchange: Exchange) -> _PathEnd | None:
        """Drops the path ends of a plain turn's conversation, and returns the path end that the turn continues."""
        parent_end = None
        for key, end in list(memory.path_ends.items()):
            if end.exchange.conversation_row == exchange.conversation_row:
                self._drop_path_end(memory, key)
                if end.exchange.id == exchange.parent:
                    parent_end = end
        return parent_end

    def _add_opening(self, memory: _CachedMemory, opening: Opening) -> None:
        if memory.openings is None:
            return
        openings = [*memory.openings, opening]
        size_bytes = memory.openings_bytes + _measure_opening(opening)
        if len(openings) > _MAX_OPENINGS:
            size_bytes -= _measure_opening(openings.pop(0))
        self._set_openings(memory, openings, size_bytes)

    def _set_openings(self, memory: _CachedMemory, openings: list[Opening], size_bytes: int) -> None:
        """Sets the openings of a memory. size_bytes: the size of the openings."""
        self.size_bytes += size_bytes - memory.openings_bytes
        memory.openings = openings
        memory.openings_bytes = size_bytes

    def _put_path_end(self, memory: _CachedMemory, key: _PathKey, end: _PathEnd) -> None:
        path_ends = memory.path_ends
        if key in path_ends or len(path_ends) == _MAX_PATH_ENDS:
            self._drop_path_end(memory, key if key in path_ends else next(iter(path_ends)))
        path_ends[key] = end
        end.size_bytes = _measure_path_end(end)
        self.size_bytes += end.size_bytes

    def _drop_path_end(self, memory: _CachedMemory, key: _PathKey) -> None:
        self.size_bytes -= memory.path_ends.pop(key).size_bytes

    def _drop_path_ends(self, memory: _CachedMemory) -> None:
        self.size_bytes -= sum(end.size_bytes for end in memory.path_ends.values())
        memory.path_ends.clear()

    def _shrink(self) -> None:
        """Drops the least recently used memories until the rest fit. Call it last: it may drop the present memory."""
        while self.size_bytes > self._limit_bytes and self._memories:
            self.drop(next(iter(self._memories)))


def _advance(end: _PathEnd, exchange: Exchange, write: TurnWrite, committed: CommittedTurn) -> None:
    """Moves the end of a path to the exchange that was committed, which is the next of the path or its first."""
    # The commit has raised the `rev` of the conversation by one.
    end.conversation = replace(end.conversation, rev=end.conversation.rev + 1)
    placed_exchange = place_exchange(exchange, committed.exchange_row, committed.seq)
    exchange = replace(placed_exchange, section=committed.section)
    rounds = end.additions.rounds
    if rounds and rounds[-1].id == exchange.parent and exchange.continues_parent:
        rounds = (*rounds[:-1], replace(rounds[-1], continued=True))
        end.additions = replace(end.additions, rounds=rounds)
    if exchange.has_additions:
        end.additions = end.additions.extended(exchange)
    end.exchange = replace(exchange, input=None, shown_reply=None, full_reply=None, notes=NO_NOTES)
    end.has_rivals = False
    if committed.section != (end.section.id if end.section is not None else None):
        end.section = _make_stored_section(write, committed)


def _measure_memory(snapshot: MemorySnapshot) -> int:
    """Returns the bytes of the part of a memory that all its snapshots have in common."""
    return (
        _MEMORY_BYTES
        + sum(_BLOCK_BYTES + len(block.value) for block in snapshot.blocks)
        + sum(_EDIT_BYTES + len(edit.arguments) for edit in snapshot.edits)
        + sum(_FACT_BYTES + len(fact.text) for fact in snapshot.standing)
    )


def _measure_path_end(end: _PathEnd) -> int:
    """Returns the bytes that the end of a path takes."""
    additions = end.additions
    size = (
        _PATH_END_BYTES
        + _ATOM_BYTES * sum(map(len, end.exchange.inputs))
        + _NOTE_BYTES * len(additions.notes)
    )
    for note in additions.notes:
        size += len(note.utf8)
    for exchange in additions.rounds:
        size += _ROUNDS_BYTES + _ATOM_BYTES * sum(map(len, exchange.inputs)) + exchange.content_bytes
    return size


def _measure_opening(opening: Opening) -> int:
    return _OPENING_BYTES + _OPENING_MESSAGE_BYTES * len(opening.inputs)


def _make_stored_section(write: TurnWrite, committed: CommittedTurn) -> SentSection | None:
    """Returns the section of a committed turn as a read returns it: all keys of its JSON are strings."""
    if committed.section is None or write.section is None:
        return None
    return SentSection(committed.section, write.section.text, orjson.loads(orjson.dumps(write.section.known)))
