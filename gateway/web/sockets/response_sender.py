"""Sends the reply to a socket's request on as events of the socket."""

from __future__ import annotations

from typing import Final

from starlette.types import Message

from adapters.sse import EventDecoder
from gateway.core.request.request_headers import RawHeaders
from gateway.dialects.responses.event_names import (
    CONTINUABLE_END_EVENTS,
    CREATED_EVENT,
    END_EVENTS,
    ERROR_EVENT,
)
from gateway.dialects.responses.socket import server_events
from gateway.dialects.responses.socket.unstored import PendingResponse
from gateway.web.raw_headers import find_header
from gateway.web.sockets.queued_response import QueuedResponse
from gateway.web.sockets.socket_client import SocketClient

# The headers of a refusal that the client gets in its event.
_SHOWN_HEADERS: Final = frozenset((b"retry-after", b"retry-after-ms", b"x-request-id"))


class ResponseSender:
    """The ASGI `send` of one request. It sends the reply on as events of the socket."""

    def __init__(self, client: SocketClient, pending: PendingResponse, response: QueuedResponse) -> None:
        """Has sent nothing yet.

        client: the client of the socket, which gets the events.
        pending: the facts about the request that are needed when its response has ended.
        response: the response in the socket's queue, which notes the events that were sent.
        """
        self._client = client
        self._stream_id = response.request.stream_id
        self._pending = pending
        self._response = response
        self._decoder = EventDecoder()
        # The status and the headers of the reply, and whether it is a stream of events; set by its first message.
        self._status = 0
        self._headers: RawHeaders = ()
        self._is_stream = False
        # The body of an answer that is no stream.
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], message["headers"]
            content_type = find_header(self._headers, b"content-type") or b""
            self._is_stream = self._status == 200 and content_type.startswith(b"text/event-stream")
        elif self._is_stream:
            for event in self._decoder.feed(message["body"]):
                if event.data is not None:
                    await self._note_and_send(
                        server_events.read_event_type(event.name, event.data), event.data
                    )
        else:
            self._body += message["body"]
            if not message.get("more_body", False):
                await self._refuse()

    async def _note_and_send(self, event_type: str, data: bytes) -> None:
        """Sends an event of the response, and notes what it changes: the cached response, and the end."""
        response = self._response
        if response.has_ended or data == b"[DONE]":
            return
        is_end = event_type in END_EVENTS
        if event_type == CREATED_EVENT:
            response.begin(server_events.read_response(data))
        elif event_type in CONTINUABLE_END_EVENTS:
            self._client.unstored.cache(self._pending, server_events.read_response(data))
        elif is_end:
            # A failed turn drops the response that it continued, as at OpenAI.
            self._client.unstored.drop(response.request.previous_id)
            if event_type == ERROR_EVENT:
                data = server_events.make_break_event(data)
        await self._client.send_event(data, self._stream_id)
        # Noted after the sending: a client that does not read may cancel the response, and the event is not sent then.
        response.sent_event_count += 1
        response.output.read(event_type, data)
        response.has_ended = is_end

    async def _refuse(self) -> None:
        """Sends the answer that is no stream on as a failure of the request."""
        self._response.has_ended = True
        # The request asked for a stream, so a success that is no stream is an error.
        status = self._status if self._status >= 400 else 502
        headers = {
            name.decode(): value.decode("latin-1") for name, value in self._headers if name in _SHOWN_HEADERS
        }
        refusal = server_events.make_refusal_event(status, bytes(self._body), headers)
        await self._client.send_failure(self._response.request, refusal)
