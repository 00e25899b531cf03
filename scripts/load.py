"""The common parts of the benches: a load generator, and servers that run as processes, all on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson

SCRIPTS_FOLDER = Path(__file__).resolve().parent
MEMORY_OFF_HEADER = b"x-mnemogate-memory: off\r\n"
# The longest time of one measurement, so that a server that hangs ends the bench.
TIMEOUT_S = 120.0
# The errors of one measurement after which no further request is sent.
MAX_ERRORS = 20


# --- the generator


class RequestFlow(Protocol):
    """The requests of one measurement, which its connections share."""

    def next_request(self, worker: int) -> bytes | None:
        """Returns the next request of a connection as it is sent, or None if none is left."""

    def take_reply(self, worker: int, body: bytes) -> None:
        """Takes the body of a complete reply. The time that this takes is not measured."""


@dataclass(slots=True)
class LoadResult:
    """The latencies of one measurement, a value for each reply, and its errors."""

    # The times to the end of each reply.
    total_ms: list[float] = field(default_factory=list)
    # The times to the first text of each reply.
    first_ms: list[float] = field(default_factory=list)
    # The errors, at most one for each request.
    errors: list[str] = field(default_factory=list)
    # `time.perf_counter()` at the first request, and at the end of the last reply.
    began: float = 0.0
    ended: float = 0.0

    @property
    def requests_per_s(self) -> float:
        return len(self.total_ms) / max(1e-9, self.ended - self.began)


_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.I)
_FIRST_TEXT = re.compile(rb'"content":\s*"[^"]')


class LoadConnection(asyncio.Protocol):
    """One keep-alive connection in a closed loop: the next request leaves in the callback that read the last reply."""

    def __init__(self, worker: int, flow: RequestFlow, result: LoadResult) -> None:
        # The number of the connection, from 0.
        self.worker = worker
        self.flow = flow
        self.result = result
        # Done when no request is left, or the connection is lost.
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        # The bytes of the reply so far.
        self.buffer = b""
        # The offset of the body in the buffer; 0: the head is incomplete.
        self.body_start = 0
        # The offset of the end of the body; 0: the body is chunked.
        self.body_end = 0
        # `time.perf_counter()` at the request, and at the first text of the reply (0: there was none).
        self.began_at = 0.0
        self.first_text_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.result.errors.append(f"connection lost: {exc!r}")
            self.finished.set_result(None)

    def send(self) -> None:
        """Sends the next request, or closes the connection if none is left."""
        request = self.flow.next_request(self.worker) if len(self.result.errors) <= MAX_ERRORS else None
        if request is None:
            if not self.finished.done():
                self.finished.set_result(None)
            self.transport.close()
            return
        self.buffer, self.body_start, self.first_text_at = b"", 0, 0.0
        self.began_at = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Notes the times of a reply's first text and of its end. After the end the next request is sent."""
        now = time.perf_counter()
        self.buffer = self.buffer + data if self.buffer else data
        if not self.body_start:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            content_length = _CONTENT_LENGTH.search(self.buffer, 0, head_end + 2)
            self.body_start = head_end + 4
            self.body_end = self.body_start + int(content_length[1]) if content_length else 0
        if not self.first_text_at and _FIRST_TEXT.search(self.buffer, self.body_start):
            self.first_text_at = now
        is_chunked = not self.body_end
        has_last_chunk = self.buffer.endswith(b"\r\n0\r\n\r\n")
        is_complete = has_last_chunk if is_chunked else len(self.buffer) >= self.body_end
        if is_complete:
            self.result.total_ms.append((now - self.began_at) * 1e3)
            self.result.first_ms.append(((self.first_text_at or now) - self.began_at) * 1e3)
            self.result.ended = now
            self.record_reply(self.buffer[9:12], self.buffer[self.body_start :], is_chunked)
            self.send()

    def record_reply(self, status: bytes, body: bytes, is_chunked: bool) -> None:
        """Notes the error of a reply if it has one, and passes its body to the flow."""
        if status != b"200":
            self.result.errors.append(f"{status.decode()}: {body[:200]!r}")
        elif is_chunked and b"data: [DONE]" not in body:
            self.result.errors.append("a stream without [DONE]")
        self.flow.take_reply(self.worker, unchunk(body) if is_chunked else body)


def unchunk(body: bytes) -> bytes:
    """Returns the data of a complete body with the transfer encoding `chunked`."""
    chunks: list[bytes] = []
    offset = 0
    while True:
        size_end = body.index(b"\r\n", offset)
        size = int(body[offset:size_end], 16)
        if not size:
            return b"".join(chunks)
        chunks.append(body[size_end + 2 : size_end + 2 + size])
        offset = size_end + 4 + size


