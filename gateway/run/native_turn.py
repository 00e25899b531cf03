"""The turn of a native request (gateway.core.native_form): memory goes in, and the reply passes and is written.

There are no hidden tool rounds here, no window and no fallback to another upstream: they would change what the
upstream keeps of the conversation, or take a translation.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

import orjson
from msgspec import Struct

from adapters.errors import ProviderTooLarge
from adapters.sse import EventDecoder
from adapters.types import Json, ModelRequest
from gateway.core.conversation.private import with_private
from gateway.core.native_form import Earlier, Memory, NativeReader, NativeReply
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.upstream_error import is_for_good
from gateway.core.upstream.policy import Target
from gateway.errors import UpstreamError
from gateway.metrics import Metrics
from gateway.run.call import ChatCall
from gateway.run.memory.prompt import Prompt
from gateway.run.pending import Pending
from gateway.run.sink import ClientGone
from gateway.run.turn_saving import TurnLimits, TurnMemory, TurnSaving
from gateway.run.upstream.failover import Attempts, Endpoint
from gateway.run.upstream.relay import ReplyChange, relay

_log = logging.getLogger("mnemogate")
# Some four thousand turns of a kilobyte. A dropped conversation continues as a new one.
CACHE_BYTES = 4 * 1024 * 1024
_TURN_BYTES, _ID_BYTES = 450, 200  # measured: the values of a turn without its words; one of its ids


class NativeRequest(Protocol):
    """A request in its own dialect.

    chat: it as a chat completion without the gateway's tools. path: below the upstream's base URL. previous: the
    upstream's reply that it goes on from, by its id; heard: that reply, if its client heard the beginning alone.
    named: that id, and all others that it refers to. conversation: the upstream's one that it goes on with. new: the
    messages of `chat` that it brings itself, its instructions aside. is_stored: the upstream keeps the reply, so that
    another request may name it.
    """

    @property
    def chat(self) -> ChatRequest: ...

    @property
    def path(self) -> str: ...

    @property
    def previous(self) -> str | None: ...

    @property
    def heard(self) -> Json | None: ...

    @property
    def conversation(self) -> str | None: ...

    @property
    def named(self) -> frozenset[str]: ...

    @property
    def new(self) -> Sequence[Json]: ...

    @property
    def is_stored(self) -> bool: ...

    def with_history(self, earlier: Earlier, memory: Memory) -> NativeRequest:
        """Returns it with what it only refers to in `chat`, as far as that is known."""

    def body(self, model: str, system: str = "", notes: Mapping[int, str] | None = None) -> bytes:
        """Returns the body for the upstream.

        system: goes after the instructions.
        notes: each in front of a message, by its index in `chat`.
        """

    def reader(self) -> NativeReader: ...

    def change(self) -> ReplyChange:
        """Returns what takes from its reply what memory has put into the request."""


class _Turn(Struct, frozen=True):
    """A turn that the upstream keeps."""

    memory: Memory
    # Those of its reply.
    ids: tuple[str, ...]
    # The id of the reply that it went on from.
    before: str | None
    # That reply as JSON, if it was heard in part.
    heard: bytes
    # Its messages as JSON, of which the last one is the reply's where it `has_reply` something.
    content: bytes
    has_reply: bool

    @property
    def size(self) -> int:
        return (
            _TURN_BYTES
            + len(self.content)
            + len(self.heard)
            + sum(_ID_BYTES + len(id) for id in (*self.ids, self.before or ""))
        )


class EarlierReplies:
    """The `Earlier` of the process: replies by their ids, for each memory its own.

    The upstream has the words, the client sends their id alone, and memory wants to know which conversation goes on.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._turns: OrderedDict[int, _Turn] = OrderedDict()  # the first is the first to go
        self._named: dict[tuple[Memory, str], int] = {}
        self._numbers = count()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def path(self, memory: Memory, id: str | None) -> list[Json]:
        """Returns the messages down to a reply, oldest first, as far up as they are known."""
        found: dict[int, _Turn] = {}  # an upstream that repeats its ids may lead back to one
        while id is not None and (n := self._named.get((memory, id))) is not None and n not in found:
            found[n] = self._turns[n]
            id = found[n].before
        for n in reversed(found):  # so that of a long conversation the beginning goes first
            self._turns.move_to_end(n)
        path: list[Json] = []
        for turn in reversed(found.values()):
            if turn.heard and path:
                path[-1] = orjson.loads(turn.heard)
            path += orjson.loads(turn.content)
        return path

    def reply(self, memory: Memory, id: str) -> Json | None:
        """Returns the reply that has this id, or a part with it."""
        n = self._named.get((memory, id))
        if n is None:
            return None
        self._turns.move_to_end(n)
        turn = self._turns[n]
        shown_reply: Json | None = orjson.loads(turn.content)[-1] if turn.has_reply else None
        return shown_reply

    def keep(
        self,
        memory: Memory,
        ids: Sequence[str],
        before: str | None,
        new: Sequence[Json],
        shown_reply: Json | None,
        heard: Json | None = None,
    ) -> None:
        content = _dumped([*new, *([shown_reply] if shown_reply is not None else [])])
        was_heard = b"" if heard is None else _dumped(heard)
        turn = _Turn(memory, tuple(ids), before, was_heard, content, shown_reply is not None)
        if not ids or turn.size > self._limit:
            return
        n = next(self._numbers)
        self._turns[n] = turn
        self._named.update(((memory, id), n) for id in ids)
        self.bytes += turn.size
        while self.bytes > self._limit:
            gone, turn = self._turns.popitem(last=False)
            self.bytes -= turn.size
            for id in turn.ids:
                if self._named.get((turn.memory, id)) == gone:
                    del self._named[turn.memory, id]

    def unknown(self, memory: Memory, ids: Set[str]) -> set[str]:
        return {id for id in ids if (memory, id) not in self._named}

    def clear(self) -> None:
        """Drops all: something was forgotten."""
        self._turns.clear()
        self._named.clear()
        self.bytes = 0


