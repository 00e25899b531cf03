"""What fails below the store costs the memory, never the chat; it is said, counted, and over when the fault is."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import gateway.run.chat
from gateway.run.background.worker import JobContext
from gateway.run.chat import Chat
from gateway.settings import MemorySettings, ProfileSettings
from storage.errors import Corrupt
from storage.records import Scope
from storage.sql.passages import insert_passage
from storage.sql.store import Store
from storage.sqlite.connection import DatabaseFile
from storage.sqlite.database import connect_current, drive
from storage.sqlite.writer import WriterLimits
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, raw, say
from tests.gateway.process import command, serving
from tests.server import QUIET, RawClient, RawReply, Running, serve, settings_for
from tests.stored import open_store

FACT = "My cat is called Miso and she hates thunderstorms."
QUESTION = "What is the name of my cat?"
LONG = "This fills pages. " * 4000  # more than the free room of a small file
PATIENCE_S = 10.0
STRICT = {"x-mnemogate-memory": "strict"}
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}

# No deadline of a busy machine's shall decide what a test finds.
PATIENT = MemorySettings(recall_deadline_ms=50_000)

# Attempts to mend are made by the tests, not by a timer.
BY_HAND = WriterLimits(retry_first_s=3600, idle_s=3600)


@dataclass
class World:
    gateway: Running
    upstream: StrictUpstream
    path: Path
    disk: Disk

    @property
    def store(self) -> Store:
        store = self.gateway.app.store
        assert isinstance(store, Store)
        return store

    def post(
        self, text: str, headers: dict[str, str] | None = None, user: str = "alice", **fields: Any
    ) -> RawReply:
        messages = [{"role": "user", "content": text}]
        body = {"model": "m", "user": user, "messages": messages, **fields}
        return self.gateway.post(body, headers)

    def write(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        """In the writer's thread; waits for it."""

        async def submit() -> Any:
            return await self.store.database.writer.submit(function)

        return self.gateway.call(submit())

    def recover(self) -> bool:
        return self.gateway.call(self.store.database.writer.recover())

    def settle(self) -> None:
        async def settled() -> None:
            await self.gateway.app.idle.wait()
            await self.gateway.app.chat.pending.drain(10.0)
            assert await self.store.drain(10.0)

        self.gateway.call(settled())

    @property
    def status(self) -> str:
        """The store's, as health says it; the gateway lives and is willing whatever it is."""
        assert self.gateway.ask("GET", "/health").json == {"status": "ok"}
        ready = self.gateway.ask("GET", "/health/ready")
        assert ready.status == 200
        store: str = ready.json["store"]
        assert ready.json["status"] == ("ok" if store == "ok" else "degraded")
        return store

    def counted(self, name: str) -> float:
        lines = self.gateway.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0] == name)

    def agents(self) -> list[int]:
        self.settle()

        async def find() -> list[int]:
            return await self.store.forgetting.find("default", None, None)

        return self.gateway.call(find())

    def passages(self, agent: int) -> str:
        async def read() -> str:
            return "".join(passage.text for passage in await self.store.passages.list(agent))

        return self.gateway.call(read())

    def said(self) -> list[str]:
        """The user's words of all finished turns on disk."""
        self.settle()

        async def read() -> list[Any]:
            sql = "SELECT input FROM exchanges WHERE state = 'finished' ORDER BY id"
            return self.store.database.reader.run(lambda c: c.execute(sql).fetchall())

        return [json.loads(row[0])[-1]["content"] for row in self.gateway.call(read())]


