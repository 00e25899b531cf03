"""The fidelity matrix: checks of what arrives at either end, for one way to a model at a time.

A way is a client's base URL and the strict upstream that it leads to. Each check returns a word, and whether it is the
right one. The same checks hold for an upstream that is asked directly, which shows what right means.
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
from tests.doubles.upstream import Call, Gate, Reply, Seen, StrictUpstream, call_tools, fail, say
from tests.gateway.fidelity.checks import WEATHER
from tests.gateway.sdk import remember
from tests.patience import PATIENCE_S
from tests.server import RawClient

Json = dict[str, Any]
ODD = {"odd": [1, None, {"x": 1.5}]}


@dataclass(frozen=True)
class Cell:
    """The finding of a check. is_right: it is as it should be."""

    text: str
    is_right: bool


@dataclass
class Way:
    """One row of the matrix. speaks: the upstream's dialect. headers: sent with every request."""

    name: str
    url: str
    upstream: StrictUpstream
    speaks: str
    headers: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sdk = openai.OpenAI(
            base_url=self.url,
            api_key="sk-app",
            default_headers=self.headers,
            max_retries=0,
            timeout=PATIENCE_S,
        )

    def ask(self, **more: Any) -> Any:
        messages = more.pop("messages", [{"role": "user", "content": "Hello"}])
        return self.sdk.chat.completions.create(model="claude-opus-4-6", messages=messages, **more)

    def refused(self, reply: Reply) -> openai.APIStatusError:
        self.upstream.queue(reply)
        try:
            self.ask()
        except openai.APIStatusError as error:
            return error
        raise AssertionError("no error came")

    @property
    def is_claude(self) -> bool:
        return self.speaks == "anthropic"


def unknown_request_field(way: Way) -> Cell:
    """An unknown field arrives, or is refused by name: Anthropic's API refuses what it does not know."""
    try:
        way.ask(extra_body=ODD)
    except openai.BadRequestError as error:
        named = "odd" in error.message
        return Cell("refused by name" if named else "refused", named and way.is_claude)
    kept = way.upstream.last.json.get("odd") == ODD["odd"]
    return Cell("kept" if kept else "lost", kept)


def upstream_id(way: Way) -> Cell:
    name = "msg_fidelity" if way.is_claude else "chatcmpl-fidelity"
    way.upstream.queue(say("Hi", id=name), say("Hi", id=name))
    found = {way.ask().id, *(chunk.id for chunk in way.ask(stream=True))}
    return Cell("kept" if found == {name} else "replaced", found == {name})


def usage_asked(way: Way) -> Cell:
    got = list(way.ask(stream=True, stream_options={"include_usage": True}))
    with_usage = [chunk for chunk in got if chunk.usage is not None]
    if not with_usage:
        return Cell("lost", False)
    is_spec = len(with_usage) == 1 and with_usage[0] is got[-1] and not with_usage[0].choices
    return Cell("spec" if is_spec else "beside choices", is_spec and with_usage[0].usage.total_tokens > 0)


def usage_not_asked(way: Way) -> Cell:
    got = list(way.ask(stream=True))
    is_clean = all(chunk.usage is None and chunk.choices for chunk in got)
    return Cell("none" if is_clean else "sent unasked", is_clean)


def too_many(way: Way) -> Cell:
    status = way.refused(_too_many(way)).status_code
    return Cell(str(status), status == 429)


def retry_after(way: Way) -> Cell:
    found = way.refused(_too_many(way)).response.headers.get("retry-after")
    return Cell("kept" if found == "7" else "lost" if found is None else found, found == "7")


def code_of_400(way: Way) -> Cell:
    """Anthropic has types and no codes: there the type and the message are what must come."""
    if way.is_claude:
        error = way.refused(refuse(400, "invalid_request_error", "Bad thing."))
        found, right = error.type, "invalid_request_error"
    else:
        error = way.refused(fail(400, "Bad thing.", code="bad_thing"))
        found, right = error.code, "bad_thing"
    is_right = found == right and error.status_code == 400 and "Bad thing." in error.message
    return Cell("kept" if is_right else f"{found}", is_right)


async def _leave(way: Way, *, stream: bool) -> float:
    """Asks, and leaves when the request has arrived. Returns when that was."""
    arrived = way.upstream.arrived(len(way.upstream.seen) + 1)
    async with openai.AsyncOpenAI(
        base_url=way.url, api_key="sk-app", default_headers=way.headers, max_retries=0
    ) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        asked = client.chat.completions.create(model="claude-opus-4-6", messages=messages, stream=stream)
        asking = asyncio.ensure_future(asked)
        await arrived.wait()
        begun = time.monotonic()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    return begun


def cancel(way: Way) -> Cell:
    """Returns the longest of three cancels: before a whole and a streamed answer, and in the middle of a stream."""
    longest = 0.0
    for stream, reply in (
        (False, say("Never", hold_before_headers=Gate())),
        (True, say("Never", hold_before_headers=Gate())),
        (True, say("One two three four", tokens=["One ", "two ", "three ", "four"], hold_after={5: Gate()})),
    ):
        count = len(way.upstream.seen)
        way.upstream.queue(reply)
        if reply.hold_after:
            chunks = way.ask(stream=True)
            next(iter(chunks))
            begun = time.monotonic()
            chunks.close()
        else:
            begun = asyncio.run(_leave(way, stream=stream))
        seen: Seen = way.upstream.seen[count]
        try:
            seen.gone.wait_sync()
        except TimeoutError:
            return Cell("never", False)
        assert seen.gone_at is not None
        longest = max(longest, seen.gone_at - begun)
    return Cell(f"{longest:.3f} s", True)


