"""A gateway takes over the work of another one that was killed, and answers its clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import Gate, Reply, UpstreamRequest, say
from tests.gateway.two.deployment import PATIENCE_S, Deployment, NoReply
from tests.gateway.two.simulated_users import AgentUser
from tests.postgres import execute


class HoldingDeployment(Deployment):
    """A deployment whose upstream can hold its reply to one text."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The end of the message whose reply is held. Empty: none.
        self.held_text = ""
        # Opened when a request with this message has arrived.
        self.arrived = Gate()
        self._release_gate = Gate()

    def _answer(self, request: UpstreamRequest) -> Reply:
        if self.held_text and str(request.messages[-1]["content"]).endswith(self.held_text):
            self.arrived.open()
            return say("Late.", hold_before_headers=self._release_gate)
        return super()._answer(request)

    def release(self) -> None:
        self.held_text = ""
        self._release_gate.open()


@pytest.fixture
def deployment(tmp_path: Path, url: str) -> Iterator[HoldingDeployment]:
    with HoldingDeployment(tmp_path, gateways=2, url=url) as running:
        yield running


def test_a_send_is_answered_once_after_its_gateway_was_killed(
    deployment: HoldingDeployment, url: str
) -> None:
    user = AgentUser(deployment, "qagx", 0)
    user.create_agent()
    path = f"/v1/agents/{user.agent_id}/messages"
    body = {"messages": [{"role": "user", "content": "qagx1z is here", "otid": "o1"}]}
    deployment.held_text = "qagx1z is here"
    errors: list[NoReply] = []

    def send() -> None:
        try:
            deployment.gateways[0].ask("POST", path, body)
        except NoReply as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    deployment.arrived.wait_sync()
    deployment.gateways[0].kill()
    thread.join(PATIENCE_S)
    assert errors
    deployment.release()
    # The lease on the conversation has ended, so no process performs the run any more.
    execute(url, "UPDATE conversation_locks SET held_until = held_until - 1000")
    for _ in range(2):
        reply = deployment.gateways[1].ask("POST", path, body)
        assert reply.status == 200, reply.body
        assert [m.get("content") for m in reply.json["messages"]] == ["Heard qagx1z is here."]
    assert user.list_messages(deployment.gateways[1]) == ["qagx1z is here"]
