"""A provider without a network: its replies are made in this process, in the form of OpenAI's API.

`ScriptedProvider` answers from a queue, else by a function, and records its requests. Tests use it, and the built-in
model of `adapters/demo.py` is a subclass.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from msgspec import Struct

from adapters.base import ModelReply
from adapters.capabilities import Capabilities
from adapters.errors import ProviderError
from adapters.first_event import FirstEvent
from adapters.reply_headers import is_event_stream
from adapters.scripted_message import ScriptedMessage, render_stream, render_whole
from adapters.sse import EventDecoder
from adapters.types import CHAT_PATH, EVENT_STREAM_HEADER, JSON_HEADER, Event, Header, ModelRequest
from adapters.whole_reply import join_chunks


class ScriptedFailure(Struct, frozen=True):
    """An HTTP error with OpenAI's error object."""

    # The HTTP status.
    status: int
    # The message of the error object.
    message: str = "Something went wrong."
    # The code of the error object; None: the object's code is null.
    code: str | None = None
    # The type of the error object. A 4xx other than a 429 has another type in any case.
    type: str = "server_error"
    # The headers of the reply besides its content type.
    headers: tuple[Header, ...] = ()


class ScriptedBody(Struct, frozen=True):
    """A reply whose body is given as bytes."""

    # The pieces of the body; an exception among them is raised in its place.
    pieces: tuple[bytes | ProviderError, ...]
    # The HTTP status.
    status: int = 200
    # The headers of the reply.
    headers: tuple[Header, ...] = (("content-type", "text/event-stream"),)


Scripted = ScriptedMessage | ScriptedFailure | ScriptedBody | ProviderError
Script = Callable[[Mapping[str, Any]], Scripted]


class ScriptedProvider:
    """A provider of replies that are given beforehand. Implements `Provider`, which documents the methods."""

    # True to add each request to `requests`. A provider that serves for days sets False, since the list only grows.
    keeps_requests = True

    def __init__(
        self,
        name: str = "scripted",
        replies: Iterable[Scripted] = (),
        *,
        script: Script | None = None,
        capabilities: Capabilities | None = None,
        pause_s: float = 0.0,
    ) -> None:
        """Makes a provider without requests.

        replies: the first replies of the queue, one for each request; `send` raises a reply that is a ProviderError.
        script: a function that makes the reply from the request's body when the queue is empty; None: the reply is
            "Ok.".
        pause_s: the pause between two events of a stream, in seconds.
        """
        self.name = name
        self.capabilities = capabilities or Capabilities(stream_usage=True)
        # The requests so far, oldest first.
        self.requests: list[ModelRequest] = []
        self._replies = deque(replies)
        self._script = script
        self._pause_s = pause_s
        self._numbers = itertools.count(1)

    def queue(self, *replies: Scripted) -> None:
        """Adds replies to the queue."""
        self._replies.extend(replies)

    @property
    def bodies(self) -> list[Any]:
        """The bodies of the requests, parsed."""
        return [orjson.loads(request.body) for request in self.requests]

    async def send(self, request: ModelRequest) -> ModelReply:
        """Returns the next reply. Raises: ProviderError: the next reply in the queue is an error."""
        if self.keeps_requests:
            self.requests.append(request)
        if request.path == "/models":
            model = {"id": self.name, "object": "model", "created": 0, "owned_by": "mnemogate"}
            models = {"object": "list", "data": [model]}
            return ScriptedReply(200, (JSON_HEADER,), deque([orjson.dumps(models)]))
        if request.path != CHAT_PATH:
            message = (
                f"The built-in model has chat completions only, no {request.method} /v1{request.path}. "
                "With OPENAI_API_KEY or `--upstream URL` that upstream answers."
            )
            return self._render(
                {}, ScriptedFailure(404, message, code="unknown_url", type="invalid_request_error")
            )
        try:
            body = orjson.loads(request.body)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return self._render({}, ScriptedFailure(400, "We could not parse the JSON body of your request."))
        scripted = self._replies.popleft() if self._replies else self._make_reply(body)
        if isinstance(scripted, ProviderError):
            raise scripted
        return self._render(body, scripted)

    def has_endpoint(self, path: str) -> bool:
        return path in (CHAT_PATH, "/models")

    async def aclose(self) -> None:
        pass

    def _make_reply(self, body: Mapping[str, Any]) -> Scripted:
        return self._script(body) if self._script is not None else ScriptedMessage("Ok.")

    def _render(
        self, body: Mapping[str, Any], scripted: ScriptedMessage | ScriptedFailure | ScriptedBody
    ) -> ScriptedReply:
        match scripted:
            case ScriptedBody(pieces, status, headers):
                return ScriptedReply(status, headers, deque(pieces), self._pause_s)
            case ScriptedFailure(status, message, code, error_type, headers):
                if 400 <= status < 500 and status != 429:
                    error_type = "invalid_request_error"
                error = {"error": {"message": message, "type": error_type, "param": None, "code": code}}
                return ScriptedReply(status, (JSON_HEADER, *headers), deque([orjson.dumps(error)]))
            case ScriptedMessage():
                number = next(self._numbers)
                if body.get("stream"):
                    return ScriptedReply(
                        200,
                        (EVENT_STREAM_HEADER,),
                        deque(render_stream(body, scripted, number)),
                        self._pause_s,
                    )
                return ScriptedReply(
                    200, (JSON_HEADER,), deque([orjson.dumps(render_whole(body, scripted, number))])
                )


@dataclass(slots=True)
class ScriptedReply:
    """A reply made of prepared pieces. Implements `ModelReply`, which documents the methods."""

    # The HTTP status.
    status: int
    # The headers of the reply.
    headers: tuple[Header, ...]
    # The pieces that were not read yet; an error among them is raised.
    pieces: deque[bytes | ProviderError]
    # The seconds between two pieces.
    pause_s: float = 0.0
    # True if `aclose` was called.
    is_closed: bool = False

    @property
    def is_stream(self) -> bool:
        return is_event_stream(self.status, self.headers)

    @property
    def size_bytes(self) -> int | None:
        return None

    @property
    def prompt_usage(self) -> None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        is_first = True
        while self.pieces and not self.is_closed:
            if not is_first:
                await asyncio.sleep(self.pause_s)
            is_first = False
            piece = self.pieces.popleft()
            if isinstance(piece, ProviderError):
                raise piece
            yield piece

    async def events(self) -> AsyncIterator[list[Event]]:
        decoder = EventDecoder()
        async for piece in self.chunks():
            if events := decoder.feed(piece):
                yield events
        if events := decoder.finish():
            yield events

    async def peek(self) -> Event | None:
        """Returns the first event that the pieces make before one of them fails."""
        first = FirstEvent()
        for piece in self.pieces:
            if isinstance(piece, ProviderError):
                raise piece
            if event := first.feed(piece, 0.0):
                return event
        return first.finish()

    async def read(self, limit_bytes: int) -> bytes:
        return await join_chunks(self, limit_bytes)

    async def aclose(self) -> None:
        self.is_closed = True
