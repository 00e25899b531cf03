"""A gateway with two upstreams, the first of which may fail.

with open_failover() as world:  # a fixture
    world.first.queue(fail(500))
    text, headers = world.chat(stream=False, memory=False)
"""

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


class OpenaiQueuedClaude(StrictAnthropic):
    """An Anthropic upstream that translates the replies which tests queue for an OpenAI upstream."""

    def queue(self, *replies: Reply) -> None:
        super().queue(*map(_translate, replies))


# How many more events come before the text: message_start, ping and content_block_start instead of one role delta.
_BEFORE_TEXT = 2


def _translate(reply: Reply) -> Reply:
    """Returns a reply with Anthropic's form of an error, and with positions that count Anthropic's events."""
    if reply.body is not None:
        return replace(reply, body=[_translate_error(reply.body)]) if reply.status != 200 else reply
    hold = {count + _BEFORE_TEXT if count else 0: gate for count, gate in reply.hold_after.items()}
    cut = reply.cut_after + _BEFORE_TEXT if reply.cut_after else reply.cut_after
    return replace(reply, hold_after=hold, cut_after=cut)


def _translate_error(body: Sequence[bytes]) -> bytes:
    openai_error = orjson.loads(b"".join(body))["error"]
    error = {
        "type": openai_error["type"],
        "message": openai_error["message"],
        "details": {"error_code": openai_error["code"]},
    }
    return orjson.dumps({"type": "error", "error": error, "request_id": "req_told"})


@dataclass
class FailoverWorld:
    """A gateway whose model `m` is at the first upstream, with the second one as its fallback."""

    world: World
    first: StrictUpstream
    # It speaks OpenAI's dialect.
    second: StrictUpstream
    # The seconds of each pause between attempts. No pause takes any time.
    waits: list[float]
    # The dialect of the first upstream.
    kind: Any = "openai"
    # The failover's clock, in seconds.
    now: float = 5000.0

    def get_first_key(self, index: int = -1) -> str | None:
        """Returns the key of a request to the first upstream."""
        headers = self.first.requests[index].headers
        is_claude = self.kind == "anthropic"
        return headers.get("x-api-key") if is_claude else headers.get("authorization", "")[len("Bearer ") :]

    def has_fault_passed(self, body: bytes, fault: Reply) -> bool:
        """Returns whether a client's body is the first upstream's error: its bytes, or Anthropic's in OpenAI's form."""
        if self.kind == "openai":
            return [body] == list(fault.body or ())
        sent = orjson.loads(b"".join(fault.body or ()))["error"]
        received = orjson.loads(body)["error"]
        return {**sent, "param": received["param"]}.items() <= received.items()

    def chat(
        self,
        stream: bool,
        memory: bool,
        text: str = "Hi",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> tuple[str, dict[str, str]]:
        """Sends a chat by OpenAI's SDK. Returns the text and the headers of the reply.

        memory: whether the request names a user.
        fields: further fields of the body.
        Raises: an error of the SDK.
        """
        if memory:
            fields["user"] = "alice"
        fields = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream, **fields}
        raw = self.world.sdk.chat.completions.with_raw_response.create(**fields, extra_headers=headers or {})
        reply_headers = {name.lower(): value for name, value in raw.headers.items()}
        parsed = raw.parse()
        if not stream:
            return parsed.choices[0].message.content or "", reply_headers
        return "".join(c.choices[0].delta.content or "" for c in parsed if c.choices), reply_headers

    def find_endpoint(self, name: str) -> Endpoint:
        groups = self.world.gateway.app.services.chat.failover.endpoints.values()
        return next(endpoint for group in groups for endpoint in group if endpoint.name == name)

    def read_metric(self, line: str) -> float:
        """Returns the value of a line of /metrics, 0 without such a line. line: its name and labels."""
        text = self.world.gateway.ask("GET", "/metrics").body.decode()
        match = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def count_tries(self, upstream: str, outcome: str) -> float:
        """Returns the number of an upstream's attempts with an outcome, as /metrics counts them."""
        return self.read_metric(
            f'mnemogate_upstream_tries_total{{outcome="{outcome}",upstream="{upstream}"}}'
        )

    def count_errors(self, upstream: str) -> dict[str, float]:
        """Returns the number of an upstream's errors by their kind, as /metrics counts them."""
        text = self.world.gateway.ask("GET", "/metrics").body.decode()
        line = rf'^mnemogate_upstream_errors_total{{kind="(\w+)",upstream="{upstream}"}} (\S+)$'
        return {kind: float(count) for kind, count in re.findall(line, text, re.MULTILINE)}

    def settle(self) -> None:
        """Waits for all pending writes, and checks that no endpoint counts a request as in flight."""
        self.world.settle()
        for group in self.world.gateway.app.services.chat.failover.endpoints.values():
            assert [(e.health.in_flight, e.health.is_probing) for e in group] == [(0, False)] * len(group)


# The type of the fixture `open_failover`.
OpenFailover = Callable[..., AbstractContextManager[FailoverWorld]]

only_openai = pytest.mark.parametrize("kind", ["openai"], indirect=True)

both = pytest.mark.parametrize("memory", [True, False], ids=["memory", "plain"])

forms = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])

INSERT = Call("memory_insert", {"label": "human", "new_string": "likes tea"})

AGENT: dict[str, Any] = {"model": "agent/helper"}
