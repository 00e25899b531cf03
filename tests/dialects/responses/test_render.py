"""The view of the Responses API, fed as the turn machine feeds it; the SDK's own types read what it shows."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.core.conversation.private import with_private
from gateway.core.turn.chunks import make_delta
from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.commands import CallModel, End, RunTool, Save, TurnOutcome
from gateway.core.turn.draft import MessageDraft
from gateway.core.turn.events import Received, ReplyStarted, ToolFinished
from gateway.core.turn.guide import FreeGuide
from gateway.core.turn.machine import Turn
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from gateway.core.turn_name import TurnName
from gateway.dialects.responses.call_form import UpstreamTools
from gateway.dialects.responses.input import read_items
from gateway.dialects.responses.parse import parse
from gateway.dialects.responses.render import (
    ResponsesView,
    ResponsesViewFactory,
    rebuild_response,
    render_usage,
)
from gateway.dialects.responses.request_fields import ECHO_DEFAULTS
from gateway.errors import UpstreamReplyBroken
from tests.core.turn.playbook import SSE, Playbook, completion, make_stream
from tests.core.turn.test_steps import skip

Json = dict[str, Any]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
ECHO = {**ECHO_DEFAULTS, "model": "m"}
CITED = {"start_index": 0, "end_index": 2, "url": "https://x", "title": "X"}
MESSAGES: dict[str, Json] = {
    "text": {"content": "Hello."},
    "nothing": {"content": ""},
    "refusal": {"content": None, "refusal": "No."},
    "cited": {"content": "So.", "annotations": [{"type": "url_citation", "url_citation": CITED}]},
    "thoughts": {"reasoning_content": "Hm.", "content": "So."},
    "thoughts of Claude's": {
        "reasoning_content": "Hm.",
        "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
        "content": "So.",
    },
    "thoughts that are hidden": {"thinking_blocks": [{"type": "redacted_thinking", "data": "x"}], "content": "So."},
    "calls": {
        "content": "So.",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"a":1}'}},
        ],
    },
    "call of thoughts": {
        "reasoning_content": "Hm.",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
    },
    "custom call": {
        "content": None,
        "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "py", "input": "1+1"}}],
    },
}  # fmt: skip


def view(*, waits: bool = False, **asked: Any) -> ResponsesView:
    request = parse(orjson.dumps({"model": "m", "input": "Hi", **asked}))
    return ResponsesViewFactory(request.echo, lambda: None, forms=request.forms)(
        TurnTerms(gateway_tools=frozenset({"f"}) if waits else ())
    )


def chunk(delta: Json | None = None, finish: str | None = None, **more: Any) -> Json:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 9,
        "model": "m-1",
        "choices": choices,
        **more,
    }


def event(delta: Json | None = None, finish: str | None = None, **more: Any) -> ReplyEvent:
    return ReplyEvent(b"", chunk=chunk(delta, finish, **more))


def read(data: bytes) -> list[Any]:
    """Returns events as OpenAI's SDK reads them."""
    found = []
    for each in data.split(b"\n\n"):
        if each and not each.startswith(b":"):
            name, _, json = each.partition(b"\ndata: ")
            found.append(EVENT.validate_python(orjson.loads(json)))
            assert name == b"event: " + found[-1].type.encode()
    return found


def stream(*events: ReplyEvent, finish: str | None = None, **asked: Any) -> tuple[list[Any], Response]:
    made = view(**asked)
    made.begin(chunk({"role": "assistant"}))
    for each in events:
        made.show(each)
    made.end([event({}, "stop")], finish, b"data: [DONE]\n\n")
    told = read(made.take())
    return told, told[-1].response


