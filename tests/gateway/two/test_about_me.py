"""A pause and a link of a person hold at each gateway of the database, in each dialect, and after a restart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.memories import speak
from tests.gateway.page.person import Person, person_of
from tests.gateway.sdk import Clock, World, remember
from tests.gateway.two.test_as_one import gateways


def bodies(text: str) -> dict[str, dict[str, Any]]:
    """A request with that question in each dialect, by its path."""
    messages = [{"role": "user", "content": text}]
    return {
        "/v1/chat/completions": {"messages": messages},
        "/v1/responses": {"input": text},
        "/v1/messages": {"messages": messages, "max_tokens": 50},
    }


def modes(worlds: Mapping[str, World], text: str) -> set[str]:
    """Returns what replies of all dialects say of alice's memory, at each gateway, whole and streamed.

    text: what is asked; words that were asked off the record before stay so.
    """
    found = set()
    for model, world in worlds.items():
        for path, body in bodies(text).items():
            for more in ({"stream": False}, {"stream": True}):
                headers = {"x-mnemogate-user": "alice", "x-mnemogate-memory": "on"}
                sent = json.dumps({"model": model, **body, **more}).encode()
                reply = world.gateway.ask("POST", path, sent, {"content-type": "application/json", **headers})
                assert reply.status == 200, (path, reply.body)
                found.add(reply.headers["x-mnemogate-memory"])
        world.settle()
    return found


def sizes(person: Person) -> list[tuple[str, int, int]]:
    return [(each["id"], each["messages"], each["bytes"]) for each in person.twin()["conversations"]]


def test_a_link_and_a_pause_hold_at_every_gateway(upstream: StrictUpstream, url: str) -> None:
    clock = Clock()
    with ExitStack() as stack, StrictAnthropic() as anthropic:
        claude = (UpstreamSettings("up", "anthropic", anthropic.base_url),)
        first = stack.enter_context(remember(upstream, url, clock=clock))
        with remember(anthropic, url, clock=clock, upstreams=claude) as second:
            worlds = {"gpt-4o-mini": first, "claude-opus-4-6": second}
            assert modes(worlds, "Hello?") == {"on"}
            here = person_of(first)
            there = Person(second, here.path)
            assert there.twin() == here.twin()
            stored = sizes(there)
            there.send("pause", paused="true")
            assert modes(worlds, "Who is paused?") == {"off"}
            assert here.twin()["paused"]
            assert sizes(here) == stored
        # The gateway at which it was paused is gone.
        assert modes({"gpt-4o-mini": first}, "And at the first?") == {"off"}
        with remember(anthropic, url, clock=clock, upstreams=claude) as third:
            again = Person(third, here.path)
            assert modes({"claude-opus-4-6": third}, "And at the third?") == {"off"}
            again.send("pause", paused="false")
            assert modes({"gpt-4o-mini": first, "claude-opus-4-6": third}, "Who goes on?") == {"on"}
            clock.sleep(3_601)
            assert [each.ask("GET").status for each in (here, again)] == [404, 404]


@pytest.mark.parametrize("names", [{}, {"x-mnemogate-conversation": "default"}], ids=["client", "stored"])
def test_a_pause_holds_before_another_gateway_is_notified(
    upstream: StrictUpstream, url: str, monkeypatch: pytest.MonkeyPatch, names: Mapping[str, str]
) -> None:
    with gateways(upstream, url, "default") as (first, second):
        agent = speak(second, "My cat is called Zqmisox.")
        messages = [{"role": "user", "content": "Zqmisox?"}]

        def send() -> tuple[int, str]:
            path, body = f"/v1/agents/agent-{agent.uid}/messages", json.dumps({"messages": messages}).encode()
            reply = second.gateway.ask("POST", path, body, {"content-type": "application/json"})
            return reply.status, reply.body.decode()

        assert send()[0] == 200
        monkeypatch.setattr(first.store.database, "notify", lambda channel: None)
        first.gateway.call(first.store.forgetting.pause(agent.id, first.clock()))
        for _ in range(2):
            said = second.post(messages, {"x-mnemogate-user": "alice", **names})
            assert said.headers["x-mnemogate-memory"] == "off"
            status, text = send()
            assert (status, "This memory is paused" in text) == (403, True)


def test_what_a_send_reads_does_not_hide_a_pause(
    upstream: StrictUpstream, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateways(upstream, url, "default") as (first, second):
        agent = speak(second, "My cat is called Zqmisox.")
        monkeypatch.setattr(first.store.database, "notify", lambda channel: None)
        first.gateway.call(first.store.forgetting.pause(agent.id, first.clock()))
        # A preview reads the stored conversation as a send does.
        assert second.gateway.ask("GET", f"/v1/agents/agent-{agent.uid}/context").status == 200
        said = second.post([{"role": "user", "content": "Zqmisox?"}], {"x-mnemogate-user": "alice"})
        assert said.headers["x-mnemogate-memory"] == "off"
