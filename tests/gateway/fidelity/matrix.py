"""The fidelity matrix: checks that all of a request and of a reply arrives, in several setups.

A setup is a client's base URL and the strict upstream that it leads to. In one setup the client asks the upstream
directly: there the same checks hold, so a check demands of the gateway what the upstream itself does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import orjson

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic, refuse
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, say
from tests.gateway.fidelity.checks import WEATHER
from tests.gateway.sdk import remember
from tests.patience import PATIENCE_S
from tests.server import RawClient

Json = dict[str, Any]
# A field that no API has.
ODD = {"odd": [1, None, {"x": 1.5}]}


@dataclass(frozen=True)
class CheckResult:
    """The result of a check in one setup: a cell of the matrix."""

    # A word or two for the table.
    text: str
    is_right: bool


@dataclass
class Setup:
    """A client and a strict upstream, with or without the gateway between them: a column of the matrix."""

    name: str
    # The client's base URL.
    url: str
    upstream: StrictUpstream
    # The upstream's dialect: "openai" or "anthropic".
    dialect: str
    # Headers of each request.
    headers: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sdk = openai.OpenAI(
            base_url=self.url,
            api_key="sk-app",
            default_headers=self.headers,
            max_retries=0,
            timeout=PATIENCE_S,
        )

    def ask(self, **fields: Any) -> Any:
        """Sends a chat completion. fields: further fields of the body."""
        messages: Any = [{"role": "user", "content": "Hello"}]
        return self.sdk.chat.completions.create(model="claude-opus-4-6", messages=messages, **fields)

    def ask_for_error(self, reply: Reply) -> openai.APIStatusError:
        """Sends a chat completion to which the upstream replies with an error, and returns the client's error."""
        self.upstream.queue(reply)
        try:
            self.ask()
        except openai.APIStatusError as error:
            return error
        raise AssertionError("the client got no error")

    @property
    def is_claude(self) -> bool:
        return self.dialect == "anthropic"


def unknown_request_field(setup: Setup) -> CheckResult:
    """An unknown field arrives. Anthropic's API refuses unknown fields, so there the error names the field."""
    try:
        setup.ask(extra_body=ODD)
    except openai.BadRequestError as error:
        is_named = "odd" in error.message
        return CheckResult("refused by name" if is_named else "refused", is_named and setup.is_claude)
    has_arrived = setup.upstream.last.json.get("odd") == ODD["odd"]
    return CheckResult("kept" if has_arrived else "lost", has_arrived)


def upstream_id(setup: Setup) -> CheckResult:
    sent_id = "msg_fidelity" if setup.is_claude else "chatcmpl-fidelity"
    setup.upstream.queue(say("Hi", id=sent_id), say("Hi", id=sent_id))
    ids = {setup.ask().id, *(chunk.id for chunk in setup.ask(stream=True))}
    return CheckResult("kept" if ids == {sent_id} else "replaced", ids == {sent_id})


def usage_asked(setup: Setup) -> CheckResult:
    chunks = list(setup.ask(stream=True, stream_options={"include_usage": True}))
    with_usage = [chunk for chunk in chunks if chunk.usage is not None]
    if not with_usage:
        return CheckResult("lost", False)
    is_spec = len(with_usage) == 1 and with_usage[0] is chunks[-1] and not with_usage[0].choices
    return CheckResult(
        "spec" if is_spec else "beside choices", is_spec and with_usage[0].usage.total_tokens > 0
    )


def usage_not_asked(setup: Setup) -> CheckResult:
    chunks = list(setup.ask(stream=True))
    is_clean = all(chunk.usage is None and chunk.choices for chunk in chunks)
    return CheckResult("none" if is_clean else "sent unasked", is_clean)


def too_many_requests(setup: Setup) -> CheckResult:
    status = setup.ask_for_error(_make_429(setup)).status_code
    return CheckResult(str(status), status == 429)


def retry_after(setup: Setup) -> CheckResult:
    seconds = setup.ask_for_error(_make_429(setup)).response.headers.get("retry-after")
    return CheckResult("kept" if seconds == "7" else "lost" if seconds is None else seconds, seconds == "7")


