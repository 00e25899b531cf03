"""Gateways over one database that are killed and started again, and an upstream that checks what each of them sends.

with Deployment(tmp_path, gateways=2, url=postgres_url) as deployment:
    gateway = deployment.gateways[0]
    reply = gateway.chat({"model": "m", "user": "ann", "messages": [{"role": "user", "content": "Hello."}]}, {})
    gateway.kill()
    gateway.start()
"""

from __future__ import annotations

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

from tests.doubles.bell_webhook import BellWebhook
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.forked import ROOT, ForkedProcess
from tests.gateway.process import Process, command, serving, start_process
from tests.server import RawClient, RawReply

CHAT = "/v1/chat/completions"
# Longer than the lease of a gateway that was killed.
PATIENCE_S = 90.0
# The module that a process runs by default.
MODULE = "tests.gateway.patient"
# A marker word, which one user sends once: the mark of the user and a number.
WORD = re.compile(r"\b(q[a-z]+x)(\d+)z\b")
# The opening of a question whose reply lists the marker words of the whole request.
RECALL_QUESTION = "What is kept in "
SETTINGS = """
[[profiles]]
name = "noter"
model = "m"
memory_tools = true
[[profiles.blocks]]
label = "human"
limit = 1000000
"""


class NoReply(Exception):
    """The connection ended before the reply did: the gateway may have stored the turn or not."""


class NotConnected(NoReply):
    """The gateway does not run, so it has not got the request."""


class MemoryUnavailable(NoReply):
    """The gateway refuses the request with status 503, because its memory is unavailable."""


@dataclass
class ChatReply:
    """A whole reply to a chat completion."""

    text: str
    # Names in lower case.
    headers: dict[str, str]
    # Why the turn may not be stored, as the gateway reports it. Empty: it is stored.
    unstored_reason: str


@dataclass(frozen=True, slots=True)
class Database:
    """The database of a deployment: a SQLite file of one gateway, or a PostgreSQL of several gateways."""

    # The SQLite file, if there is no URL.
    file: Path
    url: str | None = None
    # Held while a gateway starts or a command runs.
    _start_lock: threading.Lock = field(default_factory=threading.Lock)

    def lock_start(self) -> AbstractContextManager[object]:
        """Returns a context in which one gateway or command at a time starts over a SQLite file.

        A command owns the file while no gateway serves it, and a gateway that starts meanwhile is refused.
        """
        return nullcontext() if self.url else self._start_lock

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments by which a command of `mnemogate` finds the database."""
        return () if self.url else ("--db", str(self.file))

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables by which a process finds the database."""
        return {"MNEMOGATE_DATABASE_URL": self.url} if self.url else {}


