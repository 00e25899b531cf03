"""Faults of upstreams, through OpenAI's SDK over real sockets: with memory and without, streamed and whole.

The upstream that fails speaks OpenAI's dialect or Anthropic's: to the application it makes no difference.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from gateway.run.upstream.failover import Endpoint
from gateway.settings import DeploymentSettings, ModelSettings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import (
    Call,
    Gate,
    Reply,
    Rules,
    Seen,
    StrictUpstream,
    call_tools,
    fail,
    full_backlog,
    raw,
    say,
)
from tests.gateway.sdk import CHAT, World, agent, remember

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
        headers = self.first.seen[place].headers
        is_claude = self.kind == "anthropic"
        return headers.get("x-api-key") if is_claude else headers.get("authorization", "")[len("Bearer ") :]

    def is_as_sent(self, body: bytes, fault: Reply) -> bool:
        """Whether an error came as it was told: its bytes, or those of an Anthropic in OpenAI's shape."""
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
        places = self.world.gateway.app.chat.failover.endpoints
        return next(place for group in places.values() for place in group if place.name == name)

    def counted(self, line: str) -> float:
        text = self.world.gateway.ask("GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def settle(self) -> None:
        """Everything is closed, and nobody counts as busy any more."""
        self.world.settle()
        for places in self.world.gateway.app.chat.failover.endpoints.values():
            assert [(p.health.in_flight, p.health.is_probing) for p in places] == [(0, False)] * len(places)


Open = Callable[..., AbstractContextManager[Two]]


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


only_openai = pytest.mark.parametrize("kind", ["openai"], indirect=True)


@pytest.fixture
def two(tmp_path: Path, kind: Any) -> Iterator[Open]:
    with Claude() if kind == "anthropic" else StrictUpstream() as first, StrictUpstream() as second:

        @contextmanager
        def opened(
            *,
            fallbacks: Sequence[str] = ("other",),
            url: str | None = None,
            window: int | None = None,
            deployments: Sequence[DeploymentSettings] = (),
            second_key: str | None = "k2",
            server: dict[str, Any] | None = None,
            profiles: Sequence[Any] = (),
            **of_first: Any,
        ) -> Iterator[Two]:
            of_first.setdefault("api_key", "k1")
            upstreams = (
                UpstreamSettings("first", kind, url or first.base_url, **of_first),
                UpstreamSettings("second", base_url=second.base_url, api_key=second_key),
            )
            models = (
                ModelSettings(
                    "m", "big", "first", fallbacks=tuple(fallbacks), deployments=tuple(deployments)
                ),
                ModelSettings("other", "small", "second", window),
            )
            parts: dict[str, Any] = {"upstreams": upstreams, "models": models, "server": server}
            with remember(first, tmp_path, *profiles, **parts) as world:
                found = Two(world, first, second, [], kind)
                failover = world.gateway.app.chat.failover

                async def sleep(seconds: float) -> None:
                    found.waits.append(seconds)

                failover.now, failover.sleep, failover.chance = (lambda: found.now), sleep, (lambda: 1.0)
                yield found
                found.settle()

        yield opened


both = pytest.mark.parametrize("memory", [True, False], ids=["memory", "plain"])
forms = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def refused_url() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


# --- another one answers


@both
@forms
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (BUSY, "429"),
        *((fail(status), str(status)) for status in (500, 502, 503, 504, 529)),
        (Reply(cut_before_headers=True), "unreachable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fallback_answers(two: Open, fault: Reply, kind: str, stream: bool, memory: bool) -> None:
    with two() as it:
        it.first.queue(fault)
        it.second.queue(say("From the second."))
        text, headers = it.ask(stream, memory)
        assert text == "From the second."
        assert headers["x-mnemogate-upstream"] == "second"
        assert headers["x-mnemogate-tries"] == f"first:{kind};second:200"
        assert (it.first.last.json["model"], it.second.last.json["model"]) == ("big", "small")
        assert it.first_key() == "k1"
        assert it.second.last.headers["authorization"] == "Bearer k2"
        assert it.counted(f'mnemogate_upstream_errors_total{{kind="{kind}",upstream="first"}}') == 1
        assert it.counted('mnemogate_upstream_tries_total{outcome="200",upstream="second"}') == 1
        assert it.waits == []


@both
@forms
def test_the_fallback_answers_where_nobody_listens(two: Open, stream: bool, memory: bool) -> None:
    with two(url=refused_url()) as it:
        text, headers = it.ask(stream, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("Ok.", "first:unreachable;second:200")


@both
@forms
def test_the_fallback_answers_when_there_is_no_connection_in_time(
    two: Open, stream: bool, memory: bool
) -> None:
    with full_backlog() as port, two(url=f"http://127.0.0.1:{port}/v1", connect_timeout_s=0.1) as it:
        text, headers = it.ask(stream, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("Ok.", "first:timeout;second:200")


@both
def test_no_connection_in_time_is_a_504_that_names_the_wait(two: Open, memory: bool) -> None:
    url = "http://127.0.0.1:{}/v1"
    with full_backlog() as port, two(fallbacks=(), url=url.format(port), connect_timeout_s=0.1) as it:
        with pytest.raises(openai.InternalServerError, match=r"no connection .* within 0\.1 s") as caught:
            it.ask(True, memory)
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")


@both
@forms
def test_the_fallback_answers_when_the_first_byte_does_not_come(
    two: Open, stream: bool, memory: bool
) -> None:
    with two(first_byte_timeout_s=0.3, retries=3) as it:  # long enough for the request to arrive
        it.first.queue(say("Too late.", hold_before_headers=Gate()))
        text, headers = it.ask(stream, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("Ok.", "first:timeout;second:200")
        it.first.last.gone.wait_sync()


@both
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_what_is_wrong_with_the_request_is_not_asked_elsewhere(two: Open, status: int, memory: bool) -> None:
    with two(retries=2) as it:
        it.first.queue(fail(status, code="no_good"))
        with pytest.raises(openai.APIStatusError) as caught:
            it.ask(False, memory)
        assert (caught.value.status_code, caught.value.code) == (status, "no_good")
        assert "x-mnemogate-tries" not in caught.value.response.headers
        assert it.second.seen == []


@both
@forms
def test_when_all_fail_the_last_error_is_the_answer(two: Open, stream: bool, memory: bool) -> None:
    last = fail(503, "The second is full.", code="full", retry_after="7")
    with two() as it:
        it.first.queue(BUSY)
        it.second.queue(last)
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(stream, memory)
        response = caught.value.response
        assert (caught.value.status_code, caught.value.code) == (503, "full")
        assert [response.content] == list(last.body or ())
        assert response.headers["retry-after"] == "7"
        assert response.headers["x-mnemogate-tries"] == "first:429;second:503"


@both
def test_an_error_of_ours_tells_the_tries_as_well(two: Open, memory: bool) -> None:
    with two() as it:
        it.first.queue(BUSY)
        it.second.queue(Reply(cut_before_headers=True))
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(True, memory)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
        assert caught.value.response.headers["x-mnemogate-tries"] == "first:429;second:unreachable"


@both
def test_the_callers_own_key_does_not_go_to_a_stand_in(two: Open, memory: bool) -> None:
    with two(api_key=None, second_key=None) as it:
        it.first.queue(fail(503))
        it.ask(False, memory)
        key = it.first.last.headers["authorization"]  # no key of Anthropic's, by its form: for it to judge
        assert key == "Bearer sk-app"
        assert "authorization" not in it.second.last.headers


@both
def test_the_window_is_that_of_who_answers(two: Open, memory: bool) -> None:
    talk = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " + "word " * 400} for n in range(9)
    ]
    with two(window=1500) as it:
        it.first.queue(fail(503))
        _, headers = it.ask(False, memory, messages=talk)
        assert len(it.first.last.messages) == 9
        assert 1 <= len(it.second.last.messages) < 9
        assert int(headers["x-mnemogate-evicted-tokens"]) > 0
        _, headers = it.ask(False, memory, messages=talk)
        assert headers["x-mnemogate-evicted-tokens"] == "0"


# what a provider says for itself, of a message and of its call; where the second finds nothing of it
THOUGHTS: list[tuple[dict[str, Any], str]] = [
    ({"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]}, "thinking_blocks"),
    ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "s", "index": 0}]}, "reasoning_details"),
]


@forms
@pytest.mark.parametrize(("thought", "field"), THOUGHTS, ids=[field for _, field in THOUGHTS])
@only_openai  # of Claude's own thoughts: tests/gateway/chat/test_anthropic.py
def test_what_only_one_provider_can_read_is_not_shown_to_its_stand_in(
    two: Open, thought: dict[str, Any], field: str, stream: bool
) -> None:
    def signed(name: str) -> dict[str, Any]:
        return json.loads(json.dumps(thought).replace('"s"', f'"{name}"'))  # type: ignore[no-any-return]

    def thoughts(seen: Seen) -> list[Any]:
        replies = [m for m in seen.messages if m["role"] == "assistant"]
        return [next((n for n in ("first", "second") if n in str(m.get(field))), None) for m in replies]

    with two() as it:
        it.first.rules = it.second.rules = Rules(unknown_parameters=False)
        talk: list[Any] = []

        def say_again(reply: Reply, upstream: StrictUpstream) -> Seen:
            upstream.queue(reply)
            talk.append({"role": "user", "content": f"This is question number {len(talk)}."})
            text, _ = it.ask(stream, True, messages=talk)
            talk.append({"role": "assistant", "content": text})
            it.world.settle()
            return upstream.last

        say_again(say("The first reply, of the first upstream.", delta=signed("first")), it.first)
        it.first.queue(fail(503))
        seen = say_again(say("The second reply, of the other upstream.", delta=signed("second")), it.second)
        assert thoughts(it.first.last) == ["first"]
        assert thoughts(seen) == [None]
        assert thoughts(say_again(say("The third reply."), it.first)) == ["first", None]


@forms
@only_openai
def test_readable_thoughts_of_a_hidden_round_are_not_shown_to_a_stand_in(two: Open, stream: bool) -> None:
    """The stand-in is strict: it would refuse a field that it does not know."""
    thought = {
        "reasoning": "Hm.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "index": 0}],
    }
    with two(profiles=[agent()]) as it:
        it.first.rules = Rules(unknown_parameters=False)
        it.first.queue(call_tools(INSERT, delta=thought), say("Noted."), fail(503))
        talk: list[Any] = [{"role": "user", "content": "I like tea."}]
        talk.append({"role": "assistant", "content": it.ask(stream, True, messages=talk, **AGENT)[0]})
        assert it.first.last.messages[-2]["reasoning"] == "Hm.", "its own provider gets it back"
        talk.append({"role": "user", "content": "What do I like?"})
        assert it.ask(stream, True, messages=talk, **AGENT)[0] == "Ok."
        assert "reasoning" not in json.dumps(it.second.last.messages)
        assert "memory_insert" in json.dumps(it.second.last.messages)


# --- nobody else to ask


@both
@forms
@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (BUSY, openai.RateLimitError, 429),
        (fail(500, code="oops"), openai.InternalServerError, 500),
        (fail(503, retry_after="20"), openai.InternalServerError, 503),
        (fail(529, code="overloaded"), openai.InternalServerError, 529),
        (fail(400, code="context_length_exceeded"), openai.BadRequestError, 400),
        (fail(401, code="invalid_api_key"), openai.AuthenticationError, 401),
        (fail(404, code="model_not_found"), openai.NotFoundError, 404),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_an_error_passes_as_it_is(
    two: Open, fault: Reply, kind: type[openai.APIStatusError], status: int, stream: bool, memory: bool
) -> None:
    with two(fallbacks=()) as it:
        it.first.queue(fault)
        with pytest.raises(kind) as caught:
            it.ask(stream, memory)
        response = caught.value.response
        assert response.status_code == status
        assert it.is_as_sent(response.content, fault)
        assert fault.headers.items() <= dict(response.headers).items()
        assert len(it.first.seen) == 1


@both
@forms
def test_a_lost_connection_is_not_sent_again_unasked(two: Open, stream: bool, memory: bool) -> None:
    with two(fallbacks=()) as it:
        it.first.queue(Reply(cut_before_headers=True))
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(stream, memory)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
        assert len(it.first.seen) == 1
        assert caught.value.response.headers["x-mnemogate-upstream"] == "first"


@both
def test_dialling_is_tried_twice(two: Open, memory: bool) -> None:
    with two(fallbacks=(), url=refused_url()) as it:
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(False, memory)
        assert caught.value.code == "upstream_unreachable"
        assert caught.value.response.headers["x-mnemogate-tries"] == "first:unreachable;first:unreachable"
        assert it.waits == [0.1]


@both
@forms
def test_retries_wait_as_long_as_they_are_told(two: Open, stream: bool, memory: bool) -> None:
    with two(fallbacks=(), retries=2) as it:
        it.first.queue(fail(503), fail(429, retry_after="1.5"), say("At last."))
        text, headers = it.ask(stream, memory)
        assert text == "At last."
        assert headers["x-mnemogate-tries"] == "first:503;first:429;first:200"
        assert it.waits == [0.1, 1.5]
        assert it.first.seen[0].body == it.first.seen[2].body
        assert it.first.opened == 1  # the errors were read, so that their connection goes on


def test_a_wait_that_is_too_long_is_the_clients(two: Open) -> None:
    with two(fallbacks=(), retries=2) as it:
        it.first.queue(BUSY)
        with pytest.raises(openai.RateLimitError) as caught:
            it.ask(False, False)
        assert caught.value.response.headers["retry-after"] == "30"
        assert (it.waits, len(it.first.seen)) == ([], 1)


# --- passing over who fails


@both
def test_the_breaker_opens_and_closes(two: Open, memory: bool) -> None:
    with two() as it:
        it.first.queue(*(fail(503) for _ in range(6)))
        for n in range(5):
            it.ask(False, memory, f"question {n}")
        assert len(it.first.seen) == 5
        _, headers = it.ask(False, memory, "the next question")
        assert len(it.first.seen) == 5  # it rests
        assert (headers["x-mnemogate-upstream"], "x-mnemogate-tries" in headers) == ("second", False)
        assert it.counted('mnemogate_upstream_resting{upstream="first"}') == 1
        it.now += 10
        assert it.ask(False, memory, "a probe")[1]["x-mnemogate-tries"] == "first:503;second:200"
        it.ask(False, memory, "again not")
        assert len(it.first.seen) == 6
        it.now += 10
        assert it.ask(False, memory, "another probe")[1]["x-mnemogate-upstream"] == "first"
        assert it.counted('mnemogate_upstream_resting{upstream="first"}') == 0


def test_who_said_when_to_come_back_is_left_alone_until_then(two: Open) -> None:
    with two() as it:
        it.first.queue(BUSY)
        for _ in range(3):
            assert it.ask(False, False)[1]["x-mnemogate-upstream"] == "second"
        assert len(it.first.seen) == 1
        it.now += 30
        assert it.ask(False, False)[1]["x-mnemogate-upstream"] == "first"


def test_the_only_one_is_always_asked(two: Open) -> None:
    with two(fallbacks=()) as it:
        it.first.queue(*([BUSY] * 8))
        for _ in range(8):
            with pytest.raises(openai.RateLimitError):
                it.ask(False, False)
        assert it.ask(False, False)[0] == "Ok."


def test_the_last_resort_is_one_that_rests(two: Open) -> None:
    with two() as it:
        it.first.queue(*(fail(503) for _ in range(5)))
        for n in range(5):
            it.ask(False, False, f"question {n}")
        it.second.queue(fail(500))
        assert it.ask(False, False)[1]["x-mnemogate-tries"] == "second:500;first:200"


def test_one_callers_limit_is_not_the_others(two: Open) -> None:
    """Where callers bring their own keys."""
    with two(api_key=None) as it:
        it.first.queue(BUSY)
        assert it.ask(False, False)[1]["x-mnemogate-upstream"] == "second"
        assert it.ask(False, False)[1]["x-mnemogate-upstream"] == "first"


# --- several keys, several places


@both
def test_another_key_answers_when_one_is_at_its_limit(two: Open, memory: bool) -> None:
    with two(fallbacks=(), api_key=("one", "two")) as it:
        it.first.queue(BUSY)
        _, headers = it.ask(False, memory)
        used = [it.first_key(place) for place in (0, 1)]
        assert sorted(map(str, used)) == ["one", "two"]
        names = ["first", "first#2"] if used[0] == "one" else ["first#2", "first"]
        assert headers["x-mnemogate-tries"] == f"{names[0]}:429;{names[1]}:200"
        it.ask(False, memory)
        assert it.first_key() == used[1]  # the other rests


@both
def test_conversations_are_spread_and_stay_where_they_are(two: Open, memory: bool) -> None:
    places = [DeploymentSettings("second", "big-two")]
    with two(fallbacks=(), deployments=places) as it:
        talks: list[list[Any]] = [[{"role": "user", "content": f"Conversation {n}"}] for n in range(12)]
        homes = [it.ask(False, memory, messages=talk)[1]["x-mnemogate-upstream"] for talk in talks]
        assert set(homes) == {"first", "second"}
        assert {seen.json["model"] for seen in it.second.seen} == {"big-two"}
        for talk in talks:
            talk += [{"role": "assistant", "content": "Ok."}, {"role": "user", "content": "And then?"}]
        assert [it.ask(False, memory, messages=talk)[1]["x-mnemogate-upstream"] for talk in talks] == homes


# --- a stream that begins with an error


def begins_with(kind: str, error: dict[str, Any], *, cut: int | None = None) -> Reply:
    data = orjson.dumps({"error": error} if kind == "openai" else {"type": "error", "error": error})
    event = (b"data: " if kind == "openai" else b"event: error\ndata: ") + data + b"\n\n"
    return raw(*((event,) if cut is None else (event[:cut], event[cut:])))


OVERLOADED = {"type": "overloaded_error", "message": "Overloaded."}


@both
@pytest.mark.parametrize("cut", [None, 12], ids=["at-once", "in-halves"])
def test_an_error_in_a_streams_first_event_is_tried_elsewhere(
    two: Open, cut: int | None, memory: bool
) -> None:
    with two() as it:
        it.first.queue(begins_with(it.kind, OVERLOADED, cut=cut))
        it.second.queue(say("From the second."))
        text, headers = it.ask(True, memory)
        assert text == "From the second."
        assert headers["x-mnemogate-tries"] == "first:529;second:200"
        it.settle()
        assert it.endpoint("first").health.failures == 1


@both
def test_an_error_in_a_streams_first_event_is_a_status(two: Open, memory: bool) -> None:
    with two(fallbacks=()) as it:
        it.first.queue(begins_with(it.kind, OVERLOADED))
        with pytest.raises(openai.InternalServerError) as busy:
            it.ask(True, memory)
        assert (busy.value.status_code, busy.value.type) == (529, "overloaded_error")
        assert "Overloaded." in busy.value.message
        it.first.queue(begins_with(it.kind, {"type": "rate_limit_error", "message": "Slow down."}))
        with pytest.raises(openai.RateLimitError):
            it.ask(True, memory)
        it.first.queue(say("Well again."))
        assert it.ask(True, memory)[0] == "Well again."


@both
def test_a_stream_that_stalls_before_its_first_event_is_tried_elsewhere(two: Open, memory: bool) -> None:
    with two(idle_timeout_s=0.05) as it:
        it.first.queue(say("One", hold_after={0: Gate()}))
        it.second.queue(say("From the second."))
        text, headers = it.ask(True, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("From the second.", "first:timeout;second:200")
        it.first.last.gone.wait_sync()


@both
def test_a_status_that_left_with_a_comment_is_not_taken_back(two: Open, memory: bool) -> None:
    with two(server={"keep_alive_comment_s": 60.0}) as it:
        it.first.queue(begins_with(it.kind, OVERLOADED))
        with pytest.raises(openai.APIError) as caught:
            it.ask(True, memory)
        assert type(caught.value) is openai.APIError
        assert it.second.seen == []


# --- in the middle of a reply


@both
def test_a_stream_that_stalls_ends_with_an_error_event(two: Open, memory: bool) -> None:
    with two(idle_timeout_s=0.05) as it:
        it.first.queue(say("One two three", hold_after={3: Gate()}))
        with pytest.raises(openai.APIError) as caught:
            it.ask(True, memory)
        assert (type(caught.value), caught.value.code) == (openai.APIError, "upstream_timeout")
        it.first.last.gone.wait_sync()
        assert it.second.seen == []
        it.settle()
        assert it.counted('mnemogate_upstream_errors_total{kind="timeout",upstream="first"}') == 1
        assert it.endpoint("first").health.failures == 1


@both
@pytest.mark.parametrize("limit", ["idle_timeout_s", "total_timeout_s"])
def test_a_whole_reply_that_stalls_is_a_504(two: Open, limit: str, memory: bool) -> None:
    halves = raw(b'{"choices":', b"[]}", content_type="application/json", hold_after={1: Gate()})
    with two(**{limit: 0.05}) as it:
        it.first.queue(halves)
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(False, memory)
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
        it.first.last.gone.wait_sync()
        assert it.second.seen == []


@both
def test_a_reply_that_takes_too_long_in_all_is_cut(two: Open, memory: bool) -> None:
    with two(total_timeout_s=0.1) as it:
        it.first.queue(say("One two three", hold_after={3: Gate()}))
        with pytest.raises(openai.APIError) as caught:
            it.ask(True, memory)
        assert caught.value.code == "upstream_timeout"
        assert "longer than 0.1 s" in caught.value.message


@both
def test_a_cut_stream_ends_with_an_error_event_and_is_not_begun_elsewhere(two: Open, memory: bool) -> None:
    with two(retries=2) as it:
        it.first.queue(say("One two three", cut_after=3))
        with pytest.raises(openai.APIError) as caught:
            it.ask(True, memory)
        assert caught.value.code == "upstream_broke"
        assert it.second.seen == []
        it.settle()
        assert it.counted('mnemogate_upstream_errors_total{kind="broke",upstream="first"}') == 1


@both
def test_a_cut_whole_reply_is_a_status(two: Open, memory: bool) -> None:
    with two(retries=2) as it:
        it.first.queue(say("One two three", cut_after=0))
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(False, memory)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_broke")
        assert len(it.first.seen) == 1
        assert it.second.seen == []


@both
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_half_an_event_does_not_spoil_the_error_after_it(two: Open, end: bytes, memory: bool) -> None:
    with two() as it:
        it.first.queue(raw(*_halves(it.kind, end), cut_after=2))
        options: Any = {"user": "alice"} if memory else {}
        stream = it.world.sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True, **options
        )
        got: list[str] = []
        with pytest.raises(openai.APIError) as caught:
            got.extend(chunk.choices[0].delta.content or "" for chunk in stream)
        assert ("".join(got), caught.value.code) == ("OneOne", "upstream_broke")


def _halves(kind: str, end: bytes) -> tuple[bytes, bytes]:
    """Two pieces of a stream that says "One" twice; the second ends within an event."""
    if kind == "anthropic":
        begun = {"type": "message_start", "message": {"id": "c", "model": "big", "usage": {}}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "One"}}
        events = [b"data: " + json.dumps(each).encode() + end for each in (begun, block, said)]
        return b"".join(events), events[-1] + b'data: {"type": "content_bl'
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "One"}, "finish_reason": None}
    event = b"data: " + json.dumps({**chunk, "choices": [delta]}).encode() + end
    return event, event + b'data: {"id": "c", "cho'


