"""Responses that the gateway itself stores: retrieved, listed and deleted by their ids, over chat and over Claude."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.core.conversation.turn_hex import TIME_CHARS, parse_turn_begin
from gateway.core.conversation.wire_message import read_text
from gateway.core.turn_name import TurnName
from gateway.run.background.retention import Retention
from gateway.settings import UpstreamSettings
from storage.sql.statements import make_statement
from tests.doubles.anthropic_upstream import StrictAnthropic, think
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, raw, say
from tests.gateway.responses.response_client import (
    WEATHER,
    both_ways,
    respond,
    serve_memory,
    shown,
    streamed,
    texts_of,
)
from tests.gateway.sdk import World, agent, remember
from tests.patience import PATIENCE_S, becomes

Json = dict[str, Any]
HM = {"reasoning_content": "Hm, perhaps."}


WORDS_BETWEEN_THOUGHTS: list[Json] = [
    {"role": "assistant", "reasoning_content": "Hm."},
    {"content": "One."},
    {"reasoning_content": "Well."},
]
WEATHER_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}

any_last_delta = pytest.mark.parametrize(
    "last", [{"content": " Two."}, {"tool_calls": [WEATHER_CALL]}, {"reasoning_content": "So."}]
)


def items_of(world: World, id: str, **options: Any) -> list[Json]:
    page = world.sdk.responses.input_items.list(id, **{"order": "asc", **options})
    return [item.model_dump(exclude_none=True) for item in page]


@both_ways
@pytest.mark.parametrize("user", [None, "alice"])
def test_a_response_is_read_as_it_was_answered(
    world: World, upstream: StrictUpstream, stream: bool, user: str | None
) -> None:
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), text="Let me see."))
    named: Json = {} if user is None else {"user": user}
    response = respond(
        world,
        input="The weather?",
        instructions="Be brief.",
        tools=[WEATHER],
        metadata={"a": "b"},
        temperature=0.5,
        max_output_tokens=300,
        stream=stream,
        **named,
    )
    assert response.store is True
    assert shown(world.sdk.responses.retrieve(response.id)) == shown(response)


@both_ways
def test_thoughts_are_sealed_where_they_are_asked_for(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    sealed: Any = ["reasoning.encrypted_content"]
    upstream.queue(say("Yes.", delta=HM), say("No.", delta=HM))
    plain = respond(world, input="Is it?", stream=stream)
    thought = plain.output[0]
    assert (thought.type, thought.encrypted_content) == ("reasoning", None)
    assert shown(world.sdk.responses.retrieve(plain.id)) == shown(plain)
    response = respond(world, input="Is it?", include=sealed, stream=stream)
    assert response.output[0].encrypted_content.startswith("mnemogate:")
    assert shown(world.sdk.responses.retrieve(response.id, include=sealed)) == shown(response)
    assert world.sdk.responses.retrieve(response.id).output[0].encrypted_content is None


def test_thoughts_between_words_are_read_as_they_were_answered(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(streamed(*WORDS_BETWEEN_THOUGHTS, {"content": " Two."}, {}))
    made = respond(world, input="Count.", user="alice", stream=True)
    assert [item.type for item in made.output] == ["reasoning", "message", "reasoning", "message"]
    assert shown(world.sdk.responses.retrieve(made.id)) == shown(made)


@any_last_delta
def test_a_cut_response_is_read_as_incomplete(world: World, upstream: StrictUpstream, last: Json) -> None:
    upstream.queue(streamed(*WORDS_BETWEEN_THOUGHTS, last, finish="length"))
    made = respond(world, input="Count.", user="alice", tools=[WEATHER], stream=True)
    assert [item.status for item in made.output[-2:]] == ["completed", "incomplete"]
    assert shown(world.sdk.responses.retrieve(made.id)) == shown(made)


def test_a_reply_with_two_reasons_for_its_end_is_read_as_it_was_answered(
    world: World, upstream: StrictUpstream
) -> None:
    reply = streamed({"content": "One."}, {}, finish="length")
    assert reply.body is not None
    *events, end, done = reply.body
    upstream.queue(raw(*events, end, end.replace(b"length", b"stop"), done))
    made = respond(world, input="Count.", user="alice", stream=True)
    assert made.status == "incomplete"
    assert shown(world.sdk.responses.retrieve(made.id)) == shown(made)


@any_last_delta
@pytest.mark.parametrize("background", [False, True])
def test_what_comes_with_the_finish_reason_is_read_too(
    world: World, upstream: StrictUpstream, last: Json, background: bool
) -> None:
    """Several servers send calls and the last text with it."""
    upstream.queue(streamed(*WORDS_BETWEEN_THOUGHTS, last))
    fields: Any = {"input": "Count.", "user": "alice", "tools": [WEATHER], "background": background}
    made = respond(world, **fields, stream=True)
    assert shown(world.sdk.responses.retrieve(made.id))["output"] == shown(made)["output"]


@pytest.mark.both
@pytest.mark.parametrize(
    "deltas",
    [[*WORDS_BETWEEN_THOUGHTS, {"content": " Two."}, {}], [{"role": "assistant", "content": "One."}]],
)
def test_items_of_a_response_in_the_background_are_found_by_their_ids(
    world: World, upstream: StrictUpstream, deltas: list[Json]
) -> None:
    upstream.rules = Rules(unknown_parameters=False)
    conversation = world.sdk.conversations.create()
    upstream.queue(streamed(*deltas))
    made = respond(world, input="Count.", background=True, stream=True, conversation=conversation.id)
    items = world.sdk.conversations.items
    listed = [item.id for item in items.list(conversation.id, order="asc")]
    assert listed[1:] == [item.id for item in made.output]
    assert [item.id for item in items.list(conversation.id, order="asc", limit=1)] == listed
    assert [items.retrieve(id or "", conversation_id=conversation.id).id for id in listed] == listed
    next_one = respond(world, input="And?", previous_response_id=made.id)
    assert [item["id"] for item in items_of(world, next_one.id)][1:-1] == listed[1:]
    if len(made.output) == 1:
        items.delete(listed[1] or "", conversation_id=conversation.id)
        assert listed[1] not in [item.id for item in items.list(conversation.id)]


@pytest.mark.parametrize("repeats_question", [True, False])
def test_thoughts_that_a_client_repeats_with_the_id_are_dropped_with_their_reply(
    world: World, upstream: StrictUpstream, repeats_question: bool
) -> None:
    upstream.rules = Rules(unknown_parameters=False)
    upstream.queue(say("Yes.", delta=HM), say("Sure."), say("Good."))
    first = respond(world, input="Is it?")
    second = respond(world, input="Really?", previous_response_id=first.id)
    question: Any = [{"role": "user", "content": "Is it?"}] if repeats_question else []
    spoken: Any = [item.model_dump(exclude_none=True) for item in first.output]
    spoken += [{"role": "user", "content": "Really?"}]
    spoken += [item.model_dump(exclude_none=True) for item in second.output]
    again = [*question, *spoken, {"role": "user", "content": "Sure?"}]
    respond(world, input=again, previous_response_id=second.id)
    assert [(m["role"], m["content"], m.get("reasoning_content")) for m in upstream.last.messages] == [
        ("user", "Is it?", None),
        ("assistant", "Yes.", "Hm, perhaps."),
        ("user", "Really?", None),
        ("assistant", "Sure.", None),
        ("user", "Sure?", None),
    ]


def test_openais_sample_works_without_a_user(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("Why did the cat cross the road?"), say("To be fed."))
    first = respond(world, input="Tell me a joke.")
    second = respond(world, input="Explain it.", previous_response_id=first.id)
    assert [m["content"] for m in upstream.last.messages] == [
        "Tell me a joke.",
        "Why did the cat cross the road?",
        "Explain it.",
    ]
    assert second.previous_response_id == first.id
    assert texts_of(items_of(world, second.id)) == [
        "Tell me a joke.",
        "Why did the cat cross the road?",
        "Explain it.",
    ]
    # Nobody recalls it, not even who names nobody.
    respond(world, input="Which joke did I hear about the cat and the road?")
    assert len(upstream.last.messages) == 1
    respond(world, input="Which joke did I hear about the cat and the road?", user="alice")
    assert upstream.last.messages == [
        {"role": "user", "content": "Which joke did I hear about the cat and the road?"}
    ]


@pytest.mark.both
def test_a_response_is_its_users(world: World) -> None:
    response = respond(world, input="My cat is called Miso.", user="alice")
    assert (
        world.sdk.responses.retrieve(response.id, extra_headers={"x-mnemogate-user": "alice"}).id
        == response.id
    )
    assert world.sdk.responses.retrieve(response.id).id == response.id  # whoever has the id and names nobody
    theirs = respond(world, input="My dog is called Rex.")
    for id, user in ((response.id, "bob"), (theirs.id, "alice")):
        headers = {"x-mnemogate-user": user}
        for ask in (
            world.sdk.responses.retrieve,
            world.sdk.responses.delete,
            world.sdk.responses.cancel,
            world.sdk.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError, match="not found"):
                ask(id, extra_headers=headers)
        with pytest.raises(openai.BadRequestError) as caught:
            respond(world, input="And?", previous_response_id=id, user=user)
        assert caught.value.code == "previous_response_not_found"
    assert respond(world, input="And?", previous_response_id=response.id).store is True


def test_a_user_in_a_misspelt_header_is_not_nobody(world: World) -> None:
    response = respond(world, input="My cat is called Miso.", user="alice")
    conversation = world.sdk.conversations.create()
    bobs = {"x-mnemogate-usr": "bob"}
    for ask, id in (
        (world.sdk.responses.retrieve, response.id),
        (world.sdk.responses.delete, response.id),
        (world.sdk.responses.cancel, response.id),
        (world.sdk.responses.input_items.list, response.id),
        (world.sdk.conversations.items.list, conversation.id),
        (world.sdk.conversations.delete, conversation.id),
    ):
        with pytest.raises(openai.BadRequestError, match="did you mean x-mnemogate-user"):
            ask(id, extra_headers=bobs)
    assert world.sdk.responses.retrieve(response.id).id == response.id


@pytest.mark.both
def test_another_project_finds_nothing(world: World) -> None:
    response = respond(world, input="My cat is called Miso.", user="alice")
    create = world.store.keys.create
    one, other = (world.gateway.call(create(project, "test"))[1] for project in ("default", "other"))
    assert world.client(one).responses.retrieve(response.id).id == response.id
    with pytest.raises(openai.NotFoundError):
        world.client(other).responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        world.client(other).responses.delete(response.id)


@pytest.mark.both
def test_input_items_come_in_pages(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), text="Let me see."), say("Sunny."))
    first = respond(world, input="The weather?", user="alice", tools=[WEATHER])
    call = first.output[1]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    last = respond(world, input=[result], previous_response_id=first.id, user="alice", tools=[WEATHER])
    whole = items_of(world, last.id)
    assert [item["type"] for item in whole] == ["message", "message", "function_call", "function_call_output"]
    assert whole[1:3] == [item.model_dump(exclude_none=True) for item in first.output]
    assert whole[0]["id"].startswith("msg_")
    newest = world.sdk.responses.input_items.list(last.id, limit=3)
    assert [item.id for item in newest.data] == [item["id"] for item in whole[:0:-1]]
    assert newest.has_more
    assert (newest.data[0].id, newest.data[-1].id) == (newest.first_id, newest.last_id)  # type: ignore[attr-defined]
    rest = world.sdk.responses.input_items.list(last.id, limit=3, after=newest.data[-1].id or "")
    assert [item.id for item in rest.data] == [whole[0]["id"]]
    assert not rest.has_more
    assert items_of(world, last.id, limit=1) == whole  # the SDK turns the pages
    for wrong in ({"limit": 0}, {"limit": 101}, {"limit": "00010000"}, {"order": "up"}, {"after": "msg_1"}):
        with pytest.raises(openai.BadRequestError):
            world.sdk.responses.input_items.list(last.id, **wrong)  # type: ignore[arg-type]


SHELL_OUTPUT: Json = {"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
# Calls that a client sends in its list, and their results.
CALLED: list[Json] = [
    {"type": "custom_tool_call", "call_id": "c1", "name": "py", "input": "1+1"},
    {"type": "custom_tool_call_output", "call_id": "c1", "output": "2"},
    {"type": "function_call", "call_id": "c2", "name": "get", "arguments": "{}", "namespace": "web"},
    {"type": "function_call_output", "call_id": "c2", "output": "[1]"},
    {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["ls"], "env": {}}},
    {"type": "local_shell_call_output", "call_id": "c3", "output": "a b"},
    {"type": "shell_call", "call_id": "c4", "action": {"commands": ["ls"]}},
    {"type": "shell_call_output", "call_id": "c4", "output": [SHELL_OUTPUT]},
    {"type": "apply_patch_call", "call_id": "c5", "operation": {"type": "delete_file", "path": "x"}},
    {"type": "apply_patch_call_output", "call_id": "c5", "status": "failed", "output": "There is none."},
    {"type": "tool_search_call", "call_id": "c6", "execution": "client", "arguments": {"query": "weather"}},
    {"type": "tool_search_output", "call_id": "c6", "execution": "client", "tools": [WEATHER]},
]
ITS_TOOLS: list[Json] = [
    *({"type": kind} for kind in ("local_shell", "shell", "apply_patch")),
    {"type": "custom", "name": "py"},
    {"type": "namespace", "name": "web", "description": "", "tools": [{**WEATHER, "name": "get"}]},
    {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
]


def test_calls_in_a_list_are_listed_in_the_clients_form(world: World, upstream: StrictUpstream) -> None:
    asked: Json = {"tools": ITS_TOOLS, "user": "alice"}
    first = respond(world, input=[{"role": "user", "content": "Work."}, *CALLED], **asked)
    second = respond(world, input="Go on.", previous_response_id=first.id, **asked)
    later = respond(world, input="Go on.", background=True, previous_response_id=second.id, **asked)
    for id in (first.id, second.id, later.id):
        found = items_of(world, id)[1 : 1 + len(CALLED)]
        assert [
            {key: item.get(key) for key in sent} for item, sent in zip(found, CALLED, strict=True)
        ] == CALLED
    assert items_of(world, second.id, limit=1) == items_of(world, second.id)


@pytest.mark.parametrize("background", [False, True])
def test_tools_that_a_search_has_found_are_offered_where_a_client_goes_on_by_an_id(
    world: World, upstream: StrictUpstream, background: bool
) -> None:
    search: Json = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
    asked: Json = {"user": "alice", "tools": [search]}
    upstream.queue(call_tools(Call("tool_search", {"query": "crm"})))
    first = respond(world, input="Who is Ann?", **asked)
    crm: Json = {
        "type": "namespace",
        "name": "crm",
        "description": "",
        "tools": [{**WEATHER, "name": "find"}],
    }
    found: Json = {"type": "tool_search_output", "call_id": first.output[0].call_id, "tools": [crm]}
    upstream.queue(call_tools(Call("crm__find", {"name": "Ann"})))
    second = respond(world, input=[found], previous_response_id=first.id, **asked)
    result: Json = {"type": "function_call_output", "call_id": second.output[0].call_id, "output": "A"}
    upstream.queue(call_tools(Call("crm__find", {"name": "A"})))
    more: Json = {"background": True, "stream": True} if background else {}
    third = respond(world, input=[result], previous_response_id=second.id, **asked, **more)
    names = {tool["function"]["name"] for tool in upstream.last.json["tools"]}
    assert names >= {"tool_search", "crm__find"}
    call = third.output[0]
    assert (call.type, call.name, call.namespace) == ("function_call", "find", "crm")


def test_an_input_item_shows_no_note_and_no_instructions(world: World, upstream: StrictUpstream) -> None:
    respond(world, input="My cat is called Miso, she is grey.", user="alice")
    response = respond(world, input="What is my cat called?", user="alice", instructions="Be brief.")
    assert "grey" in upstream.last.messages[-1]["content"]
    assert texts_of(items_of(world, response.id)) == ["What is my cat called?"]


@both_ways
def test_a_system_message_of_an_input_stays_when_a_client_continues(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    """OpenAI's samples send a developer message once, and then go on by the id."""
    brief: Json = {"role": "developer", "content": "Be brief."}
    long: Json = {"role": "system", "content": "Be long."}
    options: Json = {"stream": stream, "instructions": "Say ho."}
    response = respond(world, input=[brief, {"role": "user", "content": "One."}], **options)
    response = respond(world, input="Two.", previous_response_id=response.id, stream=stream)
    items: Any = [{"role": "user", "content": "Three."}, long, {"role": "user", "content": "Four."}]
    response = respond(world, input=items, previous_response_id=response.id, stream=stream)
    response = respond(world, input="Five.", previous_response_id=response.id, stream=stream)
    told = ["Be brief.", "One.", "Ok.", "Two.", "Ok.", "Three.", "Be long.", "Four.", "Ok.", "Five."]
    assert [m["content"] for m in upstream.last.messages] == told
    assert [m["role"] for m in upstream.last.messages][::6] == ["developer", "system"]
    assert texts_of(items_of(world, response.id)) == told
    assert texts_of(items_of(world, response.id, limit=1)) == told
    assert "Be" not in str(world.query("SELECT input FROM exchanges"))


