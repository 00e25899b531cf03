"""The client leaves: the upstream's connection closes, and what was said is not taken for heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.run.memory.composer import Composer
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.upstream.attempts import Attempts
from gateway.web.client_reply import ClientReply
from storage.forget_commands import ForgetTarget
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, raw, say
from tests.gateway.sdk import CHAT, World, agent, remember
from tests.server import QUIET

SECRET = "The treasure lies under the third palm tree."


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def leave(
    world: World,
    reply: Reply,
    *,
    after: bytes | None,
    model: str = "m",
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> UpstreamRequest:
    """A client that leaves when it has read `after`, or (None) as soon as the upstream has its request."""
    world.upstream.queue(reply)
    count = len(world.upstream.requests) + 1
    body = {
        "model": model,
        "user": "alice",
        "messages": [{"role": "user", "content": "Where is it?"}],
        **options,
    }
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(body).encode(), headers)
        world.upstream.request_gate(count).wait_sync()
        if after is not None:
            client.read_until(after)
    seen = world.upstream.requests[count - 1]
    seen.gone.wait_sync()
    return seen


def assert_nothing_of_the_reply_is_known(world: World) -> None:
    world.settle()
    assert world.store.health.waiting == 0
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [0]
    world.chat(user="alice").say("Where does the treasure lie, under which palm tree?")
    assert "third" not in world.upstream.last.body.decode()
    world.chat(user="alice", model="agent/helper").say("Where does the treasure lie, under which palm tree?")
    assert "third" not in world.upstream.last.body.decode()


@pytest.mark.parametrize("model", ["m", "agent/helper"])
def test_while_a_whole_reply_is_awaited(world: World, model: str) -> None:
    leave(world, say(SECRET, hold_before_headers=Gate()), after=None, model=model)
    assert_nothing_of_the_reply_is_known(world)


@pytest.mark.parametrize("model", ["m", "agent/helper"])
def test_before_the_first_byte_of_a_stream(world: World, model: str) -> None:
    leave(world, say(SECRET, hold_before_headers=Gate()), after=None, model=model, stream=True)
    assert_nothing_of_the_reply_is_known(world)


@pytest.mark.parametrize("model", ["m", "agent/helper"])
def test_in_the_middle_of_a_stream(world: World, model: str) -> None:
    seen = leave(world, say(SECRET, hold_after={8: Gate()}), after=b"third", model=model, stream=True)
    assert seen.sent_events == 8
    assert_nothing_of_the_reply_is_known(world)


def test_on_a_connection_whose_last_reply_is_still_read_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply before has its end already, and only the upstream's last bytes of it are still waited for."""
    monkeypatch.setattr("gateway.run.turn.LAST_BYTES_S", 10.0)
    last_bytes = Gate()
    # Three events of the text, the end and [DONE]; the gate holds what follows.
    world.upstream.queue(say("Hello there.", hold_after={5: last_bytes}), say(SECRET, hold_after={8: Gate()}))
    body = {"model": "m", "user": "alice", "stream": True}
    with world.gateway.connect() as client:
        for n, (question, until) in enumerate((("Hello", b"0\r\n\r\n"), ("Where is it?", b"third")), start=1):
            asked = {**body, "messages": [{"role": "user", "content": question}]}
            client.request("POST", CHAT, json.dumps(asked).encode())
            world.upstream.request_gate(n).wait_sync()
            client.read_until(until)
        first, second = world.upstream.requests
        assert not first.settled.is_open
        last_bytes.open()
    second.gone.wait_sync()


def test_after_a_long_request(world: World) -> None:
    """More than the server reads at once: it stops there, and has to go on to find that the client left."""
    messages = [{"role": "user", "content": "x" * 700_000}]
    leave(world, say(SECRET, hold_before_headers=Gate()), after=None, messages=messages)


