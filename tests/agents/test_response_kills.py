"""A gateway is killed during an agent's response in the background: each call is made once, and the response ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.core.turn.calls import INTERRUPTED_RESULT
from gateway.run.responses.response_attempt import FORGOTTEN_ERROR
from tests.agents.agent_deployment import AgentDeployment, AgentGateway
from tests.doubles.upstream import Call, Reply, UpstreamRequest, call_tools, say
from tests.patience import becomes


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[AgentDeployment]:
    with AgentDeployment(tmp_path) as running:
        yield running


def create_response(gateway: AgentGateway, agent: str, *, stream: bool) -> Any:
    """Creates a response in the background, and returns it as the gateway first reports it."""
    options: Any = {"model": f"agent/{agent}", "input": "ring", "background": True, "user": "zoe"}
    with gateway.process.client() as client:
        if not stream:
            return client.responses.create(**options)
        with client.responses.create(**options, stream=True) as events:
            return next(iter(events)).response


def wait_for_response(gateway: AgentGateway, response_id: str) -> Any:
    """Returns a response when it has ended."""
    with gateway.process.client() as client:

        def find_ended() -> Any:
            response = client.responses.retrieve(response_id)
            return None if response.status in ("queued", "in_progress") else response

        return becomes(find_ended)


def tool_results(request: UpstreamRequest) -> list[str]:
    return [message["content"] for message in request.messages if message["role"] == "tool"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_a_killed_gateway_are_not_made_again(deployment: AgentDeployment, stream: bool) -> None:
    """The model is not asked again for the reply with the calls: it might make other calls."""
    replies_with_calls = 0

    def call_other_bells(request: UpstreamRequest) -> Reply:
        nonlocal replies_with_calls
        if tool_results(request):
            return say("All rang.")
        bells = [("a", "b"), ("c", "d")][replies_with_calls]
        replies_with_calls += 1
        return call_tools(*(Call("ring", {"bell": bell}) for bell in bells), text="I ring.")

    deployment.intercept = call_other_bells
    deployment.webhook.held_bells.add("b")
    with deployment.serve() as gateway:
        agent = deployment.create_agent(gateway)
        response = create_response(gateway, agent, stream=stream)
        becomes(lambda: "b" in deployment.webhook.bells)
        becomes(lambda: deployment.query("SELECT 1 FROM run_texts WHERE kind = 'result'"))
        gateway.kill()
    deployment.webhook.held_bells.clear()
    with deployment.serve() as gateway:
        response = wait_for_response(gateway, response.id)
        assert (response.status, response.output_text) == ("completed", "I ring. All rang.")
        assert tool_results(deployment.upstream.last) == ["a rang", INTERRUPTED_RESULT]
        assert sorted(deployment.webhook.bells) == ["a", "b"]
        assert replies_with_calls == 1


def test_a_call_that_a_forgetting_erased_is_not_made_again(
    deployment: AgentDeployment,
) -> None:
    deployment.intercept = lambda request: call_tools(Call("ring", {"bell": "b"}))
    deployment.webhook.held_bells.add("b")
    with deployment.serve() as gateway:
        response = create_response(gateway, deployment.create_agent(gateway), stream=False)
        becomes(lambda: "b" in deployment.webhook.bells)
        gateway.kill()
    with closing(sqlite3.connect(deployment.folder / "m.db", isolation_level=None)) as database:
        database.execute("UPDATE run_texts SET data = x'7b7d' WHERE kind = 'call'")  # as `erase_texts` does
    deployment.release()
    with deployment.serve() as gateway:
        response = wait_for_response(gateway, response.id)
        assert (response.status, response.error.message) == ("failed", FORGOTTEN_ERROR)
    assert deployment.webhook.bells == ["b"]
