"""Stored replies and results of tools, which stand in for an upstream and a toolbox while an item is replayed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import orjson
from msgspec.structs import replace

from adapters.base import BufferedReply, ModelReply
from adapters.errors import ProviderError
from adapters.types import Json, ModelRequest
from gateway.core.turn import commands
from gateway.core.turn.calls import INTERRUPTED
from gateway.core.upstream.policy import Target
from gateway.errors import GatewayError
from gateway.run.receipt import UpstreamCall
from gateway.run.tools.toolbox import NOT_AVAILABLE, ToolAnswer, Toolbox, failed_answer, run_tool
from gateway.run.upstream.failover import Endpoint, RequestMaker
from storage.errors import StoreError
from storage.records import Run
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")


class NotYet(Exception):
    """The next reply is not stored yet."""


@dataclass(slots=True)
class StoredReplies:
    """The stored replies of an item. Takes the place of `Attempts`."""

    target: Target
    endpoint: Endpoint
    replies: Sequence[bytes]
    # The error in place of the next reply; None: the reply is not stored yet.
    failure: ProviderError | None = None
    # The request for the next reply is to be made.
    composes: bool = False
    # That request, once it is made.
    request: ModelRequest | None = None
    # How many replies were taken.
    taken: int = 0
    # As `Attempts` has it.
    call: UpstreamCall = field(default_factory=lambda: UpstreamCall(0.0))

    async def send(self, make: RequestMaker) -> ModelReply:
        """Returns the next reply. Raises: NotYet; the error in its place."""
        if self.taken == len(self.replies):
            if self.composes:
                self.request = await make(self.target, self.endpoint)
            raise self.failure or NotYet
        self.taken += 1
        return BufferedReply(200, (("content-type", "application/json"),), self.replies[self.taken - 1])

    def note_prompt_tokens(self, estimated: int, actual: int, most: int) -> None:
        """Does nothing: the reply came long ago."""

    def note_broken(self, error: GatewayError) -> None:
        """Does nothing."""


@dataclass(slots=True)
class CallJournal:
    """The calls of foreign tools of an item. Each is written down before it is made, and never made twice.

    A reply that is asked for again may give its calls the same ids, so a call is known by its arguments, too.
    """

    store: Store
    run: Run
    # The answers to the calls of earlier attempts, by what is written down of each; None: one that has none.
    answers: dict[bytes, ToolAnswer | None] = field(default_factory=dict)
    # The number of the next call.
    seq: int = 0

    async def load(self) -> None:
        """Reads what earlier attempts have written down. Raises: StoreError."""
        results = dict(await self.store.batches.texts(self.run.agent, self.run.id, "result"))
        for seq, entry in await self.store.batches.texts(self.run.agent, self.run.id, "call"):
            self.answers[entry] = ToolAnswer(**orjson.loads(results[seq])) if seq in results else None
            self.seq = seq + 1

    async def perform_once(
        self, number: int, call: commands.RunTool, perform: Callable[[], Awaitable[ToolAnswer]]
    ) -> ToolAnswer:
        """Returns the answer to a call, which is made unless it was written down before.

        number: of the reply that calls.

        Raises: StoreError: it could not be written down, and was not made.
        """
        what = orjson.dumps([call.name, call.arguments], option=orjson.OPT_SORT_KEYS)
        entry = orjson.dumps({"round": number, "id": call.call_id, "what": sha256(what).hexdigest()})
        if entry in self.answers:
            return self.answers[entry] or failed_answer(INTERRUPTED)
        seq, self.seq = self.seq, self.seq + 1
        if not await self._add("call", seq, entry):
            # The item does not go on, or another process, which has taken the batch over, has begun the call.
            return failed_answer(INTERRUPTED)
        answer = await perform()
        try:
            await self._add("result", seq, answer.dump())
        except StoreError as error:
            _log.warning(
                "The result of a tool call of a batch could not be stored, and is lost if the gateway ends now: %s",
                error.message,
            )
        return answer

    async def _add(self, kind: str, seq: int, data: bytes) -> bool:
        return await self.store.batches.add_text(self.run.agent, self.run.id, kind, seq, data)


@dataclass(slots=True)
class JournaledTools:
    """The tools of an item. Takes the place of its `Toolbox`."""

    inner: Toolbox
    # The names of the tools whose calls are journaled.
    foreign: frozenset[str]
    journal: CallJournal
    replies: StoredReplies
    # The stored rounds, with the results of their calls.
    rounds: Sequence[Json]
    # Bounds the calls of all items that run at once.
    places: asyncio.Semaphore
    # The results of the round that is not stored yet.
    results: list[Json] = field(default_factory=list)

    def definitions(self) -> list[dict[str, Any]]:
        return self.inner.definitions()

    def owns(self, name: str) -> bool:
        return True  # a stored result is there, whoever owns the tool now

    def serial_group(self, call: commands.RunTool) -> str | None:
        return self.inner.serial_group(call)

    async def run(self, call: commands.RunTool) -> ToolAnswer:
        """Returns the stored result of a call; where its round is not stored yet, runs it."""
        number = self.replies.taken - 1
        if number < len(self.rounds):
            for each in self.rounds[number]["results"]:
                if each["call_id"] == call.call_id:
                    return replace(ToolAnswer(*each["answer"]), shown=each.get("shown", {}))
            return failed_answer(INTERRUPTED)  # a call that was not allowed has no result
        async with self.places:
            answer = await self._run(number, call)
        stored = [answer.content, answer.status, answer.stdout, answer.stderr]
        self.results.append({"call_id": call.call_id, "answer": stored, "shown": dict(answer.shown)})
        return answer

    async def _run(self, number: int, call: commands.RunTool) -> ToolAnswer:
        perform = partial(run_tool, self.inner, call)
        if call.name not in self.foreign:
            return await perform()
        try:
            return await self.journal.perform_once(number, call, perform)
        except StoreError as error:
            _log.warning("A tool call of a batch could not be journaled, and is not made: %s", error.message)
            return failed_answer(NOT_AVAILABLE.format(name=call.name))
