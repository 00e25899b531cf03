"""What the gateway adds and the upstream refuses to read is left out: no request fails by its memory."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.base import ModelReply
from adapters.scripted import ScriptedProvider, ScriptedReply
from adapters.types import ModelRequest
from gateway.core.turn.refusal import RefusedContent
from gateway.core.upstream.policy import Target
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.upstream.endpoint import Endpoint
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.route import resolve_route
from gateway.settings import Settings, UpstreamSettings
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, refuse
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, raw, say
from tests.gateway.sdk import World, agent, remember
from tests.gateway.upstream.failover_world import INSERT, OpenFailover, only_openai
from tests.server import RawReply

FILTERED = fail(400, "The prompt was filtered.", code="content_filter")
GONE = fail(400, "Error while downloading https://pictures.example/1.png.", code="invalid_image_url")
APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}
SEARCH = Call("conversation_search", {"query": "sister"})
HI = {"role": "user", "content": "Hi"}
PICTURE = {"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}}
LOOK = {"role": "user", "content": [{"type": "text", "text": "Look."}, PICTURE]}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    """A gateway that knows of alice that she likes plums."""
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url),)
    with remember(upstream, tmp_path, agent(), upstreams=upstreams) as world:
        assert world.post([HI], user="alice", model="agent/helper").status == 200
        world.write_block("alice", "Likes plums.")
        upstream.script = filter_plums
        yield world


def filter_plums(request: UpstreamRequest) -> Reply | None:
    return FILTERED if "plum" in json.dumps(request.messages) else None


def post(world: World, path: str, body: Any) -> RawReply:
    return world.gateway.ask("POST", path, json.dumps({"model": "agent/helper", **body}).encode())


WAYS: dict[str, Callable[[World], RawReply]] = {
    "whole": lambda world: post(world, "/v1/chat/completions", {"messages": [HI], "user": "alice"}),
    "streamed": lambda world: post(
        world, "/v1/chat/completions", {"messages": [HI], "user": "alice", "stream": True}
    ),
    "response": lambda world: post(world, "/v1/responses", {"input": "Hi", "user": "alice"}),
    "message": lambda world: post(
        world, "/v1/messages", {"messages": [HI], "max_tokens": 99, "metadata": {"user_id": "alice"}}
    ),
    "appended": lambda world: world.post([HI], APPEND, user="alice", model="agent/helper"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_memory_section_that_is_refused_is_left_out(
    world: World, upstream: StrictUpstream, way: str
) -> None:
    before = len(upstream.requests)
    reply = WAYS[way](world)
    assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "memory")
    assert reply.headers["x-mnemogate-tries"] == "up:400;up:200"
    assert [str(request.messages[0]).count("plum") for request in upstream.requests[before:]] == [1, 0]
    assert upstream.last.messages[0]["content"].startswith("You help.")
    assert upstream.last.tool_names


def test_its_conversation_goes_on_without_it(world: World, upstream: StrictUpstream) -> None:
    chat = world.chat(user="alice", model="agent/helper")
    chat.say("Good morning.")
    before = len(upstream.requests)
    chat.say("What a day.")
    assert len(upstream.requests) == before + 1
    assert "plum" not in upstream.last.body.decode()


@pytest.mark.parametrize("headers", [{}, APPEND], ids=["list", "appended"])
def test_a_note_that_is_refused_is_left_out_for_good(
    world: World, upstream: StrictUpstream, headers: dict[str, str]
) -> None:
    upstream.script = None
    world.write_block("alice", "Likes tea.")
    world.chat(user="alice", model="agent/helper").say("My sister planted plum trees in Portugal.")
    upstream.script = filter_plums
    world.pass_time(3600)
    chat = world.chat(user="alice", model="agent/helper", headers=headers)
    chat.say("Where in Portugal did my sister plant trees?")
    refused, answered = upstream.requests[-2:]
    assert ("plum" in refused.body.decode(), "plum" in answered.body.decode()) == (True, False)
    if headers:
        chat.messages.clear()
    before = len(upstream.requests)
    chat.say("Thank you.")
    assert len(upstream.requests) == before + 1


@only_openai
def test_a_note_that_a_fallback_refuses_after_comments_is_left_out_for_good(
    open_failover: OpenFailover,
) -> None:
    """The client has the head of the first upstream's reply, which brought no word."""
    gone = b'data: {"error":{"code":502,"message":"Gone."},"choices":[]}\n\n'
    with open_failover(server={"keep_alive_comment_s": 60.0}) as failover:
        failover.world.chat(user="alice").say("My sister planted plum trees in Portugal.")
        failover.world.pass_time(3600)
        chat = failover.world.chat(user="alice")
        failover.first.queue(raw(b": wait\n\n", gone))
        failover.second.script = filter_plums
        assert chat.say("Where in Portugal did my sister plant trees?", stream=True) == "Ok."
        assert ["plum" in request.body.decode() for request in failover.second.requests] == [True, False]
        chat.say("Thank you.")
        assert "plum" not in failover.first.last.body.decode()


