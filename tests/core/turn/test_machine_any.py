"""Properties of the turn: however a reply is cut, and whatever an upstream sends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.types import Event
from gateway.core.turn.commands import (
    Command,
    Finish,
    RunTool,
    Save,
    SendBody,
    SendError,
    SendHead,
    SendWhole,
    TurnOutcome,
)
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    ToolFinished,
)
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import UpstreamReplyBroken
from tests.core.turn.playbook import (
    DONE,
    JSON,
    SSE,
    call_piece,
    calls,
    chat_turn,
    chunk,
    completion,
    event,
    feed_event,
    play,
    usage,
)
from tests.core.turn.tooled import (
    ARGS,
    CLIENT_CALL,
    GATEWAY_TOOLS,
    ROLE,
    client_message,
    dump_call,
    gateway_call,
    with_tools,
)


@st.composite
def a_turn(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The scripted rounds of one turn: hidden ones, and a last one of any kind."""
    text = st.sampled_from(["", "a", "Hello, wörld. ", "x" * 30])
    mine = st.builds(
        gateway_call, st.just(""), st.sampled_from([ARGS, "{}", "{bad"]), st.sampled_from(list(GATEWAY_TOOLS))
    )
    other = st.sampled_from([CLIENT_CALL, ("", "memory_inserts", "{}"), ("", "mem", "{}"), ("", "m", "")])
    made = [
        (draw(text), tuple(draw(st.lists(mine, min_size=1, max_size=2))))
        for _ in range(draw(st.integers(0, 2)))
    ]
    last = tuple(draw(st.lists(st.one_of(mine, other), max_size=3)))
    if last and all(call[1] in GATEWAY_TOOLS for call in last):
        last = (*last, CLIENT_CALL)
    made.append((draw(text), last))
    rounds = []
    for n, (said, some) in enumerate(made):
        named = tuple((f"call_{n}_{i}", name, arguments) for i, (_, name, arguments) in enumerate(some))
        tokens = draw(st.sampled_from([None, (9, 4)]))
        fields = {"reasoning_content": "hmm"} if draw(st.booleans()) else {}
        rounds.append(completion(said or None, named, id=f"id-{n}", tokens=tokens, **fields))
    return rounds


def cut_at(points: set[int]) -> Any:
    def cut(text: str) -> list[str]:
        edges = sorted({0, len(text), *(point for point in points if point < len(text))})
        return [text[a:b] for a, b in pairwise(edges)] or [""]

    return cut


def batches_of(sizes: list[int]) -> Any:
    def batch(events: list[Event]) -> list[list[Event]]:
        batches, at = [], 0
        for size in [*sizes, len(events)]:
            batches.append(events[at : at + size])
            at += size
        return batches

    return batch


@given(a_turn(), st.sets(st.integers(1, 12)), st.lists(st.integers(0, 3), max_size=20), st.booleans())
@settings(max_examples=75)
def test_however_a_reply_is_cut_client_and_memory_get_the_same(
    rounds: list[dict[str, Any]], points: set[int], sizes: list[int], holds_end: bool
) -> None:
    terms = with_tools(holds_end=holds_end)
    whole = play(chat_turn(terms), rounds, stream=False)
    smooth = play(chat_turn(terms), rounds, stream=True)
    cut = play(chat_turn(terms), rounds, stream=True, split=cut_at(points), group=batches_of(sizes))
    one_by_one = play(
        chat_turn(terms),
        rounds,
        stream=True,
        split=cut_at(points),
        group=lambda events: [[e] for e in events],
    )
    assert cut.client_body == one_by_one.client_body
    assert client_message(cut, True) == client_message(smooth, True) == client_message(whole, False)
    assert cut.client.reasoning == smooth.client.reasoning
    for played in (cut, smooth):
        assert kept(played.outcome) == kept(whole.outcome)
        assert played.client.ids == {"id-0"}
        assert played.client.roles == ["assistant"]
        assert played.client.done == len(played.client.finish) == 1
        assert [dump_call(call) for call in played.model_calls] == [
            dump_call(call) for call in whole.model_calls
        ]


def kept(outcome: TurnOutcome) -> Any:
    return (
        outcome.state,
        outcome.full_reply,
        outcome.shown_reply,
        outcome.finish_reason,
        outcome.round_count,
        outcome.has_hidden_results,
    )