# --- hidden rounds

INSERT = Call("memory_insert", {"label": "human", "new_string": "likes tea"})
AGENT: dict[str, Any] = {"model": "agent/helper"}


@forms
def test_a_hidden_round_stays_where_the_first_was_answered(two: Open, stream: bool) -> None:
    with two(profiles=[agent()]) as it:
        it.first.queue(fail(503))
        it.second.queue(call_tools(INSERT), say("Noted."))
        text, headers = it.ask(stream, True, **AGENT)
        assert text == "Noted."
        assert (len(it.first.seen), len(it.second.seen)) == (1, 2)
        assert [seen.json["model"] for seen in it.second.seen] == ["small", "small"]
        assert it.second.last.headers["authorization"] == "Bearer k2"
        assert headers["x-mnemogate-upstream"] == "second"


@forms
def test_an_error_of_a_hidden_round_is_a_status_and_nobody_elses(two: Open, stream: bool) -> None:
    with two(profiles=[agent()]) as it:
        it.first.queue(call_tools(INSERT), BUSY)
        with pytest.raises(openai.RateLimitError) as caught:
            it.ask(stream, True, **AGENT)
        assert caught.value.response.headers["retry-after"] == "30"
        assert it.second.seen == []


def test_a_hidden_round_is_retried_while_the_client_has_nothing(two: Open) -> None:
    with two(profiles=[agent()], retries=1) as it:
        it.first.queue(call_tools(INSERT), fail(503), say("Noted."))
        text, headers = it.ask(True, True, **AGENT)
        assert (text, headers["x-mnemogate-tries"]) == ("Noted.", "first:200;first:503;first:200")


