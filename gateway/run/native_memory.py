"""Memory's part of native requests (gateway.run.native_request) to an upstream that names the replies it stores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from adapters.errors import ProviderTooLarge
from adapters.reply_quota import StreamReservation
from adapters.types import Event
from gateway.core.conversation.private import with_private
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.native_reader import NativeReader, NativeReply
from gateway.run.deferred_replies import DeferredReplies, DeferredReply, DeferredReplyRow
from gateway.run.earlier_replies import EarlierReplies
from gateway.run.memory.named_turns import make_turn_name
from gateway.run.memory.prompt import Prompt
from gateway.run.native_request import NativeRequest
from gateway.run.tree_memory import TreeMemory

_log = logging.getLogger("mnemogate")


class BoundedReader:
    """Reads no more of a stream than a turn may be large; of a larger reply the beginning is remembered.

    Implements `NativeReader`, which documents the methods.
    """

    def __init__(self, reader: NativeReader, limit_bytes: int) -> None:
        self._reader = reader
        # The part of the process's quota that is reserved for the reply.
        self._reservation = StreamReservation(limit_bytes)
        # True: the reply has more bytes than may be held.
        self._is_full = False

    @property
    def is_over(self) -> bool:
        return self._reader.is_over

    @property
    def background_id(self) -> str | None:
        return self._reader.background_id

    def read(self, event: Event) -> None:
        if self._is_full:
            return
        self._reader.read(event)
        try:
            self._reservation.reserve_more(len(event.raw))
        except ProviderTooLarge as error:
            self._is_full = True
            _log.warning("Only the beginning of a reply is remembered: %s.", error.message)

    def read_whole(self, body: bytes) -> None:
        self._reader.read_whole(body)

    def make_reply(self) -> NativeReply:
        self._reservation.release()  # it has been read
        return self._reader.make_reply()


@dataclass(slots=True)
class NativeMemory(TreeMemory):
    """Memory's part of a native turn: it notes by which ids a client may refer to the reply."""

    # The request in its own dialect.
    native: NativeRequest
    # Reads the reply.
    reader: NativeReader
    # The replies that the process has cached by their ids.
    earlier_replies: EarlierReplies
    # The replies that upstreams make in the background.
    deferred_replies: DeferredReplies
    # Writes the turn of a deferred reply that has ended.
    save_deferred_reply: Callable[[NativeRequest, DeferredReplyRow, NativeReader], Awaitable[None]]
    # The write of the turn without its reply, which the upstream makes in the background; None: no such write.
    deferring_task: asyncio.Task[None] | None = field(default=None, init=False)

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        if outcome.background_id is not None:
            if self.deferring_task is not None:
                return self._save_deferred(self.deferring_task, prompt, outcome, outcome.background_id)
            if outcome.state is End.CANCELLED:
                self.deferring_task = asyncio.create_task(
                    self._defer_reply(prompt, outcome, outcome.background_id)
                )
                return self.deferring_task
        return self._write_whole(prompt, outcome)

    def _write_whole(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        """Writes a turn with its reply, and caches a stored reply by its ids."""
        native = self.native
        reply = self.reader.make_reply()
        agent = self.context.agent
        shown_reply = outcome.shown_reply
        if native.is_stored:
            memory = agent.uid, agent.epoch
            self.earlier_replies.add(
                memory,
                reply.ids,
                native.previous_id,
                native.new_messages,
                shown_reply=shown_reply,
                heard=native.heard,
            )
            if shown_reply is not None:
                outcome = replace(outcome, shown_reply=with_private(shown_reply, ids=reply.ids))
        return TreeMemory.write(self, prompt, outcome)

    async def _defer_reply(self, prompt: Prompt, outcome: TurnOutcome, reply_id: str) -> None:
        """Writes the turn without its reply, and stores the request under the id of the reply."""
        await TreeMemory.write(self, prompt, outcome)
        identity = self.context.request.identity
        native = self.native
        context = self.context
        scope = identity.stored_scope
        if scope is None:
            return
        reply = DeferredReply(native.raw.decode(), native.upstream_path, identity, make_turn_name(context))
        await self.deferred_replies.add(scope, context.agent.epoch, reply_id, reply)

    async def _save_deferred(
        self, deferring_task: asyncio.Task[None], prompt: Prompt, outcome: TurnOutcome, reply_id: str
    ) -> None:
        """Writes the turn of a reply that has ended, unless another request has seen its end already."""
        await asyncio.wait([deferring_task])
        if deferring_task.exception() is not None:
            await self._write_whole(prompt, outcome)
            return
        scope = self.context.request.identity.scope
        row = None if scope is None else await self.deferred_replies.find(scope.project, reply_id)
        if row is not None:
            await self.save_deferred_reply(self.native, row, self.reader)