def whole(message: Json, finish: str = "stop", **asked: Any) -> Response:
    body = {**chunk(), "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
    outcome = TurnOutcome(End.FINISHED, shown_reply=message, finish_reason=finish, usage=USAGE)
    return Response.model_validate_json(whole_body(view(**asked), body, outcome))


def whole_body(made: ResponsesView, reply: Json, outcome: TurnOutcome) -> bytes:
    body = orjson.dumps(reply)
    made.add_whole_reply(body, reply)
    made.begin(reply)
    return made.render_body(body, outcome, is_unchanged=True)


def without_ids(response: Response) -> list[Json]:
    return [item.model_dump(exclude={"id"}, exclude_none=True) for item in response.output]


def kinds(events: list[Any]) -> list[str]:
    return [each.type.removeprefix("response.") for each in events]


@pytest.mark.parametrize("message", MESSAGES.values(), ids=list(MESSAGES))
def test_a_whole_reply_and_a_stream_have_the_same_items(message: Json) -> None:
    one = stream(event(make_delta({"message": {"role": "assistant", **message}})))[1]
    # Its pieces one by one: first a name, then the arguments.
    pieces: list[Json] = [{key: value} for key, value in message.items() if key != "tool_calls"]
    for n, call in enumerate(message.get("tool_calls", ())):
        kind = call["type"]
        name, text = call[kind].items()
        pieces.append({"tool_calls": [{"index": n, "id": call["id"], "type": kind, kind: dict([name])}]})
        pieces += [{"tool_calls": [{"index": n, kind: {text[0]: letter}}]} for letter in text[1]]
    many = stream(*map(event, pieces))[1]
    assert without_ids(whole(message)) == without_ids(one) == without_ids(many)


@pytest.mark.parametrize("name", [name for name in MESSAGES if name not in ("nothing", "cited")])
def test_the_items_of_a_reply_come_back_unchanged(name: str) -> None:
    items = [item.model_dump(exclude_none=True) for item in whole(MESSAGES[name]).output]
    assert read_items(items, upstream_tools=UpstreamTools(takes_custom_tools=True)).messages == [
        {"role": "assistant", **MESSAGES[name]}
    ]


def test_the_events_of_a_text() -> None:
    told, response = stream(event({"content": "He"}), event({"content": "llo."}), event(usage=USAGE))
    assert kinds(told) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert response.output_text == "Hello."
    assert (response.model, response.created_at, response.status) == ("m-1", 9, "completed")
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert response.usage.total_tokens == 12


def test_thoughts_that_an_upstream_counts_apart_are_output() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 42}
    shown = render_usage({**usage, "completion_tokens_details": {"reasoning_tokens": 26}})
    assert (shown["input_tokens"], shown["output_tokens"], shown["total_tokens"]) == (9, 33, 42)


