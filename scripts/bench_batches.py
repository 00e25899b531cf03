"""Measures a batch over many agents: processor time and memory of the gateway, `scripts/bench batches`.

The gateway has a process of its own; a strict double of OpenAI's batch API runs in this process. Each agent has two
rounds of a memory tool and a last reply: three cycles, each a batch of the provider's. Making the agents is not
counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from scripts import load
from tests.agents.batches.batch_world import PATH, make_append_call, read_question, read_results
from tests.doubles.batches import OpenAIBatchServer, Outcome
from tests.gateway.process import Process, serving

SETTINGS = """\
[server]
access_log = false

[batch]
poll_s = 0.2

[[upstreams]]
name = "far"
base_url = "{base_url}"
api_key = "sk-own"
batches = "openai"
context_window = 16000
"""
HISTORY = 3  # live-like exchanges before, as initial messages


def answer(custom_id: str, body: dict[str, Any], cycles: int = 3) -> Outcome:
    notes = len(read_results(body))
    if notes == cycles - 1:
        return Outcome(text=f"{read_question(body)}: it is done. " + "word " * 40)
    return Outcome(calls=(make_append_call(f"Note {notes} of {read_question(body)}."),))


def ask(gateway: Process, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else orjson.dumps(body)
    reply = gateway.ask(method, path, data, {"content-type": "application/json"})
    assert reply.status == 200, reply.body[:500]
    return orjson.loads(reply.body)


def peak_mb(process: Process) -> float:
    """Returns the most memory that a process has had, in MB."""
    lines = Path(f"/proc/{process.child.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Performs a batch of agents with long conversations, and prints its time and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    count = parser.parse_args().agents
    history = [
        {"role": role, "content": f"{role} {n}: " + "some words of an earlier talk " * 8}
        for n in range(HISTORY)
        for role in ("user", "assistant")
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        OpenAIBatchServer(answer) as server,
        serving(Path(folder), settings=SETTINGS.format(base_url=server.base_url), is_new=True) as gateway,
    ):
        agents = []
        for n in range(count):
            body = {
                "name": f"a{n}", "model": "far/m", "tools": ["core_memory_append"],
                "memory_blocks": [{"label": "human", "value": "Notes:"}], "initial_message_sequence": history,
            }  # fmt: skip
            agents.append(ask(gateway, "POST", "/v1/agents/", body)["id"])
        pid = gateway.child.pid
        before_cpu, before_mb, started = load.read_cpu_s(pid), peak_mb(gateway), time.perf_counter()
        requests = [{"agent_id": agent, "input": f"Task {n}"} for n, agent in enumerate(agents)]
        batch = ask(gateway, "POST", PATH, {"requests": requests})
        accepted = load.read_cpu_s(pid) - before_cpu
        while batch["status"] in ("created", "running"):
            time.sleep(0.5)
            batch = ask(gateway, "GET", f"{PATH}/{batch['id']}")
        used, took = load.read_cpu_s(pid) - before_cpu, time.perf_counter() - started
        assert batch["counts"]["completed"] == count, batch
        print(f"agents                        {count}")
        print(f"cycles                        {len(server.batches)}")
        print(
            f"processor time                {used:.1f} s ({1000 * used / count / 3:.1f} ms an item and cycle)"
        )
        print(f"of it, to accept the batch    {accepted:.2f} s")
        print(f"peak memory of the gateway    {peak_mb(gateway):.0f} MB ({before_mb:.0f} MB before)")
        print(f"time, on a machine as it is   {took:.0f} s")


if __name__ == "__main__":
    main()
