"""Gateways that are killed and come back, over one database, and an upstream that sees what each of them sends.

with World(tmp_path, gateways=2, url=postgres_url) as world:
    said = world.say("ann", [{"role": "user", "content": "ann-1 begins"}])
    world.gateways[0].kill()
"""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tests.agents.kills import Webhook
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, say
from tests.gateway.forked import ROOT, ForkedProcess
from tests.gateway.process import Process, command, serving, started
from tests.server import RawClient, RawReply

CHAT = "/v1/chat/completions"
# A lease of a gateway that was killed runs out meanwhile.
PATIENCE_S = 90.0
# What is run, unless a test has another one.
MODULE = "tests.gateway.patient"
# A word that somebody says once: the speaker's mark, and a number of its own.
WORD = re.compile(r"\b(q[a-z]+x)(\d+)z\b")
SETTINGS = """
[[profiles]]
name = "noter"
model = "m"
memory_tools = true
[[profiles.blocks]]
label = "human"
limit = 1000000
"""


class Lost(Exception):
    """The gateway went away before the end of its reply: nobody knows what it has stored."""


class Absent(Lost):
    """The gateway was not there to be asked."""


class Refused(Lost):
    """The gateway has no memory now, and does not answer without it."""


@dataclass
class Said:
    """A reply whose end was seen. unkept: why the gateway says that the turn may not be on disk; empty: it is."""

    text: str
    headers: dict[str, str]
    unkept: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the data are: in a SQLite file of one gateway, or at the URL of a server that many share."""

    file: Path
    url: str | None = None
    # Held while a gateway starts or a command runs.
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def until_no_other_starts(self) -> AbstractContextManager[object]:
        """Lets one gateway or command at a time start over a SQLite file.

        A command owns the file while no gateway serves it, and a gateway that starts meanwhile is refused.
        """
        return nullcontext() if self.url else self._starting

    @property
    def arguments(self) -> tuple[str, ...]:
        return () if self.url else ("--db", str(self.file))

    @property
    def environ(self) -> dict[str, str]:
        return {"MNEMOGATE_DATABASE_URL": self.url} if self.url else {}


class Gateway:
    """A process that serves; after a kill `start` makes it again, on another port."""

    def __init__(
        self, folder: Path, place: Place, settings: str, *arguments: str, module: str = MODULE
    ) -> None:
        folder.mkdir()
        self.folder, self.place, self.module = folder, place, module
        self.settings, self.arguments = settings, arguments
        # The checkout that serves from the next start on.
        self.root = ROOT
        self.process: Process | None = None
        self._life = ExitStack()

    def start(self) -> None:
        self._life = ExitStack()
        with self.place.until_no_other_starts():
            self.process = self._life.enter_context(
                serving(
                    self.folder,
                    *self.place.arguments,
                    *self.arguments,
                    settings=self.settings,
                    module=self.module,
                    environ=self.place.environ,
                    root=self.root,
                )
            )

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
        self._life.close()

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> RawReply:
        """Asks for a whole reply. Raises: Lost."""
        try:
            with self.connect() as client:
                data = None if body is None else orjson.dumps(body)
                client.request(method, path, data, {"content-type": "application/json", **(headers or {})})
                return client.read_reply()
        except (OSError, EOFError) as error:
            raise Lost from error

    def connect(self) -> RawClient:
        """Raises: Absent."""
        process = self.process
        if process is None:
            raise Absent
        try:
            client = process.connect()
        except OSError as error:
            raise Absent from error
        client.socket.settimeout(PATIENCE_S)
        return client

    def chat(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Said:
        """Asks for a chat completion. Raises: Lost."""
        try:
            with self.connect() as client:
                client.request("POST", CHAT, orjson.dumps(body), headers)
                head = client.read_head()
                if head.status == 503:
                    raise Refused(str(client.read_until(b"}")))
                assert head.status == 200, f"{head} {client.read_until(b'}')!r}"
                whole = _streamed(client) if body.get("stream") else _whole(client, head)
        except (OSError, EOFError) as error:
            raise Lost from error
        text, is_durable = whole
        memory = head.headers["x-mnemogate-memory"]
        is_durable = is_durable and "x-mnemogate-durable" not in head.headers
        unkept = f"memory {memory}" if memory != "on" else "" if is_durable else "not durable"
        return Said(text, head.headers, unkept)


def _whole(client: RawClient, head: RawReply) -> tuple[str, bool]:
    reply = orjson.loads(client.read_exactly(int(head.headers["content-length"])))
    return reply["choices"][0]["message"]["content"], True


def _streamed(client: RawClient) -> tuple[str, bool]:
    said, body = "", b""
    while chunk := client.read_chunk():
        body += chunk
    for event in body.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in orjson.loads(event[6:])["choices"]:
                said += choice["delta"].get("content") or ""
    assert b"\ndata: [DONE]\n\n" in body, body[-200:]
    return said, b": mnemogate not durable" not in body


class Worker:
    """A process that performs background jobs."""

    def __init__(self, folder: Path, place: Place, settings: str, module: str = MODULE) -> None:
        folder.mkdir()
        (folder / "mnemogate.toml").write_text(settings)
        self.folder, self.place, self.module = folder, place, module
        self.root = ROOT
        self._child: subprocess.Popen[str] | ForkedProcess | None = None

    def start(self) -> None:
        log = self.folder / "worker.log"
        self._child = started(self.module, ["worker"], self.folder, self.place.environ, log, root=self.root)

    def kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with child:
                child.kill()


@dataclass
class Pair:
    """Two requests that are answered together, so that neither has ended before the other began."""

    words: set[str]
    gate: Gate = field(default_factory=Gate)
    came: set[str] = field(default_factory=set)


class World:
    """A database, gateways over it, and an upstream. With SQLite there is one gateway, since it owns its file.

    module: what is run, as gateways and as a worker. root: the checkout that serves at first. leaks: what the upstream
    was shown and must not be, in words.
    """

    def __init__(
        self,
        folder: Path,
        *,
        gateways: int,
        url: str | None = None,
        seed: int = 0,
        module: str = MODULE,
        root: Path = ROOT,
    ) -> None:
        self.place = Place(folder / "m.db", url)
        self.folder = folder
        self.dice = random.Random(seed)
        self.upstream = StrictUpstream(script=self._answer)
        self.webhook = Webhook()
        self.count = gateways
        self.module, self.root = module, root
        self.gateways: list[Gateway] = []
        self.workers: list[Worker] = []
        self.leaks: list[str] = []
        self.unkept: Counter[str] = Counter()
        self._gone: set[str] = set()
        self._pairs: dict[str, Pair] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.upstream.start()
        settings = f'{SETTINGS}\n[tools]\nprivate_hosts = ["{self.webhook.url}"]\n'
        for number in range(self.count):
            self.gateways.append(
                Gateway(
                    self.folder / f"gateway{number}",
                    self.place,
                    settings,
                    "--upstream",
                    self.upstream.base_url,
                    module=self.module,
                )
            )
        if self.place.url:
            self.workers.append(Worker(self.folder / "worker", self.place, settings, self.module))
        for each in self.processes:
            each.root = self.root
            each.start()
        return self

    @property
    def processes(self) -> list[Gateway | Worker]:
        return [*self.gateways, *self.workers]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self.processes:
            each.kill()
        self.upstream.stop()
        self.webhook.server.shutdown()
        self.webhook.server.server_close()

    # -- what the upstream says and sees

    def _answer(self, seen: Seen) -> Reply:
        self.upstream.seen.clear()  # hundreds of thousands come
        self._look_for_leaks(seen.body.decode())
        last = seen.messages[-1]
        text = str(last["content"]).rpartition("\n\n")[2]
        if last["role"] == "user" and " ring " in text:
            name, _, bells = text.partition(" ring ")
            return call_tools(
                *(Call("ring", {"bell": bell}, f"{name}-{bell}") for bell in bells.split()), text="I ring."
            )
        if last["role"] == "user" and " note " in text and "memory_insert" in seen.tool_names:
            word = WORD.search(text)
            assert word is not None, text
            return call_tools(Call("memory_insert", {"label": "human", "new_string": word[0]}), text=None)
        if last["role"] == "tool":
            return say("It is done.")
        if text.startswith("What is kept in "):
            return say("Seen: " + " ".join(word[0] for word in WORD.finditer(seen.body.decode())))
        reply = f"Heard {text}."
        found = WORD.search(text)
        pair = None if found is None else self._pairs.get(found[0])
        if pair is None or found is None:
            return say(reply, tokens=re.findall(r"\S+\s*", reply))
        pair.came.add(found[0])
        if pair.came == pair.words:
            pair.gate.open()
        return say(reply, hold_before_headers=pair.gate)

    def _look_for_leaks(self, body: str) -> None:
        found = list(WORD.finditer(body))
        if len({word[1] for word in found}) > 1:
            self.leaks.append(f"of several people: {body}")
        if not self._gone.isdisjoint(word[0] for word in found):
            self.leaks.append(f"forgotten: {body}")

    def held_together(self, *words: str) -> Pair:
        pair = Pair(set(words))
        for word in words:
            self._pairs[word] = pair
        return pair

    def let_go(self, pair: Pair) -> None:
        pair.gate.open()
        for word in pair.words:
            self._pairs.pop(word, None)

    # -- what people do

    def choose(self, number: int) -> Gateway:
        """Chooses the gateway of a turn: they take turns."""
        return self.gateways[number % len(self.gateways)]

    def forget(self, *arguments: str) -> None:
        """Forgets by the command line."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with self.place.until_no_other_starts():
                done = command(
                    "memory", "forget", "--yes", *self.place.arguments, *arguments,
                    where=self.gateways[0].folder, environ=self.place.environ,
                )  # fmt: skip
            # Of turns that all came while memory was away nothing is there to be forgotten, and a command that lost its
            # connection may have done its work.
            is_gone = "Nothing is remembered for" in done.stderr or "There is no conversation" in done.stderr
            if done.returncode == 0 or is_gone:
                return
            # The gateway was killed while the command waited for its answer.
            time.sleep(0.1)
        raise AssertionError(f"it was not forgotten: {done.stderr}")

    def is_forgotten(self, words: Collection[str]) -> None:
        """From now on nobody may be shown these words."""
        with self._lock:
            self._gone |= set(words)

    @property
    def forgotten(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._gone)
