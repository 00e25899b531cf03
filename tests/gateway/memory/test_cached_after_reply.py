"""A plain turn is cached for the next one after its own reply, and before the next one is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.run.memory import turn_writer
from storage.commands import CommittedTurn, TurnWrite
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, agent, remember
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.both

WAYS = pytest.mark.parametrize(
    ("headers", "options"),
    [({}, {}), ({}, {"stream": True}), ({"x-mnemogate-conversation": "c1"}, {})],
    ids=["whole", "streamed", "named"],
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent(memory_tools=False)) as made:
        yield made


@WAYS
def test_the_reply_leaves_before_its_turn_is_cached(
    world: World, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], options: dict[str, Any]
) -> None:
    chat = world.chat(user="alice", headers=headers)
    chat.say("Hello.")
    world.settle()
    may_begin, began_late, cache_committed = threading.Event(), [], world.store.turns.cache_committed

    def cache_late(write: TurnWrite, done: CommittedTurn) -> None:
        began_late.append(may_begin.wait(PATIENCE_S))  # the gateway's loop stands still meanwhile
        cache_committed(write, done)

    monkeypatch.setattr(world.store.turns, "cache_committed", cache_late)
    chat.say("Are you there?", **options)
    may_begin.set()
    world.settle()
    assert began_late == [True]


@WAYS
@pytest.mark.sqlite
def test_a_request_that_comes_earlier_finds_the_turn_cached(
    world: World, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], options: dict[str, Any]
) -> None:
    chat = world.chat(user="alice", headers=headers)
    chat.say("Message 0.", **options)
    monkeypatch.setattr(turn_writer, "_call_after_reply", lambda work: None)
    chat.say("Message 1.", **options)
    asked = [world.statements_of(lambda n=n: chat.say(f"Message {n}.", **options)) for n in range(2, 5)]
    assert asked == [["insert exchanges"]] * 3


@pytest.mark.sqlite
def test_a_turn_that_cannot_be_cached_does_not_stop_the_caching_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = world.chat(user="alice"), world.chat(user="bob")
    for chat in (alice, bob):
        chat.say("Hello.")
    world.settle()
    monkeypatch.setattr(turn_writer, "_call_after_reply", lambda work: None)
    cache_committed, failing = world.store.turns.cache_committed, [ValueError("no")]

    def cache_or_fail(write: TurnWrite, done: CommittedTurn) -> None:
        if failing:
            raise failing.pop()
        cache_committed(write, done)

    monkeypatch.setattr(world.store.turns, "cache_committed", cache_or_fail)
    for chat in (alice, bob):
        chat.say("Are you there?")
    assert "A stored turn could not be put into the caches" in caplog.text
    assert world.statements_of(lambda: bob.say("And now?")) == ["insert exchanges"]
    assert world.statements_of(lambda: alice.say("And now?")) == ["read", "insert exchanges"]
