"""Speech before a tool, over sockets: it is heard before the tool runs, and never remembered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.run.admin.forgetting.forget_operations import ForgetOperations
from gateway.settings import FillerSettings, UpstreamSettings
from storage.records import Scope
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say
from tests.gateway.messages.sdk import client
from tests.gateway.sdk import World, agent, remember

Json = dict[str, Any]
FILLER, ANSWER = "Let me look that up.", "Your boat is called Albatross."
ASKED = "What is my boat called?"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(filler="model")) as made:
        yield made


def search(filler: str | None = FILLER, **options: Any) -> Call:
    spoken = {} if filler is None else {"pre_exec_msg": filler}
    return Call("conversation_search", {**spoken, "query": "boat"}, **options)


def talk(world: World, *, named: bool = True, **options: Any) -> Any:
    headers = {"x-mnemogate-conversation": "call-1"} if named else {}
    return world.chat(model="agent/helper", user="alice", headers=headers, **options)


def sent(world: World) -> list[Any]:
    """What went up of the conversation: text, or the names of the calls."""
    return [
        [call["function"]["name"] for call in m["tool_calls"]] if m.get("tool_calls") else m["content"]
        for m in world.upstream.last.messages
        if m["role"] in ("user", "assistant")
    ]


def later(world: World) -> str:
    """What the model is sent when the same person calls again, much later."""
    world.pass_time(1_000_000)
    world.chat(model="agent/helper", user="alice").say("Let me look up my boat, what is it called?")
    return str(world.upstream.last.messages[-1]["content"])


both_names = pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
both_ways = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@both_ways
def test_the_model_is_offered_the_aside_and_the_tool_does_not_get_it(world: World, stream: bool) -> None:
    world.upstream.queue(call_tools(search()), say(ANSWER))
    assert talk(world).say(ASKED, stream=stream) == f"{FILLER} {ANSWER}"
    for tool in world.upstream.requests[0].json["tools"]:
        assert tool["function"]["parameters"]["required"][0] == "pre_exec_msg"
    call, result = world.upstream.last.messages[-2:]
    assert "pre_exec_msg" in call["tool_calls"][0]["function"]["arguments"]
    assert not call["content"]
    assert "needs" not in result["content"]
    assert not any("mnemogate" in m for m in world.upstream.last.messages)


@both_names
@both_ways
def test_resent_whole_the_prompt_goes_on_as_the_model_made_it(
    world: World, named: bool, stream: bool
) -> None:
    chat = talk(world, named=named)
    chat.say("My boat is called Albatross, and I sail it every summer.")
    world.upstream.queue(call_tools(search()), say(ANSWER))
    chat.say(ASKED, stream=stream)
    before = world.upstream.last.messages
    chat.say("Thank you.")
    after = world.upstream.last.messages
    assert after[: len(before)] == before
    assert [m["content"] for m in after[len(before) :]] == [ANSWER, "Thank you."]
    note = later(world)
    assert "Albatross" in note
    assert FILLER not in note


@both_names
@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        (f"{FILLER} Your boat is", [["conversation_search"], "Your boat is"]),
        (FILLER, [["conversation_search"]]),
        ("Let me look", [["conversation_search"]]),
        ("Let me look...", [["conversation_search"]]),
        ("Your boat is", [["conversation_search"], "Your boat is"]),
    ],
)
def test_after_a_barge_in_the_clients_form_counts(
    world: World, named: bool, heard: str, kept: list[Any]
) -> None:
    """The answer was complete before the caller cut in."""
    chat = talk(world, named=named)
    chat.say("My boat is called Albatross, and I sail it every summer.")
    world.upstream.queue(call_tools(search()), say(ANSWER))
    chat.say(ASKED, stream=True)
    chat.messages[-1]["content"] = heard
    chat.say("Stop. Never mind the boat.")
    assert sent(world)[3:-1] == kept
    chat.say("Goodbye.")
    assert "Let me look" not in later(world).removesuffix("Let me look up my boat, what is it called?")
    rows = world.query("SELECT shown_reply FROM exchanges WHERE active <> 0 ORDER BY id")
    assert len(rows) == 5


@pytest.mark.parametrize("until", ["look", "called"])
async def test_a_reply_that_is_let_go_leaves_no_filler(world: World, until: str) -> None:
    """The client closes its stream: within the filler, or in the answer after it."""
    gate = Gate()
    messages = [{"role": "user", "content": ASKED}]
    call = search(pieces=['{"pre_exec_msg":"Let me look', ' that up.","query":"boat"}'])
    if until == "look":
        world.upstream.queue(call_tools(call, hold_after={3: gate}))
    else:
        answer = say(ANSWER, tokens=["Your boat is called", " Albatross."], hold_after={2: gate})
        world.upstream.queue(call_tools(call), answer)
    async with world.async_client() as client:
        stream: Any = await client.chat.completions.create(
            model="agent/helper",
            messages=messages,
            stream=True,
            user="alice",  # type: ignore[arg-type]
        )
        heard = ""
        async for chunk in stream:
            heard += "".join(c.delta.content or "" for c in chunk.choices)
            if until in heard:
                break
        await stream.close()
        await world.upstream.last.gone.wait()
        await asyncio.to_thread(world.settle)
        again = [
            *messages,
            {"role": "assistant", "content": heard},
            {"role": "user", "content": "Stop that now."},
        ]
        await client.chat.completions.create(model="agent/helper", messages=again, user="alice")  # type: ignore[call-overload]
    assert heard in (FILLER[:11], f"{FILLER} Your boat is called")
    await asyncio.to_thread(world.settle)
    known = await asyncio.to_thread(lambda: world.gateway.call(everything_known(world)))
    assert ASKED in known
    assert not [text for text in known if "Let me look" in text]


def test_a_regenerated_reply_may_have_another_filler(world: World) -> None:
    chat = talk(world)
    chat.say("My boat is called Albatross, and I sail it every summer.")
    for filler in ("One moment.", "Just a second."):
        world.upstream.queue(call_tools(search(filler)), say(ANSWER))
        assert chat.say(ASKED, stream=True) == f"{filler} {ANSWER}"
        last = chat.messages[-2:]
        del chat.messages[-2:]
    chat.messages += last
    chat.say("Thank you.")
    assert sent(world)[-3:] == [["conversation_search"], ANSWER, "Thank you."]
    note = later(world)
    assert "second" not in note
    assert "moment" not in note


def test_forgotten_with_its_turn(world: World) -> None:
    chat = talk(world)
    world.upstream.queue(call_tools(search("Albatrosses, hm.")), say(ANSWER))
    chat.say(ASKED, stream=True)
    chat.say("Thank you.")
    assert "Albatrosses" in str(world.query('SELECT shown_reply, "full" FROM exchanges'))
    forget = ForgetOperations(world.store, world.clock).forget
    world.gateway.call(forget({"project": "default", "user": "alice", "profile": "helper", "exchange": 1}))
    assert "Albatrosses" not in str(world.query('SELECT shown_reply, "full" FROM exchanges'))
    chat.say("Are you there?")
    assert "Albatrosses" not in str(world.query('SELECT input, shown_reply, "full" FROM exchanges'))


def test_once_a_round_and_only_into_silence(world: World) -> None:
    world.upstream.queue(
        call_tools(search("First."), search("Second.")),
        call_tools(search("Never."), text="I look further."),
        call_tools(search("Again.")),
        say(ANSWER),
    )
    assert talk(world).say(ASKED, stream=True) == f"First. I look further. Again. {ANSWER}"


@pytest.mark.parametrize("filler", ["", " ", "\n \t"])
def test_an_empty_one_says_nothing(world: World, filler: str) -> None:
    world.upstream.queue(call_tools(search(filler)), say(ANSWER))
    assert talk(world).say(ASKED, stream=True) == ANSWER


def test_blanks_in_front_of_one_are_not_said(world: World) -> None:
    world.upstream.queue(call_tools(search(f"\n  {FILLER}")), say(ANSWER))
    chat = talk(world)
    assert chat.say(ASKED, stream=True) == f"{FILLER} {ANSWER}"
    before = world.upstream.last.messages
    chat.say("Thank you.")
    assert world.upstream.last.messages[: len(before)] == before


def test_the_clients_own_tools_speak_for_themselves(world: World) -> None:
    own = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    world.upstream.queue(call_tools(Call("look", {"pre_exec_msg": "Hm."})))
    chat = talk(world, tools=[own])
    assert chat.say(ASKED, stream=True) == ""
    assert world.upstream.last.json["tools"][0] == own
    assert chat.messages[-1]["tool_calls"][0]["function"]["arguments"] == '{"pre_exec_msg":"Hm."}'


async def test_a_filler_is_heard_before_the_call_is_complete(world: World) -> None:
    gate = Gate()
    pieces = ['{"pre_exec_msg":"Let', " me look that", ' up."', ',"query":"boat"}']
    world.upstream.queue(call_tools(search(pieces=pieces), hold_after={4: gate}), say(ANSWER))
    async with world.async_client() as client:
        stream: Any = await client.chat.completions.create(
            model="agent/helper", messages=[{"role": "user", "content": ASKED}], stream=True, user="alice"
        )
        heard = ""
        async for chunk in stream:
            heard += "".join(c.delta.content or "" for c in chunk.choices)
            if heard.endswith("look that"):
                gate.open()
    assert heard == f"{FILLER} {ANSWER}"


def test_a_filler_of_claudes_is_spoken_and_sent_again(tmp_path: Path) -> None:
    with StrictAnthropic() as upstream:
        there = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, tmp_path, agent(filler="model"), upstreams=there) as world:
            chat = talk(world)
            chat.say("My boat is called Albatross, and I sail it every summer.")
            upstream.queue(call_tools(search()), say(ANSWER))
            assert chat.say(ASKED, stream=True) == f"{FILLER} {ANSWER}"
            before = upstream.last.messages
            chat.say("Thank you.")
            after = upstream.last.messages
            assert len(after) == len(before) + 2
            assert FILLER in str(after[-4])
            assert ANSWER in str(after[-2])
            assert FILLER not in str(after[-2])
            assert FILLER not in later(world)


def test_a_filler_of_claudes_is_one_block_of_its_message(tmp_path: Path) -> None:
    with StrictAnthropic() as upstream:
        there = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, tmp_path, agent(filler="model"), upstreams=there) as world:
            upstream.queue(call_tools(search(pieces=1)), say(ANSWER))
            message: Any = {"role": "user", "content": ASKED}
            with (
                client(world, default_headers={"x-mnemogate-user": "alice"}) as sdk,
                sdk.messages.stream(model="agent/helper", max_tokens=100, messages=[message]) as stream,
            ):
                told = stream.get_final_message()
            assert [getattr(block, "text", None) for block in told.content] == [FILLER, ANSWER]


@both_names
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wherever_replies_are_cut_nothing_that_was_said_ahead_is_known(
    world: World, named: bool, seed: int
) -> None:
    dice = random.Random(seed)
    chat = talk(world, named=named)
    for turn in range(12):
        filler = f"Zqone moment{'.' * dice.randrange(4)} " if dice.random() < 0.8 else ""
        rounds = [call_tools(search(f"{filler}Zqnumber {n}.")) for n in range(dice.randrange(3))]
        world.upstream.queue(*rounds, say(f"Answer {turn}: the {dice.choice('abc')} goes with {turn}."))
        chat.say(f"Question {turn} about thing{turn}?", stream=dice.random() < 0.8)
        heard = chat.messages[-1]["content"]
        if dice.random() < 0.6:
            cut = heard[: dice.randrange(1, len(heard) + 1)]
            chat.messages[-1]["content"] = (
                cut.upper() if dice.random() < 0.2 else cut + dice.choice(["", "...", " —"])
            )
    chat.say("Goodbye.")
    world.settle()
    known = world.gateway.call(everything_known(world))
    assert not [text for text in known if "zq" in text.lower()]
    assert sum(text.startswith("Question") for text in known) == 12


async def everything_known(world: World) -> list[str]:
    """The messages that recall and learning may see."""
    agent = await world.store.agents.find(Scope("default", "helper", "user:alice"))
    assert agent is not None
    return [m.text for m in await world.store.recall.load_recent(agent, 100)]


def test_in_append_mode_too(upstream: StrictUpstream, tmp_path: Path) -> None:
    profile = agent(filler="model", history="append")
    with remember(upstream, tmp_path, profile) as world:
        chat = talk(world)
        upstream.queue(call_tools(search()), say(ANSWER))
        assert chat.say(ASKED, stream=True) == f"{FILLER} {ANSWER}"
        before = upstream.last.messages
        chat.messages.clear()
        chat.say("Thank you.")
        assert upstream.last.messages[: len(before)] == before
        assert sent(world)[-2:] == [ANSWER, "Thank you."]


# -- a fixed sentence


@pytest.fixture
def slow(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(filler=FillerSettings("One moment, please.", 0.0))) as made:
        yield made


def hold_searches(world: World, ms: float) -> None:
    """Makes each search take so long."""
    recall, search = world.store.recall, world.store.recall.search

    async def late(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(ms / 1000)
        return await search(*args, **options)

    object.__setattr__(recall, "search", late)


def test_a_fixed_sentence_is_said_once_where_tools_take_long(slow: World) -> None:
    chat = talk(slow)
    chat.say("My boat is called Albatross, and I sail it every summer.")
    hold_searches(slow, 100)
    slow.upstream.queue(call_tools(search(None)), call_tools(search(None)), say(ANSWER))
    assert chat.say(ASKED, stream=True) == f"One moment, please. {ANSWER}"
    assert "pre_exec_msg" not in str(slow.upstream.last.json["tools"])
    before = slow.upstream.last.messages
    chat.say("Thank you.")
    assert slow.upstream.last.messages[: len(before)] == before
    assert sent(slow)[-2:] == [ANSWER, "Thank you."]
    assert "One moment" not in later(slow)


def test_a_whole_reply_needs_no_sentence(slow: World) -> None:
    chat = talk(slow)
    chat.say("My boat is called Albatross, and I sail it every summer.")
    hold_searches(slow, 100)
    slow.upstream.queue(call_tools(search(None)), say(ANSWER))
    assert chat.say(ASKED) == ANSWER


def test_where_the_model_has_said_something_no_sentence_is(slow: World) -> None:
    chat = talk(slow)
    chat.say("My boat is called Albatross, and I sail it every summer.")
    hold_searches(slow, 100)
    slow.upstream.queue(call_tools(search(None), text="I look."), say(ANSWER))
    assert chat.say(ASKED, stream=True) == f"I look. {ANSWER}"
