"""The index of tool calls in streams whose pieces have none: OpenAI's dialect demands one.

Clients put a call together by its index, and OpenAI's own SDK fails without it. Everything else passes as it came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from adapters.base import ModelReply, read_whole
from adapters.types import Event, Json

_CALLS = b'"tool_calls"'


class CallIndexer:
    """Adds the indices of one stream. A piece with an id or a name begins a call; any other continues the last."""

    def __init__(self) -> None:
        self._counts: dict[Any, int] = {}  # choice -> calls begun so far

    def add_index(self, event: Event) -> Event:
        if event.data is None or _CALLS not in event.data:
            return event
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            return event
        if not (isinstance(chunk, dict) and self._index_chunk(chunk)):
            return event
        data = orjson.dumps(chunk)
        name = f"event: {event.name}\n".encode() if event.name else b""
        return Event(name + b"data: " + data + b"\n\n", data, event.name)

    def _index_chunk(self, chunk: Json) -> bool:
        """Adds the missing indices to a chunk; returns whether there were any."""
        is_changed = False
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            calls = delta.get("tool_calls") if isinstance(delta, dict) else None
            if not isinstance(calls, list):
                continue
            for place, piece in enumerate(calls):
                if isinstance(piece, dict):
                    indexed = self._indexed(choice.get("index"), piece)
                    is_changed = is_changed or indexed is not piece
                    calls[place] = indexed
        return is_changed

    def _indexed(self, choice: Any, piece: Json) -> Json:
        count = self._counts.get(choice, 0)
        if isinstance(index := piece.get("index"), int):
            self._counts[choice] = max(count, index + 1)
            return piece
        function = piece.get("function")
        # A piece without id and name continues the call before it; the very first piece begins one in any case.
        begins = piece.get("id") or (isinstance(function, dict) and function.get("name")) or not count
        count += bool(begins)
        self._counts[choice] = count
        # A piece that only brings a signature has no function, and the SDK reads `function` without a check.
        more: Json = {} if "function" in piece else {"function": {}}
        return {"index": count - 1, **{key: value for key, value in piece.items() if key != "index"}, **more}


class IndexedReply:
    """A ModelReply that is an event stream, with the indices added."""

    is_stream = True
    size: int | None = None

    def __init__(self, reply: ModelReply) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._indexer = CallIndexer()
        self._is_over = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body; what follows [DONE] passes as it comes."""
        if self._is_over:
            async for chunk in self._reply.chunks():
                yield chunk
            return
        async for events in self.events():
            yield b"".join([event.raw for event in events])

    async def events(self) -> AsyncIterator[list[Event]]:
        async for events in self._reply.events():
            indexed = [self._indexer.add_index(event) for event in events]
            self._is_over = self._is_over or indexed[-1].data == b"[DONE]"
            yield indexed

    async def peek(self) -> Event | None:
        return await self._reply.peek()

    async def read(self, limit_bytes: int) -> bytes:
        return await read_whole(self, limit_bytes)

    async def aclose(self) -> None:
        await self._reply.aclose()
