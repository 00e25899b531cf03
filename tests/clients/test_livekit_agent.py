"""LiveKit Agents on the phone with a voice agent: it speaks ahead of its tools, and is interrupted there.

The agent was made over REST. LiveKit asks it by its own `with_letta`, or by the agent's name inside a room.
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
    with letta(upstream, tmp_path) as made:
        yield made


@pytest.fixture(params=["with_letta", "by its name"])
async def phone(world: LettaWorld, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    from tests.clients import phone

    made = await asyncio.to_thread(
        world.agent, agent_type="voice_convo_agent", name="vera", system="You are Vera."
    )
    how = {"letta": made.id} if request.param == "with_letta" else {"model": "agent/vera", "room": "room-1"}
    async with phone.dial(world.world, **how) as call:
        yield call


def search(**options: Any) -> Call:
    return Call("search_memory", {"pre_exec_msg": FILLER, "convo_keyword_queries": ["boat"]}, **options)


def slow_tool(world: LettaWorld) -> Gate:
    """Makes searches wait for the gate, as long as a tool takes that needs seconds."""
    recall, gate = world.world.store.recall, Gate()
    searching = recall.search

    async def late(*args: Any, **options: Any) -> Any:
        await gate.wait()
        return await searching(*args, **options)

    object.__setattr__(recall, "search", late)
    return gate


def sent(world: LettaWorld) -> list[Any]:
    """What went up of the conversation: text, or the names of the calls."""
    return [
        [call["function"]["name"] for call in m["tool_calls"]] if m.get("tool_calls") else m["content"]
        for m in world.upstream.last.messages
        if m["role"] in ("user", "assistant")
    ]


async def recalled(world: LettaWorld, query: str) -> str:
    """What a search finds."""
    uid = (await asyncio.to_thread(world.ask, "GET", "/v1/agents/"))[1][0]["id"]
    body = {"query": query, "agent_id": uid}
    return str((await asyncio.to_thread(world.ask, "POST", "/v1/messages/search", body))[1])


async def test_the_caller_hears_something_while_the_tool_runs(world: LettaWorld, phone: Any) -> None:
    assert await phone.say("My boat is called Albatross.") == "Ok."
    gate = slow_tool(world)
    world.upstream.queue(call_tools(search()), say(ANSWER))
    await phone.end(ASKED)
    await phone.speaker.is_playing.wait()
    assert len(world.upstream.chats) == 2  # the tool has not ended, so nothing was asked again
    gate.open()
    assert await phone.next_said() == ("assistant", f"{FILLER} {ANSWER}")
    assert "Albatross" in world.upstream.last.messages[-1]["content"]
    await phone.say("Thank you.")
    assert sent(world)[-4:] == [ASKED, ["search_memory"], ANSWER, "Thank you."]
    assert FILLER not in await recalled(world, "Let me look that up")
    assert ANSWER in await recalled(world, "Albatross")


async def test_interrupted_within_what_it_said_first(world: LettaWorld, phone: Any) -> None:
    await phone.say("My boat is called Albatross.")
    gate = slow_tool(world)
    phone.speaker.cut = "Let me look"
    world.upstream.queue(call_tools(search()))
    await phone.end(ASKED)
    await phone.speaker.is_playing.wait()
    gone = world.world.gateway.app.services.metrics.clients_gone.values
    before = gone[()]
    assert await phone.cut_in("Stop.") == "Let me look"
    await comes(lambda: gone[()] > before)  # else the tool may end before it is seen that nobody waits for it
    phone.speaker.cut = None
    gate.open()
    assert await phone.say("Stop. I know it myself.") == "Ok."
    assert sent(world)[-3:] == [ASKED, "Let me look", "Stop. I know it myself."]
    await phone.say("Goodbye.")
    assert "Let me look" not in await recalled(world, "Let me look")
    assert "I know it myself" in await recalled(world, "know it myself")
    assert len(world.upstream.chats) == 4  # after the tool that was let go nothing was asked


async def test_interrupted_in_the_answer_after_it(world: LettaWorld, phone: Any) -> None:
    await phone.say("My boat is called Albatross.")
    phone.speaker.cut = f"{FILLER} Your boat"
    world.upstream.queue(call_tools(search()), say(ANSWER, hold_after={5: Gate()}))
    await phone.end(ASKED)
    await phone.speaker.is_playing.wait()
    await world.upstream.arrived(3).wait()
    assert await phone.cut_in("Stop.") == f"{FILLER} Your boat"
    await world.upstream.last.gone.wait()
    phone.speaker.cut = None
    await phone.say("Stop. I know it myself.")
    assert sent(world)[-4:] == [ASKED, ["search_memory"], "Your boat", "Stop. I know it myself."]
    await phone.say("Goodbye.")
    assert FILLER not in await recalled(world, "Let me look that up")


async def test_a_search_that_is_slow_is_answered_within_its_time(
    world: LettaWorld, phone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await phone.say("My boat is called Albatross.")
    monkeypatch.setattr(searches, "SEARCH_MS", 100.0)
    slow_tool(world)
    world.upstream.queue(call_tools(search()), say("I cannot find it."))
    assert await phone.say(ASKED) == f"{FILLER} I cannot find it."
    result = world.upstream.last.messages[-1]["content"]
    assert result.startswith("Error") or result.endswith(INCOMPLETE)