def test_a_list_that_is_sent_again_brings_what_the_system_says_once(
    world: World, upstream: StrictUpstream
) -> None:
    talk: list[Any] = [{"role": "developer", "content": "It is noon."}, {"role": "user", "content": "One."}]
    respond(world, input=talk, user="alice")
    talk[0] = {"role": "developer", "content": "It is one."}
    talk += [{"role": "assistant", "content": "Ok."}, {"role": "user", "content": "Two."}]
    response = respond(world, input=talk, user="alice")
    respond(world, input="Three.", previous_response_id=response.id, user="alice")
    assert [m["content"] for m in upstream.last.messages] == [
        "It is one.", "One.", "Ok.", "Two.", "Ok.", "Three.",
    ]  # fmt: skip


@pytest.mark.both
def test_a_deleted_response_is_forgotten(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, input="My cat is called Miso, she is grey.", user="alice")
    second = respond(world, input="And she is old.", previous_response_id=first.id, user="alice")
    gone = world.sdk.responses.with_raw_response.delete(first.id)
    assert gone.http_response.json() == {"id": first.id, "object": "response", "deleted": True}
    for ask in (world.sdk.responses.retrieve, world.sdk.responses.delete):
        with pytest.raises(openai.NotFoundError):
            ask(first.id)
    assert world.sdk.responses.retrieve(second.id).id == second.id
    assert texts_of(items_of(world, second.id)) == ["And she is old."]
    with pytest.raises(openai.BadRequestError) as caught:
        respond(world, input="And?", previous_response_id=second.id, user="alice")
    assert caught.value.code == "previous_response_not_found"
    respond(world, input="What is my grey cat called?", user="alice")
    assert "Miso" not in str(upstream.last.messages)


