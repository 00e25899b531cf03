"""Voice stacks ask speculatively, cancel, discard, and cut replies off: only what was heard is learned."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.run.tools.memory import MemoryTools
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.gateway.sdk import CHAT, World, agent, remember
from tests.patience import PATIENCE_S


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


PARTIALS = ("I live", "I live in", "I live in Porto with", "I live in Porto with my sister.")


def insert(text: str) -> Any:
    return call_tools(Call("memory_insert", {"label": "human", "new_string": text}), text=None)


def test_growing_partials_and_a_final_give_one_fact(world: World) -> None:
    chat = world.chat(user="alice", model="agent/helper", stream=True)
    chat.say("Hello.")
    before = [*chat.messages]
    for text in PARTIALS:
        world.upstream.queue(insert(f"Said: {text}"), say(f"So {text}."))
        chat.messages = [*before]
        chat.say(text)
        world.clock.sleep(0.3)
    chat.say("What now?")
    assert world.block("alice").value == "Said: I live in Porto with my sister."
    active = world.query("SELECT input FROM exchanges WHERE active <> 0 ORDER BY id")
    assert len(active) == 3
    world.chat(user="alice", model="agent/helper").say("Where in Porto do I live, and with whom?")
    note = world.upstream.last.messages[-1]["content"]
    assert note.count("user: I live") == 1


def test_a_replaced_transcript_is_not_recalled_for_its_correction(world: World) -> None:
    chat = world.chat(user="alice", stream=True)
    chat.say("Hello.")
    before = [*chat.messages]
    world.upstream.queue(say("Which day?"))
    chat.say("Please book the flight to Austin for my sister.")
    chat.messages = before
    chat.say("Please book the flight to Boston for my sister.")
    assert "Austin" not in world.upstream.last.body.decode()
    chat.say("What did I ask to book?")
    world.chat(user="alice").say("Which flight did I ask you to book for my sister?")
    note = world.upstream.last.body.decode()
    assert "Boston" in note
    assert "Austin" not in note


def test_a_turn_with_a_tool_is_not_recalled_for_the_correction_that_replaces_it(world: World) -> None:
    tool = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}
    chat = world.chat(user="alice", stream=True, tools=[tool])
    chat.say("Hello.")
    before = [*chat.messages]
    world.upstream.queue(call_tools(Call("book"), text="I book Austin."), say("Austin is booked."))
    chat.say("Please book the flight to Austin for my sister.")
    chat.answer(chat.messages[-1]["tool_calls"][0], "Done.")
    chat.go_on()
    chat.messages = before
    chat.say("Please book the flight to Boston for my sister.")
    assert "Austin" not in world.upstream.last.body.decode()


@pytest.mark.parametrize("headers", [{}, {"x-livekit-room-id": "room-1"}], ids=["found", "named"])
def test_growing_partials_of_the_first_turn_give_one_fact(world: World, headers: dict[str, str]) -> None:
    world.chat(user="alice").say("Good morning.")
    world.clock.sleep(1000)
    chat = world.chat(user="alice", stream=True, headers=headers)
    for text in PARTIALS:
        chat.messages = []
        chat.say(text)
        assert world.upstream.last.messages == [
            {"role": "user", "content": text}
        ]  # no note of the one before
        world.clock.sleep(0.3)
    chat.say("What now?")
    assert len(world.query("SELECT 1 FROM exchanges WHERE active <> 0")) == 3
    assert world.query("SELECT count(*) FROM conversations") == [2]


def test_partials_that_are_cancelled_leave_nothing(world: World) -> None:
    before: list[Any] = []
    chat = world.chat(user="alice", stream=True)
    chat.say("Hello.")
    before = [*chat.messages]
    for n, text in enumerate(PARTIALS[:-1]):
        world.upstream.queue(say(f"Draft {n} about fishing.", hold_after={3: Gate()}))
        body = {"model": "m", "user": "alice", "stream": True}
        count = len(world.upstream.requests)
        with world.gateway.connect() as client:
            body["messages"] = [*before, {"role": "user", "content": text}]
            client.request("POST", CHAT, json.dumps(body).encode())
            client.read_until(str(n).encode())
        world.upstream.requests[count].gone.wait_sync()
        world.settle()
        world.clock.sleep(0.3)
    chat.messages = before
    chat.say(PARTIALS[-1])
    chat.say("What now?")
    assert len(world.query("SELECT 1 FROM exchanges WHERE active <> 0")) == 3
    world.chat(user="alice").say("Which draft about fishing?")
    assert "Draft" not in world.upstream.last.body.decode()


@pytest.mark.parametrize("said", ["We could go to the market.", "We could go to the market..."])
def test_a_sentence_that_was_generated_and_never_spoken_is_not_known(world: World, said: str) -> None:
    chat = world.chat(user="alice", stream=True)
    world.upstream.queue(say("We could go to the market. Afterwards the zoo has a new giraffe."))
    chat.say("What shall we do?")
    chat.messages[-1] = {"role": "assistant", "content": said}
    for text in ("Stop, the market is fine, no zoo, no animals.", "When does the market open, and the zoo?"):
        chat.say(text)
        assert "giraffe" not in world.upstream.last.body.decode()
    world.chat(user="alice").say("What did you say of the market, the zoo, the giraffe?")
    note = world.upstream.last.body.decode()
    assert "giraffe" not in note.replace("the zoo, the giraffe?", "")
    assert "go to the market" in note


def test_an_unspoken_edit_of_a_turn_that_went_on_is_stored_with_the_turn(world: World) -> None:
    """The edit was made before the text that was cut: the turn took place, so its edit counts once."""
    chat = world.chat(user="alice", model="agent/helper", stream=True)
    world.upstream.queue(insert("Likes markets."), say("Noted, you like markets very much indeed."))
    chat.say("I like markets.")
    chat.messages[-1] = {"role": "assistant", "content": "Noted, you like"}
    chat.say("Yes.")
    chat.say("And?")
    assert world.block("alice").value == "Likes markets."


def test_two_finished_requests_for_one_turn_give_one_turn(world: World) -> None:
    chat = world.chat(user="alice", stream=True)
    chat.say("Hello.")
    chat.messages.append({"role": "user", "content": "Tell me a joke."})
    for text in ("Joke one.", "Joke two."):
        world.upstream.queue(say(text))
        reply = chat.complete()
        world.clock.sleep(1)
    chat.messages.append(reply)
    chat.say("Ha!")
    rows = world.query("SELECT shown_reply FROM exchanges WHERE active <> 0 ORDER BY id")
    active = [json.loads(each)["content"] for each in rows]
    assert active == ["Ok.", "Joke two.", "Ok."]


def test_the_continued_one_of_two_answers_is_active(world: World) -> None:
    chat = world.chat(user="alice", stream=True)
    chat.say("Hello.")
    chat.messages.append({"role": "user", "content": "Tell me a joke."})
    replies = []
    for text in ("Joke one.", "Joke two."):
        world.upstream.queue(say(text))
        replies.append(chat.complete())
    chat.messages.append(replies[0])
    chat.say("Ha!")
    rows = world.query("SELECT shown_reply FROM exchanges WHERE active <> 0 ORDER BY id")
    active = [json.loads(each)["content"] for each in rows]
    assert "Joke one." in active
    assert "Joke two." not in active


def test_the_same_request_twice_with_the_same_reply_is_stored_once(world: World) -> None:
    chat = world.chat(user="alice")
    chat.messages.append({"role": "user", "content": "Hi"})
    chat.complete()
    chat.complete()
    assert world.query("SELECT count(*) FROM exchanges") == [1]


def test_a_conversation_of_one_turn_is_known_to_the_next_at_once(world: World) -> None:
    world.chat(user="alice").say("My sister is called Rita.")
    world.chat(user="alice").say("Who is Rita?")
    assert "My sister is called Rita." in world.upstream.last.body.decode()


@pytest.mark.parametrize("idle_s", [7.0, 1000.0])
def test_the_idle_time_of_the_settings_confirms_a_turn(
    upstream: StrictUpstream, tmp_path: Path, idle_s: float
) -> None:
    with remember(upstream, tmp_path, agent(), memory={"idle_s": idle_s}) as world:
        upstream.queue(insert("Lives in Porto."), say("Noted."))
        world.chat(user="alice", model="agent/helper").say("I live in Porto.")
        world.pass_time(idle_s - 1)
        assert world.query("SELECT state FROM block_ops") == ["pending"]
        world.pass_time(2)
        assert world.query("SELECT state FROM block_ops") == ["merged"]
        assert world.block("alice").value == "Lives in Porto."


@pytest.mark.parametrize(("idle_s", "active"), [(7.0, 2), (1000.0, 1)])
def test_an_edit_after_the_idle_time_of_the_settings_replaces_nothing(
    upstream: StrictUpstream, tmp_path: Path, idle_s: float, active: int
) -> None:
    with remember(upstream, tmp_path, memory={"idle_s": idle_s}) as world:
        chat = world.chat(user="alice")
        chat.say("Hello.")
        before = [*chat.messages]
        for city in ("Austin", "Boston"):
            chat.messages = [*before]
            chat.say(f"I fly to {city}.")
            world.clock.sleep(20)
        assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0 AND depth = 1") == [active]


@pytest.mark.parametrize("gap_s", [5, 86_400], ids=["at once", "a day later"])
def test_the_same_greeting_on_two_days_is_two_conversations(world: World, gap_s: float) -> None:
    for day in ("Monday", "Tuesday"):
        chat = world.chat(user="alice")
        for text in ("Hi", f"My train leaves on {day}.", "Thanks."):
            chat.say(text)
        world.clock.sleep(gap_s)
    paths = world.query("SELECT conversation, depth FROM exchanges WHERE active <> 0 ORDER BY id")
    first, second = paths[0][0], paths[3][0]
    assert first != second
    assert paths == [(each, depth) for each in (first, second) for depth in range(3)]


def test_an_edited_message_takes_what_followed_with_it(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say("Hello.")
    before = [*chat.messages]
    chat.say("I collect stamps from Peru.")
    chat.messages = [*before]
    chat.say("I collect coins from Chile.")
    chat.say("Thanks.")
    world.chat(user="alice").say("What do I collect, stamps or coins? From Peru or Chile?")
    note = world.upstream.last.messages[-1]["content"].partition("</memory>")[0]
    assert "Chile" in note
    assert "stamps from Peru" not in note


@pytest.mark.both
@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_turn_on_the_record_outlives_a_question_off_the_record(world: World, mode: str) -> None:
    """It is asked about with memory off, and nothing of its reply is heard before a turn that is off."""
    off = {"x-mnemogate-memory": mode}
    chat = world.chat(user="alice", stream=True, headers={"x-livekit-room-id": "room-1"})
    chat.say("Hello.")
    world.upstream.queue(say("Red is a good colour."), say('{"angry": false}'))
    chat.messages.append({"role": "user", "content": "My bicycle is red."})
    chat.complete()
    chat.complete(extra_headers={**chat.headers, **off})
    recalled(world, "Which colour is my bicycle?", "My bicycle is red.")
    world.upstream.queue(say("Sorry to hear that."))
    chat.say("My diagnosis is X.", extra_headers={**chat.headers, **off})
    recalled(world, "Which colour is my bicycle?", "My bicycle is red.")
    chat.say("What now?")
    note = recalled(
        world, "Which diagnosis do I have, and which colour has my bicycle?", "My bicycle is red."
    )
    assert "diagnosis is X" not in note
    assert "good colour" not in note
    assert b"diagnosis is X" not in world.data()


def recalled(world: World, question: str, text: str) -> str:
    """Asks in a conversation of its own. Returns what the model was sent, which has the text once."""
    world.chat(user="alice", headers={"x-mnemogate-memory": "read"}).say(question)
    body = world.upstream.last.body.decode()
    assert body.count(text) == 1, body
    return body


def test_a_filler_of_the_application_is_not_recalled_with_its_reply(world: World) -> None:
    """LiveKit's `session.say` in a tool is a message of its own before the reply; both are one reply in memory."""
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    chat = world.chat(user="alice", headers={"x-livekit-room-id": "room-1"}, stream=True, tools=[tool])
    reply = "The boat trip to the island costs forty crowns."
    world.upstream.queue(call_tools(Call("look_up", {})), say(reply))
    chat.say("How much is it?")
    chat.answer(chat.messages[-1]["tool_calls"][0], "40")
    chat.go_on()
    chat.messages.insert(-1, {"role": "assistant", "content": "One moment, please."})
    chat.say("Fine.")
    chat.say("And what else?")
    before = [*chat.messages]
    for text in ("Is the boat trip", "Is the boat trip to the island forty crowns?"):
        chat.messages = [*before]
        chat.say(text)
    assert f"One moment, please. {reply}" in str(world.query("SELECT shown_reply FROM exchanges"))
    assert "<memory " not in world.upstream.last.body.decode()