def _one_cancel(way: Way, reply: Reply, mark: bytes | None, *, stream: bool) -> float:
    """Returns the seconds from a client's leaving until the upstream sees it. mark: read before the client leaves."""
    way.upstream.queue(reply)
    count = len(way.upstream.seen)
    body = {
        "model": "claude-opus-4-6",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 100,
        "stream": stream,
    }
    headers = {"content-type": "application/json", "authorization": "Bearer sk-app", **way.headers}
    with RawClient(urlsplit(way.url).port or 80) as client:
        client.request("POST", "/v1/chat/completions", orjson.dumps(body), headers)
        way.upstream.arrived(count + 1).wait_sync()
        if mark is not None:
            client.read_until(mark)
        left = time.monotonic()
    seen = way.upstream.seen[count]
    seen.gone.wait_sync()
    assert seen.gone_at is not None
    return max(seen.gone_at - left, 0.0)


# name -> how the upstream is silent, what the client has read by then, and whether it asked for a stream
WINDOWS: dict[str, tuple[Callable[[], Reply], bytes | None, bool]] = {
    "before a whole answer": (lambda: say("Never", hold_before_headers=Gate()), None, False),
    "before a stream's headers": (lambda: say("Never", hold_before_headers=Gate()), None, True),
    "before its first word": (lambda: say("Never", hold_after={1: Gate()}), b"assistant", True),
    "in its middle": (
        lambda: say("One two three four", tokens=["One ", "two ", "three ", "four"], hold_after={5: Gate()}),
        b"two ",
        True,
    ),
}


def cancel_times(way: Way, count: int) -> dict[str, list[float]]:
    """Returns, by window, the seconds that each of so many cancels took to reach the upstream."""
    return {
        name: [_one_cancel(way, reply(), mark, stream=stream) for _ in range(count)]
        for name, (reply, mark, stream) in WINDOWS.items()
    }


def parallel_tools(way: Way) -> Cell:
    """Compares index, id, name and arguments of two calls, put together as clients do."""
    calls = (
        Call("get_weather", {"city": "Oslo"}, id="call_a", pieces=3),
        Call("get_weather", {"city": "Rome"}, id="call_b", pieces=4),
    )
    way.upstream.queue(call_tools(*calls, text="Let me see."))
    made: dict[int, list[str]] = {}
    for chunk in way.ask(stream=True, tools=[WEATHER]):
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or ():
                if piece.index not in made:
                    made[piece.index] = [piece.id or "", piece.function.name or "", ""]
                elif piece.id not in (None, made[piece.index][0]):
                    return Cell("ids change", False)
                made[piece.index][2] += piece.function.arguments or ""
    prefix = "toolu_" if way.is_claude else "call_"
    right = {
        0: [f"{prefix}a", "get_weather", '{"city":"Oslo"}'],
        1: [f"{prefix}b", "get_weather", '{"city":"Rome"}'],
    }
    return Cell("intact" if made == right else "broken", made == right)


def unknown_response_field(way: Way) -> Cell:
    """Sends an unknown field whole and streamed; Anthropic's stands in the message, where its API adds fields."""
    way.upstream.queue(say("Hi", extra=ODD), say("Hi", extra=ODD))
    replies = [way.ask().model_dump(), *(chunk.model_dump() for chunk in way.ask(stream=True))]
    found = [str(ODD["odd"]) in str(reply) for reply in replies[:2]]
    return Cell("kept" if all(found) else "lost", all(found))


def error_in_stream(way: Way) -> Cell:
    error = {"message": "Overloaded.", "type": "overloaded_error"}
    way.upstream.queue(say("One two", tokens=["One ", "two"], error_after=(5 if way.is_claude else 2, error)))
    text = ""
    try:
        for chunk in way.ask(stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    except openai.APIError as error:
        is_right = text.startswith("One ") and "Overloaded." in error.message
        return Cell("told" if is_right else "garbled", is_right)
    return Cell("lost", False)


def _too_many(way: Way) -> Reply:
    if way.is_claude:
        return refuse(429, "rate_limit_error", "Slow down.", retry_after="7")
    return fail(429, "Slow down.", code="rate_limit_exceeded", retry_after="7")


CHECKS: dict[str, Callable[[Way], Cell]] = {
    "unknown request field": unknown_request_field,
    "upstream id": upstream_id,
    "usage asked": usage_asked,
    "usage not asked": usage_not_asked,
    "429": too_many,
    "Retry-After": retry_after,
    "400 code": code_of_400,
    "cancel": cancel,
    "parallel tools": parallel_tools,
    "unknown response field": unknown_response_field,
    "error in stream": error_in_stream,
}

_OFF = {"x-mnemogate-memory": "off", "x-mnemogate-user": "alice"}
_ON = {"x-mnemogate-user": "alice"}
# name -> the upstream's dialect, and the headers of a request; None: not through the gateway
WAYS: dict[str, tuple[str, Json | None]] = {
    "openai, asked directly": ("openai", None),
    "openai, memory off": ("openai", _OFF),
    "openai, memory on": ("openai", _ON),
    "anthropic, memory off": ("anthropic", _OFF),
    "anthropic, memory on": ("anthropic", _ON),
}


@contextmanager
def open_way(name: str, folder: Path) -> Iterator[Way]:
    """Opens a way. folder: an empty one, for the database."""
    speaks, headers = WAYS[name]
    with ExitStack() as stack:
        if speaks == "anthropic":
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
        way = Way(name, url, upstream, speaks, headers or {})
        stack.callback(way.sdk.close)
        yield way
