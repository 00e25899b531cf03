"""A send to an agent notes why its first step recalled what it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.patience import PATIENCE_S


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def test_a_send_notes_what_its_first_step_recalled(world: LettaWorld) -> None:
    agent = world.agent(name="vera", tools=["recall_memory"])
    world.letta.agents.passages.create(agent.id, text="The cat of the house is called Zqmisox.")
    url = world.world.gateway.url
    world.upstream.queue(call_tools(Call("recall_memory", {"query": "cat"})), say("Zqmisox."))
    body = {"messages": [{"role": "user", "content": "What is the name of the cat of the house?"}]}
    reply = httpx.post(f"{url}/v1/agents/{agent.id}/messages", json=body, timeout=PATIENCE_S)
    assert reply.status_code == 200
    id = reply.headers["x-mnemogate-request-id"]
    assert world.world.query("SELECT count(*) FROM recalls") == [1]
    found = httpx.get(f"{url}/v1/memory/requests/{id}", timeout=PATIENCE_S).json()
    assert (found["why"], found["name"]) == ("recalled", agent.id)
    assert [(hit["kind"], hit["text"]) for hit in found["chosen"]] == [
        ("passage", "The cat of the house is called Zqmisox.")
    ]
    assert found["note"]
    # The newest message is stored with its note. Both counted as history, and the note as the note as well.
    parts = {each["part"]: each["tokens"] for each in found["window"]["parts"]}
    assert (parts["note"], parts["message"]) == (found["recalled_tokens"], 11)
    assert parts["history"] == 0