async def drive(
    port: int,
    flow: RequestFlow,
    workers: int,
    spread_s: float = 0.0,
    connection_class: type[LoadConnection] = LoadConnection,
) -> LoadResult:
    """Sends all requests of a flow, and waits for their replies.

    workers: the number of connections.
    spread_s: the time over which the first requests of the connections are spread; 0: all leave at once.
    """
    loop = asyncio.get_running_loop()
    result = LoadResult()
    clients = []
    for worker in range(workers):
        _, client = await loop.create_connection(
            partial(connection_class, worker, flow, result), "127.0.0.1", port
        )
        clients.append(client)
    result.began = time.perf_counter()
    for worker, client in enumerate(clients):
        if spread_s:
            loop.call_later(spread_s * worker / workers, client.send)
        else:
            client.send()
    try:
        await asyncio.wait_for(asyncio.gather(*(client.finished for client in clients)), TIMEOUT_S)
    except TimeoutError:
        result.errors.append(f"not finished after {TIMEOUT_S:.0f} s")
    for client in clients:
        client.transport.abort()
    return result


@dataclass(slots=True)
class Figures:
    """The measurements of a gateway: a list of values for each name."""

    # The port of the gateway.
    port: int
    # The id of the gateway's process.
    pid: int
    # The port of the gateway's upstream.
    mock_port: int
    # The values of each figure by its name, one for each measurement.
    values: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])


# --- the requests


SYSTEM = b'{"role":"system","content":"You are a friendly assistant that answers in plain words."}'
FACTS = (
    "my sister Clara moved to Lisbon",
    "the meeting about the budget is on Thursday",
    "the blue bicycle broke",
)


def chat_request(body: bytes, headers: bytes = b"") -> bytes:
    """Returns a request for a chat completion as it is sent. headers: further lines of its head."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += b"authorization: Bearer sk-bench\r\n" + headers + b"content-length: %d\r\n\r\n" % len(body)
    return head + body


def render_message(role: str, text: str) -> bytes:
    return orjson.dumps({"role": role, "content": text})


def render_question(who: str, turn: int) -> bytes:
    """Returns the question of a user's turn, as JSON."""
    fact = FACTS[turn % 3]
    text = f"({who}, {turn}) I wanted to say that {fact}. What do you think about it, number {turn}?"
    return render_message("user", text)


def render_body(messages: list[bytes], user: str | None, is_streamed: bool) -> bytes:
    """Returns the body of a request for a chat completion. user: the user's name; None: the request names none."""
    tail = (b',"user":"%b"' % user.encode() if user else b"") + (b',"stream":true' if is_streamed else b"")
    return b'{"model":"bench","messages":[' + b",".join(messages) + b"]" + tail + b"}"


class RepeatedRequest:
    """The flow of one request that is sent a number of times: ten messages without a user."""

    def __init__(self, requests: int, *, is_streamed: bool = False, headers: bytes = b"") -> None:
        messages = [SYSTEM]
        for turn in range(4):
            messages += [render_question("static", turn), render_message("assistant", "Indeed. " * 90)]
        self.request = chat_request(
            render_body([*messages, render_question("static", 4)], None, is_streamed), headers
        )
        self.remaining = requests

    def next_request(self, worker: int) -> bytes | None:
        self.remaining -= 1
        return self.request if self.remaining >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


@dataclass(slots=True)
class ClientConversation:
    """A user's conversation, as its client has it."""

    user: str
    # The messages as JSON, from the system message on.
    messages: list[bytes] = field(default_factory=lambda: [SYSTEM])
    # The number of the next turn, which goes on over all conversations of the user.
    turn: int = 0

    def begin(self) -> None:
        """Begins a new conversation of the same user."""
        self.messages = [SYSTEM]

    def make_request(self, is_streamed: bool) -> bytes:
        """Adds the next question, and returns the request with it."""
        self.messages.append(render_question(self.user, self.turn))
        self.turn += 1
        return chat_request(render_body(self.messages, self.user, is_streamed))

    def add_reply(self, body: bytes, is_streamed: bool) -> None:
        text = (
            read_stream_text(body) if is_streamed else orjson.loads(body)["choices"][0]["message"]["content"]
        )
        self.messages.append(render_message("assistant", text))


def read_stream_text(body: bytes) -> str:
    """Returns the text of a stream."""
    texts = []
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in orjson.loads(line[6:]).get("choices") or ():
                texts.append(choice["delta"].get("content") or "")
    return "".join(texts)


