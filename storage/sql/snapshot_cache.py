"""The snapshots that a process caches between turns, so that a hot turn reads one row instead of the whole.

A memory's part is right for one epoch, one next number and one `rev`: every change of what a snapshot reads raises one
of them (by triggers: 0000-0008_begin.sql of storage/postgres/migrations, 0020-0021_triggers.sql of storage/sqlite). So
a turn asks for these first, and takes the rest from here where they are as they were. The process that owns its file
need not even ask: it is notified of each row of an agent that changes (storage/sqlite/watch.py). A turn that is
committed hands on what it has changed itself.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import orjson
from msgspec.structs import replace

from storage.commands import NO_ADDITIONS, NO_NOTES, Additions, Committed, MemorySnapshot, Opening, TurnWrite
from storage.database import AgentNumbers, Changes
from storage.records import Block, BlockOp, Conversation, Exchange, SentSection, StandingFact

# Chosen: some six thousand open conversations, or five hundred with twenty notes each.
CACHE_BYTES = 27 << 19
# Conversations of one memory; one that opens more forgets those it left first.
_PATH_ENDS = 64
# Openings of one memory that are compared with a new one, as many as `pool_found` reads.
_OPENINGS = 64
# Measured: a memory without blocks, the end of a path, a note without its text, an exchange with rounds without its
# contents, an opening of one message.
_MEMORY_BYTES, _PATH_END_BYTES, _NOTE_BYTES, _ROUNDS_BYTES, _OPENING_BYTES = 800, 1300, 110, 1000, 500

# A client's name of a conversation, and the hash of the path that it goes on from.
_Name = tuple[str | None, bytes | None]


@dataclass(slots=True)
class _PathEnd:
    """The end of a path: what is known of a list that goes on from there."""

    conversation: Conversation
    exchange: Exchange
    has_rivals: bool
    additions: Additions
    section: SentSection | None
    bytes: int = 0


@dataclass(slots=True)
class _CachedMemory:
    """The part that all snapshots of a memory have in common, and the ends of its paths, those put last at the end."""

    # As they were last read or notified.
    numbers: AgentNumbers
    # The numbers at which the cached parts were read.
    state: tuple[int, int, int]  # epoch, rev, next number
    has_tombs: bool
    blocks: list[Block]
    ops: list[BlockOp]
    standing: list[StandingFact]
    # Of these; `opening_bytes` come in addition, and those of each place.
    bytes: int
    path_ends: dict[_Name, _PathEnd] = field(default_factory=dict)
    # All that a list may repeat or extend, the newest last, and perhaps some that nothing can any more; None:
    # they were not read.
    openings: list[Opening] | None = None
    opening_bytes: int = 0


class SnapshotCache:
    """The memories whose snapshots were read last. Only the event loop's thread uses it."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._memories: OrderedDict[int, _CachedMemory] = OrderedDict()
        self.bytes = 0

    def has(self, agent: int, key: str | None, path: bytes | None) -> bool:
        """Returns whether a cached entry may answer this, once its numbers are checked."""
        memory = self._memories.get(agent)
        return memory is not None and ((key is None and path is None) or (key, path) in memory.path_ends)

    def apply(self, apply: Changes) -> None:
        """Takes in what the agents' rows say now. Memories of which that is not known are dropped."""
        if apply is None:
            self.clear()
            return
        for agent, numbers in apply.items():
            memory = self._memories.get(agent)
            if memory is not None and numbers is not None:
                memory.numbers = numbers
            elif memory is not None:
                self.drop(agent)

    def find(self, agent: int, key: str | None, path: bytes | None) -> MemorySnapshot | None:
        """Returns a snapshot as it would be read now; None where the cache is not of now."""
        memory = self._memories.get(agent)
        if memory is None:
            return None
        numbers = memory.numbers
        # Not of now; or a turn was committed, and notified, that will be cached in a moment.
        if memory.state != (numbers.epoch, numbers.rev, numbers.next_seq):
            return None
        if key is None and path is None:
            self._memories.move_to_end(agent)
            return MemorySnapshot(
                *numbers, has_tombs=memory.has_tombs, blocks=memory.blocks, ops=memory.ops,
                standing=memory.standing,
            )  # fmt: skip
        end = memory.path_ends.get((key, path))
        if end is None:
            return None
        self._memories.move_to_end(agent)
        return MemorySnapshot(
            *numbers,
            end.conversation,
            end.exchange,
            end.has_rivals,
            end.additions,
            memory.has_tombs,
            end.section,
            memory.blocks,
            memory.ops,
            memory.standing,
        )

    def put(self, agent: int, key: str | None, path: bytes | None, snapshot: MemorySnapshot) -> None:
        """Caches a snapshot that was read."""
        if snapshot.shares_blocks:
            self.drop(agent)
            return
        state = snapshot.epoch, snapshot.rev, snapshot.next_seq
        numbers = AgentNumbers(
            snapshot.epoch, snapshot.next_seq, snapshot.indexed_seq, snapshot.rev, snapshot.stamp
        )
        memory = self._memories.get(agent)
        if memory is not None and memory.state == state:
            memory.numbers = numbers
        else:
            self.drop(agent)
            size = _MEMORY_BYTES + sum(400 + len(b.value) for b in snapshot.blocks)
            size += sum(400 + len(op.arguments) for op in snapshot.ops)
            size += sum(200 + len(fact.text) for fact in snapshot.standing)
            memory = _CachedMemory(
                numbers, state, snapshot.has_tombs, snapshot.blocks, snapshot.ops, snapshot.standing, size
            )
            self._memories[agent] = memory
            self.bytes += size
        # No turn is planned on the end of a path from its snapshot alone where that goes on, or was made elsewhere.
        is_end = path is not None and not (snapshot.is_continued or snapshot.matches_prefix)
        if snapshot.exchange is not None and snapshot.conversation is not None and is_end:
            end = _PathEnd(
                snapshot.conversation,
                snapshot.exchange,
                snapshot.has_rivals,
                snapshot.additions,
                snapshot.section,
            )
            self._put(memory, (key, path), end)
        self._shrink()

    def openings(self, agent: int, snapshot: MemorySnapshot) -> list[Opening] | None:
        """Returns the openings of a memory that is as in a snapshot of it; None: they are not known."""
        memory = self._memories.get(agent)
        is_same = memory is not None and memory.state == (snapshot.epoch, snapshot.rev, snapshot.next_seq)
        return memory.openings if memory is not None and is_same else None

    def cache_openings(self, agent: int, snapshot: MemorySnapshot, openings: list[Opening]) -> None:
        """Caches all openings of a memory, which were read after the snapshot."""
        memory = self._memories.get(agent)
        if memory is not None and memory.state == (snapshot.epoch, snapshot.rev, snapshot.next_seq):
            newest = openings[-_OPENINGS:]
            self._put_openings(memory, newest, sum(map(_opening_bytes, newest)))
            self._shrink()

    def committed(self, write: TurnWrite, done: Committed) -> None:
        """Takes in a turn that was committed: the cached entry goes on with its numbers, or is dropped.

        The exchange of the write, or of what is done, becomes the cached end: nothing else needs it any more.
        """
        agent = done.agent.id
        memory = self._memories.get(agent)
        if memory is None:
            return
        epoch, rev, next_seq = memory.state
        if epoch == done.agent.epoch and 0 < done.seq < next_seq:
            return  # it was read after this turn
        # An edit raises `rev`; and where another writer has taken a number, or none was taken, this is not the present.
        if write.ops or epoch != done.agent.epoch or done.seq != next_seq:
            self.drop(agent)
            return
        memory.state = epoch, rev, done.next_seq
        if write.opening is not None and memory.openings is not None:
            openings = [*memory.openings, write.opening]
            size = memory.opening_bytes + _opening_bytes(write.opening)
            if len(openings) > _OPENINGS:
                size -= _opening_bytes(openings.pop(0))
            self._put_openings(memory, openings, size)
        end: _PathEnd | None
        if done.begun is not None and done.added is not None:
            e, end = done.added, _PathEnd(done.begun, done.added, False, NO_ADDITIONS, None)
        elif write.plain is not None and done.is_plain and not done.matches_prefix:
            e, end = write.plain[0], self._planned_on(memory, write.plain[0])
        else:
            # Whatever it changed of the tree, these may be ends of paths no more.
            self._clear(memory)
            return
        name = write.key, e.path
        if name in memory.path_ends:
            # Two conversations without an id say the same; the one that began last is read.
            self._remove(memory, name)
            return
        if end is None:
            return
        _go_on(end, e, write, done)
        self._put(memory, name, end)
        self._shrink()

    def drop(self, agent: int) -> None:
        """Drops the cached entries of one memory."""
        memory = self._memories.pop(agent, None)
        if memory is not None:
            self._clear(memory)
            self.bytes -= memory.bytes + memory.opening_bytes

    def clear(self) -> None:
        """Drops everything, as where it is unknown what has changed."""
        self._memories.clear()
        self.bytes = 0

    def _planned_on(self, memory: _CachedMemory, e: Exchange) -> _PathEnd | None:
        """Returns the place that a plain turn went on from. All of its conversation go, since that has moved."""
        found = None
        for name, end in list(memory.path_ends.items()):
            if end.exchange.conversation == e.conversation:
                self.bytes -= memory.path_ends.pop(name).bytes
                if end.exchange.id == e.parent:
                    found = end
        return found

    def _put_openings(self, memory: _CachedMemory, openings: list[Opening], size: int) -> None:
        """Keeps these openings of a memory instead of those it had. size: their bytes."""
        self.bytes += size - memory.opening_bytes
        memory.openings, memory.opening_bytes = openings, size

    def _put(self, memory: _CachedMemory, name: _Name, end: _PathEnd) -> None:
        path_ends = memory.path_ends
        if name in path_ends or len(path_ends) == _PATH_ENDS:
            self._remove(memory, name if name in path_ends else next(iter(path_ends)))
        path_ends[name] = end
        end.bytes = _bytes_of(end)
        self.bytes += end.bytes

    def _remove(self, memory: _CachedMemory, name: _Name) -> None:
        self.bytes -= memory.path_ends.pop(name).bytes

    def _clear(self, memory: _CachedMemory) -> None:
        self.bytes -= sum(end.bytes for end in memory.path_ends.values())
        memory.path_ends.clear()

    def _shrink(self) -> None:
        """Drops the memories asked longest ago. Last of all: one that was dropped takes in nothing more."""
        while self.bytes > self._limit and self._memories:
            self.drop(next(iter(self._memories)))


