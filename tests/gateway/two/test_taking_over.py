"""What a gateway held that was killed is taken over by another, and its clients are answered there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import Gate, Reply, Seen, say
from tests.gateway.two.people import Agent
from tests.gateway.two.world import PATIENCE_S, Lost, World
from tests.postgres import execute


class HeldWorld(World):
    """Its upstream holds the replies to a text."""

    held = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.came, self.gate = Gate(), Gate()

    def _answer(self, seen: Seen) -> Reply:
        if self.held and str(seen.messages[-1]["content"]).endswith(self.held):
            self.came.open()
            return say("Late.", hold_before_headers=self.gate)
        return super()._answer(seen)

    def let_all_go(self) -> None:
        self.held = ""
        self.gate.open()


@pytest.fixture
def world(tmp_path: Path, url: str) -> Iterator[HeldWorld]:
    with HeldWorld(tmp_path, gateways=2, url=url) as made:
        yield made


def test_a_send_is_answered_once_where_its_gateway_died(world: HeldWorld, url: str) -> None:
    agent = Agent(world, "qagx", 0)
    agent.make()
    path = f"/v1/agents/{agent.id}/messages"
    body = {"messages": [{"role": "user", "content": "qagx1z is here", "otid": "o1"}]}
    world.held = "qagx1z is here"
    lost: list[Lost] = []

    def send() -> None:
        try:
            world.gateways[0].ask("POST", path, body)
        except Lost as error:
            lost.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    world.came.wait_sync()
    world.gateways[0].kill()
    thread.join(PATIENCE_S)
    assert lost
    world.let_all_go()
    # As if the time of the lease on the conversation had passed. Then no process performs that run any more.
    execute(url, "UPDATE conversation_locks SET held_until = held_until - 1000")
    for _ in range(2):
        reply = world.gateways[1].ask("POST", path, body)
        assert reply.status == 200, reply.body
        assert [m.get("content") for m in reply.json["messages"]] == ["Heard qagx1z is here."]
    assert agent._listed(world.gateways[1]) == ["qagx1z is here"]
