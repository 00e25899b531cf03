"""The prompt's prefix is byte-stable: what the upstream received on one turn begins what it receives on the next."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import Call, StrictUpstream, call_tools, insert, say
from tests.gateway.memory.long_conversation import (
    PROFILE,
    TOPICS,
    WEATHER,
    converse,
    measure_prefix,
    mention_topics,
    take_turn,
)
from tests.gateway.sdk import Chat, World, agent, prefix_bytes, remember


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, PROFILE) as running:
        mention_topics(running)
        yield running


def test_the_prefix_is_stable_over_sixty_turns_of_all_kinds(world: World) -> None:
    requests, counts = converse(world, 60)
    share = measure_prefix(requests)
    assert (share.breaks, share.stable) == ((), share.total)
    assert min(counts.values()) > 5, counts
    last = world.upstream.last.body.decode()
    assert "since childhood" in last  # from recall
    assert "Plan of turn 58." in last  # from an edit by hand
    assert world.upstream.last.messages[0]["content"].count("<memory_blocks>") == 1


def test_the_cached_share_shows_where_the_section_is_rebuilt(world: World) -> None:
    """`scripts/bench prefix` prints this share."""
    requests, _ = converse(world, 12, kinds=("plain",), pause_every=6)
    share = measure_prefix(requests)
    assert share.breaks == (6,)
    assert "Plan of turn 4." in requests[6].messages[0]["content"]
    rebuilt_bytes = len(prefix_bytes(requests[5]))
    assert share.total - rebuilt_bytes < share.stable < share.total  # the tools stay


def test_a_trimmed_list_gets_the_same_prefix(world: World) -> None:
    dice = random.Random(3)
    chat = world.chat(system="Be brief.", model="agent/helper", user="alice", tools=[WEATHER])
    earlier = len(world.upstream.requests)
    for turn in range(8):
        take_turn(world, chat, turn, dice)
    whole = [*chat.messages]
    starts = [i for i, m in enumerate(whole) if m["role"] == "user"]
    chat.messages = [whole[0], *whole[starts[-2] :]]
    before = _without_empty_fields(world)
    chat.say("And then?")
    # (How a client orders the keys of a call is not stored, so this is on values.)
    assert _without_empty_fields(world)[: len(before)] == before
    assert len(world.upstream.requests) > earlier + 8


def _without_empty_fields(world: World) -> list[dict[str, object]]:
    """Returns the last request's messages, without empty fields."""
    return [{k: v for k, v in m.items() if v not in (None, [])} for m in world.upstream.last.messages]


def test_a_question_asked_again_gets_the_same_note(world: World) -> None:
    chat = world.chat(model="agent/helper", user="alice")
    chat.say("Hello.")
    chat.messages.append({"role": "user", "content": "What about my garden?"})
    chat.complete()
    first = prefix_bytes(world.upstream.last)
    assert b"since childhood" in first
    world.chat(model="agent/helper", user="alice").say("The garden is full of roses.")
    chat.complete()
    assert prefix_bytes(world.upstream.last) == first


def test_a_note_stays_where_it_was_written_while_others_learn_more(world: World) -> None:
    chat = world.chat(model="agent/helper", user="alice")
    earlier = len(world.upstream.requests)
    chat.say("What about my garden?")
    requests = [world.upstream.last]
    for n in range(4):
        world.chat(model="agent/helper", user="alice").say(f"The garden has {n} more roses.")
        chat.say(f"And the boat trip number {n}?")
        requests.append(world.upstream.last)
    bodies = [prefix_bytes(each) for each in requests]
    assert all(two.startswith(one) for one, two in itertools.pairwise(bodies))
    assert len(world.upstream.requests) - earlier == 9


def test_the_section_is_rebuilt_when_the_providers_cache_is_cold(world: World) -> None:
    chat = world.chat(model="agent/helper", user="alice")
    chat.say("Hello.")
    world.write_block("alice", "Moving to Porto.", "plans")
    chat.say("What is new?")
    assert "Porto" not in world.upstream.last.messages[0]["content"]
    assert "Porto" in world.upstream.last.messages[-1]["content"]
    world.clock.sleep(301)
    chat.say("And now?")
    assert "Porto" in world.upstream.last.messages[0]["content"]
    assert "Porto" not in world.upstream.last.messages[-1]["content"]
    fixed = prefix_bytes(world.upstream.last)
    chat.say("Still?")
    assert prefix_bytes(world.upstream.last).startswith(fixed)


def test_a_profile_can_have_its_section_rebuilt_each_time(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent(rebuild="always")) as world:
        chat = world.chat(model="agent/helper", user="alice")
        chat.say("Hello.")
        world.write_block("alice", "Likes tea.")
        chat.say("What do I like?")
        assert "Likes tea." in upstream.last.messages[0]["content"]


@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_turn_off_the_record_does_not_cost_the_others_their_section(world: World, mode: str) -> None:
    chat = world.chat(model="agent/helper", user="alice")
    chat.say("Hello.")
    first = prefix_bytes(world.upstream.last)
    chat.headers["x-mnemogate-memory"] = mode
    chat.say("Between us.")
    if mode == "read":
        assert prefix_bytes(world.upstream.last).startswith(first)
    chat.headers.clear()
    for text in ("Go on.", "And on."):
        chat.say(text)
        assert prefix_bytes(world.upstream.last).startswith(first)