@pytest.mark.both
def test_a_response_that_was_deleted_is_asked_for_anew(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, input="Hello", user="alice")
    for place in ({}, {"previous_response_id": first.id}):
        for _ in range(2):
            upstream.queue(say("A joke."))
            response = respond(world, input="Tell me a joke.", user="alice", **place)
            assert response.store
            assert world.sdk.responses.retrieve(response.id).output_text == "A joke."
            respond(world, input="Another?", previous_response_id=response.id, user="alice")
            assert upstream.last.messages[-2]["content"] == "A joke."
            world.sdk.responses.delete(response.id)


@pytest.mark.both
def test_a_response_without_store_is_asked_for_anew(world: World, upstream: StrictUpstream) -> None:
    respond(world, input="Tell me a joke.", user="alice", store=False)
    response = respond(world, input="Tell me a joke.", user="alice")
    assert response.store
    assert world.sdk.responses.retrieve(response.id).output_text == "Ok."


@pytest.mark.both
def test_a_response_with_the_same_answer_as_an_earlier_one_stays_that_answer(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(say("Red."), say("Red."), say("Blue."))
    one, again, other = (respond(world, input="Name a colour.", user="alice") for _ in range(3))
    found = [world.sdk.responses.retrieve(each.id).output_text for each in (one, again, other)]
    assert found == ["Red.", "Red.", "Blue."]
    respond(world, input="And?", previous_response_id=again.id, user="alice")
    assert [m["content"] for m in upstream.last.messages if m["role"] == "assistant"] == ["Red."]
    world.sdk.responses.delete(again.id)
    assert world.sdk.responses.retrieve(other.id).output_text == "Blue."


@pytest.mark.both
def test_a_response_with_the_same_answer_as_one_at_the_same_time_stays_that_answer(
    world: World, upstream: StrictUpstream
) -> None:
    """The first request to end has its answer stored, with the time at which that request began."""
    first = respond(world, input="Hello", user="alice")
    ask: Json = {"input": "Name a colour.", "previous_response_id": first.id, "user": "alice"}
    gate = Gate()
    upstream.queue(say("Red.", hold_before_headers=gate), say("Red."), say("Blue."))
    with ThreadPoolExecutor() as threads:
        arrived = upstream.request_gate(len(upstream.requests) + 1)
        asking = threads.submit(respond, world, **ask)
        arrived.wait_sync()
        respond(world, **ask)
        gate.open()
        slow = asking.result()
    other = respond(world, **ask)
    assert world.sdk.responses.retrieve(slow.id).output_text == "Red."
    respond(world, **{**ask, "input": "And?", "previous_response_id": slow.id})
    assert [m["content"] for m in upstream.last.messages if m["role"] == "assistant"] == ["Ok.", "Red."]
    for _ in range(2):
        with suppress(openai.NotFoundError):
            world.sdk.responses.delete(slow.id)
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(slow.id)
    assert world.sdk.responses.retrieve(other.id).output_text == "Blue."


@pytest.mark.both
def test_each_of_repeated_answers_is_found_by_its_id(world: World, upstream: StrictUpstream) -> None:
    texts = ["Red.", "Blue.", "Red.", "Blue."]
    upstream.queue(*map(say, texts))
    made = [respond(world, input="Name a colour.", user="alice") for _ in texts]
    assert [world.sdk.responses.retrieve(each.id).output_text for each in made] == texts


def test_the_id_of_an_answer_that_was_lost_finds_no_other_answer(
    world: World, upstream: StrictUpstream
) -> None:
    """As after a restore: the question was asked before the backup, and again after it."""
    upstream.queue(say("Red."))
    response = respond(world, input="Name a colour.", user="alice")
    name = TurnName.from_tag(response.id.removeprefix("resp_"))
    later = struct.pack(">d", parse_turn_begin(name.turn) + 60).hex()
    lost_id = f"resp_{name.conversation_uid}{later}{name.turn[TIME_CHARS:]}"
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(lost_id)
    with pytest.raises(openai.BadRequestError) as caught:
        respond(world, input="And?", previous_response_id=lost_id, user="alice")
    assert caught.value.code == "previous_response_not_found"


@pytest.mark.both
def test_the_id_of_a_deleted_repeated_answer_finds_no_other_answer(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(say("Red."), say("Red."), say("Blue."))
    _, again, other = (respond(world, input="Name a colour.", user="alice") for _ in range(3))
    world.sdk.responses.delete(again.id)
    for use in (world.sdk.responses.retrieve, world.sdk.responses.delete):
        with pytest.raises(openai.NotFoundError):
            use(again.id)
    with pytest.raises(openai.BadRequestError) as caught:
        respond(world, input="And?", previous_response_id=again.id, user="alice")
    assert caught.value.code == "previous_response_not_found"
    assert world.sdk.responses.retrieve(other.id).output_text == "Blue."


@pytest.mark.both
def test_a_deleted_response_leaves_others_that_continue_the_same_one(
    world: World, upstream: StrictUpstream
) -> None:
    first = respond(world, input="My cat is called Miso.", user="alice")
    one = respond(world, input="Write a poem about her.", previous_response_id=first.id, user="alice")
    other = respond(world, input="Write a letter to her.", previous_response_id=first.id, user="alice")
    world.sdk.responses.delete(other.id)
    assert world.sdk.responses.retrieve(one.id).id == one.id
    respond(world, input="Make it shorter.", previous_response_id=one.id, user="alice")
    assert [m["content"] for m in upstream.last.messages if m["role"] == "user"][-2:] == [
        "Write a poem about her.",
        "Make it shorter.",
    ]


def test_a_response_without_store_is_remembered_and_not_found(world: World, upstream: StrictUpstream) -> None:
    response = respond(world, input="My cat is called Miso.", user="alice", store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError):
        respond(world, input="And?", previous_response_id=response.id, user="alice")
    respond(world, input="What is my cat called?", user="alice", store=False)
    assert "Miso" in upstream.last.messages[-1]["content"]


def test_an_answer_for_a_program_is_remembered_where_the_request_asks_for_it(
    world: World, upstream: StrictUpstream
) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "sort", "schema": {"type": "object"}}}
    fields: Json = {"input": "Sort it, as JSON.", "text": form, "user": "alice"}
    create = world.sdk.responses.with_raw_response.create
    for more, memory in ({}, "read"), ({"store": True}, "on"):
        assert create(model="m", **fields, **more).headers["x-mnemogate-memory"] == memory
    response = respond(world, **fields, store=True)
    assert response.store is True
    assert shown(world.sdk.responses.retrieve(response.id)) == shown(response)
    upstream.queue(say("So."))
    again = respond(world, input="Again.", previous_response_id=response.id, user="alice")
    assert again.output_text == "So."
    off = respond(world, **fields, store=True, extra_headers={"x-mnemogate-memory": "off"})
    assert off.store is False


