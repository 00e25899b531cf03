"""Real clients in front of a gateway and a strict upstream, and the same clients without the gateway.

A `Mode` says how much memory there is: none, the transparent one, or an agent with its own prompt and tools. In every
mode a client must see what it sees when it asks the upstream itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import openai
import orjson

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Reply, Seen, StrictUpstream, raw
from tests.gateway.sdk import World, agent, remember
from tests.patience import PATIENCE_S

Json = dict[str, Any]

WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


Kind = Literal["openai", "anthropic"]
KINDS: tuple[Kind, ...] = ("openai", "anthropic")


@dataclass(frozen=True)
class Mode:
    """One way to use the gateway.

    headers: sent with every request. memory: what the reply says of it. speaks: the upstream's dialect.
    """

    name: str
    model: str
    headers: Mapping[str, str]
    memory: str
    speaks: Kind = "openai"


MODES = (
    Mode("off", "m", {"x-mnemogate-user": "alice", "x-mnemogate-memory": "off"}, "off"),
    Mode("on", "m", {"x-mnemogate-user": "alice"}, "on"),
    Mode("agent", "agent/helper", {"x-mnemogate-user": "alice"}, "on"),
)
CLAUDE = Mode("claude", "agent/helper", {"x-mnemogate-user": "alice"}, "on", "anthropic")
"""For what holds whatever the upstream speaks: with it nothing can be asked directly for comparison."""


@dataclass
class Talk:
    """One mode over sockets. kind: the upstream's dialect. direct: a client that asks the upstream itself."""

    world: World
    mode: Mode
    kind: Kind = "openai"
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
        return {"api_key": "sk-app", "max_retries": 0, "timeout": PATIENCE_S}

    def async_sdk(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.url, default_headers=dict(self.mode.headers), **{**self.options, **options}
        )

    def as_user(self, user: str) -> None:
        """Continues as a user that the gateway does not know yet."""
        headers = {**self.mode.headers, "x-mnemogate-user": user}
        self.sdk = self.sdk.with_options(default_headers=headers)

    # what differs between the two dialects

    @property
    def is_claude(self) -> bool:
        return self.kind == "anthropic"

    @property
    def request_id(self) -> str:
        """The name of the header in which the upstream sends a request's id."""
        return "request-id" if self.is_claude else "x-request-id"

    def events(self, count: int) -> int:
        """Returns where OpenAI's event `count` stands in this upstream's stream: Claude sends two more first."""
        return count + 2 if self.is_claude else count

    def refuse(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "some_error",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Returns an error with every field that the API has, and one more."""
        error = {"message": message, "type": kind, "param": "p", "code": code, "extra": [1]}
        body: Json = {"error": error}
        if self.is_claude:
            error = {"type": kind, "message": message, "details": {"error_code": code}, "extra": [1]}
            body = {"type": "error", "error": error, "request_id": "req_told"}
        lines = {"content-type": "application/json", **(headers or {})}
        return Reply(status=status, headers=lines, body=[orjson.dumps(body)])

    def last_text(self, seen: Seen) -> str:
        """Returns the last message's text, with the injected note before it."""
        content = seen.messages[-1]["content"]
        return content if isinstance(content, str) else "".join(block["text"] for block in content)

    def calls(self, seen: Seen) -> list[tuple[str, Any]]:
        """Returns the names and parsed arguments of the calls in a request."""
        if self.is_claude:
            return [(b["name"], b["input"]) for b in _blocks(seen) if b["type"] == "tool_use"]
        calls = [call for message in seen.messages for call in message.get("tool_calls") or ()]
        return [(call["function"]["name"], orjson.loads(call["function"]["arguments"])) for call in calls]

    def results(self, seen: Seen) -> list[tuple[str, Any]]:
        """Returns the ids and contents of the tool results in a request."""
        if self.is_claude:
            blocks = [block for block in _blocks(seen) if block["type"] == "tool_result"]
            return [(block["tool_use_id"], block["content"]) for block in blocks]
        results = [message for message in seen.messages if message["role"] == "tool"]
        return [(message["tool_call_id"], message["content"]) for message in results]

    def tools(self, seen: Seen) -> list[str]:
        if self.is_claude:
            return [tool["name"] for tool in seen.json.get("tools", ())]
        return seen.tool_names

    def turns(self) -> list[str]:
        """Returns the replies that stand in memory, as text."""
        return [
            str(row)
            for row in self.world.query(
                "SELECT shown_reply FROM exchanges WHERE active <> 0 AND shown_reply IS NOT NULL"
            )
        ]

    def close(self) -> None:
        self.sdk.close()
        self.direct.close()


def _blocks(seen: Seen) -> list[Json]:
    return [block for message in seen.messages for block in message["content"]]


@contextmanager
def talk_in(
    mode: Mode, tmp_path: Path, *, lenient: bool = False, kind: Kind | None = None, **parts: Any
) -> Iterator[Talk]:
    """Serves in one mode. lenient: the upstream accepts fields that OpenAI's API does not have."""
    kind = kind or mode.speaks
    rules = Rules(unknown_parameters=not lenient)
    with (
        StrictAnthropic() if kind == "anthropic" else StrictUpstream(rules=rules) as upstream,
        remember(
            upstream,
            tmp_path,
            agent(),
            **{"upstreams": (UpstreamSettings("up", kind, upstream.base_url),), **parts},
        ) as world,
    ):
        talk = Talk(world, mode, kind)
        try:
            yield talk
        finally:
            talk.close()


def chunks(*deltas: Json, **frame: Any) -> Reply:
    """Returns a stream of these chunks."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026", **frame}
    events = [b"data: " + orjson.dumps({**base, **each}) + b"\n\n" for each in deltas]
    return raw(*events, b"data: [DONE]\n\n")


def whole(choices: Sequence[Json], **frame: Any) -> Reply:
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m-2026", **frame}
    return raw(orjson.dumps({**body, "choices": choices}), content_type="application/json")
