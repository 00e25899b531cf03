"""Memory tools over real sockets: gateway tools run inside the client's reply, client tools are passed on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.settings import BlockSettings, ModelSettings, ProfileSettings, UpstreamSettings
from tests.doubles.upstream import Call, Reply, Rules, StrictUpstream, call_tools, fail, insert, say
from tests.gateway.memory.tooled import (
    BLOCK_TOOL_NAMES,
    MEMORY_TOOL_NAMES,
    WEATHER,
    both_ways,
    helper,
    results,
    system,
)
from tests.gateway.sdk import World, agent, message_bytes, remember

CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


@both_ways
@pytest.mark.parametrize("wrapped", [{"refusal": None}, {"refusal": "No."}, "odd"])
def test_litellms_wrapper_around_what_it_does_not_know_is_not_sent_to_it_again(
    world: World, stream: bool, wrapped: Any
) -> None:
    """LiteLLM hands it on to a provider that refuses it: neither a hidden round nor a later turn would come through."""
    delta = {"provider_specific_fields": wrapped}
    world.upstream.queue(
        call_tools(insert("Ann"), delta=delta), say("Noted.", delta=delta), say("Yes.", delta=delta)
    )
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    for text in ("I am Ann.", "Do you know me?", "Who am I?"):
        messages: Any = [{"role": "user", "content": text}]
        assert world.post(messages, headers, user="alice", model="agent/helper", stream=stream).status == 200
    assert len(world.upstream.chats) == 4
    assert not [request.refusal for request in world.upstream.chats if request.refusal is not None]


@both_ways
def test_a_negative_limit_of_tokens_leaves_room_for_a_reply_after_a_tool(world: World, stream: bool) -> None:
    """LM Studio and llama.cpp take `max_tokens: -1` for "no limit"."""
    world.upstream.rules = Rules(unlimited=True)
    world.upstream.queue(call_tools(insert("Ann")), say("Hello, Ann."))
    chat = helper(world, max_tokens=-1, stream=stream)
    assert chat.say("I am Ann.") == "Hello, Ann."
    assert world.upstream.last.json["max_tokens"] == -1


# -- what the model is offered


def test_an_agent_gets_its_model_its_prompt_its_blocks_and_the_tools(world: World) -> None:
    helper(world).say("Hi")
    body = world.upstream.last.json
    assert body["model"] == "m"
    assert system(world).startswith("You help.\n\n<memory_blocks>")
    assert 'label="human"' in system(world)
    assert set(world.upstream.last.tool_names) == MEMORY_TOOL_NAMES


def test_a_plain_model_is_offered_nothing(world: World) -> None:
    world.chat(user="alice").say("Hi")
    assert "tools" not in world.upstream.last.json
    assert world.upstream.last.messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"prediction": {"type": "content", "content": "{}"}},
        {"web_search_options": {}},
    ],
    ids=str,
)
def test_tools_are_not_offered_where_a_hidden_round_would_not_be_meant(
    world: World, options: dict[str, Any]
) -> None:
    chat = helper(world)
    chat.messages = [{"role": "user", "content": "Answer in JSON."}]
    world.sdk.chat.completions.create(messages=chat.messages, **chat.options, **options)  # type: ignore[arg-type]
    assert not MEMORY_TOOL_NAMES & set(world.upstream.last.tool_names)


def test_a_grammar_of_llama_cpp_goes_without_tools(world: World) -> None:
    world.upstream.rules = Rules(unknown_parameters=False)
    chat = helper(world, extra_body={"grammar": 'root ::= "Ok."'})
    assert [chat.say("Hi"), chat.say("Well?")] == ["Ok.", "Ok."]
    assert world.upstream.last.json["grammar"]


def test_an_application_may_have_all_the_tools_that_openai_takes(world: World) -> None:
    free = 128 - len(MEMORY_TOOL_NAMES)
    for count, is_offered in ((free, True), (free + 1, False), (128, False)):
        tools: Any = [{"type": "function", "function": {"name": f"tool_{n}"}} for n in range(count)]
        assert helper(world, tools=tools).say("Hi") == "Ok."
        assert (set(world.upstream.last.tool_names) >= MEMORY_TOOL_NAMES) is is_offered


def test_the_prompt_names_no_memory_tools_that_the_request_does_not_have(world: World) -> None:
    chat = helper(world)
    chat.say("Hi")
    with_tools = system(world)
    assert all(name in with_tools for name in MEMORY_TOOL_NAMES)
    many: Any = [{"type": "function", "function": {"name": f"tool_{n}"}} for n in range(128)]
    for options in ({"response_format": {"type": "json_object"}}, {"prediction": {}}, {"tools": many}):
        chat.options = {**helper(world).options, **options}
        chat.say("Answer in JSON.")
        assert not MEMORY_TOOL_NAMES & set(world.upstream.last.tool_names)
        assert not [name for name in MEMORY_TOOL_NAMES if name in system(world)]
        assert system(world).startswith("You help.\n\n<memory_blocks>")
    chat.options = helper(world).options
    chat.say("Well?")
    assert system(world) == with_tools


def test_a_turn_that_only_reads_is_offered_no_tools(world: World) -> None:
    helper(world, headers={"x-mnemogate-memory": "read"}).say("Hi")
    assert "tools" not in world.upstream.last.json


def test_words_that_ask_to_forget_erase_a_line_of_a_block_and_no_message(world: World) -> None:
    chat = world.chat(user="carl", model="agent/helper")
    line = "Carl has a yak named Yo."
    world.upstream.queue(call_tools(insert(line)), say("Noted."))
    chat.say("I have a yak named Yo.")
    chat.say("Good.")
    assert world.block("carl").value == line
    world.upstream.queue(
        call_tools(Call("memory_replace", {"label": "human", "old_string": line, "new_string": ""})),
        say("Forgotten."),
    )
    chat.say("Forget that I have a yak named Yo.")
    chat.say("Thanks.")
    assert line not in world.block("carl").value
    world.chat(user="carl", model="agent/helper").say("Do I have a yak?")
    note = world.upstream.last.messages[-1]["content"]
    assert "user: I have a yak named Yo." in note
    assert "user: Forget that I have a yak named Yo." in note


def test_the_settings_values_of_blocks_are_what_a_new_user_begins_with(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    blocks = (
        BlockSettings("persona", "Who you are.", "I am Nell.", read_only=True),
        BlockSettings("rules", "House rules.", "No smoking.", shared=True),
        BlockSettings("human", limit=40),
    )
    with remember(upstream, tmp_path, agent(blocks=blocks)) as world:
        for _ in range(2):  # before and after the blocks are stored
            helper(world).say("Hi")
            assert "I am Nell." in system(world)
            assert "No smoking." in system(world)
        upstream.queue(
            call_tools(
                Call("memory_insert", {"label": "persona", "new_string": "x"}),
                Call("memory_insert", {"label": "rules", "new_string": "x"}),
                Call("memory_insert", {"label": "human", "new_string": "x" * 41}),
                Call("memory_insert", {"label": "nowhere", "new_string": "x"}),
                text=None,
            ),
            say("I could not."),
        )
        assert helper(world).say("Change everything.") == "I could not."
        found = results(world)
        assert ["read-only" in found[0], "read-only" in found[1]] == [True, True]
        assert "limit is 40" in found[2]
        assert "no memory block" in found[3]


def test_a_shared_block_that_models_may_write_is_known_to_the_profiles_other_users(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    blocks = (BlockSettings("rules", value="No smoking.", shared=True, writable=True),)
    with remember(upstream, tmp_path, agent(blocks=blocks), agent("other", blocks=blocks)) as world:
        bob = world.chat(model="agent/helper", user="bob")
        bob.say("Hi")
        upstream.queue(
            call_tools(Call("memory_insert", {"label": "rules", "new_string": "No dogs."}), text=None),
            say("."),
        )
        alice = helper(world)
        alice.say("Dogs are forbidden.")
        alice.say("Thanks.")
        bob.say("What may I not do?")
        assert "No dogs." not in system(world)
        assert "No dogs." in upstream.last.messages[-1]["content"]  # in a note: his section stays as it is
        world.chat(model="agent/helper", user="bob").say("Hi again")
        assert "No smoking.\nNo dogs." in system(world)
        world.chat(model="agent/other", user="alice").say("Hi")
        assert "No dogs." not in system(world)


def test_blocks_stand_in_the_order_of_the_settings_for_every_user_and_conversation(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """What users share comes first if the settings say so, and then they share the provider's cache too."""
    labels = ["human", "rules", "notes", "fixed"]
    shared = {"rules", "notes"}
    blocks = tuple(BlockSettings(label, value=f"About {label}.", shared=label in shared) for label in labels)
    with remember(upstream, tmp_path, agent(blocks=blocks)) as world:
        for user in ("ann", "bob", "ann", "bob"):
            world.chat(model="agent/helper", user=user).say("Hi")
            assert re.findall('<memory_block label="([a-z]+)"', system(world)) == labels, user


