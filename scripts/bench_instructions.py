"""Counts the processor instructions of a request (needs valgrind). Other work of the machine changes them by some 0.3%.

Counted are the instructions of the server's own process, without the kernel's, for the requests that `scripts/bench
load` measures, over four connections. With `--dialects` they are the requests of `scripts/bench dialects`, one after
the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvloop

from scripts import bench_dialects, bench_load, load

CALLGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null")
WORKERS = 4
REQUESTS, PEOPLE = 200, 60
TALKS, ROUNDS = 10, 4  # of each dialect; the least of the rounds counts
_OF_THREAD = re.compile(r"^ *Th +\d+ +([\d,]+)", re.M)


def control_callgrind(pid: int, *options: str) -> str:
    """Returns the output of `callgrind_control` for a process."""
    command = ["callgrind_control", *options, str(pid)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def count_instructions(pid: int, requests: int, millions: list[float]) -> Iterator[None]:
    """Adds the instructions of a request within the block to `millions`, in millions."""
    control_callgrind(pid, "-z")
    control_callgrind(pid, "-i", "on")
    yield
    counts = _OF_THREAD.findall(control_callgrind(pid, "-e"))
    control_callgrind(pid, "-i", "off")
    millions.append(sum(int(count.replace(",", "")) for count in counts) / requests / 1e6)


async def drive(port: int, flow: load.RequestFlow) -> None:
    result = await load.drive(port, flow, WORKERS)
    if result.errors:
        raise SystemExit(f"these figures would be of errors: {result.errors[:3]}")
    await asyncio.sleep(0.5)  # the work after a reply counts too


async def count_same_request(port: int, pid: int, headers: bytes, *, is_streamed: bool = False) -> float:
    """Returns the million instructions of `load.RepeatedRequest`, which is not remembered."""
    millions: list[float] = []
    await drive(port, load.RepeatedRequest(REQUESTS, headers=headers, is_streamed=is_streamed))
    with count_instructions(pid, REQUESTS, millions):
        await drive(port, load.RepeatedRequest(REQUESTS, headers=headers, is_streamed=is_streamed))
    return millions[0]


async def count_turn(
    port: int, pid: int, name: str, earlier: tuple[int, ...], *, is_streamed: bool = False
) -> float:
    """Returns the million instructions of a turn with memory.

    earlier: the turns of each earlier conversation of its user.
    is_streamed: True: the counted turns are streamed.
    """
    millions: list[float] = []
    conversations = [load.ClientConversation(f"{name}-{number}") for number in range(PEOPLE)]
    for turns in (*earlier, bench_load.WARM_TURNS):
        for conversation in conversations:
            conversation.begin()
        await drive(port, load.ConversationFlow(conversations, turns))
    with count_instructions(pid, PEOPLE * bench_load.MEASURED_TURNS, millions):
        await drive(
            port, load.ConversationFlow(conversations, bench_load.MEASURED_TURNS, is_streamed=is_streamed)
        )
    return millions[0]


async def bench(folder: Path, stack: contextlib.ExitStack) -> None:
    """Prints the instructions of requests and of turns, for the bare parts and for the gateway."""
    mock_port = stack.enter_context(load.run_mock(folder / "log"))
    log, port = folder / "bare", load.find_free_port()
    command = [
        *CALLGRIND,
        sys.executable,
        str(load.SCRIPTS_FOLDER / "bare_proxy.py"),
        str(port),
        str(mock_port),
    ]
    running = stack.enter_context(load.run_process(command, log))
    load.wait_ready(port, "/", running, log)
    settings = f'[[upstreams]]\nname = "mock"\nbase_url = "http://127.0.0.1:{mock_port}/v1"\n'
    settings += "[memory]\nidle_s = 86400\n"  # no learning from earlier users while others are counted
    gateway = stack.enter_context(load.serve_gateway(folder, settings, *CALLGRIND))
    earlier = (bench_load.EARLIER_TURNS,)
    many_earlier = (bench_load.LONG_TURNS,) * bench_load.CONVERSATIONS
    whole = {
        "bare parts": await count_same_request(port, running.pid, b""),
        "memory off": await count_same_request(gateway.port, gateway.pid, load.MEMORY_OFF_HEADER),
    }
    streamed = {
        "bare parts, streamed": await count_same_request(port, running.pid, b"", is_streamed=True),
        "memory off, streamed": await count_same_request(
            gateway.port, gateway.pid, load.MEMORY_OFF_HEADER, is_streamed=True
        ),
    }
    # From here on the indexing of memories is counted as well.
    whole["memory on"] = await count_turn(gateway.port, gateway.pid, "known", earlier)
    streamed["memory on, streamed"] = await count_turn(
        gateway.port, gateway.pid, "streamed", earlier, is_streamed=True
    )
    whole["memory on, more known"] = await count_turn(gateway.port, gateway.pid, "well-known", many_earlier)
    table = [["", "million instructions", "times bare parts"]]
    for rows in (whole, streamed):
        bare = next(iter(rows.values()))
        table += [[name, f"{value:.3f}", f"{value / bare:.2f}"] for name, value in rows.items()]
    print(load.render_table(table))


async def bench_dialect_requests(folder: Path, stack: contextlib.ExitStack) -> None:
    """Prints the instructions of a turn in each dialect, with memory off and on."""
    mock_port = stack.enter_context(load.run_mock(folder / "log", bench_dialects.__file__, "--mock"))
    gateway = stack.enter_context(load.serve_gateway(folder, bench_dialects.settings(mock_port), *CALLGRIND))
    requests = TALKS * (bench_dialects.WARM_TURNS + bench_dialects.MEASURED_TURNS)
    rows = [["memory", *bench_dialects.DIALECTS]]
    for memory, headers in (("off", load.MEMORY_OFF_HEADER), ("on", b"")):
        least: list[float] = []
        for dialect in bench_dialects.DIALECTS.values():
            ask = partial(bench_dialects.measure, gateway.port, dialect, is_direct=False, headers=headers)
            await ask(count=TALKS)
            millions: list[float] = []
            for _ in range(ROUNDS):
                with count_instructions(gateway.pid, requests, millions):
                    await ask(count=TALKS)
                    await asyncio.sleep(0.5)
            least.append(min(millions))
        rows.append([memory, *(f"{value:.3f}" for value in least)])
    print("million instructions of a request\n" + load.render_table(rows))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench instructions", description=__doc__)
    parser.add_argument("--dialects", action="store_true", help="of each dialect, with memory off and on")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as folder, contextlib.ExitStack() as stack:
        run = bench_dialect_requests if options.dialects else bench
        uvloop.run(run(Path(folder), stack))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