def test_a_turn_that_is_cut_in_its_second_round_merges_no_edits(world: World) -> None:
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "third"}), text="So, ")
    )
    world.upstream.queue(say(SECRET, hold_after={4: Gate()}))
    body = {"model": "agent/helper", "user": "alice", "messages": [{"role": "user", "content": "Where?"}]}
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**body, "stream": True}).encode())
        client.read_until(b"treasure")
    world.upstream.requests[1].gone.wait_sync()
    world.settle()
    world.pass_time(1000)
    assert world.query("SELECT count(*) FROM block_ops WHERE state = 'merged'") == [0]
    assert_nothing_of_the_reply_is_known(world)


@pytest.mark.parametrize(
    ("end", "state"), [("[DONE]", "finished"), ('{"error": {"message": "Oh"}}', "cancelled")]
)
def test_while_the_last_words_wait_for_a_client_that_reads_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, end: str, state: str
) -> None:
    """The end has come with them, and what came is stored though they could not be sent."""
    waits = Gate()

    async def never_taken(reply: ClientReply, data: bytes) -> None:
        waits.open()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(ClientReply, "write", never_taken)
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [
        {"index": 0, "delta": {"role": "assistant", "content": SECRET}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    events = [*(json.dumps({**chunk, "choices": [choice]}) for choice in choices), end]
    world.upstream.queue(raw(b"".join(f"data: {each}\n\n".encode() for each in events)))
    body = {"model": "m", "user": "alice", "stream": True, "messages": SPOKEN[:1]}
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(body).encode())
        waits.wait_sync()
    ((found, said),) = world.query("SELECT state, shown_reply FROM exchanges")
    assert (found, json.loads(said)["content"]) == (state, SECRET)


def test_in_the_moment_in_which_a_later_round_is_answered(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keep-alive comments a task of its own waits for the answer, and has it when the turn is cancelled."""
    send, answered = Attempts.send, []

    async def left_when_answered(attempts: Attempts, make: Any, repairer: Any) -> Any:
        answered.append(await send(attempts, make, repairer))
        if len(answered) == 2:
            sink = make.__self__.call.sink  # of the turn that makes the request
            assert isinstance(sink, ClientReply)
            asyncio.get_running_loop().call_soon(sink._lose_client)
        return answered[-1]

    monkeypatch.setattr(Attempts, "send", left_when_answered)
    with remember(upstream, tmp_path, agent(), server={"keep_alive_comment_s": 60.0}) as world:
        insert = Call("memory_insert", {"label": "human", "new_string": "third"})
        upstream.queue(call_tools(insert, text="So, "), say(SECRET, hold_after={2: Gate()}))
        body = {"model": "agent/helper", "user": "alice", "stream": True, "messages": SPOKEN[:1]}
        with world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode())
            upstream.request_gate(2).wait_sync()
            upstream.last.gone.wait_sync()


def test_a_client_that_leaves_before_the_reply_makes_the_gateway_look_no_faster(world: World) -> None:
    leave(world, say(SECRET, hold_before_headers=Gate()), after=None)
    world.settle()
    lines = world.gateway.ask("GET", "/metrics").body.decode().splitlines()
    assert "mnemogate_clients_gone_total 1.0" in lines
    assert "mnemogate_added_seconds_count 0.0" in lines
    (request,) = world.gateway.app.services.requests.list_ended()
    assert request.status == 499
    assert world.gateway.app.services.requests.figures.sum_last_hour(world.clock()).added_p50 is None


@pytest.mark.sqlite
def test_while_the_commit_is_awaited(world: World) -> None:
    """The client has all the text, and leaves before the end that waits for the disk: the turn is stored."""
    with world.gateway.connect() as client:
        assert QUIET.commit_wait_s  # the end waits for the commit at all
        disk = hold_the_disk(world)
        waiting = world.store.health.waiting
        world.upstream.queue(say("You said so."))
        body = {
            "model": "m",
            "user": "alice",
            "messages": [{"role": "user", "content": "My boat is the Nina."}],
        }
        client.request("POST", CHAT, json.dumps({**body, "stream": True}).encode())
        client.read_until(b"so.")
        while world.store.health.waiting == waiting:  # until the turn is handed to the writer
            world.gateway.call(asyncio.sleep(0))
    disk.open()
    world.settle()
    world.chat(user="alice").say("What is my boat called?")
    assert "Nina" in world.upstream.last.body.decode()


def hold_the_disk(world: World) -> Gate:
    """Returns when the writer waits; what is written meanwhile waits for it."""
    stop, here = Gate(), Gate()

    def block(_: object) -> None:
        here.open()
        stop.wait_sync()

    world.gateway.loop.call_soon_threadsafe(lambda: world.store.database.writer.submit(block))
    here.wait_sync()
    return stop


async def is_asking(world: World) -> None:
    """Until a request has come as far as it comes without the disk."""
    while world.gateway.app.services.idle.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)


SPOKEN = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "The treasure"},
    {"role": "user", "content": "Stop, I hear my parrot."},
]


@pytest.mark.sqlite
def test_a_caller_who_speaks_on_at_once_continues_the_cut_reply(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The turn that was cut is not on disk yet when the next request comes."""
    with remember(upstream, tmp_path, agent()) as world, ThreadPoolExecutor() as threads:
        world.chat(user="alice").say("Hello.")
        disk = hold_the_disk(world)
        leave(world, say(SECRET, hold_after={4: Gate()}), after=b"treasure", stream=True)
        future = threads.submit(world.post, SPOKEN, user="alice")
        world.gateway.call(is_asking(world))
        disk.open()
        assert future.result().status == 200
        rows = world.query("SELECT input FROM exchanges WHERE active <> 0 ORDER BY id")
        assert [len(json.loads(each)) for each in rows] == [1, 1, 1]
        assert "palm" not in str(world.query("SELECT shown_reply FROM exchanges"))


def test_a_caller_who_hangs_up_and_speaks_on_at_once_continues_the_cut_reply(world: World) -> None:
    """Over a connection that is open already: the end of the one and the request on the other are found together."""
    asked = {"model": "m", "stream": True, "messages": SPOKEN[:1]}
    for n in range(20):
        world.upstream.queue(say(SECRET, hold_after={4: Gate()}))
        with world.gateway.connect() as other:
            other.request("GET", "/health")
            other.read_reply()
            with world.gateway.connect() as client:
                client.request("POST", CHAT, json.dumps({**asked, "user": f"user {n}"}).encode())
                client.read_until(b"treasure")
            body = {"model": "m", "messages": SPOKEN, "user": f"user {n}"}
            other.request("POST", CHAT, json.dumps(body).encode())
            assert other.read_reply().status == 200
    rows = world.query("SELECT input FROM exchanges WHERE active <> 0")
    assert [len(json.loads(each)) for each in rows] == [1, 1] * 20


@pytest.mark.sqlite
def test_a_disk_that_stalls_holds_up_who_speaks_on_no_longer_than_any_other(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent(), limits=replace(QUIET, commit_wait_s=0.001)) as world:
        world.chat(user="alice").say("Hello.")
        disk = hold_the_disk(world)
        leave(world, say(SECRET, hold_after={4: Gate()}), after=b"treasure", stream=True)
        reply = world.post(SPOKEN, user="alice")
        assert (reply.status, reply.headers["x-mnemogate-durable"]) == (200, "false")
        disk.open()


def test_the_connection_of_a_client_that_stayed_is_used_again(world: World) -> None:
    for stream in (True, False, True):
        world.chat(user="alice").say("Hi", stream=stream)
    assert world.upstream.opened == 1


def test_the_users_words_of_a_cancelled_turn_stand_once_they_are_resent(world: World) -> None:
    leave(world, say(SECRET, hold_after={4: Gate()}), after=b"treasure", stream=True)
    world.settle()
    chat = world.chat(user="alice")
    chat.messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "The treasure"},
    ]
    chat.say("Wait, I hear my parrot Flint.")
    rows = world.query("SELECT shown_reply FROM exchanges WHERE active <> 0 ORDER BY id")
    assert "palm" not in str(rows)
    assert len(rows) == 2
    world.chat(user="alice").say("What did you say about the treasure? And my parrot?")
    last = world.upstream.last.body.decode()
    assert "Flint" in last
    assert "palm" not in last