class Disk:
    """Where the writing connection is opened, and what is wrong there."""

    full = False
    read_only = False

    def connect(self, target: DatabaseFile) -> sqlite3.Connection:
        if self.read_only:
            return sqlite3.connect(
                f"file:{target.path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        connection = connect_current(target)
        if self.full:
            may_not_grow(connection)
            with suppress(sqlite3.OperationalError):
                while True:  # the pages that are free in the file, too
                    connection.execute("INSERT INTO probe (filler) VALUES (zeroblob(3000))")
        return connection


def may_not_grow(connection: sqlite3.Connection) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


@contextmanager
def world_of(
    upstream: StrictUpstream,
    path: Path,
    *,
    commit_wait_s: float = 20.0,
    limits: WriterLimits = BY_HAND,
    **parts: Any,
) -> Iterator[World]:
    disk = Disk()

    async def open_here() -> Store:
        return await open_store(path, limits=limits, busy_timeout_ms=0, connect=disk.connect)

    settings = settings_for(upstream, memory=PATIENT, **parts)
    with serve(settings, open_here, limits=replace(QUIET, commit_wait_s=commit_wait_s)) as gateway:
        yield World(gateway, upstream, path, disk)


# -- faults of the machine


class Full:
    status = "full"

    def strike(self, world: World) -> None:
        world.disk.full = True
        world.write(may_not_grow)

    def mend(self, world: World) -> None:
        world.disk.full = False


class ReadOnly:
    status = "readonly"

    def strike(self, world: World) -> None:
        world.disk.read_only = True
        world.write(lambda c: c.execute("PRAGMA query_only = ON"))

    def mend(self, world: World) -> None:
        world.disk.read_only = False


@dataclass
class Locked:
    status = "locked"
    other: sqlite3.Connection | None = field(default=None)

    def strike(self, world: World) -> None:
        self.other = sqlite3.connect(world.path, isolation_level=None, check_same_thread=False)
        self.other.execute("BEGIN EXCLUSIVE")

    def mend(self, world: World) -> None:
        assert self.other is not None
        self.other.execute("ROLLBACK")
        self.other.close()


class Damaged:
    """Every page but the first is overwritten; an operator brings the copy of before."""

    status = "corrupt"

    def strike(self, world: World) -> None:
        world.gateway.call(world.store.database.writer.checkpoint())
        # By another process: one of ours that closed the file would drop SQLite's locks.
        elsewhere(
            "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[1] + '.bak'); "
            "f = open(sys.argv[1], 'r+b'); f.seek(0, 2); size = f.tell(); f.seek(4096); "
            "f.write(b'\\xff' * (size - 4096))",
            world.path,
        )

    def mend(self, world: World) -> None:
        for side in ("-wal", "-shm"):
            Path(f"{world.path}{side}").unlink(missing_ok=True)
        shutil.move(f"{world.path}.bak", world.path)


def elsewhere(program: str, path: Path) -> None:
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)


Fault = Full | ReadOnly | Locked | Damaged


