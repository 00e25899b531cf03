"""An application of the Responses API, through the real gateway, before an upstream that has chat completions only."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from msgspec.structs import replace

from gateway.run.memory import conversation_turns
from gateway.settings import BlockSettings, UpstreamSettings
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from tests.doubles.anthropic_rules import sign
from tests.doubles.anthropic_upstream import StrictAnthropic, message
from tests.doubles.upstream import ZEROS, Call, Gate, StrictUpstream, call_tools, fail, raw, say, uncounted
from tests.gateway.responses.response_client import WEATHER, both_ways, read_stream, respond, serve_memory
from tests.gateway.sdk import World, agent, remember
from tests.rows import each_row
from tests.server import chat_upstreams, serve, settings_for

Json = dict[str, Any]
JSON = "application/json"


@dataclass
class Talk:
    """A client that keeps its items and sends them all again, as the guide to conversation state has it."""

    world: World
    options: Json = field(default_factory=dict)
    items: list[Json] = field(default_factory=list)

    def say(self, text: str, **options: Any) -> Any:
        self.items.append({"role": "user", "content": text})
        return self.go_on(**options)

    def go_on(self, **options: Any) -> Any:
        response = respond(self.world, input=self.items, **{**self.options, **options})
        self.items += [item.model_dump(exclude_none=True) for item in response.output]
        return response

    def answer(self, call: Any, output: Any) -> None:
        self.items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})


def calls_in(response: Any) -> list[Any]:
    return [item for item in response.output if item.type == "function_call"]


# -- memory


@both_ways
def test_a_message_of_one_conversation_is_recalled_in_another(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    first = Talk(world, {"user": "alice", "stream": stream})
    assert first.say("My cat is called Miso, she is grey.").output_text == "Ok."
    Talk(world, {"user": "alice", "stream": stream}).say("What is my cat called?")
    assert "Miso" in upstream.last.messages[-1]["content"]
    Talk(world, {"user": "bob", "stream": stream}).say("What is my cat called?")
    assert upstream.last.messages == [{"role": "user", "content": "What is my cat called?"}]


@both_ways
def test_a_list_that_is_sent_again_goes_on_with_its_conversation(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    talk = Talk(world, {"user": "alice", "instructions": "Be brief.", "stream": stream})
    for text in ("One", "Two", "Three"):
        upstream.queue(say(f"{text} it is."))
        talk.say(text)
    assert [m["content"] for m in upstream.last.messages] == [
        "Be brief.", "One", "One it is.", "Two", "Two it is.", "Three",
    ]  # fmt: skip
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_named_conversation_is_sent_its_new_items_alone(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("Noted."), call_tools(Call("weather", {"city": "Rome"}, "call_1")), say("Sunny."))
    respond(world, user="alice", conversation="conv_1", input="I live in Rome.")
    response = respond(
        world, user="alice", conversation={"id": "conv_1"}, input="The weather?", tools=[WEATHER]
    )
    [call] = calls_in(response)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    last = respond(world, user="alice", conversation="conv_1", input=[output], tools=[WEATHER])
    assert last.output_text == "Sunny."
    assert last.conversation.id == "conv_1"
    assert [m["role"] for m in upstream.last.messages] == ["user", "assistant", "user", "assistant", "tool"]


def test_memory_tools_run_in_hidden_rounds(world: World, upstream: StrictUpstream) -> None:
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    for stream in (False, True):
        upstream.queue(call_tools(insert, text="I note that."), say("Tea it is."))
        response = respond(
            world, model="agent/helper", user=f"alice-{stream}", input="I like tea.", stream=stream
        )
        assert [item.type for item in response.output] == ["message"]
        assert response.output_text == "I note that. Tea it is."
        assert response.usage.output_tokens > 0
        world.pass_time(1000)
        assert world.block(f"alice-{stream}").value == "Likes tea."


def test_a_conversation_that_began_at_openai_goes_on(world: World, upstream: StrictUpstream) -> None:
    """Its thoughts were sealed by OpenAI, and nobody else can read them: they are left out, and named."""
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    items = [{"role": "user", "content": "Hi"}, sealed, {"role": "assistant", "content": "Yes?"}]
    body = {"model": "m", "user": "alice", "input": [*items, {"role": "user", "content": "Why?"}]}
    reply = world.gateway.ask("POST", "/v1/responses", orjson.dumps(body), {})
    assert (reply.status, reply.headers["x-mnemogate-consumed"]) == (200, "input.encrypted_content")
    assert [each["content"] for each in upstream.last.messages] == ["Hi", "Yes?", "Why?"]
    assert "gAAAA" not in str(upstream.last.json)


def test_a_response_that_is_left_is_remembered_as_cut(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("One two three.", ["One ", "two ", "three."], hold_after={3: Gate()}))
    with world.sdk.responses.create(model="m", user="alice", input="Count.", stream=True) as events:
        for event in events:
            if event.type == "response.output_text.delta" and event.delta == "two ":
                break
    upstream.last.gone.wait_sync()
    world.settle()
    items = [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": "One two"},
        {"role": "user", "content": "Stop."},
    ]
    respond(world, user="alice", input=items)
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_strict_memory_and_modes_are_the_headers_of_chat_completions(
    world: World, upstream: StrictUpstream
) -> None:
    client = world.sdk.responses.with_raw_response
    reply = client.create(model="m", input="Hi", user="alice", extra_headers={"x-mnemogate-memory": "strict"})
    assert reply.headers["x-mnemogate-memory"] == "on"
    reply = client.create(model="m", input="Hi", extra_headers={"x-mnemogate-memory": "off"})
    assert reply.headers["x-mnemogate-memory"] == "off"
    assert reply.parse().output_text == "Ok."


# -- a client that names what was said


def contents(upstream: StrictUpstream) -> list[Any]:
    return [message["content"] for message in upstream.last.messages]


@both_ways
def test_a_response_is_gone_on_from_by_its_id(world: World, upstream: StrictUpstream, stream: bool) -> None:
    previous = None
    for text in ("One", "Two", "Three"):
        upstream.queue(say(f"{text} it is."))
        response = respond(
            world,
            user="alice",
            input=text,
            previous_response_id=previous,
            instructions=f"For {text}.",
            stream=stream,
        )
        previous = response.id
        assert response.output_text == f"{text} it is."
    assert contents(upstream) == ["For Three.", "One", "One it is.", "Two", "Two it is.", "Three"]
    assert world.query("SELECT count(*) FROM conversations") == [1]


@pytest.mark.parametrize("begins", [[], [{"role": "user", "content": "Hi."}]])
def test_a_response_to_a_developer_message_alone_is_gone_on_from_by_its_id(
    world: World, upstream: StrictUpstream, begins: list[Json]
) -> None:
    """As an application has its model greet, or speak after a silence."""
    previous = respond(world, user="alice", input=begins).id if begins else None
    message = {"role": "developer", "content": "Say something."}
    upstream.queue(say("How are you?"))
    response = respond(world, user="alice", input=[message], previous_response_id=previous)
    assert world.sdk.responses.retrieve(response.id).output_text == "How are you?"
    items = world.sdk.responses.input_items.list(response.id, order="asc").data
    assert items[-1].content[0].text == "Say something."  # type: ignore[union-attr]
    respond(world, user="alice", input="Fine.", previous_response_id=response.id)
    sent = [(m["role"], m["content"]) for m in upstream.last.messages]
    assert sent[-3:] == [("developer", "Say something."), ("assistant", "How are you?"), ("user", "Fine.")]


def test_an_id_may_be_gone_on_from_again(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, user="alice", input="One")
    forks = [
        respond(world, user="alice", input=text, previous_response_id=first.id)
        for text in ("Two", "Other", "Third")
    ]
    for _ in range(2):
        for fork, text in zip(forks, ("Two", "Other", "Third"), strict=True):
            respond(world, user="alice", input="More", previous_response_id=fork.id)
            assert contents(upstream) == ["One", "Ok.", text, "Ok.", "More"]


def test_an_id_is_found_after_a_reply_that_came_back_cut(world: World, upstream: StrictUpstream) -> None:
    """LiveKit, once a caller has cut in: it sends all again, with what was heard, and goes on by the id."""
    upstream.queue(say("We have soup and a secret menu."), say("Soup it is."))
    respond(world, user="alice", input="What is there to eat?")
    items = [
        {"role": "user", "content": "What is there to eat?"},
        {"role": "assistant", "content": "We have soup"},
        {"role": "user", "content": "Stop, I take the soup."},
    ]
    response = respond(world, user="alice", input=items)
    respond(world, user="alice", input="Thanks.", previous_response_id=response.id)
    said = ["What is there to eat?", "We have soup", "Stop, I take the soup.", "Soup it is.", "Thanks."]
    assert contents(upstream) == said
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_each_answer_to_the_same_words_is_gone_on_from(world: World, upstream: StrictUpstream) -> None:
    answers = ("Red.", "Blue.", "Blue.")
    upstream.queue(*map(say, answers))
    responses = [respond(world, user="alice", input="A colour?") for _ in answers]
    assert len({response.id for response in responses}) == 3
    cut(world, upstream, input="A colour?")
    for response, answer in zip(responses, answers, strict=True):
        respond(world, user="alice", input="Why?", previous_response_id=response.id)
        assert contents(upstream) == ["A colour?", answer, "Why?"]


def cut(world: World, upstream: StrictUpstream, **options: Any) -> Any:
    """Returns a response that its client leaves after "One two "."""
    upstream.queue(say("One two three.", ["One ", "two ", "three."], hold_after={3: Gate()}))
    return left(world, lambda event: getattr(event, "delta", None) == "two ", **options)


def left(world: World, is_enough: Callable[[Any], bool], **options: Any) -> Any:
    """Returns a response that its client leaves after such an event."""
    with world.sdk.responses.create(model="m", user="alice", stream=True, **options) as stream:
        events: Iterator[Any] = iter(stream)
        response = next(events).response
        assert any(map(is_enough, events))
    world.upstream.last.gone.wait_sync()
    return response


def test_a_response_that_was_left_is_gone_on_from(world: World, upstream: StrictUpstream) -> None:
    first = cut(world, upstream, input="Count.")
    for text in ("Stop.", "Go on."):
        respond(world, user="alice", input=text, previous_response_id=first.id)
        assert contents(upstream) == ["Count.", "One two ", text]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_the_text_of_a_response_that_was_left_within_a_call_stays(
    world: World, upstream: StrictUpstream
) -> None:
    for text in ("Let me see.", None):
        call = Call("weather", {"city": "Rome, in Italy"}, pieces=3)
        upstream.queue(call_tools(call, text=text, hold_after={7: Gate()}))
        options: Json = {"tools": [WEATHER], "input": f"The weather? {text}"}
        first = left(world, lambda event: event.type == "response.function_call_arguments.delta", **options)
        options = {"user": "alice", "input": "Never mind.", "previous_response_id": first.id}
        if text is not None:
            respond(world, **options)
            assert [m.get("tool_calls") for m in upstream.last.messages] == [None] * 3
            assert contents(upstream)[1:] == ["Let me see.", "Never mind."]
        else:
            with pytest.raises(openai.BadRequestError, match="not found"):
                respond(world, **options)


def test_a_response_that_was_left_is_not_the_one_after_it(world: World, upstream: StrictUpstream) -> None:
    half = cut(world, upstream, input="Count.")
    upstream.queue(say("One two three."))
    whole = respond(world, user="alice", input="Count.")
    for response, text in ((whole, "One two three."), (half, "One two ")):
        respond(world, user="alice", input="And?", previous_response_id=response.id)
        assert contents(upstream) == ["Count.", text, "And?"]


def test_an_item_that_comes_back_in_another_form_leaves_the_ids_after_it_valid(
    world: World, upstream: StrictUpstream
) -> None:
    """A voice agent reports what was heard of a reply, and goes on from the next one by its id."""
    upstream.queue(say("One two three four five."))
    items: list[Json] = [{"role": "user", "content": "Count."}]
    first = respond(world, user="alice", input=items)
    items += [{"role": "assistant", "content": "One two"}, {"role": "user", "content": "Stop."}]
    second = respond(world, user="alice", input=items)
    respond(world, user="alice", input="Go on.", previous_response_id=second.id)
    assert contents(upstream) == ["Count.", "One two", "Stop.", "Ok.", "Go on."]
    respond(world, user="alice", input="Go on.", previous_response_id=first.id)
    assert contents(upstream) == ["Count.", "One two", "Go on."]


def test_a_question_that_comes_back_without_its_template_keeps_its_id(
    world: World, upstream: StrictUpstream
) -> None:
    items: list[Json] = []
    for text in ("What is the capital of Italy?", "And of Norway?", "And of Peru?"):
        asked = f"Answer from these documents: nothing was found.\n\nQuestion: {text}"
        response = respond(world, user="alice", input=[*items, {"role": "user", "content": asked}])
        items += [
            {"role": "user", "content": text},
            {"type": "item_reference", "id": response.output[0].id},
        ]
    assert contents(upstream)[:-1] == [
        "What is the capital of Italy?", "Ok.", "And of Norway?", "Ok.",
    ]  # fmt: skip


def make_agent(world: World) -> None:
    blocks = [{"label": "human", "value": ""}]
    body = {"name": "ann", "model": "openai/m", "memory_blocks": blocks}
    reply = world.gateway.ask("POST", "/v1/agents/", json.dumps(body).encode())
    assert reply.status == 200, reply.json


@pytest.mark.agents
def test_a_reply_that_was_not_heard_keeps_the_ids_after_it(world: World, upstream: StrictUpstream) -> None:
    make_agent(world)
    options: Json = {"model": "agent/ann", "extra_headers": {"x-mnemogate-conversation": "default"}}
    texts = [{"role": "user", "content": text} for text in ("Count.", "Stop.")]
    respond(world, input=texts[:1], **options)
    response = respond(world, input=texts, **options)
    respond(world, input="Go on.", previous_response_id=response.id, **options)
    assert contents(upstream)[1:] == ["Count.", "Stop.", "Ok.", "Go on."]


@pytest.mark.agents
def test_the_steps_of_an_agents_own_conversation_are_one_response(
    world: World, upstream: StrictUpstream
) -> None:
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstream.queue(say("Hello."), call_tools(insert, text="I note that."), say("Tea it is."))
    make_agent(world)
    options: Json = {"model": "agent/ann", "extra_headers": {"x-mnemogate-conversation": "default"}}
    first = respond(world, input="Hi", **options)
    second = respond(world, input="I like tea.", previous_response_id=first.id, **options)
    respond(world, input="And now?", previous_response_id=second.id, **options)
    roles = [m["role"] for m in upstream.last.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "tool", "assistant", "user"]
    assert contents(upstream)[-2:] == ["Tea it is.", "And now?"]
    # Elsewhere it is what its client has.
    respond(world, model="agent/ann", input="And now?", previous_response_id=second.id)
    assert contents(upstream)[1:] == ["Hi", "Hello.", "I like tea.", "I note that. Tea it is.", "And now?"]
    assert world.sdk.responses.retrieve(second.id).to_dict() == second.to_dict()
    world.sdk.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(second.id)
    assert world.query("SELECT count(*) FROM exchanges WHERE state = 'forgotten'") == [2]


def test_results_of_calls_follow_an_id(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), text="Let me see."), say("Sunny."))
    first = respond(world, user="alice", input="The weather?", tools=[WEATHER])
    [call] = calls_in(first)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    last = respond(world, user="alice", input=[output], previous_response_id=first.id, tools=[WEATHER])
    assert last.output_text == "Sunny."
    assert [m["role"] for m in upstream.last.messages] == ["user", "assistant", "tool"]
    assert world.query("SELECT count(*) FROM conversations") == [1]


@pytest.mark.parametrize("names", ["response", "items", "nothing"])
def test_words_may_come_while_a_tool_is_running(world: World, upstream: StrictUpstream, names: str) -> None:
    """OpenAI takes such a list, and a chat completion has no place for it in this order."""
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), text="Let me see."), say("Sunny."))
    first = respond(world, user="alice", input="The weather?", tools=[WEATHER])
    [call] = calls_in(first)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    items: list[Any] = [{"role": "user", "content": "In Rome, that is."}, output]
    previous = first.id if names == "response" else None
    if names != "response":
        whole = [item.model_dump(exclude_none=True) for item in first.output]
        references = [{"type": "item_reference", "id": item.id} for item in first.output]
        reply = references if names == "items" else whole
        items = [{"role": "user", "content": "The weather?"}, *reply, *items]
    last = respond(world, user="alice", input=items, previous_response_id=previous, tools=[WEATHER])
    assert last.output_text == "Sunny."
    respond(world, user="alice", input="Thanks.", previous_response_id=last.id)
    sent = [(m["role"], m.get("tool_call_id") or m["content"]) for m in upstream.last.messages]
    words = [("user", "In Rome, that is."), ("assistant", "Sunny."), ("user", "Thanks.")]
    assert sent[1:] == [("assistant", "Let me see."), ("tool", call.call_id), *words]


def test_items_are_named_by_their_ids(world: World, upstream: StrictUpstream) -> None:
    calls = (Call("weather", {"city": "Rome"}), Call("weather", {"city": "Oslo"}))
    upstream.queue(call_tools(*calls, text="Let me see."), say("Sun and snow."))
    items: list[Json] = [{"role": "user", "content": "The weather?"}]
    for _ in range(2):
        response = respond(world, user="alice", input=items, tools=[WEATHER], instructions="Be brief.")
        items += [{"type": "item_reference", "id": item.id} for item in response.output]
        items += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "seen"}
            for call in calls_in(response)
        ]
    respond(world, user="alice", input=[*items, {"role": "user", "content": "Thanks."}], tools=[WEATHER])
    messages = upstream.last.messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert len(messages[1]["tool_calls"]) == 2
    assert messages[4]["content"] == "Sun and snow."
    assert world.query("SELECT count(*) FROM conversations") == [1]


@both_ways
@pytest.mark.parametrize("client", ["vercel", "livekit", "calls alone", "semantic kernel", "strands"])
def test_the_items_of_a_response_may_be_repeated_after_its_id(
    world: World, upstream: StrictUpstream, stream: bool, client: str
) -> None:
    upstream.queue(call_tools(Call("weather", {}), Call("weather", {}), text="Let me see."), say("Sunny."))
    options: Json = {"user": "alice", "tools": [WEATHER], "stream": stream}
    question = {"role": "user", "content": "The weather?"}
    response = respond(world, input=[question], **options)
    items: list[Json] = []
    if client == "vercel":
        items = [question, {"type": "item_reference", "id": response.output[0].id}]
    else:
        options["previous_response_id"] = response.id
    if client in ("semantic kernel", "strands"):
        items = [question]
    if client in ("livekit", "strands"):
        items.append({"role": "assistant", "content": "Let me see."})
    calls = [call.model_dump(include={"type", "call_id", "name", "arguments"}) for call in calls_in(response)]
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sun"} for call in calls
    ]
    pairs = [each for pair in zip(calls, results, strict=True) for each in pair]
    items += {"livekit": pairs, "semantic kernel": results}.get(client, [*calls, *results])
    assert respond(world, input=items, **options).output_text == "Sunny."
    messages = upstream.last.messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool"]
    assert len(messages[1]["tool_calls"]) == 2
    assert world.query("SELECT count(*) FROM conversations") == [1]


@pytest.mark.parametrize("heard", ["We have soup", "We have soup...", "We"])
def test_the_heard_part_of_a_reply_may_come_after_its_id(
    world: World, upstream: StrictUpstream, heard: str
) -> None:
    """LiveKit names the response of which its caller heard the beginning, and says the beginning after it."""
    upstream.queue(say("We have soup and a secret menu."))
    first = respond(world, user="alice", input="What is there to eat?")
    items = [{"role": "assistant", "content": heard}, {"role": "user", "content": "Stop, I take it."}]
    second = respond(world, user="alice", input=items, previous_response_id=first.id)
    respond(world, user="alice", input="Thanks.", previous_response_id=second.id)
    said = ["What is there to eat?", heard, "Stop, I take it.", "Ok.", "Thanks."]
    assert contents(upstream) == said
    assert "secret menu" not in str(world.query("SELECT shown_reply FROM exchanges WHERE active <> 0"))


@pytest.mark.both
@pytest.mark.parametrize("continued", ["cancelled", "heard"])
def test_the_heard_part_of_a_reply_stays_if_the_request_with_it_is_cancelled(
    world: World, upstream: StrictUpstream, continued: str
) -> None:
    """A client that continues by ids sends the heard part only once."""
    upstream.queue(say("We have soup and a secret menu."))
    heard = respond(world, user="alice", input="What is there to eat?")
    items = [{"role": "assistant", "content": "We have soup"}, {"role": "user", "content": "Count."}]
    cancelled = cut(world, upstream, input=items, previous_response_id=heard.id)
    name = {"cancelled": cancelled, "heard": heard}[continued].id
    respond(world, user="alice", input="Thanks.", previous_response_id=name)
    between = ["Count.", "One two "] if continued == "cancelled" else []
    assert contents(upstream) == ["What is there to eat?", "We have soup", *between, "Thanks."]


@pytest.mark.both
@pytest.mark.parametrize("heard", [None, "One"])
def test_what_was_heard_of_cancelled_responses_stays_in_a_chain(
    world: World, upstream: StrictUpstream, heard: str | None
) -> None:
    """The caller interrupts twice. heard: the reported part of the cancelled replies; None: nothing is reported."""
    reported: list[Json] = [] if heard is None else [{"role": "assistant", "content": heard}]
    texts = ["Count.", "Again.", "Once more.", "Thanks."]
    name = {}
    for text in texts[:2]:
        items = [*(reported if name else []), {"role": "user", "content": text}]
        name = {"previous_response_id": cut(world, upstream, input=items, **name).id}
    for text in texts[2:]:
        items = [*(reported if text == texts[2] else []), {"role": "user", "content": text}]
        name = {"previous_response_id": respond(world, user="alice", input=items, **name).id}
    assert [each.strip() for each in contents(upstream)] == [
        "Count.", heard or "One two", "Again.", heard or "One two", "Once more.", "Ok.", "Thanks.",
    ]  # fmt: skip


@pytest.mark.parametrize("heard", ["We have soup...", "We have soup —", "we have soup [interrupted]"])
def test_a_whole_reply_with_an_ornament_after_its_id_is_no_second_reply(
    world: World, upstream: StrictUpstream, heard: str
) -> None:
    """The caller interrupts when the last word has come."""
    upstream.queue(say("We have soup"))
    first = respond(world, user="alice", input="What is there to eat?")
    items = [{"role": "assistant", "content": heard}, {"role": "user", "content": "Stop, I take it."}]
    respond(world, user="alice", input=items, previous_response_id=first.id)
    assert contents(upstream) == ["What is there to eat?", "We have soup", "Stop, I take it."]


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_an_item_brings_no_calls_that_the_client_leaves_out(
    world: World, upstream: StrictUpstream, answered: int
) -> None:
    """Vercel's SDK: the user goes on in words where a tool waits for a click, so its call is not sent."""
    calls = [Call("weather", {"city": city}) for city in ("Rome", "Oslo")]
    upstream.queue(call_tools(*calls, text="Let me see."))
    items: list[Json] = [{"role": "user", "content": "The weather?"}]
    options: Json = {"user": "alice", "tools": [WEATHER]}
    response = respond(world, input=items, **options)
    items.append({"type": "item_reference", "id": response.output[0].id})
    for call in calls_in(response)[:answered]:
        items.append(call.model_dump(include={"type", "call_id", "name", "arguments"}))
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sun"})
    items.append({"role": "user", "content": "Never mind."})
    respond(world, input=items, **options)
    roles = [m["role"] for m in upstream.last.messages]
    assert roles == ["user", "assistant", *["tool"] * answered, "user"]
    assert contents(upstream)[1] == "Let me see."
    assert len(upstream.last.messages[1].get("tool_calls", ())) == answered
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_the_content_of_referenced_items_is_no_larger_than_a_body(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    server = {"max_body_bytes": 100_000}
    with serve_memory(upstream, tmp_path, agent(), server=server) as world:
        upstream.queue(say("word " * 8_000))
        [item] = respond(world, user="alice", input="One").output
        named: Json = {"type": "item_reference", "id": item.id}
        message = {"role": "user", "content": "Two"}
        assert respond(world, user="alice", input=[named, message, named, message]).output_text == "Ok."
        with pytest.raises(openai.APIStatusError, match="max_body_bytes") as raised:
            respond(world, user="alice", input=[named, message] * 3)
        assert raised.value.status_code == 413


def test_a_body_is_read_under_any_type_and_its_query_goes_on(world: World, upstream: StrictUpstream) -> None:
    body = b'{"model":"m","input":"Hi","user":"alice"}'
    reply = world.gateway.ask("POST", "/v1/responses?api-version=1", body, {"content-type": "text/plain"})
    assert reply.status == 200
    assert (upstream.last.path, upstream.last.query) == ("/v1/chat/completions", "api-version=1")
    assert world.query("SELECT count(*) FROM exchanges") == [1]
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    refused = world.gateway.ask("POST", "/v1/responses", gzip.compress(body), packed)
    assert (refused.status, refused.error["param"]) == (415, "content-encoding")


def test_items_after_an_id_stay(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, user="alice", input="One", previous_response_id=None)
    items = [{"role": "assistant", "content": "And more."}, {"role": "user", "content": "Two"}]
    respond(world, user="alice", input=items, previous_response_id=first.id)
    assert contents(upstream) == ["One", "Ok.", "And more.", "Two"]


def test_an_id_and_items_of_it_stand_side_by_side(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("One it is."), say("Two it is."))
    first = respond(world, user="alice", input="One")
    second = respond(world, user="alice", input="Two", previous_response_id=first.id)
    items = [{"type": "item_reference", "id": second.output[0].id}, {"role": "user", "content": "Three"}]
    respond(world, user="alice", input=items, previous_response_id=first.id)
    assert contents(upstream) == ["One", "One it is.", "Two it is.", "Three"]


def test_an_id_stands_for_hidden_rounds_too(world: World, upstream: StrictUpstream) -> None:
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstream.queue(call_tools(insert), say("Tea it is."))
    first = respond(world, model="agent/helper", user="alice", input="I like tea.")
    respond(world, model="agent/helper", user="alice", input="And now?", previous_response_id=first.id)
    roles = [m["role"] for m in upstream.last.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_long_chain_is_whole(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation_turns, "_PAGE_EXCHANGES", 3)
    previous = None
    for n in range(8):
        previous = respond(world, user="alice", input=f"Say {n}", previous_response_id=previous).id
    assert [c for c in contents(upstream) if c != "Ok."] == [f"Say {n}" for n in range(8)]


@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_response_that_is_not_stored_cannot_be_continued_by_its_id(world: World, mode: str) -> None:
    headers = {"x-mnemogate-memory": mode}
    first = respond(world, user="alice", input="One", extra_headers=headers)
    with pytest.raises(openai.BadRequestError, match="not found"):
        respond(world, user="alice", input="Two", previous_response_id=first.id)


def test_an_id_is_its_users_alone(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, user="alice", input="My secret is Miso.")
    count = len(upstream.chats)
    for others in ({"user": "bob"}, {"user": "alice", "model": "agent/helper"}):
        with pytest.raises(openai.BadRequestError, match="not found"):
            respond(world, input="What is it?", previous_response_id=first.id, **others)
        item = {"type": "item_reference", "id": first.output[0].id}
        with pytest.raises(openai.NotFoundError, match="not found"):
            respond(world, input=[item], **others)
    assert len(upstream.chats) == count


def test_a_forgotten_response_is_not_found(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, user="alice", input="My secret is Miso.")
    [conversation] = world.query("SELECT id FROM conversations")

    async def forget() -> None:
        agent = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        await world.store.forgetting.forget(agent.id, ForgetTarget(conversation_row=conversation))

    world.gateway.call(forget())
    with pytest.raises(openai.BadRequestError, match="not found"):
        respond(world, user="alice", input="What is it?", previous_response_id=first.id)


# -- tools of the client's


@both_ways
def test_the_clients_tools_are_the_clients(world: World, upstream: StrictUpstream, stream: bool) -> None:
    rome, oslo = Call("weather", {"city": "Rome"}), Call("weather", {"city": "Oslo"})
    upstream.queue(call_tools(rome, oslo, text="Let me see."), say("Sun and snow."))
    talk = Talk(world, {"user": "alice", "tools": [WEATHER], "stream": stream})
    response = talk.say("The weather?")
    assert response.status == "completed"
    assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
    calls = calls_in(response)
    assert [call.arguments for call in calls] == [rome.text, oslo.text]
    talk.answer(calls[0], "sun")
    talk.answer(calls[1], [{"type": "input_text", "text": "snow"}])
    assert talk.go_on().output_text == "Sun and snow."
    messages = upstream.last.messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["content"] == "Let me see."
    assert [call["id"] for call in messages[1]["tool_calls"]] == [call.call_id for call in calls]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_request_becomes_a_chat_completion(world: World, upstream: StrictUpstream) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    respond(
        world,
        input="JSON, please.",
        instructions="Be brief.",
        max_output_tokens=200,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": form, "verbosity": "low"},
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        store=True,
        truncation="auto",
        include=["reasoning.encrypted_content"],
        extra_body={"client_metadata": {"session_id": "s"}},  # Codex's
    )
    body = upstream.last.json
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "JSON, please."},
    ]
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": {"type": "object"}, "strict": False},
        }
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    said = {key: body[key] for key in body.keys() - {"messages", "tools", "tool_choice", "response_format"}}
    assert said == {
        "model": "m",
        "max_completion_tokens": 200,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "verbosity": "low",
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_how_tools_are_chosen_may_be_said_where_there_are_none(
    world: World, upstream: StrictUpstream, choice: str
) -> None:
    said = {"tool_choice": choice, "parallel_tool_calls": True}
    response = respond(world, input="Hi", tools=[], **said)
    assert response.output_text == "Ok."
    assert response.tool_choice == choice
    with pytest.raises(openai.BadRequestError, match="only allowed when 'tools'"):
        respond(world, input="Hi", tool_choice="required")


# -- how it ends


@both_ways
def test_a_reply_that_was_cut_is_incomplete(world: World, upstream: StrictUpstream, stream: bool) -> None:
    """Whatever word its maker has for that."""
    for finish, reason in (
        ("length", "max_output_tokens"),
        ("MAX_TOKENS", "max_output_tokens"),
        ("network_error", "max_output_tokens"),
        ("sensitive", "content_filter"),
    ):
        upstream.queue(say("So far", finish_reason=finish))
        response = respond(world, input="Go on.", stream=stream)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", reason)
        assert response.output[-1].status == "incomplete"
        assert response.output_text == "So far"


@both_ways
def test_the_usage_is_reported(world: World, upstream: StrictUpstream, stream: bool) -> None:
    usage = respond(world, input="Hi", stream=stream).usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0


@both_ways
def test_an_error_of_the_upstream_is_its_own(world: World, upstream: StrictUpstream, stream: bool) -> None:
    upstream.queue(fail(429, "Slow down.", code="rate_limit_exceeded"))
    with pytest.raises(openai.RateLimitError, match="Slow down") as raised:
        respond(world, input="Hi", stream=stream)
    assert raised.value.code == "rate_limit_exceeded"


def test_a_response_begins_when_the_upstreams_reply_does(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(say("Ok.", hold_after={1: gate}))  # its role alone
    with world.sdk.responses.create(model="m", input="Hi", user="alice", stream=True) as events:
        kinds = [next(events).type, next(events).type]
        gate.open()
        assert kinds == ["response.created", "response.in_progress"]
        assert [event.type for event in events][-1] == "response.completed"


def test_a_stream_that_breaks_has_failed(world: World, upstream: StrictUpstream) -> None:
    first = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"So"},"finish_reason":null}]}\n\n'  # noqa: E501
    upstream.queue(raw(first), raw(first))
    with pytest.raises(openai.APIError, match="upstream") as raised:
        respond(world, input="Hi", stream=True)
    body = json.dumps({"model": "m", "input": "Hi", "stream": True}).encode()
    *_, last = world.gateway.ask("POST", "/v1/responses", body).body.strip().split(b"data: ")
    response = json.loads(last)["response"]
    assert response["status"] == "failed"
    assert response["error"]["message"] == raised.value.message