@pytest.mark.both
def test_a_held_message_that_is_forgotten_is_not_sent_any_more(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}
    for text in ("My parrot is Flint.", "Where is it?"):
        messages = [{"role": "user", "content": text}]
        leave(world, say(SECRET, hold_after={4: Gate()}), after=b"treasure", stream=True, messages=messages,
              headers=headers)  # fmt: skip
        world.settle()
    memory, seq = world.query("SELECT agent, max(seq) FROM exchanges GROUP BY agent")[0]
    world.gateway.call(world.store.forgetting.forget(memory, ForgetTarget(message_seqs=[seq])))
    assert world.post([{"role": "user", "content": "Hello?"}], headers, user="alice").status == 200
    assert [each["content"] for each in world.upstream.last.messages] == ["Where is it?", "Hello?"]


@pytest.mark.both
def test_a_forgotten_message_takes_no_later_one_along_that_was_held_with_it(world: World) -> None:
    """Under the earlier of its numbers: the later send has the message once more, and one of its own."""
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}
    for text in ("My parrot is Flint.", "Where is it?"):
        messages = [{"role": "user", "content": text}]
        leave(world, say(SECRET, hold_after={4: Gate()}), after=b"treasure", stream=True, messages=messages,
              headers=headers)  # fmt: skip
        world.settle()
    memory, seq = world.query("SELECT agent, min(seq) FROM exchanges GROUP BY agent")[0]
    world.gateway.call(world.store.forgetting.forget(memory, ForgetTarget(message_seqs=[seq])))
    stored = world.query("SELECT input, shown_reply FROM exchanges WHERE state <> 'forgotten'")
    assert "Flint" not in str(stored)
    assert "treasure" not in str(stored)
    assert world.post([{"role": "user", "content": "Hello?"}], headers, user="alice").status == 200
    assert [each["content"] for each in world.upstream.last.messages] == ["Where is it?", "Hello?"]


