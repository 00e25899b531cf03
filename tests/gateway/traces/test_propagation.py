"""A trace goes on from its caller to the gateway and to upstreams on its network, and nothing else goes on with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.core.definition import ToolDefinition
from gateway.run.upstream import propagation
from gateway.settings import ToolSettings, UpstreamSettings
from gateway.traces.otlp import OtlpSettings
from tests.agents.letta import letta
from tests.agents.test_foreign_tools import SCHEMA
from tests.doubles.collector import StrictCollector, trees
from tests.doubles.tool_server import OK, served
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import World, remember

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"{PARENT[:-1]}0"
SENT = {"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "user=alice"}
HI = [{"role": "user", "content": "Hi"}]


@contextmanager
def serving(
    upstream: StrictUpstream, place: Path, collector: StrictCollector | None, **fields: Any
) -> Iterator[World]:
    takes: Any = {"responses": "stored"}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes, **fields),)
    otlp = None if collector is None else OtlpSettings(collector.url, delay_s=0.01)
    with remember(upstream, place, upstreams=upstreams, otlp=otlp) as world:
        yield world


@pytest.fixture
def collector() -> Iterator[StrictCollector]:
    with StrictCollector() as found:
        yield found


def got(world: World) -> tuple[str | None, str | None]:
    """Returns the trace headers of the last request that the upstream has seen."""
    headers = world.upstream.last.headers
    assert "baggage" not in headers
    return headers.get("traceparent"), headers.get("tracestate")


def test_a_trace_leads_from_the_caller_to_the_upstream(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector
) -> None:
    with serving(upstream, tmp_path, collector) as world:
        for user in ({}, {"user": "alice"}):
            reply = world.post(HI, SENT, **user)
            assert reply.headers["x-mnemogate-trace"] == TRACE
            assert world.gateway.last_line()["trace_id"] == TRACE
            parent, state = got(world)
            world.settle()
            assert world.gateway.app.services.tracer is not None
            root = trees(collector.wait_for(world.gateway.app.services.tracer._queued_spans))[-1]
            assert root.span.trace_id.hex() == TRACE
            assert root.span.parent_span_id.hex() == PARENT.split("-")[2]
            # Never the caller's span: the one of this very call.
            assert parent == f"00-{TRACE}-{root.find('chat m').span.span_id.hex()}-01"
            assert state == "vendor=1"
        # It is the root of a trace where the caller has none, or one that is wrong.
        for headers in ({}, {"traceparent": PARENT.upper(), "tracestate": "vendor=1"}):
            reply = world.post(HI, headers)
            parent, state = got(world)
            assert parent is not None
            assert parent.split("-")[1] == reply.headers["x-mnemogate-trace"] != TRACE
            assert state is None
        reply = world.post(HI, {**SENT, "traceparent": UNSAMPLED})
        assert "x-mnemogate-trace" not in reply.headers
        assert "trace_id" not in world.gateway.last_line()
        assert got(world) == (UNSAMPLED, "vendor=1")
        world.gateway.ask(
            "POST",
            "/v1/embeddings",
            b'{"model":"e","input":"a"}',
            {**SENT, "content-type": "application/json"},
        )
        assert (got(world)[0] or "").startswith(f"00-{TRACE}-")
        assert got(world)[0] != PARENT


def test_without_traces_the_headers_go_on_as_they_came(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serving(upstream, tmp_path, None) as world:
        for user in ({}, {"user": "alice"}):
            world.post(HI, SENT, **user)
            assert got(world) == (PARENT, "vendor=1")
            world.post(HI, **user)
            assert got(world) == (None, None)


def test_a_public_upstream_gets_what_a_caller_began(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagation, "is_private", lambda url: False)
    with serving(upstream, tmp_path, collector) as world:
        world.post(HI)
        assert got(world) == (None, None)
        world.post(HI, SENT)
        parent, state = got(world)
        assert (parent or "").startswith(f"00-{TRACE}-")
        assert state == "vendor=1"


def test_a_tool_of_an_agent_gets_nothing(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector
) -> None:
    with served(OK) as server:
        otlp, tools = OtlpSettings(collector.url, delay_s=0.01), ToolSettings(private_hosts=(server.url,))
        with letta(upstream, tmp_path, otlp=otlp, tools=tools) as made:
            registry = made.world.gateway.app.services.agents.registry
            assert registry is not None
            tool = ToolDefinition(SCHEMA, "webhook", f"{server.url}/hook")
            made.world.gateway.call(registry.tools.create("default", "lookup", tool))
            agent = made.letta.agents.create(model="openai/m", tools=["lookup"])
            upstream.queue(call_tools(Call("lookup", {"q": "a"})), say("Done."))
            made.letta.agents.messages.create(agent.id, input="Look it up.", extra_headers=SENT)
            assert (got(made.world)[0] or "").startswith(f"00-{TRACE}-")
        (head,) = server.heads
        assert not any(name in head.lower() for name in SENT)


@pytest.mark.parametrize("traced", [True, False])
def test_an_upstream_that_shall_get_nothing(
    upstream: StrictUpstream, tmp_path: Path, collector: StrictCollector, traced: bool
) -> None:
    with serving(upstream, tmp_path, collector if traced else None, propagate="never") as world:
        world.post(HI, SENT)
        assert got(world) == (None, None)
