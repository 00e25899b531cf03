"""The client leaves: the upstream's connection closes, and what was said is not taken for heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.sdk import CHAT, World, agent, remember
from tests.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, say

SECRET = "The treasure lies under the third palm tree."


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def leave(world: World, reply: Reply, *, after: bytes | None, model: str = "m", **options: Any) -> Seen:
    """A client that leaves when it has read `after`, or (None) as soon as the upstream has its request."""
    world.upstream.queue(reply)
    count = len(world.upstream.seen) + 1
    body = {
        "model": model,
        "user": "alice",
        "messages": [{"role": "user", "content": "Where is it?"}],
        **options,
    }
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(body).encode())
        world.upstream.arrived(count).wait_sync()
        if after is not None:
            client.read_until(after)
    seen = world.upstream.seen[count - 1]
    seen.gone.wait_sync()
    return seen


def assert_nothing_of_the_reply_is_known(world: World) -> None:
    world.settle()
    assert world.store.health.waiting == 0
    assert world.query("SELECT count(*) FROM exchanges WHERE standing") == [0]
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


def test_in_the_second_round(world: World) -> None:
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "third"}), text="So, ")
    )
    world.upstream.queue(say(SECRET, hold_after={4: Gate()}))
    body = {"model": "agent/helper", "user": "alice", "messages": [{"role": "user", "content": "Where?"}]}
    with world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**body, "stream": True}).encode())
        client.read_until(b"treasure")
    world.upstream.seen[1].gone.wait_sync()
    world.settle()
    world.pass_time(1000)
    assert world.query("SELECT count(*) FROM block_ops WHERE state = 'merged'") == [0]
    assert_nothing_of_the_reply_is_known(world)


def test_while_the_commit_is_awaited(world: World) -> None:
    """The client has all the text, and leaves before the end that waits for the disk: the turn is kept."""
    stop, here = Gate(), Gate()

    def block(_: object) -> None:
        here.open()
        stop.wait_sync()

    with world.gateway.connect() as client:
        held = world.gateway.app.settings.database.commit_wait_ms
        assert held  # the end waits for the commit at all
        world.gateway.loop.call_soon_threadsafe(lambda: world.store.writer.submit(block))
        here.wait_sync()
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
    stop.open()
    world.settle()
    world.chat(user="alice").say("What is my boat called?")
    assert "Nina" in world.upstream.last.body.decode()


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
    rows = world.query("SELECT said FROM exchanges WHERE standing ORDER BY id")
    assert "palm" not in str(rows)
    assert len(rows) == 2
    world.chat(user="alice").say("What did you say about the treasure? And my parrot?")
    last = world.upstream.last.body.decode()
    assert "Flint" in last
    assert "palm" not in last


def test_a_later_turn_that_is_cancelled_leaves_the_earlier_ones_as_they_are(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say("My boat is the Nina.")
    chat.messages.append({"role": "user", "content": "Where is the treasure?"})
    leave(world, say(SECRET, hold_after={8: Gate()}), after=b"third", stream=True, messages=chat.messages)
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE standing") == [1]
    chat.messages.pop()
    chat.say("Something else.")
    assert len(world.upstream.last.messages) == 3
    world.chat(user="alice").say("Where does the treasure lie? And what is my boat called?")
    last = world.upstream.last.body.decode()
    assert "Nina" in last
    assert "third" not in last
