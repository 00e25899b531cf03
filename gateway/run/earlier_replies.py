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
    # The ids of the turn's reply and of the reply's parts.
    ids: tuple[str, ...]
    # The id of the reply that the turn continues; None: the turn begins a conversation.
    previous_id: str | None
    # The part of that previous reply that the client heard, as JSON; empty: the client heard all of it.
    heard: bytes
    # The messages of the turn as JSON.
    messages: bytes
    # True: the last message is the reply.
    has_reply: bool

    @property
    def size_bytes(self) -> int:
        ids = (*self.ids, self.previous_id or "")
        return _TURN_BYTES + len(self.messages) + len(self.heard) + sum(_ID_BYTES + len(each) for each in ids)


class EarlierReplies:
    """The `KnownReplies` of the process: a cache of replies by their ids, apart for each memory.

    A client may send the id of a reply alone, and memory has to know which conversation continues.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # The cached turns by their numbers. The first turn is the first to be dropped.
        self._turns: OrderedDict[int, _Turn] = OrderedDict()
        # The number of the newest turn with an id, by the memory and the id.
        self._number_by_id: dict[tuple[MemoryKey, str], int] = {}
        # The numbers of the next turns.
        self._numbers = count()
        # The sum of the sizes of the cached turns.
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def list_path(self, memory: MemoryKey, reply_id: str | None) -> list[Json]:
        """Returns the messages down to a reply, oldest first, as far up as they are known."""
        newest_first: dict[int, _Turn] = {}
        while reply_id is not None:
            number = self._number_by_id.get((memory, reply_id))
            if number is None or number in newest_first:  # an upstream that repeats ids may make a cycle
                break
            newest_first[number] = self._turns[number]
            reply_id = self._turns[number].previous_id
        for number in reversed(newest_first):  # so that the beginning of a long conversation is dropped first
            self._turns.move_to_end(number)
        path: list[Json] = []
        for turn in reversed(newest_first.values()):
            if turn.heard and path:
                path[-1] = orjson.loads(turn.heard)
            path += orjson.loads(turn.messages)
        return path

    def find_reply(self, memory: MemoryKey, reply_id: str) -> Json | None:
        """Returns the reply with an id, or with a part that has the id; None: no cached reply has it."""
        number = self._number_by_id.get((memory, reply_id))
        if number is None:
            return None
        self._turns.move_to_end(number)
        turn = self._turns[number]
        shown_reply: Json | None = orjson.loads(turn.messages)[-1] if turn.has_reply else None
        return shown_reply

    def add(
        self,
        memory: MemoryKey,
        ids: Sequence[str],
        previous_id: str | None,
        new_messages: Sequence[Json],
        shown_reply: Json | None,
        heard: Json | None = None,
    ) -> None:
        """Adds a turn, and drops the oldest turns beyond the limit.

        memory: the memory in which the turn was made.
        ids: the ids of the reply and of its parts.
        previous_id: the id of the reply that the turn continues; None: the turn begins a conversation.
        new_messages: the new messages of the request.
        shown_reply: the reply as the client has it; None: there is no reply yet.
        heard: the part of the previous reply that the client heard; None: all of it.
        """
        has_reply = shown_reply is not None
        messages = _dump([*new_messages, shown_reply] if has_reply else new_messages)
        turn = _Turn(
            memory=memory,
            ids=tuple(ids),
            previous_id=previous_id,
            heard=b"" if heard is None else _dump(heard),
            messages=messages,
            has_reply=has_reply,
        )
        if not ids or turn.size_bytes > self._limit_bytes:
            return
        number = next(self._numbers)
        self._turns[number] = turn
        self._number_by_id.update(((memory, each), number) for each in ids)
        self.size_bytes += turn.size_bytes
        while self.size_bytes > self._limit_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drops the turn that was used longest ago, with its ids."""
        number, turn = self._turns.popitem(last=False)
        self.size_bytes -= turn.size_bytes
        for each in turn.ids:
            # A later turn may have the same id.
            if self._number_by_id.get((turn.memory, each)) == number:
                del self._number_by_id[turn.memory, each]

    def list_unknown_ids(self, memory: MemoryKey, ids: Set[str]) -> set[str]:
        """Returns the ids that no cached turn of a memory has."""
        return {each for each in ids if (memory, each) not in self._number_by_id}

    def clear(self) -> None:
        """Drops all: something was forgotten."""
        self._turns.clear()
        self._number_by_id.clear()
        self.size_bytes = 0


class ReferencedReplies(Struct, frozen=True):
    """Finds replies by one request's ids, in the paths of the store and in the cache of the process.

    Implements `KnownReplies`, which documents the methods.
    """

    # The messages of each path, by the id of the reply at its end.
    paths: Mapping[str, Sequence[Json]]
    # The cache of the process.
    cached_replies: EarlierReplies

    def list_path(self, memory: MemoryKey, reply_id: str | None) -> list[Json]:
        messages = None if reply_id is None else self.paths.get(reply_id)
        return self.cached_replies.list_path(memory, reply_id) if messages is None else [*messages]

    def find_reply(self, memory: MemoryKey, reply_id: str) -> Json | None:
        if reply_id in self.paths:
            return self.paths[reply_id][-1]
        return self.cached_replies.find_reply(memory, reply_id)


def _dump(value: Json | Sequence[Json | None]) -> bytes:
    """Returns a value as JSON."""
    # A copy, because orjson's own bytes hold up to eight times their size for as long as they live.
    return bytes(memoryview(orjson.dumps(value)))
