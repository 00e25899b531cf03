"""Two gateways that share nothing but their database: their clocks differ, and each may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.offline_work import import_file
from gateway.operations import make_import_operations
from gateway.run.admin.imports import import_operations
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.settings import DatabaseSettings, Settings
from storage.postgres import listen
from storage.records import Scope
from storage.sql import keys
from storage.sql.imports import Imports
from storage.sql.store import Store
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.forked import ROOT
from tests.gateway.lifecycle.test_two_gateways import Two
from tests.gateway.patient import LEASE_S
from tests.gateway.process import Process, command, serving
from tests.gateway.sdk import remember
from tests.gateway.two.deployment import CHAT, MODULE, Database
from tests.patience import PATIENCE_S, becomes
from tests.postgres import execute, query
from tests.server import serve, settings_for
from tests.stored import open_store

HOURS_S = 5 * 3600.0
# Whoever waits for a lock.
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
SETTINGS = """\
[[upstreams]]
name = "up"
base_url = "{base_url}"
api_key = "none"
models = ["m"]
"""


def ask(gateway: Process, messages: list[dict[str, Any]], **headers: str) -> str:
    body = {"model": "m", "user": "ann", "messages": messages}
    reply = gateway.ask(
        "POST", CHAT, json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on"), reply.body
    return str(reply.json["choices"][0]["message"]["content"])


@contextmanager
def processes(
    folder: Path, upstream: StrictUpstream, url: str, skews: tuple[float, float] = (0.0, 0.0)
) -> Iterator[list[Process]]:
    """Two gateways whose clocks are wrong by so many seconds."""
    with ExitStack() as stack:
        found = []
        for number, skew in enumerate(skews):
            where = folder / f"gateway{number}"
            where.mkdir()
            environ = {**Database(where, url).environ, "SKEW_S": str(skew)}
            module = "tests.gateway.two.skewed" if skew else MODULE
            settings = SETTINGS.format(base_url=upstream.base_url)
            found.append(
                stack.enter_context(serving(where, settings=settings, module=module, environ=environ))
            )
        yield found


# -- clocks


def test_gateways_rely_on_no_clock_of_their_machines(
    upstream: StrictUpstream, tmp_path: Path, url: str
) -> None:
    append = {"x-mnemogate-history": "append"}
    with (
        processes(tmp_path, upstream, url, (HOURS_S, -HOURS_S)) as gateways,
        ThreadPoolExecutor() as threads,
    ):
        ahead, behind = gateways
        # A lease that the one has taken holds before the other, whose clock is far past its end, or far before it.
        gate, turns = Gate(), []
        upstream.queue(*[say("First reply.", hold_before_headers=gate)] * 2, *[say("Second reply.")] * 2)
        for n, (first, second) in enumerate(((behind, ahead), (ahead, behind))):
            headers = {**append, "x-mnemogate-conversation": f"c{n}"}
            turns.append(threads.submit(ask, first, [{"role": "user", "content": "First."}], **headers))
            becomes(lambda n=n: len(upstream.requests) == n + 1)  # type: ignore[misc]
            turns.append(threads.submit(ask, second, [{"role": "user", "content": "Second."}], **headers))
        time.sleep(1.5 * LEASE_S)
        assert len(upstream.requests) == 2, "nobody has come in between"
        gate.open()
        assert [turn.result() for turn in turns] == ["First reply.", "Second reply."] * 2
        rows = query(
            url, "SELECT input FROM exchanges e JOIN conversations c ON c.id = conversation ORDER BY key, seq"
        )
        assert [json.loads(each)[-1]["content"] for (each,) in rows] == ["First.", "Second."] * 2
        messages: list[dict[str, Any]] = []
        for n in range(6):
            messages.append({"role": "user", "content": f"My cat{n} is called Miso{n}."})
            messages.append({"role": "assistant", "content": ask(gateways[n % 2], messages)})
        assert query(url, "SELECT count(*) FROM conversations WHERE key IS NULL") == [(1,)]
        assert query(url, "SELECT count(*) FROM exchanges WHERE active <> 0") == [(10,)]
        for gateway in gateways:
            ask(gateway, [{"role": "user", "content": "What is my cat3 called?"}])
            assert "Miso3" in str(upstream.last.messages[-1])
        # What is written down is of the database's time, and so is what is due.
        apart = "SELECT max(abs(begun - extract(epoch FROM now())::float8)) FROM exchanges"
        assert query(url, apart)[0][0] < HOURS_S / 2


def test_a_command_uses_the_databases_clock(tmp_path: Path, url: str) -> None:
    (tmp_path / "facts.md").write_text("- I like tea.\n")
    environ = {
        **os.environ,
        **Database(tmp_path, url).environ,
        "PYTHONPATH": str(ROOT),
        "SKEW_S": str(HOURS_S),
    }
    arguments = [sys.executable, "-m", "tests.gateway.two.skewed", "import", "facts.md", "--user", "ann"]
    subprocess.run(arguments, cwd=tmp_path, env=environ, check=True, capture_output=True)
    apart = "SELECT max(abs(created - extract(epoch FROM now())::float8)) FROM imports"
    assert query(url, apart)[0][0] < HOURS_S / 2


# -- a notification that does not arrive


def test_the_first_key_counts_where_no_notification_of_it_arrives(
    upstream: StrictUpstream, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (keys, listen):
        monkeypatch.setattr(module, "POLL_S", 0.3)
    settings = settings_for(upstream)

    async def open_listening() -> Store:
        return await open_store(url)

    async def open_without_notifications() -> Store:
        return await open_store(url, is_pooled=True)

    with serve(settings, open_listening) as one, serve(settings, open_without_notifications) as other:
        world = Two(upstream, one, other)
        assert world.chat(other, "Hello.").status == 200
        store = one.app.services.store
        assert store is not None
        _, plain = one.call(store.keys.create("default", "k"))
        assert world.chat(one, "Hello.").status == 401
        becomes(lambda: world.chat(other, "Hello.").status == 401)
        assert world.chat(other, "Hello.", authorization=f"Bearer {plain}").status == 200
        one.call(store.keys.revoke("k"))
        becomes(lambda: world.chat(other, "Hello.", authorization=f"Bearer {plain}").status == 401)


# -- an end in between


def test_an_agent_that_is_deleted_during_its_run_elsewhere_leaves_nothing(
    upstream: StrictUpstream, url: str
) -> None:
    async def open_here() -> Store:
        return await open_store(url)

    settings = settings_for(upstream)
    with serve(settings, open_here) as one, serve(settings, open_here) as other:
        world = Two(upstream, one, other)
        deleted, other_agent, gate = world.agent(), world.agent(), Gate()
        upstream.queue(say("Never stored.", hold_before_headers=gate))
        future = world.threads.submit(world.send, one, deleted, "Secret.")
        becomes(lambda: len(world.prompts()) == 1)
        assert world.ask(other, "DELETE", f"/v1/agents/{deleted}")[0] == 200
        gate.open()
        status, reply = future.result(PATIENCE_S)
        assert status in (404, 409) or reply["stop_reason"]["stop_reason"] in ("cancelled", "error"), reply
        for gateway in (one, other):
            assert world.send(gateway, deleted, "Hello?")[0] == 404
            assert world.send(gateway, other_agent, "Hello.")[0] == 200
        becomes(lambda: not query(url, "SELECT 1 FROM runs WHERE state IN ('created', 'running')"))
        text = str(query(url, 'SELECT input, shown_reply, "full" FROM exchanges'))
        assert "Secret." not in text
        assert "Never stored." not in text


def test_both_gateways_have_an_imported_memory(upstream: StrictUpstream, tmp_path: Path, url: str) -> None:
    with processes(tmp_path, upstream, url) as gateways:
        ask(gateways[0], [{"role": "user", "content": "My cat is called Miso."}])
        environ = Database(tmp_path, url).environ
        process = command("memory", "export", "--user", "ann", "ann.jsonl", where=tmp_path, environ=environ)
        assert process.returncode == 0, process.stderr
        assert (
            command("memory", "forget", "--yes", "--user", "ann", where=tmp_path, environ=environ).returncode
            == 0
        )
        question = [{"role": "user", "content": "What is my cat called?"}]
        path = ("ann.jsonl", "--user")
        for user in ("ann", "bob"):
            process = command("memory", "import", *path, user, where=tmp_path, environ=environ)
            assert process.returncode == 0, process.stderr
        for gateway in gateways:
            ask(gateway, question)
            assert "Miso" in str(upstream.last.messages[-1])
        # Who has a memory keeps it.
        process = command("memory", "import", *path, "ann", where=tmp_path, environ=environ)
        assert process.returncode == 1
        assert "has a memory here already" in process.stderr


def test_another_gateway_reports_whether_an_import_runs(
    upstream: StrictUpstream, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while nothing is written, as where a long conversation is indexed."""
    monkeypatch.setattr(import_operations, "_TOUCH_S", 0.01)

    async def wait(*_: Any) -> None:
        await asyncio.Event().wait()  # until it is stopped

    def status() -> str:
        return str(world.gateway.call(elsewhere.show(begun["id"]))["status"])

    monkeypatch.setattr(Imports, "write_part", wait)
    with remember(upstream, url, admin_token="the-owner") as world:
        elsewhere = make_import_operations(Settings(), world.store, world.clock)
        path, file = "/v1/manage/imports?user=ann", b'{"messages": [{"role": "user", "content": "Hello."}]}'
        begun = world.gateway.ask("POST", path, file, {"x-mnemogate-admin": "the-owner"}).json
        world.clock.sleep(3_600)
        becomes(lambda: status() == "running")
        # Its gateway stops in order.
        world.gateway.call(world.gateway.app.services.imports.aclose())
        assert status() == "stopped"


