"""An operator changes the settings and starts the gateway again: who was there before is under them as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import BlockSettings
from storage.sql import default_blocks
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import World, agent, remember

HUMAN = BlockSettings("human", "What is known of the user.")
RULES = BlockSettings("rules", value="Old rules.", shared=True, writable=True)


def ask(world: World, *calls: Call, user: str = "alice") -> list[str]:
    """What the model is sent of its calls, in a conversation of their own that went on."""
    world.upstream.queue(call_tools(*calls, text=None), say("Done."))
    chat = world.chat(user=user, model="agent/helper")
    chat.say("Do it.")
    results = [str(m["content"]) for m in world.upstream.last.messages if m["role"] == "tool"]
    chat.say("Thank you.")
    world.pass_time(10_000)
    return results


def insert(label: str, text: str) -> Call:
    return Call("memory_insert", {"label": label, "new_string": text})


def test_a_block_that_is_closed_or_gets_a_limit_is_so_for_everybody(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent(blocks=(HUMAN, RULES))) as world:
        ask(world, insert("human", "x" * 50), insert("rules", "Be brief."))
    now = (BlockSettings("human", "The person.", limit=60), BlockSettings("rules", shared=True))
    with remember(upstream, tmp_path, agent(blocks=now)) as world:
        long, closed = ask(world, insert("human", "y" * 50), insert("rules", "Tell everybody."))
        assert "its limit is 60" in long
        assert "read-only" in closed
        assert world.block("alice").value == "x" * 50
        assert world.block("alice").description == "The person."
        assert world.block("alice", "rules").value == "Old rules.\nBe brief."
    with remember(upstream, tmp_path, agent(blocks=(BlockSettings("human", limit=200), RULES))) as world:
        ask(world, insert("human", "y" * 50))
        assert len(world.block("alice").value) == 101


def test_a_new_block_of_a_profile_is_given_to_those_who_were_there_before(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent(blocks=(HUMAN,))) as world:
        chat = world.chat(user="alice", model="agent/helper")
        chat.say("Hello.")
    goals = BlockSettings("goals", value="Learn Greek.")
    for _ in range(2):  # once, however often it starts
        with remember(upstream, tmp_path, agent(blocks=(HUMAN, goals, RULES)), agent("other")) as world:
            chat.world = world
            chat.say("And now?")
            assert "Learn Greek." in upstream.last.body.decode()
            assert "Old rules." in upstream.last.body.decode()
            ask(world, insert("goals", "And Latin."))
            value = world.block("alice", "goals").value
    assert value == "Learn Greek.\nAnd Latin.\nAnd Latin."


def test_a_shared_value_follows_the_settings_until_it_is_edited(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    def rules(value: str) -> BlockSettings:
        return BlockSettings("rules", value=value, shared=True, writable=True)

    for value, expected in (("One.", "One."), ("Two.", "Two."), ("Three.", "Two.\nMine.")):
        with remember(upstream, tmp_path, agent(blocks=(HUMAN, rules(value)))) as world:
            world.chat(user="alice", model="agent/helper").say("Hello.")
            assert world.block("alice", "rules").value == expected
            if value == "Two.":
                ask(world, insert("rules", "Mine."))


def test_a_value_that_a_user_begins_with_does_not_follow(upstream: StrictUpstream, tmp_path: Path) -> None:
    for value in ("One.", "Two."):
        with remember(upstream, tmp_path, agent(blocks=(BlockSettings("human", value=value),))) as world:
            world.chat(user="alice", model="agent/helper").say("Hello.")
            assert world.block("alice").value == "One."


def test_a_new_block_is_given_to_many_in_several_writes(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user-{n}" for n in range(5)]
    with remember(upstream, tmp_path, agent(blocks=(HUMAN,))) as world:
        for user in users:
            world.chat(user=user, model="agent/helper").say("Hello.")
    monkeypatch.setattr(default_blocks, "_MEMORIES_PER_WRITE", 2)
    with remember(upstream, tmp_path, agent(blocks=(HUMAN, BlockSettings("goals", value="Greek.")))) as world:
        assert [world.block(user, "goals").value for user in users] == ["Greek."] * 5