@pytest.mark.parametrize("mode", ["off", "read"])
def test_off_the_record_nothing_is_stored(world: World, mode: str) -> None:
    for named in ({}, {"user": "alice"}):
        response = respond(world, input="Hi", extra_headers={"x-mnemogate-memory": mode}, **named)
        assert response.store is False
        with pytest.raises(openai.NotFoundError):
            world.sdk.responses.retrieve(response.id)


@both_ways
def test_words_that_were_off_the_record_a_moment_ago_are_not_stored(world: World, stream: bool) -> None:
    """They count as the same request, sent again."""
    respond(world, input="Hi", user="alice", extra_headers={"x-mnemogate-memory": "off"})
    response = respond(world, input="Hi", user="alice", stream=stream)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(response.id)
    world.pass_time(1000)
    later = respond(world, input="Hi", user="alice", stream=stream)
    assert later.store is True
    assert shown(world.sdk.responses.retrieve(later.id)) == shown(later)


def test_a_reply_that_was_cut_shows_what_was_heard(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(say("One two three.", hold_after={3: gate}))
    with world.sdk.responses.create(model="m", input="Count.", user="alice", stream=True) as events:
        id, heard = "", ""
        for event in events:
            if event.type == "response.created":
                id = event.response.id
            if event.type == "response.output_text.delta":
                heard += event.delta
                break

    def read() -> Any:
        with suppress(openai.NotFoundError):
            return world.sdk.responses.retrieve(id)

    # The upstream goes on only when the turn is stored: else it might end before the gateway sees the client leave.
    found = becomes(read)
    gate.open()
    assert (found.status, found.output_text.startswith(heard)) == ("incomplete", True)
    respond(world, input="Go on.", previous_response_id=id, user="alice")
    assert shown(world.sdk.responses.retrieve(id)) == shown(found)


@pytest.mark.parametrize("asked", ["What is there?", "You are a waiter. What is there?"])
def test_a_reply_that_comes_back_in_another_form_is_read_by_its_id(
    world: World, upstream: StrictUpstream, asked: str
) -> None:
    """The question may come back in another form too: without its template."""
    upstream.queue(say("We have soup and a secret menu."), say("Soup it is."))
    response = respond(world, input=asked, user="alice", metadata={"a": "b"})
    items = [
        {"role": "user", "content": "What is there?"},
        {"role": "assistant", "content": "We have soup"},
        {"role": "user", "content": "Stop, I take it."},
    ]
    respond(world, input=items, user="alice")
    found = world.sdk.responses.retrieve(response.id)
    assert (found.output_text, found.metadata, found.usage) == ("We have soup", {"a": "b"}, response.usage)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/responses/conv_" + "0" * 32, 404),
        ("/v1/responses/resp_" + "f" * 56, 404),
        ("/v1/responses/resp_" + "0" * 56 + "/input_items", 404),
        ("/v1/conversations/resp_" + "0" * 56, 404),
        ("/v1/conversations/conv_" + "0" * 32 + "/items/msg_1", 404),
    ],
)
def test_unknown_responses_are_not_found(world: World, path: str, status: int) -> None:
    reply = world.gateway.ask("GET", path)
    assert (reply.status, reply.json["error"]["type"]) == (status, "invalid_request_error")


