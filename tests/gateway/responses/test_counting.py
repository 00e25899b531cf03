"""Counting the tokens of a request for a response, and making a conversation short."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from gateway.core.conversation.wire_message import read_text
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.summary import limit_summary
from gateway.settings import ModelSettings, UpstreamSettings
from gateway.tokens import Tokenizer
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Gate, StrictUpstream, fail, raw, say
from tests.gateway.responses.response_client import WEATHER, respond, serve_memory
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S, becomes
from tests.rows import each_row

Json = dict[str, Any]
FILE: Any = {"type": "input_image", "image_url": "http://example.com/cat.png"}  # Anthropic takes https alone


def count(world: World, **options: Any) -> int:
    found = world.sdk.responses.input_tokens.count(**{"model": "m", **options})
    assert found.object == "response.input_tokens"
    return found.input_tokens


def test_a_count_of_tokens_has_no_memory(world: World) -> None:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"content-type": "application/json", "x-mnemogate-user": "alice"}
    assert world.gateway.ask("POST", "/v1/messages/count_tokens", orjson.dumps(body), headers).status == 200
    assert world.query("SELECT count(*) FROM agents") == [0]


@pytest.mark.both
def test_tokens_of_a_conversation_are_counted_while_a_response_is_made(
    world: World, upstream: StrictUpstream
) -> None:
    gate, item = Gate(), {"role": "user", "content": "My cat is called Miso."}
    conversation = world.sdk.conversations.create(items=[item]).id  # type: ignore[list-item]
    upstream.queue(say("Hello.", hold_before_headers=gate))
    with ThreadPoolExecutor() as pool:
        future = pool.submit(respond, world, input="Hi", conversation=conversation, user="alice")
        becomes(lambda: upstream.chats)
        world.sdk.conversations.items.create(conversation, items=[item])  # type: ignore[list-item]
        assert count(world, input="Hi", conversation=conversation) > 0
        gate.open()
        assert future.result(PATIENCE_S).status == "completed"


def test_tokens_are_counted_of_all_that_is_sent(world: World, upstream: StrictUpstream) -> None:
    first = respond(world, input="My cat is called Miso, and she is grey.", user="alice")
    chat_count = len(upstream.chats)
    plain = count(world, input="What is it called?")
    assert 0 < plain < 20
    assert count(world, input="What is it called?", instructions="Be brief and kind.") > plain
    assert count(world, input="What is it called?", tools=[WEATHER]) > plain
    longer = count(world, input="What is it called?", previous_response_id=first.id)
    assert longer > plain
    named = count(world, previous_response_id=first.id)
    assert named < longer
    assert count(world, previous_response_id=first.id, instructions="Be brief and kind.") > named
    conversation = world.sdk.conversations.create(
        items=[{"role": "user", "content": "My cat is called Miso."}]
    )
    assert count(world, input="What is it called?", conversation=conversation.id) > plain
    # Without what memory adds, and nothing is asked or stored.
    assert count(world, input="What is it called?", extra_body={"user": "alice"}) == plain
    assert len(upstream.chats) == chat_count
    assert world.query("SELECT count(*) FROM exchanges") == [1]


@pytest.mark.parametrize("path", ["input_tokens", "compact"])
def test_a_field_that_the_api_does_not_have_is_refused(
    world: World, upstream: StrictUpstream, path: str
) -> None:
    """No upstream judges it, and a misspelt field that is left out changes the count or the summary."""
    body = {"model": "m", "input": "Hi", "instruction": "Be brief."}
    error = world.gateway.ask("POST", f"/v1/responses/{path}", orjson.dumps(body)).error
    assert (error["code"], error["param"]) == ("unknown_parameter", "instruction")
    assert upstream.chats == []


@pytest.mark.parametrize("path", ["input_tokens", "compact"])
def test_an_upstream_of_responses_has_them_as_they_came(
    upstream: StrictUpstream, tmp_path: Path, path: str
) -> None:
    there = UpstreamSettings("up", base_url=upstream.base_url, takes={"responses": "stored"})
    with remember(upstream, tmp_path, upstreams=(there,)) as world:
        body = orjson.dumps({"model": "m", "input": "My cat is called Miso."})
        headers = {"x-mnemogate-user": "alice"}
        reply = world.gateway.ask("POST", f"/v1/responses/{path}", body, headers)
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "off")
        assert upstream.last.body == body
        assert world.query("SELECT count(*) FROM exchanges") == [0]


@pytest.mark.parametrize("named", ["conv", "call-1"])
def test_a_stored_conversation_is_not_made_short(world: World, upstream: StrictUpstream, named: str) -> None:
    """Its messages are not in the request, so that the summary would be without them."""
    if named == "conv":
        named = world.sdk.conversations.create().id
    respond(world, input="My cat is called Miso.", conversation=named, user="alice")
    asked = {"model": "m", "user": "alice", "conversation": named}
    bye: Json = {"role": "user", "content": "Bye"}
    for path, items in (("/compact", [bye]), ("", [bye, {"type": "compaction_trigger"}])):
        body = orjson.dumps({**asked, "input": items})
        reply = world.gateway.ask("POST", f"/v1/responses{path}", body)
        assert (reply.status, reply.json["error"]["param"]) == (400, "conversation")
    assert len(upstream.chats) == 1


def test_claude_counts_itself(tmp_path: Path) -> None:
    with StrictAnthropic() as claude:
        there = (UpstreamSettings("up", "anthropic", claude.base_url),)
        with remember(claude, tmp_path, upstreams=there) as world:
            tokens = count(world, model="claude-opus-4-6", input="What is it called?", tools=[WEATHER])
            asked = claude.requests[-1]
            assert asked.path == "/v1/messages/count_tokens"
            assert set(asked.json) == {"model", "messages", "tools"}
            assert tokens == len(orjson.dumps(asked.json)) // 4
            with pytest.raises(openai.BadRequestError) as caught:
                count(world, model="claude-opus-4-6", input=[{"role": "user", "content": [FILE]}])
            assert "error" in caught.value.response.json()


def test_an_error_of_the_count_that_cannot_be_read_keeps_its_status(tmp_path: Path) -> None:
    with StrictAnthropic() as claude:
        there = (UpstreamSettings("up", "anthropic", base_url=claude.base_url),)
        claude.count_reply = raw(
            b"<html></html>", content_type="text/html", status=503, headers={"retry-after": "7"}
        )
        with remember(claude, tmp_path, upstreams=there) as world:
            body = orjson.dumps({"model": "claude-opus-4-6", "input": "Hi"})
            reply = world.gateway.ask("POST", "/v1/responses/input_tokens", body)
    assert (reply.status, reply.headers["content-type"]) == (503, "application/json")
    assert reply.headers["retry-after"] == "7"
    assert "503" in reply.error["message"]


def test_a_conversation_is_made_short(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("Nice."), say("The user has a grey cat, Miso."))
    first = respond(world, input="My cat is called Miso, she is grey.", user="alice")
    short = world.sdk.responses.compact(model="m", previous_response_id=first.id)
    assert "Assistant: Nice." in upstream.last.messages[-1]["content"]
    assert short.object == "response.compaction"
    assert [item.type for item in short.output] == ["message", "compaction"]
    assert short.usage.total_tokens > 0
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    respond(world, input=[*items, {"role": "user", "content": "What is it called?"}], user="bob")
    texts = [(m["role"], read_text(m)) for m in upstream.last.messages]
    assert texts[0][0] == "system"
    assert texts[0][1].endswith("The user has a grey cat, Miso.")
    assert [text for _, text in texts[1:]] == ["My cat is called Miso, she is grey.", "What is it called?"]
    assert "The user has a grey cat" not in str(world.query("SELECT input FROM exchanges"))


def test_a_conversation_is_compacted_with_instructions(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("Nice."), say("The user has a cat."))
    first = respond(world, input="My cat is called Miso.", user="alice")
    short = world.sdk.responses.compact(model="m", previous_response_id=first.id, instructions="Be brief.")
    assert "Assistant: Nice." in upstream.last.messages[-1]["content"]
    assert [item.type for item in short.output] == ["message", "compaction"]


def test_a_list_is_made_short_too(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("Notes."))
    short = world.sdk.responses.compact(
        model="m",
        input=[
            {"role": "user", "content": "One."},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Three."},
        ],
    )
    assert [item.content[0].text for item in short.output[:-1]] == ["One.", "Three."]  # type: ignore[union-attr]
    assert world.query("SELECT count(*) FROM exchanges") == [0]
    upstream.queue(fail(429, "Slow down.", code="rate_limit_exceeded"))
    with pytest.raises(openai.RateLimitError):
        world.sdk.responses.compact(model="m", input="Hi")


def test_a_list_is_counted_outside_the_event_loop(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def thread() -> int:
        return threading.get_ident()

    threads, count = set[int](), Tokenizer.count

    def count_and_note(tokenizer: Tokenizer, text: str) -> int:
        threads.add(threading.get_ident())
        return count(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "count", count_and_note)
    world.sdk.responses.compact(model="m", input="Hi")
    assert threads
    assert world.gateway.call(thread()) not in threads


@each_row(
    "body", [b"<html></html>", b"[]", b'{"choices":[]}', b'{"choices":[{"message":7}]}', b'{"choices":[7]}']
)
def test_an_answer_that_is_no_chat_completion_is_the_upstreams_fault(
    world: World, upstream: StrictUpstream, body: bytes
) -> None:
    upstream.queue(raw(body, content_type="application/json"))
    asked = orjson.dumps({"model": "m", "input": "Hi"})
    assert world.gateway.ask("POST", "/v1/responses/compact", asked, {}).status == 502


@each_row(
    ("status", "body", "kind"),
    [
        (503, b"<html><h1>Try again</h1></html>", "text/html"),
        (429, b"", "text/plain"),
        (404, b"[]", "application/json"),
    ],
)
def test_an_error_that_cannot_be_read_keeps_its_status(
    world: World, upstream: StrictUpstream, status: int, body: bytes, kind: str
) -> None:
    """As where a response is made."""
    upstream.queue(raw(body, content_type=kind, status=status, headers={"retry-after": "7"}))
    asked = orjson.dumps({"model": "m", "input": "Hi"})
    reply = world.gateway.ask("POST", "/v1/responses/compact", asked)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert reply.headers["retry-after"] == "7"
    assert str(status) in reply.error["message"]


def test_an_error_of_the_upstream_names_the_field_as_the_client_does(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(fail(400, "Invalid 'messages[0].content'."))
    with pytest.raises(openai.BadRequestError, match="'input'"):
        world.sdk.responses.compact(model="m", input="Hi")


def test_a_summary_that_was_cut_off_ends_with_a_line_or_is_none(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(say("The cat is called Miso.\nIt sle", finish_reason="MAX_TOKENS"))
    short = world.sdk.responses.compact(model="m", input="My cat is called Miso.")
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    respond(world, input=[*items, {"role": "user", "content": "What is it called?"}])
    assert read_text(upstream.last.messages[0]).endswith("\n\nThe cat is called Miso.")
    upstream.queue(say("The cat", finish_reason="content_filter"))
    body = orjson.dumps({"model": "m", "input": "Hi"})
    assert world.gateway.ask("POST", "/v1/responses/compact", body, {}).status == 502


def test_the_thoughts_of_a_model_are_no_summary(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("<think>A cat, so notes.</think>\n<notes>\nThe cat is called Miso.\n</notes>"))
    short = world.sdk.responses.compact(model="m", input="My cat is called Miso.")
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    respond(world, input=[*items, {"role": "user", "content": "What is it called?"}])
    assert read_text(upstream.last.messages[0]).endswith("\n\nThe cat is called Miso.")
    upstream.queue(say("<think>A cat.</think>"))
    body = orjson.dumps({"model": "m", "input": "Hi"})
    assert world.gateway.ask("POST", "/v1/responses/compact", body, {}).status == 502


def test_each_part_of_a_summary_fits_the_window(upstream: StrictUpstream, tmp_path: Path) -> None:
    small = ModelSettings("small", "m", context_window=8_192)
    talk: Any = [{"role": "user", "content": "猫" * 500} for _ in range(24)]
    with serve_memory(upstream, tmp_path, models=(small,)) as world:
        world.sdk.responses.compact(model="small", input=talk)
    sizes = [sum(estimate_tokens(read_text(m)) for m in each.messages) for each in upstream.chats]
    assert sum(sizes) > 12_000
    assert max(sizes) < 8_192 - limit_summary(8_192)


def test_an_agent_that_was_made_over_rest_makes_a_list_short(world: World, upstream: StrictUpstream) -> None:
    body = orjson.dumps({"name": "scribe", "model": "m", "context_window_limit": 16_000})
    assert world.gateway.ask("POST", "/v1/agents/", body).status == 200
    upstream.queue(say("Notes."))
    short = world.sdk.responses.compact(model="agent/scribe", input="Hi")
    assert [item.type for item in short.output] == ["message", "compaction"]


def test_the_text_of_a_summary_stays_when_it_is_compacted_again(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(say("The cat is called Miso."), say("She is grey."))
    talk: Any = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Tell me more."}]
    short = world.sdk.responses.compact(model="m", input=talk)
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    response = respond(world, input=[*items, {"role": "user", "content": "Which colour?"}])
    for again in ({"input": [*items, *talk]}, {"previous_response_id": response.id}):
        world.sdk.responses.compact(model="m", **again)
        assert "The cat is called Miso." in upstream.last.messages[-1]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_trigger_asks_for_a_summary_in_place_of_a_reply(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    upstream.queue(say("Notes."))
    items: Any = [{"role": "user", "content": "One."}, {"type": "compaction_trigger"}]
    response = respond(world, input=items, user="alice", stream=stream)
    (item,) = response.output
    assert (response.status, response.store, item.type) == ("completed", False, "compaction")
    assert response.usage.total_tokens > 0
    assert world.query("SELECT count(*) FROM exchanges") == [0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": "Hi"}, "model"), ({"model": "m"}, "input"), ({"model": "m", "input": []}, "input")],
)
def test_without_a_model_or_a_message_nothing_is_made_short(
    world: World, upstream: StrictUpstream, fields: Json, param: str
) -> None:
    reply = world.gateway.ask("POST", "/v1/responses/compact", orjson.dumps(fields))
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
    assert not upstream.chats


def test_a_summary_of_another_maker_is_refused(world: World) -> None:
    item: Any = {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAA"}
    with pytest.raises(openai.BadRequestError) as caught:
        respond(world, input=[item, {"role": "user", "content": "Hi"}])
    assert (caught.value.code, caught.value.param) == (
        "invalid_encrypted_content",
        "input[0].encrypted_content",
    )
