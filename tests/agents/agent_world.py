"""An agent of a gateway, to which a test sends without HTTP: by `AgentRuns`, with a view and a sink of its own.

with serve_agent(upstream, tmp_path) as world:
    assert world.send("Hi").texts == ["Ok."]
    assert world.upstream.last.messages == [...]
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from msgspec.structs import replace

from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.run import RunOutput, RunRequest, RunResult
from gateway.core.agent import AgentSpec
from gateway.run.receipt import Receipt
from gateway.run.sink import ClientGone, Presence
from gateway.settings import ModelSettings, ProfileSettings, ToolSettings, UpstreamSettings
from storage.database import Connection
from storage.records import Block, Exchange, Scope
from storage.run_records import Run
from storage.sql.agents import find_or_create_agent
from storage.sql.default_blocks import ensure_blocks
from tests.doubles.lines_view import LinesView
from tests.doubles.upstream import Gate, StrictUpstream
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S

HUMAN = Block(0, "human", "What is known of the user.", "", 1000)


@dataclass
class ListeningSink:
    """A client that collects the body that it is sent, and may leave."""

    presence: Presence = field(default_factory=Presence)
    has_started: bool = False
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    # Opened by the first piece of text.
    text_gate: Gate = field(default_factory=Gate)

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status

    async def write(self, data: bytes) -> None:
        if self.presence.is_gone:
            raise ClientGone
        self.has_started = True
        self.body += data
        if b"text" in self.body:
            self.text_gate.open()

    async def end(self) -> None:
        self.has_started = True

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.start(status, headers)
        await self.write(body)

    @property
    def is_gone(self) -> bool:
        return self.presence.is_gone

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return self.presence

    def leave(self) -> None:
        self.presence.leave()


@dataclass
class SendOutcome:
    """The result of a send, and its client."""

    result: RunResult
    sink: ListeningSink

    @property
    def run(self) -> Run:
        return self.result.run

    @property
    def lines(self) -> list[str]:
        """The lines of `LinesView` that the client has got."""
        return self.sink.body.decode().splitlines()

    @property
    def texts(self) -> list[str]:
        """The texts of the replies of all steps, without empty ones."""
        replies = [orjson.loads(step.shown_reply) for step in self.result.steps if step.shown_reply]
        return [reply["content"] for reply in replies if reply.get("content")]


@dataclass
class AgentWorld:
    """One agent of a running gateway."""

    world: World
    spec: AgentSpec
    scope: Scope

    @property
    def upstream(self) -> StrictUpstream:
        return self.world.upstream

    @property
    def agent_runs(self) -> AgentRuns:
        agent_runs = self.world.gateway.app.services.agents.agent_runs
        assert agent_runs is not None
        return agent_runs

    def make_other(self, **options: Any) -> AgentWorld:
        """Returns another agent of the same gateway. options: fields of its `AgentSpec` that differ."""
        return AgentWorld(self.world, replace(self.spec, **options), _make_scope())

    def begin_send(
        self, text: str = "Hi", sink: ListeningSink | None = None, **options: Any
    ) -> Future[SendOutcome]:
        """Begins a send. The future has its outcome.

        sink: the client; by default a new one.
        options: fields of `RunRequest`.
        """
        request = RunRequest(
            self.spec, self.scope, **{"messages": ({"role": "user", "content": text},), **options}
        )

        async def send() -> SendOutcome:
            client = sink or ListeningSink()
            result = await self.agent_runs.send(request, RunOutput(lambda _: LinesView, client, Receipt()))
            return SendOutcome(result, client)

        return asyncio.run_coroutine_threadsafe(send(), self.world.gateway.loop)

    def send(self, text: str = "Hi", **options: Any) -> SendOutcome:
        """Sends, and returns the outcome when the run has ended. options: as for `begin_send`."""
        return self.begin_send(text, **options).result(PATIENCE_S)

    def cancel_newest_run(self) -> None:
        """Cancels the newest run, as a caller of the agents API does."""

        async def cancel() -> None:
            run = await self.world.store.runs.find_newest_run(1, 1)
            assert run is not None
            await self.agent_runs.live.cancel(run)

        self.world.gateway.call(cancel())

    def hold_writer(self, gate: Gate) -> None:
        """Returns when the writer of the SQLite file waits for a gate."""
        entered = Gate()

        def wait(_: object) -> None:
            entered.open()
            gate.wait_sync()

        async def submit() -> None:
            self.world.store.database.writer.submit(wait)

        self.world.gateway.call(submit())
        entered.wait_sync()

    def close_client(self, sink: ListeningSink) -> None:
        """Has a client leave, in the gateway's event loop."""
        self.world.gateway.loop.call_soon_threadsafe(sink.leave)

    def load_path(self) -> list[Exchange]:
        """Returns the exchanges of the agent's default conversation, oldest first."""
        self.world.settle()

        async def read() -> list[Exchange]:
            agent = await self.world.store.agents.find(self.scope)
            if agent is None:
                return []
            conversation_path = await self.world.store.stored_paths.load_path(agent, "default", None)
            assert conversation_path is not None
            return list(conversation_path.path)

        return self.world.gateway.call(read())

    def list_messages(self) -> list[str]:
        """Returns the messages of the default conversation as "role: text", or "role: names of its calls"."""
        lines = []
        for exchange in self.load_path():
            if exchange.superseded and not exchange.active:
                continue
            messages = orjson.loads(exchange.input or b"[]")
            if exchange.shown_reply:
                messages.append(orjson.loads(exchange.shown_reply))
            for message in messages:
                calls = ",".join(call["function"]["name"] for call in message.get("tool_calls") or ())
                lines.append(f"{message['role']}: {message.get('content') or calls}")
        return lines

    def get_block(self, label: str = "human") -> Block:
        self.world.settle()

        async def read() -> Block:
            agent = await self.world.store.agents.find(self.scope)
            assert agent is not None
            return next(b for b in await self.world.store.blocks.load(agent.id) if b.label == label)

        return self.world.gateway.call(read())

    def write_block(self, value: str, label: str = "human") -> None:
        """Writes a block outside of a run."""
        block = self.get_block(label)

        async def write() -> None:
            now = self.world.clock()
            await self.world.store.blocks.write(block.id, block.version, value, at=now, origin="test")

        self.world.gateway.call(write())

    def create_memory(self) -> None:
        """Creates the agent's memory and its blocks, which its first send creates otherwise."""
        store = self.world.store
        now = self.world.clock()

        async def write(connection: Connection) -> None:
            agent = await find_or_create_agent(connection, store.agents.get_draft(self.scope))
            await ensure_blocks(connection, agent.id, self.spec.own_blocks, now)

        async def create() -> None:
            await store.database.write(write)

        self.world.gateway.call(create())


