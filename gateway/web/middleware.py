"""The outermost layer, pure ASGI: request ids, admission of callers, error replies, access log, counts.

Exceptions become replies here and nowhere else. Before the head of the reply is sent, the reply is an error status;
after that the error is the last event of an event stream. A body of another type that breaks off ends with its
connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.core.request.identity import BOUND_USER_HEADER
from gateway.dialects.chat.errors import CHAT_ERRORS
from gateway.errors import (
    ErrorForm,
    GatewayError,
    MethodNotAllowed,
    NotAllowed,
    Overloaded,
    UnknownPath,
    drop_tracebacks,
)
from gateway.log import AccessLog
from gateway.masks import mask_keys_in_name, mask_keys_in_text
from gateway.metrics import Metrics
from gateway.run.receipt import CLIENT_GONE, RequestLine
from gateway.run.receipts import Receipts
from gateway.run.request_log import RequestLog
from gateway.run.sink import ClientGone
from gateway.web.auth import METRICS_PATH, PAGE_PATH, Guard
from gateway.web.client_connection import find_connection
from gateway.web.path_hints import make_path_hint
from gateway.web.raw_headers import encode_headers
from gateway.web.request_info import RequestInfo

# The paths that need no key.
OPEN_PATHS = frozenset(
    ("/", "/api/hello", "/health", "/health/ready", "/v1/health", "/v1/health/", PAGE_PATH)
)
# The most characters of a path or a model's name in the log. Chosen above the longest real ones, and small enough that
# requests cannot fill the disk.
_MAX_LOGGED_CHARS = 256
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Paths, besides the paths of dialects, that the key of a user may ask. They reach no data of other users, except for
# objects that an upstream stores, by their ids.
_USER_PATHS = re.compile(
    "|".join(
        (
            r"/mcp",
            r"/v1/messages/count_tokens",
            r"/v1/responses/[^/]+(/cancel|/input_items)?",
            r"/v1/(completions|embeddings|rerank|moderations|decisions)",
            r"/v1/images/\w+",
            r"/v1/audio/(speech|transcriptions|translations)",
            r"/v1/models(/.*)?",
        )
    )
)
_id_generator = random.Random()
_log = logging.getLogger("mnemogate")


@dataclass(eq=False)
class Edge:
    """Wraps the application: each request is admitted, counted, logged, and answered with an error if it fails."""

    # The application inside the edge.
    app: ASGIApp
    # Admits callers by their keys.
    guard: Guard
    # Counts requests and errors.
    metrics: Metrics
    # Writes a line for each request.
    access_log: AccessLog
    # A clock that returns the seconds since the epoch, for the access log.
    now: Callable[[], float]
    # Paths with one of these prefixes check their callers themselves.
    open_prefixes: tuple[str, ...] = ()
    # The forms of all errors below a path, by its beginning: also before any route (a wrong key, an unknown path).
    # The first prefix that fits counts; on all other paths errors have OpenAI's form.
    error_forms: Mapping[str, ErrorForm] = field(default_factory=dict)
    # Returns the form for a request to a path that several dialects share; None: the path decides.
    choose_shared_path_form: Callable[[Scope], ErrorForm | None] = lambda scope: None
    # Returns the routes. The error for an unknown path suggests a similar one; the error for a method names the others.
    list_routes: Callable[[], Sequence[Route]] = tuple
    # The paths of dialects that the key of a user may ask.
    user_paths: Set[str] = frozenset()
    # Notes the end of each request that a model answers.
    requests: RequestLog | None = None
    # Publishes the receipt of each request after its last byte.
    receipts: Receipts = field(default_factory=Receipts)
    # Set while no request is being answered.
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    # A function that is called when a request begins, in its task (`Store.begin_work`).
    begin_work: Callable[[], None] = lambda: None
    # The number of requests that are being answered.
    active_count: int = field(default=0, init=False)
    # The number of requests that the server's shutdown has cut.
    cut_count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.idle.set()
        self.metrics.add_gauge(
            "requests_in_flight", "Requests being answered.", lambda: {(): self.active_count}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        info = RequestInfo("", time.perf_counter())
        _read_headers(scope, info)
        scope.setdefault("state", {})["request_info"] = info
        recording_send = _make_recording_send(send, info)
        self.begin_work()
        self.active_count += 1
        if self.active_count == 1:
            self.idle.clear()
        try:
            path = scope["path"]
            if path.startswith(f"{PAGE_PATH}/"):
                # The page notes more of the path. This is what the log shows if the page is not asked.
                info.path = f"{PAGE_PATH}/…"
            if path not in OPEN_PATHS:
                _refuse_without_descriptors(scope)
                if not path.startswith(self.open_prefixes):
                    await self._admit(scope, path, info)
            await self.app(scope, _make_counting_receive(receive, info), recording_send)
        except (ClientGone, ClientDisconnect):
            # There is no client to answer any more. The code that raised this has closed the upstream's connection.
            self.metrics.clients_gone.inc()
            info.status = CLIENT_GONE
            if (connection := find_connection(scope)) is not None:
                connection.abort()
        except asyncio.CancelledError:
            # The server cancels requests that still run when it ends. Raised again, the error would be logged there.
            info.is_cut = not info.is_complete
            self.cut_count += info.is_cut
            await self._answer_error(Overloaded("The gateway is shutting down."), scope, info, recording_send)
        except Exception as error:
            await self._answer_error(
                _as_gateway_error(error, scope, info, self.list_routes), scope, info, recording_send
            )
            drop_tracebacks(error)
        finally:
            self._end_request(scope, info)

    def _end_request(self, scope: Scope, info: RequestInfo) -> None:
        """Counts a request that has ended, logs it, and publishes its receipt."""
        self.active_count -= 1
        if not self.active_count:
            self.idle.set()
        self.metrics.requests.inc(info.route, str(info.status))
        if self.access_log.is_enabled:
            self._log_access(scope, info)
        self._publish_receipt(scope, info)

    async def _admit(self, scope: Scope, path: str, info: RequestInfo) -> None:
        """Checks the key of a request, and records its caller. Raises: GatewayError."""
        caller = await self.guard.admit(scope["headers"])
        info.caller = caller
        if caller.only_path not in (None, path):
            opened_paths = "/ui and /v1/manage" if caller.only_path == PAGE_PATH else caller.only_path
            raise NotAllowed(f"This key opens only {opened_paths}.")
        if path == METRICS_PATH:
            await self.guard.check_metrics(caller)
        elif self.receipts.tracer is not None:
            info.trace_context = self.receipts.tracer.begin(scope["headers"])
        if caller.user is not None:
            self._bind_to_user(scope, path, caller.user)

    def _bind_to_user(self, scope: Scope, path: str, user: str) -> None:
        """Binds a request to a user, whichever user it names. Raises: NotAllowed: users may not ask its path."""
        if path not in self.user_paths and _USER_PATHS.fullmatch(path) is None:
            raise NotAllowed(
                "This key is bound to a user, and this path is not of users.", code="user_not_allowed"
            )
        scope["headers"] = [*scope["headers"], (BOUND_USER_HEADER, user.encode())]

    def _publish_receipt(self, scope: Scope, info: RequestInfo) -> None:
        """Publishes the receipt of a request. A request without a receipt gets one for its trace."""
        receipt = info.receipt
        if receipt is None:
            if info.trace_context is None:
                return
            receipt = info.make_receipt()
        receipt.status = info.status
        receipt.is_cut = info.is_cut
        if receipt.trace is not None:
            receipt.request_line = RequestLine(scope["method"], scope["scheme"], scope["path"])
        if info.receipt is None:
            self.receipts.trace(receipt)
            return
        if self.requests is not None:
            self.requests.end(receipt, info.status)
        self.receipts.publish(receipt)

    async def _answer_error(self, error: GatewayError, scope: Scope, info: RequestInfo, send: Send) -> None:
        """Sends an error as the reply, or as the last event of a stream that has begun."""
        form = info.error_form or self._choose_error_form(scope)
        info.error_form = form
        error.request_id = info.request_id
        if not info.status:
            headers = [(b"content-type", b"application/json")]
            if error.retry_after_s is not None:
                headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
            if error.status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            if error.status == 408 or (info.expects_continue and not _has_whole_body(scope)):
                # The next bytes may be the rest of the body or another request, and nothing shows which.
                headers.append((b"connection", b"close"))
            headers += encode_headers(error.headers)
            body = form.render_body(error)
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        elif info.is_event_stream and not info.is_complete:
            await send({"type": "http.response.body", "body": form.render_event(error), "more_body": False})
        # Otherwise the response stays incomplete, and uvicorn closes the connection. So the client sees that the body
        # was cut.

    def _choose_error_form(self, scope: Scope) -> ErrorForm:
        """Returns the form of an error before a route has set its own: by header on shared paths, else by path."""
        if (shared_path_form := self.choose_shared_path_form(scope)) is not None:
            return shared_path_form
        path = scope["path"]
        for prefix, form in self.error_forms.items():
            if path.startswith(prefix):
                return form
        return CHAT_ERRORS

    def _log_access(self, scope: Scope, info: RequestInfo) -> None:
        """Adds the line of an ended request to the access log."""
        # Callers may put keys into texts that they choose: an id, a path, a model's name. A search of the whole line
        # would take longer than writing it. `round` to a number of digits takes three times as long as these divisions.
        memory = info.memory
        added_ms = None
        if info.receipt is not None:
            added_ms = info.receipt.clock.added_ms
            # A client that left has had its headers.
            memory = memory or info.receipt.headers.get("x-mnemogate-memory")
        line = {
            "at": round(self.now() * 1000) / 1000,
            "id": mask_keys_in_text(info.request_id) if info.has_client_id else info.request_id,
            "method": scope["method"],
            "path": mask_keys_in_name((info.path or scope["path"])[:_MAX_LOGGED_CHARS]),
            "status": info.status,
            "ms": round((time.perf_counter() - info.began_at) * 100_000) / 100,
            "added_ms": round(added_ms * 100) / 100 if added_ms is not None else None,
            "in": info.bytes_in,
            "out": info.bytes_out,
            "model": info.model and mask_keys_in_name(info.model[:_MAX_LOGGED_CHARS]),
            "stream": info.is_streamed,
            "memory": memory,
            "project": info.caller.project,
            "cut": info.is_cut,
        }
        if info.trace_context is not None:
            line["trace_id"] = info.trace_context.trace_hex
        self.access_log.add(line)


def _make_counting_receive(receive: Receive, info: RequestInfo) -> Receive:
    """Returns a `receive` that counts the bytes of the request's body in `info`."""

    async def receive_counted() -> Message:
        message = await receive()
        info.bytes_in += len(message.get("body", b""))
        return message

    return receive_counted


