"""Stored replies and results of tools, which replace an upstream and a toolbox while an item is replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from adapters.base import ModelReply
from adapters.errors import ProviderError
from adapters.types import JSON_HEADER, ModelRequest
from adapters.whole_reply import BufferedReply
from gateway.agents.batches.item_texts import StoredResult, StoredRound
from gateway.core.turn import commands
from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.core.upstream.policy import Target
from gateway.errors import GatewayError
from gateway.run.tools.toolbox import ToolAnswer, Toolbox, run_tool
from gateway.run.upstream.endpoint import Endpoint, RequestMaker, RequestRepairer
from gateway.run.upstream_call import UpstreamCall


class ReplyNotStored(Exception):
    """The next reply is not stored yet."""


@dataclass(slots=True)
class StoredReplies:
    """The stored replies of an item. Takes the place of `Attempts`."""

    # The upstream and the model of the item's requests.
    target: Target
    # The endpoint that takes the item's requests.
    endpoint: Endpoint
    # The replies as JSON, oldest first.
    replies: Sequence[bytes]
    # The error in place of the next reply; None: the reply is not stored yet.
    failure: ProviderError | None = None
    # True: the request for the next reply is to be made.
    composes: bool = False
    # The request for the next reply; None: it is not made yet.
    request: ModelRequest | None = None
    # The number of replies that were taken.
    taken_count: int = 0
    # The call of the upstream that the seam of `Attempts` requires.
    call: UpstreamCall = field(default_factory=lambda: UpstreamCall(0.0))

    async def send(self, make: RequestMaker, repairer: RequestRepairer | None = None) -> ModelReply:
        """Returns the next reply. Raises: ReplyNotStored, or the error in place of the reply."""
        if self.taken_count == len(self.replies):
            if self.composes:
                self.request = await make(self.target, self.endpoint)
            raise self.failure or ReplyNotStored
        self.taken_count += 1
        return BufferedReply(200, (JSON_HEADER,), self.replies[self.taken_count - 1])

    def note_prompt_tokens(self, estimated: int, actual: int, fitting: int) -> None:
        """Does nothing: the reply came long ago."""

    def note_broken(self, error: GatewayError) -> None:
        """Does nothing."""


@dataclass(slots=True)
class ReplayedTools:
    """The tools of an item, with the stored results of its rounds. Takes the place of its `Toolbox`."""

    # The toolbox that performs the calls without a stored result.
    toolbox: Toolbox
    # The replies of the turn, which say how far the replay has come.
    replies: StoredReplies
    # The stored rounds, with the results of their calls.
    rounds: Sequence[StoredRound]
    # Bounds the calls of all items that run at once.
    slots: asyncio.Semaphore
    # The results of the round that is not stored yet.
    results: list[StoredResult] = field(default_factory=list)

    def list_definitions(self) -> list[dict[str, Any]]:
        return self.toolbox.list_definitions()

    def owns(self, name: str) -> bool:
        return True  # the call has a stored result, even if its tool is another's now

    def find_serial_group(self, call: commands.RunTool) -> str | None:
        return self.toolbox.find_serial_group(call)

    async def run(self, call: commands.RunTool) -> ToolAnswer:
        """Returns the stored result of a call, or runs the call if its round is not stored yet."""
        number = self.replies.taken_count - 1
        if number < len(self.rounds):
            for result in self.rounds[number].results:
                if result.call_id == call.call_id:
                    return replace(ToolAnswer(*result.answer), shown=result.shown)
            return ToolAnswer.failed(INTERRUPTED_RESULT)  # a call that was not allowed has no result
        async with self.slots:
            answer = await run_tool(self.toolbox, call)
        fields = (answer.content, answer.status, answer.stdout, answer.stderr)
        self.results.append(StoredResult(call.call_id, fields, dict(answer.shown)))
        return answer
