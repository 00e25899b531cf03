"""A gateway that is killed while its agents work, an upstream and a webhook that can be held, and what is left then.

    with Killed(tmp_path) as world:
        with world.serve() as gateway:
            ... gateway.kill()
        with world.serve() as gateway:
            ...

`python -m tests.agents.kills 200` kills it 200 times at chance moments (scripts/torture).
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from letta_client import Letta

from tests.agents.letta import spoken
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, say
from tests.gateway.process import Process, serving
from tests.patience import PATIENCE_S
from tests.stored import shown

SCHEMA = {
    "name": "ring",
    "parameters": {"type": "object", "properties": {"bell": {"type": "string"}}, "required": ["bell"]},
}


class Webhook:
    """A server that notes each call by its key, and holds the calls of some bells until they are let go."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()  # by idempotency key
        self.bells: list[str] = []
        self.held: set[str] = set()
        self.came = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
                bell = body["arguments"]["bell"]
                outer.calls[self.headers["idempotency-key"]] += 1
                outer.bells.append(bell)
                outer.came.set()
                if bell in outer.held:
                    threading.Event().wait(PATIENCE_S)
                    return
                said = f"{bell} rang".encode()
                self.send_response(200)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                with suppress(OSError):  # the gateway may be dead
                    self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@dataclass
