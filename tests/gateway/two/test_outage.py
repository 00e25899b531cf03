"""An outage of PostgreSQL longer than leases: a process that runs keeps its leases, and work is done once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.open_database import open_database
from gateway.run.memory import leases
from gateway.settings import DatabaseSettings
from storage.sql.store import Store
from tests.doubles.upstream import Gate, Reply, StrictUpstream, UpstreamRequest, say
from tests.gateway.two.conftest import PatientConnections
from tests.gateway.two.proxy import Proxy
from tests.patience import PATIENCE_S, becomes
from tests.postgres import execute, query
from tests.server import RawReply, RunningGateway, serve, settings_for


@dataclass
class Gateway:
    """A gateway that reaches the database through a proxy of its own."""

    running: RunningGateway
    proxy: Proxy

    @property
    def store(self) -> Store:
        return self.running.app.services.store

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> RawReply:
        data = None if body is None else json.dumps(body).encode()
        reply = self.running.ask(method, path, data, {"content-type": "application/json"})
        assert reply.status == status, reply.body
        return reply

    @property
    def performs_runs(self) -> bool:
        agents = self.running.app.services.agents
        return agents is not None and agents.run_service.run_worker.running_count > 0

    def wait_for_status(self, status: str) -> None:
        """Waits until `/health/ready` shows a status."""
        becomes(lambda: self.running.ask("GET", "/health/ready").json["status"] == status)


@dataclass
class World:
    """Two gateways, an agent, and an upstream."""

    # The URL of the database without a proxy.
    url: str
    upstream: StrictUpstream
    gateways: list[Gateway] = field(default_factory=list)
    # Opens when the upstream gets its first request.
    arrival: Gate = field(default_factory=Gate)
    # Lets the upstream answer the first request.
    gate: Gate = field(default_factory=Gate)
    # The id of the agent.
    agent: str = ""

    def answer(self, request: UpstreamRequest) -> Reply:
        if self.arrival.is_open:
            return say("Here again.")
        self.arrival.open()
        return say("Here.", hold_before_headers=self.gate)

    @property
    def path(self) -> str:
        return f"/v1/agents/{self.agent}/messages"

    @contextmanager
    def outage(self, owner: Gateway) -> Iterator[Gateway]:
        """Cuts both gateways off until all leases have ended, and the owner of leases until the end of the block.

        Yields the other gateway, which reaches the database again.
        """
        (other,) = [each for each in self.gateways if each is not owner]
        for each in self.gateways:
            each.proxy.refuse()
        for each in self.gateways:
            each.wait_for_status("degraded")
        self.end_leases()
        other.proxy.allow()
        other.wait_for_status("ok")
        yield other
        owner.proxy.allow()
        owner.wait_for_status("ok")

    def end_leases(self) -> None:
        for table in ("conversation_locks", "jobs"):
            execute(self.url, f"UPDATE {table} SET held_until = held_until - 50")

    def are_ended(self, table: str) -> bool:
        """Returns whether any lease of a table has ended."""
        now = "extract(epoch FROM clock_timestamp())"
        return bool(query(self.url, f"SELECT 1 FROM {table} WHERE held_until < {now}"))


class PatientLimits(PatientConnections, frozen=True):
    """PostgreSQL's limits, with times that no busy machine needs. An outage closes connections, which ends reads."""

    read_timeout_s: float = PATIENCE_S
    settle_s: float = PATIENCE_S