def test_the_agents_prompt_is_there_in_a_conversation_that_began_off_the_record(world: World) -> None:
    chat = world.chat(model="agent/helper", user="alice", headers={"x-mnemogate-memory": "off"})
    chat.say("Hello.")
    first = prefix_bytes(world.upstream.last)
    assert b"You help." in first
    chat.headers.clear()
    chat.say("Go on.")
    assert prefix_bytes(world.upstream.last).startswith(first)
    chat.say("And on.")
    assert prefix_bytes(world.upstream.last).startswith(first)


def test_a_reply_cut_by_barge_in_keeps_the_hidden_round_in_its_place(world: World) -> None:
    chat = world.chat(model="agent/helper", user="alice", stream=True)
    world.upstream.queue(
        call_tools(insert("x"), text="One moment. "), say("There are seven boats to choose from.")
    )
    chat.say("Which boats are there?")
    sent = prefix_bytes(world.upstream.last)
    chat.messages[-1] = {"role": "assistant", "content": "One moment. There are seven"}
    chat.say("Enough.")
    assert prefix_bytes(world.upstream.last).startswith(sent)
    assert world.upstream.last.messages[-2]["content"] == "There are seven"
    sent = prefix_bytes(world.upstream.last)
    chat.say("Go on.")
    assert prefix_bytes(world.upstream.last).startswith(sent)


def test_an_append_conversation_extends_itself(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    sent = b""
    for n in range(8):
        if n % 3 == 1:
            world.upstream.queue(call_tools(insert(f"fact {n}"), text="Hm. "), say(f"Answer {n}."))
        chat = world.chat(model="agent/helper", user="alice", headers=headers)
        chat.say(f"Message {n} about {TOPICS[n % 6]}.")
        assert prefix_bytes(world.upstream.last).startswith(sent)
        sent = prefix_bytes(world.upstream.last)
        if n == 4:
            world.write_block("alice", "Changed.", "plans")
        world.settle()
    assert world.block("alice").value == "fact 1\nfact 4"


KINDS = (
    *("plain", "plain", "hidden", "hidden", "client", "mixed", "mixed"),
    *("regenerate", "edit", "cut", "vanish", "elsewhere", "outside"),
)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
def test_whatever_happens_each_request_is_valid_and_extends_the_one_before(world: World, seed: int) -> None:
    """Only a client that takes words back (an edit, a regeneration) moves the prefix."""
    dice = random.Random(seed)
    chat = world.chat("Be brief." if seed % 2 else None, model="agent/helper", user="alice", tools=[WEATHER])
    if seed % 3 == 0:
        chat.headers["x-mnemogate-conversation"] = "c1"
    sent, done = b"", []
    for turn in range(20):
        world.clock.sleep(dice.random() * 15)
        begun, kind = len(world.upstream.requests), dice.choice(KINDS)
        done.append(kind)
        moves = live(world, chat, kind, turn, dice)
        if kind == "elsewhere":
            continue
        for request in world.upstream.requests[begun:]:
            assert request.refusal is None, (done, request.refusal)
            assert moves or prefix_bytes(request).startswith(sent), done
            sent, moves = prefix_bytes(request), False
    assert {line["memory"] for line in _lines(world)} == {"on"}
    world.pass_time(1000)
    noted = [line for line in world.block("alice").value.split("\n") if line]
    assert len(noted) == len(set(noted))


def live(world: World, chat: Chat, kind: str, turn: int, dice: random.Random) -> bool:
    """One thing that happens. Returns whether the client took something back."""
    text, answer, stream = f"Turn {turn}: {dice.choice(TOPICS)}?", say(f"Answer {turn}."), dice.random() < 0.5
    users = [i for i, m in enumerate(chat.messages) if m["role"] == "user"]
    before = dice.choice([None, "Hm. "])
    if kind == "elsewhere":
        world.chat(user="alice", model="agent/helper").say(text)
    elif kind == "outside":
        world.write_block("alice", f"Plan of turn {turn}.", "plans")
    elif kind in ("regenerate", "edit") and len(users) > 3:
        chat.messages = chat.messages[: users[-1] + 1] if kind == "regenerate" else chat.messages[: users[-2]]
        world.upstream.queue(answer)
        if kind == "edit":
            chat.say(text, stream=stream)
        else:
            chat.go_on(stream=stream)
        return True
    elif kind == "hidden":
        world.upstream.queue(call_tools(insert(f"fact {turn}"), text=before), answer)
        chat.say(text, stream=stream)
    elif kind in ("client", "mixed"):
        calls = [Call("weather", {"n": turn}), Call("weather", {"m": turn})][: dice.randint(1, 2)]
        calls += [insert(f"fact {turn}")] if kind == "mixed" else []
        dice.shuffle(calls)
        world.upstream.queue(call_tools(*calls, text=before), answer)
        chat.say(text, stream=stream)
        for call in chat.messages[-1]["tool_calls"]:
            chat.answer(call, f"sunny {turn}")
        chat.go_on(stream=stream)
    elif kind == "cut":
        world.upstream.queue(say(f"Answer {turn} is long, and nobody hears it to its end."))
        chat.say(text, stream=True)
        chat.messages[-1]["content"] = f"Answer {turn} is long"
    else:
        world.upstream.queue(answer)
        chat.say(text, stream=stream)
        if kind == "vanish":
            chat.messages.pop()
    return False


def _lines(world: World) -> list[dict[str, object]]:
    world.gateway.flush_log()
    return [line for line in world.gateway.lines if "memory" in line]
