"""Measures an idle gateway: its processor time when it knows users, has done its jobs, and waits.

A hundred users have two turns each. The background model learns from the turns, and an embedder that answers nonsense
leaves jobs that wait to be tried again. Then no requests come any more, and the processor time of the process is read.
The exit code is 1 at a hundredth of a core or more.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
import time
from pathlib import Path

import uvloop

from scripts import load

GOAL = 0.01  # of a core
USERS = 100
PATIENCE_S = 60.0
SETTINGS = """\
[memory]
background_model = "small"
embedder = "vec"
idle_s = 1.0

[[upstreams]]
name = "mock"
base_url = "http://127.0.0.1:{port}/v1"
"""


def count(port: int, sample: str) -> int:
    match = re.search(rf"^{re.escape(sample)} (\d+)", load.fetch(port, "/metrics").decode(), re.M)
    return int(match[1]) if match else 0


def come_to_rest(port: int) -> None:
    """Waits until every user was learned from, and every embedding has failed once."""
    end = time.monotonic() + PATIENCE_S
    learned = 'mnemogate_job_attempts_total{kind="learn",outcome="finished"}'
    while count(port, learned) < USERS or count(port, 'mnemogate_jobs{state="retrying"}') < USERS:
        if time.monotonic() > end:
            raise SystemExit(f"the jobs are not done:\n{load.fetch(port, '/metrics').decode()}")
        time.sleep(0.2)
    time.sleep(2.0)  # for the work that follows the last job


def main() -> int:
    """Prints the CPU time of a gateway without requests. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long it is watched (30)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        upstream = stack.enter_context(load.run_mock(folder / "log"))
        gateway = stack.enter_context(load.serve_gateway(folder, SETTINGS.format(port=upstream)))
        conversations = load.ConversationFlow(
            [load.ClientConversation(f"person-{n}") for n in range(USERS)], 2
        )
        result = uvloop.run(load.drive(gateway.port, conversations, 16))
        if result.errors:
            raise SystemExit(f"errors: {result.errors[:5]}")
        come_to_rest(gateway.port)
        earlier_cpu_s, began_at = load.read_cpu_s(gateway.pid), time.monotonic()
        time.sleep(options.seconds)
        share = (load.read_cpu_s(gateway.pid) - earlier_cpu_s) / (time.monotonic() - began_at)
        waiting_jobs = count(gateway.port, 'mnemogate_jobs{state="retrying"}')
    print(
        f"{share:.2%} of a core while idle, {waiting_jobs} jobs waiting to be tried again (goal: < {GOAL:.0%})"
    )
    return 0 if share < GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
