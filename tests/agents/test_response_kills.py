"""A response in the background of an agent whose gateway is killed: its calls are made once, and it goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.run.response_attempt import FORGOTTEN_ERROR
from tests.agents.kills import Killed, Serving, wait_for
from tests.doubles.upstream import Call, Reply, Seen, call_tools, say


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Killed]:
    with Killed(tmp_path) as made:
        yield made


def begin(gateway: Serving, agent: str, *, stream: bool) -> Any:
    """Returns a response that is made in the background."""
    options: Any = {"model": f"agent/{agent}", "input": "ring", "background": True, "user": "zoe"}
    with gateway.process.client() as client:
        if not stream:
            return client.responses.create(**options)
        with client.responses.create(**options, stream=True) as events:
            return next(iter(events)).response


def ended(gateway: Serving, id: str) -> Any:
    """Returns a response when it has ended."""
    with gateway.process.client() as client:

        def look() -> Any:
            found = client.responses.retrieve(id)
            return None if found.status in ("queued", "in_progress") else found

        return wait_for(look)


def results(seen: Seen) -> list[str]:
    return [m["content"] for m in seen.messages if m["role"] == "tool"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_a_killed_gateway_are_not_made_again(world: Killed, stream: bool) -> None:
    """The model, which may decide otherwise each time, is not asked again for the reply that made them."""
    asked = 0

    def script(seen: Seen) -> Reply:
        nonlocal asked
        if results(seen):
            return say("All rang.")
        asked += 1
        bells = [("a", "b"), ("c", "d")][asked - 1]
        return call_tools(*(Call("ring", {"bell": bell}) for bell in bells), text="I ring.")

    world.held = script
    world.webhook.held.add("b")
    with world.serve() as gateway:
        agent = world.agent(gateway)
        made = begin(gateway, agent, stream=stream)
        wait_for(lambda: "b" in world.webhook.bells or None)
        wait_for(lambda: world.query("SELECT 1 FROM run_texts WHERE kind = 'result'") or None)
        gateway.kill()
    world.webhook.held.clear()
    with world.serve() as gateway:
        found = ended(gateway, made.id)
        assert (found.status, found.output_text) == ("completed", "I ring. All rang.")
        assert results(world.upstream.last) == ["a rang", INTERRUPTED_RESULT]
        assert sorted(world.webhook.bells) == ["a", "b"]
        assert asked == 1


def test_where_a_forgetting_erased_what_was_called_nothing_is_called_again(world: Killed) -> None:
    world.held = lambda seen: call_tools(Call("ring", {"bell": "b"}))
    world.webhook.held.add("b")
    with world.serve() as gateway:
        made = begin(gateway, world.agent(gateway), stream=False)
        wait_for(lambda: "b" in world.webhook.bells or None)
        gateway.kill()
    with closing(sqlite3.connect(world.folder / "m.db", isolation_level=None)) as database:
        database.execute("UPDATE run_texts SET data = x'7b7d' WHERE kind = 'call'")  # as `erase_texts` does
    world.go()
    with world.serve() as gateway:
        found = ended(gateway, made.id)
        assert (found.status, found.error.message) == ("failed", FORGOTTEN_ERROR)
    assert world.webhook.bells == ["b"]