def test_a_note_stays_out_where_a_later_round_fails(world: World, upstream: StrictUpstream) -> None:
    def call_once(request: UpstreamRequest) -> Reply | None:
        has_result = request.messages[-1]["role"] == "tool"
        return filter_plums(request) or (fail(500) if has_result else call_tools(INSERT))

    upstream.script = None
    world.write_block("alice", "Likes tea.")
    world.chat(user="alice", model="agent/helper").say("My sister planted plum trees in Portugal.")
    world.pass_time(3600)
    upstream.script = call_once
    ask = {"role": "user", "content": "Where in Portugal did my sister plant trees?"}
    chat = {"user": "alice", "model": "agent/helper"}
    assert world.post([ask], APPEND, **chat).status == 500
    upstream.script = filter_plums
    before = len(upstream.requests)
    assert world.post([ask], APPEND, **chat).status == 200
    assert len(upstream.requests) == before + 1


@pytest.mark.parametrize("headers", [{}, APPEND], ids=["list", "appended"])
def test_a_result_that_is_refused_is_left_out_for_good(
    world: World, upstream: StrictUpstream, headers: dict[str, str]
) -> None:
    def search_once(request: UpstreamRequest) -> Reply | None:
        return filter_plums(request) or (call_tools(SEARCH) if "?" in str(request.messages[-1]) else None)

    upstream.script = None
    world.write_block("alice", "Likes tea.")
    world.chat(user="alice", model="agent/helper").say("My sister planted plum trees in Portugal.")
    world.pass_time(3600)
    upstream.script = search_once
    ask = {"role": "user", "content": "Well?"}
    chat: Any = {"user": "alice", "model": "agent/helper"}
    reply = world.post([ask], headers, **chat, stream=True)
    assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "results")
    assert reply.headers["x-mnemogate-tries"] == "up:200;up:400;up:200"
    assert b"Ok." in reply.body
    refused, answered = upstream.requests[-2:]
    assert answered.messages[:-1] == refused.messages[:-1]
    assert "refused to read it" in answered.messages[-1]["content"]
    before = len(upstream.requests)
    answer = {"role": "assistant", "content": "Ok."}
    thanks = {"role": "user", "content": "Thank you."}
    assert world.post([thanks] if headers else [ask, answer, thanks], headers, **chat).status == 200
    assert len(upstream.requests) == before + 1
    assert upstream.last.messages[3] == answered.messages[-1]


def test_results_of_a_later_round_are_sent_where_those_before_were_refused(
    world: World, upstream: StrictUpstream
) -> None:
    def search_twice(request: UpstreamRequest) -> Reply | None:
        searches = sum(message["role"] == "tool" for message in request.messages)
        query = ("Portugal", "coffee")[searches] if searches < 2 else None
        call = Call("conversation_search", {"query": query})
        return filter_plums(request) or (None if query is None else call_tools(call))

    upstream.script = None
    world.write_block("alice", "Likes tea.")
    world.chat(user="alice", model="agent/helper").say("My sister planted plum trees in Portugal.")
    world.chat(user="alice", model="agent/helper").say("I drink coffee.")
    world.pass_time(3600)
    upstream.script = search_twice
    assert world.post([HI], user="alice", model="agent/helper").status == 200
    results = [message["content"] for message in upstream.last.messages if message["role"] == "tool"]
    assert ["refused to read it" in each for each in results] == [True, False]
    assert "coffee" in results[1]