async def test_a_command_continues_an_import_whose_process_was_just_killed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It seems to go on for a while."""
    monkeypatch.setattr(import_operations, "_STOPPED_AFTER_S", 1.0)
    file, settings, shown = tmp_path / "talk.json", Settings(database=DatabaseSettings(url=url)), list[Any]()
    file.write_text('{"messages": [{"role": "user", "content": "Hello."}]}')
    first = await import_file(settings, str(file), {"user": "ann"}, shown.append)
    execute(url, "UPDATE imports SET status = 'running', touched = extract(epoch FROM clock_timestamp())")
    shown.clear()
    again = await import_file(settings, str(file), {"user": "ann"}, shown.append)
    assert shown[0]["status"] == "running"
    assert (again["status"], again["messages"]) == ("done", first["messages"])


async def test_two_imports_of_one_export_at_once_both_succeed(url: str) -> None:
    """Its conversation has a name that the whole database has once; the second one gets another."""
    store, holder = await open_store(url), await asyncpg.connect(url)
    try:
        head = {"memory": {"format": 2, "uid": "u", "next_seq": 1, "created": 1.0}}
        conversation = {"uid": "c" * 32, "key": None, "begun": 1.0, "last_at": 1.0, "settled_at": 0.0}
        lines = [json.dumps(each) for each in (head, {"conversation": conversation}, {"end": {}})]

        async def fill() -> None:
            restore = TransferOperations(store).restore
            owner = {"project": "p", "profile": "default", "user": "ann"}
            at = (await restore({**owner, "lines": lines, "at": None}))["at"]
            await restore({**owner, "lines": [], "at": at, "end": True})

        begun = holder.transaction()
        await begun.start()
        put = "INSERT INTO conversations (agent, uid, begun, last_at) VALUES (77, $1, 1, 1)"
        await holder.execute(put, conversation["uid"])
        filling = asyncio.create_task(fill())
        async with asyncio.timeout(PATIENCE_S):
            while not await holder.fetch(WAITING):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await begun.commit()
        await filling
        agent = await store.agents.find(Scope("p", "default", "user:ann"))
        assert agent is not None
        rows = await holder.fetch("SELECT uid FROM conversations WHERE agent = $1", agent.id)
        assert len(rows) == 1
        assert rows[0]["uid"] != conversation["uid"]
    finally:
        await holder.close()
        await store.close()


@pytest.mark.parametrize("is_done", [True, False])
def test_a_gateway_that_is_killed_within_a_commit_has_written_the_turn_or_not(
    upstream: StrictUpstream, tmp_path: Path, url: str, is_done: bool
) -> None:
    """Its statement waits for the agent's row when the process dies; the server performs it, or loses it, too."""
    with processes(tmp_path, upstream, url) as gateways:
        messages = [{"role": "user", "content": "One."}]
        messages.append({"role": "assistant", "content": ask(gateways[0], messages)})
        messages.append({"role": "user", "content": "Two."})

        async def kill_within() -> None:
            holder = await asyncpg.connect(url)
            try:
                begun = holder.transaction()
                await begun.start()
                await holder.fetch("SELECT FROM agents FOR NO KEY UPDATE")
                sent = threading.Thread(target=_ask_in_vain, args=(gateways[0], messages))
                sent.start()
                async with asyncio.timeout(PATIENCE_S):
                    while not (waiting := await holder.fetch(WAITING)):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                gateways[0].kill()
                if not is_done:
                    for (pid,) in waiting:
                        await holder.fetch("SELECT pg_terminate_backend($1)", pid)
                await begun.commit()
                await asyncio.to_thread(sent.join)
            finally:
                await holder.close()

        asyncio.run(kill_within())
        stands = "SELECT count(*) FROM exchanges WHERE active <> 0"
        if is_done:
            becomes(lambda: query(url, stands) == [(2,)])
        # The client, which has heard nothing, asks the other one again.
        messages.append({"role": "assistant", "content": ask(gateways[1], messages)})
        assert query(url, stands) == [(2,)]
        messages.append({"role": "user", "content": "Three."})
        ask(gateways[1], messages)
        assert query(url, stands) == [(3,)]
        assert query(url, "SELECT count(*) FROM conversations") == [(1,)]


def _ask_in_vain(gateway: Process, messages: list[dict[str, Any]]) -> None:
    try:
        ask(gateway, messages)
    except (OSError, EOFError):
        return
    raise AssertionError("the turn ended, though it was not written")
