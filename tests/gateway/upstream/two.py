"""A gateway before two upstreams, of which the first may fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.run.upstream.endpoint import Endpoint
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import (
    Call,
    Reply,
    StrictUpstream,
    fail,
)
from tests.gateway.sdk import World

LIMITS = {"retry-after": "30", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
BUSY = fail(429, "Slow down.", code="rate_limit_exceeded")
BUSY.headers.update(LIMITS)  # type: ignore[attr-defined]


class Claude(StrictAnthropic):
    """Takes what these tests queue for an OpenAI: errors in Anthropic's words, events counted from the same place."""

    def queue(self, *replies: Reply) -> None:
        super().queue(*map(_in_claudes_words, replies))


_BEFORE_TEXT = 2  # events: message_start, ping and content_block_start instead of one delta with the role


def _in_claudes_words(reply: Reply) -> Reply:
    if reply.body is not None:
        return replace(reply, body=[_error(reply.body)]) if reply.status != 200 else reply
    hold = {count + _BEFORE_TEXT if count else 0: gate for count, gate in reply.hold_after.items()}
    cut = reply.cut_after + _BEFORE_TEXT if reply.cut_after else reply.cut_after
    return replace(reply, hold_after=hold, cut_after=cut)


def _error(body: Sequence[bytes]) -> bytes:
    error_sent = orjson.loads(b"".join(body))["error"]
    error = {
        "type": error_sent["type"],
        "message": error_sent["message"],
        "details": {"error_code": error_sent["code"]},
    }
    return orjson.dumps({"type": "error", "error": error, "request_id": "req_told"})


@dataclass
class Two:
    """A gateway before two upstreams: `m` is asked of the first, and of the second if that fails.

    kind: of the first one; the second speaks OpenAI's dialect.
    """

    world: World
    first: StrictUpstream
    second: StrictUpstream
    waits: list[float]
    kind: Any = "openai"
    now: float = 5000.0

    def first_key(self, place: int = -1) -> str | None:
        """With which key a request came to the first one."""
        headers = self.first.requests[place].headers
        is_claude = self.kind == "anthropic"
        return headers.get("x-api-key") if is_claude else headers.get("authorization", "")[len("Bearer ") :]

    def is_as_sent(self, body: bytes, fault: Reply) -> bool:
        """Whether an error came as it was sent: its bytes, or those of an Anthropic in OpenAI's shape."""
        if self.kind == "openai":
            return [body] == list(fault.body or ())
        given, got = orjson.loads(b"".join(fault.body or ())), orjson.loads(body)
        return {**given["error"], "param": got["error"]["param"]}.items() <= got["error"].items()

    def ask(
        self, stream: bool, memory: bool, text: str = "Hi", headers: dict[str, str] | None = None, **more: Any
    ) -> tuple[str, dict[str, str]]:
        """The answer as the SDK reads it, and the headers. Raises what the SDK raises."""
        if memory:
            more["user"] = "alice"
        more = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream, **more}
        answer = self.world.sdk.chat.completions.with_raw_response.create(**more, extra_headers=headers or {})
        found = {name.lower(): value for name, value in answer.headers.items()}
        parsed = answer.parse()
        if not stream:
            return parsed.choices[0].message.content or "", found
        return "".join(c.choices[0].delta.content or "" for c in parsed if c.choices), found

    def endpoint(self, name: str) -> Endpoint:
        places = self.world.gateway.app.services.chat.failover.endpoints
        return next(place for group in places.values() for place in group if place.name == name)

    def counted(self, line: str) -> float:
        text = self.world.gateway.ask("GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def settle(self) -> None:
        """Everything is closed, and nobody counts as busy any more."""
        self.world.settle()
        for places in self.world.gateway.app.services.chat.failover.endpoints.values():
            assert [(p.health.in_flight, p.health.is_probing) for p in places] == [(0, False)] * len(places)


Open = Callable[..., AbstractContextManager[Two]]

only_openai = pytest.mark.parametrize("kind", ["openai"], indirect=True)

both = pytest.mark.parametrize("memory", [True, False], ids=["memory", "plain"])

forms = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])

INSERT = Call("memory_insert", {"label": "human", "new_string": "likes tea"})

AGENT: dict[str, Any] = {"model": "agent/helper"}
