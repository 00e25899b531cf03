"""What fails below the store costs the memory, never the chat; it is said, counted, and over when the fault is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.run.background.job_context import JobContext
from gateway.settings import ProfileSettings
from storage.database import work_generation
from storage.errors import StoreCorrupt, StoreFailed
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.sql.passages import insert_passage
from storage.sql.store import Store
from storage.sqlite.operations import drive
from storage.sqlite.writer import WriterLimits
from tests.doubles.disk import may_not_grow
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.gateway.lifecycle.faulty import (
    APPEND,
    FACT,
    QUESTION,
    STRICT,
    World,
    durable,
    world_of,
)
from tests.gateway.process import command, serving
from tests.patience import PATIENCE_S, becomes, comes
from tests.server import RawReply, chat_upstreams

LONG = "This fills pages. " * 4000  # more than the free room of a small file


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
        # By another process: this one would drop SQLite's locks when it closed the file.
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
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=PATIENCE_S)


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
        assert b"data: [DONE]\n\n" in replies[1].body
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
                # In a word: which files and servers there are is for the log alone.
                assert f"the store is {fault.status}." in refused.error["message"]
                assert str(tmp_path) not in refused.body.decode()
                assert refused.headers["retry-after"]
        assert world.upstream.last.body.count(b"This fills pages") == 4000
        assert len(world.upstream.chats) == 5  # what is refused is not sent
        agent = b'{"model": "openai/m"}'
        asked = world.gateway.ask("POST", "/v1/agents/", agent, {"content-type": "application/json"})
        assert asked.status == 503
        assert str(tmp_path) not in asked.body.decode()
        chat = b'{"model": "agent/ann", "messages": [{"role": "user", "content": "Hello."}]}'
        asked = world.gateway.ask("POST", "/v1/chat/completions", chat, {"content-type": "application/json"})
        assert asked.status in (404, 503)
        assert str(tmp_path) not in asked.body.decode()

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

        world.gateway.app.services.background.handlers["work"] = work
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
    worker = world.gateway.app.services.background.worker
    assert worker is not None
    await comes(lambda: not worker.running_count)


async def until_ended(store: Store) -> None:
    ended = asyncio.Event()
    unwatch = store.jobs.add_listener(lambda: None if drive(store.jobs.list_newest()) else ended.set())
    if await store.jobs.list_newest():
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    unwatch()


def test_settings_that_choose_append_mode_refuse_without_memory_as_its_header_does(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    named, profiles = (
        {"x-mnemogate-conversation": "phone"},
        [ProfileSettings(name="default", history="append")],
    )
    with world_of(upstream, tmp_path / "m.db", profiles=profiles) as world:
        assert durable(world.post(FACT, named))
        Full().strike(world)
        world.post(LONG)
        assert not world.recover()
        assert world.post(QUESTION, named).status == 503
        assert world.post(QUESTION).status == 200


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


def test_memory_returns_without_a_request(upstream: StrictUpstream, tmp_path: Path) -> None:
    limits = WriterLimits(retry_first_s=0.001, retry_max_s=0.002)
    with world_of(upstream, tmp_path / "m.db", limits=limits) as world:
        back = Gate()
        world.store.database.writer._on_recovery = back.open
        fault = Locked()
        fault.strike(world)
        assert not durable(world.post(FACT))
        fault.mend(world)
        back.wait_sync()
        assert durable(world.post(FACT))


def test_a_fault_while_reading_what_is_recalled_is_said(upstream: StrictUpstream, tmp_path: Path) -> None:
    """The tables of the search cannot be read; the rest is sound."""

    def deny(action: int, table: str | None, *others: str | None) -> int:
        return sqlite3.SQLITE_DENY if table == "terms" else sqlite3.SQLITE_OK

    with world_of(upstream, tmp_path / "m.db") as world:
        assert durable(world.post(FACT))
        world.settle()
        reader = world.store.database.reader.connection
        reader.set_authorizer(deny)
        assert world.post(QUESTION).status == 200
        reader.set_authorizer(None)
        assert durable(world.post("And which cat hates thunderstorms?"))
        assert "Miso" in upstream.last.body.decode()


def test_no_memory_is_made_twice_when_its_first_turn_was_not_stored(
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


def test_a_damaged_row_does_not_stop_the_maintenance_of_others(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        for user in ("alice", "bob"):
            assert durable(world.post(FACT, user=user))
        world.settle()
        agents = world.write(lambda c: [row[0] for row in c.execute("SELECT id FROM agents ORDER BY id")])
        world.write(lambda c: c.execute("UPDATE exchanges SET input = x'ff' WHERE agent = ?", agents[:1]))
        background = world.gateway.app.services.background
        assert background is not None

        async def work() -> None:
            for agent in agents:
                background.indexing.add(agent, None)
            await background.indexing.perform_due()
            await background.indexing.perform_due()

        world.gateway.call(work())
        indexed = world.write(
            lambda c: [r[0] for r in c.execute("SELECT indexed_seq FROM agents ORDER BY id")]
        )
        assert indexed[0] == 0 < indexed[1]
        assert world.post(QUESTION).status == 200  # her memory is damaged, the chat is not
        assert durable(world.post(QUESTION, user="bob"))
        assert "Miso" in upstream.last.body.decode()


@pytest.mark.parametrize("step", ["recalled", "indexed", "forgotten"])
def test_a_damaged_search_index_is_made_again(upstream: StrictUpstream, tmp_path: Path, step: str) -> None:
    """By whoever meets it first; neither the search nor the forgetting of that memory fails for good."""
    with world_of(upstream, tmp_path / "m.db") as world:
        assert durable(world.post(FACT))
        assert durable(world.post("My dog is called Rex.", user="alice"))
        store = world.store
        (agent,) = world.write(lambda c: [row[0] for row in c.execute("SELECT id FROM agents")])

        async def index() -> None:
            while await store.search_index.advance(agent):
                pass

        async def forget() -> None:
            await store.forgetting.run(await store.forgetting.begin(agent, ForgetTarget(message_seqs=[3])))

        world.gateway.call(index())
        world.write(lambda c: c.execute("UPDATE terms SET data = substr(data, 1, length(data) - 3)"))
        world.store.recall._memories.clear()  # it is to be read
        if step == "recalled":
            reply = world.post(QUESTION)
            assert (reply.status, reply.headers["x-mnemogate-recall"]) == (200, "unavailable")
            assert durable(reply)
        elif step == "indexed":
            assert durable(world.post("Good."))
            world.gateway.call(index())
        else:
            world.gateway.call(forget())
        for _ in range(2):
            reply = world.post("And which cat hates thunderstorms?")
            assert "x-mnemogate-recall" not in reply.headers
            assert "Miso" in upstream.last.body.decode()
            world.gateway.call(index())


def test_a_damaged_message_costs_the_recall_of_its_memory(upstream: StrictUpstream, tmp_path: Path) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        assert durable(world.post(FACT, {"x-mnemogate-conversation": "one"}))
        world.settle()
        world.write(lambda c: c.execute("UPDATE exchanges SET input = x'ff'"))
        world.store.recall._memories.clear()  # it is to be read
        reply = world.post("How loud is thunder?", {"x-mnemogate-conversation": "two"})
        assert (reply.status, reply.headers["x-mnemogate-recall"]) == (200, "unavailable")
        assert durable(reply)


@pytest.mark.sqlite
def test_a_database_whose_directory_comes_later_is_waited_for(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """As a volume that is not mounted yet. There is no place for the lock file either."""
    folder = tmp_path / "volume"
    with serving(tmp_path, "--db", str(folder / "m.db"), "--upstream", upstream.base_url) as gateway:
        ready = gateway.ask("GET", "/health/ready")
        assert (ready.status, ready.json) == (200, {"status": "degraded", "store": "broken"})
        body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Hi"}]}

        def post(headers: dict[str, str]) -> RawReply:
            return gateway.ask("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)

        for headers, status in (({}, 200), (STRICT, 503), (APPEND, 503)):
            reply = post(headers)
            assert reply.status == status
            assert status != 200 or reply.headers["x-mnemogate-memory"] == "unavailable"
        folder.mkdir()
        becomes(lambda: gateway.ask("GET", "/health/ready").json["store"] == "ok")
        assert durable(post({}))
        refused = command("serve", "--port", "0", "--db", str(folder / "m.db"), where=tmp_path)
        assert (refused.returncode, f"process {gateway.child.pid}" in refused.stderr) == (1, True)
        listed = command("users", "--db", str(folder / "m.db"), where=tmp_path)
        assert "--user=alice" in listed.stdout


@pytest.mark.sqlite
def test_a_start_that_cannot_have_the_lock_leaves_the_owners_file(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """As one by another account, which may write in the directory and not open the lock file."""
    (tmp_path / "m.db.lock").mkdir()
    (tmp_path / "m.db.admin").write_text("the owner's")
    arguments = ("--db", str(tmp_path / "m.db"), "--upstream", upstream.base_url)
    with serving(tmp_path, *arguments) as gateway:
        assert (tmp_path / "m.db.admin").read_text() == "the owner's"
        gateway.child.terminate()
        assert gateway.child.wait(PATIENCE_S) == 0
    assert (tmp_path / "m.db.admin").read_text() == "the owner's"


@pytest.mark.sqlite
@pytest.mark.parametrize("kind", ["missing directory", "directory", "text"])
def test_a_database_that_cannot_be_used_at_the_start_is_logged_once(
    upstream: StrictUpstream, tmp_path: Path, kind: str
) -> None:
    """Each background task logged it for itself, under its own name: seven lines for a directory that is missing."""
    path = tmp_path / "folder" / "m.db"
    if kind != "missing directory":
        path.parent.mkdir()
        path.mkdir() if kind == "directory" else path.write_text("Hello.")
    with serving(tmp_path, "--db", str(path), "--upstream", upstream.base_url) as gateway:
        gateway.child.terminate()
        assert gateway.child.wait(PATIENCE_S) == 0
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    named = [line["message"] for line in lines if "folder" in line.get("message", "")]
    assert len([each for each in named if "Commands will not find" not in each]) == 1
    assert named[0].startswith("Requests are answered without memory until the database can be used: ")


@pytest.mark.sqlite
def test_a_start_without_its_database_takes_up_later_what_there_was(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "volume", tmp_path / "unmounted"
    folder.mkdir()
    arguments = ("--db", str(folder / "m.db"), "--upstream", upstream.base_url)
    profile = '[[profiles]]\nname = "helper"\nmodel = "m"\n[[profiles.blocks]]\nlabel = "human"\nlimit = {}\n'
    body = {"model": "agent/helper", "user": "alice", "messages": [{"role": "user", "content": "Hi"}]}
    with serving(tmp_path, *arguments, settings=profile.format(100)) as gateway:
        assert gateway.ask("POST", "/v1/chat/completions", json.dumps(body).encode()).status == 200
        made = gateway.ask("POST", "/v1/agents/", b'{"model": "openai/m", "name": "ann"}').json["id"]
        sent = gateway.ask("POST", f"/v1/agents/{made}/messages", b'{"input": "Hi"}')
        assert sent.status == 200, sent.body
        gateway.kill()
    with contextlib.closing(sqlite3.connect(folder / "m.db")) as connection, connection:
        connection.execute("UPDATE runs SET state = 'running'")  # as if it had been killed in the middle
    folder.rename(elsewhere)
    with serving(tmp_path, *arguments, settings=profile.format(200)) as gateway:
        elsewhere.rename(folder)

        def runs() -> list[str]:
            reply = gateway.ask("GET", "/v1/runs/")
            return [each["status"] for each in reply.json] if reply.status == 200 else []

        def limits() -> set[int]:
            with contextlib.closing(sqlite3.connect(folder / "m.db")) as connection:
                found = connection.execute("SELECT lim FROM blocks WHERE label = 'human'")
                return {limit for (limit,) in found}

        becomes(lambda: runs() == ["failed"])
        becomes(lambda: limits() == {200})


@pytest.mark.sqlite
def test_a_process_whose_disk_is_full_goes_on_and_comes_back(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The kernel itself refuses to let the files grow."""
    settings = "[server]\naccess_log = false"
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
        becomes(lambda: store() != "ok")
        resource.prlimit(gateway.child.pid, resource.RLIMIT_FSIZE, no_limit)
        becomes(lambda: store() == "ok")
        assert durable(post(QUESTION))
        assert "Miso" in upstream.last.body.decode()
        gateway.kill()
        logged = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    # Once, whatever it is that each of the turns met; then it is counted.
    said = [line["message"] for line in logged if "again" not in line]
    assert len(said) == len(set(said))
    assert any("A turn was answered and could not be stored" in line for line in said)
    assert any(re.match("The database works again, after: .*m.db", line) for line in said)
    connection = sqlite3.connect(tmp_path / "m.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(2,)]
    connection.close()


def test_a_gateway_takes_as_many_connections_as_the_system_allows(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """What comes beyond the limit is closed without a word, and a shell's own limit is low."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, most - 1), most))
    try:
        with serving(tmp_path, "--db", "m.db", "--upstream", upstream.base_url, is_new=True) as gateway:
            assert resource.prlimit(gateway.child.pid, resource.RLIMIT_NOFILE) == (most, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


@pytest.mark.sqlite
def test_the_key_of_the_settings_is_there_once_the_store_is(upstream: StrictUpstream, tmp_path: Path) -> None:
    database, key = tmp_path / "m.db", "mg-0123456789abcdefghijklmnopqrstuv"
    assert command("migrate", "--db", str(database), where=tmp_path).returncode == 0
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
        becomes(lambda: status(key) == 200)
        assert status(key[::-1]) == 401


@pytest.mark.sqlite
def test_the_command_line_finds_a_gateway_whose_disk_was_full_at_its_start(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    database = tmp_path / "m.db"
    assert command("migrate", "--db", str(database), where=tmp_path).returncode == 0
    backup = shutil.copy(database, tmp_path / "backup")
    database.write_bytes(b"not a database, whatever it is " * 300)
    arguments = ("--db", str(database), "--upstream", upstream.base_url)
    with serving(tmp_path, *arguments) as gateway:
        (tmp_path / "m.db.admin").unlink()  # as if there had been no room for it
        shutil.move(backup, database)
        becomes(lambda: gateway.ask("GET", "/health/ready").json["store"] == "ok")
        listed = command("users", "--db", str(database), where=tmp_path)
        assert listed.returncode == 0, listed.stderr


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
            upstream.request_gate(2).wait_sync()
            world.write(lambda c: c.execute("UPDATE exchanges SET input = x'ff'"))
            world.store.recall._memories.clear()  # what is remembered of it would answer
            hold.open()
            reply = client.read_reply()
        assert reply.json["choices"][0]["message"]["content"] == "Ok."
        assert "memory cannot be searched" in upstream.last.messages[-1]["content"]


def test_a_request_and_a_job_that_are_under_way_at_a_restore_read_no_other_memory(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    profiles = (ProfileSettings("helper", model="m", memory_tools=True),)
    with world_of(upstream, tmp_path / "other.db", profiles=profiles) as world:
        assert durable(world.post("My safe has the code 4711.", user="bob", model="agent/helper"))
    with world_of(upstream, tmp_path / "m.db", profiles=profiles) as world:
        assert durable(world.post(FACT, model="agent/helper"))
        (agent,) = world.agents()
        entered, gate, generations = Gate(), Gate(), []

        async def work(job: JobContext) -> None:
            generations.append(work_generation.get())
            entered.open()
            await gate.wait()  # until it has lost its lease

        world.gateway.app.services.background.handlers["work"] = work
        world.gateway.call(world.store.jobs.enqueue("work", agent, "k"))
        entered.wait_sync()
        hold = Gate()
        upstream.queue(call_tools(Call("conversation_search", {"query": "code"}), hold_before_headers=hold))
        with world.gateway.connect() as client:
            messages = [{"role": "user", "content": "Hello again"}]
            body = {"model": "agent/helper", "user": "alice", "messages": messages}
            client.request("POST", "/v1/chat/completions", json.dumps(body).encode())
            upstream.request_gate(3).wait_sync()
            (tmp_path / "other.db").replace(world.path)
            with pytest.raises(StoreFailed):
                world.write(lambda connection: None)
            assert world.recover()
            hold.open()
            assert client.read_reply().json["choices"][0]["message"]["content"] == "Ok."
        assert "memory cannot be searched" in upstream.last.messages[-1]["content"]
        world.gateway.call(until_idle(world))
        assert generations == [world.store.database.generation - 1]
        assert world.agents() == [agent]
        assert durable(world.post(QUESTION, user="bob", model="agent/helper"))


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
            raise StoreCorrupt("damaged")

        world.store.turns.find_conversation_uid = fail_to_read  # type: ignore[method-assign,assignment]
        reply = world.post("", messages=spoken)
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "unavailable")


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_could_not_be_stored_says_so(
    upstream: StrictUpstream, tmp_path: Path, stream: bool
) -> None:
    """OpenAI's field for it is `store`: by an id that names nothing an application cannot go on."""
    with world_of(upstream, tmp_path / "m.db", upstreams=chat_upstreams(upstream)) as world:
        Full().strike(world)
        body = {"model": "m", "user": "alice", "input": LONG, "stream": stream}
        reply = world.gateway.ask("POST", "/v1/responses", json.dumps(body).encode())
        assert reply.status == 200
        last = reply.body.rpartition(b"event: response.completed\ndata: ")[2]
        shown = json.loads(last.partition(b"\n")[0])["response"] if stream else reply.json
        assert shown["status"] == "completed"
        assert shown["store"] is False
        assert world.gateway.ask("GET", f"/v1/responses/{shown['id']}").status == 404
