"""An upstream whose context nobody named says how long it is by refusing; from then on requests are cut to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.core.upstream.context_window import ModelKey
from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.openai_rules import Rules
from tests.doubles.upstream import (
    Call,
    Gate,
    Reply,
    StrictUpstream,
    UpstreamRequest,
    call_tools,
    fail,
    raw,
    say,
    uncounted,
)
from tests.gateway.sdk import CHAT, agent, remember
from tests.gateway.upstream.failover_world import OpenFailover, only_openai

LIMIT = 2000
WORDS = "one two three four five six seven eight nine ten " * 4


def refuse_long(request: UpstreamRequest) -> Reply:
    """By a rough count of words, as far above the gateway's as a real one may be below."""
    if sum(len(str(m["content"]).split()) for m in request.messages) > LIMIT:
        return fail(
            400,
            message=f"This model's maximum context length is {LIMIT} tokens. Please reduce the length of the messages.",
            code="context_length_exceeded",
        )
    return say("Short enough.")


def long_list(turns: int) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    for n in range(turns):
        said += [{"role": "user", "content": f"{n} {WORDS}"}, {"role": "assistant", "content": f"{n} ok"}]
    return [*said, {"role": "user", "content": "And now?"}]


@pytest.mark.parametrize("user", ["alice", None], ids=["remembered", "nobody"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_list_that_is_too_long_is_cut_once_it_is_known_how_long_it_may_be(
    tmp_path: Path, user: str | None, stream: bool
) -> None:
    with StrictUpstream(script=refuse_long) as upstream, remember(upstream, tmp_path) as world:
        body = {"model": "m", "messages": long_list(80), "stream": stream, **({"user": user} if user else {})}
        first = world.gateway.post(body)
        assert first.status == 200
        assert b"Short" in first.body
        assert first.headers["x-mnemogate-tries"] == "up:400;up:200"
        assert first.headers["x-mnemogate-context-tokens"] == str(LIMIT)
        tried, cut = upstream.chats
        assert len(tried.messages) == 161
        assert cut.messages[-1] == tried.messages[-1]
        assert cut.messages[0]["role"] == "user"
        second = world.gateway.post(body)
        assert second.status == 200
        assert "x-mnemogate-tries" not in second.headers, "it is remembered"
        assert len(upstream.chats) == 3


@pytest.mark.parametrize(
    "error",
    [
        fail(400, "Your input exceeds the context window of this model.", code="context_length_exceeded"),
        fail(400, "invalid params, context window exceeds limit (2013)"),
        fail(413, "Please reduce the length of the messages or completion."),
        fail(400, "max_tokens must be at least 1, got -186."),
    ],
)
def test_a_list_that_is_too_long_is_cut_where_no_length_is_named(tmp_path: Path, error: Reply) -> None:
    def refuse(request: UpstreamRequest) -> Reply:
        return error if refuse_long(request).status == 400 else say("Short enough.")

    with StrictUpstream(script=refuse) as upstream, remember(upstream, tmp_path) as world:
        body = {"model": "m", "messages": long_list(60), "user": "alice"}
        first = world.gateway.post(body)
        assert first.status == 200
        assert first.headers["x-mnemogate-tries"] == f"up:{error.status};up:200"
        assert 40 < len(upstream.last.messages) < 121
        upstream.script = None
        assert world.gateway.post({**body, "user": "bob"}).status == 200
        assert len(upstream.last.messages) == 121, "what one caller's words showed cuts nobody else's"


@pytest.mark.parametrize(
    "words",
    ["greater than the context length (n_keep: 9001>= n_ctx: 2000).", "Context size has been exceeded."],
)
def test_a_stream_that_is_an_error_about_the_length_is_made_again(tmp_path: Path, words: str) -> None:
    """LM Studio's has a 200, and neither a code nor a type."""
    event = b"event: error\ndata: %b\n\n" % json.dumps({"error": {"message": words}}).encode()

    def refuse(request: UpstreamRequest) -> Reply:
        return raw(event) if refuse_long(request).status == 400 else say("Short enough.")

    with StrictUpstream(script=refuse) as upstream, remember(upstream, tmp_path) as world:
        body = {"model": "m", "messages": long_list(60), "user": "alice", "stream": True}
        reply = world.gateway.post(body)
        assert reply.headers["x-mnemogate-tries"] == "up:400;up:200"
        assert b"Short" in reply.body


def test_a_prompt_that_cannot_be_cut_is_refused_as_before(tmp_path: Path) -> None:
    with StrictUpstream() as upstream, remember(upstream, tmp_path) as world:
        upstream.script = lambda request: fail(400, "The input is too long.")
        reply = world.gateway.post({"model": "m", "messages": long_list(0), "user": "alice"})
        assert (reply.status, len(upstream.chats)) == (400, 1)
        upstream.script = None
        assert world.gateway.post({"model": "m", "messages": long_list(60), "user": "alice"}).status == 200
        assert len(upstream.last.messages) == 121


def test_a_list_that_is_too_long_only_with_the_result_of_a_gateway_tool_is_cut(tmp_path: Path) -> None:
    def search(request: UpstreamRequest) -> Reply:
        call = Call("conversation_search", {"query": "ten"})
        return call_tools(call) if request.messages[-1]["role"] == "user" else refuse_long(request)

    with StrictUpstream() as upstream, remember(upstream, tmp_path, agent()) as world:
        world.chat(user="alice", model="agent/helper").say("ten " * 400)
        world.pass_time(3600)
        upstream.script = search
        body = {"model": "agent/helper", "messages": long_list(80), "user": "alice"}
        reply = world.gateway.post(body)
        assert (reply.status, reply.headers["x-mnemogate-tries"]) == (200, "up:200;up:400;up:200")
        *_, tried, cut = upstream.chats
        assert tried.messages[-3:] == cut.messages[-3:]
        assert len(cut.messages) < len(tried.messages)


def test_a_shorter_request_is_retried_like_any_other(open_failover: OpenFailover) -> None:
    with open_failover(fallbacks=(), retries=1) as failover:
        words = "This model's maximum context length is 8192 tokens."
        failover.first.queue(fail(400, words), fail(503), say("Short."))
        reply = failover.world.gateway.post({"model": "m", "messages": long_list(80)})
        assert reply.headers["x-mnemogate-tries"] == "first:400;first:503;first:200"


def test_a_fallback_with_a_known_window_shows_no_usage_that_was_not_asked_for(tmp_path: Path) -> None:
    """The gateway asks for it; clients that did not would read `choices[0]` of a chunk without any."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    words = "This model's maximum context length is 8192 tokens."
    with StrictUpstream() as first, StrictUpstream() as second:
        upstreams = tuple(
            UpstreamSettings(name, base_url=each.base_url, takes={"stream_usage": takes})
            for name, each, takes in (("first", first, False), ("second", second, True))
        )
        models = (
            ModelSettings("m", "m", "first", fallbacks=("other",)),
            ModelSettings("other", "o", "second"),
        )
        with remember(first, tmp_path, upstreams=upstreams, models=models) as world:
            body = {"messages": long_list(80), "stream": True}
            second.queue(fail(400, words), say("Short.", usage=usage))
            assert b'"usage"' not in world.gateway.post({"model": "other", **body}).body
            first.queue(fail(503))
            second.queue(say("Short.", usage=usage))
            reply = world.gateway.post({"model": "m", **body})
            assert second.last.json["stream_options"] == {"include_usage": True}
            assert b"Short" in reply.body
            assert b'"usage"' not in reply.body


def test_a_fallback_after_comments_shows_no_usage_that_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has left before it is known that the second one is asked for its usage."""
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.0)
    comment, gate = b": wait\n\n", Gate()
    with StrictUpstream() as first, StrictUpstream() as second:
        upstreams = tuple(
            UpstreamSettings(name, base_url=each.base_url, takes={"stream_usage": takes})
            for name, each, takes in (("first", first, False), ("second", second, True))
        )
        models = (
            ModelSettings("m", "m", "first", fallbacks=("other",)),
            ModelSettings("other", "o", "second"),
        )
        with remember(first, tmp_path, upstreams=upstreams, models=models) as world:
            gone = b'data: {"error":{"code":502,"message":"Gone."}}\n\n'
            first.queue(raw(comment, gone, hold_after={1: gate}))
            second.queue(say("Short."))
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            with world.gateway.connect() as client:
                client.request("POST", CHAT, json.dumps(body).encode())
                client.read_until(comment)
                gate.open()
                reply = client.read_until(b"data: [DONE]\n\n")
            assert second.last.json["stream_options"] == {"include_usage": True}
            assert b"Short" in reply
            assert b'"usage"' not in reply


def test_an_error_that_names_no_context_reaches_the_client_as_it_is(tmp_path: Path) -> None:
    with StrictUpstream() as upstream, remember(upstream, tmp_path) as world:
        for n, words in enumerate(
            ("Your words do not please me.", "Input is too long: user has 64 characters."), 1
        ):
            upstream.queue(fail(400, message=words, code="displeased"))
            reply = world.gateway.post({"model": "m", "messages": long_list(60), "user": "alice"})
            assert (reply.status, reply.error["code"]) == (400, "displeased")
            assert len(upstream.chats) == n


@pytest.mark.parametrize("user", ["alice", None], ids=["remembered", "nobody"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_error_that_repeats_a_large_request_reaches_the_client_as_it_is(
    tmp_path: Path, user: str | None, stream: bool
) -> None:
    """As servers do that validate with pydantic: vLLM, and whatever is built on FastAPI."""
    with StrictUpstream() as upstream, remember(upstream, tmp_path) as world:
        refusal = fail(422, message="Input should be valid: " + "word " * 40_000)
        upstream.queue(refusal)
        body = {"model": "m", "messages": long_list(1), "stream": stream, **({"user": user} if user else {})}
        reply = world.gateway.post(body)
        assert (reply.status, [reply.body]) == (422, list(refusal.body or ()))
        assert len(upstream.chats) == 1


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 300 tokens.",
        "m\u0061ximum context length of 300",  # as it comes in the JSON
        "context size\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n300",
        "context window " + "9" * 5000,
    ],
)
def test_a_callers_text_cannot_shorten_a_models_context(tmp_path: Path, words: str) -> None:
    """An error that repeats the request repeats what was said in it."""
    body = b'{"model":"m","user":"mallory","messages":[{"role":"user","content":"%s"}]}' % words.encode()
    with StrictUpstream() as upstream, remember(upstream, tmp_path) as world:
        said = json.loads(body)["messages"][0]["content"]
        upstream.queue(fail(422, message=f"Input should be valid, not {said}"), say("Ok."))
        assert world.gateway.ask("POST", "/v1/chat/completions", body).status == 422
        assert len(upstream.chats) == 1
        assert world.gateway.post({"model": "m", "messages": long_list(10), "user": "alice"}).status == 200
        assert len(upstream.last.messages) >= 21


@dataclass
class Counting:
    """An upstream with a vocabulary of its own, which takes more tokens for the same words than we count."""

    context: int
    per_word: float
    refused: int = 0

    def __call__(self, request: UpstreamRequest) -> Reply:
        prompt = int(self.per_word * sum(len(str(m["content"]).split()) for m in request.messages))
        asked = prompt + int(request.json.get("max_tokens", 0))
        if asked > self.context:
            self.refused += 1
            return fail(
                400,
                message=f"This model's maximum context length is {self.context} tokens. However, you requested "
                f"{asked} tokens ({prompt} in the messages). Please reduce the length of the messages.",
                code="context_length_exceeded",
            )
        usage = {"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1}
        return say("Fine.", usage=usage)


@pytest.mark.parametrize("form", ["whole", "streamed", "streamed without usage"])
@pytest.mark.parametrize("is_configured", [True, False], ids=["in the settings", "by an error"])
def test_an_upstream_that_counts_more_than_we_do_is_believed(
    tmp_path: Path, form: str, is_configured: bool
) -> None:
    """Its figures correct the gateway's, so that a conversation that grows does not end where its window does."""
    counting = Counting(4000, per_word=1.7)
    with StrictUpstream(script=counting) as upstream:
        window = UpstreamSettings(
            "up", base_url=upstream.base_url, context_window=4000 if is_configured else None
        )
        with remember(upstream, tmp_path, upstreams=(window,)) as world:
            options = {"stream_options": {"include_usage": True}} if form == "streamed" else {}
            chat = world.chat(user="alice", stream=form != "whole", max_tokens=100, **options)
            for n in range(40):
                assert chat.say(f"{n} {WORDS}{WORDS}") == "Fine."
            kept = [len(request.messages) for request in upstream.chats]
            assert counting.refused == (0 if is_configured and form != "streamed without usage" else 1)
            assert kept[:10] == [*range(1, 20, 2)], "nothing leaves before the window is full"
            # It depends by a turn on the tokens of the memory's mark, which is random.
            assert 10 < kept[-1] < 79


def test_a_reply_with_thoughts_in_its_content_does_not_end_the_counting(tmp_path: Path) -> None:
    """Mistral's thoughts counted as an image, whose tokens are not known: the upstream's count was ignored."""
    counting = Counting(4000, per_word=1.7)
    reply = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "A short greeting will do."}]},
        {"type": "text", "text": "Fine."},
    ]
    with StrictUpstream(script=counting, rules=Rules(thinking_parts=True)) as upstream:
        window = UpstreamSettings("up", base_url=upstream.base_url, context_window=4000)
        with remember(upstream, tmp_path, upstreams=(window,)) as world:
            messages: list[Any] = []
            for n in range(40):
                messages.append({"role": "user", "content": f"{n} {WORDS}{WORDS}"})
                world.sdk.chat.completions.create(
                    model="m", messages=messages, max_tokens=100, extra_headers={"x-mnemogate-user": "alice"}
                )
                messages.append({"role": "assistant", "content": reply})
    assert counting.refused == 0


@only_openai
def test_a_guess_of_one_upstreams_context_is_none_of_its_fallbacks(open_failover: OpenFailover) -> None:
    refused = fail(400, f"This model's maximum context length is {LIMIT} tokens.")
    with open_failover(window=100_000) as failover:
        # The whole list, one cut to the limit, one cut to a guess.
        failover.first.queue(refused, refused, fail(503))
        failover.second.queue(uncounted("Fine.", stream=False))
        failover.world.sdk.chat.completions.create(model="m", messages=long_list(80))
        assert (len(failover.first.requests), len(failover.second.requests)) == (3, 1)
        windows = failover.world.gateway.app.services.chat.failover.context_windows
        assert windows.find_window(ModelKey("second", "small"), 100_000) == 100_000
