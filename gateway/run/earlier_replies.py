"""The replies of upstreams that store them, by the ids by which a client may refer to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from itertools import count

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.request.known_replies import MemoryKey

# The bytes of the cached turns: some four thousand turns of a kilobyte. A dropped conversation continues as a new one.
CACHE_BYTES = 4 * 1024 * 1024
# The bytes of a turn without its words and ids; measured.
_TURN_BYTES = 450
# The bytes of one of its ids; measured.
_ID_BYTES = 200


class _Turn(Struct, frozen=True):
    """A turn with a reply that the upstream stores."""

    # The memory in which the reply was made.
    memory: MemoryKey
    # The ids of its reply and of the reply's parts.
    ids: tuple[str, ...]
    # The id of the reply that it continues.
    previous_id: str | None
    # The part of that previous reply that the client heard, as JSON; empty: the client heard all of it.
    heard: bytes
    # The messages of the turn as JSON. If it `has_reply`, the last message is the reply.
    messages: bytes
    # True: the last message is the reply.
    has_reply: bool

    @property
    def size(self) -> int:
        return (
            _TURN_BYTES
            + len(self.messages)
            + len(self.heard)
            + sum(_ID_BYTES + len(id) for id in (*self.ids, self.previous_id or ""))
        )


class EarlierReplies:
    """The `KnownReplies` of the process: a cache of replies by their ids, apart for each memory.

    A client may send the id of a reply alone, and memory has to know which conversation continues.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._turns: OrderedDict[int, _Turn] = OrderedDict()  # the first is the first to go
        self._number_by_id: dict[tuple[MemoryKey, str], int] = {}
        self._numbers = count()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def list_path(self, memory: MemoryKey, id: str | None) -> list[Json]:
        """Returns the messages down to a reply, oldest first, as far up as they are known."""
        found: dict[int, _Turn] = {}  # repeated ids of an upstream may lead in a circle
        while id is not None and (n := self._number_by_id.get((memory, id))) is not None and n not in found:
            found[n] = self._turns[n]
            id = found[n].previous_id
        for n in reversed(found):  # so that of a long conversation the beginning goes first
            self._turns.move_to_end(n)
        path: list[Json] = []
        for turn in reversed(found.values()):
            if turn.heard and path:
                path[-1] = orjson.loads(turn.heard)
            path += orjson.loads(turn.messages)
        return path

    def find_reply(self, memory: MemoryKey, id: str) -> Json | None:
        """Returns the reply that has this id, or a part with it."""
        n = self._number_by_id.get((memory, id))
        if n is None:
            return None
        self._turns.move_to_end(n)
        turn = self._turns[n]
        shown_reply: Json | None = orjson.loads(turn.messages)[-1] if turn.has_reply else None
        return shown_reply

    def add(
        self,
        memory: MemoryKey,
        ids: Sequence[str],
        previous_id: str | None,
        new: Sequence[Json],
        shown_reply: Json | None,
        heard: Json | None = None,
    ) -> None:
        """Adds a turn, and drops the oldest turns beyond the limit.

        memory: the memory in which the turn was made.
        ids: the ids of the reply and of its parts.
        previous_id: the id of the reply that it continues; None: the turn begins a conversation.
        new: the new messages of the request.
        shown_reply: the reply as the client has it; None: there is no reply yet.
        heard: the part of the previous reply that the client heard; None: all of it.
        """
        has_reply = shown_reply is not None
        messages = _dump([*new, shown_reply] if has_reply else new)
        turn = _Turn(
            memory=memory,
            ids=tuple(ids),
            previous_id=previous_id,
            heard=b"" if heard is None else _dump(heard),
            messages=messages,
            has_reply=has_reply,
        )
        if not ids or turn.size > self._limit:
            return
        number = next(self._numbers)
        self._turns[number] = turn
        self._number_by_id.update(((memory, id), number) for id in ids)
        self.bytes += turn.size
        while self.bytes > self._limit:
            oldest_number, oldest_turn = self._turns.popitem(last=False)
            self.bytes -= oldest_turn.size
            for id in oldest_turn.ids:
                # A later turn may have the same id.
                if self._number_by_id.get((oldest_turn.memory, id)) == oldest_number:
                    del self._number_by_id[oldest_turn.memory, id]

    def list_unknown(self, memory: MemoryKey, ids: Set[str]) -> set[str]:
        return {id for id in ids if (memory, id) not in self._number_by_id}

    def clear(self) -> None:
        """Drops all: something was forgotten."""
        self._turns.clear()
        self._number_by_id.clear()
        self.bytes = 0


class FoundReplies(Struct, frozen=True):
    """Finds replies by one request's ids, in the paths of the store and in the cache of the process.

    Implements `KnownReplies`, which documents the methods.
    """

    # The messages of each path, by the id of the reply at its end.
    paths: Mapping[str, Sequence[Json]]
    earlier: EarlierReplies

    def list_path(self, memory: MemoryKey, id: str | None) -> list[Json]:
        messages = None if id is None else self.paths.get(id)
        return self.earlier.list_path(memory, id) if messages is None else [*messages]

    def find_reply(self, memory: MemoryKey, id: str) -> Json | None:
        return self.paths[id][-1] if id in self.paths else self.earlier.find_reply(memory, id)


def _dump(value: Json | Sequence[Json | None]) -> bytes:
    # A copy, because orjson's own bytes hold up to eight times their size for as long as they live.
    return bytes(memoryview(orjson.dumps(value)))