class Gateway:
    """A gateway in a process of its own. After a kill `start` makes another process, which has another port."""

    def __init__(
        self, folder: Path, database: Database, settings: str, *arguments: str, module: str = MODULE
    ) -> None:
        """Makes a gateway that does not run yet.

        folder: the working directory, which must not exist.
        settings: the text of mnemogate.toml.
        arguments: further arguments of `mnemogate serve`.
        module: the module that the process runs.
        """
        folder.mkdir()
        self.folder = folder
        self.database = database
        self.module = module
        self.settings = settings
        self.arguments = arguments
        # The checkout that the next `start` runs.
        self.root = ROOT
        self.process: Process | None = None
        self._process_stack = ExitStack()

    def start(self) -> None:
        self._process_stack = ExitStack()
        with self.database.lock_start():
            self.process = self._process_stack.enter_context(
                serving(
                    self.folder,
                    *self.database.arguments,
                    *self.arguments,
                    settings=self.settings,
                    module=self.module,
                    environ=self.database.environ,
                    root=self.root,
                )
            )

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
        self._process_stack.close()

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> RawReply:
        """Sends a request, and returns its whole reply.

        body: a value that is sent as JSON. None: no body.
        Raises: NoReply.
        """
        try:
            with self.connect() as client:
                data = None if body is None else orjson.dumps(body)
                client.request(method, path, data, {"content-type": "application/json", **(headers or {})})
                return client.read_reply()
        except (OSError, EOFError) as error:
            raise NoReply from error

    def connect(self) -> RawClient:
        """Opens a connection. Raises: NotConnected."""
        process = self.process
        if process is None:
            raise NotConnected
        try:
            client = process.connect()
        except OSError as error:
            raise NotConnected from error
        client.socket.settimeout(PATIENCE_S)
        return client

    def chat(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> ChatReply:
        """Sends a chat completion, streamed if the body asks for it, and returns its whole reply. Raises: NoReply."""
        try:
            with self.connect() as client:
                client.request("POST", CHAT, orjson.dumps(body), headers)
                head = client.read_head()
                if head.status == 503:
                    raise MemoryUnavailable(str(client.read_until(b"}")))
                assert head.status == 200, f"{head} {client.read_until(b'}')!r}"
                if body.get("stream"):
                    text, is_durable = read_stream(client)
                else:
                    reply = orjson.loads(client.read_exactly(int(head.headers["content-length"])))
                    text = reply["choices"][0]["message"]["content"]
                    is_durable = "x-mnemogate-durable" not in head.headers
        except (OSError, EOFError) as error:
            raise NoReply from error
        memory = head.headers["x-mnemogate-memory"]
        unstored_reason = f"memory {memory}" if memory != "on" else "" if is_durable else "not durable"
        return ChatReply(text, head.headers, unstored_reason)


def read_stream(client: RawClient) -> tuple[str, bool]:
    """Reads a stream of chunks to its end. Returns the text, and whether the turn is on disk."""
    body = b""
    while chunk := client.read_chunk():
        body += chunk
    text = ""
    for event in body.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in orjson.loads(event[6:])["choices"]:
                text += choice["delta"].get("content") or ""
    assert b"\ndata: [DONE]\n\n" in body, body[-200:]
    return text, b": mnemogate not durable" not in body


class Worker:
    """A process that performs background jobs (`mnemogate worker`)."""

    def __init__(self, folder: Path, database: Database, settings: str, module: str = MODULE) -> None:
        """Makes a worker that does not run yet. The parameters are those of `Gateway`."""
        folder.mkdir()
        (folder / "mnemogate.toml").write_text(settings)
        self.folder = folder
        self.database = database
        self.module = module
        # The checkout that the next `start` runs.
        self.root = ROOT
        self._process: subprocess.Popen[str] | ForkedProcess | None = None

    def start(self) -> None:
        log = self.folder / "worker.log"
        self._process = start_process(
            self.module, ["worker"], self.folder, self.database.environ, log, root=self.root
        )

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()


@dataclass
class HeldPair:
    """Two requests whose replies are held until both have reached the upstream, so that they overlap."""

    # The marker word of each request.
    words: set[str]
    gate: Gate = field(default_factory=Gate)
    # The words of the requests that have reached the upstream.
    arrived: set[str] = field(default_factory=set)


class Deployment:
    """A database, gateways and a worker over it, an upstream and a webhook.

    leaks: requests that the upstream has got and must not get, each with its reason.
    unstored_turns: reason -> the number of turns that the gateways reported as not stored for it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        gateways: int,
        url: str | None = None,
        module: str = MODULE,
        root: Path = ROOT,
    ) -> None:
        """Makes a deployment that does not run yet.

        folder: the folder of its processes, and of the SQLite file.
        gateways: the number of gateways; 1 over SQLite, since a gateway owns its file.
        url: the URL of a PostgreSQL database. None: a SQLite file, and no worker.
        module: the module that the gateways and the worker run.
        root: the checkout that they run at first.
        """
        self.database = Database(folder / "m.db", url)
        self.folder = folder
        self.upstream = StrictUpstream(script=self._answer)
        self.webhook = BellWebhook()
        self.leaks: list[str] = []
        self.unstored_turns: Counter[str] = Counter()
        self._forgotten_words: set[str] = set()
        self._pairs: dict[str, HeldPair] = {}
        self._lock = threading.Lock()
        self.gateways: list[Gateway] = []
        self.workers: list[Worker] = []
        self._gateway_count = gateways
        self._module = module
        self._root = root

    def __enter__(self) -> Self:
        self.upstream.start()
        self._make_processes()
        for process in self.processes:
            process.start()
        return self

    def _make_processes(self) -> None:
        settings = f'{SETTINGS}\n[tools]\nprivate_hosts = ["{self.webhook.url}"]\n'
        for number in range(self._gateway_count):
            folder = self.folder / f"gateway{number}"
            upstream = ("--upstream", self.upstream.base_url)
            self.gateways.append(Gateway(folder, self.database, settings, *upstream, module=self._module))
        if self.database.url:
            self.workers.append(Worker(self.folder / "worker", self.database, settings, self._module))
        for process in self.processes:
            process.root = self._root

    @property
    def processes(self) -> list[Gateway | Worker]:
        return [*self.gateways, *self.workers]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        self.upstream.stop()
        self.webhook.close()

    # -- the upstream

    def _answer(self, request: UpstreamRequest) -> Reply:
        self.upstream.requests.clear()  # a run makes hundreds of thousands of requests
        self._record_leaks(request.body.decode())
        last = request.messages[-1]
        text = str(last["content"]).rpartition("\n\n")[2]
        if last["role"] == "user" and " ring " in text:
            name, _, bells = text.partition(" ring ")
            return call_tools(
                *(Call("ring", {"bell": bell}, f"{name}-{bell}") for bell in bells.split()), text="I ring."
            )
        if last["role"] == "user" and " note " in text and "memory_insert" in request.tool_names:
            word = WORD.search(text)
            assert word is not None, text
            return call_tools(Call("memory_insert", {"label": "human", "new_string": word[0]}), text=None)
        if last["role"] == "tool":
            return say("It is done.")
        if text.startswith(RECALL_QUESTION):
            return say("Seen: " + " ".join(word[0] for word in WORD.finditer(request.body.decode())))
        reply = f"Heard {text}."
        found = WORD.search(text)
        pair = None if found is None else self._pairs.get(found[0])
        if pair is None or found is None:
            return say(reply, tokens=re.findall(r"\S+\s*", reply))
        pair.arrived.add(found[0])
        if pair.arrived == pair.words:
            pair.gate.open()
        return say(reply, hold_before_headers=pair.gate)

    def _record_leaks(self, body: str) -> None:
        words = list(WORD.finditer(body))
        if len({word[1] for word in words}) > 1:
            self.leaks.append(f"words of several users: {body}")
        if not self.forgotten_words.isdisjoint(word[0] for word in words):
            self.leaks.append(f"forgotten words: {body}")

    def hold_pair(self, *words: str) -> HeldPair:
        """Holds the replies to the requests with these words until both are here, or until `release_pair`."""
        pair = HeldPair(set(words))
        for word in words:
            self._pairs[word] = pair
        return pair

    def release_pair(self, pair: HeldPair) -> None:
        pair.gate.open()
        for word in pair.words:
            self._pairs.pop(word, None)

    # -- the users

    def pick_gateway(self, number: int) -> Gateway:
        """Returns the gateway of a user's request by its number: the gateways in rotation."""
        return self.gateways[number % len(self.gateways)]

    def forget(self, *arguments: str) -> None:
        """Runs `mnemogate memory forget` with these arguments until it has succeeded."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with self.database.lock_start():
                process = command(
                    "memory", "forget", "--yes", *self.database.arguments, *arguments,
                    where=self.gateways[0].folder, environ=self.database.environ,
                )  # fmt: skip
            # If memory was unavailable in all turns, there is nothing to forget. A command that lost its connection may
            # have forgotten all of it.
            is_gone = (
                "Nothing is remembered for" in process.stderr or "There is no conversation" in process.stderr
            )
            if process.returncode == 0 or is_gone:
                return
            # The gateway was killed while the command waited for its answer.
            time.sleep(0.1)
        raise AssertionError(f"it was not forgotten: {process.stderr}")

    def add_forgotten_words(self, words: Collection[str]) -> None:
        """Adds words that no request may have from now on: one that has is a leak."""
        with self._lock:
            self._forgotten_words |= set(words)

    @property
    def forgotten_words(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._forgotten_words)