@pytest.fixture
def world(url: str, wait_for_connections: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("storage.postgres.database.PostgresLimits", PatientLimits)
    with ExitStack() as stack:
        upstream = StrictUpstream()
        world = World(url, upstream)
        upstream.script = world.answer
        stack.enter_context(upstream)
        for _ in range(2):
            proxy = stack.enter_context(Proxy(url))
            settings = settings_for(upstream, database=DatabaseSettings(url=proxy.url))
            running = stack.enter_context(serve(settings, lambda settings=settings: open_database(settings)))  # type: ignore[misc]
            world.gateways.append(Gateway(running, proxy))
        world.agent = world.gateways[0].ask("POST", "/v1/agents/", {"model": "openai/m"}).json["id"]
        yield world


def end_abandoned_runs(gateway: Gateway) -> None:
    """Ends abandoned runs, as after each outage and every half a minute."""
    agents = gateway.running.app.services.agents
    assert agents is not None
    gateway.running.call(agents.agent_runs.abandoned.end_all())


def test_a_send_is_answered_once_through_an_outage(world: World) -> None:
    owner = world.gateways[0]
    body = {"messages": [{"role": "user", "content": "Are you there?", "otid": "o1"}]}
    replies: list[RawReply] = []
    thread = threading.Thread(target=lambda: replies.append(owner.ask("POST", world.path, body)))
    thread.start()
    world.arrival.wait_sync()
    with world.outage(owner) as other:
        end_abandoned_runs(other)
    becomes(lambda: not world.are_ended("conversation_locks"))
    world.gate.open()
    thread.join(PATIENCE_S)
    replies.append(other.ask("POST", world.path, body))
    assert [m["content"] for reply in replies for m in reply.json["messages"]] == ["Here."] * 2
    assert [run["status"] for run in other.ask("GET", "/v1/runs/").json] == ["completed"]
    assert len(world.upstream.requests) == 1


def test_a_run_in_the_background_stays_with_the_gateway_that_performs_it(world: World) -> None:
    body = {"messages": [{"role": "user", "content": "Are you there?"}]}
    run = world.gateways[0].ask("POST", f"{world.path}/async", body).json["id"]
    world.arrival.wait_sync()
    (owner,) = [each for each in world.gateways if each.performs_runs]
    with world.outage(owner) as other:
        claim = other.store.jobs.leases.claim(["run"], lease_s=30.0, tries=100)
        assert other.running.call(claim) is None
    becomes(lambda: not world.are_ended("jobs"))
    world.gate.open()
    becomes(lambda: other.ask("GET", f"/v1/runs/{run}").json["status"] == "completed")
    assert len(world.upstream.requests) == 1


@pytest.mark.parametrize("is_retry", [True, False])
@pytest.mark.parametrize("is_cut_off", [True, False], ids=["cut off", "paused"])
def test_a_gateway_without_its_lease_writes_nothing_over_what_another_has_done(
    world: World, monkeypatch: pytest.MonkeyPatch, is_cut_off: bool, is_retry: bool
) -> None:
    monkeypatch.setattr(leases, "RENEW_INTERVAL_S", 3600.0)
    owner, other = world.gateways
    body = {"messages": [{"role": "user", "content": "Are you there?", "otid": "o1"}]}
    replies: list[RawReply] = []
    thread = threading.Thread(target=lambda: replies.append(owner.ask("POST", world.path, body, 409)))
    thread.start()
    world.arrival.wait_sync()
    if is_cut_off:
        owner.proxy.refuse()
        owner.wait_for_status("degraded")
    world.end_leases()
    limits = replace(other.store.database._limits, settle_s=0.0)  # type: ignore[attr-defined]
    other.store.database._limits = limits  # type: ignore[attr-defined]
    next_body = body if is_retry else {"messages": [{"role": "user", "content": "Hello?"}]}
    (message,) = other.ask("POST", world.path, next_body).json["messages"]
    assert message["content"] == "Here again."
    owner.proxy.allow()
    owner.wait_for_status("ok")
    world.gate.open()
    thread.join(PATIENCE_S)
    assert "taken this conversation over" in replies[0].body.decode()
    contents = [
        m["content"]
        for m in other.ask("GET", f"{world.path}?order=asc").json
        if m["message_type"] != "system_message"
    ]
    assert contents == ["Are you there?", *([] if is_retry else ["Hello?"]), "Here again."]
    assert [run["status"] for run in other.ask("GET", "/v1/runs/?order=asc").json] == ["failed", "completed"]
