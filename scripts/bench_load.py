"""Measures the gateway against a direct call and, where installed, nginx, with one mock upstream.

A machine is never quiet, so each round measures all targets in turn, "added" is against the direct call of the same
round, and a figure is the median of the rounds.

With memory on, each user has had a conversation of three turns, and turns 4 to 6 of the next one are measured (with 8,
10 and 12 messages). Notes then show the whole of so small a memory, which takes no search. "More known" are users with
memories of which notes show a part, so that each turn searches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import orjson
import uvloop

from scripts import load

# Turns of a user's earlier conversation; of the measured one, those before the measurement and those in it.
EARLIER_TURNS, WARM_TURNS, MEASURED_TURNS = 3, 3, 3
# Users who open one conversation after the other, and how many each opens.
OPENERS, OPENINGS = 200, 10
# Users of whom more is known than notes show: how many, and how many conversations of how many turns they have had.
KNOWN_WELL, CONVERSATIONS, LONG_TURNS = 100, 4, 12


class Goals(NamedTuple):
    """The goals of a figure, as they are printed; "": there is none."""

    off: str = ""
    on: str = ""


# The figures in the order in which they are printed.
GOALS = {
    "p50 ms": Goals(),
    "added p50 ms": Goals(),
    "added p99 ms": Goals(),
    "added, times bare parts": Goals("< 1.5", "< 4.5"),
    "p99 / p50": Goals(on="< 3"),
    "req/s": Goals("> 8,100", "> 2,000"),
    "CPU ms": Goals(),
    "CPU ms, 4 at once": Goals(),
    "CPU, times bare parts": Goals("< 1.5", "< 4.5"),
    "CPU ms, more known": Goals(),
    "CPU ms, first words": Goals(),
    "CPU ms, openings": Goals(),
    "first text 20": Goals("< 2", "< 4"),
    "first text 200": Goals(on="< 15"),
    "idle MB": Goals("< 80"),
    "MB 10k users": Goals(on="< 150"),
    "ready s": Goals("< 1", "< 1"),
}
NGINX = """
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


class TraceExport(NamedTuple):
    """The export of traces by a gateway."""

    # The share of requests that are traced.
    share: float
    # True: the collector takes the traces and never answers.
    collector_hangs: bool = False


# The variants of the gateway with memory on that export traces.
TRACES = {
    "traces 0 %": TraceExport(0),
    "traces 1 %": TraceExport(0.01),
    "traces 100 %": TraceExport(1),
    "it hangs": TraceExport(1, collector_hangs=True),
}
# The variant that stores no record of a turn's recall.
NO_RECALLS = "no recalls"
# The variant with three limits, which are never reached.
LIMITED = "limits"
VARIANTS = (NO_RECALLS, LIMITED, *TRACES)

# A program that takes the rest of a core's time.
_IDLER = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""