def test_after_text_nothing_is_retried(two: Open) -> None:
    with two(profiles=[agent()], retries=2) as it:
        it.first.queue(call_tools(INSERT, text="Let me see. "), fail(503, code="full"))
        with pytest.raises(openai.APIError) as caught:
            it.ask(True, True, **AGENT)
        assert caught.value.code == "full"
        assert len(it.first.seen) == 2
        assert it.second.seen == []


# --- the client leaves


def leave(it: Two, memory: bool, gate: Callable[[], None], **more: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more}
    if memory:
        body["user"] = "alice"
    with it.world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(body).encode())
        gate()


@both
@forms
def test_a_client_that_leaves_between_two_tries(two: Open, stream: bool, memory: bool) -> None:
    with two(fallbacks=(), retries=3) as it:
        waiting, ended = Gate(), Gate()

        async def sleep(_: float) -> None:
            waiting.open()
            try:
                await asyncio.Event().wait()
            finally:
                ended.open()

        it.world.gateway.app.chat.failover.sleep = sleep
        it.first.queue(fail(503))
        leave(it, memory, waiting.wait_sync, stream=stream)
        ended.wait_sync()
        it.settle()
        assert len(it.first.seen) == 1
        assert it.world.gateway.last_line()["status"] == 499


@both
@forms
def test_a_client_that_leaves_while_the_fallback_thinks(two: Open, stream: bool, memory: bool) -> None:
    with two() as it:
        it.first.queue(fail(503))
        it.second.queue(say("Too late.", hold_before_headers=Gate()))
        leave(it, memory, it.second.arrived(1).wait_sync, stream=stream)
        it.second.last.gone.wait_sync()


