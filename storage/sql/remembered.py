"""The memories asked last, as a process remembers them: their indexes opened, the messages that these do not know yet,
and the messages that were shown.

The database holds all of it. An agent's numbers (`Numbers`) say whether what is remembered is still so, also where
another process has written meanwhile; what they say has changed is read again, and nothing else:

    epoch        something was forgotten: all
    indexed_seq  the chunks of the index that were written since
    stamp        the same, and every message
    next_seq     what was said since, unless the query leaves it out anyway

Numbers are read before what they stand for, so that this may be newer than they say, and never older. One thread, the
event loop's, uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from storage.commands import Rules
from storage.database import Connection, Row
from storage.records import Exchange, Message, Numbers, State
from storage.search.blob import Counted, Document, count_terms
from storage.search.index import Index
from storage.search.rank import clear_caches
from storage.sql import exchanges
from storage.sql.passages import load_kept
from storage.sql.terms import terms_since
from storage.sql.vectors import VectorCache

# The bytes that all may take together: a memory of 10,000 messages takes some 6 MB, one of a dozen 50 kB, one of two
# 20 kB.
CACHE_BYTES = 28 << 20
# The messages that were shown may take so much of one memory.
_SHOWN_BYTES = 2 << 20
# About what a message takes beside its text; what a character takes with its terms counted; and one that is not there.
_MESSAGE_BYTES, _COUNTED, _NONE_BYTES = 600, 6, 100
# As many exchanges that are not indexed are read at once, and as many passages with facts; a query waits for no more.
_TAIL = 64


class _Told:
    """A message that the index does not know. Its terms are counted when a query first needs them."""

    __slots__ = ("_counted", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        self._counted: Counted | None = None

    @property
    def known(self) -> Counted | None:
        """Its terms, if they were counted."""
        return self._counted

    @property
    def counted(self) -> Counted:
        if self._counted is None:
            self._counted = count_terms(document_of(self.message))
        return self._counted


@dataclass(frozen=True, slots=True)
class News:
    """A reading of what has changed in a memory. since: the numbers that it had. position: up to where all is read now.

    terms: (chunk, stamp, bytes). told: messages, passages and facts that the index does not know.
    """

    since: Numbers | None
    numbers: Numbers
    position: int
    terms: Sequence[Row]
    told: Sequence[Message]


@dataclass(slots=True)
class Remembered:
    """One memory. numbers: those that it is right for. position: from this number on nothing was read yet.

    told: by seq, what the index does not know. shown: by seq, messages that were read because a query found them; None:
    nobody may see it.
    """

    agent: int
    index: Index = field(default_factory=Index)
    numbers: Numbers | None = None
    position: int = 0
    told: dict[int, _Told] = field(default_factory=dict)
    shown: dict[int, Message | None] = field(default_factory=dict)
    _terms_stamp: int = -1
    _is_full: bool = False
    _told_bytes: int = 0
    _shown_bytes: int = 0

    @property
    def size(self) -> int:
        return self.index.size + self._told_bytes + self._shown_bytes

    def lacks(self, now: Numbers, skip: range) -> bool:
        """Returns whether something has to be read before a query that leaves some numbers out."""
        before = self.numbers
        if before is None or (before.indexed_seq, before.stamp) != (now.indexed_seq, now.stamp):
            return True
        is_left_out = skip.start <= self.position and now.next_seq <= skip.stop
        return self.position < now.next_seq and not self._is_full and not is_left_out

    async def read(self, connection: Connection, now: Numbers, rules: Rules) -> News:
        """Reads what has changed. It changes nothing here."""
        before, indexed = self.numbers, now.indexed_seq
        is_same = before is not None and before.stamp == now.stamp
        terms: Sequence[Row] = ()
        if not is_same or before is None or before.indexed_seq != indexed:
            terms = await terms_since(connection, self.agent, self._terms_stamp)
        position = max(indexed + 1, self.position if is_same else 0)
        values = (self.agent, indexed + 1, position, _TAIL)
        rows = exchanges.spoken(await connection.rows(exchanges.SQL["spoken_unread"], values))
        told = [
            m
            for e, is_shared, previous in rows
            if e.standing and e.state is State.FINISHED
            for m in rules.messages_of(e, is_shared, previous, None)
        ]
        fresh = [e for e, _, _ in rows if e.seq >= position]
        reached = position
        for e in fresh:
            reached = _behind(e) if e.seq == reached else reached
        if reached < now.next_seq:  # numbers that no exchange has are those of passages and facts
            told += await load_kept(connection, exchanges.SQL["kept_since"], (self.agent, position, _TAIL))
        reached = _behind(fresh[-1]) if len(fresh) == _TAIL else max(now.next_seq, reached)
        # One that is open tells nothing yet, so that it is read again.
        reached = min([reached, *(e.seq for e in fresh if e.state is State.OPEN)])
        return News(before, now, reached, terms, told)

    def take(self, news: News) -> bool:
        """Takes what was read; False: something else was taken meanwhile. Raises: CorruptIndex."""
        if news.since is not self.numbers:
            return False
        now = news.numbers
        self.index.put((chunk, data) for chunk, _, data in news.terms)
        self._terms_stamp = max((stamp for _, stamp, _ in news.terms), default=self._terms_stamp)
        told = {m.seq: _Told(m) for m in news.told}
        if self.numbers is None or self.numbers.stamp != now.stamp:
            self.shown.clear()
            self._shown_bytes = 0
        else:
            # What is known already has its terms counted.
            known = {seq: each for seq, each in self.told.items() if seq > now.indexed_seq or seq in told}
            told = known | {seq: each for seq, each in told.items() if seq not in known}
        self.told, self.numbers, self.position = told, now, news.position
        of = {each.message.exchange for seq, each in told.items() if seq > now.indexed_seq}
        self._is_full = len(of) >= _TAIL
        self._told_bytes = sum(_size(each.message, _COUNTED) for each in told.values())
        return True

    def tail(self, skip: range) -> list[Counted]:
        """Returns what the index does not know, without some numbers."""
        return [each.counted for seq, each in self.told.items() if seq not in skip]

    def counted(self) -> dict[Document, Counted]:
        """Returns what the index does not know, as far as its terms were counted."""
        found = (each.known for each in self.told.values())
        return {each.document: each for each in found if each is not None}

    def unread(self, seqs: Iterable[int]) -> list[int]:
        """Returns those of these messages that have to be read before they can be shown."""
        return [seq for seq in seqs if seq not in self.told and seq not in self.shown]

    def keep(self, seqs: Iterable[int], read: Mapping[int, Message]) -> None:
        """Keeps messages that were read. seqs: all that were looked for."""
        for seq in seqs:
            self.shown[seq] = m = read.get(seq)
            self._shown_bytes += _size(m) if m is not None else _NONE_BYTES
        while self._shown_bytes > _SHOWN_BYTES and len(self.shown) > 1:
            oldest = self.shown.pop(next(iter(self.shown)))
            self._shown_bytes -= _size(oldest) if oldest is not None else _NONE_BYTES

    def message(self, seq: int) -> Message | None:
        """Returns a message that is told or was read."""
        told = self.told.get(seq)
        return self.shown.get(seq) if told is None else told.message


class MemoryCache:
    """The memories asked last, as many as fit, and their vectors, which are read only where they are asked for.

    clears: how often something was dropped because it may be wrong.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.vectors = VectorCache()
        self._limit = limit_bytes
        self._kept: OrderedDict[int, tuple[Remembered, int]] = OrderedDict()
        self._bytes = 0
        self.clears = 0

    def get(self, agent: int) -> Remembered | None:
        found = self._kept.get(agent)
        if found is None:
            return None
        self._kept.move_to_end(agent)
        return found[0]

    def keep(self, memory: Remembered) -> None:
        """Keeps a memory as large as it is now. The newest stays even where it alone is too large."""
        self._drop(memory.agent)
        self._kept[memory.agent] = memory, memory.size
        self._bytes += memory.size
        while self._bytes > self._limit and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def drop(self, agent: int) -> None:
        """Drops a memory of which something was forgotten."""
        self.clears += 1
        self._drop(agent)

    def clear(self) -> None:
        """Drops all, and the words of messages as well."""
        clear_caches()
        self.vectors.clear()
        self.clears += 1
        self._kept.clear()
        self._bytes = 0

    def _drop(self, agent: int) -> None:
        found = self._kept.pop(agent, None)
        if found is not None:
            self._bytes -= found[1]


def document_of(m: Message) -> Document:
    """Returns a message as the index reads it."""
    return Document(m.seq, m.role, m.text, m.at, m.speaker, m.previous)


def _behind(e: Exchange) -> int:
    """Returns the first number behind those of an exchange."""
    return e.seq + len(e.inputs) + 1


def _size(m: Message, per_char: int = 1) -> int:
    return _MESSAGE_BYTES + per_char * len(m.text)
