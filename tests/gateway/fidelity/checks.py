"""Clients of a gateway over a strict upstream, and the same clients without the gateway.

A `Mode` sets the memory of the requests: none, transparent memory, or an agent with a prompt and tools of its own. In
each mode a client must get what the upstream itself would give it.

with serve_mode(MODES[0], tmp_path) as talk:
    talk.upstream.queue(say("Hello."))
    reply = talk.sdk.chat.completions.create(model=talk.mode.model, messages=messages)
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
from tests.doubles.upstream import Reply, StrictUpstream, UpstreamRequest, raw
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


Dialect = Literal["openai", "anthropic"]
DIALECTS: tuple[Dialect, ...] = ("openai", "anthropic")


@dataclass(frozen=True)
class Mode:
    """A use of memory by a client."""

    name: str
    model: str
    # Headers of each request.
    headers: Mapping[str, str]
    # The header `x-mnemogate-memory` of each reply.
    memory: str
    # The upstream's dialect.
    dialect: Dialect = "openai"


MODES = (
    Mode("off", "m", {"x-mnemogate-user": "alice", "x-mnemogate-memory": "off"}, "off"),
    Mode("on", "m", {"x-mnemogate-user": "alice"}, "on"),
    Mode("agent", "agent/helper", {"x-mnemogate-user": "alice"}, "on"),
)
# A mode over Anthropic's API, for checks that do not compare with a reply of the upstream itself.
CLAUDE = Mode("claude", "agent/helper", {"x-mnemogate-user": "alice"}, "on", "anthropic")


@dataclass
class ModeWorld:
    """A gateway that serves one mode, and its clients."""

    world: World
    mode: Mode
    # The upstream's dialect.
    dialect: Dialect = "openai"
    # A client of the gateway, with the headers of the mode.
    sdk: openai.OpenAI = field(init=False)
    # A client of the upstream itself.
    upstream_sdk: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.sdk = self.world.client(default_headers=dict(self.mode.headers))
        self.upstream_sdk = openai.OpenAI(base_url=self.upstream.base_url, **self.options)

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

    # -- the differences between the dialects

    @property
    def is_claude(self) -> bool:
        return self.dialect == "anthropic"

    @property
    def request_id(self) -> str:
        """The name of the upstream's header with the id of a request."""
        return "request-id" if self.is_claude else "x-request-id"

    def count_events(self, count: int) -> int:
        """Returns how many events this upstream sends instead of OpenAI's first `count`: Claude sends two more."""
        return count + 2 if self.is_claude else count

    def make_error(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "some_error",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Returns a reply with an error that has each field of the API, and one field more."""
        error = {"message": message, "type": kind, "param": "p", "code": code, "extra": [1]}
        body: Json = {"error": error}
        if self.is_claude:
            error = {"type": kind, "message": message, "details": {"error_code": code}, "extra": [1]}
            body = {"type": "error", "error": error, "request_id": "req_told"}
        all_headers = {"content-type": "application/json", **(headers or {})}
        return Reply(status=status, headers=all_headers, body=[orjson.dumps(body)])

    def read_last_text(self, request: UpstreamRequest) -> str:
        """Returns the last message's text, with the injected note before it."""
        content = request.messages[-1]["content"]
        return content if isinstance(content, str) else "".join(block["text"] for block in content)

    def list_calls(self, request: UpstreamRequest) -> list[tuple[str, Any]]:
        """Returns the names and parsed arguments of the calls in a request."""
        if self.is_claude:
            return [(b["name"], b["input"]) for b in _blocks(request) if b["type"] == "tool_use"]
        calls = [call for message in request.messages for call in message.get("tool_calls") or ()]
        return [(call["function"]["name"], orjson.loads(call["function"]["arguments"])) for call in calls]

    def list_results(self, request: UpstreamRequest) -> list[tuple[str, Any]]:
        """Returns the ids and contents of the tool results in a request."""
        if self.is_claude:
            blocks = [block for block in _blocks(request) if block["type"] == "tool_result"]
            return [(block["tool_use_id"], block["content"]) for block in blocks]
        results = [message for message in request.messages if message["role"] == "tool"]
        return [(message["tool_call_id"], message["content"]) for message in results]

    def list_tools(self, request: UpstreamRequest) -> list[str]:
        if self.is_claude:
            return [tool["name"] for tool in request.json.get("tools", ())]
        return request.tool_names

    def list_active_replies(self) -> list[str]:
        """Returns the stored replies of active exchanges, as JSON."""
        return [
            str(row)
            for row in self.world.query(
                "SELECT shown_reply FROM exchanges WHERE active <> 0 AND shown_reply IS NOT NULL"
            )
        ]

    def close(self) -> None:
        self.sdk.close()
        self.upstream_sdk.close()


def _blocks(request: UpstreamRequest) -> list[Json]:
    return [block for message in request.messages for block in message["content"]]


@contextmanager
def serve_mode(
    mode: Mode, tmp_path: Path, *, lenient: bool = False, dialect: Dialect | None = None, **options: Any
) -> Iterator[ModeWorld]:
    """Serves a mode until the block ends.

    lenient: whether the upstream accepts fields that OpenAI's API does not have.
    dialect: the upstream's dialect; by default that of the mode.
    options: parameters of `remember`.
    """
    dialect = dialect or mode.dialect
    rules = Rules(unknown_parameters=not lenient)
    with (
        StrictAnthropic() if dialect == "anthropic" else StrictUpstream(rules=rules) as upstream,
        remember(
            upstream,
            tmp_path,
            agent(),
            **{"upstreams": (UpstreamSettings("up", dialect, upstream.base_url),), **options},
        ) as world,
    ):
        talk = ModeWorld(world, mode, dialect)
        try:
            yield talk
        finally:
            talk.close()


def chunks(*deltas: Json, **frame: Any) -> Reply:
    """Returns a stream of chunks. deltas: the fields of each chunk. frame: fields of all chunks."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026", **frame}
    events = [b"data: " + orjson.dumps({**base, **each}) + b"\n\n" for each in deltas]
    return raw(*events, b"data: [DONE]\n\n")


def whole(choices: Sequence[Json], **frame: Any) -> Reply:
    """Returns a whole reply with these choices. frame: further fields of the body."""
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m-2026", **frame}
    return raw(orjson.dumps({**body, "choices": choices}), content_type="application/json")