def _make_recording_send(send: Send, info: RequestInfo) -> Send:
    """Returns a `send` that completes the reply's headers, and records the reply in `info`."""

    def record_and_send(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            info.status = message["status"]
            message["headers"] = _complete_headers(message["headers"], info)
        else:
            info.bytes_out += len(message.get("body", b""))
            info.is_complete = not message.get("more_body", False)
        return send(message)

    return record_and_send


def _complete_headers(headers: Iterable[tuple[bytes, bytes]], info: RequestInfo) -> list[tuple[bytes, bytes]]:
    """Returns the headers of a reply with the ids of its request and trace. A stream gets a header for proxies, too.

    Records in `info` whether the reply is an event stream.
    """
    request_id = info.request_id.encode()
    all_headers = [*headers, (b"x-mnemogate-request-id", request_id)]
    values = dict(all_headers)
    info.is_event_stream = values.get(b"content-type", b"").startswith(b"text/event-stream")
    if info.is_event_stream and b"x-accel-buffering" not in values:
        # nginx gathers some kilobytes of a reply by default. A short reply would come all at once.
        all_headers.append((b"x-accel-buffering", b"no"))
    # An upstream's own id stays; SDKs show it, and the provider's support asks for it.
    if b"x-request-id" not in values:
        all_headers.append((b"x-request-id", request_id))
    dialect_header = info.error_form.id_header if info.error_form is not None else None
    if dialect_header is not None and dialect_header not in values:
        all_headers.append((dialect_header, request_id))
    if info.trace_context is not None:
        all_headers.append((b"x-mnemogate-trace", info.trace_context.trace_hex.encode()))
    return all_headers


def _refuse_without_descriptors(scope: Scope) -> None:
    """Raises: Overloaded: the request came when the process had few file descriptors left."""
    connection = find_connection(scope)
    if connection is not None and connection.is_refused:
        raise Overloaded("The gateway has too many connections. Try again shortly.", retry_after_s=1)


def _has_whole_body(scope: Scope) -> bool:
    connection = find_connection(scope)
    return connection is not None and connection.has_whole_body


def _read_headers(scope: Scope, info: RequestInfo) -> None:
    """Reads into `info` the id of a request, and whether the request expects a 100. Makes an id if there is none."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            info.request_id = value.decode()
            info.has_client_id = True
        elif name == b"expect":
            info.expects_continue = True
    if not info.request_id:
        # The id is no secret, so `random` will do. os.urandom would release the interpreter's lock, and a busy writer
        # thread could take it.
        info.request_id = f"req_{_id_generator.getrandbits(96):024x}"


def _list_methods(scope: Scope, routes: Iterable[Route]) -> set[str]:
    """Returns the methods of all routes with the path of a request."""
    path_routes = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    return {method for route in path_routes for method in route.methods or ()}


def _as_gateway_error(
    error: Exception, scope: Scope, info: RequestInfo, list_routes: Callable[[], Sequence[Route]]
) -> GatewayError:
    """Returns the error that the client gets for an exception. A fault of the gateway's own is logged."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 404:
        hint = make_path_hint(scope["path"], [route.path for route in list_routes()])
        return UnknownPath(f"Unknown path: {scope['method']} {scope['path']}{hint}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(scope["method"], scope["path"], _list_methods(scope, list_routes()))
    _log.error(
        "Request %s failed by a fault in the gateway: %s",
        info.request_id,
        type(error).__name__,
        exc_info=error,
    )
    return GatewayError(
        "Something went wrong inside the gateway. Its log has the request id.", code="internal_error"
    )
