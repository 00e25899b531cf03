"""Faults of upstreams, through OpenAI's SDK over real sockets: with memory and without, streamed and whole.

The upstream that fails speaks OpenAI's dialect or Anthropic's: to the application it makes no difference.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import openai
import orjson
import pytest

from gateway.settings import BlockSettings, DeploymentSettings
from tests.doubles.upstream import (
    Gate,
    Reply,
    Rules,
    StrictUpstream,
    UpstreamRequest,
    call_tools,
    fail,
    full_backlog,
    raw,
    say,
)
from tests.gateway.sdk import agent
from tests.gateway.upstream.failover_world import AGENT, BUSY, INSERT, OpenFailover, both, forms, only_openai
from tests.patience import PATIENCE_S, SHORT_S, becomes
from tests.server import held_port


@contextmanager
def refused_url() -> Iterator[str]:
    with held_port() as port:
        yield f"http://127.0.0.1:{port}/v1"


# --- another one answers


MOVED = fail(308, "Moved.")
MOVED.headers["location"] = "https://moved.example/"  # type: ignore[index]
FAULTS = [
    (
        Reply(cut_before_headers=True),
        "unreachable",
    ),  # first, as an idle connection that is cut is dialled again
    (BUSY, "429"),
    *((fail(status), str(status)) for status in (402, 408, 500, 502, 503, 504, 520, 524, 529)),
    (MOVED, "unreachable"),
]


@both
@forms
def test_the_fallback_answers(
    open_failover: OpenFailover, subtests: pytest.Subtests, stream: bool, memory: bool
) -> None:
    with open_failover() as world:
        for number, (fault, kind) in enumerate(FAULTS):
            world.now += 1000.0  # the first one is asked again
            world.find_endpoint("first").health.failure_count = 0
            with subtests.test(f"{number} {kind}"):
                errors = f'mnemogate_upstream_errors_total{{kind="{kind}",upstream="first"}}'
                before = world.read_metric(errors)
                world.first.queue(fault)
                world.second.queue(say("From the second."))
                text, headers = world.chat(stream, memory, f"Question {number}?")
                assert text == "From the second."
                assert headers["x-mnemogate-upstream"] == "second"
                assert headers["x-mnemogate-tries"] == f"first:{kind};second:200"
                assert (world.first.last.json["model"], world.second.last.json["model"]) == ("big", "small")
                assert world.get_first_key() == "k1"
                assert world.second.last.headers["authorization"] == "Bearer k2"
                assert world.read_metric(errors) == before + 1
                assert world.count_tries("second", "200") == number + 1
                assert world.waits == []


# Bodies under a 200 that are no completion, with their media types.
EMPTY = [
    (b"", "application/json"),
    (b"<html>Login</html>", "text/html"),
    (b"null", "application/json"),
    (b"{}", "application/json"),
    (b'{"id":"1","object":"chat.completion","choices":[]}', "application/json"),
    (b'{"id":"1","object":"chat.completion","choices":[null]}', "application/json"),
]


@only_openai
@both
@pytest.mark.parametrize(("body", "media_type"), EMPTY)
def test_the_fallback_answers_in_place_of_a_body_that_is_no_completion(
    open_failover: OpenFailover, memory: bool, body: bytes, media_type: str
) -> None:
    with open_failover() as world:
        world.first.queue(raw(body, content_type=media_type))
        world.second.queue(say("From the second."))
        text, headers = world.chat(False, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("From the second.", "first:broke;second:200")
        assert world.find_endpoint("first").health.failure_count == 1


@only_openai
def test_a_refusal_under_a_200_is_an_answer_though_it_has_no_choices(open_failover: OpenFailover) -> None:
    with open_failover() as world:
        refusal = b'{"choices":[],"error":{"message":"Too hot.","type":"invalid_request_error","code":400}}'
        world.first.queue(raw(refusal, content_type="application/json"))
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        assert world.world.gateway.ask("POST", "/v1/chat/completions", body).status == 400
        assert not world.second.requests


@only_openai
def test_an_object_of_other_fields_passes_as_it_came(open_failover: OpenFailover) -> None:
    """xAI answers so when a completion is deferred."""
    with open_failover() as world:
        world.first.queue(raw(b'{"request_id":"r1"}', content_type="application/json"))
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        assert world.world.gateway.ask("POST", "/v1/chat/completions", body).body == b'{"request_id":"r1"}'
        assert not world.second.requests


def test_the_fallback_makes_a_response_in_the_background(open_failover: OpenFailover) -> None:
    with open_failover() as world:
        world.first.queue(fail(503))
        world.second.queue(say("From the second."))
        responses = world.world.sdk.responses
        made = responses.create(model="m", input="Hi", user="alice", background=True)
        becomes(lambda: responses.retrieve(made.id).status not in ("queued", "in_progress"))
        assert responses.retrieve(made.id).output_text == "From the second."


@only_openai
@both
@forms
def test_a_query_goes_to_the_upstream_that_it_is_meant_for(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover() as world:
        world.chat(stream, memory, extra_query={"api-version": "preview", "x": ["1", "ü/ 2"]})
        sent = "api-version=preview&x[]=1&x[]=%C3%BC/+2"
        assert parse_qsl(world.first.last.query) == parse_qsl(sent)
        world.first.queue(fail(503))
        world.chat(stream, memory, extra_query={"api-version": "preview"})
        assert (world.first.last.query, world.second.last.query) == ("api-version=preview", "")


@both
@forms
def test_the_fallback_answers_where_the_upstream_is_unreachable(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with refused_url() as url, open_failover(url=url) as world:
        text, headers = world.chat(stream, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("Ok.", "first:unreachable;second:200")


@both
@forms
def test_the_fallback_answers_when_there_is_no_connection_in_time(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with (
        full_backlog() as port,
        open_failover(url=f"http://127.0.0.1:{port}/v1", connect_timeout_s=0.1) as world,
    ):
        text, headers = world.chat(stream, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("Ok.", "first:timeout;second:200")


@both
def test_no_connection_in_time_is_a_504_that_names_the_wait(
    open_failover: OpenFailover, memory: bool
) -> None:
    url = "http://127.0.0.1:{}/v1"
    with (
        full_backlog() as port,
        open_failover(fallbacks=(), url=url.format(port), connect_timeout_s=0.1) as world,
    ):
        with pytest.raises(openai.InternalServerError, match=r"no connection .* within 0\.1 s") as caught:
            world.chat(True, memory)
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")


@both
@forms
def test_the_fallback_answers_when_the_first_byte_does_not_come(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover(first_byte_timeout_s=SHORT_S, retries=3) as world:
        world.first.queue(say("Too late.", hold_before_headers=Gate()))
        text, headers = world.chat(stream, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("Ok.", "first:timeout;second:200")
        for request in world.first.requests:  # on a busy machine it is given up before it arrives
            request.gone.wait_sync()


@both
def test_a_request_that_is_at_fault_is_sent_to_no_fallback(
    open_failover: OpenFailover, subtests: pytest.Subtests, memory: bool
) -> None:
    with open_failover(retries=2) as world:
        for status in (400, 401, 403, 404, 409, 422, 501):
            with subtests.test(status=status):
                world.first.queue(fail(status, code="no_good"))
                with pytest.raises(openai.APIStatusError) as caught:
                    world.chat(False, memory, f"Question {status}?")
                assert (caught.value.status_code, caught.value.code) == (status, "no_good")
                assert "x-mnemogate-tries" not in caught.value.response.headers
        assert world.second.requests == []


@both
@forms
def test_when_all_fail_the_last_error_is_the_answer(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    last = fail(503, "The second is full.", code="full", retry_after="7")
    with open_failover() as world:
        world.first.queue(BUSY)
        world.second.queue(last)
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(stream, memory)
        response = caught.value.response
        assert (caught.value.status_code, caught.value.code) == (503, "full")
        assert [response.content] == list(last.body or ())
        assert response.headers["retry-after"] == "7"
        assert response.headers["x-mnemogate-tries"] == "first:429;second:503"


@both
def test_an_error_of_the_gateway_names_the_attempts_as_well(
    open_failover: OpenFailover, memory: bool
) -> None:
    with open_failover() as world:
        world.first.queue(BUSY)
        world.second.queue(Reply(cut_before_headers=True))
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(True, memory)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
        assert caught.value.response.headers["x-mnemogate-tries"] == "first:429;second:unreachable"


@both
def test_the_callers_own_key_does_not_go_to_a_stand_in(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(api_key=None, second_key=None) as world:
        world.first.queue(fail(503))
        world.chat(False, memory)
        key = world.first.last.headers["authorization"]  # no key of Anthropic's, by its form: for it to judge
        assert key == "Bearer sk-app"
        assert "authorization" not in world.second.last.headers


@both
def test_the_window_is_that_of_who_answers(open_failover: OpenFailover, memory: bool) -> None:
    talk = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " + "word " * 400} for n in range(9)
    ]
    with open_failover(window=1500) as world:
        world.first.queue(fail(503))
        _, headers = world.chat(False, memory, messages=talk)
        assert len(world.first.last.messages) == 9
        assert 1 <= len(world.second.last.messages) < 9
        assert int(headers["x-mnemogate-evicted-tokens"]) > 0
        _, headers = world.chat(False, memory, messages=talk)
        assert headers["x-mnemogate-evicted-tokens"] == "0"


# nothing of which may be left out for a window that is too small
CHATTY: Any = {
    "model": "m",
    "input": [{"role": role, "content": "Hi. " * 100} for role in ("user", "assistant", "user")],
    "truncation": "disabled",
}


@both
@forms
def test_a_fallback_whose_window_is_too_small_is_passed_over(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    asked = {**CHATTY, "store": memory, "user": "alice" if memory else "", "stream": stream}
    with open_failover(window=200, fallbacks=("other", "large"), profiles=[agent()]) as world:
        world.first.queue(fail(503))
        world.world.sdk.responses.create(**asked)
        assert world.second.last.json["model"] == "large"
    with open_failover(window=200, profiles=[agent()]) as world:
        world.first.queue(fail(503, "Gone."))
        with pytest.raises(openai.InternalServerError, match="Gone") as caught:
            world.world.sdk.responses.create(**asked)
        assert caught.value.status_code == 503  # which the client may try again
        assert caught.value.response.headers["x-mnemogate-upstream"] == "first"


@only_openai
def test_an_unreachable_upstream_is_tried_again_if_the_fallback_is_too_small(
    open_failover: OpenFailover,
) -> None:
    with refused_url() as url, open_failover(url=url, window=200) as world:
        with pytest.raises(openai.InternalServerError) as caught:
            world.world.sdk.responses.create(**CHATTY, store=False)
        assert caught.value.response.headers["x-mnemogate-tries"] == "first:unreachable;first:unreachable"


@only_openai
@both
@pytest.mark.parametrize(("fault", "times"), [(fail(503), 5), (BUSY, 1)], ids=["breaker", "cooldown"])
def test_a_fallback_that_is_asked_first_is_passed_over_if_its_window_is_too_small(
    open_failover: OpenFailover, fault: Reply, times: int, memory: bool
) -> None:
    with open_failover(window=200, profiles=[agent()]) as world:
        world.first.queue(*[fault] * times)
        for n in range(times):
            world.chat(False, memory, f"question {n}")
        assert world.read_metric('mnemogate_upstream_resting{upstream="first"}') == 1
        asked = {**CHATTY, "user": "alice" if memory else "", "store": memory}
        made = world.world.sdk.responses.with_raw_response.create(**asked)
        assert made.headers["x-mnemogate-upstream"] == "first"


@only_openai
@forms
@pytest.mark.parametrize(("fault", "times"), [(fail(503), 5), (BUSY, 1)], ids=["breaker", "cooldown"])
@pytest.mark.parametrize("is_strict", [False, True], ids=["append", "strict"])
def test_a_fallback_that_has_no_room_for_memory_is_passed_over_where_memory_is_needed(
    open_failover: OpenFailover, fault: Reply, times: int, is_strict: bool, stream: bool
) -> None:
    """The request alone has room. It may not be answered without the stored conversation, or without memory."""
    block = BlockSettings("human", "The user", "Likes tea. " * 60)
    inputs: list[Any] = [[{"role": role, "content": "Hi. " * 10} for role in ("user", "assistant", "user")]]
    headers = {"x-mnemogate-memory": "strict"}
    if not is_strict:
        inputs = ["Hi. " * 300, "And now?"]
        headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    fields: Any = {"model": "m", "user": "alice", "truncation": "disabled", "extra_headers": headers}
    with open_failover(
        window=200, profiles=[agent("default", blocks=(block,) if is_strict else ())]
    ) as world:
        for input in inputs[:-1]:
            world.world.sdk.responses.create(input=input, **fields)
        world.first.queue(*[fault] * times)
        for n in range(times):
            world.chat(False, False, f"question {n}")
        assert world.read_metric('mnemogate_upstream_resting{upstream="first"}') == 1
        made = world.world.sdk.responses.with_raw_response.create(input=inputs[-1], stream=stream, **fields)
        assert made.headers["x-mnemogate-upstream"] == "first"


@pytest.mark.parametrize("kind", ["anthropic"], indirect=True)  # the only one that has no place for a field
def test_an_error_has_the_headers_of_its_own_endpoint_where_the_fallback_is_too_small(
    open_failover: OpenFailover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt fits the fallback, but not with the rounds that the turn had before its process ended."""
    rounds = [{"role": "assistant", "content": "Hi. " * 1000}]
    monkeypatch.setattr("gateway.run.refused_parts.RefusedParts.without_results", lambda *_: rounds)
    with open_failover(window=2000) as world:
        world.first.queue(fail(503))
        with pytest.raises(openai.InternalServerError) as caught:
            world.world.sdk.responses.create(**CHATTY, store=False, prompt_cache_key="k")
        assert caught.value.response.headers["x-mnemogate-consumed"] == "prompt_cache_key"


