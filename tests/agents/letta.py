"""A gateway with memory, and the client of the agents API that talks to it.

with letta(upstream, tmp_path) as world:
    agent = world.letta.agents.create(name="helper", model="openai/m")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson
from letta_client import AsyncLetta, Letta
from letta_client.types import AgentState

from gateway.settings import ProfileSettings, UpstreamSettings
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S

T = TypeVar("T")


@dataclass
class LettaWorld:
    """A gateway with memory, and its clients of the agents API."""

    world: World
    # The client with the first key.
    letta: Letta
    # Further clients, which are closed at the end.
    others: list[Letta] = field(default_factory=list)

    @property
    def upstream(self) -> StrictUpstream:
        return self.world.upstream

    def make_client(self, key: str = "sk-app", **options: Any) -> Letta:
        """Returns a further client. options: parameters of `Letta`."""
        options = {"max_retries": 0, "timeout": PATIENCE_S, **options}
        self.others.append(Letta(base_url=self.world.gateway.url, api_key=key, **options))
        return self.others[-1]

    def async_client(self) -> AsyncLetta:
        return AsyncLetta(
            base_url=self.world.gateway.url, api_key="sk-app", max_retries=0, timeout=PATIENCE_S
        )

    def agent(self, **options: Any) -> AgentState:
        """Makes an agent with a block `human`. options: parameters of `agents.create`."""
        blocks = [{"label": "human", "value": "Name: Ann"}]
        return self.letta.agents.create(**{"model": "openai/m", "memory_blocks": blocks, **options})

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request for which the client has no method. Returns the status and the JSON."""
        data = None if body is None else orjson.dumps(body)
        reply = self.world.gateway.ask(method, path, data, {"content-type": "application/json"})
        return reply.status, orjson.loads(reply.body)


def spoken(messages: Iterable[T]) -> list[T]:
    """Returns the messages of a conversation without its system message, the one at position 0."""
    return [message for message in messages if not str(getattr(message, "id", "")).endswith("-0")]


@contextmanager
def letta(
    upstream: StrictUpstream, folder: Path | str, *profiles: ProfileSettings, **options: Any
) -> Iterator[LettaWorld]:
    """Serves a gateway with memory, with a client of the agents API. options: parameters of `remember`."""
    kind = UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": True})
    with remember(upstream, folder, *profiles, **{"upstreams": (kind,), **options}) as world:
        letta_world = LettaWorld(
            world, Letta(base_url=world.gateway.url, api_key="sk-app", max_retries=0, timeout=PATIENCE_S)
        )
        try:
            yield letta_world
        finally:
            for client in (letta_world.letta, *letta_world.others):
                client.close()
