"""Batches through the agents API: a gateway that serves, and the providers' batch servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import BatchSettings, UpstreamSettings
from tests.doubles.batches import AnthropicBatchServer, Fate, OpenAIBatchServer
from tests.doubles.upstream import StrictUpstream
from tests.gateway.agents.letta import LettaWorld, letta

Json = dict[str, Any]
PATIENCE_S = 20.0
PATH = "/v1/messages/batches"
POLL = BatchSettings(poll_s=0.05)
ENDED = ("completed", "failed", "cancelled")


@dataclass
class Scene:
    """One gateway with three upstreams: `open` and `claude` have batch servers, `up` is asked live."""

    world: LettaWorld
    openai: OpenAIBatchServer
    anthropic: AnthropicBatchServer
    fates: dict[str, Callable[[Json], Fate]] = field(default_factory=dict)

    def agents(self, count: int, model: str = "open/m", **options: Any) -> list[str]:
        return [
            self.world.agent(model=model, name=f"a{n}-{model.replace('/', '-')}", **options).id
            for n in range(count)
        ]

    def post(self, agents: list[str], text: str = "Hi", **options: Any) -> Json:
        body = {"requests": [{"agent_id": id, **_said(text), **options} for id in agents]}
        status, batch = self.world.ask("POST", PATH, body)
        assert status == 200, batch
        return batch

    def get(self, batch: Json) -> Json:
        status, found = self.world.ask("GET", f"{PATH}/{batch['id']}")
        assert status == 200, found
        counts = found["counts"]
        assert counts["total"] == sum(count for name, count in counts.items() if name != "total")
        return found

    def ended(self, batch: Json) -> Json:
        return self.until(batch, lambda found: found["status"] in ENDED)

    def until(self, batch: Json, is_so: Callable[[Json], bool]) -> Json:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so(found := self.get(batch)):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def items(self, batch: Json) -> list[Json]:
        _, found = self.world.ask("GET", f"{PATH}/{batch['id']}/items?limit=1000")
        return found

    def said(self, agent: str) -> list[str]:
        """What an agent has been told and has said, oldest first, texts and calls."""
        found = self.world.letta.agents.messages.list(agent, order="asc")
        return [f"{m.message_type}: {_text(m)}" for m in found]

    def block(self, agent: str, label: str = "human") -> str:
        return self.world.letta.agents.blocks.retrieve(label, agent_id=agent).value


def _said(text: str) -> Json:
    return {"messages": [{"role": "user", "content": text}]}


def _text(message: Any) -> str:
    if message.message_type == "tool_call_message":
        return str(message.tool_call.name)
    return str(getattr(message, "content", None) or getattr(message, "tool_return", ""))


@contextmanager
def scene(
    folder: Path, answer: Callable[[str, Json], Fate] | None = None, *, held: bool = False, **options: Any
) -> Iterator[Scene]:
    answer = answer or (lambda custom_id, body: Fate(text="Hello."))
    with ExitStack() as stack:
        upstream = stack.enter_context(StrictUpstream())
        openai = stack.enter_context(OpenAIBatchServer(answer, held=held))
        claude = stack.enter_context(AnthropicBatchServer(answer, held=held))
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": True}),
            UpstreamSettings("open", base_url=openai.base_url, api_key="sk-own", batches="openai"),
            UpstreamSettings("claude", kind="anthropic", base_url=claude.base_url, api_key="sk-ant-own"),
        )
        made = stack.enter_context(
            letta(upstream, folder, **{"upstreams": upstreams, "batch": POLL, **options})
        )
        yield Scene(made, openai, claude)


MODELS = ["open/m", "claude/claude-opus-4-6", "up/m"]


@pytest.mark.parametrize("model", MODELS)
def test_each_agent_answers(model: str, tmp_path: Path) -> None:
    with scene(tmp_path) as s:
        agents = s.agents(3, model)
        batch = s.post(agents, "Who are you?")
        assert batch["id"].startswith("job-")
        found = s.ended(batch)
        assert found["status"] == "completed"
        assert found["counts"]["completed"] == 3
        for agent in agents:
            assert s.said(agent)[0] == "user_message: Who are you?"
            assert len(s.said(agent)) == 2
        _, messages = s.world.ask("GET", f"{PATH}/{batch['id']}/messages")
        assert len(messages["messages"]) == 6