def test_a_conversation_goes_on_in_another_dialect(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("A nice name."), say("Grey it is."), say("Miso."))
    first = respond(world, input="My cat is called Miso.", user="alice")
    messages: list[Any] = [
        {"role": "user", "content": "My cat is called Miso."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "She is grey."},
    ]
    world.post(messages, user="alice")
    items: Any = [*messages, {"role": "assistant", "content": "Grey it is."}]
    last = respond(world, input=[*items, {"role": "user", "content": "What is she called?"}], user="alice")
    assert world.query("SELECT count(*) FROM conversations") == [1]
    assert texts_of(items_of(world, last.id)) == [
        *("My cat is called Miso.", "A nice name.", "She is grey.", "Grey it is.", "What is she called?")
    ]
    assert world.sdk.responses.retrieve(first.id).output_text == "A nice name."


@pytest.mark.both
def test_the_same_words_again_are_found_by_both_ids(world: World) -> None:
    one, two = (respond(world, input="Hi", user="alice") for _ in range(2))
    assert world.sdk.responses.retrieve(one.id).output_text == "Ok."
    assert world.sdk.responses.retrieve(two.id).id == two.id


@pytest.mark.both
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("second_input", "between"),
    [
        pytest.param("Hello there, you", False, id="grows"),
        pytest.param("Hello there", False, id="again"),
        pytest.param("Hello there", True, id="again-after-another"),
    ],
)
def test_responses_at_one_moment_are_found_by_their_ids(
    world: World, upstream: StrictUpstream, first: int, second_input: str, between: bool
) -> None:
    """The second repeats the first, or extends it, so that without an id both would be one conversation."""
    gates = [Gate(), Gate()]
    replies = ["One.", "Two."]
    inputs = ["Hello there", second_input]
    responses: list[Any] = []
    with ThreadPoolExecutor() as threads:
        for gate, input_text, reply in zip(gates, inputs, replies, strict=True):
            upstream.queue(say(reply, hold_before_headers=gate))
            arrived = upstream.request_gate(len(upstream.requests) + 1)
            responses.append(threads.submit(respond, world, input=input_text, user="alice"))
            arrived.wait_sync()
            if between and len(responses) == 1:
                respond(world, input="The weather?", user="alice")
        for index in (first, 1 - first):
            gates[index].open()
            responses[index].result(PATIENCE_S)
    for input_text, reply, pending in zip(inputs, replies, responses, strict=True):
        id_ = pending.result().id
        assert world.sdk.responses.retrieve(id_).output_text == reply
        respond(world, input="And?", previous_response_id=id_, user="alice")
        question, answer, _ = upstream.last.messages
        # A note of the turn between may stand before the question.
        assert question["content"].endswith(input_text)
        assert answer["content"] == reply