# -- gateway calls alone


@both_ways
def test_a_hidden_round_is_one_ordinary_reply(world: World, stream: bool) -> None:
    world.upstream.queue(
        call_tools(insert("Has a cat, Miso."), text="Let me note that. "),
        say("Noted.", tokens=["No", "ted."]),
    )
    assert helper(world).say("My cat is Miso.", stream=stream) == "Let me note that. Noted."
    first, second = world.upstream.requests
    assert len(second.messages) == len(first.messages) + 2
    assert second.messages[-2]["tool_calls"][0]["function"]["name"] == "memory_insert"
    (result,) = results(world)
    assert "Has a cat, Miso." in result
    assert message_bytes(second)[: len(message_bytes(first))] == message_bytes(first)


def test_a_refusal_after_a_hidden_round_has_no_content(world: World) -> None:
    refusal = say("", delta={"content": None, "refusal": "I cannot."})
    world.upstream.queue(call_tools(insert("Has a cat, Miso.")), refusal, refusal)
    chat = helper(world)
    for hidden_rounds in ("one", "none"):
        chat.messages.append({"role": "user", "content": f"My cat is Miso. {hidden_rounds}"})
        reply = world.post(chat.messages, model="agent/helper", user="alice").json["choices"][0]["message"]
        assert (reply["content"], reply["refusal"]) == (None, "I cannot.")