def test_a_probe_that_is_cancelled_leaves_the_breaker_to_the_next(two: Open) -> None:
    with two() as it:
        it.first.queue(*(fail(503) for _ in range(5)))
        for n in range(5):
            it.ask(False, False, f"question {n}")
        it.now += 10
        it.first.queue(say("Too late.", hold_before_headers=Gate()))
        leave(it, False, it.first.arrived(6).wait_sync)
        it.first.last.gone.wait_sync()
        it.settle()
        assert it.ask(False, False)[1]["x-mnemogate-upstream"] == "first"


# --- signs of life


@both
def test_silence_is_filled_with_comments_after_the_upstreams_headers(two: Open, memory: bool) -> None:
    for at in (0, 3):
        gate = Gate()
        with two(server={"keep_alive_comment_s": 0.01}) as it:
            it.first.queue(say("One two three", hold_after={at: gate}))
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            if memory:
                body["user"] = "alice"
            with it.world.gateway.connect() as client:
                client.request("POST", CHAT, json.dumps(body).encode())
                assert client.read_head().status == 200
                got = client.read_until(b": keep-alive\n\n")
                gate.open()
                got += client.read_until(b"data: [DONE]\n\n")
        assert b'"content":"' in got
        assert (b'"content":" three"' in got, got.count(b"[DONE]")) == (True, 1)


