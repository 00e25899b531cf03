"""A load generator for the benches, and the servers that they start as processes. Everything stays on 127.0.0.1."""

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
from typing import Any

import orjson

SCRIPTS_FOLDER = Path(__file__).resolve().parent
MEMORY_OFF_HEADER = b"x-mnemogate-memory: off\r\n"
TIMEOUT_S = 120.0  # of one measurement; a server that hangs ends the bench
MAX_ERRORS = 20  # of one measurement; after so many nothing more is asked


# --- the generator


@dataclass(slots=True)
class LoadResult:
    """Latencies in milliseconds: to the end of each reply, and to its first text."""

    total_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @property
    def requests_per_s(self) -> float:
        return len(self.total_ms) / max(1e-9, self.ended - self.began)


_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.I)
_TEXT = re.compile(rb'"content":\s*"[^"]')


class LoadConnection(asyncio.Protocol):
    """One keep-alive connection in a closed loop: the next request leaves in the callback that read the last reply."""

    def __init__(self, worker: int, flow: Any, result: LoadResult) -> None:
        self.worker, self.flow, self.result = worker, flow, result
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        self.buffer = b""
        self.body_start = self.body_end = 0  # body_end: 0 for a chunked body
        self.began_at = self.first_text_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.result.errors.append(f"connection lost: {exc!r}")
            self.finished.set_result(None)

    def send(self) -> None:
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
        now = time.perf_counter()
        self.buffer = self.buffer + data if self.buffer else data
        if not self.body_start:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            length = _LENGTH.search(self.buffer, 0, head_end + 2)
            self.body_start = head_end + 4
            self.body_end = self.body_start + int(length[1]) if length else 0
        if not self.first_text_at and _TEXT.search(self.buffer, self.body_start):
            self.first_text_at = now
        is_chunked = not self.body_end
        if self.buffer.endswith(b"\r\n0\r\n\r\n") if is_chunked else len(self.buffer) >= self.body_end:
            self.result.total_ms.append((now - self.began_at) * 1e3)
            self.result.first_ms.append(((self.first_text_at or now) - self.began_at) * 1e3)
            self.result.ended = now
            self.record_reply(self.buffer[9:12], self.buffer[self.body_start :], is_chunked)
            self.send()

    def record_reply(self, status: bytes, body: bytes, is_chunked: bool) -> None:
        if status != b"200":
            self.result.errors.append(f"{status.decode()}: {body[:200]!r}")
        elif is_chunked and b"data: [DONE]" not in body:
            self.result.errors.append("a stream without [DONE]")
        self.flow.take_reply(self.worker, unchunk(body) if is_chunked else body)