def test_a_later_turn_that_is_cancelled_leaves_the_earlier_ones_as_they_are(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say("My boat is the Nina.")
    chat.messages.append({"role": "user", "content": "Where is the treasure?"})
    leave(world, say(SECRET, hold_after={8: Gate()}), after=b"third", stream=True, messages=chat.messages)
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [1]
    chat.messages.pop()
    chat.say("Something else.")
    assert len(world.upstream.last.messages) == 3
    world.chat(user="alice").say("Where does the treasure lie? And what is my boat called?")
    last = world.upstream.last.body.decode()
    assert "Nina" in last
    assert "third" not in last


@pytest.mark.parametrize(
    ("owner", "step"),
    [(MemoryKeeper, "begin"), (Composer, "make_prompt"), (MemoryKeeper, "open")],
    ids=["read", "searched", "written"],
)
def test_a_client_that_leaves_before_the_model_is_asked_costs_no_reply(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    """However long memory takes: callers that speak on cancel many turns at once."""
    begun, left, slow = Gate(), Gate(), Gate()
    perform, lose = getattr(owner, step), ClientReply._lose_client

    async def performed_late(*args: Any, **options: Any) -> Any:
        begun.open()
        await slow.wait()
        return await perform(*args, **options)

    def lost(reply: ClientReply) -> None:
        lose(reply)
        left.open()

    with remember(upstream, tmp_path, agent()) as world:
        monkeypatch.setattr(owner, step, performed_late)
        monkeypatch.setattr(ClientReply, "_lose_client", lost)
        body = {"model": "m", "user": "alice", "stream": True, "messages": SPOKEN[:1]}
        headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}
        with world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode(), headers)
            begun.wait_sync()
        left.wait_sync()
        slow.open()
        world.settle()
        assert upstream.chats == []
