"""Indices for pieces of tool calls that come without one, such as Gemini's.

Clients put the pieces of a call together by its index, and OpenAI's own SDK fails without it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from adapters.base import ModelReply
from adapters.json_escapes import read_json
from adapters.types import Event, Json
from adapters.wrapped_stream import WrappedStream

# Bytes without which an event need not be parsed.
_CALLS_KEY: Final = b'"tool_calls"'


class CallIndexer:
    """Adds the indices of one stream. A piece with an id or a name begins a call; others continue the last call."""

    def __init__(self) -> None:
        # The number of calls that have begun, by the index of their choice.
        self._counts: dict[Any, int] = {}

    def add_index(self, event: Event) -> Event:
        """Returns an event with an index in each piece of a call; the same event where no index was missing."""
        if event.data is None or _CALLS_KEY not in event.data:
            return event
        try:
            chunk, _ = read_json(event.data)
            if not (isinstance(chunk, dict) and self._index_chunk(chunk)):
                return event
            data = orjson.dumps(chunk)
        except TypeError:
            # The event is faulty. The client gets it unchanged, so that its own parser reports the fault.
            return event
        name = f"event: {event.name}\n".encode() if event.name else b""
        return Event(name + b"data: " + data + b"\n\n", data, event.name)

    def _index_chunk(self, chunk: Json) -> bool:
        """Adds the missing indices to a chunk. Returns whether an index was missing."""
        is_changed = False
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            calls = delta.get("tool_calls") if isinstance(delta, dict) else None
            if not isinstance(calls, list):
                continue
            for position, piece in enumerate(calls):
                if isinstance(piece, dict):
                    calls[position] = self._index_piece(choice.get("index"), piece)
                    is_changed = is_changed or calls[position] is not piece
        return is_changed

    def _index_piece(self, choice: Any, piece: Json) -> Json:
        """Returns a piece of a call with an index; the same piece if it has one."""
        count = self._counts.get(choice, 0)
        if isinstance(index := piece.get("index"), int):
            self._counts[choice] = max(count, index + 1)
            return piece
        function = piece.get("function")
        has_name = isinstance(function, dict) and bool(function.get("name"))
        # A piece without id and name continues the call before it; the very first piece begins a call in any case.
        if piece.get("id") or has_name or not count:
            count += 1
        self._counts[choice] = count
        # A piece that only brings a signature has no function, and the SDK reads `function` without a check.
        empty_function: Json = {} if "function" in piece else {"function": {}}
        return {
            "index": count - 1,
            **{key: value for key, value in piece.items() if key != "index"},
            **empty_function,
        }


class IndexedReply(WrappedStream):
    """A stream with missing indices of calls added."""

    def __init__(self, reply: ModelReply) -> None:
        super().__init__(reply)
        self._indexer = CallIndexer()

    async def events(self) -> AsyncIterator[list[Event]]:
        async for events in self._reply.events():
            yield [self._indexer.add_index(event) for event in events]
