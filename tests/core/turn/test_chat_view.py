"""What a client that speaks chat completions is shown, event by event."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.terms import TurnTerms
from gateway.dialects.chat.render import ChatView

OURS = TurnTerms(gateway_tools={"memory_insert"})


def shown(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> ReplyEvent:
    chunk = {"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}
    return ReplyEvent(b"data: %b\n\n" % orjson.dumps(chunk), None, chunk)


def test_nothing_leaves_until_something_is_said() -> None:
    view = ChatView(OURS)
    role, text = shown({"role": "assistant"}), shown({"content": "x"})
    view.show(role)
    view.show(ReplyEvent(b": ping\n\n"))
    assert view.take() == b""
    view.show(text)
    assert role.raw is not None
    assert text.raw is not None
    assert view.take() == role.raw + b": ping\n\n" + text.raw
    assert view.take() == b""


def test_the_name_of_an_event_survives_its_rewriting() -> None:
    view = ChatView(TurnTerms())
    event = shown({"content": "x"}, "stop")
    event.name = "message"
    view.end([event], "length", b"")
    assert view.take().startswith(b"event: message\ndata: {")


def test_a_hidden_end_says_its_text_and_nothing_else() -> None:
    view = ChatView(TurnTerms())
    ends = [
        shown({}, "tool_calls"),
        shown({"content": "x"}, "tool_calls", usage={"prompt_tokens": 3}),
    ]
    usage = ReplyEvent(b"u", None, {"id": "a", "choices": [], "usage": {"prompt_tokens": 3}})
    view.hide_round([*ends, usage])
    (line,) = view.take().decode().strip().split("\n\n")
    chunk = orjson.loads(line.removeprefix("data: "))
    assert chunk["choices"] == [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]
    assert chunk["usage"] is None
