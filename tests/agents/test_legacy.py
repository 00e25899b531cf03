"""The paths of Letta 0.6, as programs of then call them; and searches of messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letta_client import BadRequestError

from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import StrictUpstream, say
from tests.rows import each_row


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def labels(memory: Any) -> list[str]:
    return [block["label"] for block in memory["blocks"]]


def test_a_reset_that_says_in_its_query_what_it_wants(world: LettaWorld) -> None:
    agent = world.agent().id
    world.letta.agents.messages.create(agent, input="Hi")
    path = f"/v1/agents/{agent}/reset-messages?add_default_initial_messages=false"
    assert world.ask("PATCH", path)[0] == 200
    assert spoken(world.letta.agents.messages.list(agent).items) == []


def test_blocks_under_their_old_paths(world: LettaWorld) -> None:
    agent = world.agent().id
    path = f"/v1/agents/{agent}/memory"
    assert labels(world.ask("GET", path)[1]) == ["human"]
    status, memory = world.ask("PATCH", path, {"human": "Name: Zoe"})
    assert (status, memory["blocks"][0]["value"]) == (200, "Name: Zoe")
    assert world.ask("PATCH", path, {"human": "No", "nobody": "x"})[0] == 404
    assert world.ask("PATCH", path, {"human": 7})[0] == 422
    status, memory = world.ask("POST", f"{path}/block", {"label": "job", "value": "Baker"})
    assert (status, labels(memory)) == (200, ["human", "job"])
    assert world.ask("POST", f"{path}/block", {"label": "job", "value": "Smith"})[0] == 409
    assert [each["label"] for each in world.ask("GET", f"{path}/block")[1]] == ["human", "job"]
    assert world.ask("GET", f"{path}/block/human")[1]["value"] == "Name: Zoe"
    assert world.ask("PATCH", f"{path}/block/job", {"value": "Smith"})[1]["value"] == "Smith"
    assert labels(world.ask("DELETE", f"{path}/block/job")[1]) == ["human"]
    assert [each.label for each in world.letta.blocks.list()] == ["human"]


def test_a_block_that_others_see_is_only_taken_off(world: LettaWorld) -> None:
    one, two = world.agent(name="one"), world.agent(name="two", memory_blocks=[])
    world.letta.agents.blocks.attach(str(one.blocks[0].id), agent_id=two.id)
    assert labels(world.ask("DELETE", f"/v1/agents/{one.id}/memory/block/human")[1]) == []
    assert world.letta.agents.blocks.retrieve("human", agent_id=two.id).value == "Name: Ann"


def test_passages_and_tools_under_their_old_paths(world: LettaWorld) -> None:
    agent = world.agent(include_base_tools=False).id
    path = f"/v1/agents/{agent}/archival"
    status, (passage,) = world.ask("POST", path, {"text": "A fern."})
    assert (status, passage["text"]) == (200, "A fern.")
    world.ask("POST", path, {"text": "A rose."})
    rest = world.ask("GET", f"{path}?cursor={passage['id']}&user_id=somebody")[1]
    assert [each["text"] for each in rest] == ["A rose."]
    assert world.ask("DELETE", f"{path}/{passage['id']}")[0] == 200
    assert [each["text"] for each in world.ask("GET", path)[1]] == ["A rose."]
    tool = next(iter(world.letta.tools.list(name="send_message"))).id
    added = world.ask("PATCH", f"/v1/agents/{agent}/add-tool/{tool}")[1]
    assert [each["name"] for each in added["tools"]] == ["send_message"]
    assert world.ask("PATCH", f"/v1/agents/{agent}/remove-tool/{tool}")[1]["tools"] == []


def test_messages_in_their_old_form(world: LettaWorld) -> None:
    agent = world.agent().id
    world.upstream.queue(say("Hello."))
    world.letta.agents.messages.create(agent, input="Hi")
    status, messages = world.ask("GET", f"/v1/agents/{agent}/messages?msg_object=true&order=asc")
    assert status == 200
    system, *messages = messages
    assert (system["role"], "Name: Ann" in system["text"]) == ("system", True)
    assert [(each["role"], each["text"]) for each in messages] == [("user", "Hi"), ("assistant", "Hello.")]
    assert messages[0]["content"] == [{"type": "text", "text": "Hi"}]
    said = [{"role": "user", "content": "Work."}]
    status, run = world.ask("POST", f"/v1/agents/{agent}/messages/async", {"messages": said})
    assert (status, run["status"]) == (200, "created")


def test_messages_are_searched(world: LettaWorld) -> None:
    agent = world.agent().id
    world.upstream.queue(say("Noted: violets."), say("I see."))
    world.letta.agents.messages.create(agent, input="My garden has violets.")
    world.letta.agents.messages.create(agent, input="The train was late.")
    found: Any = world.letta.messages.search(query="violets", agent_id=agent)
    assert {each.content for each in found[:2]} == {"My garden has violets.", "Noted: violets."}
    assert {each.conversation_id for each in found} == {"default"}
    late: Any = world.letta.messages.search(query="violets", agent_id=agent, start_date="2099-01-01")
    assert late == []
    here: Any = world.letta.messages.search(query="violets", agent_id=agent, conversation_id="default")
    assert [each.message_id for each in here] == [each.message_id for each in found]
    with pytest.raises(BadRequestError, match="embedder"):
        world.letta.messages.search(query="violets", agent_id=agent, search_mode="vector")
    # Without an agent all of them are asked.
    everywhere: Any = world.letta.messages.search(query="violets")
    assert [each.message_id for each in everywhere] == [each.message_id for each in found]


@each_row(
    ("path", "words"),
    [
        ("/v1/jobs/", "/v1/runs"),
        ("/v1/jobs/active", "/v1/runs"),
        ("/v1/jobs/run-1", "/v1/messages/batches"),
        ("/v1/providers/", "settings"),
        ("/v1/providers/check", "settings"),
        ("/v1/telemetry/step-1", "not stored"),
        ("/v1/projects", "hosted"),
        ("/v1/agents/agent-1/groups", "managed_group"),
        ("/v1/groups/", "managed_group"),
        ("/v1/groups/group-1/messages", "those of its agents"),
    ],
)
def test_the_refusal_of_an_older_clients_call_has_the_reason(
    world: LettaWorld, path: str, words: str
) -> None:
    status, body = world.ask("GET", path)
    assert status == 400
    assert words in body["detail"]