def test_a_stream_with_a_hidden_round_has_one_id_one_role_and_one_end(world: World) -> None:
    world.upstream.queue(call_tools(insert("a"), text="One "), say("two"))
    body = {
        "model": "agent/helper",
        "messages": [{"role": "user", "content": "Hi"}],
        "user": "u",
        "stream": True,
    }
    raw = world.gateway.post(body).body
    assert raw.count(b"data: [DONE]\n\n") == 1
    assert raw.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in raw.split(b"\n\n") if line.startswith(b"data: {")]
    assert len({c["id"] for c in chunks}) == 1
    assert [c["choices"][0]["delta"].get("role") for c in chunks].count("assistant") == 1
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == ["stop"]
    assert not any("tool_calls" in c["choices"][0]["delta"] for c in chunks)
    assert all("usage" not in c for c in chunks)
    assert all(c["x_upstream"] for c in chunks)


@both_ways
def test_each_round_has_an_idempotency_key_of_its_own(world: World, stream: bool) -> None:
    """An upstream answers a key that it knows with the reply that it gave before."""
    world.upstream.queue(call_tools(insert("Ann")), call_tools(insert("Bo")), say("Noted."))
    helper(world, headers={"idempotency-key": "k1"}, stream=stream).say("I am Ann.")
    assert [request.headers["idempotency-key"] for request in world.upstream.chats] == ["k1", "k1-2", "k1-3"]


@pytest.mark.parametrize("identity", [{"user": "alice"}, {}], ids=["memory", "relayed"])
def test_a_fallback_at_the_same_upstream_has_an_idempotency_key_of_its_own(
    upstream: StrictUpstream, tmp_path: Path, identity: dict[str, Any]
) -> None:
    """A request that is only sent again keeps its key."""
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, retries=1),)
    models = (ModelSettings("m", "big", "up", fallbacks=("n",)), ModelSettings("n", "small", "up"))
    upstream.queue(fail(500), fail(500), fail(500), say("Hello."))
    with remember(upstream, tmp_path, upstreams=upstreams, models=models) as world:
        messages = [{"role": "user", "content": "Hi"}]
        assert world.post(messages, {"idempotency-key": "k1"}, model="m", **identity).status == 200
    seen = [(each.json["model"], each.headers["idempotency-key"]) for each in upstream.chats]
    assert seen == [("big", "k1"), ("big", "k1"), ("small", "k1-2"), ("small", "k1-2")]