def _go_on(end: _PathEnd, e: Exchange, write: TurnWrite, done: Committed) -> None:
    """Moves the end of a path to the exchange that was committed after it, or with which it begins."""
    # The exchange has moved its conversation once.
    old = end.conversation
    end.conversation = Conversation(old.id, old.uid, old.key, old.rev + 1, old.last_exchange)
    run = e.run if done.seq == e.seq else done.seq
    e = replace(e, id=done.exchange, seq=done.seq, run=run, section=done.section)
    rounds = end.additions.rounds
    if rounds and rounds[-1].id == e.parent and e.continues_parent:
        rounds = (*rounds[:-1], replace(rounds[-1], continued=True))
        end.additions = replace(end.additions, rounds=rounds)
    if e.adds:
        end.additions = end.additions.extended(e)
    end.exchange = replace(e, input=None, shown_reply=None, full=None, notes=NO_NOTES)
    end.has_rivals = False
    if done.section != (end.section.id if end.section is not None else None):
        end.section = _section(write, done)


def _bytes_of(end: _PathEnd) -> int:
    """Returns the bytes that the end of a path takes."""
    additions = end.additions
    size = _PATH_END_BYTES + 45 * sum(map(len, end.exchange.inputs)) + _NOTE_BYTES * len(additions.notes)
    for note in additions.notes:
        size += len(note.utf8)
    for e in additions.rounds:
        size += _ROUNDS_BYTES + 45 * sum(map(len, e.inputs))
        size += sum(len(part or b"") for part in (e.input, e.shown_reply, e.full))
    return size


def _opening_bytes(opening: Opening) -> int:
    return _OPENING_BYTES + 100 * len(opening.inputs)


def _section(write: TurnWrite, done: Committed) -> SentSection | None:
    if done.section is None or write.section is None:
        return None
    # As it is read: its keys are strings.
    return SentSection(done.section, write.section.text, orjson.loads(orjson.dumps(write.section.known)))