# The parts into which a round divides the requests of one connection.
BLOCKS = 10


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a measurement."""

    rounds: int
    # Requests of one connection in a round.
    alone: int
    # Requests of sixteen connections in a round.
    crowd: int
    # Streams of each connection.
    streams: int
    # Users who have memories when the megabytes of the gateway are read.
    users: int
    # New users of a round, who say their first words.
    openers: int


FULL = Sizes(rounds=5, alone=2_000, crowd=6_000, streams=3, users=10_000, openers=2_000)
QUICK = Sizes(rounds=2, alone=150, crowd=900, streams=2, users=1_000, openers=300)


@dataclass(slots=True)
class Target:
    """A server that is measured."""

    name: str
    port: int
    # Headers of the request that `load.RepeatedRequest` repeats.
    headers: bytes = b""
    # True: it is measured with growing conversations.
    is_memory: bool = False
    # The process of which CPU time is counted; None: none is counted.
    pid: int | None = None
    # The values of each figure by its name, one for each round.
    figures: dict[str, list[float]] = field(default_factory=dict)
    # The errors of all its measurements.
    errors: list[str] = field(default_factory=list)

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        values = self.figures.get(name)
        return statistics.median(values) if values else None

    async def drive(self, flow: load.RequestFlow, workers: int, spread_s: float = 0) -> Measurement:
        """Sends a flow to the server (`load.drive`), and notes its errors."""
        cpu_before_s = load.read_cpu_s(self.pid) if self.pid else 0.0
        result = await load.drive(self.port, flow, workers, spread_s)
        cpu_after_s = load.read_cpu_s(self.pid) if self.pid else 0.0
        self.errors += result.errors
        return Measurement(result, (cpu_after_s - cpu_before_s) * 1e3 / max(1, len(result.total_ms)))

    async def run_earlier_turns(
        self, conversations: list[load.ClientConversation], turns: Sequence[int], workers: int
    ) -> None:
        """Has each user chat in one new conversation after the other. turns: the turns of each conversation."""
        for turns_of_conversation in turns:
            for conversation in conversations:
                conversation.begin()
            await self.drive(load.ConversationFlow(conversations, turns_of_conversation), workers)


class Measurement(NamedTuple):
    """The latencies of a flow, and the CPU time of the server for one of its requests."""

    result: load.LoadResult
    cpu_ms: float


_users = count()


async def measure(
    target: Target, requests: int, workers: int, *, is_streamed: bool = False, spread_s: float = 0
) -> Measurement:
    """Measures a number of requests; where memory is on, the 4th to 6th turn of conversations."""
    flow: load.RequestFlow = load.RepeatedRequest(requests, is_streamed=is_streamed, headers=target.headers)
    if target.is_memory:
        turns = min(MEASURED_TURNS, max(1, requests // workers))
        conversations = [
            load.ClientConversation(f"bench-{next(_users)}") for _ in range(max(workers, requests // turns))
        ]
        await target.run_earlier_turns(conversations, (EARLIER_TURNS, WARM_TURNS), min(16, workers))
        flow = load.ConversationFlow(conversations, turns, is_streamed=is_streamed)
    return await target.drive(flow, workers, spread_s)


def quantile(values: list[float], share: float = 0.5) -> float:
    return sorted(values)[int(len(values) * share)] if values else float("nan")


async def run_rounds(targets: list[Target], sizes: Sizes, *, is_alone: bool) -> None:
    """Measures all targets in each round. is_alone: True: only one connection is measured."""
    for target in targets:  # the first requests take longer: they open connections and import modules
        await measure(target, 50, 4)
        await measure(target, 4, 4, is_streamed=True)
    for number in range(sizes.rounds):
        order = targets[number % len(targets) :] + targets[: number % len(targets)]
        await measure_alone(order, sizes)
        if not is_alone:
            await measure_crowds(order, sizes)
        print(f"round {number + 1} of {sizes.rounds} done", file=sys.stderr, flush=True)


async def measure_alone(targets: list[Target], sizes: Sizes) -> None:
    """Measures requests of one connection, in blocks by turns, since the machine's speed changes within a round."""
    times_ms: dict[str, list[float]] = {target.name: [] for target in targets}
    for target in targets * BLOCKS:
        measurement = await measure(target, max(3, sizes.alone // BLOCKS), 1)
        times_ms[target.name] += measurement.result.total_ms
    direct = times_ms["direct"]
    for target in targets:
        p50, p99 = quantile(times_ms[target.name]), quantile(times_ms[target.name], 0.99)
        target.note("p50 ms", p50)
        target.note("added p50 ms", p50 - quantile(direct))
        target.note("added p99 ms", p99 - quantile(direct, 0.99))
        target.note("p99 / p50", p99 / p50)


async def measure_crowds(targets: list[Target], sizes: Sizes) -> None:
    """Measures requests of sixteen connections and of four, and streams of 20 and of 200."""
    for target in targets:
        measurement = await measure(target, sizes.crowd, 16)
        target.note("req/s", measurement.result.requests_per_s)
        if target.pid:
            target.note("CPU ms", measurement.cpu_ms)
            target.note("CPU ms, 4 at once", (await measure(target, sizes.crowd // 4, 4)).cpu_ms)
    for workers in (20, 200):
        streams = {
            target.name: await measure(
                target, workers * sizes.streams, workers, is_streamed=True, spread_s=0.5
            )
            for target in targets
        }
        direct_ms = quantile(streams["direct"].result.first_ms)
        for target in targets:
            target.note(f"first text {workers}", quantile(streams[target.name].result.first_ms) - direct_ms)


async def open_conversations(target: Target, users: int) -> None:
    """Measures the first message of new users, and users who open one conversation after the other."""
    groups = {
        "first words": [load.ClientConversation(f"new-{next(_users)}") for _ in range(users)],
        "openings": [load.ClientConversation(f"opener-{next(_users)}") for _ in range(OPENERS)],
    }
    for name, conversations in groups.items():
        turns = 1 if name == "first words" else OPENINGS
        measurement = await target.drive(
            load.ConversationFlow(conversations, turns, opens_each_turn=True), 16
        )
        target.note(f"CPU ms, {name}", measurement.cpu_ms)


async def search_each_turn(target: Target) -> None:
    """Measures the same turns as `measure`, of users with larger memories."""
    conversations = [load.ClientConversation(f"known-{next(_users)}") for _ in range(KNOWN_WELL)]
    await target.run_earlier_turns(conversations, (*[LONG_TURNS] * CONVERSATIONS, WARM_TURNS), 16)
    measurement = await target.drive(load.ConversationFlow(conversations, MEASURED_TURNS), 16)
    target.note("CPU ms, more known", measurement.cpu_ms)


async def is_remembering(port: int, mock_port: int) -> bool:
    """Returns whether a fact of one conversation reaches the upstream in the same user's next one."""
    for words in ("My sister Clara moved to Lisbon in spring.", "Do you know where my sister Clara lives?"):
        body = load.render_body([load.render_message("user", words)], "bench-proof", is_streamed=False)
        await asyncio.to_thread(load.fetch, port, "/v1/chat/completions", body)
    return b"Lisbon" in await asyncio.to_thread(load.fetch, mock_port, "/last")


@contextlib.contextmanager
def export_traces(export: TraceExport | None, stack: contextlib.ExitStack) -> Iterator[None]:
    """Lets the gateways that start within the block export traces, or no traces if `export` is None."""
    if export is None:
        yield
        return
    collector_port = stack.enter_context(run_collector(hangs=export.collector_hangs))
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector_port}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(export.share),
    }
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


@contextlib.contextmanager
def run_collector(*, hangs: bool) -> Iterator[int]:
    """Runs a collector in a thread and yields its port. hangs: True: the collector never answers."""
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if hangs:
                is_over.wait()
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        is_over.set()
        server.shutdown()


def set_limits(port: int, folder: Path) -> None:
    """Sets three limits, none of which is ever reached."""
    token = orjson.loads((folder / "mnemogate.db.admin").read_bytes())["token"]
    for user, unit, per in (
        (None, "tokens", "month"),
        ("*", "requests", "day"),
        (None, "requests", "minute"),
    ):
        body = orjson.dumps({"user": user, "unit": unit, "per": per, "most": 10**12})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/manage/limits", body, {"x-mnemogate-admin": token}
        )
        urllib.request.urlopen(request, timeout=10).close()


def start_targets(
    mock_port: int, folder: Path, stack: contextlib.ExitStack, variants: Sequence[str]
) -> list[Target]:
    """Starts all servers that are measured. variants: the variants of the gateway with memory on."""
    targets = [Target("direct", mock_port)]

    def serve(name: str, path: str, port: int, *command: object) -> None:
        log = folder / "log"
        running = stack.enter_context(load.run_process([*map(str, command)], log, stdout=subprocess.DEVNULL))
        load.wait_ready(port, path, running, log)
        targets.append(Target(name, port, pid=running.pid))

    if shutil.which("nginx"):
        port = load.find_free_port()
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, upstream=mock_port))
        serve("nginx", "/v1/models", port, "nginx", "-p", folder, "-c", folder / "nginx.conf")
        targets[-1].pid = None  # of nginx's master process, which answers no request
    port = load.find_free_port()
    serve("bare parts", "/", port, sys.executable, load.SCRIPTS_FOLDER / "bare_proxy.py", port, mock_port)
    settings = f'[[upstreams]]\nname = "mock"\nbase_url = "http://127.0.0.1:{mock_port}/v1"\n'
    # Each row has a gateway of its own, since the indexing of one row's memories would slow the next row down.
    for name in ("memory off", *variants, "memory on"):
        (folder / name).mkdir()
        own_settings = "[memory]\nkeep_why_days = 0\n" if name == NO_RECALLS else ""
        with export_traces(TRACES.get(name), stack):
            gateway = stack.enter_context(load.serve_gateway(folder / name, settings + own_settings))
        is_memory = name != "memory off"
        if name == LIMITED:
            set_limits(gateway.port, folder / name)
        headers = b"" if is_memory else load.MEMORY_OFF_HEADER
        targets.append(Target(name, gateway.port, headers, is_memory, gateway.pid))
        targets[-1].note("idle MB", load.read_resident_mb(gateway.pid))
        targets[-1].note("ready s", gateway.ready_s)
    return targets