@each_row(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"previous_response_id": "resp_1", "conversation": "c"}, "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "robot", "content": "Hi"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "x"}]}, "input[0].arguments"),
        ({"instructions": ["Be brief."]}, "instructions"),
        ({"conversation": 7}, "conversation"),
        ({"conversation": " "}, "conversation"),
        ({"conversation": {"id": "x" * 257}}, "conversation"),
        ({"conversation": "a\nb"}, "conversation"),
        ({"model": None}, "model"),
        ({"metadata": {"a": json.loads("[" * 300 + "]" * 300)}}, "metadata"),
        ({"text": {"format": 7}}, "text.format"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"tools": [{"type": "function", "parameters": {}}]}, "tools[0].name"),
        ({"tools": [{"type": "custom", "name": "py", "format": 7}]}, "tools[0].format"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "tools": 7}}, "tool_choice.tools"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        # They are of chat completions, and a response could not show what they ask for.
        ({"n": 2}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
    ],
)
def test_a_request_that_cannot_be_translated_is_refused(
    world: World, upstream: StrictUpstream, fields: Json, param: str
) -> None:
    body = {"model": "m", "input": "Hi", "user": "alice", **fields}
    reply = world.gateway.ask("POST", "/v1/responses", json.dumps(body).encode())
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.json
    assert not upstream.chats


