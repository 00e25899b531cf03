"""Requests at the same time: N sends keep N turns, and nobody waits for a stranger."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.agents.chat_agents import ChatAgents
from storage.records import Scope
from tests.doubles.upstream import Call, Gate, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import World, agent, kind_of, remember
from tests.patience import becomes

pytestmark = pytest.mark.both

N = 10


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


async def ask(world: World, messages: list[Any], **options: Any) -> str:
    async with world.async_client() as sdk:
        reply = await sdk.chat.completions.create(**{"model": "m", "messages": messages, **options})
    return reply.choices[0].message.content or ""


def standing_inputs(world: World) -> list[str]:
    rows = world.query("SELECT input FROM exchanges WHERE active <> 0 ORDER BY id")
    return [json.loads(each)[-1]["content"] for each in rows]


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-conversation": "c1"}], ids=["found", "named"])
async def test_parallel_sends_on_one_conversation_keep_their_turns(
    world: World, headers: dict[str, str]
) -> None:
    chat = world.chat(user="alice", headers=headers)
    await asyncio.to_thread(chat.say, "Hello.")
    gate = Gate()
    world.upstream.queue(*[say(f"Reply {n}.", hold_before_headers=gate) for n in range(N)])
    arrived = world.upstream.request_gate(1 + N)
    asks = [
        asyncio.create_task(
            ask(
                world,
                [*chat.messages, {"role": "user", "content": f"Item {n}?"}],
                user="alice",
                extra_headers=headers,
            )
        )
        for n in range(N)
    ]
    await arrived.wait()
    gate.open()
    assert sorted(await asyncio.gather(*asks)) == sorted(f"Reply {n}." for n in range(N))
    active = await asyncio.to_thread(standing_inputs, world)
    assert sorted(active) == sorted(["Hello.", *(f"Item {n}?" for n in range(N))])
    assert await asyncio.to_thread(world.query, "SELECT count(*) FROM conversations") == [1]


@pytest.mark.parametrize(
    ("headers", "conversations"), [({}, N), ({"x-mnemogate-conversation": "c1"}, 1)], ids=["found", "named"]
)
async def test_parallel_first_sends_of_a_new_user_make_one_memory(
    world: World, headers: dict[str, str], conversations: int
) -> None:
    gate = Gate()
    world.upstream.queue(*[say(f"Reply {n}.", hold_before_headers=gate) for n in range(N)])
    arrived = world.upstream.request_gate(N)
    asks = [
        asyncio.create_task(
            ask(world, [{"role": "user", "content": f"Topic {n}"}], user="alice", extra_headers=headers)
        )
        for n in range(N)
    ]
    await arrived.wait()
    gate.open()
    await asyncio.gather(*asks)
    assert sorted(await asyncio.to_thread(standing_inputs, world)) == sorted(f"Topic {n}" for n in range(N))
    assert await asyncio.to_thread(world.query, "SELECT count(*) FROM agents") == [1]
    assert await asyncio.to_thread(world.query, "SELECT count(*) FROM conversations") == [conversations]


@pytest.mark.parametrize("same_list", [True, False])
async def test_a_second_request_of_a_user_reaches_its_upstream_without_a_write(
    world: World, same_list: bool
) -> None:
    """So it waits for no write of the first request, which is being answered."""
    chat = world.chat(user="alice")
    await asyncio.to_thread(chat.say, "Hello.")
    await asyncio.to_thread(world.settle)
    gate = Gate()
    world.upstream.queue(*[say("Ok.", hold_before_headers=gate)] * 2)
    asks = []
    statement_count = 0
    for text in ("And?", "Well?"):
        statement_count = len(world.statements)
        arrived = world.upstream.request_gate(len(world.upstream.requests) + 1)
        messages = [*(chat.messages if same_list or not asks else ()), {"role": "user", "content": text}]
        asks.append(asyncio.create_task(ask(world, messages, user="alice")))
        await arrived.wait()
    assert {kind_of(each) for each in world.statements[statement_count:]} <= {"read"}
    gate.open()
    assert await asyncio.gather(*asks) == ["Ok.", "Ok."]


async def test_parallel_sends_in_append_mode_queue(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    world.upstream.echo = True
    await asyncio.gather(
        *(
            ask(world, [{"role": "user", "content": f"Item {n}"}], user="alice", extra_headers=headers)
            for n in range(N)
        )
    )
    assert sorted(len(request.messages) for request in world.upstream.requests) == [
        2 * n + 1 for n in range(N)
    ]
    lists = sorted((request.messages for request in world.upstream.requests), key=len)
    for one, two in itertools.pairwise(lists):
        assert two[: len(one)] == one


async def test_a_queued_send_whose_client_leaves_lets_the_next_one_go_on(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    gate = Gate()
    world.upstream.queue(say("One.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(1)

    def send(text: str) -> asyncio.Task[str]:
        messages = [{"role": "user", "content": text}]
        return asyncio.create_task(ask(world, messages, user="alice", extra_headers=headers))

    first = send("first")
    await arrived.wait()
    second = send("second")
    await asyncio.to_thread(_until_queued, world, 1)
    third = send("third")
    await asyncio.to_thread(_until_queued, world, 2)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    gate.open()
    assert await first == "One."
    assert await third == "Ok."
    # It was said, and is held as the message of any cancelled request.
    assert [m["content"] for m in world.upstream.last.messages] == ["first", "One.", "second", "third"]


async def test_a_message_that_was_answered_while_it_queued_comes_once(world: World) -> None:
    """As when its client has left a gateway, and another gateway was the first to answer the retry."""
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    gate = Gate()
    world.upstream.queue(say("One.", hold_before_headers=gate))
    arrived = world.upstream.request_gate(1)

    def send(text: str) -> asyncio.Task[str]:
        messages = [{"role": "user", "content": text}]
        return asyncio.create_task(ask(world, messages, user="alice", extra_headers=headers))

    first = send("first")
    await arrived.wait()
    retries = []
    for n, text in enumerate(("second", "third", "fourth one", "second", "fourth", "first"), 1):
        retries.append(send(text))
        await asyncio.to_thread(_until_queued, world, n)
    for left in retries[3:]:
        left.cancel()
    await asyncio.gather(*retries[3:], return_exceptions=True)
    gate.open()
    await asyncio.gather(first, *retries[:3])
    await send("fifth")
    contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "user"]
    assert contents == ["first", "second", "third", "fourth one", "fifth"]


async def test_a_message_has_its_place_while_it_waits_for_what_was_cancelled(world: World) -> None:
    """Else a message that comes at the end of this wait is answered before it."""
    services, gate = world.gateway.app.services.chat, Gate()
    scope = Scope("default", "default", "user:alice")

    async def begin_write() -> None:
        services.turn_services.pending.add(gate.wait(timeout_s=None), "A cancelled turn", scope)

    world.gateway.call(begin_write())
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    task = asyncio.create_task(
        ask(world, [{"role": "user", "content": "Hi"}], user="alice", extra_headers=headers)
    )
    try:
        await asyncio.to_thread(becomes, lambda: len(services.keeper.queues) == 1)
    finally:
        gate.open()
    assert await task == "Ok."


@pytest.mark.agents
async def test_messages_for_a_stored_agent_are_answered_as_they_came(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of their requests has read the agent first."""
    created = world.gateway.ask("POST", "/v1/agents/", b'{"name": "ann", "model": "up/m"}')
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    await _send_two_at_once(world, monkeypatch, "find", f"agent/{created.json['id']}", headers)
    spoken = [message["content"] for message in world.upstream.last.messages if message["role"] != "system"]
    assert spoken == ["first", "Ok.", "second"]