class FoundReplies(Struct, frozen=True):
    """The `Earlier` of one request: the paths that the store has, by their ids, and what the process knows."""

    found: Mapping[str, Sequence[Json]]
    earlier: EarlierReplies

    def path(self, memory: Memory, id: str | None) -> list[Json]:
        found = None if id is None else self.found.get(id)
        return self.earlier.path(memory, id) if found is None else [*found]

    def reply(self, memory: Memory, id: str) -> Json | None:
        return self.found[id][-1] if id in self.found else self.earlier.reply(memory, id)


def _dumped(value: Json | list[Json]) -> bytes:
    # A copy, because what orjson writes holds up to eight times its size for as long as it lives.
    return bytes(memoryview(orjson.dumps(value)))


async def native_request(
    call: ChatCall, native: NativeRequest, target: Target, _: Endpoint, prompt: Prompt | None = None
) -> ModelRequest:
    """Returns the request for the upstream. prompt: None where memory has no part in it, but its profile may."""
    if prompt is None:
        body = native.body(target.model, call.spec.system)
    else:
        body = native.body(target.model, prompt.system, prompt.composition.notes)
    return call.send(target, body)._replace(path=native.path, query="")


@dataclass(slots=True)
class NativeRun:
    """The turn of one native request."""

    call: ChatCall
    native: NativeRequest
    attempts: Attempts
    prompt: Prompt
    memory: TurnMemory
    earlier: EarlierReplies
    pending: Pending
    limits: TurnLimits
    metrics: Metrics
    _saving: TurnSaving = field(init=False)
    _reader: NativeReader = field(init=False)
    _left: int = field(init=False)  # bytes of a stream that are still read; below 0: no more are
    _decoder: EventDecoder = field(default_factory=EventDecoder)

    def __post_init__(self) -> None:
        self._reader = self.native.reader()
        self._left = self.limits.streamed_bytes
        self._saving = TurnSaving(self.call, self.memory, self.pending, self.metrics, self.limits)

    async def run(self) -> None:
        """Answers the client. Raises: UpstreamError and below; MemoryUnavailable; Conflict; ClientGone."""
        call = self.call
        make = partial(native_request, call, self.native, prompt=self.prompt)
        with self._saving:
            try:
                change = self.native.change()
                await relay(
                    self.attempts,
                    make,
                    call.sink,
                    call.receipt,
                    self.limits.beat_s,
                    reader=self,
                    change=change,
                )
                self._break_off(End.FAILED)  # unless its end has come
            except (ClientGone, asyncio.CancelledError):
                self._break_off(End.CANCELLED)
                raise
            except UpstreamError:
                self._break_off(End.FAILED)
                raise

    async def take(self, data: bytes) -> None:
        if self._saving.is_written or self._left < 0:
            return
        self._left -= len(data)
        try:
            for event in self._decoder.feed(data):
                self._reader.take(event)
            if self._left < 0:
                raise ProviderTooLarge(f"the reply is larger than {self.limits.streamed_bytes} bytes")
        except ProviderTooLarge as error:
            self._left = -1
            _log.warning("Only the beginning of a reply is remembered: %s", error.message)
        if self._reader.is_over:
            await self._save()  # the reply's end leaves when it is on disk

    async def take_whole(self, status: int, body: bytes) -> None:
        if 200 <= status < 300:
            self._reader.take_whole(body)
            await self._save()
        else:
            self._break_off(End.FAILED, is_refused=is_for_good(status, body))

    # -- the store

    async def _save(self) -> None:
        """Saves the turn of a reply that has ended. Raises: MemoryUnavailable, Conflict, for strict memory."""
        reply = self._reader.reply()
        await self._saving.save(self.prompt, self._outcome(reply, reply.end))
        if self._saving.refusal is not None:
            raise self._saving.refusal

    def _break_off(self, end: End, *, is_refused: bool = False) -> None:
        """Has the turn written without a wait: its client left, or its reply has no proper end."""
        if not self._saving.is_written:
            outcome = self._outcome(self._reader.reply(), end, is_refused=is_refused)
            self._saving.write_unwaited(self.prompt, outcome, "A turn that was cut")

    def _outcome(self, reply: NativeReply, end: End, *, is_refused: bool = False) -> TurnOutcome:
        """Returns the outcome of the turn, and notes by which ids a client may refer to it."""
        native, shown_reply, agent = self.native, reply.shown_reply, self.memory.known.agent
        if native.is_stored:
            memory = agent.uid, agent.epoch
            self.earlier.keep(memory, reply.ids, native.previous, native.new, shown_reply, native.heard)
            if shown_reply is not None:
                shown_reply = with_private(shown_reply, ids=reply.ids)
        return TurnOutcome(end, shown_reply=shown_reply, is_refused=is_refused)