def test_an_interruption_while_tools_run_finds_the_turn_that_it_cuts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their end takes more rounds of the loop than that of a stream."""
    service = world.gateway.app.services.chat
    patient = replace(
        service.turn_services, limits=replace(service.turn_services.limits, commit_wait_s=PATIENCE_S)
    )
    monkeypatch.setattr(service, "turn_services", patient)
    monkeypatch.setattr(service.memory, "turn_services", patient)
    begun = [Gate(), Gate()]

    async def search(tools: MemoryTools, call: Any) -> Any:
        next(gate for gate in begun if not gate.is_open).open()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(Gate().wait(), Gate().wait())

    monkeypatch.setattr(MemoryTools, "run", search)
    chat = world.chat(user="alice", model="agent/helper", stream=True)
    chat.say("Hello.")
    searches = [Call("conversation_search", {"query": word}, f"call_{word}") for word in ("boat", "harbour")]
    world.upstream.queue(call_tools(*searches, text="Let me look that up."))
    body = {"model": "agent/helper", "user": "alice", "stream": True}
    first = [*chat.messages, {"role": "user", "content": "Where is my boat?"}]
    heard = {"role": "assistant", "content": "Let me look"}
    second = [*first, heard, {"role": "user", "content": "Never mind."}]
    both_sent = threading.Event()
    with world.gateway.connect() as caller, world.gateway.connect() as other:
        other.request("GET", "/health")
        assert other.read_reply().status == 200
        caller.request("POST", CHAT, json.dumps({**body, "messages": first}).encode())
        caller.read_until(b"up.")
        for gate in begun:
            gate.wait_sync()
        # The gateway learns of both at once: the end of one connection, and the request on the other.
        world.gateway.loop.call_soon_threadsafe(both_sent.wait)
        caller.socket.close()
        other.request("POST", CHAT, json.dumps({**body, "messages": second}).encode())
        both_sent.set()
        assert other.read_reply().status == 200
    inputs = map(json.loads, world.query("SELECT input FROM exchanges ORDER BY id"))
    asked = [[m["content"] for m in messages if m["role"] == "user"] for messages in inputs]
    assert asked == [["Hello."], ["Where is my boat?"], ["Never mind."]]
