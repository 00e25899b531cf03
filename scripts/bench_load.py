"""Measure the gateway against a direct call and, where installed, nginx: one mock upstream, one load generator.

Rounds are interleaved and medians are taken, because a machine is never quiet: every round measures all targets in
turn, and "added" is against the direct call of the same round. The memory-on figures come from growing
conversations of users who are known: each has had a conversation of three turns before, so that every turn looks for
what was said there, and of the next one the 4th to 6th turn is measured (8, 10 and 12 messages resent, with the
replies as they came). Only 127.0.0.1 is ever called, a bounded number of times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson
import uvloop

HERE = Path(__file__).resolve().parent
HEADERS_OFF = b"x-mnemogate-memory: off\r\n"
EARLIER_TURNS, WARM_TURNS, MEASURED_TURNS = 3, 3, 3
TIMEOUT_S = 120.0  # of one measurement; a server that hangs ends the bench

GOALS: dict[tuple[str, str], tuple[str, float]] = {
    ("memory off", "added p50 ms"): ("<", 0.25),
    ("memory off", "req/s"): (">", 8_100),
    ("memory off", "first text 20"): ("<", 2.0),
    ("memory off", "idle MB"): ("<", 80),
    ("memory off", "ready s"): ("<", 1.0),
    ("memory on", "added p50 ms"): ("<", 0.8),
    ("memory on", "req/s"): (">", 2_000),
    ("memory on", "first text 20"): ("<", 4.0),
    ("memory on", "MB 10k users"): ("<", 200),
    ("memory on", "ready s"): ("<", 1.0),
}


# --- the load generator -------------------------------------------------------------------------------------------


class Flow(Protocol):
    """Where a connection gets its requests from; shared by all connections of a measurement."""

    def next(self, worker: int) -> bytes | None:
        """The next request's bytes, None when there are no more."""

    def done(self, worker: int, body: bytes, times: Times) -> None:
        """A reply is complete; not part of any measured time."""


@dataclass(slots=True)
class Times:
    """Of one request, in seconds of one clock."""

    begun: float
    first_text: float
    ended: float


