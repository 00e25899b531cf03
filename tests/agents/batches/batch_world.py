"""A gateway whose agents get batches, with three upstreams.

with serve_batches(tmp_path) as world:
    agents = world.create_agents(3)
    batch = world.create_batch(agents, "Who are you?")
    assert world.wait_for_end(batch)["counts"]["completed"] == 3

The upstreams `open` and `claude` have batch servers. `up` has none, so the gateway sends the requests of a batch one by
one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.settings import BatchSettings, ProfileSettings, ToolSettings, UpstreamSettings
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.batches import Answer, AnthropicBatchServer, BatchServer, OpenAIBatchServer, Outcome
from tests.doubles.tool_server import OK, ToolServer, served
from tests.doubles.upstream import StrictUpstream
from tests.patience import becomes

Json = dict[str, Any]
PATH = "/v1/messages/batches"
# The time is short, since a test waits for it.
POLL = BatchSettings(poll_s=0.05)
END_STATUSES = ("completed", "failed", "cancelled")
# A model at each upstream.
MODELS = ["open/m", "claude/claude-opus-4-6", "up/m"]
# The usage that the batch servers report for each reply.
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@dataclass(kw_only=True)
class BatchWorld(LettaWorld):
    """A gateway with the upstreams `up`, `open` and `claude`."""

    # The batch servers of `open` and `claude`.
    openai: OpenAIBatchServer
    anthropic: AnthropicBatchServer

    def find_server(self, model: str) -> BatchServer:
        """Returns the batch server of a model, which is one of the first two of `MODELS`."""
        return self.openai if model.startswith("open/") else self.anthropic

    def create_agents(self, count: int, model: str = "open/m", **options: Any) -> list[str]:
        """Creates agents, and returns their ids. options: parameters of `agents.create`."""
        options = {"tools": ["core_memory_append"], **options, "model": model}
        return [self.agent(**options, name=f"a{n}-{len(model)}").id for n in range(count)]

    def create_buyers(self, count: int, shop: ToolServer, model: str = "open/m") -> list[str]:
        """Creates agents with the tool `buy`, a webhook of `shop`, and returns their ids."""
        parameters = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
        schema = {"name": "buy", "description": "Buy.", "parameters": parameters}
        tool = {"source_type": "webhook", "source_code": f"{shop.url}/buy", "json_schema": schema}
        status, reply = self.ask("POST", "/v1/tools/", tool)
        assert status == 200, reply
        return self.create_agents(count, model, tools=["buy"])

    def create_batch(self, agents: Sequence[str], *texts: str, **options: Any) -> Json:
        """Creates a batch with one request for each agent.

        agents: the ids of the agents.
        texts: the message for each agent, or one message for all; by default "Hi".
        options: further fields of each request.
        """
        messages = texts if len(texts) == len(agents) else (texts or ("Hi",)) * len(agents)
        requests = [
            {"agent_id": agent, **make_message(text), **options}
            for agent, text in zip(agents, messages, strict=True)
        ]
        status, batch = self.ask("POST", PATH, {"requests": requests})
        assert status == 200, batch
        return batch

    def cancel_batch(self, batch: Json) -> Json:
        status, cancelled = self.ask("PATCH", f"{PATH}/{batch['id']}/cancel")
        assert status == 200, cancelled
        return cancelled

    def retrieve(self, batch: Json) -> Json:
        """Returns a batch as it is now."""
        status, current = self.ask("GET", f"{PATH}/{batch['id']}")
        assert status == 200, current
        counts = current["counts"]
        assert counts["total"] == sum(count for name, count in counts.items() if name != "total")
        return current

    def list_items(self, batch: Json) -> list[Json]:
        _, items = self.ask("GET", f"{PATH}/{batch['id']}/items?limit=1000")
        return items

    def list_messages(self, agent: str) -> list[str]:
        """Returns the messages of an agent as "<type>: <text>", oldest first, without its system message."""
        messages = spoken(self.letta.agents.messages.list(agent, order="asc"))
        return [f"{message.message_type}: {read_text(message)}" for message in messages]

    def read_block(self, agent: str, label: str = "human") -> str:
        return self.letta.agents.blocks.retrieve(label, agent_id=agent).value

    def count_tokens(self) -> int:
        """Returns the tokens that all batches have used today."""
        day = int(self.world.clock() // 86_400)
        return self.world.gateway.call(self.world.store.usage.count_batch_tokens("default", day))

    # -- waiting

    def wait_for_end(self, batch: Json) -> Json:
        """Waits until a batch has ended, and returns it."""
        return self.wait_for(batch, lambda current: current["status"] in END_STATUSES)

    def wait_for(self, batch: Json, condition: Callable[[Json], bool]) -> Json:
        """Waits until a batch meets a condition, while the clock moves on. Returns the batch."""

        def retrieve_if_met() -> Json | None:
            current = self.retrieve(batch)
            return current if condition(current) else None

        return becomes(retrieve_if_met, pause=self.pass_poll_interval, explain=lambda: self.retrieve(batch))

    def wait_for_no_job(self) -> None:
        """Waits until no batch has a job, while the clock moves on."""
        jobs = "SELECT 1 FROM jobs WHERE kind = 'batch'"
        becomes(lambda: not self.world.query(jobs), pause=self.pass_poll_interval)

    def wait_until_idle(self) -> bool:
        """Waits until the job of each batch is due later, while the clock stands. Returns True, for conditions."""
        jobs = "SELECT state, due FROM jobs WHERE kind = 'batch'"
        return becomes(
            lambda: all(
                state == "retrying" and due > self.world.clock() for state, due in self.world.query(jobs)
            )
        )

    def pass_poll_interval(self) -> None:
        """Moves the clock by the time after which a provider is polled, and gives the workers time for the poll."""
        self.world.clock.sleep(1.0)
        gateway = self.world.gateway
        gateway.loop.call_soon_threadsafe(gateway.app.services.store.jobs.wake_here)
        time.sleep(0.02)


@contextmanager
def serve_batches(
    folder: Path,
    answer: Answer | None = None,
    *profiles: ProfileSettings,
    held: bool = False,
    **options: Any,
) -> Iterator[BatchWorld]:
    """Serves a gateway.

    answer: a function that returns the outcome of a request in a batch; None: each reply is "Hello.".
    held: whether the batch servers hold batches until `finish`.
    options: parameters of `letta`.
    """
    answer = answer or (lambda custom_id, body: Outcome(text="Hello."))
    with ExitStack() as stack:
        upstream = stack.enter_context(StrictUpstream())
        openai = stack.enter_context(OpenAIBatchServer(answer, held=held))
        anthropic = stack.enter_context(AnthropicBatchServer(answer, held=held))
        upstreams = (
            UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": True}),
            UpstreamSettings("open", base_url=openai.base_url, api_key="sk-own", batches="openai"),
            UpstreamSettings("claude", kind="anthropic", base_url=anthropic.base_url, api_key="sk-ant-own"),
        )
        world = stack.enter_context(
            letta(upstream, folder, *profiles, **{"upstreams": upstreams, "batch": POLL, **options})
        )
        yield BatchWorld(world.world, world.letta, world.others, openai=openai, anthropic=anthropic)


@contextmanager
def serve_batches_and_tools(
    folder: Path, answer: Answer | None = None
) -> Iterator[tuple[BatchWorld, ToolServer]]:
    """Yields a gateway, and a server that its tools and its callbacks may call."""
    with served(OK) as server:
        tools = ToolSettings(hosts=(server.url,), private_hosts=(server.url,))
        with serve_batches(folder, answer, tools=tools) as world:
            yield world, server


# -- requests, and answers to them


def make_message(text: str) -> Json:
    """Returns the fields of a send with this message."""
    return {"messages": [{"role": "user", "content": text}]}


def read_text(message: Any) -> str:
    """Returns the text of a message as Letta's client has it; of a call, the name of its tool."""
    if message.message_type == "tool_call_message":
        return str(message.tool_call.name)
    return str(getattr(message, "content", None) or getattr(message, "tool_return", ""))


def read_question(body: Json) -> str:
    """Returns the text of the user's newest message in a request for a model."""
    for message in reversed(body["messages"]):
        content = message["content"]
        if message["role"] != "user":
            continue
        parts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
        if parts:
            return str(parts[-1])
    raise AssertionError(body)


def read_results(body: Json) -> list[str]:
    """Returns the results of tools in a request for a model, oldest first."""
    results: list[str] = []
    for message in body["messages"]:
        content = message["content"]
        if message["role"] == "tool":
            results.append(content)
        elif isinstance(content, list):
            contents = [part["content"] for part in content if part["type"] == "tool_result"]
            results += [each if isinstance(each, str) else each[0]["text"] for each in contents]
    return results


def make_append_call(text: str, label: str = "human") -> tuple[str, Json]:
    """Returns the name and the arguments of a call that adds text to a block."""
    return "core_memory_append", {"label": label, "content": text}


def answer_by_buying(custom_id: str, body: Json) -> Outcome:
    """Buys a fern, then quotes the result."""
    if results := read_results(body):
        return Outcome(text=f"It said {results[0]}.")
    return Outcome(calls=(("buy", {"what": "a fern"}),))
