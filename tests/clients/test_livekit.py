"""Phone calls of LiveKit Agents through a gateway: memory has the messages that were heard, and no others.

LiveKit itself decides on its requests here: it sends them preemptively, sends them again when the transcript grows, and
cancels those that it does not need. `tests/gateway/voice/test_voice.py` imitates such requests, and those of voice
services.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import World, agent, remember


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


@pytest.fixture(params=["room-1", None], ids=["room", "no room"])
def room(request: pytest.FixtureRequest) -> str | None:
    """The header by which a LiveKit job names its conversation. None: outside of a job."""
    header: str | None = request.param
    return header


def dial(world: World, room: str | None, **options: Any) -> AbstractAsyncContextManager[Any]:
    from tests.clients import phone

    return phone.dial(world, room, **options)


@pytest.fixture
async def phone(world: World, room: str | None) -> AsyncIterator[Any]:
    async with dial(world, room) as call:
        yield call


def active(world: World) -> list[tuple[Any, Any]]:
    """Returns the last input message and the reply of each active exchange."""
    rows = world.query("SELECT input, shown_reply FROM exchanges WHERE active <> 0 ORDER BY id")
    return [
        (json.loads(messages)[-1].get("content"), json.loads(reply).get("content"))
        for messages, reply in rows
    ]


async def recall_note(world: World, text: str, **options: Any) -> str:
    """Returns the note of recalled messages before the text that the same user says in a call weeks later."""
    world.pass_time(1_000_000)
    async with dial(world, "room-2", **options) as call:
        await call.say(text)
    return str(world.upstream.last.messages[-1]["content"]).removesuffix(text)


async def test_a_tool_is_called_and_the_reply_uses_its_result(phone: Any) -> None:
    calls = (Call("get_weather", {"city": "Oslo"}, id="a"), Call("get_weather", {"city": "Rome"}, id="b"))
    phone.world.upstream.queue(call_tools(*calls), say("It rains in both."))
    assert await phone.say("How is the weather in Oslo and Rome?") == "It rains in both."
    assert sorted(phone.agent.cities) == ["Oslo", "Rome"]
    sent = phone.world.upstream.last.messages
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool"]
    assert [m["tool_call_id"] for m in sent[3:]] == ["a", "b"]
    assert await phone.say("Thanks.") == "Ok."
    assert phone.world.query("SELECT count(*) FROM conversations") == [1]
    assert active(phone.world) == [
        ("How is the weather in Oslo and Rome?", None),
        ("Rain in Rome.", "It rains in both."),
        ("Thanks.", "Ok."),
    ]
    assert "It rains in both" in await recall_note(phone.world, "Where did you say it rains, in both?")


async def test_a_preemptive_answer_that_is_wanted_is_one_turn(phone: Any, room: str | None) -> None:
    phone.world.upstream.queue(say("Hello, Ola."))
    await phone.pause_sentence("My name is Ola.")
    assert await phone.say("My name is Ola.") == "Hello, Ola."
    assert len(phone.world.upstream.chats) == 1
    await phone.say("Bye.")
    assert active(phone.world) == [("My name is Ola.", "Hello, Ola."), ("Bye.", "Ok.")]
    assert phone.world.query("SELECT key FROM conversations") == [room]


async def test_preemptive_answers_that_were_let_go_leave_no_trace(phone: Any) -> None:
    """R1, R3: three attempts on a growing transcript, each cancelled in its middle, and the real one."""
    upstream = phone.world.upstream
    await phone.say("Hello.")
    for n, partial in enumerate(("I would", "I would like", "I would like a table")):
        upstream.queue(say(f"Draft{n} about tables", hold_after={3: Gate()}))
        await phone.pause_sentence(partial)
    upstream.queue(say("At what time?"))
    assert await phone.say("I would like a table for two.") == "At what time?"
    for request in upstream.chats[1:4]:
        await request.gone.wait()
    assert len(upstream.chats) == 5
    await phone.say("At eight.")
    assert active(phone.world) == [
        ("Hello.", "Ok."),
        ("I would like a table for two.", "At what time?"),
        ("At eight.", "Ok."),
    ]
    note = await recall_note(phone.world, "Which table would I like, draft or not?")
    assert "a table for two" in note
    assert "Draft" not in note
    assert note.count("I would like") == 1


async def test_the_edits_of_answers_that_were_thrown_away_are_not_made(
    world: World, room: str | None
) -> None:
    """An agent with memory tools: what a discarded generation wrote into its block was never sent to it."""

    def note(text: str) -> Reply:
        return call_tools(Call("memory_insert", {"label": "human", "new_string": text}), text=None)

    async with dial(world, room, model="agent/helper") as phone:
        await phone.say("Hello.")
        for partial in ("I live in", "I live in Porto"):
            world.upstream.queue(note(f"Said: {partial}"), say("Unheard."))
            count = len(world.upstream.requests)
            await phone.pause_sentence(partial)
            await world.upstream.request_gate(count + 2).wait()  # with the result of the edit
            await world.upstream.last.settled.wait()
            world.settle()
        world.upstream.queue(note("Lives in Porto with a sister."), say("Noted."))
        assert await phone.say("I live in Porto with my sister.") == "Noted."
        await phone.say("Thanks.")
    world.pass_time(1000)
    assert world.block("alice").value == "Lives in Porto with a sister."


async def test_a_barge_in_reaches_the_upstream(phone: Any) -> None:
    """R4: the model was still generating."""
    await phone.say("Hello.")
    phone.speaker.heard_part = "We have"
    phone.world.upstream.queue(say("We have soup and oysters.", hold_after={5: Gate()}))
    await phone.finish_sentence("What is there to eat?")
    await phone.speaker.is_playing.wait()
    assert await phone.interrupt("Stop.") == "We have"
    await phone.world.upstream.last.gone.wait()
    phone.speaker.heard_part = None
    await phone.say("Stop. I take the fish.")
    assert [m.get("content") for m in phone.world.upstream.last.messages[3:]] == [
        "What is there to eat?",
        "We have",
        "Stop. I take the fish.",
    ]
    await phone.say("Goodbye.")
    assert active(phone.world)[1] == ("What is there to eat?", "We have")
    assert "and oysters" not in await recall_note(phone.world, "What is there to eat, soup or oysters?")


async def test_an_interruption_before_the_first_word_leaves_the_question(phone: Any) -> None:
    """R4: nothing was spoken, so two messages of the caller follow each other; what he said first stands too."""
    await phone.say("Hello.")
    phone.world.upstream.queue(say("Never spoken.", hold_before_headers=Gate()))
    await phone.finish_sentence("My dog is called Rex.")
    await phone.world.upstream.request_gate(2).wait()
    asked = phone.world.upstream.last
    phone.continue_sentence("Wait")
    await asked.gone.wait()
    assert await phone.say("Wait, and my cat is called Miso.") == "Ok."
    assert [m["role"] for m in phone.world.upstream.last.messages][-2:] == ["user", "user"]
    await phone.say("Goodbye.")
    note = await recall_note(phone.world, "What are my dog and my cat called?")
    assert "Rex" in note
    assert "Miso" in note
    assert "Never spoken" not in note


async def test_words_that_are_spoken_while_the_caller_hangs_up_are_not_known(
    world: World, room: str | None
) -> None:
    """R4: the call ends in the middle of a reply, and nothing comes back that would say how much was heard."""
    async with dial(world, room) as phone:
        await phone.say("My boat is the Nina.")
        phone.speaker.heard_part = "The treasure"
        world.upstream.queue(say("The treasure lies under the third palm tree.", hold_after={8: Gate()}))
        await phone.finish_sentence("Where is the treasure?")
        await phone.speaker.is_playing.wait()
    await world.upstream.last.gone.wait()
    note = await recall_note(world, "Where does the treasure lie? And what is my boat called?")
    assert "Nina" in note
    assert "palm" not in note
    assert ("My boat is the Nina.", "Ok.") in active(world)


async def test_livekits_retries_are_one_turn(phone: Any) -> None:
    """R3, R12: it repeats what failed with a status that says so, and memory has it once."""
    phone.world.upstream.queue(fail(503), Reply(cut_before_headers=True), say("Rex, noted."))
    assert await phone.say("My dog is Rex.") == "Rex, noted."
    assert len(phone.world.upstream.chats) == 3
    await phone.say("Bye.")
    assert active(phone.world) == [("My dog is Rex.", "Rex, noted."), ("Bye.", "Ok.")]
    assert "Rex, noted" in await recall_note(phone.world, "What is my dog called?")


async def test_a_refusal_is_reported_and_not_retried(phone: Any) -> None:
    """R12: the status is what LiveKit goes by."""
    phone.world.upstream.queue(fail(401, "Incorrect API key provided.", code="invalid_api_key"))
    await phone.finish_sentence("Hello?")
    error = await phone.next_error()
    assert error.status_code == 401
    assert "Incorrect API key" in str(error)
    assert len(phone.world.upstream.chats) == 1
