"""Calls of chat completions that have just been made: the same call at the same place of a path is not made twice.

A client that speculates sends a request before it knows that it will use the reply, and perhaps once more. Its tools
are run, and some do something in the world. So a call is made to its end, whoever leaves, and its result serves
whoever makes it again at once. Runs need none of this: each has its steps, and its own record of calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

import orjson

from gateway.core.turn.commands import RunTool
from gateway.run.tools.toolbox import ToolAnswer

HOLD_S = 60.0  # that a result is held
MOST = 256  # results that are held at a time

_Key = tuple[Hashable, str, bytes, int]


class RecentCalls:
    """One for the process."""

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self._made: dict[_Key, asyncio.Task[ToolAnswer]] = {}
        self._ends: dict[_Key, asyncio.TimerHandle] = {}  # of those that have their result

    def at(self, place: Hashable) -> CallsAt:
        """Returns the calls of one turn. place: what the turn goes on from, and with what."""
        return CallsAt(self, place)

    async def once(self, key: _Key, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        task = self._made.get(key)
        if task is None:
            task = self._made[key] = asyncio.ensure_future(_made(perform))
            task.add_done_callback(lambda done: self._ended(key, done))
            if len(self._made) > MOST:
                # The oldest goes; whoever waits for it has it still.
                self._drop(next(iter(self._made)))
        return await asyncio.shield(task)

    def _ended(self, key: _Key, task: asyncio.Task[ToolAnswer]) -> None:
        if self._made.get(key) is not task:
            return
        if task.cancelled() or task.exception() is not None:
            self._drop(key)
        else:
            self._ends[key] = asyncio.get_running_loop().call_later(self._hold_s, self._drop, key)

    def _drop(self, key: _Key) -> None:
        del self._made[key]
        if (end := self._ends.pop(key, None)) is not None:
            end.cancel()  # it holds the key, and with it the arguments


@dataclass(slots=True)
class CallsAt:
    """`KeepsCalls` of one turn. A call that it makes twice is two calls."""

    recent: RecentCalls
    place: Hashable
    _counts: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    async def once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        call_key = call.name, orjson.dumps(call.arguments, option=orjson.OPT_SORT_KEYS)
        self._counts[call_key] += 1
        return await self.recent.once((self.place, *call_key, self._counts[call_key]), perform)


async def _made(perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
    return await perform()
