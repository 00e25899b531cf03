"""Faults of upstreams on the other endpoints: who is asked next, with which key, and what is sent only once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.core.upstream.policy import Policy
from gateway.settings import DeploymentSettings, ModelSettings, UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Reply, StrictUpstream, fail
from tests.gateway.upstream.forms import FORM, JSON, form
from tests.patience import becomes
from tests.server import RawReply, RunningGateway, serve, settings_for

BATCH = b'{"input_file_id":"f","endpoint":"/v1/embeddings","completion_window":"24h"}'
SPEECH = b'{"model":"m","input":"x","voice":"v"}'
FAILURES = Policy().breaker_failures
BUSY = fail(429, "Slow down.", code="rate_limit_exceeded", retry_after="1")


@dataclass
class Two:
    """A gateway before two upstreams: `m` and `m2` are models of the first, `other` is one of the second."""

    gateway: RunningGateway
    first: StrictUpstream
    second: StrictUpstream
    waits: list[float]

    def embed(self, model: str = "m", **headers: str) -> RawReply:
        body = json.dumps({"model": model, "input": "x"}).encode()
        return self.gateway.ask("POST", "/v1/embeddings", body, {**JSON, **headers})

    def models(self, upstream: StrictUpstream) -> list[str]:
        return [json.loads(request.body)["model"] for request in upstream.requests]

    def keys(self) -> list[str]:
        """With which key each request came to the first one."""
        return [
            request.headers.get("authorization", "").removeprefix("Bearer ")
            for request in self.first.requests
        ]


Open = Callable[..., AbstractContextManager[Two]]


@pytest.fixture
def two(upstream: StrictUpstream) -> Iterator[Open]:
    with StrictUpstream() as second:

        @contextmanager
        def opened(
            *,
            fallbacks: Sequence[str] = (),
            deployments: Sequence[DeploymentSettings] = (),
            second_key: str | None = "k2",
            claude: StrictAnthropic | None = None,
            server: dict[str, Any] | None = None,
            **of_first: Any,
        ) -> Iterator[Two]:
            upstreams = [
                UpstreamSettings(
                    "first", base_url=upstream.base_url, **{"takes": {"responses": "stored"}, **of_first}
                ),
                UpstreamSettings("second", base_url=second.base_url, api_key=second_key),
            ]
            models = [
                ModelSettings(
                    "m", "big", "first", fallbacks=tuple(fallbacks), deployments=tuple(deployments)
                ),
                ModelSettings("m2", "big-two", "first", fallbacks=tuple(fallbacks)),
                ModelSettings("other", "small", "second"),
            ]
            if claude is not None:
                upstreams.append(UpstreamSettings("claude", "anthropic", claude.base_url, api_key="k3"))
                models.append(ModelSettings("opus", "claude-opus-4-6", "claude"))
            settings = settings_for(upstream, upstreams=tuple(upstreams), models=tuple(models), server=server)
            with serve(settings) as gateway:
                waits: list[float] = []

                async def sleep(seconds: float) -> None:
                    waits.append(seconds)

                failover = gateway.app.services.chat.failover
                failover.sleep, failover.chance = sleep, (lambda: 1.0)
                yield Two(gateway, upstream, second, waits)
                places = [place for group in failover.endpoints.values() for place in group]
                becomes(lambda: not any(place.health.in_flight for place in places))

        yield opened


# --- another one answers


@pytest.mark.parametrize("fault", [BUSY, fail(503), Reply(cut_before_headers=True)])
def test_the_fallback_answers_under_its_own_name(two: Open, fault: Reply) -> None:
    with two(fallbacks=["other"], api_key="k1") as it:
        it.first.queue(fault)
        reply = it.embed()
        assert (reply.status, reply.headers["x-mnemogate-upstream"]) == (200, "second")
        kind = fault.status if fault.body else "unreachable"
        assert reply.headers["x-mnemogate-tries"] == f"first:{kind};second:200"
        assert (it.models(it.first), it.models(it.second)) == (["big"], ["small"])
        assert it.second.last.headers["authorization"] == "Bearer k2"
        counted = it.gateway.ask("GET", "/metrics").body.decode()
        assert f'mnemogate_upstream_tries_total{{outcome="{kind}",upstream="first"}} 1.0' in counted


def test_a_claude_does_not_stand_in_for_what_it_has_not(two: Open) -> None:
    with StrictAnthropic() as claude, two(fallbacks=["opus", "other"], claude=claude) as it:
        it.first.queue(fail(503))
        assert it.embed().headers["x-mnemogate-tries"] == "first:503;second:200"
        assert claude.requests == []


def test_the_callers_own_key_does_not_go_to_a_stand_in(two: Open) -> None:
    with two(fallbacks=["other"], second_key=None) as it:
        it.first.queue(fail(503))
        it.embed(authorization="Bearer sk-callers")
        assert it.keys() == ["sk-callers"]
        assert "authorization" not in it.second.last.headers


def test_another_key_answers_when_one_is_at_its_limit(two: Open) -> None:
    with two(api_key=("one", "two")) as it:
        it.first.queue(fail(429, retry_after="60"))
        assert it.embed().status == 200
        used = it.keys()
        assert sorted(used) == ["one", "two"]
        for _ in range(5):
            it.embed()
        assert it.keys()[2:] == [used[1]] * 5, "the other rests"


def test_requests_are_spread_over_keys_and_deployments(two: Open) -> None:
    with two(api_key=("one", "two"), deployments=[DeploymentSettings("second", "big-two")]) as it:
        for _ in range(30):
            assert it.embed().status == 200
        assert set(it.keys()) == {"one", "two"}
        assert set(it.models(it.second)) == {"big-two"}


def test_forms_are_spread_too_each_with_the_name_of_its_deployment(two: Open) -> None:
    with two(deployments=[DeploymentSettings("second", "big-two")]) as it:
        body = form(("model", b"m"), ("*file", b"x"))
        for _ in range(12):
            assert it.gateway.ask("POST", "/v1/audio/transcriptions", body, FORM).status == 200
        for upstream, name in ((it.first, b"big"), (it.second, b"big-two")):
            assert {request.body for request in upstream.requests} == {form(("model", name), ("*file", b"x"))}


def test_a_breaker_rests_who_keeps_failing(two: Open) -> None:
    with two(fallbacks=["other"]) as it:
        it.first.queue(*(fail(500) for _ in range(FAILURES)))
        for _ in range(FAILURES + 2):
            assert it.embed().status == 200
        assert len(it.first.requests) == FAILURES


# --- the same one again, or not


def test_retries_wait_as_long_as_the_upstream_asks(two: Open) -> None:
    with two(retries=2) as it:
        it.first.queue(BUSY, fail(500))
        assert it.embed().headers["x-mnemogate-tries"] == "first:429;first:500;first:200"
        assert it.waits == [1.0, 0.2]


def test_a_request_that_is_at_fault_is_not_sent_again(two: Open) -> None:
    """Not even where the words are those by which a chat would be cut."""
    with two(fallbacks=["other"], retries=2) as it:
        failure = fail(400, "This model's maximum context length is 8192 tokens.")
        it.first.queue(failure)
        reply = it.embed()
        assert (reply.status, [reply.body]) == (400, list(failure.body or ()))
        assert (len(it.first.requests), it.second.requests) == (1, [])


KEPT = [
    ("POST", "/v1/batches", BATCH),
    ("POST", "/v1/responses", b'{"model":"m","input":"x"}'),
    ("POST", "/v1/uploads", b'{"bytes":1,"filename":"f","mime_type":"t","purpose":"batch"}'),
    ("POST", "/v1/batches/batch_1/cancel", b"{}"),
]


@pytest.mark.parametrize(("method", "path", "body"), KEPT)
def test_a_request_that_stores_something_is_sent_once_on_a_connection_that_closes(
    two: Open, method: str, path: str, body: bytes
) -> None:
    """The upstream may have read it before."""
    with two(retries=2) as it:
        assert it.gateway.ask(method, path, body, JSON).status == 200
        it.first.queue(Reply(cut_before_headers=True))
        assert it.gateway.ask(method, path, body, JSON).status == 502
        assert [request.connection for request in it.first.requests] == [1, 1]


@pytest.mark.parametrize(("method", "path", "body"), KEPT)
def test_a_request_that_stores_something_is_sent_once_and_with_one_key(
    two: Open, method: str, path: str, body: bytes | None
) -> None:
    """It may be there although the answer says that it is not; and what one key made another may not see."""
    with two(fallbacks=["other"], api_key=("one", "two"), retries=2) as it:
        failure = fail(500, retry_after="1")
        it.first.queue(failure)
        reply = it.gateway.ask(method, path, body, JSON if body else {})
        assert (reply.status, reply.headers["retry-after"]) == (500, "1")
        for _ in range(5):
            it.gateway.ask(method, path, body, JSON if body else {})
        assert (it.keys(), it.second.requests) == (["one"] * 6, [])


@pytest.mark.parametrize(("method", "path", "body"), KEPT)
def test_a_request_that_was_refused_for_now_is_sent_again(
    two: Open, method: str, path: str, body: bytes | None
) -> None:
    with two(fallbacks=["other"], api_key=("one", "two"), retries=1) as it:
        it.first.queue(BUSY)
        assert it.gateway.ask(method, path, body, JSON if body else {}).status == 200
        assert (it.keys(), it.waits, it.second.requests) == (["one"] * 2, [1.0], [])


def test_a_request_that_only_reads_is_sent_again(two: Open) -> None:
    with two(api_key=("one", "two"), retries=1) as it:
        it.first.queue(fail(500))
        assert it.gateway.ask("GET", "/v1/files").headers["x-mnemogate-tries"] == "first:500;first:200"
        assert it.keys() == ["one", "one"]


def test_an_upload_passes_once(two: Open) -> None:
    with two(fallbacks=["other"], api_key=("one", "two"), retries=2) as it:
        it.first.queue(fail(503))
        body = form(("model", b"m"), ("*file", b"x"))
        assert it.gateway.ask("POST", "/v1/audio/transcriptions", body, FORM).status == 503
        assert (len(it.first.requests), it.second.requests) == (1, [])


def break_off(it: Two) -> None:
    """Uploads more than the limit, and returns when the upstream has seen its request end early."""
    with it.gateway.connect() as client:
        there = it.first.byte_gate(10_000)
        sent = {**FORM, "transfer-encoding": "chunked"}
        client.request("POST", "/v1/audio/transcriptions", None, sent)
        body = form(("model", b"m"), ("*file", b"x" * 100_000))
        for piece in (body[:20_000], body[20_000:]):
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            there.wait_sync()
        client.send(b"0\r\n\r\n")
        assert client.read_reply().status == 413
    it.first.broken_off.wait_sync()


def test_an_upload_that_ends_early_is_no_fault_of_the_upstream(two: Open) -> None:
    with two(fallbacks=["other"], server={"max_upload_bytes": 50_000}) as it:
        for _ in range(FAILURES):
            break_off(it)
        counted = it.gateway.ask("GET", "/metrics").body.decode()
        assert "mnemogate_upstream_errors_total{kind=" not in counted
        reply = it.gateway.ask("POST", "/v1/audio/speech", SPEECH, JSON)
        assert reply.headers["x-mnemogate-upstream"] == "first"


def test_a_limit_of_one_model_is_not_that_of_the_others(two: Open) -> None:
    """The providers limit by model: while embeddings are at their limit, others still reach that upstream."""
    with two(fallbacks=["other"], api_key="k1") as it:
        it.first.queue(fail(429, retry_after="60"))
        assert [it.embed().headers["x-mnemogate-upstream"] for _ in range(2)] == ["second"] * 2
        assert (
            'mnemogate_upstream_resting{upstream="first"} 1.0'
            in it.gateway.ask("GET", "/metrics").body.decode()
        )
        assert it.embed("m2").headers["x-mnemogate-upstream"] == "first"
        assert it.embed().headers["x-mnemogate-upstream"] == "second", "it was told to come back later"


def test_a_model_at_its_limit_does_not_open_the_breaker(two: Open) -> None:
    """With nobody to stand in it is asked again and again; the upstream is well, and others are served."""
    with two(fallbacks=["other"], api_key="k1") as it:
        it.first.queue(*(fail(429, retry_after="60") for _ in range(FAILURES)))
        alone = {"x-mnemogate-upstream": "first"}
        assert [it.embed(**alone).status for _ in range(FAILURES)] == [429] * FAILURES
        assert it.embed("m2").headers["x-mnemogate-upstream"] == "first"