@pytest.mark.parametrize("fault", [Full(), ReadOnly(), Locked(), Damaged()], ids=lambda f: f.status)
def test_a_fault_costs_the_memory_and_not_the_chat(
    upstream: StrictUpstream, tmp_path: Path, fault: Fault
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        assert durable(world.post(FACT))
        assert world.status == "ok"
        assert world.counted("mnemogate_not_durable_total") == 0
        fault.strike(world)

        replies = [
            world.post(LONG, stream=stream, user=user)
            for user in ("alice", "bob")
            for stream in (False, True)
        ]
        assert [reply.status for reply in replies] == [200] * 4
        assert not any(map(durable, replies))
        assert json.loads(replies[0].body)["choices"][0]["message"]["content"] == "Ok."
        assert replies[1].body.endswith(b"data: [DONE]\n\n")
        assert not world.recover()
        assert world.status == fault.status
        released = sum(reply.headers["x-mnemogate-memory"] == "on" for reply in replies)
        assert world.counted("mnemogate_not_durable_total") == released
        assert world.counted('mnemogate_memory_total{status="unavailable"}') == 4 - released
        for headers in (STRICT, APPEND):
            for stream in (False, True):
                refused = world.post(LONG, headers, stream=stream)
                assert refused.status == 503
                assert refused.error["type"] == "server_error"
                assert refused.headers["retry-after"]
        assert world.upstream.last.body.count(b"This fills pages") == 4000
        assert len(world.upstream.chats) == 5  # what is refused is not sent

        fault.mend(world)
        assert world.recover()
        assert world.status == "ok"
        for headers in ({}, STRICT, APPEND):
            for stream in (False, True):
                assert durable(world.post(QUESTION, headers, stream=stream))
                assert "Miso" in upstream.last.body.decode()
        assert world.said()[0] == FACT


@pytest.mark.parametrize("fault", [Full(), ReadOnly(), Locked(), Damaged()], ids=lambda f: f.status)
def test_a_fault_while_a_job_runs_costs_it_an_attempt_and_the_chat_nothing(
    upstream: StrictUpstream, tmp_path: Path, fault: Fault
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        assert durable(world.post(FACT))
        jobs, (agent,) = world.store.jobs, world.agents()
        entered, gate, attempts = Gate(), Gate(), []

        async def work(job: JobContext) -> None:
            attempts.append(job.job.attempt)
            entered.open()
            await gate.wait()
            await job.step(
                "a", ask, lambda text: lambda c: insert_passage(c, agent, LONG + text.decode(), at=1.0)
            )

        async def ask() -> bytes:
            return b"answer"

        world.gateway.app.background.handlers["work"] = work
        world.gateway.call(jobs.enqueue("work", agent, "k"))
        entered.wait_sync()
        fault.strike(world)
        gate.open()
        world.gateway.call(until_idle(world))
        for stream in (False, True):
            reply = world.post(LONG, stream=stream)
            assert not durable(reply)
            assert b"Ok." in reply.body or b"[DONE]" in reply.body
        assert not world.recover()

        fault.mend(world)
        assert world.recover()
        world.gateway.call(until_ended(world.store))
        assert attempts == [1, 2]
        assert durable(world.post(QUESTION))
        assert "answer" in world.passages(agent)


async def until_idle(world: World) -> None:
    """The worker has met the fault, and has let go of its job."""
    worker = world.gateway.app.background.worker
    assert worker is not None
    async with asyncio.timeout(PATIENCE_S):
        while worker.running:  # noqa: ASYNC110  # nobody tells: there is nothing to do
            await asyncio.sleep(0)


async def until_ended(store: Store) -> None:
    ended = asyncio.Event()
    unwatch = store.jobs.watch(lambda: None if drive(store.jobs.list()) else ended.set())
    if await store.jobs.list():
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    unwatch()


def durable(reply: RawReply) -> bool:
    """Whether the reply says that its turn is on disk."""
    assert reply.status == 200
    if reply.headers["content-type"].startswith("text/event-stream"):
        assert "x-mnemogate-durable" not in reply.headers
        marked = b": mnemogate not durable\n\n" in reply.body
        assert not marked or reply.body.index(b": mnemogate") < reply.body.index(b"data: [DONE]")
    else:
        marked = reply.headers.get("x-mnemogate-durable") == "false"
    return reply.headers["x-mnemogate-memory"] == "on" and not marked


@pytest.mark.parametrize("garbage", [b"not a database, whatever it is " * 300, b""], ids=["noise", "header"])
def test_a_file_that_is_damaged_at_the_start(
    upstream: StrictUpstream, tmp_path: Path, garbage: bytes
) -> None:
    path = tmp_path / "m.db"
    with world_of(upstream, path) as world:
        assert durable(world.post(FACT))
    backup = shutil.copy(path, tmp_path / "backup")
    path.write_bytes(garbage or b"\xff" * 100 + path.read_bytes()[100:])
    with world_of(upstream, path) as world:
        assert world.status == "corrupt"
        for stream in (False, True):
            reply = world.post(QUESTION, stream=stream)
            assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "unavailable")
            assert reply.body
        assert [world.post(QUESTION, headers).status for headers in (STRICT, APPEND)] == [503, 503]
        shutil.move(backup, path)
        assert world.recover()
        assert world.status == "ok"
        assert durable(world.post(QUESTION))
        assert "Miso" in upstream.last.body.decode()


def test_it_comes_back_without_anybody_asking(upstream: StrictUpstream, tmp_path: Path) -> None:
    limits = WriterLimits(retry_first_s=0.001, retry_most_s=0.002)
    with world_of(upstream, tmp_path / "m.db", limits=limits) as world:
        back = Gate()
        world.store.database.writer._recovered = back.open
        fault = Locked()
        fault.strike(world)
        assert not durable(world.post(FACT))
        fault.mend(world)
        back.wait_sync()
        assert durable(world.post(FACT))


# -- a disk that takes its time


@contextmanager
def stalled(world: World) -> Iterator[Gate]:
    """The writer's thread waits until the gate opens; what is committed meanwhile waits behind it."""
    gate, entered = Gate(), Gate()

    def wait(_: sqlite3.Connection) -> None:
        entered.open()
        gate.wait_sync()

    async def submit() -> None:
        world.store.database.writer.submit(wait)

    world.gateway.call(submit())
    entered.wait_sync()
    try:
        yield gate
    finally:
        gate.open()


def test_a_commit_that_takes_too_long_is_released_counted_and_made_good(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world:
        with stalled(world):
            whole, streamed = world.post("One."), world.post("Two.", stream=True)
            assert not durable(whole)
            assert not durable(streamed)
            assert whole.headers["x-mnemogate-memory"] == streamed.headers["x-mnemogate-memory"] == "on"
            assert streamed.body.endswith(b"data: [DONE]\n\n")
            assert world.counted("mnemogate_not_durable_total") == 2
            assert world.counted("mnemogate_writer_queue") == 3
        assert world.said() == ["One.", "Two."]
        assert world.counted("mnemogate_writer_queue") == 0


def test_a_reply_too_deep_to_be_written_reaches_the_client(upstream: StrictUpstream, tmp_path: Path) -> None:
    """orjson reads 1,024 levels and writes 254; Python calls itself 1,000 times."""
    message = b'{"role":"assistant","content":"Hi.","x":' + b"[" * 1000 + b"]" * 1000 + b"}"
    body = b'{"choices":[{"index":0,"finish_reason":"stop","message":' + message + b"}]}"
    with world_of(upstream, tmp_path / "m.db") as world:
        upstream.queue(raw(body, content_type="application/json"))
        reply = world.post(FACT)
    assert (reply.status, reply.body) == (200, body)


def test_a_store_that_is_slow_is_said_and_chat_goes_on(upstream: StrictUpstream, tmp_path: Path) -> None:
    limits = WriterLimits(retry_first_s=3600, idle_s=3600, slow_s=0.0)
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001, limits=limits) as world:
        assert world.status == "ok"
        with stalled(world):
            assert world.status == "slow"
            for stream in (False, True):
                reply = world.post("Hi", stream=stream)
                assert reply.status == 200
                assert not durable(reply)
            refused = world.post("Hi", STRICT)
            assert (refused.status, "slow" in refused.error["message"]) == (503, True)
        world.settle()
        assert world.status == "ok"
        assert durable_soon(world)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_another_users_text_does_not_wait_for_the_write_of_a_turn(
    upstream: StrictUpstream, tmp_path: Path, stream: bool
) -> None:
    entered, gate = Gate(), Gate()

    def hold(sql: str) -> None:
        """In the writer's thread, in the middle of a transaction."""
        if b"Said by Bob".hex() in sql.lower():
            entered.open()
            gate.wait_sync()

    with world_of(upstream, tmp_path / "m.db") as world:
        for user in ("alice", "bob"):
            world.post(FACT, user=user)
        world.write(lambda c: c.set_trace_callback(hold))
        with world.gateway.connect() as bob, world.gateway.connect() as alice:
            ask(bob, "bob", "Said by Bob", stream)
            entered.wait_sync()
            upstream.queue(say("Hello there"))
            ask(alice, "alice", QUESTION, True)
            streamed = alice.read_until(b" there")
            upstream.last.settled.wait_sync()
            assert not gate.is_open
            assert b"Miso" in upstream.last.body  # recall reads beside the write
            assert b"[DONE]" not in streamed + alice.rest
            gate.open()
            alice.read_until(b"data: [DONE]")
            bob.read_until(b"data: [DONE]") if stream else bob.read_reply()
        assert world.said() == [FACT, FACT, "Said by Bob", QUESTION]


def ask(client: RawClient, user: str, text: str, stream: bool) -> None:
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "user": user, "stream": stream, "messages": messages}
    client.request("POST", "/v1/chat/completions", json.dumps(body).encode())


