"""Measures what it costs to note why a turn recalled what it did: time of the loop's thread, and bytes.

Two gateways, of which one notes nothing (`memory.keep_why_days = 0`), answer the same conversations in turns: of users
of whom much is known, so that each turn searches. The time is that of the gateway's main thread, in which its loop
runs, a turn; the median of rounds. The bytes are those of the table with its indexes, a row. The exit code is 1 above
the goals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
from pathlib import Path

import load
import uvloop

GOAL_US, GOAL_BYTES = 20.0, 300.0
USERS, CONVERSATIONS, TURNS = 60, 4, 12
MEASURED_TURNS = 6
SETTINGS = """\
[memory]
keep_why_days = {days}

[[upstreams]]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
"""


def loop_s(pid: int) -> float:
    """Returns the processor time of a process's main thread."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


class Target:
    """One gateway, with what was measured of it, in microseconds a turn."""

    def __init__(self, gateway: load.Served) -> None:
        self.gateway = gateway
        self.talks = [load.Talk(f"person-{n}") for n in range(USERS)]
        self.loop: list[float] = []
        self.process: list[float] = []

    def play(self, turns: int) -> int:
        for talk in self.talks:
            talk.begin_anew()
        result = uvloop.run(load.drive(self.gateway.port, load.Talks(self.talks, turns), 1))
        if result.errors:
            raise SystemExit(f"errors: {result.errors[:5]}")
        return len(result.total_ms)

    def measure(self) -> None:
        pid = self.gateway.pid
        loop, process = loop_s(pid), load.cpu_s(pid)
        turns = self.play(MEASURED_TURNS)
        self.loop.append((loop_s(pid) - loop) * 1e6 / turns)
        self.process.append((load.cpu_s(pid) - process) * 1e6 / turns)


def bytes_of(database: Path) -> tuple[int, float, float]:
    """Returns how many rows there are, the bytes of a row with its part of the indexes, and those of its data."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as reader:
        (size,) = reader.execute(
            "SELECT sum(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name WHERE m.tbl_name = 'recalls'"
        ).fetchone()
        rows, data = reader.execute("SELECT count(*), avg(length(data)) FROM recalls").fetchone()
    return rows, size / rows, data


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench recalls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each is measured (15)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name, contextlib.ExitStack() as stack:
        folders = {days: Path(name) / f"days-{days}" for days in (0, 7)}
        upstream = stack.enter_context(load.mock(Path(name) / "log"))
        targets: dict[int, Target] = {}
        for days, folder in folders.items():
            folder.mkdir()
            settings = SETTINGS.format(days=days, port=upstream)
            targets[days] = Target(stack.enter_context(load.gateway(folder, settings)))
        for target in targets.values():
            for _ in range(CONVERSATIONS):
                target.play(TURNS)
        for _ in range(options.rounds):
            for target in targets.values():
                target.measure()
        rows, size, data = bytes_of(folders[7] / "mnemogate.db")
    off, on = targets[0], targets[7]
    added = statistics.median(b - a for a, b in zip(off.loop, on.loop, strict=True))
    whole = statistics.median(b - a for a, b in zip(off.process, on.process, strict=True))
    if options.json:
        print(
            json.dumps(
                {"loop_us": added, "process_us": whole, "bytes": size, "data_bytes": data, "rows": rows}
            )
        )
    else:
        print(
            f"{added:.0f} us of the loop's thread a turn (goal: < {GOAL_US:.0f}), {whole:.0f} us of the process, of "
            f"{statistics.median(off.loop):.0f} and {statistics.median(off.process):.0f}"
        )
        print(
            f"{size:.0f} bytes a turn (goal: < {GOAL_BYTES:.0f}), {data:.0f} of them data, in {rows:,} rows"
        )
    return 0 if added < GOAL_US and size < GOAL_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
