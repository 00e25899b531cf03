"""AgentRuns of a gateway that serves, sent to without a dialect: a view that writes lines, a sink that keeps them.

with agents(upstream, tmp_path) as life:
    assert life.send("Hi").said == ["Ok."]
    assert life.upstream.last.messages == [...]
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
from gateway.agents.runs.run import RunRequest, RunResult
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
    """A client that keeps what it is sent, and may leave."""

    presence: Presence = field(default_factory=Presence)
    has_started: bool = False
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    wrote: Gate = field(default_factory=Gate)

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status

    async def write(self, data: bytes) -> None:
        if self.presence.is_gone:
            raise ClientGone
        self.has_started = True
        self.body += data
        if b"text" in self.body:
            self.wrote.open()

    async def end(self) -> None:
        self.has_started = True

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.start(status, headers)
        await self.write(body)

    @property
    def is_gone(self) -> bool:
        return self.presence.is_gone

    def while_here(self) -> AbstractContextManager[None]:
        return self.presence

    def leave(self) -> None:
        self.presence.leave()


@dataclass
class Outcome:
    """What became of a send."""

    result: RunResult
    sink: ListeningSink

    @property
    def run(self) -> Run:
        return self.result.run

    @property
    def lines(self) -> list[str]:
        return self.sink.body.decode().splitlines()

    @property
    def said(self) -> list[str]:
        """The texts of its replies."""
        replies = [orjson.loads(e.shown_reply) for e in self.result.steps if e.shown_reply]
        return [reply["content"] for reply in replies if reply.get("content")]


@dataclass
class Life:
    """One agent in a gateway that serves. others are made by `other`."""

    world: World
    spec: AgentSpec
    scope: Scope

    @property
    def upstream(self) -> StrictUpstream:
        return self.world.upstream

    @property
    def agents(self) -> AgentRuns:
        found = self.world.gateway.app.services.agents.agent_runs
        assert found is not None
        return found

    def other(self, **options: Any) -> Life:
        return Life(self.world, replace(self.spec, **options), _scope())

    def begin(self, text: str = "Hi", sink: ListeningSink | None = None, **options: Any) -> Future[Outcome]:
        """Sends; the result comes when it has ended. options: of `RunRequest`."""
        asked = RunRequest(
            self.spec, self.scope, **{"messages": ({"role": "user", "content": text},), **options}
        )

        async def send() -> Outcome:
            kept = sink or ListeningSink()
            result = await self.agents.send(asked, lambda _: LinesView, kept, Receipt())
            return Outcome(result, kept)

        return asyncio.run_coroutine_threadsafe(send(), self.world.gateway.loop)

    def send(self, text: str = "Hi", **options: Any) -> Outcome:
        return self.begin(text, **options).result(PATIENCE_S)

    def leave(self, sink: ListeningSink) -> None:
        self.world.gateway.loop.call_soon_threadsafe(sink.leave)

    def path(self) -> list[Exchange]:
        """The agent's own conversation as it is stored."""
        self.world.settle()

        async def read() -> list[Exchange]:
            agent = await self.world.store.agents.find(self.scope)
            if agent is None:
                return []
            own = await self.world.store.stored_paths.load_path(agent, "default", None)
            assert own is not None
            return list(own.path)

        return self.world.gateway.call(read())

    def words(self) -> list[str]:
        """What stands in the conversation, message by message: role and text, or the calls."""
        found = []
        for e in filter(lambda e: e.active or not e.superseded, self.path()):
            for m in (
                *orjson.loads(e.input or b"[]"),
                *([orjson.loads(e.shown_reply)] if e.shown_reply else []),
            ):
                calls = ",".join(call["function"]["name"] for call in m.get("tool_calls") or ())
                found.append(f"{m['role']}: {m.get('content') or calls}")
        return found

    def block(self, label: str = "human") -> Block:
        self.world.settle()

        async def read() -> Block:
            agent = await self.world.store.agents.find(self.scope)
            assert agent is not None
            return next(b for b in await self.world.store.blocks.load(agent.id) if b.label == label)

        return self.world.gateway.call(read())

    def write_block(self, value: str, label: str = "human") -> None:
        """Edits a block from outside of any run."""
        block = self.block(label)

        async def write() -> None:
            now = self.world.clock()
            await self.world.store.blocks.write(block.id, block.version, value, at=now, origin="test")

        self.world.gateway.call(write())

    def make(self) -> None:
        """Makes its memory, as whoever defines an agent does; the memories of others begin with their first send."""
        store, now = self.world.store, self.world.clock()

        async def write(connection: Connection) -> None:
            made = await find_or_create_agent(connection, store.agents.get_draft(self.scope))
            await ensure_blocks(connection, made.id, self.spec.own_blocks, now)

        async def made() -> None:
            await store.database.write(write)

        self.world.gateway.call(made())


def _scope() -> Scope:
    return Scope("default", "@", f"agent:{uuid.uuid4().hex}")


@contextmanager
def agents(
    upstream: StrictUpstream,
    folder: Path,
    settings: ToolSettings | None = None,
    models: Sequence[ModelSettings] = (),
    profiles: Sequence[ProfileSettings] = (),
    server: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Life]:
    """settings: of tools. models: aliases. profiles: of other users. server: values of [server].

    options: of the agent.
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
    # One that is known to count a stream's tokens.
    kind = UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": True})
    parts: dict[str, Any] = {
        "upstreams": (kind,),
        "models": tuple(models),
        "tools": settings or ToolSettings(),
        "server": server,
    }
    with remember(upstream, folder, *profiles, **parts) as world:
        life = Life(world, spec, _scope())
        if spec.uid:
            life.make()
        yield life
