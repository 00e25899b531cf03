"""What a client of the agents API is shown of a run, event by event."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.agents.wire.message import Showing
from gateway.agents.wire.run_stream import RunNumbers, StepView, StepViewFactory
from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.draft import MessageDraft
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import UpstreamError

UID = "a" * 32


def view(*, by_token: bool = False, showing: Showing | None = None) -> StepView:
    numbers = RunNumbers(UID, "run-r", 1, 2)
    return StepViewFactory(numbers, showing or Showing(), by_token, lambda: 0.0)(TurnTerms())


def chunk(usage: dict[str, int] | None = None, **delta: Any) -> ReplyEvent:
    return ReplyEvent(None, None, {"choices": [{"index": 0, "delta": delta}], "usage": usage})


def calls(*names: str) -> MessageDraft:
    draft = MessageDraft()
    for n, name in enumerate(names):
        draft.add_call_piece(
            {"index": n, "id": f"c{n}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        )
    return draft


def events(made: StepView) -> list[dict[str, Any]]:
    lines = made.take().decode().split("\n\n")
    return [orjson.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [each["message_type"] for each in found]


def test_text_leaves_as_it_comes_or_when_its_step_ends() -> None:
    tokens, steps = view(by_token=True), view()
    for each in (tokens, steps):
        each.show(chunk(content="Hel"))
        each.show(chunk(content="lo."))
    assert [each["content"] for each in events(tokens)] == ["Hel", "lo."]
    assert events(steps) == []
    steps.end((), None, b"")
    assert events(steps)[0]["content"] == "Hello."


def test_pieces_of_one_message_have_one_id_and_messages_differ() -> None:
    made = view(by_token=True)
    for delta in ({"reasoning_content": "Hm"}, {"reasoning_content": "."}, {"content": "Hello."}):
        made.show(chunk(**delta))
    made.show_calls(calls("a").calls)
    thought, more, text, call = events(made)
    assert {each["id"] for each in (thought, more, text, call)} == {f"message-{UID}-2"}
    assert thought["otid"] == more["otid"]
    assert len({each["otid"] for each in (thought, text, call)}) == 3


def test_a_result_is_numbered_where_it_is_stored_and_is_of_the_step_that_called() -> None:
    made = view()
    made.show_calls(calls("a", "b").calls)
    made.show_tool_result(ToolResult("c1", "Two.", "error"))
    made.show_tool_result(ToolResult("c0", "One."))
    assert kinds(events(made)) == ["tool_call_message"]
    made.show_results(
        3, [ToolResult("c0", "One.").as_stored(), ToolResult("c1", "Two.", "error").as_stored()]
    )
    made.begin_step(3, 5)
    one, two = events(made)
    assert [each["id"] for each in (one, two)] == [f"message-{UID}-3", f"message-{UID}-4"]
    assert (one["name"], two["status"], two["step_id"]) == ("a", "error", f"step-{UID}-1")
    made.show(chunk(content="Done."))
    made.end((), None, b"")
    assert events(made)[0]["id"] == f"message-{UID}-5"


def test_the_end_says_why_and_what_was_used() -> None:
    made = view()
    made.show(chunk(content="Hi.", usage={"prompt_tokens": 3, "completion_tokens": 2}))
    made.begin_step(3, 4)
    made.show(chunk(content="Bye.", usage={"prompt_tokens": 5, "completion_tokens": 1}))
    made.note_stop(StopReason.MAX_STEPS, {})
    made.end((), None, b"")
    data = made.take()
    assert data.endswith(b"data: [DONE]\n\n")
    assert b'"stop_reason":"max_steps"' in data
    assert b'"prompt_tokens":8,"completion_tokens":3' in data
    assert b'"step_count":2' in data


def test_usage_that_comes_with_each_chunk_counts_once() -> None:
    made = view()
    for step in range(2):
        if step:
            made.begin_step(3, 4)
        for n in range(1, 4):
            made.show(chunk(content="Hi.", usage={"prompt_tokens": 10, "completion_tokens": n}))
    made.end((), None, b"")
    used = events(made)[-1]
    assert (used["prompt_tokens"], used["completion_tokens"], used["context_tokens"]) == (20, 6, 13)


def test_calls_that_wait_are_shown_at_the_end() -> None:
    made = view()
    draft = MessageDraft()
    # As the turn knows it; of the provider it had no id.
    draft.add_calls([{"id": "c0", "function": {"name": "a", "arguments": "{}"}}], (), is_over=True)
    made.show(chunk(tool_calls=[{"index": 0, "function": {"name": "a", "arguments": "{}"}}]))
    made.note_stop(StopReason.REQUIRES_APPROVAL, {"c0": "client"}, draft.calls)
    made.end((), None, b"")
    assert kinds(events(made)) == ["approval_request_message", "stop_reason", "usage_statistics"]


@pytest.mark.parametrize("by_token", [False, True])
def test_an_error_is_the_last_event(by_token: bool) -> None:
    made = view(by_token=by_token)
    made.show(chunk(content="Half"))
    made.note_stop(StopReason.UPSTREAM_ERROR, {})
    made.fail(UpstreamError("It broke."))
    data = made.take()
    assert b"Half" in data
    last = data.decode().strip().split("\n\n")[-1]
    assert last.startswith("event: error\ndata: ")
    assert '"message":"It broke."' in last


def test_an_answer_of_a_person_is_shown_with_its_result() -> None:
    made = view()
    denied = ToolResult("c0", "No.", "error", approval="denied", reason="Not now.")
    made.show_results(3, [denied.as_stored()])
    answer, returned = events(made)
    assert (answer["approve"], answer["reason"]) == (False, "Not now.")
    assert (returned["id"], returned["status"]) == (answer["id"], "error")


def test_types_that_are_not_wanted_stay_out() -> None:
    made = view(by_token=True, showing=Showing(types=frozenset({"assistant_message"})))
    made.show(chunk(reasoning_content="Hm."))
    made.show(chunk(content="Hello."))
    made.show_calls(calls("a").calls)
    (text,) = events(made)
    assert (text["message_type"], text["otid"]) == ("assistant_message", f"message-{UID}-2:1")


def test_messages_are_numbered_alike_whichever_are_shown() -> None:
    """As lists number them, of which a reader may have a page next to the stream."""
    wanted = frozenset({"assistant_message", "tool_call_message"})
    all_types, some = view(), view(showing=Showing(types=wanted))
    for made in (all_types, some):
        made.show(chunk(reasoning_content="Hm."))
        made.show(chunk(content="Hello."))
        made.show_calls(calls("a").calls)
    otids = {each["message_type"]: each["otid"] for each in events(all_types)}
    assert {each["message_type"]: each["otid"] for each in events(some)} == {
        kind: otids[kind] for kind in wanted
    }


def test_an_upstreams_refusal_has_this_apis_form() -> None:
    assert view().render_error_body(400, b'{"error": {"message": "Too long."}}') == b'{"detail":"Too long."}'
    assert view().render_error_body(502, b"<html>") == b'{"detail":"The upstream answered 502."}'