@only_openai
def test_an_error_is_closed_where_no_request_can_be_made_for_the_fallback(
    open_failover: OpenFailover, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("gateway.run.round_requests.RoundRequests._make_prompt_for", fails)
    with open_failover() as world:
        world.first.queue(Reply(status=503, body=[b"Gone", b"."], hold_after={1: Gate()}))
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(stream=False, memory=True)
        assert caught.value.status_code == 500
        world.first.last.gone.wait_sync()


# what a provider says for itself, of a message and of its call; where the second finds nothing of it
THOUGHTS: list[tuple[dict[str, Any], str]] = [
    ({"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]}, "thinking_blocks"),
    ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "s", "index": 0}]}, "reasoning_details"),
]


@forms
@pytest.mark.parametrize(("thought", "field"), THOUGHTS, ids=[field for _, field in THOUGHTS])
@only_openai  # of Claude's own thoughts: tests/gateway/chat/test_anthropic.py
def test_fields_that_only_one_provider_can_read_are_not_sent_to_its_fallback(
    open_failover: OpenFailover, thought: dict[str, Any], field: str, stream: bool
) -> None:
    def signed(name: str) -> dict[str, Any]:
        return json.loads(json.dumps(thought).replace('"s"', f'"{name}"'))  # type: ignore[no-any-return]

    def thoughts(request: UpstreamRequest) -> list[Any]:
        replies = [m for m in request.messages if m["role"] == "assistant"]
        return [next((n for n in ("first", "second") if n in str(m.get(field))), None) for m in replies]

    with open_failover() as world:
        world.first.rules = world.second.rules = Rules(unknown_parameters=False)
        talk: list[Any] = []

        def say_again(reply: Reply, upstream: StrictUpstream) -> UpstreamRequest:
            upstream.queue(reply)
            talk.append({"role": "user", "content": f"This is question number {len(talk)}."})
            text, _ = world.chat(stream, True, messages=talk)
            talk.append({"role": "assistant", "content": text})
            world.world.settle()
            return upstream.last

        say_again(say("The first reply, of the first upstream.", delta=signed("first")), world.first)
        world.first.queue(fail(503))
        seen = say_again(
            say("The second reply, of the other upstream.", delta=signed("second")), world.second
        )
        assert thoughts(world.first.last) == ["first"]
        assert thoughts(seen) == [None]
        assert thoughts(say_again(say("The third reply."), world.first)) == ["first", None]


