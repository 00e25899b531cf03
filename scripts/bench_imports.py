"""Measures an import of ChatGPT's export: time and memory by the command, and live turns during one over REST.

The export has so many messages in conversations of 32. Live turns are asked one after the other at a steady pace, of
users with a memory, before and while the gateway imports; their times are compared within the run. `--large` looks
at (`--preview`) a JSON file of so many MB, of which the memory that reading takes is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.load import ServedGateway, clean_environment, fetch, run_mock, serve_gateway
from tests.exports import chatgpt_conversation

TALK = 32
WORDS = [
    f"{a}{b}{c}" for a in ("ber", "tal", "mon", "rik") for b in ("a", "e", "io") for c in ("n", "st", "ver")
]


def conversations(messages: int, chars: int = 300) -> Iterator[str]:
    chance = random.Random(7)
    for number in range(messages // TALK):
        talk = [" ".join(chance.choices(WORDS, k=chars // 7)) for _ in range(TALK)]
        yield json.dumps(chatgpt_conversation(f"c-{number}", talk, 1.6e9 + 3_600 * number))


def write_zip(path: Path, messages: int) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("conversations.json", "w") as file,
    ):
        for number, each in enumerate(conversations(messages)):
            file.write(("[" if not number else ",").encode() + each.encode())
        file.write(b"]")


def write_json(path: Path, megabytes: int) -> None:
    with path.open("w") as file:
        for number, each in enumerate(conversations(10_000_000)):
            file.write(("[" if not number else ",") + each)
            if file.tell() > megabytes << 20:
                break
        file.write("]")


def command(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs `mnemogate import` on a file of its own. Returns the import with its seconds and its largest memory."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "import", *arguments, "--user", "alice", "--json"],
        cwd=folder, stdout=subprocess.PIPE, env=clean_environment(PYTHONPATH=str(Path.cwd())),
    )  # fmt: skip
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, answer
    shown: dict[str, Any] = json.loads(answer)
    return {**shown, "seconds": time.perf_counter() - begun, "mb": used.ru_maxrss / 1024}


class Live:
    """Turns at a steady pace, each in a new conversation of one of some users."""

    def __init__(self, port: int, pause_s: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._pause_s = pause_s
        self._count = 0

    def ask(self) -> float:
        self._count += 1
        user = f"user-{self._count % 50}"
        text = f"Turn {self._count}: {WORDS[self._count % len(WORDS)]}?"
        body = {"model": "m", "user": user, "messages": [{"role": "user", "content": text}]}
        begun = time.perf_counter()
        self._connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        reply = self._connection.getresponse()
        reply.read()
        assert reply.status == 200
        return (time.perf_counter() - begun) * 1000

    def until(self, stop: threading.Event | None, seconds: float) -> list[float]:
        times, end = [], time.monotonic() + seconds
        while time.monotonic() < end and not (stop is not None and stop.is_set()):
            times.append(self.ask())
            time.sleep(self._pause_s)
        return times


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def import_during_turns(gateway: ServedGateway, folder: Path, file: Path) -> dict[str, Any]:
    """Imports through the gateway while a client asks turns. Returns the times of turns without and with the import."""
    token = json.loads((folder / "mnemogate.db.admin").read_text())["token"]
    headers = {"x-mnemogate-admin": token}
    live = Live(gateway.port, 0.01)
    live.until(None, 3)
    times_before = live.until(None, 20)
    done, figures = threading.Event(), {}

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port)
        started = time.perf_counter()
        with file.open("rb") as body:
            size = {"content-length": str(file.stat().st_size)}
            connection.request("POST", "/v1/manage/imports?user=alice", body, {**headers, **size})
            job = json.loads(connection.getresponse().read())
        while job["status"] == "running":
            time.sleep(0.5)
            connection.request("GET", f"/v1/manage/imports/{job['id']}", headers=headers)
            job = json.loads(connection.getresponse().read())
        assert job["status"] == "done", job
        figures["seconds"] = time.perf_counter() - started
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    during = live.until(done, 600)
    thread.join()
    times_after = live.until(None, 20)
    quiet_times = [*times_before, *times_after]
    return {
        "seconds": figures["seconds"], "turns": len(during),
        "p50": (statistics.median(quiet_times), statistics.median(during)),
        "p99": (percentile(quiet_times, 0.99), percentile(during, 0.99)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=300, help="MB of the file that is looked at; 0: none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "export.zip"
        write_zip(file, options.messages)
        (folder / "alone").mkdir()
        alone = command(folder / "alone", str(file))
        results["command"] = {k: alone[k] for k in ("seconds", "mb", "messages")}
        if options.large:
            write_json(folder / "large.json", options.large)
            large = command(folder / "alone", str(folder / "large.json"), "--preview")
            results["large"] = {k: large[k] for k in ("seconds", "mb", "messages")}
            (folder / "large.json").unlink()
        with run_mock(folder / "mock.log") as port:
            settings = f'[[upstreams]]\nname = "mock"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
            with serve_gateway(folder, settings) as gateway:
                fetch(gateway.port, "/health")
                results["beside"] = import_during_turns(gateway, folder, file)
    if options.json:
        print(json.dumps(results))
        return
    for title, key in (("import by the command", "command"), (f"preview of {options.large} MB", "large")):
        if key in results:
            figures = results[key]
            messages, seconds = figures["messages"]["found"], figures["seconds"]
            print(f"{title}: {messages:,} messages, {seconds:.0f} s, {figures['mb']:.0f} MB")
    figures = results["beside"]
    print(f"import beside live turns: {figures['seconds']:.0f} s, {figures['turns']:,} turns meanwhile")
    for percentile_name in ("p50", "p99"):
        quiet, during = figures[percentile_name]
        print(
            f"  {percentile_name} of a turn: {quiet:.2f} ms without, {during:.2f} ms with ({during / quiet:.2f} times)"
        )


if __name__ == "__main__":
    main()