def test_an_item_that_is_not_found_is_a_404(world: World, upstream: StrictUpstream) -> None:
    """As at OpenAI, where an unknown previous response is a 400."""
    with pytest.raises(openai.NotFoundError, match="Item with id 'msg_1' not found") as refusal:
        respond(world, input=[{"type": "item_reference", "id": "msg_1"}])
    assert refusal.value.param == "input[0].id"
    with pytest.raises(openai.BadRequestError) as other_refusal:
        respond(world, input="Hi", previous_response_id="resp_1")
    assert other_refusal.value.code == "previous_response_not_found"
    assert not upstream.chats


@pytest.mark.parametrize("text", [{}, {"verbosity": "low"}, {"format": None}])
def test_a_response_shows_the_format_of_its_text(world: World, text: Json) -> None:
    assert respond(world, input="Hi", text=text).text.to_dict() == {**text, "format": {"type": "text"}}


@pytest.mark.parametrize("key", ["user", "\\u0075ser", "input"])
def test_a_field_that_is_there_twice_is_refused(world: World, upstream: StrictUpstream, key: str) -> None:
    body = f'{{"model":"m","input":"Hi","user":"alice","{key}":"bob"}}'.encode()
    reply = world.gateway.ask("POST", "/v1/responses", body)
    assert (reply.status, reply.json["error"]["param"]) == (400, key.replace("\\u0075", "u")), reply.json
    assert world.gateway.last_line()["memory"] is None
    assert not upstream.chats


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"text": {"format": {"type": "poem"}}}, "text.format.type"),
    ],
)
def test_an_error_of_the_upstream_names_the_field_as_the_client_does(
    world: World, fields: Json, param: str
) -> None:
    body = {"model": "m", "input": "Hi", **fields}
    reply = world.gateway.ask("POST", "/v1/responses", json.dumps(body).encode())
    assert (reply.status, reply.json["error"]["param"]) == (400, param), reply.json
    assert b"max_completion_tokens" not in reply.body


