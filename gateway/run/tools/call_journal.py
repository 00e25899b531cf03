"""The journal of the calls that leave the gateway, for a turn that outlives its process.

Such turns are items of batches and responses in the background: they are written as a whole when they end. The journal
survives a kill. It stores each reply of the model before the reply's first call is made, each call before it is made,
and each answer. Another attempt goes on with the same replies, so that it makes the same calls, each of them once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from gateway.core import exact_json
from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.core.turn.commands import RunTool
from gateway.run.tools.toolbox import ToolAnswer
from storage.errors import StoreError
from storage.run_records import RunTextKind

_log = logging.getLogger("mnemogate")


class _CallKey(NamedTuple):
    """The key of a call in its turn. The digest shows whether a call that comes again with its id is the same call."""

    # The id of the call.
    call_id: str
    # The digest of the tool's name and the arguments.
    digest: str


@dataclass(slots=True)
class CallJournal:
    """The calls of one turn that leave the gateway. Implements `CallDeduplicator`."""

    # Stores a text under its kind and number. Returns False if there is such a text, or if the turn has ended here.
    add_text: Callable[[RunTextKind, int, bytes], Awaitable[bool]]
    # The answers to the calls of earlier attempts; None: the call has no answer.
    answers: dict[_CallKey, ToolAnswer | None] = field(default_factory=dict, init=False)
    # The numbers of the replies that are stored.
    stored_replies: set[int] = field(default_factory=set, init=False)
    # The number of the next call.
    seq: int = field(default=0, init=False)
    # The replies that are still to be stored, by their numbers.
    _unstored: dict[int, bytes] = field(default_factory=dict, init=False)
    # Held while replies are stored, so that each is stored once.
    _write_lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def restore_calls(self, calls: Mapping[int, bytes], results: Mapping[int, bytes]) -> bool:
        """Adds the calls of earlier attempts and their results.

        calls: the stored texts of the calls by their numbers, in order.
        results: the stored texts of the results by the numbers of their calls.

        Returns False if forgetting has erased some calls, so that it is unknown which calls were made.
        """
        for seq, entry in calls.items():
            call = orjson.loads(entry)
            if "id" not in call:
                return False
            result = results.get(seq)
            key = _CallKey(call["id"], call["what"])
            self.answers[key] = None if result is None else ToolAnswer.load(result)
            self.seq = seq + 1
        return True

    def note_reply(self, number: int, reply: bytes) -> None:
        """Notes a complete reply of the model. It is stored before the next call that leaves the gateway."""
        if number not in self.stored_replies:
            self._unstored[number] = reply

    async def perform_once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Performs a call, unless an earlier attempt has stored it. Returns its answer.

        Raises: StoreError: the call could not be stored, so it was not made.
        """
        digest = sha256(exact_json.dumps([call.name, call.arguments], sort_keys=True)).hexdigest()
        key = _CallKey(call.call_id, digest)
        if key in self.answers:
            return self.answers[key] or ToolAnswer.failed(INTERRUPTED_RESULT)
        seq, self.seq = self.seq, self.seq + 1
        entry = orjson.dumps({"id": call.call_id, "what": digest})
        if not (await self._store_replies() and await self.add_text(RunTextKind.CALL, seq, entry)):
            # The turn does not go on in this process: it has ended, or another process has taken it over.
            return ToolAnswer.failed(INTERRUPTED_RESULT)
        return await perform_and_store(perform, partial(self.add_text, RunTextKind.RESULT, seq))

    async def _store_replies(self) -> bool:
        """Stores the replies that are not stored yet.

        Returns False if the turn has ended here, or goes on with other replies.
        """
        async with self._write_lock:
            while self._unstored:
                number, reply = next(iter(self._unstored.items()))
                if not await self.add_text(RunTextKind.REPLY, number, reply):
                    return False
                self.stored_replies.add(number)
                del self._unstored[number]
        return True


async def perform_and_store(
    perform: Callable[[], Awaitable[ToolAnswer]], store_result: Callable[[bytes], Awaitable[Any]]
) -> ToolAnswer:
    """Performs a call, and stores its answer. Returns the answer even if it cannot be stored."""
    answer = await perform()
    try:
        await store_result(answer.dump())
    except StoreError as error:
        _log.warning(
            "The result of a tool call could not be stored, and is lost if the gateway ends now: %s",
            error.message,
        )
    return answer