@pytest.mark.agents
async def test_messages_for_a_profile_in_append_mode_are_answered_as_they_came(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = agent("phone", history="append")
    with remember(upstream, tmp_path, profile) as world:
        headers = {"x-mnemogate-conversation": "c1"}
        await _send_two_at_once(world, monkeypatch, "has_conversation", "agent/phone", headers)
    spoken = [message["content"] for message in upstream.last.messages if message["role"] != "system"]
    assert spoken == ["first", "Ok.", "second"]


async def _send_two_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, read_name: str, model: str, headers: dict[str, str]
) -> None:
    """Sends "first" and "second". The first request reads from the agents so late that the second one has arrived."""
    has_begun, gate, read = Gate(), Gate(), getattr(ChatAgents, read_name)

    async def read_late(*given: Any) -> Any:
        if not has_begun.is_open:
            has_begun.open()
            await gate.wait()
        return await read(*given)

    monkeypatch.setattr(ChatAgents, read_name, read_late)

    def send(text: str) -> asyncio.Task[str]:
        messages = [{"role": "user", "content": text}]
        return asyncio.create_task(ask(world, messages, model=model, user="alice", extra_headers=headers))

    first = send("first")
    await has_begun.wait()
    second = send("second")
    await asyncio.to_thread(becomes, lambda: second.done() or world.gateway.call(_queued(world)) == 1)
    gate.open()
    await asyncio.gather(first, second)


def _until_queued(world: World, count: int) -> None:
    while world.gateway.call(_queued(world)) < count:
        pass


async def _queued(world: World) -> int:
    keeper = world.gateway.app.services.chat.keeper
    assert keeper is not None
    return sum(len(lock._waiters or ()) for lock in keeper.queues._locks.values())


async def test_another_user_is_answered_while_one_waits(world: World) -> None:
    gate = Gate()

    def script(request: UpstreamRequest) -> Any:
        return say("Slow.", hold_before_headers=gate) if request.json["user"] == "alice" else say("Quick.")

    world.upstream.script = script
    arrived = world.upstream.request_gate(1)
    slow = asyncio.create_task(ask(world, [{"role": "user", "content": "Hi"}], user="alice"))
    await arrived.wait()
    assert await ask(world, [{"role": "user", "content": "Hi"}], user="bob") == "Quick."
    assert not slow.done()
    gate.open()
    assert await slow == "Slow."


async def test_another_user_is_answered_while_ones_conversation_queues(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    gate = Gate()
    world.upstream.script = lambda request: (
        say("Slow.", hold_before_headers=gate) if request.json["user"] == "alice" else say("Quick.")
    )
    arrived = world.upstream.request_gate(1)
    slow = [
        asyncio.create_task(
            ask(world, [{"role": "user", "content": f"Hi {n}"}], user="alice", extra_headers=headers)
        )
        for n in range(3)
    ]
    await arrived.wait()
    quick = await ask(world, [{"role": "user", "content": "Hi"}], user="bob", extra_headers=headers)
    assert quick == "Quick."
    gate.open()
    assert await asyncio.gather(*slow) == ["Slow."] * 3


async def test_parallel_edits_of_one_block_are_all_there(world: World) -> None:
    chats = [world.chat(user="alice", model="agent/helper") for _ in range(4)]
    for n, chat in enumerate(chats):
        world.upstream.queue(
            call_tools(Call("memory_insert", {"label": "human", "new_string": f"fact {n}"}), text=None),
            say("Noted."),
        )
        await asyncio.to_thread(chat.say, f"Fact {n}, please.")
    await asyncio.gather(*(asyncio.to_thread(chat.say, "Thanks.") for chat in chats))
    block = await asyncio.to_thread(world.block, "alice")
    assert sorted(block.value.split("\n")) == [f"fact {n}" for n in range(4)]