def test_a_field_that_is_null_says_nothing(world: World, upstream: StrictUpstream) -> None:
    fields = ("temperature", "user", "tools", "metadata", "moderation", "conversation", "stream", "text")
    assert respond(world, input="Hi", **dict.fromkeys(fields)).output_text == "Ok."
    assert upstream.last.json.keys() == {"model", "messages"}
    assert respond(world, input="Hi", top_logprobs=0).output_text == "Ok."


def test_a_header_that_names_another_conversation_is_refused(world: World, upstream: StrictUpstream) -> None:
    body = json.dumps({"model": "m", "input": "Hi", "user": "alice", "conversation": "one"}).encode()
    for header, status in (("one", 200), ("", 200), ("two", 400)):
        reply = world.gateway.ask("POST", "/v1/responses", body, {"x-mnemogate-conversation": header})
        assert reply.status == status, reply.json
    assert reply.json["error"]["param"] == "conversation"


# -- usage


@pytest.mark.parametrize("takes", [{}, {"stream_usage": True}], ids=["not known", "taken"])
def test_a_stream_is_asked_for_its_usage(upstream: StrictUpstream, tmp_path: Path, takes: Json) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    upstream.queue(say("Hello.", usage=usage))
    ours = UpstreamSettings("up", base_url=upstream.base_url, takes=takes)
    with remember(upstream, tmp_path, upstreams=(ours,)) as world:
        response = respond(world, user="alice", input="Hi", stream=True)
        assert upstream.last.json["stream_options"] == {"include_usage": True}
        assert (response.usage.input_tokens, response.usage.output_tokens) == (12, 3)
        # An application that speaks chat completions itself gets what it has asked for.
        body = {
            "model": "m",
            "user": "alice",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
        }
        assert b"usage" not in world.gateway.post(body).body


