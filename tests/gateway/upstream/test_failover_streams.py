"""Faults in the middle of a reply and between hidden tool rounds, and clients that leave.

The upstream that fails speaks OpenAI's dialect or Anthropic's: to the application it makes no difference.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import openai
import orjson
import pytest

from adapters.timeouts import Timeouts
from tests.doubles.upstream import (
    Gate,
    Reply,
    call_tools,
    fail,
    raw,
    say,
)
from tests.gateway.sdk import CHAT, agent
from tests.gateway.upstream.failover_world import (
    AGENT,
    BUSY,
    INSERT,
    FailoverWorld,
    OpenFailover,
    both,
    forms,
    only_openai,
)
from tests.patience import SHORT_S

# --- a stream that begins with an error


def error_event(kind: str, error: dict[str, Any]) -> bytes:
    data = orjson.dumps({"error": error} if kind == "openai" else {"type": "error", "error": error})
    return (b"data: " if kind == "openai" else b"event: error\ndata: ") + data + b"\n\n"


def begins_with(kind: str, error: dict[str, Any], *, cut: int | None = None) -> Reply:
    event = error_event(kind, error)
    return raw(*((event,) if cut is None else (event[:cut], event[cut:])))


COMMENT = b": OPENROUTER PROCESSING\n\n"
GONE = b'data: {"error":{"code":502,"message":"Gone."},"choices":[]}\n\n'
CHATTY = [{"role": role, "content": "Hi. " * 100} for role in ("user", "assistant", "user")]
OVERLOADED = {"type": "overloaded_error", "message": "Overloaded."}


@both
@pytest.mark.parametrize("cut", [None, 12], ids=["at-once", "in-halves"])
def test_an_error_in_a_streams_first_event_is_tried_elsewhere(
    open_failover: OpenFailover, cut: int | None, memory: bool
) -> None:
    with open_failover() as world:
        world.first.queue(begins_with(world.kind, OVERLOADED, cut=cut))
        world.second.queue(say("From the second."))
        text, headers = world.chat(True, memory)
        assert text == "From the second."
        assert headers["x-mnemogate-tries"] == "first:529;second:200"
        world.settle()
        assert world.find_endpoint("first").health.failure_count == 1


@both
def test_comments_without_an_end_before_the_first_event_are_tried_elsewhere(
    open_failover: OpenFailover, memory: bool
) -> None:
    """Of 400 kB of comments the gateway reads 256. Then it counts the upstream as broken."""
    comments = [b": still here\n\n" * 1000] * 28
    with open_failover() as world:
        world.first.queue(raw(*comments, hold_after={len(comments): Gate()}))
        world.second.queue(say("From the second."))
        text, headers = world.chat(True, memory)
        assert text == "From the second."
        assert headers["x-mnemogate-tries"] == "first:broke;second:200"


@both
@only_openai
def test_a_stream_of_which_nothing_comes_but_its_end_is_tried_elsewhere(
    open_failover: OpenFailover, memory: bool
) -> None:
    gone = b'{"error":{"code":502,"message":"Gone."}}'
    faults = (
        (b"", "broke"),
        (b": wait\n\n", "broke"),
        (b'data: {"id":', "broke"),
        (b"data: " + gone, "502"),  # the blank line is missing
        (gone, "502"),  # no stream, whatever its type says
    )
    with open_failover() as world:
        for n, (body, kind) in enumerate(faults):
            world.first.queue(raw(body))
            text, headers = world.chat(True, memory, text=f"Number {n}?")
            assert (text, headers["x-mnemogate-tries"]) == ("Ok.", f"first:{kind};second:200"), body
            world.find_endpoint("first").health.failure_count = 0


@both
@only_openai
@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
def test_an_error_after_comments_is_tried_elsewhere(
    open_failover: OpenFailover, apart: bool, memory: bool
) -> None:
    """OpenRouter sends them while it waits for the upstream that it chose."""
    pieces = (COMMENT, COMMENT, GONE)
    with open_failover() as world:
        world.first.queue(raw(*pieces) if apart else raw(b"".join(pieces)))
        world.second.queue(say("From the second."))
        text, headers = world.chat(True, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("From the second.", "first:502;second:200")


@both
@only_openai
@pytest.mark.parametrize("keeps_alive", [False, True])
@pytest.mark.parametrize("tools", [False, True])
def test_a_fault_long_after_comments_is_tried_elsewhere(
    open_failover: OpenFailover, tools: bool, keeps_alive: bool, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has the head and comments, and sees one reply."""
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    with open_failover(
        profiles=[agent()], server={"keep_alive_comment_s": 0.01 if keeps_alive else 0.0}
    ) as world:
        counts = dict.fromkeys(("200", "502", "broke"), 0.0)
        for fault, kind in ((GONE, "502"), (b"", "broke"), (b'data: {"id":', "broke")):
            gate, question = Gate(), f"Hi, {fault!r}"
            body: dict[str, Any] = {
                "model": "agent/helper" if tools else "m",
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                **({"user": "alice"} if memory or tools else {}),
            }
            world.first.queue(raw(COMMENT, *filter(None, [fault]), hold_after={1: gate}))
            world.second.queue(say("From the second."))
            with world.world.gateway.connect() as client:
                client.request("POST", CHAT, json.dumps(body).encode())
                client.read_until(COMMENT)
                gate.open()
                got = client.read_until(b"data: [DONE]\n\n")
            assert (got.count(b'"role"'), got.count(b"data: [DONE]"), b"error" in got) == (1, 1, False), fault
            assert b" second." in got
            world.settle()
            assert world.find_endpoint("first").health.failure_count == 1
            world.find_endpoint("first").health.failure_count = 0
            assert world.second.last.json["messages"][-1]["content"].endswith(question)
            logged, *_ = world.world.gateway.app.services.requests.list_ended()
            # The head, which had left, names the first.
            assert (logged.upstream, logged.tries) == ("second", (f"first:{kind}", "second:200"))
            counts[kind] += 1
            assert {kind: world.count_tries("first", kind) for kind in counts} == counts


