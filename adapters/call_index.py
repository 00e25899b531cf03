"""Streams whose pieces of tool calls have no `index`: each gets the one that OpenAI's dialect demands.

Clients put a call together by it, and OpenAI's own SDK fails without. Everything else passes as it came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from adapters.base import ModelReply, read_whole
from adapters.types import Event, Json

__all__ = ["NumberedReply", "Numbering"]

_CALLS = b'"tool_calls"'


class Numbering:
    """One stream. A piece with an id or a name begins a call; one without continues the call before it."""

    def __init__(self) -> None:
        self._counts: dict[Any, int] = {}  # choice -> calls begun so far

    def number(self, event: Event) -> Event:
        if event.data is None or _CALLS not in event.data:
            return event
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            return event
        if not (isinstance(chunk, dict) and self._number(chunk)):
            return event
        data = orjson.dumps(chunk)
        name = f"event: {event.name}\n".encode() if event.name else b""
        return Event(name + b"data: " + data + b"\n\n", data, event.name)

    def _number(self, chunk: Json) -> bool:
        """Whether anything had to be changed."""
        is_changed = False
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            calls = delta.get("tool_calls") if isinstance(delta, dict) else None
            if not isinstance(calls, list):
                continue
            for place, piece in enumerate(calls):
                if isinstance(piece, dict):
                    numbered = self._numbered(choice.get("index"), piece)
                    is_changed = is_changed or numbered is not piece
                    calls[place] = numbered
        return is_changed

    def _numbered(self, choice: Any, piece: Json) -> Json:
        count = self._counts.get(choice, 0)
        if isinstance(index := piece.get("index"), int):
            self._counts[choice] = max(count, index + 1)
            return piece
        function = piece.get("function")
        begins = piece.get("id") or (isinstance(function, dict) and function.get("name")) or not count
        count += bool(begins)
        self._counts[choice] = count
        # One that only brings a signature has no function, which the SDK looks into without asking.
        more: Json = {} if "function" in piece else {"function": {}}
        return {"index": count - 1, **{key: value for key, value in piece.items() if key != "index"}, **more}


class NumberedReply:
    """A ModelReply that is an event stream."""

    def __init__(self, reply: ModelReply) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._numbering = Numbering()
        self._is_over = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """After all was said: what is left, as it comes."""
        if self._is_over:
            async for chunk in self._reply.chunks():
                yield chunk
            return
        async for events in self.events():
            yield b"".join([event.raw for event in events])

    async def events(self) -> AsyncIterator[list[Event]]:
        async for events in self._reply.events():
            numbered = [self._numbering.number(event) for event in events]
            self._is_over = self._is_over or numbered[-1].data == b"[DONE]"
            yield numbered

    async def peek(self) -> Event | None:
        return await self._reply.peek()

    async def read(self, limit_bytes: int) -> bytes:
        return await read_whole(self, limit_bytes)

    async def aclose(self) -> None:
        await self._reply.aclose()