def unchunk(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        line = body.index(b"\r\n", at)
        size = int(body[at:line], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[line + 2 : line + 2 + size])
        at = line + 4 + size


async def drive(
    port: int,
    flow: Any,
    workers: int,
    spread_s: float = 0.0,
    connection_class: type[LoadConnection] = LoadConnection,
) -> LoadResult:
    """Runs a flow over some connections; their first requests are spread over a time, or all leave at once.

    flow: `next_request(worker)` returns the bytes of the next request; None: there is none. `take_reply(worker, body)`
        takes a complete reply, and is not part of any measured time.
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

    port: int
    pid: int
    # The port of its upstream.
    mock_port: int
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
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += b"authorization: Bearer sk-bench\r\n" + headers + b"content-length: %d\r\n\r\n" % len(body)
    return head + body


def render_message(role: str, text: str) -> bytes:
    return orjson.dumps({"role": role, "content": text})


def render_question(who: str, turn: int) -> bytes:
    fact = FACTS[turn % 3]
    text = f"({who}, {turn}) I wanted to say that {fact}. What do you think about it, number {turn}?"
    return render_message("user", text)


def render_body(messages: list[bytes], user: str | None, stream: bool) -> bytes:
    tail = (b',"user":"%b"' % user.encode() if user else b"") + (b',"stream":true' if stream else b"")
    return b'{"model":"bench","messages":[' + b",".join(messages) + b"]" + tail + b"}"


class SameRequest:
    """The same request a number of times: ten messages without a user."""

    def __init__(self, requests: int, *, stream: bool = False, headers: bytes = b"") -> None:
        messages = [SYSTEM]
        for turn in range(4):
            messages += [render_question("static", turn), render_message("assistant", "Indeed. " * 90)]
        self.request = chat_request(
            render_body([*messages, render_question("static", 4)], None, stream), headers
        )
        self.remaining = requests

    def next_request(self, worker: int) -> bytes | None:
        self.remaining -= 1
        return self.request if self.remaining >= 0 else None

    def take_reply(self, worker: int, body: bytes) -> None:
        pass


@dataclass(slots=True)
class Talk:
    """One user's conversation as its client holds it. turn: counted over all of the user's conversations."""

    user: str
    messages: list[bytes] = field(default_factory=lambda: [SYSTEM])
    turn: int = 0

    def begin_conversation(self) -> None:
        self.messages = [SYSTEM]

    def request(self, stream: bool) -> bytes:
        self.messages.append(render_question(self.user, self.turn))
        self.turn += 1
        return chat_request(render_body(self.messages, self.user, stream))

    def add_reply(self, body: bytes, stream: bool) -> None:
        text = read_stream_text(body) if stream else orjson.loads(body)["choices"][0]["message"]["content"]
        self.messages.append(render_message("assistant", text))


def read_stream_text(body: bytes) -> str:
    texts = []
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in orjson.loads(line[6:]).get("choices") or ():
                texts.append(choice["delta"].get("content") or "")
    return "".join(texts)


class Talks:
    """Conversations, each taken by one connection for a number of turns.

    opens_each_turn: each turn opens a new conversation.
    """

    def __init__(
        self, talks: list[Talk], turns: int, *, stream: bool = False, opens_each_turn: bool = False
    ) -> None:
        self.waiting = iter(talks)
        self.turns, self.stream, self.opens_each_turn = turns, stream, opens_each_turn
        self.current: dict[int, tuple[Talk, int]] = {}

    def next_request(self, worker: int) -> bytes | None:
        talk, left = self.current.get(worker, (None, 0))
        if talk is None or not left:
            talk, left = next(self.waiting, None), self.turns
            if talk is None:
                return None
        self.current[worker] = (talk, left - 1)
        if self.opens_each_turn:
            talk.begin_conversation()
        return talk.request(self.stream)

    def take_reply(self, worker: int, body: bytes) -> None:
        with contextlib.suppress(ValueError, LookupError):  # an error reply is counted elsewhere
            self.current[worker][0].add_reply(body, self.stream)


# --- the servers


def render_table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    """Returns the rows as a table in Markdown. The first one is its head. align: puts a cell to its width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *rest = rows
    return "\n".join(
        "| " + " | ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, ["-" * width for width in widths], *rest)
    )


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**more: str) -> dict[str, str]:
    """Returns this process's environment without what changes a gateway's settings or compiles it at each start."""
    settings = ("OPENAI_", "ANTHROPIC_", "MNEMOGATE_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)} | more


@contextlib.contextmanager
def run_process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
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
    """Returns the seconds until the path answers with 200, two minutes at most."""
    begun = time.perf_counter()
    while (waited := time.perf_counter() - begun) < 120.0 and running.poll() is None:
        try:
            fetch(port, path)
        except OSError:
            time.sleep(0.005)
        else:
            return time.perf_counter() - begun
    raise SystemExit(
        f"not ready after {waited:.1f} s, exit code {running.poll()}:\n{log.read_text()[-3000:]}"
    )


@dataclass(frozen=True, slots=True)
class ServedGateway:
    """A gateway that is ready. ready_s: after so many seconds."""

    port: int
    pid: int
    ready_s: float


@contextlib.contextmanager
def serve_gateway(folder: Path, settings: str, *under: str) -> Iterator[ServedGateway]:
    """Serves a gateway, whose settings, database and log lie in the folder. under: a command that runs it."""
    (folder / "mnemogate.toml").write_text(settings)
    log, port = folder / "log", find_free_port()
    command = [*under, sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    clean = clean_environment(PYTHONPATH=str(SCRIPTS_FOLDER.parent))
    with run_process(command, log, env=clean, cwd=folder, stdout=subprocess.DEVNULL) as running:
        yield ServedGateway(port, running.pid, wait_ready(port, "/health/ready", running, log))


def fetch(port: int, path: str, data: bytes | None = None) -> bytes:
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
    """Returns the processor time of all threads of a process; unlike wall time it is the same on a busy machine."""
    # The clock of that process, in Linux' numbering (clock_getcpuclockid).
    return time.clock_gettime(~pid << 3 | 2)
