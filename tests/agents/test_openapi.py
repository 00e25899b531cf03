"""`/openapi.json` against the routes that are served, and random requests made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from starlette.routing import Route

from gateway.agents.api import _route
from gateway.agents.api._refused import REFUSED_PATHS
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import StrictUpstream
from tests.patience import PATIENCE_S

# A minute for all of it; more by hand.
EXAMPLES = 6
# Paths that without the slash are OpenAI's, or may be.
SHARED = ("/v1/models/", "/v1/conversations/", "/v1/messages/")


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def described(world: LettaWorld) -> dict[str, Any]:
    status, document = world.ask("GET", "/openapi.json")
    assert status == 200
    assert isinstance(document, dict)
    return document


def test_each_route_is_described_and_no_other(world: LettaWorld) -> None:
    found = {
        (method.upper(), path) for path, methods in described(world)["paths"].items() for method in methods
    }
    refused = {(method, path.rstrip("/")) for methods, path, _ in REFUSED_PATHS for method in methods}
    served = set()
    for route in world.world.gateway.app._router.routes:
        if isinstance(route, Route) and type(route.endpoint).__module__ == _route.__name__:
            path = route.path.replace(":path}", "}").replace(":conversation}", "}")
            for method in (route.methods or set()) - {"HEAD"}:
                bare = path if path in SHARED else path.rstrip("/")
                if f"{path}/" in SHARED:
                    continue
                if (method, route.path.rstrip("/")) not in refused and path != "/openapi.json":
                    served.add((method, bare))
    plain = {
        (method, route.path.replace(":path}", "}"))
        for route in world.world.gateway.app._router.routes
        if isinstance(route, Route) and route.path.startswith(("/v1/memory/", "/v1/manage/"))
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert found == served | plain
    assert len(found) > 50


def test_each_operation_has_its_own_name_and_parameters(world: LettaWorld) -> None:
    operations = [each for methods in described(world)["paths"].values() for each in methods.values()]
    names = [each["operationId"] for each in operations]
    assert len(names) == len(set(names))
    for each in operations:
        assert each["summary"].endswith(".")
        places = [(parameter["in"], parameter["name"]) for parameter in each["parameters"]]
        assert len(places) == len(set(places))


def test_random_requests_are_answered(world: LettaWorld) -> None:
    """No request that the document allows, nor one that it does not, ends in a fault of the gateway's."""
    # What operators ask for needs their key: tests/gateway/usage/test_described.py.
    schema = schemathesis.openapi.from_dict(described(world)).exclude(path_regex="^/v1/manage/")
    agent = world.agent()
    world.letta.agents.messages.create(agent.id, input="Hi")
    named: dict[str, Any] = {
        "agent_id": agent.id,
        "block_id": agent.blocks[0].id,
        "block_label": "human",
        "tool_id": agent.tools[0].id,
        "tool_name": agent.tools[0].name,
        "run_id": next(iter(world.letta.runs.list())).id,
        "step_id": next(iter(world.letta.steps.list())).id,
        # A real one would be started with each request (test_client_mcp.py does).
        "mcp_server_id": f"mcp_server-{'0' * 32}",
        "message_id": next(iter(world.letta.agents.messages.list(agent.id))).id,
        "memory_id": world.letta.agents.passages.create(agent.id, text="A fern.")[0].id,
    }
    archive = world.letta.archives.create(name="plants")
    passage = world.letta.archives.passages.create(archive.id, text="A moss.")
    named |= {"archive_id": archive.id, "passage_id": passage.id}
    sleeper = world.letta.agents.create(model="openai/m", enable_sleeptime=True)
    named["group_id"] = sleeper.id.replace("agent-", "group-")
    named["conversation_id"] = world.letta.conversations.create(agent_id=agent.id).id
    folder = world.letta.folders.create(name="sheets")
    file = world.letta.folders.files.upload(folder.id, file=("a.txt", b"A moss."))
    reply = world.world.post([{"role": "user", "content": "Hi"}])
    named["id"] = dict(reply.headers)["x-mnemogate-request-id"]
    named |= {"folder_id": folder.id, "file_id": file.id, "name": "sheets"}
    sends = [{"agent_id": agent.id, "input": "Hi"}]
    _, batch = world.ask("POST", "/v1/messages/batches", {"requests": sends})
    named["batch_id"] = batch["id"]
    ann = {"identifier_key": "user_1", "name": "Ann", "identity_type": "user"}
    named["identity_id"] = world.ask("POST", "/v1/identities", ann)[1]["id"]
    faults: list[str] = []
    asked = 0
    # Each request would else open a connection, and look for proxies and for passwords in the user's files.
    with requests.Session() as session:
        session.trust_env = False
        for result in schema.get_all_operations():
            asked += _ask(result.ok(), world.world.gateway.url, session, named, faults)
    assert faults == []
    assert asked > 300


def _ask(
    operation: Any, url: str, session: requests.Session, named: dict[str, Any], faults: list[str]
) -> int:
    """Sends random requests of one operation. Returns how many; adds what should not have happened."""
    count = 0

    @settings(
        max_examples=EXAMPLES, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @seed(7)
    @given(case=operation.as_strategy(), with_names=st.booleans())
    def ask(case: Any, with_names: bool) -> None:
        nonlocal count
        # What an operation deletes others would miss.
        if with_names and case.method != "DELETE":
            case.path_parameters = {name: named[name] for name in case.path_parameters or {}}
        response = case.call(base_url=url, session=session, timeout=PATIENCE_S)
        count += 1
        told = (
            f"{case.method} {case.formatted_path} {case.body!r}: {response.status_code} {response.text[:200]}"
        )
        field = "error" if case.path.startswith("/v1/memory/") else "detail"
        described = operation.definition.raw["responses"]
        if (
            response.status_code >= 500
            or (response.status_code >= 400 and field not in response.json())
            or str(response.status_code) not in described
        ):
            faults.append(told[:1000])

    ask()
    return count
