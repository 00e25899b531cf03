"""A strict OpenAI API for tests: a server in a thread of its own, which speaks HTTP/1.1 on a loopback port.

    with StrictUpstream() as upstream:                     # or `async with`
        upstream.queue(say("Hello", tokens=["Hel", "lo"]), fail(429, retry_after="1"))
        ... call upstream.base_url ...
        assert upstream.last.json["messages"] == [...]

It refuses what the real API refuses (tests/doubles/openai_rules.py), with the same error object. A request that is not
refused gets the next reply of the queue; without one, the reply of `script`; without that, "Ok.". Nothing sleeps: a
reply waits at a `Gate` until the test opens it, and a test waits for a `Gate` that the server opens
(`UpstreamRequest.gone`, ...).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from tests.doubles.closing import close_server
from tests.doubles.openai_rules import Refusal, Rules, check_chat
from tests.doubles.other_endpoints import Endpoints
from tests.patience import PATIENCE_S

# The pause before a connection is cut. An aiohttp client drops what it has not read when the connection is lost, so
# that a cut in the same moment would decide by chance how much of a reply counts. A real network is no faster.
_CUT_PAUSE_S = 0.02
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_JSON_TYPE = {"content-type": "application/json"}


class Gate:
    """A gate that is opened once and stays open. Threads and event loops can wait at it."""

    def __init__(self) -> None:
        self._future: Future[None] = Future()
        self._future.set_running_or_notify_cancel()  # so that a cancelled waiter does not cancel it
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._future.done()

    def open(self) -> None:
        with self._lock:
            if not self._future.done():
                self._future.set_result(None)

    def wait_sync(self, timeout_s: float = PATIENCE_S) -> None:
        self._future.result(timeout_s)

    async def wait(self, timeout_s: float | None = PATIENCE_S) -> None:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(asyncio.wrap_future(self._future))


class Call(Struct, frozen=True):
    """A tool call of the model."""

    name: str
    # A text that is sent unchanged, or a value that is sent as JSON.
    arguments: Any = msgspec.field(default_factory=dict)
    # The id of the call; None: a new one.
    id: str | None = None
    # The pieces of the arguments in a stream, or the number of characters of a piece.
    pieces: Sequence[str] | int = 7
    # True: in a stream the second delta has the name, not the first.
    late_name: bool = False

    @property
    def text(self) -> str:
        """The text of the arguments."""
        return self.arguments if isinstance(self.arguments, str) else orjson.dumps(self.arguments).decode()

    def split(self) -> list[str]:
        """Returns the pieces of the arguments in a stream."""
        if not isinstance(self.pieces, int):
            assert "".join(self.pieces) == self.text
            return list(self.pieces)
        return [self.text[i : i + self.pieces] for i in range(0, len(self.text), self.pieces)]


def insert(text: str, id: str | None = None, **options: Any) -> Call:
    """Returns a call of the memory tool that adds a text to the block "human". options: other fields of `Call`."""
    return Call("memory_insert", {"label": "human", "new_string": text}, id, **options)


class Reply(Struct, frozen=True):
    """One scripted reply. `say`, `call_tools`, `fail` and `raw` make the usual ones."""

    # The text of the message; None: the message has no text.
    text: str | None = "Ok."
    # The pieces of the text in a stream; None: its words.
    tokens: Sequence[str] | None = None
    calls: Sequence[Call] = ()
    # None: "tool_calls" or "stop".
    finish_reason: str | None = None
    # None: counted from the request and the reply.
    usage: Mapping[str, Any] | None = None
    status: int = 200
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    # The pieces of the body, which `hold_after` and `cut_after` count as events; None: the body is rendered.
    body: Sequence[bytes] | None = None
    # The gate at which the reply waits; None: it does not wait.
    hold_before_headers: Gate | None = None
    # A number of events, of which the role delta is the first -> the gate at which the stream waits after them.
    hold_after: Mapping[int, Gate] = msgspec.field(default_factory=dict)
    # True: the connection is lost before the reply.
    cut_before_headers: bool = False
    # The number of events after which the connection is lost; a reply that is no stream is lost in its middle.
    cut_after: int | None = None
    # A number of events, and the error object that is the last event after them.
    error_after: tuple[int, Mapping[str, Any]] | None = None
    # True: the stream ends with [DONE].
    done: bool = True
    # True: the reply is a stream even if the request does not ask for one.
    streams: bool = False
    # The id of the reply; None: a new one.
    id: str | None = None
    # The model that the reply names; None: the model of the request.
    model: str | None = None
    # Fields that are added to the whole reply or to each chunk.
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)
    # Fields that are added to the message or to the first delta.
    delta: Mapping[str, Any] = msgspec.field(default_factory=dict)
    # Fields that are added to the choice with the finish reason.
    ending: Mapping[str, Any] = msgspec.field(default_factory=dict)


def say(text: str, tokens: Sequence[str] | None = None, **options: Any) -> Reply:
    return Reply(text=text, tokens=tokens, **options)


def call_tools(*calls: Call, text: str | None = None, **options: Any) -> Reply:
    """Returns a reply that calls tools. text: the text before the calls."""
    return Reply(text=text, calls=calls, **options)


def fail(
    status: int,
    message: str = "Something went wrong.",
    *,
    code: str | None = None,
    retry_after: str | None = None,
    **options: Any,
) -> Reply:
    type_ = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}.get(
        status, "invalid_request_error"
    )
    error = {"error": {"message": message, "type": type_, "param": None, "code": code}}
    headers = {"content-type": "application/json"}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    return Reply(status=status, headers=headers, body=[orjson.dumps(error)], **options)


def raw(*pieces: bytes, content_type: str = "text/event-stream; charset=utf-8", **options: Any) -> Reply:
    """Returns a reply with a body of these pieces, each of which is written by itself."""
    headers = {"content-type": content_type, **options.pop("headers", {})}
    return Reply(body=pieces, headers=headers, **options)


ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def uncounted(text: str, *, stream: bool, usage: Mapping[str, Any] | None = None) -> Reply:
    """Returns a reply without the usage that `say` adds. usage: a usage in its place, such as `ZEROS`; None: none."""
    chunk: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if usage is not None:
        chunk["usage"] = usage
    message = {"role": "assistant", "content": text}
    if stream:
        choice = {"index": 0, "delta": message, "finish_reason": "stop"}
        return raw(b"data: %b\n\n" % orjson.dumps({**chunk, "choices": [choice]}), b"data: [DONE]\n\n")
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    completion = {**chunk, "object": "chat.completion", "choices": [choice]}
    return raw(orjson.dumps(completion), content_type="application/json")


@contextmanager
def full_backlog() -> Iterator[int]:
    """Yields a port with a full backlog: the next connection is neither accepted nor refused."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port: int = server.getsockname()[1]
        clients = []
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            clients.append(client)
        try:
            yield port
        finally:
            for client in clients:
                client.close()