@dataclass(slots=True)
class Result:
    """Latencies in milliseconds."""

    total_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    cpu_ms: float | None = None  # the gateway's own, by request

    @property
    def rate(self) -> float:
        return len(self.total_ms) / max(1e-9, self.ended - self.began)

    def p(self, percent: int, first: bool = False) -> float:
        values = sorted(self.first_ms if first else self.total_ms)
        return values[min(len(values) - 1, len(values) * percent // 100)] if values else float("nan")


_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.I)
_TEXT = re.compile(rb'"content":\s*"[^"]')


class Client(asyncio.Protocol):
    """One keep-alive connection in a closed loop: the next request leaves in the callback that read the last reply."""

    def __init__(self, worker: int, flow: Flow, result: Result, finished: asyncio.Future[None]) -> None:
        self.worker, self.flow, self.result, self.finished = worker, flow, result, finished
        self.transport: Any = None
        self.buffer = b""
        self.body_start = self.body_end = 0
        self.status = b""
        self.begun = self.first_text = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.result.errors.append(f"connection lost: {exc!r}")
            self.finished.set_result(None)

    def send(self) -> None:
        request = self.flow.next(self.worker)
        if request is None:
            if not self.finished.done():
                self.finished.set_result(None)
            self.transport.close()
            return
        self.buffer, self.body_start, self.first_text = b"", 0, 0.0
        self.begun = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.buffer = self.buffer + data if self.buffer else data
        if not self.body_start:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            length = _LENGTH.search(self.buffer, 0, head_end + 2)
            self.status = self.buffer[9:12]
            self.body_start = head_end + 4
            self.body_end = self.body_start + int(length[1]) if length else 0
        if not self.first_text and _TEXT.search(self.buffer, self.body_start):
            self.first_text = now
        chunked = not self.body_end
        if self.buffer.endswith(b"\r\n0\r\n\r\n") if chunked else len(self.buffer) >= self.body_end:
            body = self.buffer[self.body_start :]
            if self.status != b"200":
                self.result.errors.append(f"{self.status.decode()}: {body[:200]!r}")
            elif chunked and b"data: [DONE]" not in body:
                self.result.errors.append("a stream without [DONE]")
            self.result.total_ms.append((now - self.begun) * 1e3)
            self.result.first_ms.append(((self.first_text or now) - self.begun) * 1e3)
            self.result.ended = now
            if len(self.result.errors) > 20:
                self.flow = Nothing()
            self.flow.done(
                self.worker, unchunk(body) if chunked else body, Times(self.begun, self.first_text, now)
            )
            self.send()


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


class Nothing:
    def next(self, worker: int) -> bytes | None:
        return None

    def done(self, worker: int, body: bytes, times: Times) -> None:
        pass


def same(client: Client) -> Client:
    return client


async def drive(port: int, flow: Flow, workers: int, spread_s: float = 0.0) -> Result:
    """Run a flow over some connections; their first requests are spread over a time, or all leave at once."""
    loop = asyncio.get_running_loop()
    result = Result()
    clients = []
    for worker in range(workers):
        finished: asyncio.Future[None] = loop.create_future()
        client = Client(worker, flow, result, finished)
        await loop.create_connection(partial(same, client), "127.0.0.1", port)
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


# --- what is asked ------------------------------------------------------------------------------------------------


def http(body: bytes, headers: bytes = b"") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += b"authorization: Bearer sk-bench\r\n" + headers + b"content-length: %d\r\n\r\n" % len(body)
    return head + body


SYSTEM = b'{"role":"system","content":"You are a friendly assistant that answers in plain words."}'


def message(role: str, text: str) -> bytes:
    return orjson.dumps({"role": role, "content": text})


def question(who: str, turn: int) -> str:
    facts = (
        "my sister Clara moved to Lisbon",
        "the meeting about the budget is on Thursday",
        "the blue bicycle broke",
    )
    return (
        f"({who}, {turn}) I wanted to say that {facts[turn % 3]}. What do you think about it, number {turn}?"
    )


def body_of(messages: list[bytes], user: str | None, stream: bool) -> bytes:
    tail = (b',"user":"%b"' % user.encode() if user else b"") + (b',"stream":true' if stream else b"")
    return b'{"model":"bench","messages":[' + b",".join(messages) + b"]" + tail + b"}"


class Same:
    """The same request a number of times: ten messages."""

    def __init__(self, requests: int, *, stream: bool = False, headers: bytes = b"") -> None:
        messages = [SYSTEM]
        for turn in range(4):
            messages += [message("user", question("static", turn)), message("assistant", "Indeed. " * 90)]
        messages.append(message("user", question("static", 4)))
        self.request = http(body_of(messages, None, stream), headers)
        self.left = requests

    def next(self, worker: int) -> bytes | None:
        self.left -= 1
        return self.request if self.left >= 0 else None

    def done(self, worker: int, body: bytes, times: Times) -> None:
        pass


@dataclass(slots=True)
class Talk:
    """One user's conversation as its client holds it. turn: counted over all of the user's conversations."""

    user: str
    messages: list[bytes] = field(default_factory=lambda: [SYSTEM])
    turn: int = 0

    def begin_anew(self) -> None:
        self.messages = [SYSTEM]

    def request(self, stream: bool) -> bytes:
        self.messages.append(message("user", question(self.user, self.turn)))
        self.turn += 1
        return http(body_of(self.messages, self.user, stream))

    def answered(self, body: bytes, stream: bool) -> None:
        self.messages.append(message("assistant", text_of_stream(body) if stream else text_of(body)))


def text_of(body: bytes) -> str:
    text: str = orjson.loads(body)["choices"][0]["message"]["content"]
    return text


def text_of_stream(body: bytes) -> str:
    texts = []
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in orjson.loads(line[6:]).get("choices") or ():
                texts.append(choice["delta"].get("content") or "")
    return "".join(texts)


class Talks:
    """Conversations, each taken by one connection for a number of turns."""

    def __init__(self, talks: list[Talk], turns: int, *, stream: bool = False) -> None:
        self.waiting = iter(talks)
        self.turns, self.stream = turns, stream
        self.current: dict[int, tuple[Talk, int]] = {}

    def next(self, worker: int) -> bytes | None:
        talk, left = self.current.get(worker, (None, 0))
        if talk is None or not left:
            talk, left = next(self.waiting, None), self.turns
            if talk is None:
                return None
        self.current[worker] = (talk, left - 1)
        return talk.request(self.stream)

    def done(self, worker: int, body: bytes, times: Times) -> None:
        with contextlib.suppress(ValueError, LookupError):  # an error reply is counted elsewhere
            self.current[worker][0].answered(body, self.stream)


# --- the servers --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
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


def wait_ready(
    port: int, path: str, running: subprocess.Popen[bytes], log: Path, limit_s: float = 30.0
) -> float:
    """Seconds until the path answers with 200."""
    begun = time.perf_counter()
    while (waited := time.perf_counter() - begun) < limit_s:
        if running.poll() is not None:
            break
        try:
            fetch(port, path)
        except OSError:
            time.sleep(0.005)
        else:
            return time.perf_counter() - begun
    raise SystemExit(
        f"not ready after {waited:.1f} s, exit code {running.poll()}:\n{log.read_text()[-3000:]}"
    )


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def cpu_s(pid: int) -> float:
    """Processor time of all its threads; unlike a wall time it says the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def nginx_config(folder: Path, port: int, upstream: int) -> str:
    return f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 2048; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream mock {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


# --- the measurements ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sizes:
    rounds: int
    alone: int  # requests of the measurement with one connection
    crowd: int  # with sixteen
    streams: int  # by each connection
    users: int
    turns: int  # of the conversation whose prefix is compared


FULL = Sizes(rounds=5, alone=600, crowd=6_000, streams=3, users=10_000, turns=60)
QUICK = Sizes(rounds=2, alone=150, crowd=900, streams=2, users=1_000, turns=20)


@dataclass(slots=True)
class Target:
    """headers: of the static request. is_memory: measured with growing conversations instead. pid: of the gateway."""

    name: str
    port: int
    headers: bytes = b""
    is_memory: bool = False
    pid: int | None = None
    figures: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        values = self.figures.get(name)
        return statistics.median(values) if values else None


_talkers = 0


async def measure(
    target: Target, requests: int, workers: int, *, stream: bool = False, spread_s: float = 0
) -> Result:
    """One measurement; where memory is on, the conversations are brought to their fourth turn first."""
    global _talkers
    spent = 0.0
    if not target.is_memory:
        spent = cpu_s(target.pid) if target.pid else 0.0
        flow: Flow = Same(requests, stream=stream, headers=target.headers)
        result = await drive(target.port, flow, workers, spread_s)
    else:
        turns = min(MEASURED_TURNS, max(1, requests // workers))
        talks = [Talk(f"bench-{_talkers + n}") for n in range(max(workers, requests // turns))]
        _talkers += len(talks)
        for before in (EARLIER_TURNS, WARM_TURNS):
            for talk in talks:
                talk.begin_anew()
            warm = await drive(target.port, Talks(talks, before), min(16, workers))
            target.errors += warm.errors
        spent = cpu_s(target.pid) if target.pid else 0.0
        result = await drive(target.port, Talks(talks, turns, stream=stream), workers, spread_s)
    if target.pid and result.total_ms:
        result.cpu_ms = (cpu_s(target.pid) - spent) * 1e3 / len(result.total_ms)
    target.errors += result.errors
    return result


async def run_rounds(targets: list[Target], sizes: Sizes) -> None:
    for target in targets:  # first requests pay for connections and imports
        await measure(target, 50, 4)
        await measure(target, 4, 4, stream=True)
    for number in range(sizes.rounds):
        order = targets[number % len(targets) :] + targets[: number % len(targets)]
        plan: list[tuple[str, int, int, bool, float]] = [
            ("alone", sizes.alone, 1, False, 0),
            ("crowd", sizes.crowd, 16, False, 0),
            ("streams 20", 20 * sizes.streams, 20, True, 0.5),
            ("burst 20", 20, 20, True, 0),
            ("streams 200", 200 * sizes.streams, 200, True, 0.5),
        ]
        for name, requests, workers, stream, spread_s in plan:
            results = {
                target.name: await measure(target, requests, workers, stream=stream, spread_s=spread_s)
                for target in order
            }
            floor = results["direct"]
            for target in targets:
                result = results[target.name]
                if name == "crowd":
                    target.note("req/s", result.rate)
                    if result.cpu_ms is not None:
                        target.note("CPU ms", result.cpu_ms)
                elif not stream:
                    target.note("p50 ms", result.p(50))
                    target.note("added p50 ms", result.p(50) - floor.p(50))
                    target.note("added p95 ms", result.p(95) - floor.p(95))
                else:
                    short = {
                        "streams 20": "first text 20",
                        "burst 20": "burst 20",
                        "streams 200": "first text 200",
                    }[name]
                    target.note(short, result.p(50, first=True) - floor.p(50, first=True))
                    target.note(f"{short} p95", result.p(95, first=True) - floor.p(95, first=True))
        print(f"round {number + 1} of {sizes.rounds} done", file=sys.stderr, flush=True)


async def meet_users(target: Target, users: int) -> None:
    """So many more people, two turns each."""
    result = await drive(target.port, Talks([Talk(f"person-{n}") for n in range(users)], 2), 16)
    target.errors += result.errors


async def remembers(port: int, mock_port: int) -> bool:
    """Whether a fact of one conversation reaches the upstream in the same user's next one."""
    asked = ("My sister Clara moved to Lisbon in spring.", "Do you know where my sister Clara lives?")
    for words in asked:
        await asyncio.to_thread(fetch, mock_port, "/record", b"")
        body = body_of([message("user", words)], "bench-proof", stream=False)
        await asyncio.to_thread(fetch, port, "/v1/chat/completions", body)
    return "Lisbon" in await asyncio.to_thread(lambda: fetch(mock_port, "/recorded").decode())


async def prefix_share(port: int, mock_port: int, turns: int) -> tuple[float, int, int]:
    """Share of the bytes sent on a turn that the next turn sends again as its beginning; breaks; bytes at the end."""
    await asyncio.to_thread(fetch, mock_port, "/record", b"")
    await drive(port, Talks([Talk("bench-prefix")], turns), 1)
    recorded = json.loads(await asyncio.to_thread(fetch, mock_port, "/recorded"))
    prompts = [prompt_bytes(body) for body in recorded if "bench-prefix" in body]
    stable = total = breaks = 0
    for before, after in itertools.pairwise(prompts):
        pairs = enumerate(zip(before, after, strict=False))
        common = next((index for index, (old, new) in pairs if old != new), min(len(before), len(after)))
        stable += common
        total += len(before)
        breaks += common < len(before)
    return (stable / total if total else float("nan")), breaks, len(prompts[-1]) if prompts else 0


def prompt_bytes(body: str) -> bytes:
    """What a provider's prompt cache sees: the tools, then the messages, in their order."""
    request = orjson.loads(body)
    parts = [*(request.get("tools") or ()), *request["messages"]]
    return b"\n".join(map(orjson.dumps, parts))


def fetch(port: int, path: str, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        body: bytes = reply.read()
        return body


# --- the table ----------------------------------------------------------------------------------------------------

COLUMNS = (
    "p50 ms",
    "added p50 ms",
    "added p95 ms",
    "req/s",
    "CPU ms",
    "first text 20",
    "first text 20 p95",
    "burst 20",
    "first text 200",
    "first text 200 p95",
    "idle MB",
    "MB 10k users",
    "ready s",
)


def table(targets: list[Target]) -> str:
    header = ["", *(target.name for target in targets), "goals (off / on)"]
    rows = [header]
    missed = []
    for column in COLUMNS:
        goals = []
        for name in ("memory off", "memory on"):
            sign, goal = GOALS.get((name, column), ("", 0))
            goals.append(f"{sign} {goal:,g}" if sign else "-")
            value = next((target.median(column) for target in targets if target.name == name), None)
            if sign and value is not None and not (value < goal if sign == "<" else value > goal):
                missed.append(f"{name}: {column} {value:,.2f}, goal {sign} {goal:,g}")
        values = [target.median(column) for target in targets]
        if any(value is not None for value in values):
            shown = ["-" if value is None else f"{value:,.{0 if value >= 100 else 2}f}" for value in values]
            rows.append([column, *shown, " / ".join(goals) if goals != ["-", "-"] else ""])
    widths = [max(len(row[index]) for row in rows) for index in range(len(header))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.append("")
    if any(target.name.startswith("memory") for target in targets):
        lines += ["missed: " + line for line in missed] or ["every goal measured here is met"]
    return "\n".join(lines)


async def bench(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> int:
    sizes: Sizes = QUICK if options.quick else FULL
    log = folder / "log"
    log.touch()
    mock = stack.enter_context(
        process(
            [sys.executable, str(HERE / "mock_upstream.py")],
            log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    assert mock.stdout is not None
    mock_port = int(mock.stdout.readline())
    targets = [Target("direct", mock_port)]
    if shutil.which("nginx"):
        port = free_port()
        (folder / "nginx.conf").write_text(nginx_config(folder, port, mock_port))
        server = stack.enter_context(
            process(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], log)
        )
        wait_ready(port, "/v1/models", server, log)
        targets.append(Target("nginx", port))
    port = free_port()
    bare = stack.enter_context(
        process([sys.executable, str(HERE / "bare_proxy.py"), str(port), str(mock_port)], log)
    )
    wait_ready(port, "/", bare, log)
    targets.append(Target("bare parts", port, pid=bare.pid))
    memory: Target | None = None
    gateway: subprocess.Popen[bytes] | None = None
    if options.no_gateway:
        targets.append(Target("direct, talks", mock_port, is_memory=True))
    else:
        port = free_port()
        facts = {"port": port, "db": folder / "bench.db", "upstream": f"http://127.0.0.1:{mock_port}/v1"}
        command = [part.format(**facts) for part in shlex.split(options.serve)]
        if command[0] == "python":
            command[0] = sys.executable
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPENAI_", "MNEMOGATE_"))
        }
        gateway = stack.enter_context(
            process(command, log, env=clean, cwd=HERE.parent, stdout=subprocess.DEVNULL)
        )
        ready_s = wait_ready(port, options.ready, gateway, log)
        off = Target("memory off", port, HEADERS_OFF, pid=gateway.pid)
        memory = Target("memory on", port, is_memory=True, pid=gateway.pid)
        off.note("idle MB", resident_mb(gateway.pid))
        for target in (off, memory):
            target.note("ready s", ready_s)
        targets += [off, memory]
    if memory is not None and not await remembers(memory.port, mock_port):
        memory.errors.append(
            "a fact of one conversation did not reach the upstream in the next: memory is not on"
        )
    await run_rounds(targets, sizes)
    share: tuple[float, int, int] | None = None
    if memory is not None and gateway is not None:
        share = await prefix_share(memory.port, mock_port, sizes.turns)
        await meet_users(memory, sizes.users - _talkers)
        memory.note("MB 10k users", resident_mb(gateway.pid))
    print(table(targets))
    if share is not None:
        print(f"prefix: {share[0]:.2%} of the bytes stable over {sizes.turns} turns, {share[1]} breaks")
        print(f"prefix: the last request had {share[2]:,} bytes of tools and messages")
        print(f"memory was measured after {max(_talkers, sizes.users):,} users")
    if options.quick:
        print("a quick run: fewer users, requests and rounds; rough figures")
    errors = [f"{target.name}: {error}" for target in targets for error in target.errors]
    for error in errors[:10]:
        print("error:", error)
    if errors:
        said = [line for line in log.read_text().splitlines() if '"status":200' not in line]
        print(
            f"{len(errors)} errors; the figures are not to be trusted. The servers said:",
            *said[-20:],
            sep="\n",
        )
    return 1 if errors else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run: half a minute")
    parser.add_argument(
        "--no-gateway", action="store_true", help="measure only the mock, nginx and the generator"
    )
    parser.add_argument(
        "--serve",
        default="python -m gateway serve --host 127.0.0.1 --port {port} --db {db} --upstream {upstream}",
        help="the command that starts the gateway (default: %(default)s)",
    )
    parser.add_argument("--ready", default="/health/ready", help="path that answers 200 once it is ready")
    options = parser.parse_args()
    run: Callable[[Any], int] = uvloop.run
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as folder, contextlib.ExitStack() as stack:
        return run(bench(options, Path(folder), stack))


if __name__ == "__main__":
    raise SystemExit(main())