@both_ways
def test_each_of_the_six_tools_does_what_it_says(world: World, stream: bool) -> None:
    world.chat(user="alice", model="agent/helper").say("I once lived in Lisbon.")
    chat = helper(world, stream=stream)
    world.upstream.queue(
        call_tools(insert("Name: Ann"), text=None),
        call_tools(
            Call("memory_replace", {"label": "human", "old_string": "Ann", "new_string": "Anna"}), text=None
        ),
        call_tools(
            Call("archival_memory_insert", {"content": "The garage code is 4711."}),
            Call("archival_memory_search", {"query": "garage code"}),
            text=None,
        ),
        call_tools(Call("conversation_search", {"query": "lived in Lisbon"}), text=None),
        call_tools(Call("memory_rethink", {"label": "human", "new_memory": "Anna, of Lisbon."}), text=None),
        say("Done."),
    )
    assert chat.say("Do it all.") == "Done."
    found = results(world)
    assert "Name: Ann" in found[0]
    assert "Anna" in found[1]
    assert "Stored" in found[2]
    assert "4711" in found[3]
    assert "Lisbon" in found[4]
    assert "rewritten" in found[5]
    chat.say("Thanks.")
    assert world.block("alice").value == "Anna, of Lisbon."
    assert world.query("SELECT text FROM passages") == ["The garage code is 4711."]
    world.upstream.queue(
        call_tools(Call("archival_memory_search", {"query": "garage code"}), text=None), say("4711.")
    )
    helper(world).say("What was it?")
    assert "4711" in results(world)[-1]


def test_a_search_keeps_to_the_side_and_the_number_asked_for(world: World) -> None:
    for n in range(4):
        world.upstream.queue(say(f"A banana is yellow, fact {n}."))
        helper(world).say(f"Tell me about the banana, question {n}.")
    world.upstream.queue(
        call_tools(
            Call("conversation_search", {"query": "banana", "role": "assistant"}),
            Call("conversation_search", {"query": "banana", "role": "user", "limit": 2}),
            text=None,
        ),
        say("Here."),
    )
    helper(world).say("Find it.")
    by_model, by_user = results(world)
    assert by_model.count("\n") == 3
    assert "question" not in by_model
    assert by_user.count("\n") == 1
    assert "fact" not in by_user


def test_a_search_of_one_side_is_not_crowded_out_by_the_other(world: World) -> None:
    world.upstream.queue(say("Give your plants water in the morning, the roses among them too."))
    helper(world).say("How do I keep them?")
    for n in range(60):
        helper(world).say(f"Roses, my roses: number {n} of the roses.")
    search = Call("conversation_search", {"query": "roses", "role": "assistant"})
    world.upstream.queue(call_tools(search, text=None), say("Here."))
    helper(world).say("Find it.")
    assert "water in the morning" in results(world)[-1]


def test_a_new_users_text_of_the_same_turn_is_found_too(world: World) -> None:
    world.upstream.queue(
        call_tools(Call("archival_memory_insert", {"content": "The safe opens with 815."}), text=None),
        call_tools(Call("archival_memory_search", {"query": "safe"}), text=None),
        say("815."),
    )
    helper(world).say("The safe opens with 815. How does it open?")
    assert results(world)[-1] == "- The safe opens with 815."


DEEP = "[" * 300 + "]" * 300