class ConversationFlow:
    """The flow of conversations. Each connection takes one after the other, and continues it by some turns."""

    def __init__(
        self,
        conversations: list[ClientConversation],
        turns: int,
        *,
        is_streamed: bool = False,
        opens_each_turn: bool = False,
    ) -> None:
        """turns: the turns of each conversation. opens_each_turn: whether each turn opens a new conversation."""
        # The conversations that no connection has taken.
        self.waiting = iter(conversations)
        self.turns = turns
        self.is_streamed = is_streamed
        self.opens_each_turn = opens_each_turn
        # The conversation of each connection, and the number of its further turns.
        self.current: dict[int, tuple[ClientConversation, int]] = {}

    def next_request(self, worker: int) -> bytes | None:
        conversation, turns_left = self.current.get(worker, (None, 0))
        if conversation is None or not turns_left:
            conversation, turns_left = next(self.waiting, None), self.turns
            if conversation is None:
                return None
        self.current[worker] = (conversation, turns_left - 1)
        if self.opens_each_turn:
            conversation.begin()
        return conversation.make_request(self.is_streamed)

    def take_reply(self, worker: int, body: bytes) -> None:
        with contextlib.suppress(ValueError, LookupError):  # `record_reply` notes a reply that is an error
            self.current[worker][0].add_reply(body, self.is_streamed)


# --- the servers


def render_table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    """Returns the rows as a table in Markdown. The first row is the head. align: pads a cell to a width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body_rows = rows
    return "\n".join(
        "| " + " | ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, ["-" * width for width in widths], *body_rows)
    )


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**variables: str) -> dict[str, str]:
    """Returns this process's environment for a gateway, with further variables.

    It lacks the settings of a gateway, and PYTHONDONTWRITEBYTECODE, with which each start would compile the gateway.
    """
    dropped_prefixes = ("OPENAI_", "ANTHROPIC_", "MNEMOGATE_", "PYTHONDONTWRITEBYTECODE")
    return {
        name: value for name, value in os.environ.items() if not name.startswith(dropped_prefixes)
    } | variables


@contextlib.contextmanager
def run_process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command during the block, and ends it afterwards.

    log: the file to which its standard error is appended.
    options: parameters of `Popen`.
    """
    with log.open("ab") as sink:
        running = subprocess.Popen(command, stderr=sink, start_new_session=True, **options)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGTERM)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextlib.contextmanager
def run_mock(log: Path, *command: str) -> Iterator[int]:
    """Runs the mock upstream, or another command that prints its port and ends with its standard input."""
    arguments = [sys.executable, *(command or (str(SCRIPTS_FOLDER / "mock_upstream.py"),))]
    with run_process(arguments, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        yield int(running.stdout.readline())


def wait_ready(port: int, path: str, running: subprocess.Popen[bytes], log: Path) -> float:
    """Waits until a path of a server answers with 200. Returns the seconds that it took.

    Raises: SystemExit: the server has ended, or is not ready after two minutes.
    """
    start = time.perf_counter()
    while (waited := time.perf_counter() - start) < 120.0 and running.poll() is None:
        try:
            fetch(port, path)
        except OSError:
            time.sleep(0.005)
        else:
            return time.perf_counter() - start
    raise SystemExit(
        f"not ready after {waited:.1f} s, exit code {running.poll()}:\n{log.read_text()[-3000:]}"
    )


@dataclass(frozen=True, slots=True)
class ServedGateway:
    """A gateway that is ready."""

    port: int
    pid: int
    # The seconds from its start until it was ready.
    ready_s: float


@contextlib.contextmanager
def serve_gateway(folder: Path, settings: str, *under: str) -> Iterator[ServedGateway]:
    """Serves a gateway with its settings, database and log in a folder.

    under: a command with its arguments that gets the gateway's command as further arguments, such as `perf record`.
    """
    (folder / "mnemogate.toml").write_text(settings)
    log, port = folder / "log", find_free_port()
    command = [*under, sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    clean = clean_environment(PYTHONPATH=str(SCRIPTS_FOLDER.parent))
    with run_process(command, log, env=clean, cwd=folder, stdout=subprocess.DEVNULL) as running:
        yield ServedGateway(port, running.pid, wait_ready(port, "/health/ready", running, log))


def fetch(port: int, path: str, data: bytes | None = None) -> bytes:
    """Returns the body of a reply. data: the body of the request; None: a GET."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        body: bytes = reply.read()
        return body


def read_resident_mb(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


def read_cpu_s(pid: int) -> float:
    """Returns the processor time of all threads of a process. Other work on the machine changes it little."""
    # The id of that process's clock in Linux (clock_getcpuclockid).
    return time.clock_gettime(~pid << 3 | 2)
