"""A conversation and its forks at two gateways over one PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import StrictUpstream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def texts(world: LettaWorld, id: str) -> list[Any]:
    return [
        getattr(each, "content", None)
        for each in spoken(world.letta.conversations.messages.list(id, order="asc"))
    ]


def test_either_gateway_serves_and_deletes_a_fork(upstream: StrictUpstream, url: str) -> None:
    with ExitStack() as stack:
        worlds = [stack.enter_context(letta(upstream, url)) for _ in range(2)]
        first, second = worlds
        one = first.letta.conversations.create(agent_id=first.agent().id)
        list(first.letta.conversations.messages.create(one.id, input="One"))
        two = second.letta.conversations.fork(one.id)

        def send(n: int) -> None:
            world, id = worlds[n % 2], (one.id, two.id)[n // 2 % 2]
            list(world.letta.conversations.messages.create(id, input=f"{n}"))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(8)))
        for id, own in ((one.id, {"0", "1", "4", "5"}), (two.id, {"2", "3", "6", "7"})):
            said = texts(first, id)
            assert said == texts(second, id)
            assert said[:2] == ["One", "Ok."]
            assert set(said[2::2]) == own
            assert said[3::2] == ["Ok."] * 4
        first.letta.conversations.delete(one.id)
        assert len(texts(second, two.id)) == 8
        list(second.letta.conversations.messages.create(two.id, input="Last"))
        assert "One" not in [m["content"] for m in upstream.last.messages]
