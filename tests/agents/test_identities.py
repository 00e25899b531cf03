"""Identities: users of an application, who own agents.

The client (1.12) attaches them and lists agents by them; it has no method that makes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from letta_client import ConflictError, NotFoundError

from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import agent as profile

PLAN = {"key": "plan", "value": "pro", "type": "string"}
SEATS = {"key": "seats", "value": 7, "type": "number"}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path, profile("helper")) as made:
        yield made


def identity(world: LettaWorld, key: str, method: str = "POST", **more: Any) -> Any:
    body = {"identifier_key": key, "name": "Ann", "identity_type": "user", **more}
    status, made = world.ask(method, "/v1/identities/", body)
    assert status == 200, made
    return made


def listed(world: LettaWorld, query: str) -> list[str]:
    status, found = world.ask("GET", f"/v1/agents/?{query}")
    assert status == 200, found
    return [each["name"] for each in found]


@pytest.mark.both
def test_the_agents_of_a_user_are_found_by_the_applications_own_key(world: LettaWorld) -> None:
    one, two = identity(world, "user_1", properties=[PLAN]), identity(world, "user_2")
    agent = world.letta.agents.create(name="a", model="openai/m", identity_ids=[one["id"]])
    world.letta.agents.create(name="b", model="openai/m", identity_ids=[one["id"], two["id"]])
    world.agent(name="c")
    assert agent.identity_ids == [one["id"]]
    assert agent.identities is not None
    (shown,) = agent.identities
    assert (shown.identifier_key, shown.identity_type, shown.name) == ("user_1", "user", "Ann")
    assert [(each.key, each.value) for each in shown.properties or ()] == [("plan", "pro")]
    assert listed(world, "identifier_keys=user_1&order=asc") == ["a", "b"]
    assert listed(world, "identifier_keys=user_2") == ["b"]
    assert listed(world, "identifier_keys=user_2&identifier_keys=user_1&order=asc") == ["a", "b"]
    assert listed(world, "identifier_keys=user_1&name=a&order_by=updated_at") == ["a"]
    assert listed(world, "identifier_keys=nobody") == []
    assert [each.name for each in world.letta.agents.list(identity_id=two["id"])] == ["b"]
    assert world.ask("GET", "/v1/agents/count?identifier_keys=user_1") == (200, 2)
    status, agents = world.ask("GET", f"/v1/identities/{one['id']}/agents?order=asc")
    assert (status, [each["name"] for each in agents]) == (200, ["a", "b"])


def test_an_identity_is_attached_and_detached(world: LettaWorld) -> None:
    one, two = identity(world, "user_1"), identity(world, "user_2")
    agent, identities = world.agent(), world.letta.agents.identities
    for _ in range(2):
        identities.attach(one["id"], agent_id=agent.id)
    assert world.letta.agents.retrieve(agent.id).identity_ids == [one["id"]]
    changed = world.letta.agents.update(agent.id, identity_ids=[two["id"], one["id"]])
    assert changed.identity_ids == [two["id"], one["id"]]
    assert world.letta.agents.update(agent.id, identity_ids=None).identity_ids == changed.identity_ids
    for _ in range(2):
        identities.detach(two["id"], agent_id=agent.id)
    assert world.letta.agents.update(agent.id, name="x").identity_ids == [one["id"]]
    assert world.letta.agents.update(agent.id, identity_ids=[]).identity_ids == []


def test_identities_are_made_listed_changed_and_deleted(world: LettaWorld) -> None:
    one = identity(world, "user_1", properties=[PLAN])
    team = identity(world, "team", name="Team", identity_type="org")
    path = f"/v1/identities/{one['id']}"
    assert world.ask("GET", path) == (200, one)
    assert world.ask("GET", "/v1/identities/") == (200, [team, one])
    assert world.ask("GET", "/v1/identities/?order=asc&limit=1") == (200, [one])
    assert world.ask("GET", f"/v1/identities/?order=asc&limit=1&after={one['id']}") == (200, [team])
    for query in ("identifier_key=team", "identity_type=org", "name=EA", "identity_type=org&limit=1"):
        assert world.ask("GET", f"/v1/identities/?{query}&order=asc") == (200, [team]), query
    assert world.ask("GET", "/v1/identities/count") == (200, 2)
    changed = world.ask("PATCH", path, {"name": "Bea", "properties": [SEATS]})[1]
    assert (changed["name"], changed["properties"]) == ("Bea", [PLAN, SEATS])
    assert world.ask("PUT", f"{path}/properties", [SEATS])[1]["properties"] == [SEATS]
    assert world.ask("PATCH", path, {"name": None, "identifier_key": "u1"})[1]["identifier_key"] == "u1"
    agent = world.agent(identity_ids=[one["id"]])
    assert world.ask("DELETE", path)[0] == 200
    assert world.ask("GET", path)[0] == 404
    assert world.letta.agents.retrieve(agent.id).identity_ids == []


def test_few_among_many_are_found_by_few_statements(world: LettaWorld) -> None:
    for n in range(6):
        identity(world, f"user_{n}", identity_type="user" if n else "org")

    def find() -> None:
        assert len(world.ask("GET", "/v1/identities/?identity_type=org&limit=1")[1]) == 1

    assert len(world.world.statements_of(find)) < 4


@pytest.mark.both
def test_a_key_is_one_identitys(world: LettaWorld) -> None:
    one, two = identity(world, "user_1", properties=[PLAN]), identity(world, "user_2")
    body = {"identifier_key": "user_1", "name": "Ann", "identity_type": "user"}
    status, told = world.ask("POST", "/v1/identities/", body)
    assert (status, told["detail"]) == (409, "There is an identity named 'user_1' already.")
    assert world.ask("PATCH", f"/v1/identities/{two['id']}", {"identifier_key": "user_1"})[0] == 409
    again = identity(world, "user_1", "PUT", name="Bea")
    assert again == {**one, "name": "Bea"}
    assert identity(world, "user_1", "PUT", properties=[SEATS])["properties"] == [SEATS]
    assert identity(world, "user_3", "PUT")["identifier_key"] == "user_3"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: identity(world, "user_4", "PUT", name=f"n{n}"), range(8)))
    assert len({each["id"] for each in made}) == 1


def test_the_properties_of_an_identity_are_bounded_together(world: LettaWorld) -> None:
    one, half = identity(world, "user_1"), "x" * 150_000
    path = f"/v1/identities/{one['id']}"
    assert world.ask("PATCH", path, {"properties": [{**PLAN, "value": half}]})[0] == 200
    status, told = world.ask("PATCH", path, {"properties": [{**PLAN, "key": "more", "value": half}]})
    assert status == 422
    assert told["detail"][0]["loc"] == ["body", "properties"]
    assert "262,144 bytes" in told["detail"][0]["msg"]
    assert [each["key"] for each in world.ask("GET", path)[1]["properties"]] == ["plan"]
    assert world.ask("PATCH", path, {"properties": [PLAN]})[1]["properties"] == [PLAN]


def test_impossible_values_of_an_identity(world: LettaWorld) -> None:
    one, agent = identity(world, "user_1"), world.agent()
    missing = f"identity-{'0' * 32}"
    with pytest.raises(NotFoundError, match=missing):
        world.letta.agents.create(model="openai/m", identity_ids=[missing])
    with pytest.raises(NotFoundError, match="identity"):
        world.letta.agents.identities.attach(missing, agent_id=agent.id)
    assert list(world.letta.agents.list(identity_id=missing)) == []
    block = agent.blocks[0].id
    for method, path in (
        ("GET", f"/v1/identities/{one['id']}/blocks"),
        ("PATCH", f"/v1/blocks/{block}/identities/attach/{one['id']}"),
        ("GET", f"/v1/blocks/?identity_id={one['id']}"),
    ):
        status, told = world.ask(method, path)
        assert status == 400, path
        assert "identity has agents alone" in told["detail"]
    status, told = world.ask("PATCH", f"/v1/identities/{one['id']}", {"agent_ids": [agent.id]})
    assert status == 400
    assert "identity_ids of the agent" in told["detail"]
    for body in ({"key": "plan"}, [{"key": "plan", "value": 1}], "x"):
        assert world.ask("PUT", f"/v1/identities/{one['id']}/properties", body)[0] == 422, body
    # A profile's user is a memory, which the settings configure.
    world.world.chat(user="alice", model="agent/helper").say("Hi")
    alice = next(iter(world.letta.agents.list(tags=["user:alice"])))
    with pytest.raises(ConflictError, match="settings"):
        world.letta.agents.identities.attach(one["id"], agent_id=alice.id)