@both_ways
@pytest.mark.parametrize("usage", [None, ZEROS], ids=["none", "zeros"])
def test_where_the_upstream_reports_no_usage_it_is_counted_here(
    upstream: StrictUpstream, tmp_path: Path, stream: bool, usage: dict[str, int] | None
) -> None:
    reply = uncounted("The quick brown fox jumps over the lazy dog.", stream=stream, usage=usage)
    upstream.queue(reply, reply)
    ours = UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": False})
    with remember(upstream, tmp_path, upstreams=(ours,)) as world:
        counted = [
            respond(world, user="alice", input=f"Hi. {more}", stream=stream).usage
            for more in ("", "And a longer question than the one before it was. " * 10)
        ]
    assert "stream_options" not in upstream.last.json
    short, long = counted
    assert 8 <= short.output_tokens == long.output_tokens <= 16
    assert long.input_tokens > short.input_tokens + 90
    assert all(each.total_tokens == each.input_tokens + each.output_tokens for each in counted)


@pytest.mark.parametrize("memory", ["on", "off"])
def test_a_window_that_is_full_is_an_error_where_nothing_may_be_left_out(
    upstream: StrictUpstream, tmp_path: Path, memory: str
) -> None:
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=1000)
    items: Any = [{"role": "user", "content": f"Number {n}. " * 40} for n in range(20)]
    fields: Json = {"input": items, "user": "alice", "extra_headers": {"x-mnemogate-memory": memory}}
    with remember(upstream, tmp_path, upstreams=(small,)) as world:
        with pytest.raises(openai.BadRequestError) as caught:
            respond(world, truncation="disabled", **fields)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
        assert not upstream.chats
        for more in ({}, {"truncation": "auto"}):
            respond(world, **more, **fields)
            assert upstream.last.messages[-1]["content"] == items[-1]["content"]
            assert len(upstream.last.messages) < len(items)