@both
@only_openai
def test_a_comment_does_not_stand_within_an_event(two: Open, memory: bool) -> None:
    """The half of one that is there waits for the other."""
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[%b]}\n\n'
    first = chunk % b'{"index":0,"delta":{"role":"assistant","content":"One"},"finish_reason":null}'
    second = chunk % b'{"index":0,"delta":{"content":" two"},"finish_reason":"stop"}'
    gate = Gate()
    with two(server={"keep_alive_comment_s": 0.01}) as it:
        it.first.queue(raw(first + second[:50], second[50:], b"data: [DONE]\n\n", hold_after={1: gate}))
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        if memory:
            body["user"] = "alice"
        with it.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode())
            client.read_head()
            got = b""
            while piece := client.read_chunk():
                got += piece
                if b": keep-alive\n\n" in got:
                    gate.open()
        events = [event + b"\n\n" for event in got.split(b"\n\n")[:-1] if event != b": keep-alive"]
        assert events == [first, second, b"data: [DONE]\n\n"]


@both
def test_an_upstream_that_answers_late_is_still_a_status(two: Open, memory: bool) -> None:
    with two(
        fallbacks=(),
        retries=1,
        server={"keep_alive_comment_s": 0.001},
    ) as it:
        it.first.queue(fail(503), fail(503, code="full"))
        with pytest.raises(openai.InternalServerError) as caught:
            it.ask(True, memory)
        assert (caught.value.status_code, caught.value.code) == (503, "full")


