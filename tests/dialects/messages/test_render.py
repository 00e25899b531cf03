"""A reply of an upstream with chat completions in the form of the Messages API."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import orjson
import pytest

from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.turn.terms import TurnTerms
from gateway.dialects.messages.render import MessagesView, MessagesViewFactory

Json = dict[str, Any]


def view() -> MessagesView:
    return MessagesViewFactory("m", 1, "req_1", lambda text: None)(TurnTerms())


def event(delta: Json, finish: str | None = None, name: str | None = None) -> ReplyEvent:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return ReplyEvent(head + b"data: %b\n\n" % orjson.dumps(chunk), name, chunk)


def piece(index: int = 0, id: str | None = None, **function: str) -> Json:
    return {"tool_calls": [{"index": index, **({} if id is None else {"id": id}), "function": function}]}


def stream(*events: ReplyEvent, finish: str = "stop") -> list[Json]:
    """Returns the events that a client gets, each by its data."""
    made = view()
    made.begin(events[0].chunk or {})
    for each in events:
        made.show(each)
    made.end([event({}, finish)], None, b"data: [DONE]\n\n")
    return [orjson.loads(each.partition(b"\ndata: ")[2]) for each in made.take().split(b"\n\n") if each]


def calls_in(events: list[Json]) -> list[tuple[str, str]]:
    """Returns name and arguments of each call, as a client puts them together."""
    found: list[tuple[str, str]] = []
    for each in events:
        if each["type"] == "content_block_start" and each["content_block"]["type"] == "tool_use":
            found.append((each["content_block"]["name"], ""))
        elif each.get("delta", {}).get("type") == "input_json_delta":
            name, text = found.pop()
            found.append((name, text + each["delta"]["partial_json"]))
    return found


@pytest.mark.parametrize("name", ["message", "chunk"])
def test_chunks_that_their_upstream_names_are_translated_too(name: str) -> None:
    events = [event({"content": text}, name=name) for text in ("Hello", " you")]
    assert stream(*events) == stream(event({"content": "Hello"}), event({"content": " you"}))


def test_a_stream_has_a_ping_after_its_first_event() -> None:
    kinds = [each["type"] for each in stream(event({"role": "assistant"}), event({"content": "Hello"}))]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds.count("ping") == 1


@pytest.mark.parametrize(
    ("tier", "shown"), [("priority", "priority"), ("default", "standard"), (None, "standard")]
)
def test_the_usage_names_the_tier(tier: str | None, shown: str) -> None:
    first = event({"content": "Hello"})
    chunk = {**(first.chunk or {}), "service_tier": tier}
    assert stream(ReplyEvent(b"", None, chunk))[0]["message"]["usage"]["service_tier"] == shown
    made = view()
    made.begin(chunk)
    outcome = TurnOutcome(FINISHED, shown_reply={"role": "assistant", "content": "Hello"})
    message = orjson.loads(made.render_body(b"{}", outcome, is_unchanged=False))
    assert message["usage"]["service_tier"] == shown


@pytest.mark.parametrize("arguments", [{}, {"arguments": ""}])
def test_a_name_that_comes_in_pieces_is_whole_where_its_call_begins(arguments: Json) -> None:
    pieces = [piece(0, "c1", name="get_", **arguments), piece(name="weather", **arguments)]
    told = stream(*map(event, [*pieces, piece(arguments='{"city":'), piece(arguments='"Bern"}')]))
    assert calls_in(told) == [("get_weather", '{"city":"Bern"}')]


def test_calls_begin_in_whichever_order_their_names_come() -> None:
    pieces = [
        piece(0, "c1"),
        piece(1, "c2", name="two", arguments="{}"),
        piece(0, name="one", arguments="{}"),
    ]
    assert sorted(calls_in(stream(*map(event, pieces)))) == [("one", "{}"), ("two", "{}")]


def test_a_call_without_arguments_is_shown_too() -> None:
    assert calls_in(stream(event(piece(0, "c1", name="stop")))) == [("stop", "")]


@pytest.mark.parametrize(
    "arguments", ['{"id":123456789012345678901234567890}', '{"a":' + "[" * 500 + "]" * 500 + "}"]
)
def test_a_whole_reply_has_the_arguments_as_the_model_wrote_them(arguments: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    outcome = TurnOutcome(FINISHED, shown_reply={"role": "assistant", "content": None, "tool_calls": [call]})
    assert b'"input":' + arguments.encode() in view().render_body(b"{}", outcome, is_unchanged=False)


def test_a_message_without_a_call_does_not_end_for_a_call() -> None:
    """A client would send the results of no calls, and the API refuses a message without content."""
    shown = stream(event({"content": "It rains."}), finish="tool_calls")
    assert [each["delta"]["stop_reason"] for each in shown if each["type"] == "message_delta"] == ["end_turn"]
    reply = {"role": "assistant", "content": "It rains."}
    outcome = TurnOutcome(FINISHED, shown_reply=reply, finish_reason="tool_calls")
    message = orjson.loads(view().render_body(b"{}", outcome, is_unchanged=False))
    assert message["stop_reason"] == "end_turn"


def test_a_refusal_beside_a_text_is_shown_whole_as_in_a_stream() -> None:
    reply = {"role": "assistant", "content": "So far. ", "refusal": "No more."}
    shown = orjson.loads(
        view().render_body(b"{}", TurnOutcome(FINISHED, shown_reply=reply), is_unchanged=False)
    )
    assert shown["content"] == [{"type": "text", "text": "So far. No more."}]
    assert shown["stop_reason"] == "refusal"
    streamed = stream(event({"content": "So far. "}), event({"refusal": "No more."}))
    texts = [each["delta"]["text"] for each in streamed if each["type"] == "content_block_delta"]
    assert "".join(texts) == "So far. No more."


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("overloaded_error", "overloaded_error"), ("odd", "api_error"), (["odd"], "api_error")],
)
def test_an_upstreams_error_has_a_type_that_clients_know(kind: Any, shown: str) -> None:
    made = view()
    made.show_upstream_error({"message": "Too much.", "type": kind, "param": None, "code": None}, None)
    assert orjson.loads(made.take().partition(b"\ndata: ")[2])["error"] == {
        "type": shown,
        "message": "Too much.",
    }


def test_thoughts_that_an_upstream_counts_apart_are_output() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "total_tokens": 42,
        "completion_tokens_details": {"reasoning_tokens": 26},
    }
    outcome = TurnOutcome(FINISHED, shown_reply={"role": "assistant", "content": "Hi"}, usage=usage)
    shown = orjson.loads(view().render_body(b"{}", outcome, is_unchanged=False))
    assert (shown["usage"]["input_tokens"], shown["usage"]["output_tokens"]) == (9, 33)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'[{"error":{"message":"Too much.","code":429}}]', "Too much."),  # Google
        (b'{"detail":"Too much."}', "Too much."),
        (b"{}", "The upstream reported an error"),
        (b'{"detail": %b}' % (b"[" * 400 + b"]" * 400), "The upstream reported an error"),
    ],
)
def test_an_upstreams_refusal_has_its_message(body: bytes, message: str) -> None:
    shown = view().render_error_body(429, body)
    assert shown is not None
    assert orjson.loads(shown)["error"] == {"type": "rate_limit_error", "message": message}


def test_blocks_that_the_gateway_adds_to_a_native_message_have_indexes_of_their_own() -> None:
    made = MessagesViewFactory("m", 1, "req_1", lambda text: None)(
        TurnTerms(gateway_tools=frozenset({"think"}))
    )

    def native(kind: str, **fields: Any) -> None:
        data = orjson.dumps({"type": kind, **fields})
        made.show(ReplyEvent(b"event: %b\ndata: %b\n\n" % (kind.encode(), data)))

    native("message_start", message={"id": "msg_1"})
    for n, add in enumerate(
        (
            lambda: made.add_thought("Hm."),
            lambda: made.add_text("Wait."),
            lambda: made.add_calls([{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]),
        )
    ):
        native("content_block_start", index=n, content_block={"type": "text", "text": ""})
        native("content_block_stop", index=n)
        add()
    native("content_block_start", index=3, content_block={"type": "text", "text": ""})
    events = [orjson.loads(each.partition(b"\ndata: ")[2]) for each in made.take().split(b"\n\n") if each]
    assert [each["index"] for each in events if each["type"] == "content_block_start"] == [*range(7)]


@pytest.mark.parametrize("is_native", [False, True])
def test_a_message_is_freed_with_its_turn(is_native: bool) -> None:
    """It holds the words of its reply, and a turn makes no garbage to be looked for."""
    start = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    gc.disable()
    try:
        made = view()
        made.show(ReplyEvent(start) if is_native else event({"content": "Hello."}))
        made.add_text("Hello.")
        is_there = weakref.ref(made._message)
        del made
        assert is_there() is None
    finally:
        gc.enable()