def test_results_stay_where_they_were_not_what_was_refused(world: World, upstream: StrictUpstream) -> None:
    """The call that the model makes next is refused itself."""

    def search_twice(request: UpstreamRequest) -> Reply | None:
        searches = sum(message["role"] == "tool" for message in request.messages)
        call = Call("conversation_search", {"query": "plum" if searches else "coffee"})
        return filter_plums(request) or call_tools(call, text="Let me see.")

    upstream.script = None
    world.write_block("alice", "Likes tea.")
    world.chat(user="alice", model="agent/helper").say("I drink coffee.")
    world.pass_time(3600)
    upstream.script = search_twice
    chat: Any = {"user": "alice", "model": "agent/helper"}
    assert b"content_filter" in world.post([HI], **chat, stream=True).body
    upstream.script = None
    answer = {"role": "assistant", "content": "Let me see. Let me see."}
    assert world.post([HI, answer, {"role": "user", "content": "Go on."}], **chat).status == 200
    results = [message["content"] for message in upstream.last.messages if message["role"] == "tool"]
    assert "I drink coffee." in results[0]
    assert "refused to read it" not in upstream.last.body.decode()


@pytest.mark.parametrize("headers", [{}, APPEND], ids=["list", "appended"])
def test_a_result_of_an_earlier_turn_that_is_refused_is_left_out(
    world: World, upstream: StrictUpstream, headers: dict[str, str]
) -> None:
    """An endpoint has read it that had no such filter."""

    def search_once(request: UpstreamRequest) -> Reply | None:
        return call_tools(SEARCH) if "?" in str(request.messages[-1]) else None

    upstream.script = None
    world.write_block("alice", "Likes tea.")
    world.chat(user="alice", model="agent/helper").say("My sister planted plum trees in Portugal.")
    world.pass_time(3600)
    upstream.script = search_once
    ask = {"role": "user", "content": "Well?"}
    chat: Any = {"user": "alice", "model": "agent/helper"}
    assert world.post([ask], headers, **chat).status == 200
    upstream.script = filter_plums
    answer = {"role": "assistant", "content": "Ok."}
    thanks = {"role": "user", "content": "Thank you."}
    reply = world.post([thanks] if headers else [ask, answer, thanks], headers, **chat)
    assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "memory,results")
    refused, answered = upstream.requests[-3], upstream.last
    assert "plum" in refused.messages[3]["content"]
    assert "refused to read it" in answered.messages[3]["content"]
    assert answered.messages[-1] == thanks
    # Later turns leave it out at once.
    before, bye = len(upstream.requests), {"role": "user", "content": "Goodbye."}
    assert world.post([bye] if headers else [ask, answer, thanks, answer, bye], headers, **chat).status == 200
    assert len(upstream.requests) == before + 1
    assert upstream.last.messages[:6] == answered.messages[:6]


@pytest.mark.parametrize("begun", [None, (), ({"role": "assistant", "content": ""},)])
def test_a_verdict_under_a_200_is_a_refusal_too(
    world: World, upstream: StrictUpstream, begun: Sequence[Any] | None
) -> None:
    """Gemini's; begun: the deltas of the stream before it. None: the reply is no stream."""
    verdict = {"index": 0, "finish_reason": "content_filter: PROHIBITED_CONTENT"}
    choices = [*({"index": 0, "delta": delta, "finish_reason": None} for delta in begun or ()), verdict]
    first = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    said = [json.dumps({**first, "choices": [choice]}).encode() for choice in choices]
    stream = begun is not None
    refused = (
        raw(*(b"data: %b\n\n" % each for each in said), b"data: [DONE]\n\n")
        if stream
        else raw(*said, content_type="application/json")
    )
    upstream.queue(refused)
    reply = world.post([HI], user="alice", model="agent/helper", stream=stream)
    assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "memory")
    assert reply.headers["x-mnemogate-tries"] == "up:filtered;up:200"
    assert b"Ok." in reply.body
    # Where the user's own words are refused, it is the reply, and the section stays in the conversation.
    upstream.queue(refused, refused)
    chat = {"user": "alice", "model": "agent/helper", "stream": stream}
    reply = world.post([HI], APPEND, **chat)
    assert (reply.status, b"PROHIBITED_CONTENT" in reply.body) == (200, True)
    upstream.script = None
    assert world.post([HI], APPEND, **chat).status == 200
    assert "plums" in upstream.last.body.decode()