def render_figures(targets: list[Target]) -> str:
    """Returns the medians of the figures as a table, with the goals."""
    rows = [["", *(target.name for target in targets), "goals (off / on)"]]
    for name, goals in GOALS.items():
        cells = []
        for value in (target.median(name) for target in targets):
            cells.append("-" if value is None else f"{value:,.{0 if value >= 100 else 2}f}")
        rows.append([name, *cells, " / ".join(goal or "-" for goal in goals) if any(goals) else ""])
    return load.render_table(rows)


async def bench(
    sizes: Sizes, folder: Path, stack: contextlib.ExitStack, variants: Sequence[str], *, is_alone: bool
) -> int:
    """Measures, prints a table, and returns the exit code. is_alone: True: only one connection is measured."""
    mock_port = stack.enter_context(load.run_mock(folder / "log"))
    targets = start_targets(mock_port, folder, stack, variants)
    memory = targets[-1]
    assert memory.pid is not None
    if not await is_remembering(memory.port, mock_port):
        memory.errors.append("memory is not on: a fact of one conversation did not reach the next")
    await run_rounds(targets, sizes, is_alone=is_alone)
    for _ in range(0 if is_alone else sizes.rounds):
        await open_conversations(memory, sizes.openers)
    users_so_far = next(_users)
    if not is_alone:
        further_users = [
            load.ClientConversation(f"person-{number}") for number in range(sizes.users - users_so_far)
        ]
        await memory.drive(load.ConversationFlow(further_users, 2), 16)
        memory.note("MB 10k users", load.read_resident_mb(memory.pid))
    for _ in range(0 if is_alone else sizes.rounds):
        await search_each_turn(memory)
    bare = next(target for target in targets if target.name == "bare parts")
    for ratio, figure in (("added, times bare parts", "added p50 ms"), ("CPU, times bare parts", "CPU ms")):
        for target in targets:
            if target.pid and (bare_value := bare.median(figure)):
                target.note(ratio, (target.median(figure) or 0.0) / bare_value)
    print(render_figures(targets))
    if not is_alone:
        print(f"memory was measured after {max(users_so_far, sizes.users):,} users")
    if sizes.users == QUICK.users:
        print("a quick run: fewer users, requests and rounds; rough figures")
    errors = [f"{target.name}: {error}" for target in targets for error in target.errors]
    if errors:
        logged = _read_complaints(folder)[-20:]
        print(*errors[:10], "These figures are not to be trusted. The servers said:", *logged, sep="\n")
    return 1 if errors else 0


