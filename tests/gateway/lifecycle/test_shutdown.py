"""A gateway that stops lets what runs come to its end, within bounds, and loses nothing of it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from adapters.scripted import ScriptedProvider
from gateway.app import Gateway
from gateway.limits import Limits
from gateway.log import AccessLog
from gateway.services import Services
from gateway.settings import Settings
from storage.errors import StoreClosed
from storage.sql.store import Store
from storage.sqlite.lock import find_lock_owner
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.process import serving
from tests.patience import PATIENCE_S, becomes
from tests.server import QUIET, RawClient, RunningGateway, serve, settings_for
from tests.stored import open_store, shown, url_of

CHAT = "/v1/chat/completions"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "m.db"


@contextmanager
def gateway_on(
    upstream: StrictUpstream, database: Path, *, limits: Limits = QUIET, **server: Any
) -> Iterator[RunningGateway]:
    async def open_here() -> Store:
        return await open_store(database)

    settings = settings_for(upstream, server=server)
    with serve(settings, open_here, limits=limits) as running:
        yield running


def send(client: RawClient, text: str, *, stream: bool = True, headers: dict[str, str] | None = None) -> None:
    body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": text}], "stream": stream}
    client.request("POST", CHAT, json.dumps(body).encode(), headers)


def rows(database: Path) -> list[tuple[str, str, str | None, int]]:
    """(state, what the user said, the reply's text, whether it stands) of each turn, after the gateway's end."""
    if url_of(database) is None:
        assert find_lock_owner(database) is None
        assert shown(database, "PRAGMA integrity_check") == [("ok",)]
    return [
        (state, json.loads(given)[-1]["content"], said and json.loads(said)["content"], active)
        for state, given, said, active in shown(
            database, "SELECT state, input, shown_reply, active FROM exchanges ORDER BY id"
        )
    ]


def stop(gateway: RunningGateway) -> None:
    gateway.loop.call_soon_threadsafe(gateway.server.request_exit)


@contextmanager
def stalled(gateway: RunningGateway, database: Path) -> Iterator[None]:
    """No turn is written meanwhile: the writer's thread waits, or somebody holds the table."""
    gate, entered = Gate(), Gate()

    def wait(_: sqlite3.Connection) -> None:
        entered.open()
        gate.wait_sync()

    async def submit() -> None:
        gateway.app.services.store.database.writer.submit(wait)

    async def hold(url: str) -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE exchanges IN EXCLUSIVE MODE")
            entered.open()
            await asyncio.to_thread(gate.wait_sync)
        await connection.close()

    with ThreadPoolExecutor(1) as thread:
        url = url_of(database)
        if url is None:
            gateway.call(submit())
        else:
            thread.submit(asyncio.run, hold(url))
        entered.wait_sync()
        try:
            yield
        finally:
            gate.open()


def test_a_connection_whose_client_knows_of_no_end_takes_one_more_request(
    upstream: StrictUpstream, database: Path
) -> None:
    """A proxy that has just sent one gets its reply, and sends the next one elsewhere."""
    limits, gate = replace(QUIET, last_request_s=PATIENCE_S), Gate()
    with gateway_on(upstream, database, limits=limits) as gateway, ExitStack() as stack:
        fresh, idle, streaming = (stack.enter_context(gateway.connect()) for _ in range(3))
        send(idle, "Before", stream=False)
        assert idle.read_reply().status == 200
        upstream.queue(say("Some words", hold_after={2: gate}))
        send(streaming, "Before")
        assert "connection" not in streaming.read_head().headers
        stop(gateway)
        wait_until_refused(gateway)
        gate.open()
        streaming.read_until(b"data: [DONE]\n\n")
        streaming.read_until(b"0\r\n\r\n")
        for client in (fresh, idle, streaming):
            send(client, "Last", stream=False)
            reply = client.read_reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert client.socket.recv(1) == b""


def wait_until_refused(gateway: RunningGateway) -> None:
    """Returns when the gateway accepts no new connection any more."""

    def refuses() -> bool:
        try:
            gateway.connect().socket.close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass  # the listening socket was closed during the handshake
        return False

    becomes(refuses)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_lets_running_replies_end_and_they_are_on_disk(
    upstream: StrictUpstream, tmp_path: Path, database: Path, end: signal.Signals
) -> None:
    gates = [Gate() for _ in range(4)]
    upstream.queue(*(say(f"Reply {i}", hold_after={2: gate}) for i, gate in enumerate(gates[:2])))
    upstream.queue(*(say(f"Reply {i + 2}", hold_before_headers=gate) for i, gate in enumerate(gates[2:])))
    with (
        serving(tmp_path, "--db", str(database), "--upstream", upstream.base_url) as gateway,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(gateway.connect()) for _ in gates]
        for i, client in enumerate(clients):
            send(client, f"Question {i}", stream=i < 3)
            upstream.request_gate(i + 1).wait_sync()
        for client in clients[:2]:
            assert client.read_head().status == 200  # these are in the middle of their reply
        gateway.child.send_signal(end)
        for gate in gates:
            gate.open()
        for client in clients[:2]:
            client.read_until(b"data: [DONE]\n\n")
        for client in clients[2:]:
            assert client.read_reply().status == 200
        assert gateway.child.wait(PATIENCE_S) == 0
    logged = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    assert [line["cut"] for line in logged if line.get("path") == CHAT] == [False] * 4
    said = [line["message"] for line in logged if line.get("logger") == "mnemogate"]
    assert f"Stopping after {end.name}: waiting up to 30 s for 4 requests." in said
    assert re.fullmatch(r"Stopped after \d+\.\d s: waited for 4 requests, cut 0\.", said[-1])
    assert not Path(f"{database}.admin").exists()
    assert not Path(f"{database}-wal").exists()  # written back: the file alone is the database
    assert sorted(rows(database)) == [("finished", f"Question {i}", f"Reply {i}", 1) for i in range(4)]


def test_a_gateway_under_nohup_outlives_its_terminal(upstream: StrictUpstream, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving(tmp_path, "--db", "m.db", "--upstream", upstream.base_url, is_new=True) as gateway:
            gateway.child.send_signal(signal.SIGHUP)
            assert gateway.ask("GET", "/health/ready").json["status"] == "ok"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_cuts_what_runs_and_loses_no_question(
    upstream: StrictUpstream, tmp_path: Path, database: Path, name: str
) -> None:
    address = ("--db", str(database), "--upstream", upstream.base_url)
    settings = "[server]\nshutdown_s = 3600"  # longer than the test waits: it is the second signal that cuts
    never = Gate()
    upstream.queue(say("Never", hold_before_headers=never), say("Cut", hold_after={2: never}))
    with (
        serving(tmp_path, *address, settings=settings) as gateway,
        gateway.connect() as whole,
        gateway.connect() as streamed,
    ):
        send(whole, "First", stream=False)
        upstream.request_gate(1).wait_sync()
        send(streamed, "Second")
        upstream.request_gate(2).wait_sync()
        assert streamed.read_head().status == 200
        gateway.child.send_signal(signal.Signals[name])
        while True:  # until it is known to have come
            try:
                gateway.ask("GET", "/health")
            except (OSError, EOFError):
                break
        gateway.child.send_signal(signal.Signals[name])
        reply = whole.read_reply()
        assert (reply.status, reply.error["message"]) == (503, "The gateway is shutting down.")
        assert b"shutting down" in streamed.read_until(b"0\r\n\r\n")
        assert gateway.child.wait(PATIENCE_S) == 0
    logged = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    assert not any("trace" in line for line in logged)
    lines = [line for line in logged if line.get("path") == CHAT]
    assert {line["status"] for line in lines} == {200, 503}
    assert [line["cut"] for line in lines] == [True, True]
    said = [line["message"] for line in logged if line.get("logger") == "mnemogate"]
    assert f"Stopping after {name}: waiting up to 3600 s for 2 requests." in said
    assert re.fullmatch(r"Stopped after \d+\.\d s: waited for 2 requests, cut 2\.", said[-1])
    assert not Path(f"{database}-wal").exists()
    assert [(state, said) for state, said, _, _ in sorted(rows(database))] == [
        ("cancelled", "First"),
        ("cancelled", "Second"),
    ]


@pytest.mark.parametrize("text", ["Hello there", None], ids=["in its text", "before its first byte"])
def test_a_reply_cut_at_the_bound_is_a_cancelled_turn(
    upstream: StrictUpstream, database: Path, text: str | None
) -> None:
    never = Gate()
    held: dict[str, Any] = {"hold_after": {2: never}} if text else {"hold_before_headers": never}
    upstream.queue(say("Hello there", **held))
    with gateway_on(upstream, database, shutdown_s=0) as gateway, gateway.connect() as client:
        send(client, "Hi")
        upstream.request_gate(1).wait_sync()
        if text:
            client.read_until(b"Hello")
        stop(gateway)
        if text:
            assert b"shutting down" in client.read_until(b"0\r\n\r\n")
        else:
            reply = client.read_reply()
            assert (reply.status, reply.error["code"]) == (503, "overloaded")
        upstream.last.gone.wait_sync()
    ((state, said, _, active),) = rows(database)
    assert (state, said, active) == ("cancelled", "Hi", 0)
    store = gateway.app.services.store
    assert isinstance(store, Store)
    assert store.health.waiting == 0
    assert not gateway.app.services.chat.turn_services.pending._tasks


def test_a_turn_cancelled_right_before_the_end_is_written(upstream: StrictUpstream, database: Path) -> None:
    """The writer is busy when the client leaves and when the gateway gets the signal to stop."""
    with gateway_on(upstream, database, shutdown_s=1) as gateway:
        upstream.queue(say("Never heard", hold_after={2: Gate()}))
        with stalled(gateway, database):
            with gateway.connect() as client:
                send(client, "Hi")
                client.read_head()
            upstream.last.gone.wait_sync()
            stop(gateway)
    assert [(state, said) for state, said, _, _ in rows(database)] == [("cancelled", "Hi")]


def test_a_turn_released_before_its_commit_is_written_before_the_end(
    upstream: StrictUpstream, database: Path
) -> None:
    with (
        gateway_on(upstream, database, limits=replace(QUIET, commit_wait_s=0.001)) as gateway,
        stalled(gateway, database),
        gateway.connect() as client,
    ):
        send(client, "Hi", stream=False)
        assert client.read_reply().headers["x-mnemogate-durable"] == "false"
        stop(gateway)
    assert rows(database) == [("finished", "Hi", "Ok.", 1)]


def test_a_commit_that_is_awaited_at_the_bound_is_still_made(
    upstream: StrictUpstream, database: Path
) -> None:
    """Its client has all the text and no end; the turn is whole all the same."""
    with gateway_on(upstream, database, shutdown_s=0) as gateway, gateway.connect() as client:
        upstream.queue(say("Hello there"))
        with stalled(gateway, database):
            send(client, "Hi")
            client.read_until(b" there")
            upstream.last.settled.wait_sync()
            stop(gateway)
            assert b"shutting down" in client.read_until(b"0\r\n\r\n")
    assert rows(database) == [("finished", "Hi", "Hello there", 1)]


def test_sends_that_queue_when_the_bound_comes_are_answered_and_stored(
    upstream: StrictUpstream, database: Path
) -> None:
    """Append mode: the first is in the model's hands, the second waits for it."""
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c"}
    upstream.queue(say("Never", hold_before_headers=Gate()))
    with (
        gateway_on(upstream, database, shutdown_s=0) as gateway,
        gateway.connect() as one,
        gateway.connect() as two,
    ):
        send(one, "First", stream=False, headers=headers)
        upstream.request_gate(1).wait_sync()
        send(two, "Second", stream=False, headers=headers)
        gateway.ask("GET", "/health")  # by then the second is in the gateway's hands
        stop(gateway)
        assert {one.read_reply().status, two.read_reply().status} == {503}
    assert [(state, said) for state, said, _, _ in rows(database)][:1] == [("cancelled", "First")]


def test_the_next_start_finds_everything(upstream: StrictUpstream, database: Path) -> None:
    for number in range(3):
        with gateway_on(upstream, database) as gateway:
            past = [
                {"role": role, "content": content}
                for i in range(number)
                for role, content in (("user", f"Turn {i}"), ("assistant", "Ok."))
            ]
            messages = [*past, {"role": "user", "content": f"Turn {number}"}]
            reply = gateway.post({"model": "m", "user": "alice", "messages": messages})
            assert reply.status == 200
    places = shown(database, "SELECT depth, parent FROM exchanges ORDER BY id")
    assert places == [(0, None), (1, 1), (2, 2)]


class BrokenProvider(ScriptedProvider):
    """A provider that fails when it is closed."""

    async def aclose(self) -> None:
        raise OSError("the connection cannot be closed")


class NotedProvider(ScriptedProvider):
    """A provider that notes that it was closed."""

    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


async def test_a_provider_that_cannot_be_closed_leaves_no_other_open(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "m.db")
    others = NotedProvider(), NotedProvider()
    services = Services(Settings(), store, {"a": others[0], "b": BrokenProvider(), "c": others[1]})
    with pytest.raises(OSError, match="cannot be closed"):
        await services.stop()
    assert [other.is_closed for other in others] == [True, True]
    with pytest.raises(StoreClosed):
        await store.secrets.load_key("traces")


async def test_the_access_log_is_whole_though_a_provider_cannot_be_closed(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "m.db")
    lines: list[bytes] = []
    gateway = Gateway(Settings(), store, {"a": BrokenProvider()}, access=AccessLog(lines.append))
    gateway.access.add({"id": "req_1"})
    with pytest.raises(OSError, match="cannot be closed"):
        await gateway.stop()
    assert lines == [b'{"id":"req_1"}\n']
