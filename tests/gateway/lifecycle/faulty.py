"""A gateway whose disk can be made to fail, and what it then has of a user's turns."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.settings import MemorySettings
from storage.sql.store import Store
from storage.sqlite.writer import WriterLimits
from tests.doubles.disk import Disk
from tests.doubles.upstream import StrictUpstream
from tests.patience import PATIENCE_S
from tests.server import QUIET, RawClient, RawReply, RunningGateway, serve, settings_for
from tests.stored import open_store

FACT = "My cat is called Miso and she hates thunderstorms."
QUESTION = "What is the name of my cat?"
STRICT = {"x-mnemogate-memory": "strict"}
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}

# No deadline of a busy machine's shall decide what a test finds.
PATIENT = MemorySettings(recall_deadline_ms=50_000)

# Attempts to recover are made by the tests, not by a timer.
BY_HAND = WriterLimits(retry_first_s=3600, idle_s=3600, slow_s=PATIENCE_S)


@dataclass
class World:
    gateway: RunningGateway
    upstream: StrictUpstream
    path: Path
    disk: Disk

    @property
    def store(self) -> Store:
        store = self.gateway.app.services.store
        assert isinstance(store, Store)
        return store

    def post(
        self, text: str, headers: dict[str, str] | None = None, user: str = "alice", **fields: Any
    ) -> RawReply:
        messages = [{"role": "user", "content": text}]
        body = {"model": "m", "user": user, "messages": messages, **fields}
        return self.gateway.post(body, headers)

    def write(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        """In the writer's thread; waits for it."""

        async def submit() -> Any:
            return await self.store.database.writer.submit(function)

        return self.gateway.call(submit())

    def recover(self) -> bool:
        return self.gateway.call(self.store.database.writer.recover())

    def settle(self) -> None:
        async def settled() -> None:
            await self.gateway.app.services.idle.wait()
            await self.gateway.app.services.chat.turn_services.pending.drain(PATIENCE_S)
            assert await self.store.drain(PATIENCE_S)

        self.gateway.call(settled())

    @property
    def status(self) -> str:
        """The store's, as health says it; the gateway lives and is willing whatever it is."""
        assert self.gateway.ask("GET", "/health").json == {"status": "ok"}
        ready = self.gateway.ask("GET", "/health/ready")
        assert ready.status == 200
        store: str = ready.json["store"]
        assert ready.json["status"] == ("ok" if store == "ok" else "degraded")
        return store

    def counted(self, name: str) -> float:
        lines = self.gateway.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0] == name)

    def agents(self) -> list[int]:
        self.settle()

        async def find() -> list[int]:
            return await self.store.forget_targets.list_memories("default", None, None)

        return self.gateway.call(find())

    def passages(self, agent_row: int) -> str:
        async def read() -> str:
            return "".join(passage.text for passage in await self.store.passages.list_texts(agent_row))

        return self.gateway.call(read())

    def said(self) -> list[str]:
        """The user's words of all finished turns on disk."""
        self.settle()

        async def read() -> list[Any]:
            sql = "SELECT input FROM exchanges WHERE state = 'finished' ORDER BY id"
            return self.store.database.reader.run(lambda c: c.execute(sql).fetchall())

        return [json.loads(row[0])[-1]["content"] for row in self.gateway.call(read())]


@contextmanager
def world_of(
    upstream: StrictUpstream,
    path: Path,
    *,
    commit_wait_s: float = PATIENCE_S,
    limits: WriterLimits = BY_HAND,
    **parts: Any,
) -> Iterator[World]:
    disk = Disk()

    async def open_here() -> Store:
        return await open_store(path, limits=limits, busy_timeout_ms=0, connect=disk.connect)

    settings = settings_for(upstream, memory=PATIENT, **parts)
    with serve(settings, open_here, limits=replace(QUIET, commit_wait_s=commit_wait_s)) as gateway:
        yield World(gateway, upstream, path, disk)


def durable(reply: RawReply) -> bool:
    """Whether the reply says that its turn is on disk."""
    assert reply.status == 200
    if reply.headers["content-type"].startswith("text/event-stream"):
        assert "x-mnemogate-durable" not in reply.headers
        marked = reply.body.endswith(b"data: [DONE]\n\n: mnemogate not durable\n")
        assert marked or b": mnemogate" not in reply.body
    else:
        marked = reply.headers.get("x-mnemogate-durable") == "false"
    return reply.headers["x-mnemogate-memory"] == "on" and not marked


def ask(client: RawClient, user: str, text: str, stream: bool) -> None:
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "user": user, "stream": stream, "messages": messages}
    client.request("POST", "/v1/chat/completions", json.dumps(body).encode())