def test_a_foreground_response_is_neither_streamed_again_nor_cancelled(world: World) -> None:
    response = respond(world, input="Hi", user="alice")
    with pytest.raises(openai.BadRequestError, match="background"):
        list(world.sdk.responses.retrieve(response.id, stream=True))
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        world.sdk.responses.cancel(response.id)


@pytest.mark.both
def test_responses_without_a_user_are_retained_for_so_many_days(world: World) -> None:
    mine, unnamed = respond(world, input="Hi", user="alice"), respond(world, input="Hi")
    world.clock.sleep(31 * 86_400)
    newer = respond(world, input="Hi")
    retention = Retention(world.store, {}, world.clock)
    assert world.gateway.call(retention.forget_old()) == 1
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.retrieve(unnamed.id)
    for left in (mine, newer):
        assert world.sdk.responses.retrieve(left.id).id == left.id


def test_over_claude_thoughts_go_back_uncarried(tmp_path: Path) -> None:
    with StrictAnthropic() as claude:
        claude.queue(think("Hm, perhaps.", "Yes."))
        ours = UpstreamSettings("claude", "anthropic", claude.base_url, api_key="k")
        with remember(claude, tmp_path, agent(), upstreams=(ours,)) as world:  # type: ignore[arg-type]
            response = respond(world, input="Is it?")
            assert shown(world.sdk.responses.retrieve(response.id)) == shown(response)
            respond(world, input="Why?", previous_response_id=response.id)
            assert "Hm, perhaps." in str(claude.last.json["messages"])