@dataclass
class UpstreamRequest:
    """A request that has arrived whole, and how its reply ended."""

    method: str
    path: str
    # Names in lower case; the values of a repeated name are joined by ", ".
    headers: dict[str, str]
    body: bytes
    # The number of its connection, from 1.
    connection: int
    # `time.monotonic` at its arrival.
    arrived_at: float = field(default_factory=time.monotonic)
    # The parsed body.
    json: Any = None
    # The error with which it was refused; None: it was not refused.
    refusal: Refusal | None = None
    # `time.monotonic` when the client left before the end of the reply; None: it has not left.
    gone_at: float | None = None
    # True: the whole reply was sent.
    finished: bool = False
    # The number of events that were sent.
    sent_events: int = 0
    # The part of the URL after "?".
    query: str = ""
    # The gate that opens when the client leaves before the end of the reply.
    gone: Gate = field(default_factory=Gate)
    # The gate that opens when the reply was sent, or the client has left.
    settled: Gate = field(default_factory=Gate)

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.json["messages"]
        return messages

    @property
    def tool_names(self) -> list[str]:
        return [tool[tool["type"]]["name"] for tool in self.json.get("tools") or []]


Script = Callable[[UpstreamRequest], Reply | None]


class StrictUpstream:
    """A strict OpenAI API on a port of its own."""

    def __init__(
        self,
        *,
        key: str | None = None,
        rules: Rules = Rules(),  # noqa: B008
        models: Sequence[str] = ("gpt-strict", "gpt-strict-mini"),
        model_list: bytes | None = None,
        strict_models: bool = False,
        script: Script | None = None,
        echo: bool = False,
        stall_bodies: bool = False,
    ) -> None:
        """Makes the server; `start` or a context runs it.

        key: the only key that is accepted (as `Bearer <key>`); None: `authorization` is not checked.
        rules: the rules by which requests are refused.
        models: the models that GET /v1/models lists.
        model_list: the body of GET /v1/models, which may be broken; None: a list of `models`.
        strict_models: whether a chat with a model that is not listed is refused with a 404.
        script: a function that makes the reply if the queue is empty; it returns None for the reply without a script.
        echo: whether this last reply is the text of the user's last message, and not "Ok.".
        stall_bodies: whether only the heads of requests are read.
        """
        self.key = key
        # The status of the error for a wrong key.
        self.wrong_key_status = 401
        self.rules = rules
        self.models = list(models)
        self.model_list = model_list
        self.strict_models = strict_models
        self.script = script
        self.echo = echo
        self.stall_bodies = stall_bodies
        # The requests in the order in which they arrived.
        self.requests: list[UpstreamRequest] = []
        # The number of connections since the start.
        self.opened = 0
        # The endpoints other than chat completions and models.
        self.endpoints = Endpoints()
        # The gate that opens when a connection is lost in the middle of a request.
        self.broken_off = Gate()
        # The gate at which GET /v1/models waits; None: it does not wait.
        self.hold_models: Gate | None = None
        # The port, once the server runs.
        self.port = 0
        self._replies: deque[Reply] = deque()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._arrival_gates: list[tuple[int, Gate]] = []
        self._byte_gates: list[tuple[int, Gate]] = []
        self._connections: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- the interface for tests

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> UpstreamRequest:
        """The request that arrived last."""
        return self.requests[-1]

    @property
    def chats(self) -> list[UpstreamRequest]:
        """The requests for chat completions."""
        return [request for request in self.requests if request.path == "/v1/chat/completions"]

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def queue(self, *replies: Reply) -> None:
        """Adds replies for the next requests."""
        self._replies.extend(replies)

    def forget_replies(self) -> None:
        """Drops the replies that were queued and not used."""
        self._replies.clear()

    def request_gate(self, count: int) -> Gate:
        """Returns a gate that opens when `count` requests have arrived since the start.

        `await upstream.request_gate(len(upstream.requests) + 1).wait()` waits for the next one.
        """
        gate = Gate()
        with self._lock:
            self._arrival_gates.append((count, gate))
            self._open_arrival_gates()
        return gate

    def byte_gate(self, count: int) -> Gate:
        """Returns a gate that opens when `count` bytes of an incomplete request have arrived."""
        gate = Gate()
        self._byte_gates.append((count, gate))
        return gate

    def make_provider_headers(self, number: int) -> dict[str, str]:
        """Returns the headers that this provider adds to each reply. number: the number of the reply."""
        return {"x-request-id": f"req_{number}", "openai-processing-ms": "1"}

    def start(self) -> Self:
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="strict-upstream", daemon=True)
        self._thread.start()
        self.port = ready.result(PATIENCE_S)
        return self

    def stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(PATIENCE_S)

    def drop_connections(self) -> None:
        """Begins to close all connections, as an idle timeout does."""
        assert self._loop is not None
        done = Gate()

        def drop() -> None:
            for connection in list(self._connections):
                connection.transport.close()
            done.open()

        self._loop.call_soon_threadsafe(drop)
        done.wait_sync()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, *exc: object) -> None:
        self.stop()

    # -- the server

    def _run(self, ready: Future[int]) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        ready.set_result(server.sockets[0].getsockname()[1])
        await self._stopping.wait()
        await close_server(server)
        for connection in list(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _record(self, request: UpstreamRequest) -> None:
        with self._lock:
            self.requests.append(request)
            self._open_arrival_gates()

    def _open_arrival_gates(self) -> None:
        for count, gate in self._arrival_gates:
            if len(self.requests) >= count:
                gate.open()

    def _answer(self, request: UpstreamRequest) -> Reply:
        try:
            self._authorize(request)
            if request.path == "/v1/chat/completions":
                return self._answer_chat(request)
            if request.path == "/v1/models" and request.method == "GET":
                reply = _make_json_reply(
                    {"object": "list", "data": [_make_model(name) for name in self.models]}
                )
                if self.model_list is not None:
                    reply = Reply(headers=_JSON_TYPE, body=[self.model_list])
                return replace(reply, hold_before_headers=self.hold_models)
            return self._answer_other(request)
        except Refusal as refusal:
            request.refusal = refusal
            return _make_json_reply(refusal.body, status=refusal.status)

    def _answer_other(self, request: UpstreamRequest) -> Reply:
        answer = self.endpoints.answer(
            request.method, request.path, request.headers, request.body, request.query
        )
        if self._replies:
            return self._replies.popleft()
        if answer is None:
            raise Refusal(f"Invalid URL ({request.method} {request.path})", status=404)
        return Reply(
            status=answer.status, headers=answer.headers, body=answer.pieces, hold_after=answer.hold_after
        )

    def _authorize(self, request: UpstreamRequest) -> None:
        if self.key is None:
            return
        credential = request.headers.get("authorization")
        if credential is None:
            raise Refusal("You didn't provide an API key.", status=401)
        if credential != f"Bearer {self.key}":
            raise Refusal("Incorrect API key provided.", code="invalid_api_key", status=self.wrong_key_status)

    def _answer_chat(self, request: UpstreamRequest) -> Reply:
        if request.method != "POST":
            raise Refusal(
                f"Not allowed to {request.method} on /v1/chat/completions.",
                code="method_not_supported",
                status=405,
            )
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise Refusal("Unsupported content type: send 'application/json'.", status=400)
        try:
            request.json = orjson.loads(request.body)
        except ValueError as error:
            raise Refusal("We could not parse the JSON body of your request.") from error
        check_chat(request.json, self.rules)
        if self.strict_models and request.json["model"] not in self.models:
            raise Refusal(
                f"The model `{request.json['model']}` does not exist or you do not have access to it.",
                code="model_not_found",
                status=404,
            )
        if self._replies:
            return self._replies.popleft()
        reply = self.script(request) if self.script is not None else None
        return reply or Reply(text=_last_user_text(request.messages) if self.echo else "Ok.")


class _Connection(asyncio.Protocol):
    """A connection of a client. Its requests are answered one after the other."""

    transport: asyncio.Transport

    def __init__(self, upstream: StrictUpstream) -> None:
        self.upstream = upstream
        self.task: asyncio.Task[None] | None = None
        self.number = 0
        self._buffer = bytearray()
        self._current: UpstreamRequest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.upstream.opened += 1
        self.number = self.upstream.opened
        self.upstream._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.task is None:
            self._begin_request()
        for count, gate in self.upstream._byte_gates:
            if len(self._buffer) >= count:
                gate.open()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream._connections.discard(self)
        request = self._current
        if request is None and self._buffer:
            self.upstream.broken_off.open()
        if request is not None and not request.finished:
            request.gone_at = time.monotonic()
            request.gone.open()
            request.settled.open()
        if self.task is not None:
            self.task.cancel()

    def _begin_request(self) -> None:
        """Answers the next request, if all of it is in the buffer."""
        head, blank, body_bytes = bytes(self._buffer).partition(b"\r\n\r\n")
        if not blank:
            return
        if self.upstream.stall_bodies:
            self.transport.pause_reading()
            return
        request_line, *header_lines = head.decode("latin-1").split("\r\n")
        method, target, _ = request_line.split(" ", 2)
        headers: dict[str, str] = {}
        for line in header_lines:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parsed = _read_chunked_body(body_bytes)
        else:
            length = int(headers.get("content-length", "0"))
            parsed = (body_bytes[:length], length) if len(body_bytes) >= length else None
        if parsed is None:
            return
        body, consumed = parsed
        del self._buffer[: len(head) + 4 + consumed]
        path, _, query = target.partition("?")
        request = UpstreamRequest(method, path, headers, body, self.number, query=query)
        self._current = request
        reply = self.upstream._answer(request)
        self.upstream._record(request)
        assert self.upstream._loop is not None
        self.task = self.upstream._loop.create_task(self._perform(request, reply))

    async def _perform(self, request: UpstreamRequest, reply: Reply) -> None:
        is_lost = False
        try:
            is_lost = not await self._write(request, reply)
            if is_lost:
                await asyncio.sleep(_CUT_PAUSE_S)
        finally:
            request.finished = not is_lost and not self.transport.is_closing()
            if request.finished or is_lost:
                self._current = None
            self.task = None
            request.settled.open()
        if is_lost or request.headers.get("connection") == "close":
            self.transport.close()  # sends first what was written
        elif not self.transport.is_closing():
            self._begin_request()

    async def _write(self, request: UpstreamRequest, reply: Reply) -> bool:
        """Writes a reply. Returns whether the connection stays open."""
        if reply.hold_before_headers is not None:
            await reply.hold_before_headers.wait(None)
        if reply.cut_before_headers:
            return False
        number = next(self.upstream._ids)
        headers = {**self.upstream.make_provider_headers(number), **reply.headers}
        is_stream = reply.body is None and (
            reply.streams or bool(request.json and request.json.get("stream"))
        )
        if reply.body is None and not is_stream:
            headers["content-type"] = "application/json"
            pieces = [orjson.dumps(_make_completion(request.json, reply, number))]
        elif reply.body is not None:
            pieces = list(reply.body)
        if is_stream or len(pieces) != 1 or reply.hold_after:
            headers.setdefault("content-type", "text/event-stream; charset=utf-8")
            headers["transfer-encoding"] = "chunked"
            self._write_head(reply.status, headers)
            events = _stream_events(request.json, reply, number) if is_stream else _iterate(pieces)
            return await self._write_chunks(request, reply, events)
        headers["content-length"] = str(len(pieces[0]))
        self._write_head(reply.status, headers)
        if request.method == "HEAD":
            return True
        if reply.cut_after is not None:
            self.transport.write(pieces[0][: len(pieces[0]) // 2])
            return False
        self.transport.write(pieces[0])
        return True

    async def _write_chunks(
        self, request: UpstreamRequest, reply: Reply, events: AsyncIterator[bytes]
    ) -> bool:
        async for event in events:
            if reply.cut_after == request.sent_events:
                return False
            if request.sent_events in reply.hold_after:
                await reply.hold_after[request.sent_events].wait(None)
            self.transport.write(b"%x\r\n%s\r\n" % (len(event), event))
            request.sent_events += 1
        if reply.cut_after is not None:
            return False
        if request.sent_events in reply.hold_after:
            await reply.hold_after[request.sent_events].wait(None)
        self.transport.write(b"0\r\n\r\n")
        return True

    def _write_head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def _make_json_reply(value: Any, status: int = 200) -> Reply:
    return Reply(status=status, headers=_JSON_TYPE, body=[orjson.dumps(value)])


def _make_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "strict"}


def _read_chunked_body(data: bytes) -> tuple[bytes, int] | None:
    """Returns a body that was sent in chunks, and its length in `data`; None: it is not complete."""
    body, offset = bytearray(), 0
    while (end := data.find(b"\r\n", offset)) >= 0:
        size = int(data[offset:end].split(b";")[0], 16)
        offset = end + 2
        if len(data) < offset + size + 2:
            return None
        body += data[offset : offset + size]
        offset += size + 2
        if size == 0:
            return bytes(body), offset
    return None


async def _iterate(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in content if part["type"] == "text")
    return ""


def split_text(reply: Reply) -> list[str]:
    if reply.tokens is not None:
        assert reply.text in (None, "".join(reply.tokens))
        return list(reply.tokens)
    words = (reply.text or "").split(" ")
    return [word if i == 0 else f" {word}" for i, word in enumerate(words) if word or i]


def _make_usage(body: Any, reply: Reply) -> dict[str, Any]:
    if reply.usage is not None:
        return dict(reply.usage)
    prompt_tokens = len(orjson.dumps(body["messages"])) // 4
    completion_tokens = len(split_text(reply)) + sum(len(call.text) // 4 + 1 for call in reply.calls)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _make_common_fields(body: Any, reply: Reply, number: int, kind: str) -> dict[str, Any]:
    return {
        "id": reply.id or f"chatcmpl-{number:06d}",
        "object": kind,
        "created": 1_700_000_000 + number,
        "model": reply.model or body["model"],
        "service_tier": "default",
        "system_fingerprint": "fp_strict",
        "x_upstream": {"number": number},
        **reply.extra,
    }


def choose_call_id(number: int, index: int, call: Call) -> str:
    return call.id or f"call_{number:04d}_{index}"


def _choose_finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.calls else "stop")


def _make_completion(body: Any, reply: Reply, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text,
        "refusal": None,
        "annotations": [],
        **reply.delta,
    }
    if reply.calls:
        message["tool_calls"] = [
            {
                "id": choose_call_id(number, index, call),
                "type": "function",
                "function": {"name": call.name, "arguments": call.text},
            }
            for index, call in enumerate(reply.calls)
        ]
    choices = [
        {
            "index": i,
            "message": message,
            "logprobs": None,
            "finish_reason": _choose_finish_reason(reply),
            **reply.ending,
        }
        for i in range(body.get("n") or 1)
    ]
    frame = _make_common_fields(body, reply, number, "chat.completion")
    return {**frame, "choices": choices, "usage": _make_usage(body, reply)}


def _list_deltas(reply: Reply, number: int) -> list[tuple[dict[str, Any], str | None]]:
    """Returns the delta and the finish reason of each event."""
    role_delta: dict[str, Any] = {
        "role": "assistant",
        "content": None if reply.text is None else "",
        "refusal": None,
    }
    events: list[tuple[dict[str, Any], str | None]] = [({**role_delta, **reply.delta}, None)]
    events += [({"content": token}, None) for token in split_text(reply)]
    for index, call in enumerate(reply.calls):
        function: dict[str, Any] = (
            {"arguments": ""} if call.late_name else {"name": call.name, "arguments": ""}
        )
        first = {
            "index": index,
            "id": choose_call_id(number, index, call),
            "type": "function",
            "function": function,
        }
        events.append(({"tool_calls": [first]}, None))
        if call.late_name:
            events.append(({"tool_calls": [{"index": index, "function": {"name": call.name}}]}, None))
        for piece in call.split():
            events.append(({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None))
    events.append(({}, _choose_finish_reason(reply)))
    return events


async def _stream_events(body: Any, reply: Reply, number: int) -> AsyncIterator[bytes]:
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    frame = _make_common_fields(body, reply, number, "chat.completion.chunk")
    if with_usage:
        frame["usage"] = None
    count = 0
    for delta, finish in _list_deltas(reply, number):
        for index in range(body.get("n") or 1):
            if reply.error_after is not None and reply.error_after[0] == count:
                yield b"data: " + orjson.dumps({"error": dict(reply.error_after[1])}) + b"\n\n"
                return
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            choice |= reply.ending if finish else {}
            yield b"data: " + orjson.dumps({**frame, "choices": [choice]}) + b"\n\n"
            count += 1
    if with_usage:
        yield b"data: " + orjson.dumps({**frame, "choices": [], "usage": _make_usage(body, reply)}) + b"\n\n"
    if reply.done:
        yield b"data: [DONE]\n\n"
