"""The tool calls of recent chat completions, so that a request that comes twice does not make them twice.

A client that speculates sends a request before it knows that it will use the reply, and perhaps sends it again. Some
tools act on the world. So a call is completed even if its client leaves, and for a minute its result answers the same
call at the same point of a path. Runs do not need this: they store their steps and calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.core import exact_json
from gateway.core.turn.commands import RunTool
from gateway.run.tools.toolbox import ToolAnswer

# The seconds for which a result answers the same call. Not measured: after a longer time the memory may have changed.
_RESULT_LIFETIME_S = 60.0
# The most results at a time. Not measured: a result that is dropped earlier is fetched by a new call.
MAX_RESULTS = 256


class _CallKey(NamedTuple):
    """The key of the calls that share a result."""

    # The point that the turn of the calls continues, and the new messages of the turn.
    origin: Hashable
    # The name of the tool.
    tool: str
    # The arguments of the call, as JSON.
    arguments: bytes
    # The number of the call among the equal calls of its turn, from 1.
    number: int


class RecentCalls:
    """The recent calls of all turns of the process."""

    def __init__(
        self,
        lifetime_s: float = _RESULT_LIFETIME_S,
        continues: Callable[[Any, Any], bool] = lambda new, earlier: False,
    ) -> None:
        """Begins without calls.

        lifetime_s: the seconds for which a result answers the same call.
        continues: returns whether a new turn repeats an earlier one, by the origins of both: then the earlier one's
            results answer the calls of the new one.
        """
        self._lifetime_s = lifetime_s
        self._continues = continues
        # The calls that are under way or have a recent result.
        self._tasks: dict[_CallKey, asyncio.Task[ToolAnswer]] = {}
        # The timers that drop the results.
        self._expiries: dict[_CallKey, asyncio.TimerHandle] = {}

    def for_turn(self, origin: Hashable) -> TurnCalls:
        """Returns the calls of one turn. origin: the point that the turn continues, and its new messages."""
        return TurnCalls(self, origin)

    async def perform_once(self, key: _CallKey, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Performs a call, unless a recent one answers it or is under way. Returns its answer."""
        task = self._find_task(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(perform())
            task.add_done_callback(lambda task: self._expire_later(key, task))
            if len(self._tasks) > MAX_RESULTS:
                # The oldest result is dropped. A request that waits for it still gets it.
                self._drop(next(iter(self._tasks)))
        return await asyncio.shield(task)

    def _find_task(self, key: _CallKey) -> asyncio.Task[ToolAnswer] | None:
        """Returns the task of the same call, of its turn or of a turn that its turn repeats."""
        if (task := self._tasks.get(key)) is not None:
            return task
        for earlier_key, task in self._tasks.items():
            is_equal = earlier_key._replace(origin=key.origin) == key
            if is_equal and self._continues(key.origin, earlier_key.origin):
                return task
        return None

    def _expire_later(self, key: _CallKey, task: asyncio.Task[ToolAnswer]) -> None:
        """Has a call that succeeded expire after its lifetime, and drops one that failed."""
        if self._tasks.get(key) is not task:
            return
        if task.cancelled() or task.exception() is not None or not task.result().was_sent:
            self._drop(key)
        else:
            loop = asyncio.get_running_loop()
            self._expiries[key] = loop.call_later(self._lifetime_s, self._drop, key)

    def _drop(self, key: _CallKey) -> None:
        del self._tasks[key]
        if (expiry := self._expiries.pop(key, None)) is not None:
            expiry.cancel()  # it holds the key, and with it the arguments


@dataclass(slots=True)
class TurnCalls:
    """The calls of one turn. A call that the turn makes twice is two calls.

    Implements `CallDeduplicator`.
    """

    # The recent calls of all turns.
    recent_calls: RecentCalls
    # The point that the turn continues, and the new messages of the turn.
    origin: Hashable
    # The number of equal calls that the turn has made, by tool and arguments.
    _counts: Counter[tuple[str, bytes]] = field(default_factory=Counter, init=False)

    async def perform_once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        arguments = exact_json.dumps(call.arguments, sort_keys=True)
        self._counts[call.name, arguments] += 1
        key = _CallKey(self.origin, call.name, arguments, self._counts[call.name, arguments])
        return await self.recent_calls.perform_once(key, perform)
