"""The reply to one request: the web's side of `gateway.run.sink.Sink`.

ASGI silently drops bytes that are sent to a client that has left. So the gateway's own connection reports that the
client has left (gateway.web.uvicorn_protocol). Under another server a task watches `receive`: it returns
`http.disconnect` when the client has left, and also when a response is complete, perhaps after an empty `http.request`.
(Such a task costs 4% of a plain request.)

A client that does not read would block `send` for ever, so a timer runs wherever `send` may wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any

from starlette.types import Receive, Scope, Send

from gateway.run.sink import ClientGone, Presence
from gateway.web.client_connection import find_connection
from gateway.web.raw_headers import encode_headers


class ClientReply:
    """The reply to an ASGI request. Implements `Sink`, which documents the methods.

    Use it in a `with` block. Its watcher ends with the block.

    The request's body must have been read before: the watcher takes all that `receive` still returns.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, send_timeout_s: float) -> None:
        """Takes a request that is to be answered. send_timeout_s: the seconds for which the client may read nothing."""
        self._presence = Presence()
        self.has_started = False
        # True once the end of the body is being sent.
        self._has_ended = False
        self._receive = receive
        self._send = send
        self._send_timeout_s = send_timeout_s
        # The head, until it is sent.
        self._head: dict[str, Any] | None = None
        # The task that watches `receive`; None: the connection reports that the client has left.
        self._watcher: asyncio.Task[None] | None = None
        # The client's connection; None: another server than the gateway's own has accepted it.
        self._connection = find_connection(scope)

    def __enter__(self) -> ClientReply:
        if self._connection is None:
            self._watcher = asyncio.create_task(self._watch())
        elif self._connection.is_closing():
            self._presence.leave()
        else:
            self._connection.on_lost = self._lose_client
        return self

    def __exit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        # The client may have sent its next request already; then the reply to that request has set `on_lost`.
        if self._connection is not None and self._connection.on_lost == self._lose_client:
            self._connection.on_lost = None

    @property
    def is_gone(self) -> bool:
        return self._presence.is_gone

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return self._presence

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self._head = {
            "type": "http.response.start",
            "status": status,
            "headers": encode_headers(headers),
        }

    def write(self, data: bytes) -> Coroutine[Any, Any, None]:
        return self._send_body(data, more_body=True)

    def end(self) -> Coroutine[Any, Any, None]:
        return self._send_body(b"", more_body=False)

    def send_body(
        self, status: int, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Coroutine[Any, Any, None]:
        self.start(status, [*headers, ("content-length", str(len(body)))])
        return self._send_body(body, more_body=False)

    async def _send_body(self, body: bytes, *, more_body: bool) -> None:
        """Sends a part of the body, and the head before the first part. more_body: True: other parts follow."""
        if more_body and not body:
            return  # the head waits for the first bytes of the body: until it leaves, an error can still be a status
        if self._presence.is_gone:
            raise ClientGone
        timer: asyncio.TimerHandle | None = None
        if self._connection is None or self._connection.is_writing_paused:
            timer = asyncio.get_running_loop().call_later(self._send_timeout_s, self._presence.leave)
        try:
            if self._head is not None:
                self.has_started = True
                head, self._head = self._head, None
                await self._send(head)
            if not more_body:
                # Before the send, because uvicorn wakes the watcher from inside it: this end is not a client that left.
                self._has_ended = True
            await self._send({"type": "http.response.body", "body": body, "more_body": more_body})
        finally:
            if timer is not None:
                timer.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._lose_client()

    def _lose_client(self) -> None:
        if not self._has_ended:
            self._presence.leave()