def test_lists_have_thoughts_that_can_be_sent_back_where_they_are_asked_for(tmp_path: Path) -> None:
    with StrictAnthropic() as claude:
        claude.queue(think("Hm, perhaps.", "Yes."))
        ours = UpstreamSettings("claude", "anthropic", claude.base_url, api_key="k")
        with remember(claude, tmp_path, agent(), upstreams=(ours,)) as world:  # type: ignore[arg-type]
            sdk, named = world.sdk, world.sdk.conversations.create().id
            respond(world, input="Is it?", conversation=named)
            later = respond(world, input="Why?", conversation=named)
            for options in ({}, {"include": ["reasoning.encrypted_content"]}):
                found = [
                    *sdk.conversations.items.list(named, **options),
                    *sdk.responses.input_items.list(later.id, **options),
                ]
                thoughts = [item for item in found if item.type == "reasoning"]
                item = sdk.conversations.items.retrieve(thoughts[0].id, conversation_id=named, **options)
                sealed = [(each.encrypted_content or "")[:10] for each in (*thoughts, item)]
                assert sealed == ["mnemogate:" if options else ""] * 3


def test_a_summary_alone_turns_on_thinking_where_it_is_optional(tmp_path: Path) -> None:
    with StrictAnthropic() as claude:
        ours = UpstreamSettings("claude", "anthropic", claude.base_url, api_key="k")
        with remember(claude, tmp_path, agent(), upstreams=(ours,)) as world:  # type: ignore[arg-type]
            for model, reasoning, thinking in (
                ("claude-sonnet-4-5", {"summary": "auto"}, {"type": "enabled", "budget_tokens": 8_192}),
                (
                    "claude-sonnet-4-5",
                    {"effort": "low", "summary": "auto"},
                    {"type": "enabled", "budget_tokens": 4_096},
                ),
                ("claude-sonnet-4-5", {"effort": "none", "summary": "auto"}, {"type": "disabled"}),
                ("claude-sonnet-4-5", {}, None),
                ("claude-opus-4-8", {"summary": "auto"}, None),  # it thinks by itself
            ):
                respond(world, input="Hi", model=model, reasoning=reasoning)
                body = claude.last.json
                assert (body.get("thinking"), body.get("output_config")) == (thinking, None), reasoning
            with pytest.raises(openai.BadRequestError, match="'auto', 'concise', and 'detailed'"):
                respond(world, input="Hi", reasoning={"summary": "long"})


@pytest.mark.both
@pytest.mark.sqlite
def test_a_get_is_one_indexed_read(world: World) -> None:
    """In a conversation of ten thousand turns."""
    response = respond(world, input="Hi", user="alice")
    columns = world.query(
        "SELECT name FROM pragma_table_info('exchanges') WHERE name NOT IN ('id', 'seq', 'begun')"
    )
    copied = ", ".join(f'"{name}"' for name in columns)

    async def multiply() -> None:
        sql = (
            "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < 10000) "
            f"INSERT INTO exchanges (seq, begun, {copied}) SELECT seq + 2 * k, begun + k, {copied} FROM exchanges, n"
        )
        own = make_statement("a test's", sql)
        await world.store.database.write(lambda connection: connection.run(own, ()))

    world.gateway.call(multiply())
    world.sdk.responses.retrieve(response.id)  # whether there are keys is looked up once
    world.settle()
    world.statements.clear()
    assert world.sdk.responses.retrieve(response.id).output_text == "Ok."
    (statement,) = world.statements
    own = make_statement("a test's", f"EXPLAIN QUERY PLAN {statement}")
    plan = world.gateway.call(
        world.store.database.read(lambda connection: connection.fetch_rows(own, ("default", "x", 0.0)))
    )
    assert any("exchanges_begun" in str(row) for row in plan), plan


@pytest.mark.parametrize("background", [False, True])
def test_without_a_user_another_agent_continues_in_a_conversation_of_its_own(
    upstream: StrictUpstream, tmp_path: Path, background: bool
) -> None:
    with serve_memory(upstream, tmp_path, agent("helper")) as world:
        first = respond(world, input="Hello.")
        second = respond(
            world, model="agent/helper", input="And?", previous_response_id=first.id, background=background
        )
        becomes(lambda: world.sdk.responses.retrieve(second.id).status == "completed")
        assert [read_text(each) for each in upstream.last.messages[1:]] == ["Hello.", "Ok.", "And?"]
        respond(world, model="agent/helper", input="Bye.", previous_response_id=second.id)
        assert [read_text(each) for each in upstream.last.messages[1:]] == [
            "Hello.",
            "Ok.",
            "And?",
            "Ok.",
            "Bye.",
        ]
        assert world.query("SELECT count(*) FROM conversations") == [2]


@pytest.mark.parametrize("user", [None, "alice"])
def test_responses_with_the_same_words_are_shown_apart(
    world: World, upstream: StrictUpstream, user: str | None
) -> None:
    named: Json = {} if user is None else {"user": user}
    first = respond(world, input="Hello.", **named)
    answered = [
        respond(world, input="And?", previous_response_id=first.id, metadata={"try": each}, **named)
        for each in ("one", "two")
    ]
    if user is not None:
        world.chat(user=user).say("Hello.")  # a chat completion with the words of the first response
        answered.append(first)
    for response in answered:
        assert shown(world.sdk.responses.retrieve(response.id)) == shown(response)
    world.sdk.responses.delete(answered[1].id)
    assert world.sdk.responses.retrieve(answered[0].id).metadata == {"try": "one"}


def test_a_turn_is_stored_beside_many_responses_with_its_words(
    world: World, upstream: StrictUpstream
) -> None:
    first = respond(world, input="Hello.", user="alice")
    for _ in range(8):
        respond(world, input="And?", previous_response_id=first.id, user="alice")
    again = respond(world, input="And?", previous_response_id=first.id, user="alice", background=True)
    becomes(lambda: world.sdk.responses.retrieve(again.id).status == "completed")
    assert world.query("SELECT count(*) FROM exchanges") == [10]