@given(st.lists(st.integers(0, 12), max_size=14), st.booleans())
@settings(max_examples=300)
def test_whatever_happens_a_turn_ends_at_most_once(order: list[int], holds_end: bool) -> None:
    """Events in any order: one Save and one Finish at most, one head, and nothing after the end."""
    happened: list[Any] = [
        ReplyStarted(200, SSE),
        ReplyStarted(429, JSON),
        Received([ROLE, chunk({"content": "Hi"})]),
        Received([calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))]),
        Received([chunk({}, "tool_calls"), usage(5, 1), DONE]),
        Received([calls(call_piece(1, "{}", id="call_t", name="get_weather")), chunk({}, "stop")]),
        ReceivedWhole(orjson.dumps(completion("Hm", (gateway_call(),)))),
        ReplyEnded(),
        ReplyFailed(UpstreamReplyBroken("x")),
        ToolFinished(ToolResult("call_a", "ok")),
        Saved(),
        ClientLeft(),
        Received([chunk({"content": " you"})]),
    ]
    turn = chat_turn(with_tools(holds_end=holds_end), max_rounds=1)
    seen: list[Command] = []
    for n in order:
        seen += feed_event(turn, happened[n])
    kinds = [type(command) for command in seen]
    assert kinds.count(Save) <= 1
    assert kinds.count(Finish) <= 1
    assert kinds.count(SendHead) + kinds.count(SendWhole) + kinds.count(SendError) <= 1
    if Finish in kinds:
        assert kinds[-1] is Finish
        assert Save in kinds
    if SendBody in kinds:
        assert kinds.index(SendHead) < kinds.index(SendBody)


FIELDS = ["choices", "usage", "error", "index", "id", "name", "message", "completion_tokens", "x"]

anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "memory_insert", "stop"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(FIELDS), inner)),
    max_leaves=8,
)


def a_field(*likely: Any) -> st.SearchStrategy[Any]:
    return st.one_of(*likely, anything)


an_object = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3)

a_piece = st.fixed_dictionaries(
    {},
    optional={
        "index": a_field(st.just(0)),
        "id": a_field(st.just("a")),
        "function": a_field(
            st.fixed_dictionaries({}, optional={"name": a_field(), "arguments": a_field(st.just("{}"))})
        ),
    },
)

a_delta = st.fixed_dictionaries(
    {},
    optional={
        "role": a_field(),
        "content": a_field(st.just("x")),
        "tool_calls": a_field(st.lists(a_field(a_piece))),
    },
)

a_choice = st.fixed_dictionaries(
    {},
    optional={
        "index": a_field(),
        "finish_reason": a_field(),
        "delta": a_field(a_delta),
        "message": a_field(a_delta),
    },
)

a_chunk = st.one_of(
    anything,
    st.fixed_dictionaries(
        {},
        optional={"choices": a_field(st.lists(a_field(a_choice), max_size=2)), "usage": a_field(an_object)},
    ),
)


@given(st.lists(st.lists(a_chunk, max_size=4), min_size=1, max_size=2), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_no_json_of_an_upstream_breaks_the_machine(
    replies: list[list[Any]], stream: bool, has_tools: bool
) -> None:
    terms = with_tools(adds_usage=True, wants_usage=stream) if has_tools else TurnTerms(holds_end=True)
    turn = chat_turn(terms)
    seen: list[Command] = []
    for reply in replies:
        seen += turn.feed(ReplyStarted(200, SSE if stream else JSON))
        if stream:
            seen += turn.feed(Received([*(event(data) for data in reply), DONE]))
        else:
            seen += turn.feed(ReceivedWhole(orjson.dumps(reply[0] if reply else None)))
        for command in [*seen]:
            if isinstance(command, RunTool):
                seen += turn.feed(ToolFinished(ToolResult(command.call_id, "ok")))
        seen += turn.feed(Saved())
    seen += turn.feed(ClientLeft())
    assert sum(isinstance(command, Save) for command in seen) == 1
    for command in seen:
        if isinstance(command, Save):
            orjson.dumps([command.outcome.full_reply, command.outcome.shown_reply, command.outcome.usage])