def code_of_400(setup: Setup) -> CheckResult:
    """The code of an error arrives. Anthropic's errors have a type and no code, so there the type arrives."""
    if setup.is_claude:
        error = setup.ask_for_error(refuse(400, "invalid_request_error", "Bad thing."))
        actual, expected = error.type, "invalid_request_error"
    else:
        error = setup.ask_for_error(fail(400, "Bad thing.", code="bad_thing"))
        actual, expected = error.code, "bad_thing"
    is_right = actual == expected and error.status_code == 400 and "Bad thing." in error.message
    return CheckResult("kept" if is_right else f"{actual}", is_right)


async def _cancel_before_reply(setup: Setup, *, stream: bool) -> float:
    """Sends a request, and cancels it when it has reached the upstream.

    Returns when the client cancelled it, in seconds of the monotonic clock.
    """
    arrived = setup.upstream.request_gate(len(setup.upstream.requests) + 1)
    async with openai.AsyncOpenAI(
        base_url=setup.url, api_key="sk-app", default_headers=setup.headers, max_retries=0
    ) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        request = client.chat.completions.create(model="claude-opus-4-6", messages=messages, stream=stream)
        task = asyncio.ensure_future(request)
        await arrived.wait()
        cancelled_at = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return cancelled_at


def cancel(setup: Setup) -> CheckResult:
    """Three cancels reach the upstream: before a whole reply, before a stream and within a stream.

    The text of the result is the longest time that one took.
    """
    longest = 0.0
    for stream, reply in (
        (False, say("Never", hold_before_headers=Gate())),
        (True, say("Never", hold_before_headers=Gate())),
        (True, say("One two three four", tokens=["One ", "two ", "three ", "four"], hold_after={5: Gate()})),
    ):
        count = len(setup.upstream.requests)
        setup.upstream.queue(reply)
        if reply.hold_after:
            chunks = setup.ask(stream=True)
            next(iter(chunks))
            cancelled_at = time.monotonic()
            chunks.close()
        else:
            cancelled_at = asyncio.run(_cancel_before_reply(setup, stream=stream))
        request: UpstreamRequest = setup.upstream.requests[count]
        try:
            request.gone.wait_sync()
        except TimeoutError:
            return CheckResult("never", False)
        assert request.gone_at is not None
        longest = max(longest, request.gone_at - cancelled_at)
    return CheckResult(f"{longest:.3f} s", True)


def _measure_cancel(setup: Setup, reply: Reply, mark: bytes | None, *, stream: bool) -> float:
    """Returns the seconds from the close of a client's connection to the end of the upstream's.

    mark: the bytes that the client reads before it closes. None: it closes when the request has reached the upstream.
    """
    setup.upstream.queue(reply)
    count = len(setup.upstream.requests)
    body = {
        "model": "claude-opus-4-6",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 100,
        "stream": stream,
    }
    headers = {"content-type": "application/json", "authorization": "Bearer sk-app", **setup.headers}
    with RawClient(urlsplit(setup.url).port or 80) as client:
        client.request("POST", "/v1/chat/completions", orjson.dumps(body), headers)
        setup.upstream.request_gate(count + 1).wait_sync()
        if mark is not None:
            client.read_until(mark)
        closed_at = time.monotonic()
    received = setup.upstream.requests[count]
    received.gone.wait_sync()
    assert received.gone_at is not None
    return max(received.gone_at - closed_at, 0.0)


# name -> (the reply that the upstream holds, the bytes that the client reads before its cancel, whether it streams)
CANCEL_POINTS: dict[str, tuple[Callable[[], Reply], bytes | None, bool]] = {
    "before a whole answer": (lambda: say("Never", hold_before_headers=Gate()), None, False),
    "before a stream's headers": (lambda: say("Never", hold_before_headers=Gate()), None, True),
    "before its first word": (lambda: say("Never", hold_after={1: Gate()}), b"assistant", True),
    "in its middle": (
        lambda: say("One two three four", tokens=["One ", "two ", "three ", "four"], hold_after={5: Gate()}),
        b"two ",
        True,
    ),
}


def cancel_times(setup: Setup, count: int) -> dict[str, list[float]]:
    """Returns for each point of `CANCEL_POINTS` the seconds that so many cancels took to reach the upstream."""
    return {
        name: [_measure_cancel(setup, reply(), mark, stream=stream) for _ in range(count)]
        for name, (reply, mark, stream) in CANCEL_POINTS.items()
    }