class Serving:
    """One process, and the client that talks to it."""

    process: Process
    letta: Letta

    def kill(self) -> None:
        self.process.kill()

    def ended(self, run_id: str) -> Any:
        return wait_for(
            lambda: (
                run
                if (run := self.letta.runs.retrieve(run_id)).status not in ("created", "running")
                else None
            )
        )

    def words(self, agent_id: str) -> list[str]:
        found = []
        for m in spoken(self.letta.agents.messages.list(agent_id, order="asc")):
            kind = m.message_type.removesuffix("_message")
            text = getattr(m, "content", None) or getattr(m, "tool_return", None) or ""
            found.append(f"{kind}: {text}" if text else kind)
        return found

    def events(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        body = orjson.dumps({"starting_after": after, "include_pings": False})
        headers = {"content-type": "application/json"}
        reply = self.process.ask("POST", f"/v1/runs/{run_id}/stream", body, headers)
        assert reply.status == 200, reply.body
        lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: ")]
        return [orjson.loads(line) for line in lines if line != b"[DONE]"]


@dataclass
class Killed:
    """A folder with a gateway's database, and the others that it speaks to. Held until `go`."""

    folder: Path
    hold: Gate = field(default_factory=Gate)
    held: Callable[[Seen], Reply | None] = lambda seen: None
    webhook: Webhook = field(default_factory=Webhook)
    tools: str = ""  # further settings of tools
    upstream: StrictUpstream = field(init=False)

    def __post_init__(self) -> None:
        self.upstream = StrictUpstream(script=self.answer)

    def __enter__(self) -> Self:
        self.upstream.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hold.open()
        self.upstream.__exit__(kind, error, trace)
        self.webhook.server.shutdown()
        self.webhook.server.server_close()

    def answer(self, seen: Seen) -> Reply:
        found = self.held(seen)
        return found if found is not None else self.said(seen)

    def said(self, seen: Seen) -> Reply:
        """Rings the bells that the user names ("ring a b"); with their results, or without any, it says so."""
        last = seen.messages[-1]
        if last["role"] == "user" and " ring " in last["content"]:
            name, _, bells = last["content"].rpartition("\n\n")[2].partition(" ring ")
            calls = [Call("ring", {"bell": bell}, f"{name}-{bell}") for bell in bells.split()]
            return call_tools(*calls, text="I ring.")
        if last["role"] == "tool":
            return say("All rang.")
        text = str(last["content"]).rpartition("\n\n")[2]
        return say(f"Heard {text}.", tokens=["Heard ", text, "."])

    def go(self) -> None:
        """Holds nothing any more."""
        self.held = lambda seen: None
        self.webhook.held.clear()

    @contextmanager
    def serve(self, kill: str = "") -> Iterator[Serving]:
        """Serves. kill: where the process is to kill itself (kill_process)."""
        settings = f'[tools]\nprivate_hosts = ["{self.webhook.url}"]\n{self.tools}'
        arguments = ("--db", str(self.folder / "m.db"), "--upstream", self.upstream.base_url)
        started: dict[str, Any] = {}
        if kill:
            started = {"module": "tests.agents.kill_process", "environ": {"KILL": kill}}
        with serving(self.folder, *arguments, settings=settings, **started) as process:
            client = Letta(
                base_url=f"http://127.0.0.1:{process.port}", api_key="sk", max_retries=0, timeout=PATIENCE_S
            )
            with client:
                yield Serving(process, client)

    def agent(self, gateway: Serving) -> str:
        tool = gateway.letta.tools.upsert(
            source_code=f"{self.webhook.url}/ring", source_type="webhook", json_schema=SCHEMA
        )
        assert tool.id is not None
        made = gateway.letta.agents.create(
            model="openai/m", tool_ids=[tool.id], memory_blocks=[{"label": "human", "value": "Ann"}]
        )
        return made.id

    def query(self, sql: str) -> list[Any]:
        return shown(self.folder / "m.db", sql)


def wait_for(look: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


# -- chance moments


def torture(folder: Path, kills: int, seed: int, *, most_s: float = 1.2, say_so: bool = False) -> None:
    """Kills a gateway so often while runs and live sends go on, and checks that nothing is lost, doubled or disordered.

    A run that was killed three times while it was performed may have failed; its message stands all the same.
    """
    dice = random.Random(seed)
    sent: dict[
        str, list[tuple[str, str | None]]
    ] = {}  # agent -> (message, run); None: nobody knows if it came
    with Killed(folder) as world:
        with world.serve() as gateway:
            names = [world.agent(gateway) for _ in range(3)]
        for n in range(kills):
            with world.serve() as gateway:
                until = time.monotonic() + dice.random() * most_s
                talking = [
                    threading.Thread(
                        target=_talk, args=(gateway, agent, sent.setdefault(agent, []), n, until)
                    )
                    for agent in names
                ]
                for thread in talking:
                    thread.start()
                time.sleep(max(0.0, until - time.monotonic()))
                gateway.kill()
                for thread in talking:
                    thread.join()
            if say_so and not n % 10:
                print(f"{n + 1} kills, {sum(map(len, sent.values()))} messages", flush=True)
        with world.serve() as gateway:
            for agent in names:
                _check(gateway, agent, sent.get(agent, []))
            _check_sends_again(gateway, names[0], sent.get(names[0], []))
        twice = {key: times for key, times in world.webhook.calls.items() if times > 1}
        assert not twice, f"a foreign call was made twice: {twice}"
        assert world.query("SELECT count(*) FROM jobs WHERE state <> 'dead'") == [(0,)]


def _talk(
    gateway: Serving, agent: str, sent: list[tuple[str, str | None]], round_: int, until: float
) -> None:
    number = 0
    while time.monotonic() < until:
        number += 1
        text = f"m{round_}.{number}"
        if number % 2:
            text = f"{text} ring {text}a {text}b"
        message: Any = {"role": "user", "content": text, "otid": text}
        try:
            if number % 3:
                run = gateway.letta.agents.messages.create_async(agent, messages=[message])
                sent.append((text, run.id))
            else:
                gateway.letta.agents.messages.create(agent, messages=[message])
                sent.append((text, "live"))
        except Exception:
            # It was killed meanwhile: perhaps the message came, perhaps not.
            sent.append((text, None))
            return


def _check(gateway: Serving, agent: str, sent: list[tuple[str, str | None]]) -> None:
    for text, run_id in sent:
        if run_id not in (None, "live"):
            run = gateway.ended(str(run_id))
            assert run.status in ("completed", "failed"), f"{text}: {run.status}"
    said = [
        m.content
        for m in spoken(gateway.letta.agents.messages.list(agent, order="asc", limit=1000))
        if m.message_type == "user_message"
    ]
    counts = Counter(map(str, said))
    assert max(counts.values(), default=1) == 1, f"a message stands twice: {counts.most_common(3)}"
    kept = [text for text, run_id in sent if run_id is not None]
    assert set(kept) <= set(counts), f"a message is lost: {set(kept) - set(counts)}"
    stands = [text for text in said if text in set(kept)]
    assert stands == kept, f"the order is lost: {stands} is not {kept}"


def _check_sends_again(gateway: Serving, agent: str, sent: list[tuple[str, str | None]]) -> None:
    """The last message, if it perhaps came, is sent again, and stands once.

    One that others follow is stored again where these were answered and it was not (`needs_messages` in resend.py).
    """
    for text in [text for text, run_id in sent[-1:] if run_id is None]:
        message: Any = {"role": "user", "content": text, "otid": text}
        gateway.letta.agents.messages.create(agent, messages=[message])
        page = spoken(gateway.letta.agents.messages.list(agent, order="desc", limit=100))
        found = [m for m in page if m.message_type == "user_message" and m.content == text]
        assert len(found) == 1, f"{text} stands {len(found)} times"


if __name__ == "__main__":
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    begun = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {begun}")
    with tempfile.TemporaryDirectory() as place:
        torture(Path(place), times, begun, say_so=True)
    print(f"{times} kills: nothing was lost, doubled or disordered")
