"""A disk that takes its time costs the memory, never the chat; sends of append mode queue meanwhile."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

import gateway.run.chat
import gateway.serve
from gateway.run.chat_memory import ChatMemory
from gateway.run.pending import LEAVING_TICKS, PendingWrites
from gateway.settings import DatabaseSettings
from gateway.start_notice import describe_start
from storage.records import Scope
from storage.sqlite.writer import WriterLimits
from tests.doubles.upstream import Gate, StrictUpstream, raw, say
from tests.gateway.lifecycle.faulty import APPEND, FACT, QUESTION, STRICT, World, ask, durable, world_of
from tests.patience import PATIENCE_S, becomes
from tests.server import chat_upstreams, settings_for

# -- a disk that takes its time


@contextmanager
def stalled(world: World) -> Iterator[Gate]:
    """The writer's thread waits until the gate opens; what is committed meanwhile waits for it."""
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
            assert b"data: [DONE]\n\n" in streamed.body
            assert world.counted("mnemogate_not_durable_total") == 2
            # The wait and both turns; retention, which begins with the process, may be there as well.
            assert world.counted("mnemogate_writer_queue") in (3, 4)
        assert world.said() == ["One.", "Two."]
        assert world.counted("mnemogate_writer_queue") == 0


def test_the_wait_for_the_commit_is_time_that_the_gateway_adds(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The head of a whole reply waits for the commit: here for the longest wait, 200 ms."""
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.2) as world, stalled(world):
        whole = world.post("One.")
        assert not durable(whole)
        assert float(whole.headers["x-mnemogate-added-ms"]) >= 199


def test_the_next_request_waits_for_a_turn_that_was_released(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would not find the conversation that it continues."""
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world, stalled(world) as gate:
        first = world.post("One.")
        assert not durable(first)
        turns = world.gateway.app.services.chat.turn_services
        turns.limits = replace(turns.limits, commit_wait_s=PATIENCE_S)
        wait_written = PendingWrites.wait_written

        async def wait_and_open(pending: PendingWrites, scope: Scope, timeout_s: float) -> None:
            waiting = asyncio.ensure_future(wait_written(pending, scope, timeout_s))
            for _ in range(2 * LEAVING_TICKS):
                await asyncio.sleep(0)
            gate.open()
            await waiting

        monkeypatch.setattr(PendingWrites, "wait_written", wait_and_open)
        said = [("user", "One."), ("assistant", "Ok."), ("user", "Two.")]
        messages = [{"role": role, "content": text} for role, text in said]
        second = world.gateway.post({"model": "m", "user": "alice", "messages": messages})
        assert durable(second)
        assert second.headers["x-mnemogate-conversation"] == first.headers["x-mnemogate-conversation"]


def test_a_response_of_no_user_that_was_released_is_found_by_its_id(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: Any = {"commit_wait_s": 0.001, "upstreams": chat_upstreams(upstream)}
    with world_of(upstream, tmp_path / "m.db", **parts) as world, stalled(world) as gate:
        first = world.gateway.ask("POST", "/v1/responses", orjson.dumps({"model": "m", "input": "One."}))
        assert first.headers["x-mnemogate-durable"] == "false"
        wait_for = PendingWrites._wait_for

        async def wait_and_open(pending: PendingWrites, scopes: Set[Scope], timeout_s: float) -> None:
            gate.open()
            await wait_for(pending, scopes, PATIENCE_S)

        monkeypatch.setattr(PendingWrites, "_wait_for", wait_and_open)
        body = {"model": "m", "input": "Two.", "previous_response_id": first.json["id"]}
        second = world.gateway.ask("POST", "/v1/responses", orjson.dumps(body))
        assert second.status == 200
        assert [m["content"] for m in upstream.last.messages] == ["One.", "Ok.", "Two."]


def test_a_native_reply_that_the_disk_is_late_for_is_counted_too(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world:
        with stalled(world):
            for text, stream, headers, status in (
                ("One.", False, {}, 200),
                ("Two.", True, {}, 200),
                ("Three.", False, STRICT, 503),
            ):
                body = orjson.dumps({"model": "m", "user": "alice", "input": text, "stream": stream})
                reply = world.gateway.ask("POST", "/v1/responses", body, headers)
                assert reply.status == status
                if text == "One.":  # the head of a stream leaves before, and an error has no such header
                    assert reply.headers["x-mnemogate-durable"] == "false"
            assert world.counted("mnemogate_not_durable_total") == 3
            assert len(upstream.endpoints.responses.bodies) == 3  # natively
        assert world.said() == ["One.", "Two.", "Three."]


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
        becomes(lambda: world.status == "ok")  # what a start writes takes no time at all to be slow here
        with stalled(world):
            assert world.status == "slow"
            for stream in (False, True):
                reply = world.post("Hi", stream=stream)
                assert reply.status == 200
                assert not durable(reply)
            refused = world.post("Hi", STRICT)
            assert (refused.status, "slow" in refused.error["message"]) == (503, True)
        world.settle()
        becomes(lambda: world.status == "ok")
        assert durable_soon(world)


def test_a_start_whose_store_is_slow_says_nothing_of_a_fault(
    upstream: StrictUpstream,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "m.db"
    settings = settings_for(upstream, database=DatabaseSettings(str(path)))
    limits = WriterLimits(retry_first_s=3600, idle_s=3600, slow_s=0.0)
    with world_of(upstream, path, limits=limits) as world, stalled(world):
        assert world.status == "slow"
        gateway.serve._report_fault(world.store, "Requests are answered without memory")
        url = "http://127.0.0.1:1"
        notice = describe_start(settings, world.store.health, url, url, has_keys=False)
    assert f"Database: {path}\n" in notice
    assert "until the database can be used" not in caplog.text


def test_a_send_to_an_agent_waits_for_a_store_that_is_slow(upstream: StrictUpstream, tmp_path: Path) -> None:
    limits = WriterLimits(retry_first_s=3600, idle_s=3600, slow_s=0.0)
    with world_of(upstream, tmp_path / "m.db", limits=limits) as world, ThreadPoolExecutor(1) as pool:
        reply = world.gateway.ask("POST", "/v1/agents/", b'{"model": "up/m", "memory_blocks": []}')
        assert reply.status == 200, reply.body
        path = f"/v1/agents/{reply.json['id']}/messages"
        with stalled(world) as gate:
            assert world.status == "slow"
            send = pool.submit(world.gateway.ask, "POST", path, b'{"input": "Hi"}')
            becomes(lambda: world.store.health.waiting > 1 or send.done())
            gate.open()
        assert send.result().status == 200, send.result().body


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
            assert b"Miso" in upstream.last.body  # recall reads during the write
            assert b"[DONE]" not in streamed + alice.unread
            gate.open()
            alice.read_until(b"data: [DONE]")
            bob.read_until(b"data: [DONE]") if stream else bob.read_reply()
        assert world.said() == [FACT, FACT, "Said by Bob", QUESTION]


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
            assert b'finish_reason":"stop' not in streamed + client.unread
            assert b"[DONE]" not in streamed + client.unread
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


def test_a_turn_that_is_not_on_disk_is_no_failure_of_its_upstream(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The list of requests and the overview said that the upstream had answered 503."""
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world, stalled(world):
        assert world.post("One.", STRICT).status == 503
        (request,) = world.gateway.app.services.requests.list_ended()
        assert (request.status, request.tries) == (503, ("up:200",))


def test_strict_is_an_error_for_a_stream_of_which_nothing_was_sent(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """What comes with the finish_reason waits for the disk, and is all of this reply."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    with world_of(upstream, tmp_path / "m.db", commit_wait_s=0.001) as world, stalled(world):
        upstream.queue(raw(b"data: %b\n\n" % orjson.dumps(chunk), b"data: [DONE]\n\n"))
        reply = world.post("One.", STRICT, stream=True)
        assert (reply.status, reply.error["type"]) == (503, "server_error")


def test_append_mode_does_not_wait_for_a_stalled_disk_for_ever(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        keeper = world.gateway.app.services.chat.keeper
        assert keeper is not None
        keeper.open_wait_s = 0.001
        with stalled(world):
            refused = world.post("One.", APPEND)
            assert (refused.status, refused.error["type"]) == (503, "server_error")
        keeper.open_wait_s = 10.0
        assert upstream.requests == []
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


def test_append_sends_of_one_conversation_queue_and_no_other_waits(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with world_of(upstream, tmp_path / "m.db") as world:
        first = Gate()
        upstream.queue(say("One.", hold_before_headers=first), *[say(f"Else {i}.") for i in range(2)])
        a = append_request(world, "a", "alice", "phone")
        upstream.request_gate(1).wait_sync()
        b = append_request(world, "b", "alice", "phone")
        # Another user, and another conversation of the same user, are answered meanwhile.
        for user, room in (("bob", "phone"), ("alice", "desk")):
            with append_request(world, "else", user, room) as other:
                assert other.read_reply().status == 200
        assert [[m["content"] for m in request.messages] for request in upstream.requests] == [
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
            upstream.request_gate(1).wait_sync()  # its message is on disk
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


def test_a_send_whose_client_leaves_in_the_queue_blocks_no_other(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """Its message was said: it goes with the next one. No model is asked for it alone."""
    with world_of(upstream, tmp_path / "m.db") as world:
        hold = Gate()
        upstream.queue(say("One.", hold_before_headers=hold), say("Three."))
        with append_request(world, "a", "alice", "phone") as a:
            upstream.request_gate(1).wait_sync()
            with append_request(world, "b", "alice", "phone"):
                world.gateway.ask("GET", "/health")  # by then b is in the gateway's hands
            c = append_request(world, "c", "alice", "phone")
            world.gateway.ask("GET", "/health")
            hold.open()
            assert a.read_reply().status == 200
        with c:
            assert c.read_reply().status == 200
        assert [m["content"] for m in upstream.last.messages] == ["a", "One.", "b", "c"]
        assert len(upstream.requests) == 2
        world.settle()
        assert not world.gateway.app.services.chat.keeper.queues


@pytest.mark.parametrize("where", ["_read", "begin", "list_headers_for_upstream", "ChatCall", "TurnRun"])
def test_an_internal_error_anywhere_in_a_send_lets_the_next_one_begin(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After the queue was entered, and before the turn was under way."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with world_of(upstream, tmp_path / "m.db") as world:
        with monkeypatch.context() as patch:
            if hasattr(ChatMemory, where):
                entered = getattr(ChatMemory, where)

                async def enter_and_fail(*arguments: Any) -> None:
                    await entered(*arguments)
                    fail()

                patch.setattr(ChatMemory, where, enter_and_fail)
            else:
                patch.setattr(gateway.run.chat, where, fail)
            assert world.post("a", APPEND).status in (500, 503)
        assert world.post("b", APPEND).status == 200
        assert not world.gateway.app.services.chat.keeper.queues
