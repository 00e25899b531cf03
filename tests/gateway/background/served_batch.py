"""A batch over agents that a process serves, each item in three rounds, and what its model answers."""

from __future__ import annotations

import json
from typing import Any

from tests.agents.batches.batch_world import PATH, make_append_call, read_question, read_results
from tests.doubles.batches import Outcome
from tests.doubles.upstream import Call, Reply, UpstreamRequest, call_tools, say
from tests.gateway.process import Process

Json = dict[str, Any]
ITEMS, ROUNDS = 3, 3
SETTINGS = """\
[batch]
poll_s = 0.05

[[upstreams]]
name = "far"
kind = "{kind}"
base_url = "{base_url}"
api_key = "{key}"
batches = "{batches}"
"""


def answer(custom_id: str, body: Json) -> Outcome:
    """Answers a request of a round: calls first, and a text in the last round."""
    made = len(read_results(body))
    if made == ROUNDS - 1:
        return Outcome(text=f"{read_question(body)} is done.")
    return Outcome(calls=(make_append_call(f"{read_question(body)} {made}."),))


def answer_item(request: UpstreamRequest) -> Reply:
    """Answers in the same way a request that a gateway makes itself, where the upstream has no batches."""
    outcome = answer("", request.json)
    calls = [Call(name, arguments) for name, arguments in outcome.calls]
    return call_tools(*calls) if calls else say(outcome.text)


def ask(gateway: Process, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    reply = gateway.ask(method, path, data, {"content-type": "application/json"})
    assert reply.status == 200, reply.body
    return reply.json


def make(gateway: Process, model: str) -> tuple[list[str], Json]:
    """Makes agents and sends them a batch."""
    agents = []
    for n in range(ITEMS):
        blocks = [{"label": "human", "value": "Notes:"}]
        body = {"name": f"a{n}", "model": model, "memory_blocks": blocks, "tools": ["core_memory_append"]}
        agents.append(ask(gateway, "POST", "/v1/agents/", body)["id"])
    requests = [{"agent_id": agent, "input": f"Task {n}"} for n, agent in enumerate(agents)]
    return agents, ask(gateway, "POST", PATH, {"requests": requests})
