"""The Responses API over a WebSocket: a connection is a sequence of requests to POST /v1/responses.

The handshake passes the edge as a GET, and each `response.create` passes it as a POST with the headers of the
handshake. So keys, limits, errors, memory, counts and the log are handled as for any request. The reply to a POST is a
stream, and each event of the stream is sent to the client as a message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Set
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import orjson
from msgspec import Struct
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.dialects.responses.socket import server_events
from gateway.dialects.responses.socket.client_events import (
    CancelEvent,
    ClientEvent,
    CreateEvent,
    SteerEvent,
    read_client_event,
)
from gateway.dialects.responses.socket.unstored import PendingResponse
from gateway.errors import GatewayError, MethodNotAllowed, Overloaded, UpstreamReplyBroken
from gateway.web.body import BodyReader
from gateway.web.request_info import get_request_info
from gateway.web.sockets.arrival import Arrival
from gateway.web.sockets.queued_response import QueuedResponse, ResponseConnection
from gateway.web.sockets.response_sender import ResponseSender
from gateway.web.sockets.socket_client import SocketClient
from gateway.web.sockets.socket_request import BodyReceiver, make_request_headers, make_request_scope
from storage.errors import StoreError

RESPONSES_PATH: Final = "/v1/responses"
# LiveKit connects to its base URL, without the rest of the path.
_SOCKET_PATHS: Final = frozenset((RESPONSES_PATH, f"{RESPONSES_PATH}/", "/v1", "/v1/"))
# The most responses of one connection that are under way or wait. Known clients ask for one or two at a time.
_MAX_RESPONSES: Final = 32
# The most streams of one connection of which the last response is recorded, since clients choose the ids of streams.
# Not measured: a client uses fewer at a time.
_MAX_STREAMS: Final = 64
# A close code (RFC 6455 7.4).
_POLICY_VIOLATION: Final = 1008
_log = logging.getLogger("mnemogate")

# Responses that come one after another; the first is under way.
_Queue = deque[QueuedResponse]


class HandshakeRoute:
    """The route of a handshake. A plain GET is answered with 405.

    It is an object because starlette would wrap a function.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["state"].get("opens_socket"):
            raise MethodNotAllowed("GET", scope["path"], ("POST",))
        get_request_info(scope).route = "responses"
        await send({"type": "http.response.start", "status": 101, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# Returns the user that a request names, or None. Its arguments: the scope of the handshake, and the members of the
# request's body as they are written. Raises: GatewayError.
ReadUser = Callable[[Scope, Mapping[str, bytes]], str | None]


class ResponsesSockets(Struct, frozen=True):
    """Serves the WebSockets of the application."""

    # The application, which answers requests.
    edge: ASGIApp
    # Bounds messages as it bounds bodies.
    bodies: BodyReader
    # Returns whether the server takes no new requests.
    is_draining: Callable[[], bool]
    # Reads the user of a request.
    read_user: ReadUser
    # Returns whether the memory with a row still exists. Raises: StoreError.
    has_memory: Callable[[int], Awaitable[bool]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        is_open = False

        async def send_handshake_reply(message: Message) -> None:
            nonlocal is_open
            if message.get("status") == 101:
                is_open = True
            elif not is_open:
                # A refusal, in the messages of ASGI's extension "WebSocket Denial Response".
                await send({**message, "type": f"websocket.{message['type']}"})

        path = RESPONSES_PATH if scope["path"] in _SOCKET_PATHS else scope["path"]
        handshake = make_request_scope(
            scope, method="GET", path=path, state={"opens_socket": True}, headers=scope["headers"]
        )
        await self.edge(handshake, receive, send_handshake_reply)
        if is_open:
            await send({"type": "websocket.accept"})
            await _Session(self, handshake, scope, receive, send).run()


class _Session:
    """One open socket, with an independent queue for each `stream_id`."""

    def __init__(
        self, sockets: ResponsesSockets, handshake: Scope, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._sockets = sockets
        self._handshake = handshake
        self._scope = scope
        self._receive = receive
        # Sends events to the client.
        self._client = SocketClient(send, sockets.bodies.limit_bytes)
        # The connection of the socket (`gateway.web.sockets.protocol`).
        self._connection = scope["state"]["connection"]
        # The queue of each `stream_id` that has responses.
        self._queues: dict[str | None, _Queue] = {}
        # The tasks that serve queues, or close the connection.
        self._tasks: set[asyncio.Task[None]] = set()
        # The ids by which the client names the last ended responses, by `stream_id`; None: the response has no id. The
        # key of the newest end is the last one.
        self._ended_ids: dict[str | None, str | None] = {}
        # True if no further response begins.
        self._has_stopped = False
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        # The model of requests that name none; None: the query of the handshake names no model.
        self._model = query.pop("model", None)
        # The rest of the query, which each POST repeats.
        self._query = urlencode(query).encode()
        # The headers of the handshake that each POST repeats.
        self._headers = make_request_headers(scope["headers"])

    async def run(self) -> None:
        """Receives events and makes responses, until the client or the server closes the socket."""
        self._connection.on_shutdown = self._close_when_idle
        self._connection.arrival = Arrival(self._sockets.bodies, self._refuse_slow_message)
        if self._sockets.is_draining():
            await self._client.close()
        try:
            while (message := await self._receive())["type"] == "websocket.receive":
                try:
                    event = read_client_event(message["bytes"])
                except GatewayError as error:
                    await self._client.send_event(server_events.make_error_event(error))
                else:
                    await self._handle(event)
        except asyncio.CancelledError:
            # Not raised again, as at the edge: uvicorn would log the trace of a cancelled task.
            await self._abort_responses()
        finally:
            self._has_stopped = True
            self._client.is_closed = True
            for queue in self._queues.values():
                queue[0].connection.leave()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _abort_responses(self) -> None:
        """Ends the session at once, when the server's `shutdown_s` is over. Each response under way gets an error."""
        self._has_stopped = True
        if self._connection.is_writing_paused:
            self._connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def _refuse_slow_message(self) -> None:
        self._connection.fail(_POLICY_VIOLATION, "The message did not arrive in time. Send it faster.")

    async def _handle(self, event: ClientEvent) -> None:
        match event:
            case CancelEvent():
                self._cancel(event)
            case SteerEvent():
                await self._client.send_event(server_events.make_steer_refusal_event(event))
            case CreateEvent():
                try:
                    self._enqueue(event)
                except GatewayError as error:
                    await self._client.send_event(server_events.make_error_event(error), event.stream_id)

    def _enqueue(self, request: CreateEvent) -> None:
        if self._sockets.is_draining():
            raise Overloaded("The gateway is shutting down.")
        response_count = sum(map(len, self._queues.values()))
        if response_count >= _MAX_RESPONSES:
            raise Overloaded(
                f"{response_count} responses are under way or wait on this connection.", retry_after_s=1
            )
        quota = self._sockets.bodies.make_quota()
        quota.grow(sum(map(len, request.fields.values())))
        queue = self._queues.get(request.stream_id)
        connection = ResponseConnection(self._connection)
        response = QueuedResponse(
            request, quota, connection, self._find_ended_before(request.stream_id, queue)
        )
        if queue is not None:
            queue.append(response)
        else:
            queue = _Queue((response,))
            self._queues[request.stream_id] = queue
            self._start_task(self._serve(request.stream_id, queue))

    def _find_ended_before(self, stream_id: str | None, queue: _Queue | None) -> str | None:
        """Returns the id of the response that has ended just before a new one of a `stream_id`.

        Returns None if no response came before, or if the last response goes on. A cancelled response has ended for its
        client.

        queue: the responses of this `stream_id` that are under way or wait; None: there is no such response.
        """
        if queue is None:
            return self._ended_ids.get(stream_id)
        last_response = queue[-1]
        return last_response.client_id if last_response.is_cancelled else None

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._remove_task)

    def _remove_task(self, task: asyncio.Task[None]) -> None:
        """Removes a task that has ended. A fault in it closes the connection."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(
                "A WebSocket was closed by a fault in the gateway: %s", type(error).__name__, exc_info=error
            )
            self._connection.abort()

    def _cancel(self, cancel: CancelEvent) -> None:
        """Cancels a response, if it is the first of its queue that is not cancelled yet.

        A response that has ended meanwhile is no error: the client would take the error for the next response's.
        """
        for queue in self._queues.values():
            first_response = next((response for response in queue if not response.is_cancelled), None)
            if first_response is not None and first_response.matches(cancel):
                first_response.cancel()

    def _close_when_idle(self) -> None:
        """Closes the connection if no response is under way or waits; otherwise `_serve` closes it later."""
        if not self._queues:
            self._start_task(self._client.close())

    async def _serve(self, stream_id: str | None, queue: _Queue) -> None:
        """Makes the responses of a queue one after another, until it is empty."""
        try:
            while queue:
                with queue[0].quota:
                    if not self._has_stopped:
                        await self._respond(queue[0])
                self._record_end(stream_id, queue.popleft().client_id)
        finally:
            del self._queues[stream_id]
            # The queue is not empty if a response has failed.
            for unserved_response in queue:
                unserved_response.quota.release()
        if not self._queues and self._sockets.is_draining():
            await self._client.close()

    def _record_end(self, stream_id: str | None, response_id: str | None) -> None:
        """Records the end of a stream's last response. response_id: the id by which the client names it."""
        self._ended_ids.pop(stream_id, None)
        self._ended_ids[stream_id] = response_id
        if len(self._ended_ids) > _MAX_STREAMS:
            del self._ended_ids[next(iter(self._ended_ids))]

    async def _respond(self, response: QueuedResponse) -> None:
        """Makes a response, and sends all its events to the client."""
        request = response.request
        if self._model is not None:
            request.fields.setdefault("model", orjson.dumps(self._model))
        try:
            user = self._sockets.read_user(self._handshake, request.fields)
        except GatewayError as error:
            await self._client.send_failure(request, server_events.make_error_event(error))
            return
        await self._drop_forgotten(request.previous_id)
        body, pending = self._client.unstored.translate(request, user)
        if not request.is_generated:
            first_event, end_event = server_events.make_ungenerated_response(request)
            await self._client.send_event(first_event, request.stream_id)
            await self._client.send_event(end_event, request.stream_id)
            self._client.unstored.cache(pending, server_events.read_response(end_event))
            return
        scope = self._make_post_scope(response.connection, len(body), pending.memories)
        await self._sockets.edge(scope, BodyReceiver(body), ResponseSender(self._client, pending, response))
        if (receipt := get_request_info(scope).receipt) is not None:
            if receipt.memory.agent_row:
                pending.memories.add(receipt.memory.agent_row)
            else:  # a cancelled turn may still be written
                receipt.memory.on_stored = pending.memories.add
        if response.is_cancelled and not response.has_ended:
            await self._end_cancelled(response, pending)
        elif not response.has_ended:
            await self._client.send_failure(
                request, server_events.make_error_event(UpstreamReplyBroken("The reply ended in the middle."))
            )

    def _make_post_scope(self, connection: ResponseConnection, body_length: int, memories: Set[int]) -> Scope:
        """Returns the scope of the POST by which a response is made. memories: the value of `PendingResponse`."""
        headers = [
            *self._headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % body_length),
        ]
        return make_request_scope(
            self._scope,
            method="POST",
            path=RESPONSES_PATH,
            state={"connection": connection, "memories": frozenset(memories)},
            headers=headers,
            query=self._query,
        )

    async def _drop_forgotten(self, previous_id: str | None) -> None:
        """Drops an unstored response if a memory that has a turn of it was forgotten.

        A database that cannot be read drops nothing, since it would end all conversations.

        previous_id: the id of the response that is continued; None: the request continues no response.
        """
        with suppress(StoreError):
            for agent_row in self._client.unstored.list_memories(previous_id):
                if not await self._sockets.has_memory(agent_row):
                    self._client.unstored.drop_memory(agent_row)

    async def _end_cancelled(self, response: QueuedResponse, pending: PendingResponse) -> None:
        """Sends the end of a response that its client has cancelled, with the output until then."""
        request = response.request
        first_response = response.first_response
        if not first_response:
            first_event = server_events.make_ungenerated_response(request).first_event
            first_response = server_events.read_response(first_event)
        end_event = server_events.make_cancelled_event(
            first_response, response.output.render(), response.sent_event_count
        )
        self._client.unstored.cache(pending, server_events.read_response(end_event))
        await self._client.send_event(end_event, request.stream_id)