@both
@only_openai
def test_a_stream_that_begins_after_comments_or_never_counts_as_one_attempt(
    open_failover: OpenFailover, memory: bool
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with open_failover(server={"keep_alive_comment_s": 60.0}) as world:
        assert world.chat(True, memory)[0] == "Ok."
        world.settle()
        assert world.count_tries("first", "200") == 1
        world.first.queue(raw(COMMENT, hold_after={1: Gate()}))
        with world.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body | ({"user": "alice"} if memory else {})).encode())
            client.read_until(COMMENT)
        world.first.last.gone.wait_sync()
        world.settle()
        assert (world.count_tries("first", "200"), world.count_tries("second", "200")) == (2, 0)


@both
@only_openai
def test_where_all_have_failed_after_comments_the_last_error_is_an_event(
    open_failover: OpenFailover, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    for last, shown in ((fail(503, "Full."), "Full."), (raw(COMMENT, GONE), "Gone.")):
        gate = Gate()
        with open_failover() as world:
            world.first.queue(raw(COMMENT, GONE, hold_after={1: gate}))
            world.second.queue(last)
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            with world.world.gateway.connect() as client:
                client.request(
                    "POST", CHAT, json.dumps(body | ({"user": "alice"} if memory else {})).encode()
                )
                client.read_until(COMMENT)
                gate.open()
                got = client.read_until(b"\r\n0\r\n\r\n")
            error = next(each for each in got.split(b"data: ") if each.startswith(b'{"error"'))
            assert shown in orjson.loads(error.split(b"\n\n")[0])["error"]["message"]
            world.settle()
            health = world.find_endpoint("second").health
            assert (
                sum(world.count_errors("second").values()),
                health.failure_count + health.break_count,
            ) == (1, 1)


@both
@only_openai
def test_a_fallback_after_comments_whose_window_is_too_small_leaves_the_error_as_it_is(
    open_failover: OpenFailover, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`truncation: disabled` lets nothing be left out for it. The turn is stored as any that failed."""
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    gate = Gate()
    asked = {"model": "m", "input": CHATTY, "truncation": "disabled", "stream": True}
    with open_failover(window=200, profiles=[agent()]) as world:
        world.first.queue(raw(COMMENT, GONE, hold_after={1: gate}))
        with world.world.gateway.connect() as client:
            body = json.dumps(asked | {"user": "alice" if memory else "", "store": memory}).encode()
            client.request("POST", "/v1/responses", body)
            client.read_until(COMMENT)
            gate.open()
            got = client.read_until(b"\r\n0\r\n\r\n")
        assert b"Gone." in got
        assert b"context_length_exceeded" not in got
        assert b'"type":"response.failed"' in got
        assert world.second.requests == []
        world.settle()
        assert world.count_errors("first") == {"502": 1}
        assert (world.count_tries("first", "502"), world.count_tries("first", "200")) == (1, 0)
        logged, *_ = world.world.gateway.app.services.requests.list_ended()
        assert logged.tries == ("first:502",)


@both
@only_openai
def test_a_whole_reply_in_place_of_a_stream_comes_as_its_one_chunk(
    open_failover: OpenFailover, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some upstreams answer so where a stream is asked for. A client of a stream reads `delta`."""
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    gate = Gate()
    choice = {"index": 0, "message": {"role": "assistant", "content": "Whole."}, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with open_failover() as world:
        world.first.queue(raw(COMMENT, GONE, hold_after={1: gate}))
        world.second.queue(raw(orjson.dumps(whole), content_type="application/json"))
        with world.world.gateway.connect() as client:
            client.request("POST", CHAT, json.dumps(body | ({"user": "alice"} if memory else {})).encode())
            client.read_until(COMMENT)
            gate.open()
            got = client.read_until(b"data: [DONE]\n\n")
        chunk = next(orjson.loads(each) for each in got.split(b"data: ")[1:] if b"choices" in each)
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["choices"][0]["delta"]["content"] == "Whole."
        world.settle()


@both
@pytest.mark.parametrize("kind", ["anthropic"], indirect=True)
@pytest.mark.parametrize("kinds", [["ping", "ping"], ["message_start", "ping", "content_block_start"]])
def test_an_error_before_any_words_is_tried_elsewhere(
    open_failover: OpenFailover, memory: bool, kinds: list[str]
) -> None:
    """As Claude's API reports that it is overloaded, when it has begun a message."""
    begun = {
        "ping": {},
        "message_start": {"message": {"id": "msg_1", "model": "m", "content": [], "usage": {}}},
        "content_block_start": {"index": 0, "content_block": {"type": "text", "text": ""}},
    }
    events = [f"event: {kind}\ndata: {json.dumps({'type': kind, **begun[kind]})}\n\n" for kind in kinds]
    with open_failover() as world:
        world.first.queue(raw(*map(str.encode, events), error_event("anthropic", OVERLOADED)))
        world.second.queue(say("From the second."))
        text, headers = world.chat(True, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("From the second.", "first:529;second:200")


@both
@only_openai
def test_comments_of_the_upstreams_come_through(open_failover: OpenFailover, memory: bool) -> None:
    comment = b": OPENROUTER PROCESSING\n\n"
    chunk = (
        b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
        b'"delta":{"role":"assistant","content":"Hi."},"finish_reason":"stop"}]}\n\n'
    )
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    if memory:
        body["user"] = "alice"
    with open_failover() as world:
        world.first.queue(raw(comment, comment, chunk, b"data: [DONE]\n\n"))
        reply = world.world.gateway.post(body)
        assert reply.body == comment + comment + chunk + b"data: [DONE]\n\n"


@both
def test_an_error_in_a_streams_first_event_is_a_status(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(fallbacks=()) as world:
        world.first.queue(begins_with(world.kind, OVERLOADED))
        with pytest.raises(openai.InternalServerError) as busy:
            world.chat(True, memory)
        assert (busy.value.status_code, busy.value.type) == (529, "overloaded_error")
        assert "Overloaded." in busy.value.message
        world.first.queue(begins_with(world.kind, {"type": "rate_limit_error", "message": "Slow down."}))
        with pytest.raises(openai.RateLimitError):
            world.chat(True, memory)
        world.first.queue(say("Well again."))
        assert world.chat(True, memory)[0] == "Well again."


# OpenRouter answers so when its upstream fails after the status has left; blanks were its signs of life.
_HIDDEN = b'\n   \n{"error":{"code":502,"message":"Gone."},"user_id":"u"}'


def whole_error(body: bytes = _HIDDEN) -> Reply:
    return raw(body, content_type="application/json")


# MiniMax and GLM answer so.
_UNNAMED = (
    (b'{"id":"c","choices":null,"base_resp":{"status_code":1002,"status_msg":"rate limit"}}', "429"),
    (b'{"code":500,"msg":"Gone.","success":false}', "500"),
)


@only_openai
@forms
@both
def test_a_whole_success_that_is_an_error_is_tried_elsewhere(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover() as world:
        for body, status in ((_HIDDEN, "502"), *_UNNAMED):
            world.first.queue(whole_error(body))
            world.second.queue(say("From the second."))
            text, headers = world.chat(stream, memory, text=f"What is {status}?")
            assert (text, headers["x-mnemogate-tries"]) == ("From the second.", f"first:{status};second:200")
        world.settle()
        assert world.find_endpoint("first").health.failure_count == 3


@only_openai
@both
def test_an_error_without_that_name_in_a_stream_is_tried_elsewhere(
    open_failover: OpenFailover, memory: bool
) -> None:
    with open_failover() as world:
        for body, status in _UNNAMED:
            world.first.queue(raw(b"data: %b\n\n" % body, b"data: [DONE]\n\n"))
            text, headers = world.chat(True, memory, text=f"What is {status}?")
            assert (text, headers["x-mnemogate-tries"]) == ("Ok.", f"first:{status};second:200")


@only_openai
@both
def test_a_whole_success_that_is_an_error_is_that_error(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(fallbacks=()) as world:
        world.first.queue(whole_error())
        with pytest.raises(openai.InternalServerError) as gone:
            world.chat(False, memory)
        assert (gone.value.status_code, gone.value.response.content) == (502, _HIDDEN)
        world.first.queue(whole_error(b'{"object":"error","message":"Too much.","type":"BadRequestError"}'))
        with pytest.raises(openai.BadRequestError, match=r"Too much\."):
            world.chat(False, memory)
        body, _ = _UNNAMED[0]
        world.first.queue(whole_error(body))
        with pytest.raises(openai.RateLimitError, match="rate limit") as limited:
            world.chat(False, memory)
        assert limited.value.code == "1002"


@only_openai
@both
@pytest.mark.parametrize("error", [b"null", b'{"message":"A tool failed."}'])
def test_a_completion_that_also_has_an_error_is_a_completion(
    open_failover: OpenFailover, memory: bool, error: bytes
) -> None:
    choice = b'{"index":0,"message":{"role":"assistant","content":"Ok."},"finish_reason":"stop"}'
    body = b'{"id":"c","object":"chat.completion","choices":[%b],"error":%b}' % (choice, error)
    with open_failover() as world:
        world.first.queue(whole_error(body))
        assert world.chat(False, memory)[0] == "Ok."


@both
def test_a_stream_that_stalls_before_its_first_event_is_tried_elsewhere(
    open_failover: OpenFailover, memory: bool
) -> None:
    with open_failover(idle_timeout_s=SHORT_S) as world:
        world.first.queue(say("One", hold_after={0: Gate()}))
        world.second.queue(say("From the second."))
        text, headers = world.chat(True, memory)
        assert (text, headers["x-mnemogate-tries"]) == ("From the second.", "first:timeout;second:200")
        world.first.last.gone.wait_sync()


@both
def test_a_status_that_left_with_a_comment_is_not_taken_back(
    open_failover: OpenFailover, memory: bool
) -> None:
    with open_failover(fallbacks=(), server={"keep_alive_comment_s": 60.0}) as world:
        world.first.queue(begins_with(world.kind, OVERLOADED))
        with pytest.raises(openai.APIError) as caught:
            world.chat(True, memory)
        assert type(caught.value) is openai.APIError


# --- in the middle of a reply


@both
def test_a_stream_that_stalls_ends_with_an_error_event(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(idle_timeout_s=SHORT_S) as world:
        world.first.queue(say("One two three", hold_after={3: Gate()}))
        with pytest.raises(openai.APIError) as caught:
            world.chat(True, memory)
        assert (type(caught.value), caught.value.code) == (openai.APIError, "upstream_timeout")
        world.first.last.gone.wait_sync()
        assert world.second.requests == []
        world.settle()
        assert world.read_metric('mnemogate_upstream_errors_total{kind="timeout",upstream="first"}') == 1
        assert world.find_endpoint("first").health.break_count == 1


@pytest.fixture
def headers_may_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a limit for all of a reply end only within it: else a busy machine has the request tried elsewhere."""
    monkeypatch.setattr(Timeouts, "headers_s", property(lambda times: times.first_byte_s))


@both
@pytest.mark.usefixtures("headers_may_come_late")
@pytest.mark.parametrize("limit", ["idle_timeout_s", "total_timeout_s"])
def test_a_whole_reply_that_stalls_is_a_504(open_failover: OpenFailover, limit: str, memory: bool) -> None:
    halves = raw(b'{"choices":', b"[]}", content_type="application/json", hold_after={1: Gate()})
    with open_failover(**{limit: SHORT_S}) as world:
        world.first.queue(halves)
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(False, memory)
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
        world.first.last.gone.wait_sync()
        assert world.second.requests == []


@both
@pytest.mark.usefixtures("headers_may_come_late")
def test_a_reply_that_takes_too_long_in_all_is_cut(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(total_timeout_s=SHORT_S) as world:
        world.first.queue(say("One two three", hold_after={3: Gate()}))
        with pytest.raises(openai.APIError) as caught:
            world.chat(True, memory)
        assert caught.value.code == "upstream_timeout"
        assert "longer than 0.5 s" in caught.value.message


@both
def test_a_cut_stream_ends_with_an_error_event_and_is_not_begun_elsewhere(
    open_failover: OpenFailover, memory: bool
) -> None:
    with open_failover(retries=2) as world:
        world.first.queue(say("One two three", cut_after=3))
        with pytest.raises(openai.APIError) as caught:
            world.chat(True, memory)
        assert caught.value.code == "upstream_broke"
        assert world.second.requests == []
        world.settle()
        assert world.read_metric('mnemogate_upstream_errors_total{kind="broke",upstream="first"}') == 1


@both
@pytest.mark.parametrize(
    ("error_type", "breaks"),
    [
        ("overloaded_error", 1),
        # The request or its caller is at fault.
        ("invalid_request_error", 0),
        ("rate_limit_error", 0),
    ],
)
def test_an_error_within_a_stream_counts_as_a_break_of_its_endpoint(
    open_failover: OpenFailover, error_type: str, breaks: int, memory: bool
) -> None:
    with open_failover() as world:
        first, _ = _halves(world.kind, b"\n\n")
        world.first.queue(raw(first, error_event(world.kind, {"type": error_type, "message": "No more."})))
        with pytest.raises(openai.APIError, match="No more"):
            world.chat(True, memory)
        world.settle()
        assert world.find_endpoint("first").health.break_count == breaks
        assert world.read_metric('mnemogate_upstream_errors_total{kind="broke",upstream="first"}') == 1


@only_openai
def test_an_error_without_that_name_within_a_stream_is_one(open_failover: OpenFailover) -> None:
    """It ends the reply, which does not count as one that broke off by itself."""
    with open_failover() as world:
        first, _ = _halves(world.kind, b"\n\n")
        for body, status in _UNNAMED:
            world.first.queue(raw(first, b"data: %b\n\n" % body))
            with pytest.raises(openai.APIError, match=r"rate limit|Gone"):
                world.chat(True, memory=True, text=f"What is {status}?")
        world.settle()
        assert world.find_endpoint("first").health.break_count == 1, "a limit is the caller's"


@only_openai
@both
@forms
def test_an_endpoint_whose_replies_all_break_off_is_passed_over(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover() as world:

        def ask(n: int) -> str:
            reply = world.chat(stream, memory, f"question {n}")
            world.settle()
            return reply[1]["x-mnemogate-upstream"]

        def ask_in_vain(n: int) -> None:
            with pytest.raises(openai.APIError):
                world.chat(stream, memory, f"question {n}")
            world.settle()

        world.first.queue(*[say("One two three", cut_after=3 if stream else 0)] * 4, say("Ok."))
        for n in range(4):
            ask_in_vain(n)
        assert ask(4) == "first"  # and its whole reply ends the row
        world.first.queue(*[say("One two three", cut_after=3 if stream else 0)] * 6)
        for n in range(5, 10):
            ask_in_vain(n)
        assert ask(10) == "second"
        world.now += 10
        ask_in_vain(11)
        assert ask(12) == "second"
        world.now += 10
        assert (ask(13), ask(14)) == ("first", "first")
        assert world.read_metric('mnemogate_upstream_resting{upstream="first"}') == 0


@both
@only_openai
@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\n\n"])
def test_a_stream_that_is_cut_after_its_done_is_whole(
    open_failover: OpenFailover, memory: bool, done: bytes
) -> None:
    with open_failover(fallbacks=()) as world:
        choice = {"index": 0, "delta": {"role": "assistant", "content": "Ok."}, "finish_reason": "stop"}
        chunk = b"data: %b\n\n" % json.dumps({"id": "1", "choices": [choice]}).encode()
        world.first.queue(raw(chunk, done, cut_after=2))
        more = {"user": "alice"} if memory else {}
        reply = world.world.gateway.post(
            {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **more}
        )
        assert reply.body == chunk + done
        world.settle()
        assert world.find_endpoint("first").health.break_count == 0


@both
@only_openai
def test_a_whole_reply_that_is_cut_without_an_error_of_http_is_a_status(
    open_failover: OpenFailover, memory: bool
) -> None:
    choice = b'{"index":0,"message":{"role":"assistant","content":"Ok."},"finish_reason":"stop"}'
    body = b'{"id":"c","object":"chat.completion","choices":[%b]}\n' % choice
    packed = {"content-encoding": "gzip"}
    with open_failover(fallbacks=()) as world:
        for cut in (
            raw(body[:90], content_type="application/json"),
            raw(gzip.compress(body)[:-12], content_type="application/json", headers=packed),
        ):
            world.first.queue(cut)
            with pytest.raises(openai.InternalServerError, match="in the middle") as caught:
                world.chat(False, memory)
            assert (caught.value.status_code, caught.value.code) == (502, "upstream_broke")
        world.first.queue(raw(gzip.compress(body), content_type="application/json", headers=packed))
        assert world.chat(False, memory)[0] == "Ok."


@both
def test_a_cut_whole_reply_is_a_status(open_failover: OpenFailover, memory: bool) -> None:
    with open_failover(retries=2) as world:
        world.first.queue(say("One two three", cut_after=0))
        with pytest.raises(openai.InternalServerError) as caught:
            world.chat(False, memory)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_broke")
        assert len(world.first.requests) == 1
        assert world.second.requests == []


@both
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_half_an_event_does_not_spoil_the_error_after_it(
    open_failover: OpenFailover, end: bytes, memory: bool
) -> None:
    with open_failover() as world:
        world.first.queue(raw(*_halves(world.kind, end), cut_after=2))
        options: Any = {"user": "alice"} if memory else {}
        stream = world.world.sdk.chat.completions.create(
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
        delta_event = {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "One"},
        }
        events = [b"data: " + json.dumps(each).encode() + end for each in (begun, block, delta_event)]
        return b"".join(events), events[-1] + b'data: {"type": "content_bl'
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "One"}, "finish_reason": None}
    event = b"data: " + json.dumps({**chunk, "choices": [delta]}).encode() + end
    return event, event + b'data: {"id": "c", "cho'


# --- hidden rounds


@forms
def test_a_hidden_round_stays_where_the_first_was_answered(open_failover: OpenFailover, stream: bool) -> None:
    with open_failover(profiles=[agent()]) as world:
        world.first.queue(fail(503))
        world.second.queue(call_tools(INSERT), say("Noted."))
        text, headers = world.chat(stream, True, **AGENT)
        assert text == "Noted."
        assert (len(world.first.requests), len(world.second.requests)) == (1, 2)
        assert [request.json["model"] for request in world.second.requests] == ["small", "small"]
        assert world.second.last.headers["authorization"] == "Bearer k2"
        assert headers["x-mnemogate-upstream"] == "second"


@forms
def test_an_error_of_a_hidden_round_is_a_status_and_tries_no_other_upstream(
    open_failover: OpenFailover, stream: bool
) -> None:
    with open_failover(profiles=[agent()]) as world:
        world.first.queue(call_tools(INSERT), BUSY)
        with pytest.raises(openai.RateLimitError) as caught:
            world.chat(stream, True, **AGENT)
        assert caught.value.response.headers["retry-after"] == "30"
        assert world.second.requests == []


@pytest.mark.parametrize("before", ["", "Let me see. "], ids=["silent", "after text"])
@pytest.mark.parametrize("is_event", [False, True], ids=["status", "first event"])
def test_a_hidden_round_is_retried(open_failover: OpenFailover, is_event: bool, before: str) -> None:
    """Also where the client has the text of the round before it: it has nothing of this one."""
    with open_failover(profiles=[agent()], retries=1) as world:
        fault = begins_with(world.kind, OVERLOADED) if is_event else fail(503)
        world.first.queue(call_tools(INSERT, text=before or None), fault, say("Noted."))
        assert world.chat(True, True, **AGENT)[0] == f"{before}Noted."
        assert (len(world.first.requests), world.second.requests) == (3, [])


# --- the client leaves


def leave(world: FailoverWorld, memory: bool, gate: Callable[[], None], **more: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more}
    if memory:
        body["user"] = "alice"
    with world.world.gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(body).encode())
        gate()


@only_openai
@both
@forms
def test_a_client_that_leaves_between_two_tries(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover(fallbacks=(), retries=3) as world:
        waiting, ended = Gate(), Gate()

        async def sleep(_: float) -> None:
            waiting.open()
            try:
                await asyncio.Event().wait()
            finally:
                ended.open()

        world.world.gateway.app.services.chat.failover.sleep = sleep
        world.first.queue(fail(503))
        leave(world, memory, waiting.wait_sync, stream=stream)
        ended.wait_sync()
        world.settle()
        assert len(world.first.requests) == 1
        assert world.world.gateway.last_line()["status"] == 499


@both
@forms
def test_a_client_that_leaves_while_the_fallback_thinks(
    open_failover: OpenFailover, stream: bool, memory: bool
) -> None:
    with open_failover() as world:
        world.first.queue(fail(503))
        world.second.queue(say("Too late.", hold_before_headers=Gate()))
        leave(world, memory, world.second.request_gate(1).wait_sync, stream=stream)
        world.second.last.gone.wait_sync()


@only_openai
def test_a_probe_that_is_cancelled_leaves_the_breaker_to_the_next(open_failover: OpenFailover) -> None:
    with open_failover() as world:
        world.first.queue(*(fail(503) for _ in range(5)))
        for n in range(5):
            world.chat(False, False, f"question {n}")
        world.now += 10
        world.first.queue(say("Too late.", hold_before_headers=Gate()))
        leave(world, False, world.first.request_gate(6).wait_sync)
        world.first.last.gone.wait_sync()
        world.settle()
        assert world.chat(False, False)[1]["x-mnemogate-upstream"] == "first"
