"""The journal of an item's calls that leave the gateway, which outlives the attempts of its batch's job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

import orjson

from gateway.agents.runs.calls.call_record import perform_noted
from gateway.core.turn.calls import INTERRUPTED
from gateway.core.turn.commands import RunTool
from gateway.run.tools.toolbox import ToolAnswer, failed_answer
from storage.records import Run
from storage.sql.store import Store


@dataclass(slots=True)
class CallJournal:
    """The calls of one item that leave the gateway. Each is written down before it is made, and never made twice.

    A reply that is asked for again may give its calls the same ids, so a call is known by its arguments, too.
    """

    store: Store
    run: Run
    # The number of the reply that makes the calls.
    round: int
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

    async def perform_once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Returns the answer to a call, which is made unless it was written down before.

        Raises: StoreError: it could not be written down, and was not made.
        """
        what = orjson.dumps([call.name, call.arguments], option=orjson.OPT_SORT_KEYS)
        entry = orjson.dumps({"round": self.round, "id": call.call_id, "what": sha256(what).hexdigest()})
        if entry in self.answers:
            return self.answers[entry] or failed_answer(INTERRUPTED)
        seq, self.seq = self.seq, self.seq + 1
        if not await self._add("call", seq, entry):
            # The item does not go on, or another process, which has taken the batch over, has begun the call.
            return failed_answer(INTERRUPTED)
        return await perform_noted(perform, partial(self._add, "result", seq))

    async def _add(self, kind: str, seq: int, data: bytes) -> bool:
        return await self.store.batches.add_text(self.run.agent, self.run.id, kind, seq, data)
