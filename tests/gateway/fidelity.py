"""Real clients in front of a gateway in front of a strict upstream, and the same clients without the gateway between.

`Mode` is how much memory there is: none, the transparent one, or an agent with its own prompt and tools. Whatever the
mode, a client must see what it sees when it asks the upstream itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import orjson

from tests.gateway.sdk import World, agent, remember
from tests.openai_rules import Rules
from tests.upstream import Reply, StrictUpstream, raw

__all__ = ["MODES", "WEATHER", "Mode", "Talk", "chunks", "talk_in", "whole"]

Json = dict[str, Any]

WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Mode:
    """headers: sent with every request. memory: what the gateway says it did."""

    name: str
    model: str
    headers: Mapping[str, str]
    memory: str


MODES = (
    Mode("off", "m", {"x-mnemogate-user": "alice", "x-mnemogate-memory": "off"}, "off"),
    Mode("on", "m", {"x-mnemogate-user": "alice"}, "on"),
    Mode("agent", "agent/helper", {"x-mnemogate-user": "alice"}, "on"),
)


@dataclass
class Talk:
    """One mode over sockets. direct: clients that ask the upstream itself."""

    world: World
    mode: Mode
    sdk: openai.OpenAI = field(init=False)
    direct: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.sdk = self.world.client(default_headers=dict(self.mode.headers))
        self.direct = openai.OpenAI(base_url=self.upstream.base_url, **self.options)

    @property
    def upstream(self) -> StrictUpstream:
        return self.world.upstream

    @property
    def url(self) -> str:
        return f"{self.world.gateway.url}/v1"

    @property
    def options(self) -> Json:
        return {"api_key": "sk-app", "max_retries": 0, "timeout": 10.0}

    def async_sdk(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.url, default_headers=dict(self.mode.headers), **{**self.options, **options}
        )

    def as_user(self, user: str) -> None:
        """Go on as somebody else, whom the gateway never heard."""
        headers = {**self.mode.headers, "x-mnemogate-user": user}
        self.sdk = self.sdk.with_options(default_headers=headers)

    def turns(self) -> list[str]:
        """What is standing in memory, as text."""
        return [
            str(row)
            for row in self.world.query("SELECT said FROM exchanges WHERE standing AND said IS NOT NULL")
        ]

    def close(self) -> None:
        self.sdk.close()
        self.direct.close()


@contextmanager
def talk_in(mode: Mode, tmp_path: Path, *, lenient: bool = False, **parts: Any) -> Iterator[Talk]:
    """lenient: the upstream takes fields that OpenAI's API does not have."""
    with (
        StrictUpstream(rules=Rules(unknown_parameters=not lenient)) as upstream,
        remember(upstream, tmp_path, agent(), **parts) as world,
    ):
        talk = Talk(world, mode)
        try:
            yield talk
        finally:
            talk.close()


def chunks(*deltas: Json, **frame: Any) -> Reply:
    """A stream of these choices, a list of them or one, each with `index` 0 unless it says otherwise."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026", **frame}
    events = [b"data: " + orjson.dumps({**base, **each}) + b"\n\n" for each in deltas]
    return raw(*events, b"data: [DONE]\n\n")


def whole(choices: Sequence[Json], **frame: Any) -> Reply:
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m-2026", **frame}
    return raw(orjson.dumps({**body, "choices": choices}), content_type="application/json")