@pytest.mark.parametrize("stream", [False, True])
def test_an_appended_message_with_a_verdict_is_not_sent_again(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    """It would be refused each time, and its client does not send the history."""
    upstream.script = lambda request: (
        replace(say(""), finish_reason="content_filter") if "plum" in json.dumps(request.messages) else None
    )
    for text, reason in (("Hi", "stop"), ("A plum!", "content_filter"), ("Hi again", "stop")):
        message = {"role": "user", "content": text}
        reply = world.post([message], APPEND, user="bob", stream=stream)  # nothing is known of him
        assert f'"finish_reason":"{reason}"'.encode() in reply.body
    assert [message["content"] for message in upstream.last.messages] == ["Hi", "Ok.", "Hi again"]


def test_an_appended_message_stays_where_the_reply_was_no_completion(
    world: World, upstream: StrictUpstream
) -> None:
    """A proxy's page says nothing about the message, unlike a verdict."""
    upstream.queue(raw(b"<html>Busy</html>", content_type="text/html"))
    for text in ("A plum!", "Hi again"):
        world.post([{"role": "user", "content": text}], APPEND, user="bob")
    assert "plum" in upstream.last.body.decode()


def test_a_response_that_a_verdict_ended_is_read_by_its_id(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(replace(say(""), finish_reason="content_filter"))
    made = world.sdk.responses.create(model="m", input="A plum!", user="bob", extra_headers=APPEND)
    found = world.sdk.responses.retrieve(made.id)
    assert (made.status, found.status) == ("incomplete", "incomplete")


def test_an_appended_message_that_claude_refuses_to_answer_is_not_sent_again(tmp_path: Path) -> None:
    with StrictAnthropic() as claude:
        upstreams = (UpstreamSettings("up", "anthropic", claude.base_url),)
        with remember(claude, tmp_path, agent(), upstreams=upstreams) as world:
            # What may be about the memory section is asked once more without it.
            claude.queue(*[Message(text="", finish_reason="refusal")] * 2, say("Fine."))
            for text in ("A plum!", "Hi"):
                messages = [{"role": "user", "content": text}]
                body = {"model": "agent/helper", "messages": messages, "max_tokens": 99}
                headers = {**APPEND, "x-mnemogate-user": "bob"}
                reply = world.gateway.ask("POST", "/v1/messages", json.dumps(body).encode(), headers)
                assert reply.status == 200
            assert "plum" not in claude.chats[-1].body.decode()


async def test_a_client_that_leaves_while_its_request_is_made_again_closes_the_reply() -> None:
    choice = {"index": 0, "delta": {}, "finish_reason": "content_filter"}
    verdict = b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()
    refused = ScriptedReply(200, (("content-type", "text/event-stream"),), deque([verdict]))

    class Filter(ScriptedProvider):
        async def send(self, request: ModelRequest) -> ModelReply:
            return refused

    async def make(target: Target, endpoint: Endpoint) -> ModelRequest:
        return ModelRequest(b"{}")

    class Leaver:
        async def repair_request(self, refused: RefusedContent, target: Target, endpoint: Endpoint) -> None:
            raise asyncio.CancelledError

        def note_answer(self) -> None: ...

    settings = Settings(upstreams=(UpstreamSettings("up", "scripted"),))
    failover = Failover(settings, {"up": Filter()}, Metrics())
    attempts = failover.make_attempts(resolve_route(settings, "m"), lambda: 0, Receipt())
    with attempts, pytest.raises(asyncio.CancelledError):
        await attempts.send(make, Leaver())
    assert refused.is_closed


def test_a_users_own_words_are_refused_as_before(world: World, upstream: StrictUpstream) -> None:
    reply = world.post([{"role": "user", "content": "A plum!"}], user="alice", model="agent/helper")
    assert (reply.status, reply.error["code"]) == (400, "content_filter")
    before = len(upstream.requests)
    reply = world.post([{"role": "user", "content": "A plum!"}], user="bob")  # nothing is known of him
    assert (reply.status, len(upstream.requests)) == (400, before + 1)


def test_a_request_that_is_refused_for_another_reason_is_not_sent_again(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.script = lambda request: fail(400, "Invalid value for 'seed'.", code="invalid_value")
    before = len(upstream.requests)
    assert world.post([HI], user="alice", model="agent/helper").status == 400
    assert len(upstream.requests) == before + 1


def test_claude_is_asked_again_in_its_own_dialect(tmp_path: Path) -> None:
    refusal = refuse(400, "invalid_request_error", "Output blocked by content filtering policy")
    body = {"messages": [HI], "max_tokens": 99, "metadata": {"user_id": "alice"}}
    with StrictAnthropic() as claude:
        upstreams = (UpstreamSettings("up", "anthropic", claude.base_url),)
        with remember(claude, tmp_path, agent(), upstreams=upstreams) as world:
            assert post(world, "/v1/messages", body).status == 200
            world.write_block("alice", "Likes plums.")
            claude.queue(refusal)
            reply = post(world, "/v1/messages", body)
            assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "memory")
            assert ["plums" in request.body.decode() for request in claude.chats[-2:]] == [True, False]


def test_an_upstream_that_stores_responses_is_asked_again_in_its_own_dialect(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        assert world.post([HI], user="alice", model="agent/helper").status == 200
        world.write_block("alice", "Likes plums.")
        upstream.queue(FILTERED)
        body = {"model": "m", "input": "Hi", "user": "alice"}
        reply = world.gateway.ask(
            "POST", "/v1/responses", json.dumps(body).encode(), {"x-mnemogate-agent": "helper"}
        )
        assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "memory")
        refused, answered = upstream.requests[-2:]
        assert refused.path == answered.path == "/v1/responses"
        assert (b"plums" in refused.body, b"plums" in answered.body) == (True, False)


def test_a_picture_of_the_history_that_is_gone_is_left_out(world: World, upstream: StrictUpstream) -> None:
    """In append mode, and before a response that continues another."""
    assert world.post([LOOK], APPEND, user="alice").status == 200
    upstream.queue(GONE)
    reply = world.post([HI], APPEND, user="alice")
    assert (reply.status, reply.headers["x-mnemogate-adapted"]) == (200, "media")
    look = {"type": "text", "text": "Look."}
    assert upstream.requests[-2].messages[0]["content"] == [look, PICTURE]
    assert upstream.last.messages[0]["content"][0] == look
    assert "no longer" in upstream.last.messages[0]["content"][1]["text"]

    part = {"type": "input_image", "image_url": PICTURE["image_url"]["url"], "detail": "auto"}  # type: ignore[index]
    messages: Any = [{"role": "user", "content": [part]}]
    first = world.sdk.responses.create(model="m", user="alice", input=messages)
    upstream.queue(GONE)
    world.sdk.responses.create(model="m", user="alice", input="Hi", previous_response_id=first.id)
    assert [message["role"] for message in upstream.last.messages] == ["user", "assistant", "user"]
    assert "https:" not in upstream.last.body.decode()


def test_a_picture_of_the_request_itself_is_refused_as_before(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(GONE)
    reply = world.post([LOOK], user="carol")
    assert (reply.status, reply.error["code"]) == (400, "invalid_image_url")


@only_openai
def test_content_that_an_endpoint_has_refused_is_not_sent_to_the_next(open_failover: OpenFailover) -> None:
    with open_failover() as failover:
        assert failover.world.post([LOOK], APPEND, user="alice").status == 200
        failover.first.queue(GONE, fail(503))
        reply = failover.world.post([HI], APPEND, user="alice")
        assert reply.headers["x-mnemogate-tries"] == "first:400;first:503;second:200"
        assert reply.headers["x-mnemogate-adapted"] == "media"
        assert b"https:" not in failover.second.last.body
