"""Phone calls of LiveKit Agents with a voice agent, which says a filler before its tool runs, and is interrupted.

The agent is created by the agents API. LiveKit reaches it by `LLM.with_letta`, or by its model name and a room.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.run.tools import searches
from gateway.run.tools.searches import INCOMPLETE
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.patience import comes

FILLER, ANSWER = "Let me look that up for you.", "Your boat is called Albatross."
ASKED = "What is my boat called?"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as running:
        yield running


@pytest.fixture(params=["with_letta", "by model name"])
async def phone(world: LettaWorld, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    from tests.clients import phone

    agent = await asyncio.to_thread(
        world.agent, agent_type="voice_convo_agent", name="vera", system="You are Vera."
    )
    options = (
        {"letta_agent": agent.id}
        if request.param == "with_letta"
        else {"model": "agent/vera", "room": "room-1"}
    )
    async with phone.dial(world.world, **options) as call:
        yield call


def make_search_call(**options: Any) -> Call:
    return Call("search_memory", {"pre_exec_msg": FILLER, "convo_keyword_queries": ["boat"]}, **options)


def hold_searches(world: LettaWorld) -> Gate:
    """Has searches wait for the gate that is returned, as a slow database would."""
    recall = world.world.store.recall
    gate = Gate()
    search = recall.search

    async def wait_and_search(*args: Any, **options: Any) -> Any:
        await gate.wait()
        return await search(*args, **options)

    object.__setattr__(recall, "search", wait_and_search)
    return gate


def sent_messages(world: LettaWorld) -> list[Any]:
    """Returns the messages of the last request but the tools' results: a text, or the names of the calls."""
    return [
        [call["function"]["name"] for call in m["tool_calls"]] if m.get("tool_calls") else m["content"]
        for m in world.upstream.last.messages
        if m["role"] in ("user", "assistant")
    ]


async def search_messages(world: LettaWorld, query: str) -> str:
    """Returns the agent's messages that a search of the agents API finds, as text."""
    agent_id = (await asyncio.to_thread(world.ask, "GET", "/v1/agents/"))[1][0]["id"]
    body = {"query": query, "agent_id": agent_id}
    return str((await asyncio.to_thread(world.ask, "POST", "/v1/messages/search", body))[1])


async def test_the_caller_hears_a_filler_while_the_tool_runs(world: LettaWorld, phone: Any) -> None:
    assert await phone.say("My boat is called Albatross.") == "Ok."
    gate = hold_searches(world)
    world.upstream.queue(call_tools(make_search_call()), say(ANSWER))
    await phone.finish_sentence(ASKED)
    await phone.speaker.is_playing.wait()
    assert len(world.upstream.chats) == 2  # the tool has not ended, so the model was not called again
    gate.open()
    assert await phone.next_message() == ("assistant", f"{FILLER} {ANSWER}")
    assert "Albatross" in world.upstream.last.messages[-1]["content"]
    await phone.say("Thank you.")
    assert sent_messages(world)[-4:] == [ASKED, ["search_memory"], ANSWER, "Thank you."]
    assert FILLER not in await search_messages(world, "Let me look that up")
    assert ANSWER in await search_messages(world, "Albatross")


async def test_a_caller_may_interrupt_the_filler(world: LettaWorld, phone: Any) -> None:
    await phone.say("My boat is called Albatross.")
    gate = hold_searches(world)
    phone.speaker.heard_part = "Let me look"
    world.upstream.queue(call_tools(make_search_call()))
    await phone.finish_sentence(ASKED)
    await phone.speaker.is_playing.wait()
    gone = world.world.gateway.app.services.metrics.clients_gone.values
    before = gone[()]
    assert await phone.interrupt("Stop.") == "Let me look"
    await comes(lambda: gone[()] > before)  # the gateway has noticed it before the tool ends
    phone.speaker.heard_part = None
    gate.open()
    assert await phone.say("Stop. I know it myself.") == "Ok."
    assert sent_messages(world)[-3:] == [ASKED, "Let me look", "Stop. I know it myself."]
    await phone.say("Goodbye.")
    assert "Let me look" not in await search_messages(world, "Let me look")
    assert "I know it myself" in await search_messages(world, "know it myself")
    assert len(world.upstream.chats) == 4  # the model is not called with the abandoned search's result


async def test_a_caller_may_interrupt_the_reply_after_the_filler(world: LettaWorld, phone: Any) -> None:
    await phone.say("My boat is called Albatross.")
    phone.speaker.heard_part = f"{FILLER} Your boat"
    world.upstream.queue(call_tools(make_search_call()), say(ANSWER, hold_after={5: Gate()}))
    await phone.finish_sentence(ASKED)
    await phone.speaker.is_playing.wait()
    await world.upstream.request_gate(3).wait()
    assert await phone.interrupt("Stop.") == f"{FILLER} Your boat"
    await world.upstream.last.gone.wait()
    phone.speaker.heard_part = None
    await phone.say("Stop. I know it myself.")
    assert sent_messages(world)[-4:] == [ASKED, ["search_memory"], "Your boat", "Stop. I know it myself."]
    await phone.say("Goodbye.")
    assert FILLER not in await search_messages(world, "Let me look that up")


async def test_a_slow_search_ends_at_its_time_limit(
    world: LettaWorld, phone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await phone.say("My boat is called Albatross.")
    monkeypatch.setattr(searches, "SEARCH_MS", 100.0)
    hold_searches(world)
    world.upstream.queue(call_tools(make_search_call()), say("I cannot find it."))
    assert await phone.say(ASKED) == f"{FILLER} I cannot find it."
    result = world.upstream.last.messages[-1]["content"]
    assert result.startswith("Error") or result.endswith(INCOMPLETE)