@pytest.mark.both(more=['"tags": "cat"'])
@pytest.mark.parametrize("more", ['"tags": 5', '"tags": "cat"', '"tags": [{"a": 1}]', f'"why": {DEEP}'])
def test_an_argument_that_a_tool_does_not_have_does_nothing(
    world: World, more: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep = Call("archival_memory_insert", f'{{"content": "The safe opens with 815.", {more}}}')
    edit = Call("memory_insert", f'{{"label": "human", "new_string": "Owns a safe.", {more}}}')
    look = Call("archival_memory_search", {"query": "safe"})
    world.upstream.queue(call_tools(keep, edit, look, text=None), say("Kept."))
    chat = helper(world)
    chat.say("The safe opens with 815.")
    assert results(world)[-1] == "- The safe opens with 815."
    chat.say("Thanks.")
    world.settle()
    assert world.query("SELECT text, tags FROM passages") == [("The safe opens with 815.", None)]
    assert world.block("alice").value == "Owns a safe."
    assert not [record for record in caplog.records if record.exc_info]


def test_texts_of_the_same_turn_take_no_more_room_in_a_result_than_other_hits(world: World) -> None:
    world.upstream.queue(
        call_tools(
            *[
                Call("archival_memory_insert", {"content": f"Book {n}: " + "a long story " * 10_000})
                for n in range(20)
            ],
            text=None,
        ),
        call_tools(Call("archival_memory_search", {"query": "book", "limit": 50}), text=None),
        say("Kept."),
    )
    helper(world).say("Keep these books.")
    found = results(world)[-1]
    assert "Book 19" in found
    assert len(found) < 10_000


def test_without_a_user_the_model_edits_blocks_and_has_nothing_to_search(world: World) -> None:
    """What it stored elsewhere than in its blocks it could never find again."""
    chat = world.chat(model="agent/helper", headers={"x-mnemogate-conversation": "room-1"})
    world.upstream.queue(call_tools(insert("Wants a quiet room."), text=None), say("Noted."))
    chat.say("A quiet room, please.")
    assert set(world.upstream.last.tool_names) == BLOCK_TOOL_NAMES
    chat.say("Thanks.")
    world.clock.sleep(1000)
    chat.say("Which room do I want?")
    assert "Wants a quiet room." in system(world)


def test_a_text_that_was_stored_on_the_path_is_found_before_it_is_confirmed(world: World) -> None:
    chat = helper(world)
    world.upstream.queue(
        call_tools(Call("archival_memory_insert", {"content": "The safe opens with 815."}), text=None),
        say("Kept."),
    )
    chat.say("The safe opens with 815.")
    world.upstream.queue(
        call_tools(
            Call("archival_memory_search", {"query": "how does the safe open"}),
            insert("Owns a safe."),
            text=None,
        ),
        say("815."),
    )
    chat.say("How does it open?")
    assert "815" in results(world)[-2]
    assert world.query("SELECT count(*) FROM passages") == [1]


# -- client calls, alone and mixed


@both_ways
def test_calls_of_the_client_pass_alone_and_in_parallel(world: World, stream: bool) -> None:
    chat = helper(world, tools=[WEATHER, CLOCK], stream=stream)
    world.upstream.queue(
        call_tools(Call("weather", {"city": "Lisbon"}), Call("clock", {"zone": "WET"}), text="Wait."),
        say("Sunny at noon."),
    )
    assert chat.say("Weather and time?") == "Wait."
    calls = chat.messages[-1]["tool_calls"]
    assert [json.loads(c["function"]["arguments"]) for c in calls] == [{"city": "Lisbon"}, {"zone": "WET"}]
    chat.answer(calls[1], "noon")
    chat.answer(calls[0], "sunny")
    assert chat.go_on() == "Sunny at noon."
    assert world.upstream.last.messages[1:] == chat.messages[:-1]


def test_nothing_is_recalled_for_the_result_of_a_tool(world: World) -> None:
    helper(world).say("The weather in Lisbon was awful in March.")
    chat = helper(world, tools=[WEATHER])
    world.upstream.queue(call_tools(Call("weather", {"city": "Lisbon"}), text=None))
    chat.say("How warm is the sea?")
    chat.answer(chat.messages[-1]["tool_calls"][0], "Was the weather in Lisbon awful in March?")
    chat.go_on()
    assert world.upstream.last.messages[1:] == chat.messages[:-1]


@both_ways
@pytest.mark.parametrize("is_gateway_tool_first", [True, False])
def test_gateway_tools_of_a_mixed_round_run_and_client_tools_are_passed_on(
    world: World, stream: bool, is_gateway_tool_first: bool
) -> None:
    chat = helper(world, tools=[WEATHER], stream=stream)
    calls = [insert("Lives in Lisbon."), Call("weather", {"city": "Lisbon"})]
    world.upstream.queue(
        call_tools(*(calls if is_gateway_tool_first else calls[::-1]), text=None), say("Sunny.")
    )
    chat.say("Weather at home?")
    (call,) = chat.messages[-1]["tool_calls"]
    assert call["function"]["name"] == "weather"
    chat.answer(call, "sunny")
    assert chat.go_on() == "Sunny."
    roles = [m["role"] for m in world.upstream.last.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    assert len(world.upstream.last.messages[2]["tool_calls"]) == 2
    again = message_bytes(world.upstream.last)
    chat.say("Thanks.")
    assert message_bytes(world.upstream.last)[: len(again)] == again
    assert world.block("alice").value == "Lives in Lisbon."


def test_neither_half_of_a_mixed_round_without_results_is_restored(world: World) -> None:
    chat = helper(world, tools=[WEATHER])
    world.upstream.queue(call_tools(insert("a"), Call("weather"), text="Looking. "))
    chat.say("Weather?")
    chat.messages[-1].pop("tool_calls")
    assert chat.say("Forget it.") == "Ok."
    assert [m["role"] for m in world.upstream.last.messages] == ["system", "user", "assistant", "user"]
    assert "tool_calls" not in world.upstream.last.messages[2]


def test_a_call_left_open_is_the_clients_own_error(world: World) -> None:
    chat = helper(world, tools=[WEATHER])
    world.upstream.queue(call_tools(Call("weather"), text=None))
    chat.say("Weather?")
    with pytest.raises(openai.BadRequestError, match="tool_call_id"):
        chat.say("Forget it.")
    chat.messages.pop()
    chat.answer(chat.messages[-1]["tool_calls"][0], "sunny")  # answered late
    assert chat.say("And now?") == "Ok."


def test_the_clients_results_of_a_mixed_round_may_come_late_and_in_another_order(world: World) -> None:
    chat = helper(world, tools=[WEATHER, CLOCK])
    world.upstream.queue(call_tools(Call("weather"), insert("Likes sun."), Call("clock"), text="Wait. "))
    chat.say("Weather and time?")
    with pytest.raises(openai.BadRequestError, match="tool_call_id"):
        chat.say("Hurry.")
    assert [m["role"] for m in world.upstream.last.messages[1:]] == ["user", "assistant", "user"]
    assert (
        world.upstream.last.messages[2] == chat.messages[1]
    )  # as the client has it, and nothing of the gateway's
    chat.messages.pop()
    for call in chat.messages[-1]["tool_calls"][::-1]:
        chat.answer(call, "fine")
    assert chat.say("Hurry.") == "Ok."
    sent = world.upstream.last.messages[2:]
    assert [m["role"] for m in sent] == ["assistant", "tool", "tool", "tool", "user"]
    gateway_call, *client_calls = [m["tool_call_id"] for m in sent[1:4]]
    asked = {c["id"]: c["function"]["name"] for c in sent[0]["tool_calls"]}
    assert [asked[gateway_call], *(asked[id] for id in client_calls)] == ["memory_insert", "clock", "weather"]
    chat.say("Thanks.")
    assert world.block("alice").value == "Likes sun."


def test_client_tools_are_reindexed_after_gateway_tools(world: World) -> None:
    chat = helper(world, tools=[WEATHER, CLOCK], stream=True)
    world.upstream.queue(
        call_tools(insert("a"), Call("weather", {"n": 1}), insert("b"), Call("clock", {"n": 2}))
    )
    chat.say("Go.", stream=True)
    assert [c["function"]["name"] for c in chat.messages[-1]["tool_calls"]] == ["weather", "clock"]


@both_ways
def test_the_thoughts_of_two_rounds_do_not_run_together(world: World, stream: bool) -> None:
    """For the client. Upstream each round has its own."""
    world.upstream.rules = Rules(unknown_parameters=False)  # one that reads thoughts
    world.upstream.queue(
        call_tools(insert("Has a cat."), text=None, delta={"reasoning_content": "Note it."}),
        say("Noted.", delta={"reasoning_content": "Confirm it."}),
    )
    hello = [{"role": "user", "content": "I have a cat."}]
    reply: Any = world.sdk.chat.completions.create(
        messages=hello, model="agent/helper", user="alice", stream=stream
    )
    parts = [c.choices[0].delta for c in reply if c.choices] if stream else [reply.choices[0].message]
    thoughts = "".join(getattr(part, "reasoning_content", None) or "" for part in parts)
    assert thoughts == "Note it.\n\nConfirm it."
    sent = [m["reasoning_content"] for m in world.upstream.requests[1].messages if "reasoning_content" in m]
    assert sent == ["Note it."]


def test_thoughts_after_a_text_are_an_item_of_their_own(world: World) -> None:
    world.upstream.rules = Rules(unknown_parameters=False)  # one that reads thoughts
    world.upstream.queue(
        call_tools(insert("Has a cat."), text="Noting.", delta={"reasoning_content": "Note it."}),
        say("Noted.", delta={"reasoning_content": "Confirm it."}),
    )
    events: Any = world.sdk.responses.create(input="I have a cat.", model="agent/helper", stream=True)
    *_, last = events
    summaries = [item.summary[0].text for item in last.response.output if item.type == "reasoning"]
    assert summaries == ["Note it.", "Confirm it."]


@both_ways
def test_the_citations_of_two_rounds_are_spans_of_the_text_that_the_client_has(
    world: World, stream: bool
) -> None:
    """OpenAI's helper for streams fails at the second list, unless its entries have an index."""

    def cite(text: str) -> dict[str, Any]:
        source = {"url": f"https://{text}.org", "title": text, "start_index": 0, "end_index": len(text)}
        return {"annotations": [{"type": "url_citation", "url_citation": source}]}

    # In a stream they come after the text.
    cited: Any = {"ending": {"delta": cite("Dogs")}} if stream else {"delta": cite("Dogs")}
    world.upstream.queue(
        call_tools(insert("Has a cat."), text="Cats purr.", delta=cite("Cats")), say("Dogs bark.", **cited)
    )
    request: Any = {"model": "agent/helper", "user": "alice", "messages": [{"role": "user", "content": "Hi"}]}
    if stream:
        with world.sdk.chat.completions.stream(**request) as chunks:
            reply: Any = chunks.get_final_completion().choices[0].message
    else:
        reply = world.sdk.chat.completions.create(**request).choices[0].message
    sources = [each["url_citation"] for each in reply.to_dict()["annotations"]]
    spans = [reply.content[each["start_index"] : each["end_index"]] for each in sources]
    assert spans == [each["title"] for each in sources] == ["Cats", "Dogs"]


def test_the_citations_of_an_item_after_thoughts_are_spans_of_its_text(world: World) -> None:
    source = {"url": "https://dogs.org", "title": "Dogs", "start_index": 0, "end_index": 4}
    cited = {"annotations": [{"type": "url_citation", "url_citation": source}]}
    world.upstream.queue(
        call_tools(insert("Has a cat."), text="Cats purr."),
        say("Dogs bark.", delta={"reasoning_content": "Dogs too."}, ending={"delta": cited}),
    )
    *_, last = world.sdk.responses.create(input="Hi", model="agent/helper", stream=True)
    (part,) = last.response.output[-1].content
    (citation,) = part.annotations
    assert part.text[citation.start_index : citation.end_index] == "Dogs"


# -- hidden rounds come back


@both_ways
def test_the_next_turn_puts_hidden_rounds_back_byte_for_byte(world: World, stream: bool) -> None:
    world.upstream.rules = Rules(unknown_parameters=False)  # one whose messages have fields of their own
    chat = helper(world, stream=stream)
    odd = Reply(
        text="Noting. ",
        calls=(insert('Héllo \u2028 "q"'), insert("b")),
        delta={"reasoning_content": "hm", "signature": "c2ln"},
    )
    world.upstream.queue(odd, say("Done."))
    chat.say("Note it.")
    sent = message_bytes(world.upstream.last)
    for _ in range(3):
        chat.say("More.")
        assert message_bytes(world.upstream.last)[: len(sent)] == sent
        sent = message_bytes(world.upstream.last)


@both_ways
def test_a_reply_that_was_continued_keeps_its_hidden_rounds_and_edits(world: World, stream: bool) -> None:
    """A front end's "Continue": the list ends with the reply, and both texts become one message."""
    chat = helper(world, stream=stream)
    world.upstream.queue(call_tools(insert("Her boat is Nerea."), text=None), say("Noted: Nerea"))
    chat.say("My boat is called Nerea.")
    world.upstream.queue(say(" sails well."))
    added = chat.complete()["content"]
    chat.messages[-1]["content"] += added
    chat.say("Thanks.")
    assert results(world)
    assert world.upstream.last.messages[-2]["content"] == "Noted: Nerea sails well."
    assert world.block("alice").value == "Her boat is Nerea."


@both_ways
@pytest.mark.parametrize(
    ("second", "heard"), [("Done.", "Noting. Still. Done."), ("\n- a", "Noting. Still.\n- a")]
)
def test_the_texts_of_two_rounds_are_separated_and_go_back_unchanged(
    world: World, stream: bool, second: str, heard: str
) -> None:
    chat = helper(world, stream=stream)
    world.upstream.queue(
        call_tools(insert("a"), text="Noting."),
        call_tools(insert("b"), text=None),
        call_tools(insert("c"), text="Still."),
        say(second),
    )
    assert chat.say("Note it.") == heard
    chat.say("More.")
    contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "assistant"]
    assert contents == ["Noting.", None, "Still.", second]


@both_ways
def test_hidden_rounds_go_back_to_a_client_that_strips_white_space(world: World, stream: bool) -> None:
    chat = helper(world, stream=stream, tools=[WEATHER])
    world.upstream.queue(call_tools(insert("a"), text="Noting.\n\n"), say("  Done.\n\nYes. "))
    chat.say("Note it.")
    chat.messages[-1]["content"] = " ".join(chat.messages[-1]["content"].split())
    world.upstream.queue(call_tools(insert("b"), Call("weather"), text="Well: "))
    chat.say("And that.")
    contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "assistant"]
    assert contents == ["Noting.\n\n", "  Done. Yes."]
    chat.messages[-1]["content"] = chat.messages[-1]["content"].strip()
    chat.answer(chat.messages[-1]["tool_calls"][0], "sunny")
    chat.go_on()
    assert [c["function"]["name"] for c in world.upstream.last.messages[-3]["tool_calls"]] == [
        "memory_insert",
        "weather",
    ]