def test_the_events_of_a_thought_and_a_call() -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
    told, response = stream(
        event({"reasoning_content": "Hm."}),
        event({"tool_calls": [call]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
    )
    assert kinds(told)[2:-1] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert [item.type for item in response.output] == ["reasoning", "function_call"]


def test_a_call_without_an_id_gets_one() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    _, response = stream(event({"tool_calls": [call]}))
    [item] = response.output
    assert item.type == "function_call"
    assert item.call_id


def test_items_begin_in_their_order() -> None:
    """Clients count them as they begin. A call without arguments is complete only when something follows."""
    now = {"index": 0, "id": "1", "function": {"name": "now"}}
    told, response = stream(
        event({"tool_calls": [now]}),
        event({"tool_calls": [{"index": 1, "id": "2", "function": {"name": "f", "arguments": "{}"}}]}),
        event({"content": "So."}),
    )
    begun = [each for each in told if each.type == "response.output_item.added"]
    assert [each.output_index for each in begun] == [0, 1, 2]
    assert [each.item.type for each in begun] == [item.type for item in response.output]
    assert begun[0].item.name == "now"


def test_a_complete_call_ends_when_the_next_item_begins() -> None:
    """A client may run it while the next one comes. A call that is not complete grows on, and ends with the reply."""
    first, second, third = (
        {"index": index, "id": str(index), "function": {"name": "f", "arguments": arguments}}
        for index, arguments in enumerate(["{}", '{"a":', "{}"])
    )
    rest = {"index": 1, "function": {"arguments": "1}"}}
    told, response = stream(*(event({"tool_calls": [call]}) for call in (first, second, third, rest)))
    edges = [
        (each.type.rpartition(".")[2], each.output_index)
        for each in told
        if each.type in ("response.output_item.added", "response.output_item.done")
    ]
    assert edges == [("added", 0), ("done", 0), ("added", 1), ("added", 2), ("done", 1), ("done", 2)]
    assert [item.model_dump()["arguments"] for item in response.output] == ["{}", '{"a":1}', "{}"]
    assert [each.item for each in told if each.type == "response.output_item.done"] == response.output


def test_a_call_without_its_id_does_not_end_when_the_next_item_begins() -> None:
    first, second = ({"index": index, "function": {"name": "f", "arguments": "{}"}} for index in (0, 1))
    late = {"index": 0, "id": "call_late"}
    told, response = stream(*(event({"tool_calls": [call]}) for call in (first, second, late)))
    assert response.output[0].model_dump()["call_id"] == "call_late"
    assert [each.item for each in told if each.type == "response.output_item.done"] == response.output


@pytest.mark.parametrize("index", [0, None, [0]])
def test_calls_under_one_index_are_calls_of_their_own(index: Any) -> None:
    """As some upstreams send them; so they are read where they are stored."""
    calls = [
        {"index": index, "id": f"call_{city}", "function": {"name": "f", "arguments": city}}
        for city in ("Rome", "Oslo")
    ]
    rest = {"index": index, "function": {"arguments": "!"}}
    for deltas in ([{"tool_calls": calls}], [{"tool_calls": [each]} for each in calls]):
        _, response = stream(*map(event, deltas), event({"tool_calls": [rest]}))
        assert [item.model_dump()["arguments"] for item in response.output] == ["Rome", "Oslo!"]
        assert [item.model_dump()["call_id"] for item in response.output] == ["call_Rome", "call_Oslo"]


@pytest.mark.parametrize("message", MESSAGES.values(), ids=list(MESSAGES))
def test_the_usage_of_a_reply_is_stored_as_it_is_shown(message: Json) -> None:
    body = {**chunk(), "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    outcome = TurnOutcome(End.FINISHED, shown_reply=message, finish_reason="stop")
    echo = parse(orjson.dumps({"model": "m", "input": "Hi"})).echo
    made = ResponsesViewFactory(
        echo, lambda: TurnName("0" * 32, "0" * 24), lambda text: {"completion_tokens": len(text)}
    )(TurnTerms())
    stored = made.prepare_stored_fields(outcome, ())["response"]["usage"]
    assert orjson.loads(whole_body(made, body, outcome))["usage"] == stored


def test_odd_parts_of_an_upstreams_reply_are_rendered() -> None:
    outcome = TurnOutcome(End.FINISHED, shown_reply={"content": ""}, usage=None)
    empty = {**chunk(), "choices": [], "usage": []}
    assert Response.model_validate_json(whole_body(view(), empty, outcome)).status == "completed"
    odd = {"index": 0, "id": "call_1", "type": "id"}
    _, response = stream(event({"tool_calls": [odd]}), event({}, ["stop"], usage=[]))  # type: ignore[arg-type]
    assert [item.type for item in response.output] == ["custom_tool_call"]


def test_a_custom_call_without_its_tool_is_counted_as_nothing() -> None:
    call = {"id": "1", "type": "custom", "custom": "py"}
    counted: list[str] = []
    made = ResponsesViewFactory(ECHO, lambda: TurnName("t", ""), lambda text: counted.append(text))(
        TurnTerms()
    )
    made.prepare_stored_fields(
        TurnOutcome(End.FINISHED, shown_reply={"content": "So.", "tool_calls": [call]}), ()
    )
    assert counted == ["So."]


@pytest.mark.parametrize("model", [5, {"name": "m"}, None])
def test_a_model_that_is_no_text_is_called_as_the_request_calls_it(model: Any) -> None:
    made = ResponsesViewFactory(ECHO, lambda: TurnName("t", ""))(TurnTerms())
    made.begin(chunk({"role": "assistant"}, model=model))
    reply: Json = {"content": "So."}
    outcome = TurnOutcome(End.FINISHED, shown_reply=reply)
    found = rebuild_response("t", with_private(reply, **made.prepare_stored_fields(outcome, ())))
    assert found is not None
    shown = orjson.loads(made.render_body(b"", outcome, is_unchanged=False))
    assert found["model"] == shown["model"] == "m"


def test_probabilities_stand_with_their_text() -> None:
    token = {"token": "He", "bytes": [72, 101], "logprob": -0.5, "top_logprobs": []}
    each = event({"content": "He"})
    each.choices[0]["logprobs"] = {"content": [token], "refusal": None}
    told, response = stream(each, top_logprobs=1)
    assert told[4].logprobs[0].token == "He"
    [item] = response.output
    assert item.type == "message"
    assert item.content[0].model_dump()["logprobs"] == [token]


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_a_cut_reply_is_incomplete(finish: str, reason: str) -> None:
    for response in (stream(event({"content": "So"}), finish=finish)[1], whole({"content": "So"}, finish)):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == reason
        assert [item.model_dump()["status"] for item in response.output] == ["incomplete"]


def test_nothing_leaves_before_there_is_something_to_say() -> None:
    made = view(waits=True)
    made.begin(chunk({"role": "assistant"}))
    made.show(event({"role": "assistant", "content": ""}))
    assert made.take() == b""
    made.hide_round([event({}, "tool_calls"), event(usage=USAGE)])
    assert made.take() == b""
    made.show(event({"content": "So."}))
    assert kinds(read(made.take()))[-1] == "output_text.delta"
    made.end([event({}, "stop")], None, b"")
    last = read(made.take())[-1]
    assert (last.type, last.response.usage) == ("response.completed", None)


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_error_is_the_end(has_begun: bool) -> None:
    for tell in (
        lambda made: made.fail(UpstreamReplyBroken("It broke.")),
        lambda made: made.show_upstream_error(
            {"message": "It broke.", "type": "server_error", "code": None}, None
        ),
    ):
        made = view(waits=True)
        made.begin(chunk({"role": "assistant"}))
        if has_begun:
            made.show(event({"content": "So"}))
        tell(made)
        *_, error, last = read(made.take())
        assert (error.type, error.message) == ("error", "It broke.")
        said = {"code": error.code, "message": "It broke.", "param": None}
        assert error.error == {"type": error.error["type"], **said}
        assert (last.type, last.response.status) == ("response.failed", "failed")
        assert last.response.error.message == "It broke."


def test_a_comment_says_that_the_end_was_not_durable() -> None:
    made = view()
    made.begin(chunk({"role": "assistant"}))
    made.end([event({"content": "So."}, "stop")], None, b"")
    made.note_not_durable()
    assert made.take().endswith(b"\n\n: mnemogate not durable\n")


def test_the_response_says_what_was_asked() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {}, "strict": True}]
    asked = {
        "instructions": "Be brief.",
        "tools": tools,
        "temperature": 0.5,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low"},
    }
    response = whole({"content": "So."}, **asked)
    told = response.model_dump(exclude_none=True)
    assert {key: told[key] for key in asked} == asked
    assert (told["status"], told["tool_choice"], told["parallel_tool_calls"]) == ("completed", "auto", True)


def test_a_name_that_comes_in_pieces_is_whole_where_its_call_begins() -> None:
    pieces = [{"name": "get_", "arguments": ""}, {"name": "weather", "arguments": ""}, {"arguments": "{}"}]
    told, response = stream(*(event({"tool_calls": [{"index": 0, "function": each}]}) for each in pieces))
    added = next(each for each in told if each.type == "response.output_item.added")
    assert (added.item.name, response.output[0].name) == ("get_weather", "get_weather")  # type: ignore[union-attr]


def test_a_view_is_freed_with_its_turn() -> None:
    """It holds what was asked, which may be large, and a turn makes no garbage to be looked for."""
    gc.disable()
    try:
        made = view()
        made.begin(chunk({"role": "assistant"}))
        made.show(event({"reasoning_content": "Hm."}))
        made.show(event({"content": "Hello."}))
        held = [weakref.ref(made), weakref.ref(made._response)]
        del made
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()


def test_the_attempts_at_a_response_give_its_calls_the_same_ids() -> None:
    """The results of gateway tools are stored by these ids, so that no attempt calls a tool again."""
    drafts = [
        MessageDraft(ResponsesViewFactory(ECHO, lambda: None, tag="ab")(TurnTerms()).call_id_prefix)
        for _ in range(2)
    ]
    ids = [draft.add_call_piece({"index": 0, "function": {"name": "weather"}}).id for draft in drafts]
    assert ids == ["call_ab_1", "call_ab_1"]


def test_calls_without_ids_are_stored_as_they_went_upstream() -> None:
    terms = TurnTerms(gateway_tools=frozenset({"search"}))
    turn = Turn(terms, ResponsesViewFactory(ECHO, lambda: None)(terms), FreeGuide(10))
    playbook = Playbook(turn) >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(completion(None, (("", "search", "{}"),))))) << RunTool
    (run,) = (command for command in playbook.commands if isinstance(command, RunTool))
    playbook >> ToolFinished(ToolResult(run.call_id, "Found.")) << CallModel >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(completion(None, (("", "weather", "{}"),))))) << Save
    (again,) = (command for command in playbook.commands if isinstance(command, CallModel))
    assert playbook.outcome.full_reply[:2] == again.messages
