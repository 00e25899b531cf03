"""Speech before a tool by agents of the agents API: streamed, listed, and never recalled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.settings import FillerSettings, ProfileSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.agents.test_client_messages import joined, kinds
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import CHAT
from tests.gateway.voice.test_voice import WEATHER

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

FILLER, ANSWER = "Let me look that up.", "It is Albatross."
OURS = {"x-mnemogate-conversation": "default"}
FIXED = {"say": "One moment, please.", "after_ms": 0}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def voice(world: LettaWorld, **options: Any) -> Any:
    return world.agent(**{"agent_type": "voice_convo_agent", "name": "vera", **options})


def search(filler: str | None = FILLER) -> Call:
    return Call(
        "search_memory", {**({"pre_exec_msg": filler} if filler else {}), "convo_keyword_queries": ["boat"]}
    )


def texts(world: LettaWorld, agent: Any) -> list[str]:
    listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    return [each.content for each in listed if each.message_type in ("user_message", "assistant_message")]


@pytest.mark.parametrize("by_token", [False, True])
def test_the_streamed_messages_are_the_listed_ones(world: LettaWorld, by_token: bool) -> None:
    agent = voice(world)
    world.upstream.queue(call_tools(search()), say(ANSWER))
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=by_token))
    shown = [kind for n, kind in enumerate(kinds(events)) if not n or kinds(events)[n - 1] != kind]
    assert shown == [
        "assistant_message",
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]
    _, *listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert joined(events) == joined(listed)
    assert "pre_exec_msg" not in str(listed)
    assert texts(world, agent) == ["Hi", FILLER, ANSWER]


def test_a_whole_reply_has_it_too(world: LettaWorld) -> None:
    agent = voice(world)
    world.upstream.queue(call_tools(search()), say(ANSWER))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert [each.content for each in reply.messages if each.message_type == "assistant_message"] == [
        FILLER,
        ANSWER,
    ]


@pytest.mark.parametrize("headers", [OURS, {}], ids=["default", "its own"])
def test_the_same_in_a_chat_completion(world: LettaWorld, headers: dict[str, str]) -> None:
    agent = voice(world)
    world.upstream.queue(call_tools(search()), say(ANSWER))
    chat = world.world.chat(model="agent/vera", headers=headers)
    assert chat.say("Hi", stream=True) == f"{FILLER} {ANSWER}"
    before = world.upstream.last.messages
    chat.say("Thank you.")
    assert world.upstream.last.messages[: len(before)] == before
    assert [m["content"] for m in world.upstream.last.messages[len(before) :]] == [ANSWER, "Thank you."]
    world.world.pass_time(1_000_000)
    found = world.letta.messages.search(query="Let me look that up", extra_body={"agent_id": agent.id})
    assert FILLER not in str(found)
    assert ANSWER in str(world.letta.messages.search(query="Albatross", extra_body={"agent_id": agent.id}))


def sent(world: LettaWorld) -> list[Any]:
    """What went up after the first turn: text, or the names of the calls."""
    return [
        [call["function"]["name"] for call in m["tool_calls"]] if m.get("tool_calls") else m["content"]
        for m in world.upstream.last.messages
        if m["role"] in ("user", "assistant")
    ][2:]


@pytest.mark.parametrize(
    ("heard", "kept", "told"),
    [
        (f"{FILLER} It is", ["It is"], [FILLER, "It is"]),
        ("Let me look that up. it is...", ["it is..."], [FILLER, "it is..."]),
        ("let me look that up it is", ["It is"], [FILLER, "It is"]),
        (FILLER, [], [FILLER]),
        ("Let me look...", [], ["Let me look..."]),
        (None, [], []),
        ("Something else altogether.", [ANSWER], [FILLER, ANSWER]),
    ],
)
def test_after_a_barge_in_the_agents_own_conversation_keeps_what_was_heard(
    world: LettaWorld, heard: str | None, kept: list[str], told: list[str]
) -> None:
    agent = voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(call_tools(search()), say(ANSWER))
    chat.say("What is my boat called?", stream=True)
    if heard is None:
        chat.messages.pop()
    else:
        chat.messages[-1]["content"] = heard
    chat.say("Stop. Never mind.")
    asked = ["What is my boat called?", ["search_memory"]]
    assert sent(world) == [*asked, *kept, "Stop. Never mind."]
    assert texts(world, agent)[2:] == [asked[0], *told, "Stop. Never mind.", "Ok."]
    chat.say("Goodbye.")
    assert sent(world) == [*asked, *kept, "Stop. Never mind.", "Ok.", "Goodbye."]
    if ANSWER not in kept:
        found = world.letta.messages.search(query="Albatross", extra_body={"agent_id": agent.id})
        assert "Albatross" not in str(found)


@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        (f"{FILLER} It is", ["It is"]),
        ("Let me look that up. it is...", ["it is..."]),
        ("let me look that up it is", ["it is"]),
        ("It is", ["It is"]),  # its client keeps no filler
        (FILLER, []),
        ("Let me look...", []),
        ("Something else altogether.", ["Something else altogether."]),
    ],
)
def test_after_a_barge_in_a_list_of_the_clients_keeps_the_round_and_what_was_heard(
    world: LettaWorld, heard: str, kept: list[str]
) -> None:
    voice(world)
    chat = world.world.chat(model="agent/vera")
    chat.say("Hello.")
    world.upstream.queue(call_tools(search()), say(ANSWER))
    chat.say("What is my boat called?", stream=True)
    before = world.upstream.last.messages
    chat.messages[-1]["content"] = heard
    chat.say("Stop. Never mind.")
    assert world.upstream.last.messages[: len(before)] == before
    asked = ["What is my boat called?", ["search_memory"]]
    assert sent(world) == [*asked, *kept, "Stop. Never mind."]
    chat.say("Goodbye.")
    assert sent(world) == [*asked, *kept, "Stop. Never mind.", "Ok.", "Goodbye."]
    assert "mnemogate_prefix_breaks_total 0.0" in world.world.gateway.ask("GET", "/metrics").body.decode()


@pytest.mark.parametrize("heard", ["Your boat is", None])
def test_a_reply_without_tools_is_cut_too(world: LettaWorld, heard: str | None) -> None:
    agent = voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(say("Your boat is called Albatross."))
    chat.say("What is my boat called?")
    chat.messages[-1]["content"] = heard
    if heard is None:
        chat.messages.pop()
    chat.say("Stop.")
    kept = [] if heard is None else [heard]
    assert sent(world) == ["What is my boat called?", *kept, "Stop."]
    assert texts(world, agent)[2:] == ["What is my boat called?", *kept, "Stop.", "Ok."]


@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        (["Your boat is", "Are you still there?"], "Your boat is"),
        (["One moment.", "Your boat is"], "Your boat is"),
        (["Your boat", "is"], "Your boat is"),
        (["Your boat is called Albatross.", "Are you still there?"], "Your boat is called Albatross."),
    ],
)
def test_a_filler_of_the_application_may_come_with_a_reply_that_was_cut(
    world: LettaWorld, heard: list[str], kept: str
) -> None:
    voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(say("Your boat is called Albatross."))
    chat.say("What is my boat called?")
    chat.messages[-1:] = [{"role": "assistant", "content": text} for text in heard]
    chat.say("Stop.")
    assert sent(world) == ["What is my boat called?", kept, "Stop."]
    chat.messages.pop()
    chat.say("Wait.")
    assert sent(world) == ["What is my boat called?", kept, "Stop.", "Wait."]


class Forecaster:
    """A caller whose application has a tool of its own, which a reply has called."""

    def __init__(self, world: LettaWorld, ahead: str | None) -> None:
        voice(world)
        self.world, self.messages = world, list[Any]()
        self.ask("Hello.")
        world.upstream.queue(call_tools(Call("get_weather", {"city": "Paris"}), text=ahead))
        self.ask("What of Paris?")
        (call,) = self.messages[-1]["tool_calls"]
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": "sunny"})
        world.upstream.queue(say("It is sunny in Paris, and it rains in Rome."))
        self.answer()

    @property
    def body(self) -> dict[str, Any]:
        return {"model": "agent/vera", "messages": self.messages, "tools": [WEATHER]}

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        self.answer()

    def answer(self) -> None:
        reply = self.world.world.sdk.chat.completions.create(**self.body, extra_headers=OURS)
        self.messages.append(reply.choices[0].message.model_dump(exclude_none=True))

    def sent(self) -> list[Any]:
        return [m["content"] for m in self.world.upstream.last.messages][5:]


@pytest.mark.parametrize("ahead", ["Let me look at the sky.", None])
def test_a_reply_after_a_client_tool_is_cut(world: LettaWorld, ahead: str | None) -> None:
    caller = Forecaster(world, ahead)
    caller.messages[-1]["content"] = "It is sunny"
    caller.ask("Stop.")
    assert caller.sent() == ["sunny", "It is sunny", "Stop."]


@pytest.mark.parametrize("ahead", ["Let me look at the sky.", None])
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_results_after_which_nothing_was_heard_stand_there_once(
    world: LettaWorld, ahead: str | None, is_cancelled: bool
) -> None:
    caller = Forecaster(world, ahead)
    caller.messages.pop()
    if is_cancelled:
        caller.messages.append({"role": "user", "content": "Stop."})
        leave(world, caller.body)
    caller.ask("Wait.")
    asked = [*(["Stop."] if is_cancelled else []), "Wait."]
    assert caller.sent() == ["sunny", *asked]
    caller.ask("Bye.")
    assert caller.sent() == ["sunny", *asked, "Ok.", "Bye."]


def leave(world: LettaWorld, body: dict[str, Any]) -> None:
    """Asks, and leaves before the first word."""
    world.upstream.queue(say("Unheard.", hold_before_headers=Gate()))
    count = len(world.upstream.requests)
    with world.world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**body, "stream": True}).encode(), OURS)
        world.upstream.request_gate(count + 1).wait_sync()
    world.upstream.requests[count].gone.wait_sync()
    world.world.settle()


def test_a_text_that_a_call_spoke_is_cut_too(world: LettaWorld) -> None:
    world.agent(name="teller", agent_type="memgpt_v2_agent")
    chat = world.world.chat(model="agent/teller", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(call_tools(Call("send_message", {"message": "Your boat is called Albatross."})))
    assert chat.say("What is my boat called?") == "Your boat is called Albatross."
    chat.messages[-1]["content"] = "Your boat is"
    chat.say("Stop.")
    assert "Your boat is" in str(world.upstream.last.messages)
    assert "Albatross" not in str(world.upstream.last.messages)


def test_a_reply_of_which_one_word_was_heard_is_cut_to_it(world: LettaWorld) -> None:
    voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(say("Yes, of course."))
    chat.say("Are you there?")
    chat.messages[-1]["content"] = "Yes..."
    chat.say("Good.")
    assert sent(world) == ["Are you there?", "Yes...", "Good."]


def test_questions_that_were_not_answered_stand_there_once(world: LettaWorld) -> None:
    """Their requests were cancelled before the first word, and the caller went on."""
    agent = voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    for text in ("No.", "No.", "Wait."):
        chat.messages.append({"role": "user", "content": text})
        leave(world, {"model": "agent/vera", "messages": chat.messages})
    chat.say("What is my boat called?")
    asked = ["No.", "No.", "Wait.", "What is my boat called?"]
    assert sent(world) == asked
    assert texts(world, agent)[2:] == [*asked, "Ok."]


@pytest.mark.parametrize("is_resent", [True, False])
@pytest.mark.parametrize("status", [400, 500])
def test_a_barge_in_is_reported_after_a_message_that_failed(
    world: LettaWorld, status: int, is_resent: bool
) -> None:
    agent = voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(say("Your boat is called Albatross."))
    chat.say("What is my boat called?")
    # The client had not heard of the cut yet.
    world.upstream.queue(fail(status))
    with pytest.raises(openai.APIStatusError):
        chat.say("Stop.")
    chat.messages[3]["content"] = "Your boat is"
    if not is_resent:
        del chat.messages[4:]
    chat.say("Never mind.")
    between = ["Stop."] if is_resent or status == 500 else []
    told = ["What is my boat called?", "Your boat is", *between, "Never mind."]
    assert sent(world) == told
    assert texts(world, agent)[2:] == [*told, "Ok."]


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_question_that_was_not_answered_is_asked_again(world: LettaWorld, is_cancelled: bool) -> None:
    """A voice framework gives a request up whose first word is late, and sends it once more."""
    agent = voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    for _ in range(2):
        count = len(world.upstream.requests)
        gate = Gate()
        world.upstream.queue(say("Late.", hold_before_headers=gate) if is_cancelled else fail(500))
        with world.world.gateway.connect() as client:
            messages = [*chat.messages, {"role": "user", "content": "What is my boat called?"}]
            body = {"model": "agent/vera", "stream": True, "messages": messages}
            client.request("POST", CHAT, json.dumps(body).encode(), OURS)
            world.upstream.request_gate(count + 1).wait_sync()
            if not is_cancelled:
                assert client.read_reply().status == 500
        if is_cancelled:
            world.upstream.requests[count].gone.wait_sync()
        world.world.settle()
    chat.say("What is my boat called?")
    assert sent(world) == ["What is my boat called?"]
    assert texts(world, agent)[2:] == ["What is my boat called?", "Ok."]


def test_a_system_message_after_a_users_message_asks_for_a_reply(world: LettaWorld) -> None:
    voice(world)
    chat = world.world.chat("You answer a phone.", model="agent/vera", headers=OURS)
    chat.say("Hello.")
    world.upstream.queue(say("Are you still there?"))
    chat.messages.append({"role": "system", "content": "The caller is silent."})
    chat.go_on()
    assert "The caller is silent." in sent(world)[-1]
    assert "You answer a phone." in world.upstream.last.messages[0]["content"]
    chat.say("Yes.")
    assert sent(world)[1:] == ["Are you still there?", "Yes."]


def test_the_same_question_once_more_is_a_question(world: LettaWorld) -> None:
    voice(world)
    chat = world.world.chat(model="agent/vera", headers=OURS)
    chat.say("Hello.")
    chat.say("What is my boat called?")
    chat.messages.pop()
    chat.messages.pop()
    chat.say("What is my boat called?")
    assert sent(world) == ["What is my boat called?", "Ok.", "What is my boat called?"]


def test_other_kinds_of_agents_have_it_where_they_are_set_to(world: LettaWorld) -> None:
    asked = {"name": "ann", "model": "openai/m", "mnemogate": {"filler": "model"}}
    _, made = world.ask("POST", "/v1/agents", asked)
    assert made["mnemogate"]["filler"] == "model"
    quiet = voice(world)
    status, changed = world.ask("PATCH", f"/v1/agents/{quiet.id}", {"mnemogate": {"filler": "none"}})
    assert (status, changed["mnemogate"]["filler"]) == (200, "none")
    for name, has in (("ann", True), ("vera", False)):
        world.world.chat(model=f"agent/{name}").say("Hi")
        assert ("pre_exec_msg" in str(world.upstream.last.json["tools"])) is has


@pytest.mark.parametrize(("kind", "filler"), [("voice_convo_agent", "model"), ("letta_v1_agent", "none")])
def test_an_agent_shows_the_filler_that_is_in_force(world: LettaWorld, kind: str, filler: str) -> None:
    asked = {"name": "ann", "model": "openai/m", "agent_type": kind}
    _, made = world.ask("POST", "/v1/agents", asked)
    assert made["mnemogate"]["filler"] == filler


def test_an_agent_that_speaks_by_a_tool_needs_none_ahead_of_it(world: LettaWorld) -> None:
    world.ask(
        "POST",
        "/v1/agents",
        {
            "name": "sam",
            "model": "openai/m",
            "agent_type": "memgpt_v2_agent",
            "mnemogate": {"filler": "model"},
        },
    )
    world.upstream.queue(call_tools(Call("send_message", {"message": "Hello."})))
    world.world.chat(model="agent/sam").say("Hi")
    tools = {tool["function"]["name"]: tool for tool in world.upstream.last.json["tools"]}
    assert "pre_exec_msg" not in str(tools["send_message"])
    assert "pre_exec_msg" in str(tools["conversation_search"])


@pytest.mark.parametrize(
    "filler", [{"say": ""}, {"say": " "}, {"after_ms": 5}, "loud", {"say": "x", "after_ms": -1}]
)
def test_a_wrong_one_is_named(world: LettaWorld, filler: Any) -> None:
    status, error = world.ask("POST", "/v1/agents", {"name": "ann", "mnemogate": {"filler": filler}})
    assert status == 422
    assert "filler" in str(error)


# -- a fixed sentence


def test_a_filler_setting_without_a_time_leaves_the_agent_usable(world: LettaWorld) -> None:
    agent = voice(world)
    update = {"mnemogate": {"filler": {"say": "One moment, please."}}}
    status, _ = world.ask("PATCH", f"/v1/agents/{agent.id}", update)
    assert status == 200
    world.upstream.queue(say(ANSWER))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert [each.content for each in reply.messages] == [ANSWER]


def test_a_fixed_filler_is_shown_wherever_an_agent_is(world: LettaWorld) -> None:
    filler = {"say": "One moment, please.", "after_ms": 500.0}
    body = {"name": "ann", "model": "openai/m", "mnemogate": {"filler": filler}}
    status, created = world.ask("POST", "/v1/agents", body)
    assert (status, created["mnemogate"]["filler"]) == (200, filler), created
    status, listed = world.ask("GET", "/v1/agents")
    assert (status, [each["mnemogate"]["filler"] for each in listed]) == (200, [filler])


def test_the_fixed_filler_of_a_profile_is_shown_with_its_memories(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    profile = ProfileSettings("default", filler=FillerSettings(say="One moment, please.", after_ms=500))
    with letta(upstream, tmp_path, profile) as world:
        chat = world.world.sdk.chat.completions
        chat.create(model="m", user="ann", messages=[{"role": "user", "content": "Hi"}])
        status, listed = world.ask("GET", "/v1/agents")
        filler = {"say": "One moment, please.", "after_ms": 500.0}
        assert (status, [each["mnemogate"]["filler"] for each in listed]) == (200, [filler])


def slowly(world: LettaWorld) -> Any:
    """Makes an agent whose tool is slow."""
    agent = voice(world)
    world.ask("PATCH", f"/v1/agents/{agent.id}", {"mnemogate": {"filler": FIXED}})
    recall, recent = world.world.store.recall, world.world.store.recall.search

    async def late(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0.1)
        return await recent(*args, **options)

    object.__setattr__(recall, "search", late)
    world.letta.agents.messages.create(agent.id, input="My boat is called Albatross.")
    return agent


def test_a_fixed_sentence_is_heard_while_the_tool_runs(world: LettaWorld) -> None:
    agent = slowly(world)
    world.upstream.queue(call_tools(search(None)), say(ANSWER))
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True))
    shown = [each for each in kinds(events) if each in ("tool_call_message", "tool_return_message")]
    assert shown == ["tool_call_message", "tool_return_message"]
    said = [getattr(each, "content", each.message_type) for each in events]
    assert said.index(FIXED["say"]) < said.index("tool_return_message")
    assert texts(world, agent)[-1] == f"{FIXED['say']} {ANSWER}"
    world.upstream.queue(call_tools(search(None)), say("Yes."))
    chat = world.world.chat(model="agent/vera", headers=OURS)
    assert chat.say("Sure?", stream=True) == f"{FIXED['say']} Yes."
    assert FIXED["say"] not in str(world.upstream.last.messages)


def test_an_agent_that_asks_another_gets_the_answer_alone(world: LettaWorld) -> None:
    asks = ["send_message_to_agent_and_wait_for_reply"]
    vera, ann = voice(world), world.agent(name="ann", tools=asks)
    asked = Call(asks[0], {"message": "What is the boat called?", "other_agent_id": vera.id})
    world.upstream.queue(call_tools(asked), call_tools(search()), say(ANSWER), say("I see."))
    world.letta.agents.messages.create(ann.id, input="Ask Vera.")
    result = world.upstream.last.messages[-1]["content"]
    assert ANSWER in result
    assert FILLER not in result


def test_a_whole_reply_has_no_filler(world: LettaWorld) -> None:
    agent = slowly(world)
    world.upstream.queue(call_tools(search(None)), say(ANSWER))
    world.letta.agents.messages.create(agent.id, input="Hi")
    assert texts(world, agent)[-1] == ANSWER