def parallel_tools(setup: Setup) -> CheckResult:
    """Two calls of a stream arrive with index, id, name and arguments, merged as clients merge them."""
    calls = (
        Call("get_weather", {"city": "Oslo"}, id="call_a", pieces=3),
        Call("get_weather", {"city": "Rome"}, id="call_b", pieces=4),
    )
    setup.upstream.queue(call_tools(*calls, text="Let me see."))
    # index -> [id, name, arguments]
    merged: dict[int, list[str]] = {}
    for chunk in setup.ask(stream=True, tools=[WEATHER]):
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or ():
                if piece.index not in merged:
                    merged[piece.index] = [piece.id or "", piece.function.name or "", ""]
                elif piece.id not in (None, merged[piece.index][0]):
                    return CheckResult("ids change", False)
                merged[piece.index][2] += piece.function.arguments or ""
    prefix = "toolu_" if setup.is_claude else "call_"
    expected = {
        0: [f"{prefix}a", "get_weather", '{"city":"Oslo"}'],
        1: [f"{prefix}b", "get_weather", '{"city":"Rome"}'],
    }
    return CheckResult("intact" if merged == expected else "broken", merged == expected)


def unknown_response_field(setup: Setup) -> CheckResult:
    """An unknown field of a whole reply and of a chunk arrives. In Anthropic's replies it is a field of the message."""
    setup.upstream.queue(say("Hi", extra=ODD), say("Hi", extra=ODD))
    replies = [setup.ask().model_dump(), *(chunk.model_dump() for chunk in setup.ask(stream=True))]
    has_arrived = all(str(ODD["odd"]) in str(reply) for reply in replies[:2])
    return CheckResult("kept" if has_arrived else "lost", has_arrived)


def error_in_stream(setup: Setup) -> CheckResult:
    error = {"message": "Overloaded.", "type": "overloaded_error"}
    setup.upstream.queue(
        say("One two", tokens=["One ", "two"], error_after=(5 if setup.is_claude else 2, error))
    )
    text = ""
    try:
        for chunk in setup.ask(stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    except openai.APIError as error:
        is_right = text.startswith("One ") and "Overloaded." in error.message
        return CheckResult("reported" if is_right else "garbled", is_right)
    return CheckResult("lost", False)


def _make_429(setup: Setup) -> Reply:
    if setup.is_claude:
        return refuse(429, "rate_limit_error", "Slow down.", retry_after="7")
    return fail(429, "Slow down.", code="rate_limit_exceeded", retry_after="7")


CHECKS: dict[str, Callable[[Setup], CheckResult]] = {
    "unknown request field": unknown_request_field,
    "upstream id": upstream_id,
    "usage asked": usage_asked,
    "usage not asked": usage_not_asked,
    "429": too_many_requests,
    "Retry-After": retry_after,
    "400 code": code_of_400,
    "cancel": cancel,
    "parallel tools": parallel_tools,
    "unknown response field": unknown_response_field,
    "error in stream": error_in_stream,
}

_OFF = {"x-mnemogate-memory": "off", "x-mnemogate-user": "alice"}
_ON = {"x-mnemogate-user": "alice"}
# name -> (the upstream's dialect, headers of each request); None instead of headers: without the gateway
SETUPS: dict[str, tuple[str, Json | None]] = {
    "openai, asked directly": ("openai", None),
    "openai, memory off": ("openai", _OFF),
    "openai, memory on": ("openai", _ON),
    "anthropic, memory off": ("anthropic", _OFF),
    "anthropic, memory on": ("anthropic", _ON),
}


@contextmanager
def open_setup(name: str, folder: Path) -> Iterator[Setup]:
    """Runs a setup until the block ends. folder: an empty folder for the database."""
    dialect, headers = SETUPS[name]
    with ExitStack() as stack:
        if dialect == "anthropic":
            upstream: StrictUpstream = stack.enter_context(StrictAnthropic())
            kind: Any = "anthropic"
        else:
            upstream = stack.enter_context(StrictUpstream(rules=Rules(unknown_parameters=False)))
            kind = "openai"
        url = upstream.base_url
        if headers is not None:
            settings = (UpstreamSettings("up", kind, url),)
            world = stack.enter_context(remember(upstream, folder, upstreams=settings))
            url = f"{world.gateway.url}/v1"
        setup = Setup(name, url, upstream, dialect, headers or {})
        stack.callback(setup.sdk.close)
        yield setup
