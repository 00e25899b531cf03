"""Measures an import of ChatGPT's export: time and memory by the command, and live turns during one over REST.

`--messages` is how many messages the export has, in conversations of 32. Live turns are asked one after the other at a
steady pace, of users with a memory, before, while and after the gateway imports; their times are compared within the
run. `--large` is the size of a JSON file of which `mnemogate import --preview` is measured, above all its memory.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.load import ServedGateway, clean_environment, fetch, run_mock, serve_gateway
from tests.exports import chatgpt_conversation

MESSAGES_PER_CONVERSATION = 32
WORDS = [
    f"{a}{b}{c}" for a in ("ber", "tal", "mon", "rik") for b in ("a", "e", "io") for c in ("n", "st", "ver")
]


def make_conversations(chars: int = 300) -> Iterator[bytes]:
    """Yields conversations of ChatGPT's export as JSON, without end. chars: how many a message has, about."""
    chance = random.Random(7)
    for number in itertools.count():
        texts = [" ".join(chance.choices(WORDS, k=chars // 7)) for _ in range(MESSAGES_PER_CONVERSATION)]
        yield json.dumps(chatgpt_conversation(f"c-{number}", texts, 1.6e9 + 3_600 * number)).encode()


def write_zip(path: Path, messages: int) -> None:
    """Writes an export of about so many messages, as ChatGPT gives it out."""
    conversations = itertools.islice(make_conversations(), messages // MESSAGES_PER_CONVERSATION)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("conversations.json", "w") as file,
    ):
        for number, conversation in enumerate(conversations):
            file.write((b"," if number else b"[") + conversation)
        file.write(b"]")


def write_json(path: Path, megabytes: int) -> None:
    """Writes an export of at least this size, without compression."""
    with path.open("wb") as file:
        for number, conversation in enumerate(make_conversations()):
            file.write((b"," if number else b"[") + conversation)
            if file.tell() > megabytes << 20:
                break
        file.write(b"]")


def run_import(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs `mnemogate import` in a folder. Returns its `messages`, its `seconds`, and its largest memory in `mb`."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "import", *arguments, "--user", "alice", "--json"],
        cwd=folder, stdout=subprocess.PIPE, env=clean_environment(PYTHONPATH=str(Path.cwd())),
    )  # fmt: skip
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mnemogate import {' '.join(arguments)} failed")  # its errors stand above
    seconds = time.perf_counter() - begun
    return {"messages": json.loads(shown)["messages"], "seconds": seconds, "mb": used.ru_maxrss / 1024}


class LiveClient:
    """Turns at a steady pace, each in a new conversation of one of some users."""

    def __init__(self, port: int, pause_s: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._pause_s = pause_s
        self._count = 0

    def ask(self) -> float:
        """Asks one turn. Returns how long its reply takes, in milliseconds."""
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
        if reply.status != 200:
            raise SystemExit(f"a turn was answered with {reply.status}")
        return (time.perf_counter() - begun) * 1000

    def ask_for(self, seconds: float, work: Future[Any] | None = None) -> list[float]:
        """Asks turns for some seconds, or until some work has ended. Returns the time of each, in milliseconds."""
        times_ms, end = [], time.monotonic() + seconds
        while time.monotonic() < end and not (work is not None and work.done()):
            times_ms.append(self.ask())
            time.sleep(self._pause_s)
        return times_ms


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def import_over_rest(port: int, token: str, file: Path) -> float:
    """Imports a file through a gateway. Returns how long it takes, in seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"x-mnemogate-admin": token}
    started = time.perf_counter()
    with file.open("rb") as body:
        size = {"content-length": str(file.stat().st_size)}
        connection.request("POST", "/v1/manage/imports?user=alice", body, {**headers, **size})
        job = json.loads(connection.getresponse().read())
    while job["status"] == "running":
        time.sleep(0.5)
        connection.request("GET", f"/v1/manage/imports/{job['id']}", headers=headers)
        job = json.loads(connection.getresponse().read())
    if job["status"] != "done":
        raise RuntimeError(f"the import failed: {job}")
    return time.perf_counter() - started


def import_during_turns(gateway: ServedGateway, folder: Path, file: Path) -> dict[str, Any]:
    """Imports through the gateway while a client asks turns. Returns the times of turns without and with the import."""
    token = json.loads((folder / "mnemogate.db.admin").read_text())["token"]
    client = LiveClient(gateway.port, 0.01)
    client.ask_for(3)  # the first turns are slower
    times_before = client.ask_for(20)
    with ThreadPoolExecutor() as threads:
        importing = threads.submit(import_over_rest, gateway.port, token, file)
        during = client.ask_for(600, importing)
        seconds = importing.result()
    quiet_times = [*times_before, *client.ask_for(20)]
    return {
        "seconds": seconds, "turns": len(during),
        "p50": (statistics.median(quiet_times), statistics.median(during)),
        "p99": (percentile(quiet_times, 0.99), percentile(during, 0.99)),
    }  # fmt: skip


def measure(messages: int, preview_mb: int) -> dict[str, Any]:
    """Returns the figures of an import by the command, of a preview, if one is measured, and of one during turns."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "export.zip"
        write_zip(file, messages)
        (folder / "command").mkdir()
        results["command"] = run_import(folder / "command", str(file))
        if preview_mb:
            write_json(folder / "large.json", preview_mb)
            results["preview"] = run_import(folder / "command", str(folder / "large.json"), "--preview")
            (folder / "large.json").unlink()
        with run_mock(folder / "mock.log") as port:
            settings = f'[[upstreams]]\nname = "mock"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
            with serve_gateway(folder, settings) as gateway:
                fetch(gateway.port, "/health")
                results["during_turns"] = import_during_turns(gateway, folder, file)
    return results


def print_results(results: dict[str, Any], preview_mb: int) -> None:
    """Prints the figures of imports, of a preview and of turns during an import.

    preview_mb: the size of the previewed file.
    """
    for title, key in (("import by the command", "command"), (f"preview of {preview_mb} MB", "preview")):
        if key in results:
            figures = results[key]
            messages, seconds = figures["messages"]["found"], figures["seconds"]
            print(f"{title}: {messages:,} messages, {seconds:.0f} s, {figures['mb']:.0f} MB")
    figures = results["during_turns"]
    print(f"import during live turns: {figures['seconds']:.0f} s, {figures['turns']:,} turns meanwhile")
    for share in ("p50", "p99"):
        quiet, during = figures[share]
        print(
            f"  {share} of a turn: {quiet:.2f} ms without, {during:.2f} ms with ({during / quiet:.2f} times)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=300, help="MB of the file that is previewed; 0: none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.messages, options.large)
    if options.json:
        print(json.dumps(results))
    else:
        print_results(results, options.large)


if __name__ == "__main__":
    main()
