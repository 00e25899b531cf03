"""Memory's part of native requests (gateway.run.native_request) to an upstream that names the replies it stores."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.errors import ProviderTooLarge
from adapters.reply_quota import StreamReservation
from adapters.types import Event, Json
from gateway.core.conversation.private import with_private
from gateway.core.request.known_replies import MemoryKey
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.native_reader import NativeReader, NativeReply
from gateway.run.deferred_replies import DeferredReplies, DeferredReply, DeferredReplyRow
from gateway.run.memory.named_turns import make_turn_name
from gateway.run.memory.prompt import Prompt
from gateway.run.native_request import NativeRequest
from gateway.run.tree_memory import TreeMemory

_log = logging.getLogger("mnemogate")
# The bytes of the cached turns: some four thousand turns of a kilobyte. A dropped conversation continues as a new one.
CACHE_BYTES = 4 * 1024 * 1024
# The bytes of a turn without its words and ids; measured.
_TURN_BYTES = 450
# The bytes of one of its ids; measured.
_ID_BYTES = 200


class _Turn(Struct, frozen=True):
    """A turn with a reply that the upstream stores."""

    memory: MemoryKey
    # The ids of its reply and of the reply's parts.
    ids: tuple[str, ...]
    # The id of the reply that it continues.
    previous_id: str | None
    # The part of that previous reply that the client heard, as JSON; empty: the client heard all of it.
    heard: bytes
    # The messages of the turn as JSON. If it `has_reply`, the last message is the reply.
    messages: bytes
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

    def path(self, memory: MemoryKey, id: str | None) -> list[Json]:
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

    def reply(self, memory: MemoryKey, id: str) -> Json | None:
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
        """Adds a turn. The arguments are as the fields of `_Turn`. Drops the oldest turns beyond the limit."""
        has_reply = shown_reply is not None
        messages = _dump([*new, shown_reply] if has_reply else new)
        turn = _Turn(
            memory, tuple(ids), previous_id, b"" if heard is None else _dump(heard), messages, has_reply
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

    def unknown(self, memory: MemoryKey, ids: Set[str]) -> set[str]:
        return {id for id in ids if (memory, id) not in self._number_by_id}

    def clear(self) -> None:
        """Drops all: something was forgotten."""
        self._turns.clear()
        self._number_by_id.clear()
        self.bytes = 0


class FoundReplies(Struct, frozen=True):
    """Finds replies by one request's ids: what the store has of them, and the cache of the process.

    Implements `KnownReplies`, which documents the methods.
    """

    # The messages of each path, by the id of the reply at its end.
    paths: Mapping[str, Sequence[Json]]
    earlier: EarlierReplies

    def path(self, memory: MemoryKey, id: str | None) -> list[Json]:
        messages = None if id is None else self.paths.get(id)
        return self.earlier.path(memory, id) if messages is None else [*messages]

    def reply(self, memory: MemoryKey, id: str) -> Json | None:
        return self.paths[id][-1] if id in self.paths else self.earlier.reply(memory, id)


def _dump(value: Json | Sequence[Json | None]) -> bytes:
    # A copy, because what orjson writes holds up to eight times its size for as long as it lives.
    return bytes(memoryview(orjson.dumps(value)))


class BoundedReader:
    """Reads no more of a stream than a turn may be large; of a larger reply the beginning is remembered.

    Implements `NativeReader`, which documents the methods.
    """

    def __init__(self, reader: NativeReader, limit_bytes: int) -> None:
        self._reader = reader
        self._reservation = StreamReservation(limit_bytes)
        self._is_full = False

    @property
    def is_over(self) -> bool:
        return self._reader.is_over

    @property
    def background_id(self) -> str | None:
        return self._reader.background_id

    def take(self, event: Event) -> None:
        if self._is_full:
            return
        self._reader.take(event)
        try:
            self._reservation.reserve_more(len(event.raw))
        except ProviderTooLarge as error:
            self._is_full = True
            _log.warning("Only the beginning of a reply is remembered: %s.", error.message)

    def take_whole(self, body: bytes) -> None:
        self._reader.take_whole(body)

    def reply(self) -> NativeReply:
        self._reservation.release()  # it has been read
        return self._reader.reply()


@dataclass(slots=True)
class NativeMemory(TreeMemory):
    """Memory's part of a native turn: it notes by which ids a client may refer to the reply."""

    native: NativeRequest
    reader: NativeReader
    earlier: EarlierReplies
    deferred: DeferredReplies
    # Writes the turn of a deferred reply that has ended.
    save_ended: Callable[[NativeRequest, DeferredReplyRow, NativeReader], Awaitable[None]]
    # The write of the turn without its reply, which the upstream makes in the background; None: there was none.
    deferring: asyncio.Task[None] | None = None

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        if outcome.background_id is not None:
            if self.deferring is not None:
                return self._save_deferred(self.deferring, prompt, outcome, outcome.background_id)
            if outcome.state is End.CANCELLED:
                self.deferring = asyncio.create_task(
                    self._defer_reply(prompt, outcome, outcome.background_id)
                )
                return self.deferring
        return self._write_whole(prompt, outcome)

    def _write_whole(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        native = self.native
        reply = self.reader.reply()
        agent = self.context.agent
        shown_reply = outcome.shown_reply
        if native.is_stored:
            memory = agent.uid, agent.epoch
            self.earlier.add(
                memory, reply.ids, native.previous_id, native.new_messages, shown_reply, native.heard
            )
            if shown_reply is not None:
                outcome = replace(outcome, shown_reply=with_private(shown_reply, ids=reply.ids))
        return TreeMemory.write(self, prompt, outcome)

    async def _defer_reply(self, prompt: Prompt, outcome: TurnOutcome, id: str) -> None:
        """Writes the turn without its reply, and stores the request under the id of the reply."""
        await TreeMemory.write(self, prompt, outcome)
        identity, native, context = self.context.request.identity, self.native, self.context
        scope = identity.stored_scope
        if scope is None:
            return
        reply = DeferredReply(native.raw.decode(), native.upstream_path, identity, make_turn_name(context))
        await self.deferred.add(scope, context.agent.epoch, id, reply)

    async def _save_deferred(
        self, deferring: asyncio.Task[None], prompt: Prompt, outcome: TurnOutcome, id: str
    ) -> None:
        """Writes the turn of a reply that has ended, unless another request has seen its end already."""
        await asyncio.wait([deferring])
        if deferring.exception() is not None:
            await self._write_whole(prompt, outcome)
            return
        scope = self.context.request.identity.scope
        row = None if scope is None else await self.deferred.find(scope.project, id)
        if row is not None:
            await self.save_ended(self.native, row, self.reader)