@forms
@only_openai
def test_readable_thoughts_of_a_hidden_round_are_not_shown_to_a_stand_in(
    open_failover: OpenFailover, stream: bool
) -> None:
    """The stand-in is strict: it would refuse a field that it does not know."""
    thought = {
        "reasoning": "Hm.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "index": 0}],
    }
    with open_failover(profiles=[agent()]) as world:
        world.first.rules = Rules(unknown_parameters=False)
        world.first.queue(call_tools(INSERT, delta=thought), say("Noted."), fail(503))
        talk: list[Any] = [{"role": "user", "content": "I like tea."}]
        talk.append({"role": "assistant", "content": world.chat(stream, True, messages=talk, **AGENT)[0]})
        assert world.first.last.messages[-2]["reasoning"] == "Hm.", "its own provider gets it back"
        talk.append({"role": "user", "content": "What do I like?"})
        assert world.chat(stream, True, messages=talk, **AGENT)[0] == "Ok."
        assert "reasoning" not in json.dumps(world.second.last.messages)
        assert "memory_insert" in json.dumps(world.second.last.messages)


@forms
@pytest.mark.parametrize("mode", ["on", "read", "off"])
@only_openai
def test_the_history_that_the_gateway_has_shows_a_stand_in_no_thoughts(
    open_failover: OpenFailover, mode: str, stream: bool
) -> None:
    """In append mode the history goes upstream even with memory off."""
    append = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}
    thought = {"reasoning_content": "Hm.", "thinking_blocks": [{"type": "thinking", "thinking": "Hm."}]}
    with open_failover() as world:
        world.first.rules = Rules(unknown_parameters=False)
        world.first.queue(say("One.", delta=thought), fail(503))
        world.chat(stream, True, "first", append)
        asked = world.chat(stream, True, "second", {**append, "x-mnemogate-memory": mode})
        assert (asked[0], asked[1]["x-mnemogate-upstream"]) == ("Ok.", "second")
        assert world.first.last.messages[1]["thinking_blocks"], "its own provider gets it back"
        assert [m["content"] for m in world.second.last.messages] == ["first", "One.", "second"]