def test_a_list_that_fits_its_window_is_answered_where_memory_has_no_room(
    upstream: StrictUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=1000)
    block = BlockSettings("human", "What is known of the user.", value="Likes tulips. " * 140)
    items: Any = [{"role": "user", "content": f"Number {n}. " * 40} for n in range(3)]
    fields: Json = {"model": "agent/helper", "input": items, "user": "alice", "truncation": "disabled"}
    profile = agent(blocks=(block,), system="", memory_tools=False)
    with remember(upstream, tmp_path, profile, upstreams=(small,)) as world:
        respond(world, **fields)
        assert upstream.last.messages == items
        with pytest.raises(openai.BadRequestError) as caught:
            respond(world, **fields, extra_headers={"x-mnemogate-memory": "strict"})
        assert caught.value.code == "context_length_exceeded"
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize("way", ["conversation", "previous", "strict"])
def test_a_stored_conversation_that_fills_the_window_is_an_error_too(
    upstream: StrictUpstream, tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=1000)
    asked: Json = {"user": "alice", "truncation": "disabled", "input": "Number one. " * 150}
    with remember(upstream, tmp_path, upstreams=(small,)) as world:
        if way == "conversation":
            asked["conversation"] = world.sdk.conversations.create().id
        elif way == "strict":
            asked["extra_headers"] = {"x-mnemogate-memory": "strict", "x-mnemogate-history": "append"}
            asked["extra_headers"]["x-mnemogate-conversation"] = "c1"
        first = respond(world, **asked)
        if way == "previous":
            asked["previous_response_id"] = first.id
        with pytest.raises(openai.BadRequestError) as caught:
            respond(world, **asked)
        assert caught.value.code == "context_length_exceeded"
        assert len(upstream.chats) == 1
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