def test_no_comment_commits_to_a_status_while_a_hidden_round_is_possible(two: Open) -> None:
    """By the time a stream that began later has its comment, this one had its turn to have one."""
    silent = Gate()
    server = {"keep_alive_comment_s": 0.01}
    with two(profiles=[agent()], server=server) as it:
        it.first.queue(call_tools(INSERT, hold_after={1: silent}), say("One", hold_after={1: silent}), BUSY)
        body = {**AGENT, "user": "alice", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with it.world.gateway.connect() as client, it.world.gateway.connect() as later:
            client.request("POST", CHAT, json.dumps(body).encode())
            it.first.arrived(1).wait_sync()
            later.request("POST", CHAT, json.dumps({**body, "model": "m", "user": "bob"}).encode())
            later.read_until(b": keep-alive\n\n")
            silent.open()
            later.read_until(b"data: [DONE]\n\n")
            reply = client.read_reply()
        assert (reply.status, reply.headers["retry-after"]) == (429, "30")


def test_a_later_round_that_thinks_long_is_covered(two: Open) -> None:
    """The client has text, so it may hear that we live, also before the second reply's headers."""
    thinking = Gate()
    server = {"keep_alive_comment_s": 0.01}
    with two(profiles=[agent()], server=server) as it:
        it.first.queue(call_tools(INSERT, text="Let me see. "), say("Noted.", hold_before_headers=thinking))
        body = {**AGENT, "user": "alice", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with it.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body).encode())
            it.first.arrived(2).wait_sync()
            client.read_until(b"see.")
            client.read_until(b": keep-alive\n\n")
            thinking.open()
            assert b"Noted." in client.read_until(b"data: [DONE]\n\n")