def test_the_end_of_a_stream_waits_for_the_disk_and_its_text_does_not(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world, world.gateway.connect() as client:
        with stalled(world) as gate:
            body = {
                "model": "m",
                "user": "alice",
                "stream": True,
                "messages": [{"role": "user", "content": "Hi"}],
            }
            upstream.queue(say("Hello there"))
            client.request("POST", "/v1/chat/completions", json.dumps(body).encode())
            streamed = client.read_until(b" there")
            upstream.last.settled.wait_sync()
            assert b'finish_reason":"stop' not in streamed + client.rest
            assert b"[DONE]" not in streamed + client.rest
            gate.open()
        rest = client.read_until(b"data: [DONE]\n\n")
        assert b"not durable" not in rest
        assert world.said() == ["Hi"]


@pytest.mark.parametrize("stream", [False, True])
def test_strict_says_so_when_its_turn_is_not_on_disk(
    upstream: StrictUpstream, tmp_path: Path, stream: bool
) -> None:
    """Of a stream the text has gone out already: there the mark has to do."""
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world:
        with stalled(world):
            reply = world.post("One.", STRICT, stream=stream)
            if stream:
                assert not durable(reply)
            else:
                assert (reply.status, reply.error["type"]) == (503, "server_error")
            assert world.counted("mnemogate_not_durable_total") == 1
        assert world.said() == ["One."]


def test_append_mode_does_not_wait_for_a_stalled_disk_for_ever(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        keeper = world.gateway.app.chat.keeper
        assert keeper is not None
        keeper.open_wait_s = 0.001
        with stalled(world):
            refused = world.post("One.", APPEND)
            assert (refused.status, refused.error["type"]) == (503, "server_error")
        keeper.open_wait_s = 10.0
        assert upstream.seen == []
        again = {**APPEND, "x-stainless-retry-count": "1"}
        assert durable(world.post("One.", again))
        assert [m["content"] for m in upstream.last.messages] == ["One."]


def test_a_full_queue_takes_the_memory_and_not_the_chat(upstream: StrictUpstream, tmp_path: Path) -> None:
    limits = WriterLimits(retry_first_s=3600, idle_s=3600, queue_bytes=8000)
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001, limits=limits) as world:
        with stalled(world):
            for _ in range(4):
                assert not durable(world.post("Hi"))
            assert world.store.health.waiting_bytes < 9000 + 1024
        world.settle()  # else the queue may still be full
        assert durable_soon(world)


def durable_soon(world: World) -> bool:
    """After the stall; the wait of 1 ms may still be too short for the disk of a busy machine."""
    return world.post("Later.").status == 200 and "Later." in world.said()


# -- append sends queue


def append_request(world: World, text: str, user: str, room: str) -> Any:
    client = world.gateway.connect()
    body = {"model": "m", "user": user, "messages": [{"role": "user", "content": text}]}
    headers = {**APPEND, "x-mnemogate-conversation": room}
    client.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    return client


def test_append_sends_of_one_conversation_queue_and_nobody_else_waits(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        first = Gate()
        upstream.queue(say("One.", hold_before_headers=first), *[say(f"Else {i}.") for i in range(2)])
        a = append_request(world, "a", "alice", "phone")
        upstream.arrived(1).wait_sync()
        b = append_request(world, "b", "alice", "phone")
        # Another user, and another conversation of the same user, are answered meanwhile.
        for user, room in (("bob", "phone"), ("alice", "desk")):
            with append_request(world, "else", user, room) as other:
                assert other.read_reply().status == 200
        assert [[m["content"] for m in seen.messages] for seen in upstream.seen] == [
            ["a"],
            ["else"],
            ["else"],
        ]
        upstream.queue(say("Two."), say("Three."))
        first.open()
        with a, b:
            assert a.read_reply().status == 200
            assert b.read_reply().status == 200
        with append_request(world, "c", "alice", "phone") as c:
            assert c.read_reply().status == 200
        assert [m["content"] for m in upstream.last.messages] == ["a", "One.", "b", "Two.", "c"]


def test_a_send_goes_on_from_the_one_before_though_that_was_released_before_its_commit(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world:
        hold = Gate()
        upstream.queue(say("One.", hold_before_headers=hold), say("Two."))
        with append_request(world, "a", "alice", "phone") as a:
            upstream.arrived(1).wait_sync()  # its message is on disk
            with stalled(world):
                hold.open()
                assert not durable(a.read_reply())
                b = append_request(world, "b", "alice", "phone")
                with world.gateway.connect() as other:  # both are in the gateway's hands by then
                    other.request("GET", "/health")
                    other.read_reply()
        with b:
            assert b.read_reply().status == 200
        assert [m["content"] for m in upstream.last.messages] == ["a", "One.", "b"]


def test_a_fault_while_reading_what_is_recalled_is_said(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The tables of the search are gone; the rest is sound."""
    with world_of(upstream, tmp_path / "m.db") as world:
        assert durable(world.post(FACT))
        world.settle()
        world.write(lambda c: c.execute("ALTER TABLE terms RENAME TO elsewhere"))
        reply = world.post(QUESTION)
        assert reply.status == 200
        world.write(lambda c: c.execute("ALTER TABLE elsewhere RENAME TO terms"))
        assert durable(world.post("And which cat hates thunderstorms?"))
        assert "Miso" in upstream.last.body.decode()


def test_no_agent_is_made_twice_when_its_first_turn_was_not_kept(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        fault = Locked()
        fault.strike(world)
        assert not durable(world.post("One."))
        fault.mend(world)
        assert world.recover()
        assert durable(world.post("Two."))
        assert world.said() == ["Two."]
        scope = Scope("default", "default", "user:alice")

        async def find() -> Any:
            return await world.store.agents.find(scope)

        assert world.gateway.call(find()).next_seq >= 1


def test_one_damaged_row_does_not_keep_the_others_from_their_maintenance(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        for user in ("alice", "bob"):
            assert durable(world.post(FACT, user=user))
        world.settle()
        agents = world.write(lambda c: [row[0] for row in c.execute("SELECT id FROM agents ORDER BY id")])
        world.write(lambda c: c.execute("UPDATE exchanges SET input = x'ff' WHERE agent = ?", agents[:1]))
        maintenance = world.gateway.app.background.maintenance
        assert maintenance is not None

        async def work() -> None:
            for agent in agents:
                maintenance._grown.add(agent)
                await maintenance.step()

        world.gateway.call(work())
        indexed = world.write(
            lambda c: [r[0] for r in c.execute("SELECT indexed_seq FROM agents ORDER BY id")]
        )
        assert indexed[0] == 0 < indexed[1]
        assert world.post(QUESTION).status == 200  # her memory is damaged, the chat is not
        assert durable(world.post(QUESTION, user="bob"))
        assert "Miso" in upstream.last.body.decode()


def test_a_database_that_can_never_be_opened_is_said_in_health(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    database = tmp_path / "no" / "such" / "directory" / "m.db"
    with serving(tmp_path, "--db", str(database), "--upstream", upstream.base_url) as gateway:
        ready = gateway.ask("GET", "/health/ready")
        assert (ready.status, ready.json) == (200, {"status": "degraded", "store": "unavailable"})
        body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Hi"}]}
        for headers, status in (({}, 200), (STRICT, 503), (APPEND, 503)):
            reply = gateway.ask("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
            assert reply.status == status
            assert status != 200 or reply.headers["x-mnemogate-memory"] == "unavailable"


def test_a_process_whose_disk_is_full_goes_on_and_comes_back(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The kernel itself refuses to let the files grow."""
    settings = "[server]\naccess_log = false\n[memory]\nrecall_deadline_ms = 50000"
    with serving(tmp_path, "--db", "m.db", "--upstream", upstream.base_url, settings=settings) as gateway:

        def post(text: str) -> RawReply:
            body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": text}]}
            return gateway.ask("POST", "/v1/chat/completions", json.dumps(body).encode())

        def store() -> str:
            assert gateway.ask("GET", "/health").status == 200
            return str(gateway.ask("GET", "/health/ready").json["store"])

        assert durable(post(FACT))
        no_limit = resource.prlimit(gateway.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(gateway.child.pid, resource.RLIMIT_FSIZE, (16384, no_limit[1]))
        for _ in range(10):
            assert not durable(post(LONG))
        assert wait_until(lambda: store() != "ok")
        resource.prlimit(gateway.child.pid, resource.RLIMIT_FSIZE, no_limit)
        assert wait_until(lambda: store() == "ok")
        assert durable(post(QUESTION))
        assert "Miso" in upstream.last.body.decode()
        gateway.kill()
        logged = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    # Once, whatever it is that each of the turns met; then it is counted.
    said = [line["message"] for line in logged if "again" not in line]
    assert len(said) == len(set(said))
    assert any("a turn was not written" in line for line in said)
    assert "the store works again" in said
    connection = sqlite3.connect(tmp_path / "m.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(2,)]
    connection.close()


def test_the_key_of_the_settings_is_there_once_the_store_is(upstream: StrictUpstream, tmp_path: Path) -> None:
    database, key = tmp_path / "m.db", "mg-0123456789abcdefghijklmnopqrstuv"
    assert command("keys", "list", "--db", str(database), where=tmp_path).returncode == 0
    backup = shutil.copy(database, tmp_path / "backup")
    database.write_bytes(b"not a database, whatever it is " * 300)
    settings = f'[server]\nkey = "{key}"'
    arguments = ("--db", str(database), "--upstream", upstream.base_url)
    with serving(tmp_path, *arguments, settings=settings) as gateway:

        def status(key: str) -> int:
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).encode()
            headers = {"authorization": f"Bearer {key}"}
            return gateway.ask("POST", "/v1/chat/completions", body, headers).status

        assert status(key) == 503
        shutil.move(backup, database)
        assert wait_until(lambda: status(key) == 200)
        assert status(key[::-1]) == 401


def wait_until(holds: Callable[[], bool]) -> bool:
    """Asks again and again, for a state that comes by itself."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if holds():
            return True
    return False


def test_a_send_whose_client_leaves_in_the_queue_holds_nobody(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """Its message was said: it goes with the next one. No model is asked for it alone."""
    with world_of(upstream, tmp_path / "m.db") as world:
        hold = Gate()
        upstream.queue(say("One.", hold_before_headers=hold), say("Three."))
        with append_request(world, "a", "alice", "phone") as a:
            upstream.arrived(1).wait_sync()
            with append_request(world, "b", "alice", "phone"):
                world.gateway.ask("GET", "/health")  # by then b is in the gateway's hands
            c = append_request(world, "c", "alice", "phone")
            world.gateway.ask("GET", "/health")
            hold.open()
            assert a.read_reply().status == 200
        with c:
            assert c.read_reply().status == 200
        assert [m["content"] for m in upstream.last.messages] == ["a", "One.", "b", "c"]
        assert len(upstream.seen) == 2
        world.settle()
        assert world.gateway.app.chat.keeper is not None
        assert not world.gateway.app.chat.keeper.queues


@pytest.mark.parametrize("where", ["_begin", "_remember", "forwardable", "ChatCall", "TurnRun"])
def test_an_error_of_ours_anywhere_in_a_send_leaves_the_next_one_its_turn(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After the queue was entered, and before the turn was under way."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with world_of(upstream, tmp_path / "m.db") as world:
        with monkeypatch.context() as patch:
            if hasattr(Chat, where):
                entered = getattr(Chat, where)

                async def enter_and_fail(*arguments: Any) -> None:
                    await entered(*arguments)
                    fail()

                patch.setattr(Chat, where, enter_and_fail)
            else:
                patch.setattr(gateway.run.chat, where, fail)
            assert world.post("a", APPEND).status in (500, 503)
        assert world.post("b", APPEND).status == 200
        assert world.gateway.app.chat.keeper is not None
        assert not world.gateway.app.chat.keeper.queues


def test_a_memory_tool_that_meets_a_damaged_row_says_so_to_the_model(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    profile = ProfileSettings("helper", model="m", memory_tools=True)
    with world_of(upstream, tmp_path / "m.db", profiles=(profile,)) as world:
        assert durable(world.post(FACT, model="agent/helper"))
        hold = Gate()
        upstream.queue(call_tools(Call("conversation_search", {"query": "cat"}), hold_before_headers=hold))
        with world.gateway.connect() as client:
            messages = [{"role": "user", "content": "Hello again"}]
            body = {"model": "agent/helper", "user": "alice", "messages": messages}
            client.request("POST", "/v1/chat/completions", json.dumps(body).encode())
            upstream.arrived(2).wait_sync()
            world.write(lambda c: c.execute("UPDATE exchanges SET input = x'ff'"))
            hold.open()
            reply = client.read_reply()
        assert reply.json["choices"][0]["message"]["content"] == "Ok."
        assert "not available" in upstream.last.messages[-1]["content"]


def test_a_read_that_fails_late_costs_the_memory_and_not_the_chat(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The conversation's name is read after its messages, for a list that is not word for word what is stored."""
    with world_of(upstream, tmp_path / "m.db") as world:
        upstream.queue(say("It is called Miso, as you said yesterday."))
        assert durable(world.post("What is my cat called?"))
        spoken = [
            {"role": "user", "content": "What is my cat called?"},
            {"role": "assistant", "content": "It is called Miso"},
            {"role": "user", "content": "Stop."},
        ]

        def fail_to_read(*_: object) -> None:
            raise Corrupt("damaged")

        world.store.turns.conversation_uid = fail_to_read  # type: ignore[method-assign,assignment]
        reply = world.post("", messages=spoken)
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "unavailable")