def test_a_turn_with_hidden_rounds_that_do_not_fit_is_remembered_as_far_as_it_was_shown(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    small = replace(chat_upstreams(upstream)[0], context_window=3000)
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstream.queue(call_tools(insert, text="Let me see. " * 1000))
    items: Any = [
        {"role": "user", "content": "Hello. " * 300},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "I like tea."},
    ]
    fields: Json = {"model": "agent/helper", "input": items, "user": "alice", "truncation": "disabled"}
    with remember(upstream, tmp_path, agent(), upstreams=(small,)) as world:
        with pytest.raises(openai.APIError, match="exceeds the context window"):
            respond(world, stream=True, **fields)
        [(input, reply)] = world.query("SELECT input, shown_reply FROM exchanges")
        assert b"I like tea." in input
        assert b"Let me see." in reply


# -- answers that are none


@each_row(
    ("status", "body", "kind"),
    [
        (200, b'{"id": "1", "choices": [{"mess', "application/json"),  # half of one
        (200, b'{"hello": "world"}', "application/json"),
        (200, b"<html>It works!</html>", "text/html"),
    ],
)
@both_ways
def test_a_reply_that_is_no_chat_completion_is_a_clear_error(
    world: World, upstream: StrictUpstream, status: int, body: bytes, kind: str, stream: bool
) -> None:
    upstream.queue(raw(body, content_type=kind, status=status))
    asked = json.dumps({"model": "m", "input": "Hi", "user": "alice", "stream": stream}).encode()
    reply = world.gateway.ask("POST", "/v1/responses", asked)
    assert (reply.status, reply.headers["content-type"]) == (502, "application/json")
    assert reply.error["code"] == "upstream_broke"
    assert b"html" not in reply.body