def keep_awake(stack: contextlib.ExitStack) -> None:
    """Runs an idle process on each core, with the lowest priority.

    With one connection a core sleeps between two processes. On a virtual machine its waking takes as long as the work,
    so the added times would be the host's as much as the gateway's. Only the p50 is of use then: now and then a process
    waits for a core.
    """
    for _ in os.sched_getaffinity(0):
        stack.enter_context(load.run_process([sys.executable, "-c", _IDLER], Path(os.devnull)))


def _read_complaints(folder: Path) -> list[str]:
    """Returns the lines of the servers' logs, except those of successful requests."""
    lines = chain.from_iterable(log.read_text().splitlines() for log in folder.rglob("log"))
    return [line for line in lines if '"status":200' not in line]


def main() -> int:
    """Starts the servers, measures them, and prints the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run: half a minute")
    parser.add_argument("--rounds", type=int, help="fewer or more of them (a full run has 5, in 7 minutes)")
    parser.add_argument(
        "--awake", action="store_true", help="keep the cores from sleeping between requests (Linux)"
    )
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, metavar="NAME", default=(),
        help=f"memory on also as one of {', '.join(VARIANTS).replace('%', '%%')}; without a name as each",
    )  # fmt: skip
    parser.add_argument("--alone", action="store_true", help="one connection, and nothing else")
    options = parser.parse_args()
    variants = VARIANTS if options.variants == [] else options.variants
    sizes = QUICK if options.quick else FULL
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as folder, contextlib.ExitStack() as stack:
        if options.awake:
            keep_awake(stack)
        return uvloop.run(bench(sizes, Path(folder), stack, variants, is_alone=options.alone))


if __name__ == "__main__":
    raise SystemExit(main())