# --- nobody else to ask


ERRORS: list[tuple[Reply, type[openai.APIStatusError], int]] = [
    (BUSY, openai.RateLimitError, 429),
    (fail(500, code="oops"), openai.InternalServerError, 500),
    (fail(503, retry_after="20"), openai.InternalServerError, 503),
    (fail(529, code="overloaded"), openai.InternalServerError, 529),
    (fail(400, code="context_length_exceeded"), openai.BadRequestError, 400),
    (fail(401, code="invalid_api_key"), openai.AuthenticationError, 401),
    (fail(404, code="model_not_found"), openai.NotFoundError, 404),
]


@both
@forms
def test_an_error_passes_as_it_is(
    open_failover: OpenFailover, subtests: pytest.Subtests, stream: bool, memory: bool
) -> None:
    with open_failover(fallbacks=()) as world:
        for fault, kind, status in ERRORS:
            with subtests.test(status=status):
                seen = len(world.first.requests)
                world.first.queue(fault)
                with pytest.raises(kind) as caught:
                    world.chat(stream, memory, f"Question {status}?")
                response = caught.value.response
                assert response.status_code == status
                assert world.has_fault_passed(response.content, fault)
                assert fault.headers.items() <= dict(response.headers).items()
                assert len(world.first.requests) == seen + 1