@pytest.mark.parametrize("path", ["responses", "messages"])
@both_ways
def test_a_translated_reply_has_the_content_type_of_its_own_form(
    world: World, upstream: StrictUpstream, path: str, stream: bool
) -> None:
    """SDKs read a whole reply of another type as a text."""
    choice = {"index": 0, "finish_reason": "stop"}
    part = {"message" if not stream else "delta": {"role": "assistant", "content": "Tea."}}
    body = json.dumps({"id": "c", "choices": [{**choice, **part}]}).encode()
    pieces = [b"data: %b\n\n" % body, b"data: [DONE]\n\n"] if stream else [body]
    upstream.queue(raw(*pieces, content_type="text/plain"))
    question: Json = {"input": "Hi"}
    if path == "messages":
        question = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
    asked = json.dumps({"model": "m", "stream": stream, **question}).encode()
    reply = world.gateway.ask("POST", f"/v1/{path}", asked)
    expected = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert (reply.status, reply.headers["content-type"]) == (200, expected)
    assert b"Tea." in reply.body


@each_row(
    ("status", "body", "kind"),
    [
        (503, b"<html><h1>Try again</h1></html>", "text/html"),
        (429, b"", "text/plain"),
        (400, b"no", "text/plain"),
        (404, b"[]", "application/json"),
        (500, b'{"choices": [{"message": {"role": "assistant", "content": "Hm."}}]}', "application/json"),
    ],
)
@both_ways
def test_an_error_that_cannot_be_read_keeps_its_status(
    world: World, upstream: StrictUpstream, status: int, body: bytes, kind: str, stream: bool
) -> None:
    """As of a server before the upstream. Clients try again by it, and wait as long as it asks for."""
    upstream.queue(raw(body, content_type=kind, status=status, headers={"retry-after": "7"}))
    asked = json.dumps({"model": "m", "input": "Hi", "user": "alice", "stream": stream}).encode()
    reply = world.gateway.ask("POST", "/v1/responses", asked)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.headers["retry-after"] == "7"
    assert str(status) in reply.error["message"]
    assert b"html" not in reply.body


def test_an_error_of_the_upstream_keeps_its_status_and_its_words(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(fail(429, retry_after="7"))
    reply = world.gateway.ask("POST", "/v1/responses", b'{"model": "m", "input": "Hi", "user": "alice"}')
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert reply.error["message"]


def test_an_error_that_is_nested_too_deep_keeps_its_status_and_its_words(
    world: World, upstream: StrictUpstream
) -> None:
    details = b"[" * 400 + b"]" * 400
    body = b'{"error": {"message": "Odd max_tokens.", "details": %b}}' % details
    upstream.queue(raw(body, content_type="application/json", status=400))
    reply = world.gateway.ask("POST", "/v1/responses", b'{"model": "m", "input": "Hi", "user": "alice"}')
    assert reply.status == 400
    assert reply.error["message"].startswith("Odd ")


# -- who answers


def test_an_upstream_that_stores_responses_is_asked_there(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path) as world:
        assert respond(world, user="alice", input="Hi").id
        assert upstream.last.path == "/v1/responses"


def test_a_header_may_name_the_upstream_that_answers_anyway(upstream: StrictUpstream, tmp_path: Path) -> None:
    [one] = chat_upstreams(upstream)
    both = (replace(one, models=("m",)), replace(one, name="other", models=("n",)))
    with serve_memory(upstream, tmp_path, agent(), upstreams=both) as world:
        for model, name in (("m", "openai"), ("n", "other"), ("agent/helper", "openai")):
            headers = {"x-mnemogate-upstream": name}
            assert respond(world, model=model, user="alice", input="Hi", extra_headers=headers).output_text
            assert upstream.last.path == "/v1/chat/completions"
        with pytest.raises(openai.NotFoundError, match="has no /v1/responses"):
            respond(world, user="alice", input="Hi", extra_headers={"x-mnemogate-upstream": "other"})


def test_an_agent_answers_wherever_its_model_is(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        response = respond(world, model="agent/helper", user="alice", input="Hi")
        assert response.output_text == "Ok."
        assert upstream.last.path == "/v1/chat/completions"


def test_claude_answers(tmp_path: Path) -> None:
    with StrictAnthropic() as upstream:
        claude = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, tmp_path, upstreams=claude) as world:
            for stream in (False, True):
                response = respond(
                    world, model="claude-opus-4-6", user="alice", input="My cat is Miso.", stream=stream
                )
                assert response.output_text == "Ok."
                assert response.usage.input_tokens > 0


@both_ways
def test_a_reply_whose_thoughts_divide_its_words_is_one_reply(tmp_path: Path, stream: bool) -> None:
    def thought(text: str) -> Json:
        return {"type": "thinking", "thinking": text, "signature": sign(text)}

    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    with StrictAnthropic() as upstream:
        claude = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        profile = agent(model="claude-sonnet-4-6")
        with remember(upstream, tmp_path, profile, upstreams=claude) as world:
            upstream.queue(
                message(thought("He likes tea."), text="I note that.", calls=[insert]),
                message(thought("And the weather?"), text="Let me see.", calls=[Call("weather", {})]),
                say("Sunny."),
            )
            thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
            options = {"model": "agent/helper", "user": "alice", "tools": [WEATHER], "stream": stream}
            talk = Talk(world, {**options, "max_output_tokens": 4000, "extra_body": thinking})
            response = talk.say("I like tea. The weather?")
            assert response.output_text == "I note that. Let me see."
            [call] = calls_in(response)
            talk.answer(call, "sun")
            assert talk.go_on().output_text == "Sunny."
            # What nobody saw is at its place again, each thought before the words that followed it.
            replies = [m["content"] for m in upstream.last.messages if m["role"] == "assistant"]
            assert [[block["type"] for block in blocks] for blocks in replies] == [
                ["thinking", "text", "tool_use"]
            ] * 2
            assert [blocks[0]["thinking"] for blocks in replies] == ["He likes tea.", "And the weather?"]


def test_without_memory_it_is_answered_too(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream, upstreams=chat_upstreams(upstream))) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0)
        response = client.responses.create(model="m", input="Hi")
        assert response.output_text == "Ok."
        assert (
            read_stream(list(client.responses.create(model="m", input="Hi", stream=True))).output_text
            == "Ok."
        )
        assert client.responses.retrieve(response.id).output_text == "Ok."