@pytest.mark.parametrize("user", [None, "alice"])
@pytest.mark.parametrize("continues", ["response", "conversation", "nothing"])
def test_the_words_of_a_deleted_response_may_be_sent_anew(
    world: World, upstream: StrictUpstream, continues: str, user: str | None
) -> None:
    """Together with other new messages, too."""
    named: Json = {} if user is None else {"user": user}
    if continues == "response":
        named["previous_response_id"] = respond(world, input="Hello.", **named).id
    elif continues == "conversation":
        named["conversation"] = world.sdk.conversations.create(
            items=[{"role": "user", "content": "Hello."}]
        ).id
        respond(world, input="Hello?", **named)
    deleted = respond(world, input="My cat is grey.", **named)
    world.sdk.responses.delete(deleted.id)
    both: Any = [{"role": "user", "content": text} for text in ("My cat is grey.", "Her name is Miso.")]
    response = respond(world, input=both, **named)
    listed = world.sdk.responses.input_items.list(response.id, order="asc")
    assert texts_of([item.to_dict() for item in listed])[-2:] == ["My cat is grey.", "Her name is Miso."]
    if continues != "conversation":
        named["previous_response_id"] = response.id
    respond(world, input="And now?", **named)
    asked = [read_text(each) for each in upstream.last.messages]
    assert asked[-4:] == ["My cat is grey.", "Her name is Miso.", "Ok.", "And now?"]


def test_a_tool_loop_goes_on_whose_input_repeats_deleted_words(
    world: World, upstream: StrictUpstream
) -> None:
    first = respond(world, input="Hello.")
    world.sdk.responses.delete(respond(world, input="The weather?", previous_response_id=first.id).id)
    upstream.queue(call_tools(Call("weather", {"city": "Rome"})), say("Sunny."))
    texts = [("user", "The weather?"), ("assistant", "Where?"), ("user", "In Rome.")]
    messages: Any = [{"role": role, "content": text} for role, text in texts]
    calling = respond(world, input=messages, previous_response_id=first.id, tools=[WEATHER])
    output = {"type": "function_call_output", "call_id": calling.output[0].call_id, "output": "sun"}
    last = respond(world, input=[output], previous_response_id=calling.id, tools=[WEATHER])
    assert last.output_text == "Sunny."


def test_words_off_the_record_stay_off_it_in_a_response(world: World) -> None:
    off = {"x-mnemogate-memory": "off"}
    respond(world, user="alice", input="My cat is grey.", extra_headers=off)
    both: Any = [{"role": "user", "content": text} for text in ("My cat is grey.", "Her name is Miso.")]
    respond(world, user="alice", input=both)
    assert b"grey" not in world.data()
    assert b"Miso" in world.data()


@pytest.mark.both
def test_words_off_the_record_stay_off_it_beside_words_that_are_stored(world: World) -> None:
    """A list without its replies is sent again, the second time off the record, and with one more message each time."""
    texts = ("Good day.", "My cat is grey.", "Her name is Miso.")
    for count, mode in ((1, "on"), (2, "off"), (3, "on")):
        items: Any = [{"role": "user", "content": text} for text in texts[:count]]
        respond(world, user="alice", input=items, extra_headers={"x-mnemogate-memory": mode})
    stored = str(world.query("SELECT input FROM exchanges"))
    assert [text in stored for text in texts] == [True, False, True]


@pytest.mark.parametrize("user", [None, "alice"])
def test_a_response_follows_the_one_that_its_request_names(
    world: World, upstream: StrictUpstream, user: str | None
) -> None:
    """Also if its input has a reply of its own, which resembles one of another branch."""
    named: Json = {} if user is None else {"user": user}
    first = respond(world, input="Hello.", **named)
    messages: Any = [{"role": "user", "content": text} for text in ("My cat?", "My dog?")]
    other = respond(world, input=messages, previous_response_id=first.id, **named)
    made_up = {"role": "assistant", "content": "It barks."}
    added: Any = [messages[1], made_up, {"role": "user", "content": "Why?"}]
    response = respond(world, input=added, previous_response_id=first.id, **named)
    listed = world.sdk.responses.input_items.list(response.id, order="asc")
    texts = ["Hello.", "Ok.", "My dog?", "It barks.", "Why?"]
    assert texts_of([item.model_dump(warnings=False) for item in listed]) == texts
    assert world.sdk.responses.retrieve(other.id).to_dict() == other.to_dict()
    respond(world, input="And?", previous_response_id=response.id, **named)
    assert [read_text(each) for each in upstream.last.messages] == [*texts, "Ok.", "And?"]


@both_ways
@pytest.mark.parametrize("upstream_id", [None, "", "weather"])
def test_results_reach_calls_without_an_id_of_their_own(
    world: World, upstream: StrictUpstream, upstream_id: str | None, stream: bool
) -> None:
    """Some servers give calls no id, or their function's name. The client names the calls by the ids that it got."""
    calls = [WEATHER_CALL | {"index": index, "id": upstream_id} for index in range(2)]
    if upstream_id is None:
        for call in calls:
            del call["id"]
    upstream.queue(say("", delta={"tool_calls": calls}, finish_reason="tool_calls"), say("Fine."))
    response = respond(world, input="The weather?", tools=[WEATHER], stream=stream)
    assert shown(world.sdk.responses.retrieve(response.id)) == shown(response)
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": output}
        for call, output in zip(response.output, ("sun", "rain"), strict=True)
    ]
    second = respond(world, input=results, previous_response_id=response.id, tools=[WEATHER], stream=stream)
    assert second.output_text == "Fine."
    *_, asked, first, last = upstream.last.messages
    assert [call["id"] for call in asked["tool_calls"]] == [first["tool_call_id"], last["tool_call_id"]]
    assert (first["content"], last["content"]) == ("sun", "rain")