def test_hidden_rounds_stay_away_from_a_request_without_our_tools(world: World) -> None:
    chat = helper(world, tools=[WEATHER])
    world.upstream.queue(call_tools(insert("a"), text="Well. "), say("Done."))
    chat.say("Hi")
    chat.options["tool_choice"] = "none"
    chat.say("No tools now.")
    assert [m["role"] for m in world.upstream.last.messages] == ["system", "user", "assistant", "user"]
    assert world.upstream.last.messages[2]["content"] == "Well. Done."
    metrics = world.gateway.ask("GET", "/metrics").body.decode().splitlines()
    assert "mnemogate_prefix_breaks_total 1.0" in metrics
    del chat.options["tool_choice"]
    chat.say("Tools again.")
    assert [m["role"] for m in world.upstream.last.messages][2:5] == ["assistant", "tool", "assistant"]


def test_a_request_that_drops_its_tools_still_gets_an_answer(
    upstream: StrictUpstream, tmp_path: Path
) -> None:

    profile = ProfileSettings("default", memory_tools=True, blocks=(BlockSettings("human"),))
    with remember(upstream, tmp_path, profile) as world:
        chat = world.chat(user="alice", tools=[WEATHER])
        upstream.queue(call_tools(insert("a"), text="Well. "), say("Done."))
        chat.say("Hi")
        del chat.options["tools"]
        assert chat.say("Without tools.") == "Ok."
        assert "tools" not in upstream.last.json
        chat.options["tools"] = [WEATHER]
        chat.say("With tools.")
        assert set(upstream.last.tool_names) == MEMORY_TOOL_NAMES | {"weather"}


def test_a_clash_of_names_renames_the_gateway_tool(world: World) -> None:
    theirs = {"type": "function", "function": {"name": "memory_insert", "parameters": {"type": "object"}}}
    chat = helper(world, tools=[theirs])
    world.upstream.queue(
        call_tools(
            Call("memory_insert", {"their": 1}),
            Call("mnemogate_memory_insert", {"label": "human", "new_string": "ours"}),
            text=None,
        )
    )
    chat.say("Go.")
    (call,) = chat.messages[-1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"their": 1}
    chat.answer(call, "done")
    chat.go_on()
    chat.say("Thanks.")
    assert world.block("alice").value == "ours"


def test_a_client_that_claims_a_name_later_takes_the_tools_out_of_that_request(world: World) -> None:
    chat = helper(world)
    chat.say("Hi")
    theirs = {"type": "function", "function": {"name": "memory_insert", "parameters": {"type": "object"}}}
    chat.say("Mine.", tools=[theirs])
    assert world.upstream.last.tool_names == ["memory_insert"]
    chat.say("Yours.")
    assert set(world.upstream.last.tool_names) == MEMORY_TOOL_NAMES