def _make_scope() -> Scope:
    return Scope("default", "@", f"agent:{uuid.uuid4().hex}")


@contextmanager
def serve_agent(
    upstream: StrictUpstream,
    folder: Path,
    settings: ToolSettings | None = None,
    models: Sequence[ModelSettings] = (),
    profiles: Sequence[ProfileSettings] = (),
    server: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[AgentWorld]:
    """Serves a gateway with an agent until the block ends.

    settings: the settings of tools.
    models: aliases of models.
    profiles: profiles of the gateway, which the agent does not have.
    server: values of the table `server` of the settings.
    options: fields of the agent's `AgentSpec`.
    """
    spec = AgentSpec(
        **{
            "name": "helper",
            "system": "You help.",
            "model": "m",
            "offers_tools": True,
            "blocks": (HUMAN,),
            **options,
        }
    )
    # The upstream declares that it reports the usage of streams.
    upstream_settings = UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": True})
    parts: dict[str, Any] = {
        "upstreams": (upstream_settings,),
        "models": tuple(models),
        "tools": settings or ToolSettings(),
        "server": server,
    }
    with remember(upstream, folder, *profiles, **parts) as world:
        agent_world = AgentWorld(world, spec, _make_scope())
        if spec.uid:
            agent_world.create_memory()
        yield agent_world
