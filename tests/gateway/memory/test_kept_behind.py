"""A plain turn is kept for the next one behind its own reply, and is found in the store until then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.commands import Committed, TurnWrite
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.sdk import World, agent, remember

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


class Keeping:
    """The keeping of committed turns, in the hands of a test: it waits for the test, or is put off."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._keep = world.store.turns.keep
        self.is_put_off = False
        self.put_off: list[tuple[TurnWrite, Committed]] = []
        self.may_begin = threading.Event()
        self.began_late: list[bool] = []
        monkeypatch.setattr(world.store.turns, "keep", self)

    def __call__(self, write: TurnWrite, done: Committed) -> None:
        if self.is_put_off:
            self.put_off.append((write, done))
        else:
            self.began_late.append(self.may_begin.wait(5.0))  # the gateway's loop stands still meanwhile
            self._keep(write, done)

    def go_on(self) -> None:
        for each in self.put_off:
            self._keep(*each)


@WAYS
def test_the_reply_leaves_before_its_turn_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], options: dict[str, Any]
) -> None:
    chat = world.chat(user="alice", headers=headers)
    chat.say("Hello.")
    world.settle()
    keeping = Keeping(world, monkeypatch)
    chat.say("Are you there?", **options)
    keeping.may_begin.set()
    world.settle()
    assert keeping.began_late == [True]


@WAYS
def test_a_request_that_comes_before_goes_on_from_the_turn(
    world: World, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], options: dict[str, Any]
) -> None:
    world.upstream.queue(*[say(f"Reply {n}.") for n in range(5)])
    chat = world.chat(user="alice", headers=headers)
    chat.say("Message 0.", **options)
    world.settle()
    keeping = Keeping(world, monkeypatch)
    keeping.is_put_off = True
    for n in range(1, 4):
        chat.say(f"Message {n}.", **options)
    world.settle()
    assert len(keeping.put_off) == 3
    world.gateway.call(_do(keeping.go_on))
    monkeypatch.undo()
    chat.say("Message 4.", **options)
    assert world.query("SELECT count(*) FROM conversations") == [1]
    depths = world.query("SELECT depth FROM exchanges WHERE standing <> 0 ORDER BY id")
    assert depths == sorted(set(depths))
    assert len(depths) == 5


async def _do(work: Any) -> None:
    work()