# --- vendors' envelopes

VAPI = {
    "call": {"id": "call_1", "type": "webCall"},
    "customer": {"number": "+15550100"},
    "phoneNumber": {"id": "pn"},
    "metadata": {"nested": {"a": 1}},
}
ELEVENLABS = {"user_id": "alice", "elevenlabs_extra_body": {"room": 3}}


@forms
@pytest.mark.parametrize(
    ("envelope", "named", "mode"),
    [
        (VAPI, "call,customer,phoneNumber,metadata", "on"),
        (VAPI, "call,customer,phoneNumber,metadata", "off"),
        (ELEVENLABS, "user_id,elevenlabs_extra_body", "on"),
        ({"metadata": {"topic": "cats"}}, "metadata", "on"),
    ],
)
def test_an_envelope_is_read_and_stays_here(
    two: Open, envelope: dict[str, Any], named: str, mode: str, stream: bool
) -> None:
    """The strict upstream refuses each of these fields."""
    with two() as it:
        it.first.queue(fail(503))
        memory = {"x-mnemogate-memory": mode}
        text, headers = it.ask(stream, False, headers=memory, extra_body=envelope, temperature=0)
        assert (text, headers["x-mnemogate-consumed"]) == ("Ok.", named)
        assert not set(it.second.last.json) & set(envelope)
        assert it.second.last.json["temperature"] == 0
        if "metadata" not in named.partition(",")[0] and mode == "on":
            assert headers["x-mnemogate-memory"] == "on"  # it said whose memory it is


@only_openai  # an Anthropic's request is written anew
def test_only_the_envelope_is_taken_off(two: Open) -> None:
    body = b'{ "call" : {"id":"c"}, "model":"big" ,"messages":[{"role":"user","content":"\\u0041"}],"n":1.0 }'
    with two() as it:
        it.first.rules = Rules(unknown_parameters=False)
        it.world.gateway.post(body.replace(b'"big"', b'"m"'), {"x-mnemogate-memory": "off"})
        assert it.first.last.body == body.replace(b'"call" : {"id":"c"}, ', b"")


@both
@only_openai  # Anthropic has no `store`, which is refused by name: tests/adapters/test_anthropic.py
def test_metadata_with_store_goes_on(two: Open, memory: bool) -> None:
    with two() as it:
        _, headers = it.ask(False, memory, metadata={"a": "b"}, store=True)
        assert it.first.last.json["metadata"] == {"a": "b"}
        assert "x-mnemogate-consumed" not in headers
