"""Edits of memory tools: how long they live, what undoes them, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.doubles.upstream import Call, Reply, StrictUpstream, call_tools, fail, insert, say
from tests.gateway.memory.tooled import MEMORY_TOOL_NAMES, WEATHER, both_ways, helper, results, system
from tests.gateway.sdk import World, agent, message_bytes, remember


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


# -- edits and their turns


def test_an_edit_reaches_the_next_conversation_once_it_is_confirmed(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(call_tools(insert("Allergic to nuts."), text=None), say("Noted."))
    chat.say("I am allergic to nuts.")
    helper(world).say("Suggest a cake.")
    assert "Allergic to nuts." not in system(world)
    chat.say("Thanks.")
    helper(world).say("Suggest a dinner.")
    assert "Allergic to nuts." in system(world)
    assert world.query("SELECT count(*) FROM block_ops WHERE state = 'merged'") == [1]


def test_an_edit_that_stood_unchallenged_is_confirmed_by_time(world: World) -> None:
    world.upstream.queue(call_tools(insert("Allergic to nuts."), text=None), say("Noted."))
    helper(world).say("I am allergic to nuts.")
    world.pass_time(60)
    assert world.block("alice").value == ""
    world.pass_time(61)
    assert world.block("alice").value == "Allergic to nuts."
    world.pass_time(500)
    assert world.block("alice").value == "Allergic to nuts."


def test_an_edit_is_confirmed_by_time_although_the_clock_was_put_back(world: World) -> None:
    """As after a start with a wrong clock: what was dated next month must not wait until then."""
    month_s = 30 * 86_400
    for text in ("Likes tea.", "Has a cat.", "Has a dog."):
        edit = Call("memory_insert", {"label": "human", "new_string": text})
        world.upstream.queue(call_tools(edit, text=None), say("Noted."))
        helper(world, headers={"x-mnemogate-conversation": "c"}).say(text)
        if text == "Likes tea.":
            world.settle()
            world.clock.sleep(-month_s)
        world.pass_time(10_000)
        assert world.block("alice").value.endswith(text)


def test_edits_of_a_regenerated_turn_leave_no_trace(world: World) -> None:
    chat = helper(world)
    chat.say("Hello there.")
    for word in ("wrong", "right"):
        world.upstream.queue(call_tools(insert(f"The {word} one."), text=None), say(f"It is {word}."))
        if word == "wrong":
            chat.say("Which one?")
            chat.messages.pop()
        else:
            chat.go_on()
            assert "wrong" not in results(world)[-1]
    chat.say("Thanks.")
    assert world.block("alice").value == "The right one."
    world.pass_time(1000)
    assert world.block("alice").value == "The right one."
    assert "wrong" not in system(world)
    assert world.query("SELECT state FROM block_ops ORDER BY id") == ["pending", "merged"]
    world.pass_time(86_400)
    assert world.query("SELECT state FROM block_ops ORDER BY id") == ["dropped", "merged"]


def test_each_edit_of_a_confirmed_turn_is_done_exactly_once(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(
        call_tools(insert("one"), insert("two"), text=None), call_tools(insert("three"), text=None), say(".")
    )
    chat.say("Count.")
    for _ in range(3):
        chat.say("Go on.")
    world.pass_time(1000)
    assert world.block("alice").value == "one\ntwo\nthree"
    versions = "SELECT count(*) FROM block_history h JOIN blocks b ON b.id = h.block WHERE b.label = 'human'"
    assert world.query(versions) == [4]


def test_edits_of_a_reply_the_client_asked_for_twice_are_done_once(world: World) -> None:
    chat = helper(world)
    chat.say("Hello there.")
    for _ in range(2):
        world.upstream.queue(call_tools(insert("once"), text=None), say("Noted."))
        chat.messages.append({"role": "user", "content": "Note it."})
        reply = chat.complete()
        chat.messages.pop()
    chat.messages += [{"role": "user", "content": "Note it."}, reply]
    chat.say("Thanks.")
    assert world.block("alice").value == "once"


def test_the_model_sees_its_own_edit_in_the_same_turn_and_the_next(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(
        call_tools(insert("likes tea"), text=None),
        call_tools(
            Call("memory_replace", {"label": "human", "old_string": "tea", "new_string": "coffee"}), text=None
        ),
        say("Noted."),
    )
    chat.say("I like coffee now.")
    assert "coffee" in results(world)[-1]
    world.upstream.queue(
        call_tools(
            Call("memory_replace", {"label": "human", "old_string": "coffee", "new_string": "cocoa"}),
            text=None,
        ),
        say("Noted."),
    )
    chat.say("Cocoa!")
    assert "Error" not in results(world)[-1]
    assert "Changed in the memory blocks" not in world.upstream.last.body.decode()


def rethink(text: str) -> Call:
    return Call("memory_rethink", {"label": "human", "new_memory": text})


def test_a_rewrite_does_not_undo_what_a_person_has_corrected_since(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(call_tools(rethink("Name: Alice."), text=None), say("Noted."))
    chat.say("I am Alice.")
    world.write_block("alice", "Name: Alicia.")
    chat.say("Go on.")
    assert world.block("alice").value == "Name: Alicia."
    assert "Name: Alicia." in str(world.upstream.last.messages[-1]["content"])
    assert world.query("SELECT state, seen FROM block_ops") == [("dropped", None)]
    world.upstream.queue(call_tools(rethink("Name: Alicia, a sailor."), text=None), say("Noted."))
    chat.say("I sail.")
    world.pass_time(121)
    assert world.block("alice").value == "Name: Alicia, a sailor."


def test_a_rewrite_does_not_undo_what_another_chat_has_added_since(world: World) -> None:
    chat, other = helper(world), helper(world)
    world.upstream.queue(call_tools(insert("Allergic to nuts."), text=None), say("Noted."))
    other.say("I am allergic to nuts.")
    world.upstream.queue(
        call_tools(insert("Sails."), text=None), call_tools(rethink("Alice sails."), text=None), say("Noted.")
    )
    chat.say("I am Alice, and I sail.")
    other.say("Thanks.")
    world.pass_time(121)
    assert world.block("alice").value == "Allergic to nuts.\nSails."


def test_a_rewrite_of_what_its_own_chat_has_added_is_made(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(call_tools(insert("Sails."), text=None), say("Noted."))
    chat.say("I sail.")
    world.upstream.queue(call_tools(rethink("Alice sails."), text=None), say("Noted."))
    chat.say("I am Alice.")
    world.upstream.queue(call_tools(rethink("Alice sails a blue boat."), text=None), say("Noted."))
    chat.say("My boat is blue.")
    world.pass_time(121)
    assert world.block("alice").value == "Alice sails a blue boat."


# -- when things go wrong


def test_an_unknown_tool_is_the_clients_to_answer(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(call_tools(Call("unheard_of", {"a": 1}), text=None))
    chat.say("Hi")
    assert chat.messages[-1]["tool_calls"][0]["function"]["name"] == "unheard_of"


@both_ways
def test_arguments_that_are_no_json_are_reported_to_the_model(world: World, stream: bool) -> None:
    world.upstream.queue(call_tools(Call("memory_insert", '{"label": "hum'), text=None), say("Sorry."))
    assert helper(world, stream=stream).say("Hi") == "Sorry."
    assert "not a JSON object" in results(world)[0]
    (call,) = world.upstream.last.messages[-2]["tool_calls"]
    json.loads(call["function"]["arguments"])


def test_wrong_arguments_are_reported_to_the_model(world: World) -> None:
    world.upstream.queue(call_tools(Call("memory_insert", {"label": "human"}), text=None), say("Sorry."))
    assert helper(world).say("Hi") == "Sorry."
    assert "needs `new_string`" in results(world)[0]


@both_ways
def test_the_limit_of_rounds_ends_in_an_answer(
    upstream: StrictUpstream, tmp_path: Path, stream: bool
) -> None:
    with remember(upstream, tmp_path, agent(), memory={"max_tool_rounds": 2}) as world:
        upstream.queue(*[call_tools(insert(f"{n}"), text=None) for n in range(3)], say("Enough."))
        chat = helper(world, stream=stream)
        assert chat.say("Hi") == "Enough."
        assert len(upstream.requests) == 4
        assert upstream.last.json["tool_choice"] == "none"
        assert set(upstream.last.tool_names) == MEMORY_TOOL_NAMES
        assert "limit of 2 rounds" in results(world)[-1]
        sent = message_bytes(upstream.last)
        chat.say("And?")
        assert message_bytes(upstream.last)[: len(sent)] == sent
        assert world.block("alice").value == "0\n1"


@both_ways
def test_a_hidden_call_cut_off_by_the_token_limit_ends_the_reply_with_length(
    world: World, stream: bool
) -> None:
    world.upstream.queue(
        call_tools(Call("memory_insert", '{"label": "human", "new'), text="Well, ", finish_reason="length")
    )
    body = {
        "model": "agent/helper",
        "messages": [{"role": "user", "content": "Hi"}],
        "user": "alice",
        "max_tokens": 9,
    }
    if not stream:
        choice = world.sdk.chat.completions.create(**body).choices[0]  # type: ignore[call-overload]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (
            "Well, ",
            None,
            "length",
        )
    else:
        chunks = list(world.sdk.chat.completions.create(**body, stream=True))  # type: ignore[call-overload]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert not any(c.choices[0].delta.tool_calls for c in chunks)
    assert len(world.upstream.requests) == 1


def test_later_rounds_get_what_is_left_of_the_token_limit(world: World) -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 30, "total_tokens": 80}
    world.upstream.queue(call_tools(insert("a"), text=None, usage=usage), say("Done.", usage=usage))
    body = {"model": "agent/helper", "messages": [{"role": "user", "content": "Hi"}], "user": "alice"}
    reply = world.sdk.chat.completions.create(**body, max_completion_tokens=100)  # type: ignore[call-overload]
    assert [s.json["max_completion_tokens"] for s in world.upstream.requests] == [100, 70]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (50, 60)
    assert reply.usage.mnemogate_billed == {"prompt_tokens": 100, "completion_tokens": 60, "rounds": 2}


@both_ways
def test_a_refusal_in_the_second_round_is_a_status_while_no_text_was_sent(world: World, stream: bool) -> None:
    world.upstream.queue(call_tools(insert("a"), text=None), fail(429, "Slow down", retry_after="3"))
    with pytest.raises(openai.RateLimitError, match="Slow down") as caught:
        helper(world, stream=stream).say("Hi")
    assert caught.value.response.headers["retry-after"] == "3"
    assert world.query("SELECT count(*) FROM block_ops") == [0]


@both_ways
@pytest.mark.parametrize("text", [None, "Well, "])
def test_an_upstream_lost_before_the_second_round_is_no_end_of_the_reply(
    world: World, stream: bool, text: str | None
) -> None:
    lost = Reply(cut_before_headers=True)  # (the connection of the first round is dialled once more)
    world.upstream.queue(call_tools(insert("a"), text=text), lost, lost)
    with pytest.raises(openai.APIError) as caught:
        helper(world, stream=stream).say("Hi")
    assert isinstance(caught.value, openai.InternalServerError) is not bool(stream and text)
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [0]


def test_a_refusal_in_the_second_round_after_text_is_an_error_in_the_stream(world: World) -> None:
    world.upstream.queue(call_tools(insert("a"), text="Well, "), fail(429, "Slow down"))
    chat = helper(world, stream=True)
    with pytest.raises(openai.APIError, match="Slow down"):
        chat.say("Hi")
    world.settle()
    assert "Well" not in str(world.query("SELECT shown_reply FROM exchanges WHERE active <> 0"))
    world.pass_time(1000)
    assert world.query("SELECT count(*) FROM block_ops WHERE state = 'merged'") == [0]


def test_a_refusal_in_the_second_round_of_a_whole_reply_is_a_status(world: World) -> None:
    world.upstream.queue(call_tools(insert("a"), text="Well, "), fail(429, "Slow down"))
    with pytest.raises(openai.RateLimitError, match="Slow down"):
        helper(world).say("Hi")


def test_a_gateway_call_is_known_though_its_name_comes_late_and_in_pieces(world: World) -> None:
    world.upstream.queue(call_tools(insert("é" * 5, pieces=1, late_name=True), text=None), say("Noted."))
    assert helper(world, stream=True).say("Hi") == "Noted."
    assert "ééééé" in results(world)[0]


@both_ways
def test_a_server_that_reuses_call_ids_in_each_reply_loses_no_edit(world: World, stream: bool) -> None:
    """Two rounds of one turn both have a "call_0"."""
    chat = helper(world, stream=stream)
    for text in ("Likes tea.", "Has a cat."):
        world.upstream.queue(
            call_tools(Call("memory_insert", {"label": "human", "new_string": text}, id="call_0"), text=None)
        )
    world.upstream.queue(say("Noted."))
    assert chat.say("I like tea, and I have a cat.") == "Noted."
    chat.say("Thank you.")
    world.pass_time(10_000)
    assert world.block("alice").value == "Likes tea.\nHas a cat."


@both_ways
def test_a_client_call_may_have_the_id_of_a_gateway_call_before_it(world: World, stream: bool) -> None:
    chat = helper(world, tools=[WEATHER], stream=stream)
    world.upstream.queue(
        call_tools(
            Call("memory_insert", {"label": "human", "new_string": "Likes tea."}, id="call_0"), text=None
        ),
        call_tools(Call("weather", {}, id="call_0"), text=None),
    )
    chat.say("Shall I have tea outside?")
    (call,) = chat.messages[-1]["tool_calls"]
    assert call["id"] == "call_0"
    chat.answer(call, "Rain.")
    chat.go_on()
    ours, done, theirs, rain = world.upstream.last.messages[-4:]
    assert ours["tool_calls"][0]["id"] == done["tool_call_id"] != "call_0"
    assert theirs["tool_calls"][0]["id"] == rain["tool_call_id"] == "call_0"
    chat.say("Thank you.")
    world.pass_time(10_000)
    assert world.block("alice").value == "Likes tea."