@both
@forms
def test_a_lost_connection_is_not_sent_again_unasked(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover(fallbacks=()) as world:
        world.first.queue(Reply(cut_before_headers=True))
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(stream, memory)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
        assert len(world.first.requests) == 1
        assert caught.value.response.headers["x-mnemogate-upstream"] == "first"


@both
def test_dialling_is_tried_twice(open_failover: OpenFailover, memory: bool) -> None:
    with refused_url() as url, open_failover(fallbacks=(), url=url) as world:
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(False, memory)
        assert caught.value.code == "upstream_unreachable"
        assert caught.value.response.headers["x-mnemogate-tries"] == "first:unreachable;first:unreachable"
        assert world.waits == [0.1]


@both
@forms
def test_retries_wait_as_long_as_the_upstream_asks(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover(fallbacks=(), retries=2) as world:
        world.first.queue(fail(503), fail(429, retry_after="1.5"), say("At last."))
        text, headers = world.chat(stream, memory)
        assert text == "At last."
        assert headers["x-mnemogate-tries"] == "first:503;first:429;first:200"
        assert world.waits == [0.1, 1.5]
        assert world.first.requests[0].body == world.first.requests[2].body
        assert world.first.opened == 1  # the errors were read, so that their connection goes on


def test_a_wait_that_is_too_long_is_the_clients(open_failover: OpenFailover) -> None:
    with open_failover(fallbacks=(), retries=2) as world:
        world.first.queue(BUSY)
        with pytest.raises(openai.RateLimitError) as caught:
            world.chat(False, False)
        assert caught.value.response.headers["retry-after"] == "30"
        assert (world.waits, len(world.first.requests)) == ([], 1)


def test_an_error_that_no_retry_avoids_is_the_clients(open_failover: OpenFailover) -> None:
    error = fail(429, code="insufficient_quota")
    error = msgspec.structs.replace(error, headers={**error.headers, "x-should-retry": "false"})
    with open_failover(fallbacks=(), retries=2) as world:
        world.first.queue(error)
        with pytest.raises(openai.RateLimitError) as caught:
            world.chat(False, False)
        assert caught.value.code == "insufficient_quota"
        assert (world.waits, len(world.first.requests)) == ([], 1)


@only_openai
@pytest.mark.parametrize("stream", [False, True])
def test_the_body_of_googles_limit_names_the_wait(open_failover: OpenFailover, stream: bool) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}
    error = {"code": 429, "message": "Quota exceeded.", "status": "RESOURCE_EXHAUSTED", "details": [info]}
    with open_failover(fallbacks=(), retries=1) as world:
        world.first.queue(Reply(status=429, body=[orjson.dumps([{"error": error}])]), Reply(text="At last."))
        text, headers = world.chat(stream, False)
        assert (text, headers["x-mnemogate-tries"]) == ("At last.", "first:429;first:200")
        assert (world.waits, world.first.opened) == ([1.5], 1)


@only_openai
@pytest.mark.parametrize(
    "fault", [{"hold_after": {1: Gate()}}, {"cut_after": 1}], ids=["stalls", "breaks off"]
)
def test_a_limit_whose_body_does_not_come_is_failed_over(
    open_failover: OpenFailover, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr("gateway.run.upstream.error_replies._LIMIT_ERROR_S", SHORT_S)
    with open_failover() as world:
        world.first.queue(Reply(status=429, body=[b"Slow", b"."], **fault))
        assert world.chat(False, False)[1]["x-mnemogate-tries"] == "first:429;second:200"


# --- passing over who fails


@only_openai
@both
def test_the_breaker_opens_and_closes(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover() as world:
        world.first.queue(*(fail(503) for _ in range(6)))
        for n in range(5):
            world.chat(False, memory, f"question {n}")
        assert len(world.first.requests) == 5
        _, headers = world.chat(False, memory, "the next question")
        assert len(world.first.requests) == 5  # it rests
        assert (headers["x-mnemogate-upstream"], "x-mnemogate-tries" in headers) == ("second", False)
        assert world.read_metric('mnemogate_upstream_resting{upstream="first"}') == 1
        world.now += 10
        assert world.chat(False, memory, "a probe")[1]["x-mnemogate-tries"] == "first:503;second:200"
        world.chat(False, memory, "again not")
        assert len(world.first.requests) == 6
        world.now += 10
        assert world.chat(False, memory, "another probe")[1]["x-mnemogate-upstream"] == "first"
        assert world.read_metric('mnemogate_upstream_resting{upstream="first"}') == 0


@only_openai
def test_without_a_file_descriptor_no_upstream_is_blamed(
    open_failover: OpenFailover, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_no_socket(address: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with open_failover() as world:
        with monkeypatch.context() as patch:
            patch.setattr("adapters.bounded_connector._make_socket", make_no_socket)
            for n in range(6):
                with pytest.raises(
                    openai.InternalServerError, match="the gateway has no file desc"
                ) as caught:
                    world.chat(False, True, f"question {n}")
                assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        assert world.read_metric('mnemogate_upstream_resting{upstream="first"}') == 0


@only_openai
def test_an_endpoint_that_pauses_after_the_wait_for_a_conversation_is_skipped(
    open_failover: OpenFailover,
) -> None:
    append, gate = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "one"}, Gate()
    with open_failover() as world, ThreadPoolExecutor() as pool:
        world.first.queue(fail(503), BUSY)
        world.second.queue(say("One.", hold_before_headers=gate))
        first = pool.submit(world.chat, False, True, "One?", append)
        becomes(lambda: world.second.requests)
        behind = pool.submit(world.chat, False, True, "Two?", append)
        queues = world.world.gateway.app.services.chat.keeper.queues
        becomes(lambda: 2 in queues._counts.values())
        world.chat(False, False)
        gate.open()
        assert first.result(PATIENCE_S)[0] == "One."
        headers = behind.result(PATIENCE_S)[1]
        assert (headers["x-mnemogate-upstream"], "x-mnemogate-tries" in headers) == ("second", False)


@only_openai
def test_an_endpoint_gets_no_request_before_its_retry_time(open_failover: OpenFailover) -> None:
    with open_failover() as world:
        world.first.queue(BUSY)
        for _ in range(3):
            assert world.chat(False, False)[1]["x-mnemogate-upstream"] == "second"
        assert len(world.first.requests) == 1
        world.now += 30
        assert world.chat(False, False)[1]["x-mnemogate-upstream"] == "first"


@only_openai
def test_the_only_one_is_always_asked(open_failover: OpenFailover) -> None:
    with open_failover(fallbacks=()) as world:
        world.first.queue(*([BUSY] * 8))
        for _ in range(8):
            with pytest.raises(openai.RateLimitError):
                world.chat(False, False)
        assert world.chat(False, False)[0] == "Ok."


@only_openai
def test_the_last_resort_is_one_that_rests(open_failover: OpenFailover) -> None:
    with open_failover() as world:
        world.first.queue(*(fail(503) for _ in range(5)))
        for n in range(5):
            world.chat(False, False, f"question {n}")
        world.second.queue(fail(500))
        assert world.chat(False, False)[1]["x-mnemogate-tries"] == "second:500;first:200"


@only_openai
@pytest.mark.parametrize("headers", [{}, {"openai-organization": "org-1"}])
def test_the_limit_of_a_caller_does_not_hold_for_others(
    open_failover: OpenFailover, headers: dict[str, str]
) -> None:
    """Where callers bring their own keys."""
    with open_failover(api_key=None, headers=headers) as world:
        world.first.queue(BUSY)
        assert world.chat(False, False)[1]["x-mnemogate-upstream"] == "second"
        assert world.chat(False, False)[1]["x-mnemogate-upstream"] == "first"


@pytest.mark.parametrize("name", ["x-portkey-api-key", "x-goog-api-key", "Ocp-Apim-Subscription-Key"])
def test_any_other_header_may_be_a_key_of_the_settings(open_failover: OpenFailover, name: str) -> None:
    """Its limits rest it for all then."""
    with open_failover(api_key=None, headers={name: "k1"}) as world:
        world.first.queue(BUSY)
        assert [world.chat(False, False)[1]["x-mnemogate-upstream"] for _ in range(2)] == ["second", "second"]


@pytest.mark.parametrize(("key", "is_told"), [("k1", True), (None, False)])
def test_a_refused_key_of_the_settings_is_reported_to_the_operator(
    open_failover: OpenFailover, caplog: pytest.LogCaptureFixture, key: str | None, is_told: bool
) -> None:
    with open_failover(api_key=key) as world:
        world.first.queue(fail(401, code="invalid_api_key"))
        with pytest.raises(openai.AuthenticationError):
            world.chat(False, False)
    said = [each.getMessage() for each in caplog.records if "key" in each.getMessage()]
    assert (
        said
        == ["The upstream first refuses the key of the settings (401). Set another `api_key` for it."]
        * is_told
    )


# --- several keys, several places


@both
def test_another_key_answers_when_one_is_at_its_limit(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(fallbacks=(), api_key=("one", "two")) as world:
        world.first.queue(BUSY)
        _, headers = world.chat(False, memory)
        used = [world.get_first_key(place) for place in (0, 1)]
        assert sorted(map(str, used)) == ["one", "two"]
        names = ["first", "first#2"] if used[0] == "one" else ["first#2", "first"]
        assert headers["x-mnemogate-tries"] == f"{names[0]}:429;{names[1]}:200"
        world.chat(False, memory)
        assert world.get_first_key() == used[1]  # the other rests


@only_openai
@both
def test_conversations_are_spread_and_stay_where_they_are(open_failover: OpenFailover, memory: bool) -> None:
    places = [DeploymentSettings("second", "big-two")]
    with open_failover(fallbacks=(), deployments=places) as world:
        talks: list[list[Any]] = [[{"role": "user", "content": f"Conversation {n}"}] for n in range(12)]
        homes = [world.chat(False, memory, messages=talk)[1]["x-mnemogate-upstream"] for talk in talks]
        assert set(homes) == {"first", "second"}
        assert {request.json["model"] for request in world.second.requests} == {"big-two"}
        for talk in talks:
            talk += [{"role": "assistant", "content": "Ok."}, {"role": "user", "content": "And then?"}]
        assert [
            world.chat(False, memory, messages=talk)[1]["x-mnemogate-upstream"] for talk in talks
        ] == homes


@only_openai
@pytest.mark.parametrize("known_by", ["append mode", "its name", "its first message"])
def test_a_conversation_whose_beginning_changes_stays_where_it_is(
    open_failover: OpenFailover, known_by: str
) -> None:
    """A client sends the new message alone, trims its list, or has the time in its prompt."""
    with open_failover(fallbacks=(), deployments=[DeploymentSettings("second", "big-two")]) as world:
        homes = set()
        for conversation in range(12):
            name = {"x-mnemogate-conversation": f"phone {conversation}"}
            if known_by == "append mode":
                name["x-mnemogate-history"] = "append"
            found = set()
            for n in range(3):
                messages = [{"role": "user", "content": f"Line {n}"}]
                if known_by == "its first message":
                    name = {}
                    question = {"role": "user", "content": f"Conversation {conversation}"}
                    messages = [{"role": "system", "content": f"It is {n} o'clock."}, question]
                found.add(world.chat(False, True, messages=messages, headers=name)[1]["x-mnemogate-upstream"])
            assert len(found) == 1
            homes |= found
        assert homes == {"first", "second"}
