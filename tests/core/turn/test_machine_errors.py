"""The turn when something goes wrong: errors, odd forms of replies, a client that leaves."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.types import Event
from gateway.core.turn.client_view import MAX_HELD_BYTES
from gateway.core.turn.commands import (
    CallModel,
    CloseUpstream,
    End,
    Finish,
    RunTool,
    Save,
    SendBody,
    SendError,
    SendHead,
    SendWhole,
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
from gateway.core.turn.round_reader import MAX_CALLS, MAX_TAIL_EVENTS
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import UpstreamReplyBroken, UpstreamTimeout, UpstreamUnreachable
from tests.core.turn.playbook import (
    DONE,
    JSON,
    SSE,
    Playbook,
    call_piece,
    calls,
    chat_turn,
    chunk,
    comment,
    completion,
    event,
    feed_event,
    join_bodies,
    make_stream,
    play,
    read_stream,
    usage,
)
from tests.core.turn.tooled import ARGS, GATEWAY_TOOLS, ROLE, body, gateway_call, with_tools

LIMITED = (*JSON, ("retry-after", "7"))

TOO_MANY = b'{"error": {"message": "slow down", "type": "rate_limit", "param": null, "code": "r"}}'


def after_hidden_round(*before: Event, **fields: Any) -> Playbook:
    """Returns a turn that has called the model again after a hidden round. before: events before the call."""
    turn = chat_turn(with_tools(**fields))
    turn.feed(ReplyStarted(200, SSE))
    call = calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))
    sent = turn.feed(Received([*before, call, chunk({}, "tool_calls"), DONE]))
    (model,) = turn.feed(ToolFinished(ToolResult("call_a", "ok")))
    assert isinstance(model, CallModel)
    playbook = Playbook(turn)
    playbook.commands += sent
    return playbook


class TestEndless:
    """Upstreams that send events without content, and do not end."""

    @pytest.mark.parametrize("nothing", [comment("wait"), chunk({"role": "assistant", "content": ""})])
    def test_events_without_content_are_held_within_a_bound(self, nothing: Event) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, SSE))
        held, sent = 0, b""
        while not sent and held < 2 * MAX_HELD_BYTES:
            sent = join_bodies(feed_event(turn, Received([nothing] * 100)))
            held += 100 * len(nothing.raw)
        assert MAX_HELD_BYTES < len(sent) == held
        # What comes then is not held any more, and a hidden round is still hidden.
        assert join_bodies(feed_event(turn, Received([comment("more")]))) == comment("more").raw
        call = calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))
        due = feed_event(turn, Received([call, chunk({}, "tool_calls"), DONE]))
        assert b"memory_insert" not in join_bodies(due)
        assert any(isinstance(command, RunTool) for command in due)

    @pytest.mark.parametrize("more", [comment("wait"), chunk({}), usage(1, 1)])
    def test_a_stream_that_goes_on_after_its_reply_is_left(self, more: Event) -> None:
        turn = chat_turn(TurnTerms(holds_end=True))
        turn.feed(ReplyStarted(200, SSE))
        feed_event(turn, Received([ROLE, chunk({"content": "Hi"}), chunk({}, "stop")]))
        for _ in range(MAX_TAIL_EVENTS - 1):  # the finish_reason is the first
            assert feed_event(turn, Received([more])) == []
        (save,) = feed_event(turn, Received([more]))
        assert isinstance(save, Save)
        assert (save.outcome.state, save.outcome.text) == (End.FINISHED, "Hi")

    def test_usage_that_comes_again_and_again_ends_a_reply_that_has_no_other_end(self) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, SSE))
        feed_event(turn, Received([ROLE, chunk({"content": "Hi"})]))
        due = feed_event(turn, Received([usage(1, 1)] * (MAX_TAIL_EVENTS + 1)))
        assert b"goes on" in join_bodies(due)
        assert [command.outcome.state for command in due if isinstance(command, Save)] == [End.FAILED]

    def test_a_reply_of_ever_more_calls_is_broken_off(self) -> None:
        turn = chat_turn(TurnTerms())
        turn.feed(ReplyStarted(200, SSE))
        pieces = [calls(call_piece(n, "{}", id=f"call_{n}", name="f")) for n in range(MAX_CALLS)]
        assert b"call_499" in join_bodies(feed_event(turn, Received([ROLE, *pieces])))
        due = feed_event(turn, Received([calls(call_piece(MAX_CALLS, "{}", id="call_500", name="f"))]))
        assert b"more than 500 tool calls" in join_bodies(due)
        assert [command.outcome.state for command in due if isinstance(command, Save)] == [End.FAILED]

    def test_a_whole_reply_of_too_many_calls_is_broken_off(self) -> None:
        turn = chat_turn(TurnTerms())
        turn.feed(ReplyStarted(200, JSON))
        call = {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call] * (MAX_CALLS + 1)}
        whole = {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        due = feed_event(turn, ReceivedWhole(orjson.dumps(whole)))
        assert [command.outcome.state for command in due if isinstance(command, Save)] == [End.FAILED]


class TestErrors:
    @pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
    def test_an_error_of_the_upstreams_goes_through_as_it_is(self, status: int) -> None:
        playbook = (
            Playbook(chat_turn(with_tools()))
            >> ReplyStarted(status, LIMITED)
            >> ReceivedWhole(TOO_MANY)
            << SendWhole(status, LIMITED, TOO_MANY)
            << Save
            << Finish()
        )
        assert playbook
        assert (playbook.outcome.state, playbook.outcome.error_status) == (End.FAILED, status)
        assert playbook.outcome.full_reply == ()

    def test_an_error_after_a_hidden_round_is_still_a_status(self) -> None:
        playbook = after_hidden_round(ROLE) >> ReplyStarted(429, LIMITED) >> ReceivedWhole(TOO_MANY)
        assert playbook << SendWhole(429, LIMITED, TOO_MANY) << Save << Finish()
        assert playbook.outcome.state is End.FAILED

    def test_an_error_after_text_is_a_last_event(self) -> None:
        text = chunk({"content": "One moment. "})
        playbook = after_hidden_round(ROLE, text) >> ReplyStarted(429, LIMITED) >> ReceivedWhole(TOO_MANY)
        assert playbook << SendBody << Save << Finish()
        client = read_stream(playbook.client_body)
        assert (client.text, client.done, client.finish) == ("One moment. ", 0, [])
        assert [error["message"] for error in client.errors] == ["slow down"]

    def test_whole_replies_have_sent_nothing_whatever_was_said(self) -> None:
        turn = chat_turn(TurnTerms(gateway_tools=GATEWAY_TOOLS))
        turn.feed(ReplyStarted(200, JSON))
        turn.feed(ReceivedWhole(orjson.dumps(completion("One moment. ", (gateway_call(),)))))
        turn.feed(ToolFinished(ToolResult("call_a", "ok")))
        playbook = Playbook(turn) >> ReplyStarted(429, LIMITED) >> ReceivedWhole(TOO_MANY)
        assert playbook << SendWhole(429, LIMITED, TOO_MANY) << Save << Finish()

    def test_an_upstream_that_cannot_be_reached_is_refused(self) -> None:
        error = UpstreamUnreachable("no route")
        playbook = Playbook(chat_turn(with_tools())) >> ReplyFailed(error)
        assert playbook << SendError(error) << CloseUpstream(error) << Save << Finish()

    def test_a_stream_that_breaks_ends_with_an_error_event(self) -> None:
        text = chunk({"content": "Hel"})
        playbook = (
            Playbook(chat_turn(TurnTerms(holds_end=True)))
            >> ReplyStarted(200, SSE)
            >> Received([text])
            << SendHead(200, SSE)
            << body(text)
            >> ReplyFailed(UpstreamTimeout("nothing for 60 s"))
            << SendBody
            << CloseUpstream
            << Save
            << Finish()
        )
        assert playbook
        assert read_stream(playbook.client_body).errors[0]["message"] == "nothing for 60 s"
        assert playbook.outcome.state is End.FAILED
        assert playbook.outcome.text == "Hel"

    def test_a_stream_that_ends_in_the_middle_is_an_error_with_a_name(self) -> None:
        playbook = Playbook(chat_turn(TurnTerms())) >> ReplyStarted(200, SSE)
        playbook = playbook >> Received([chunk({"content": "Hel"})]) << SendHead << SendBody >> ReplyEnded()
        assert playbook << SendBody << CloseUpstream << Save << Finish()
        assert read_stream(playbook.client_body).errors[0]["code"] == UpstreamReplyBroken.code

    def test_a_break_after_the_finish_reason_loses_nothing(self) -> None:
        end = chunk({"content": "x"}, "stop")
        playbook = Playbook(chat_turn(TurnTerms(holds_end=True))) >> ReplyStarted(200, SSE)
        playbook = playbook >> Received([end]) >> ReplyFailed(UpstreamReplyBroken("reset")) << Save
        assert playbook >> Saved() << SendHead << body(end) << Finish()
        assert playbook.outcome.state is End.FINISHED

    @pytest.mark.parametrize(
        "delta",
        [
            {"content": "B"},
            {"reasoning": "B"},
            {"refusal": "B"},
            {"function_call": {"name": "f", "arguments": "{"}},
            {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]},
            {"audio": {"transcript": "B"}},
            {"reasoning_details": [{"type": "reasoning.text", "text": "B"}]},
        ],
        ids=lambda delta: next(iter(delta)),
    )
    def test_a_break_after_more_than_the_finish_reason_is_an_error(self, delta: dict[str, Any]) -> None:
        early = chunk({"content": "A"}, "stop")  # some proxies give a finish_reason with the first chunk
        events = [ReplyStarted(200, SSE), Received([early]), Received([chunk(delta)])]
        turn = chat_turn(TurnTerms(holds_end=True))
        commands = [
            command
            for each in (*events, ReplyFailed(UpstreamReplyBroken("reset")))
            for command in feed_event(turn, each)
        ]
        (save,) = [command for command in commands if isinstance(command, Save)]
        assert save.outcome.state is End.FAILED

    @pytest.mark.parametrize(
        ("sent", "message"),
        [
            (event({"error": {"message": "overloaded", "x": 1}}), "overloaded"),
            (event({"error": "overloaded"}), "overloaded"),
            (event({"object": "error", "message": "too long", "code": 400}), "too long"),
            (event({"message": "gone"}, name="error"), "gone"),
            (event({"error": {"code": 5}}), "The upstream reported an error"),
        ],
    )
    def test_an_error_event_ends_the_stream_in_openais_shape(self, sent: Event, message: str) -> None:
        playbook = Playbook(chat_turn(with_tools())) >> ReplyStarted(200, SSE) >> Received([ROLE, sent, DONE])
        assert playbook << SendHead << SendBody << CloseUpstream << Save << Finish()
        client = read_stream(playbook.client_body)
        assert [error["message"] for error in client.errors] == [message]
        assert client.done == 0

    @pytest.mark.parametrize("is_break", [False, True], ids=["event", "break"])
    def test_text_that_came_with_the_finish_reason_comes_before_an_error(self, is_break: bool) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, SSE))
        early = chunk({"content": "Hi"}, "stop")  # some proxies give a finish_reason with each chunk
        received = Received([ROLE, early, chunk({"content": " there"}, "stop")])
        sent = join_bodies(feed_event(turn, received))
        error = event({"error": {"message": "overloaded"}})
        sent += join_bodies(
            turn.feed(ReplyFailed(UpstreamReplyBroken("overloaded")) if is_break else Received([error]))
        )
        client = read_stream(sent)
        assert client.text == "Hi there"
        assert ["overloaded" in each["message"] for each in client.errors] == [True]

    def test_an_error_in_the_shape_of_the_real_api_arrives_as_it_left(self) -> None:
        sent = event({"error": {"message": "overloaded", "x": 1}})
        playbook = Playbook(chat_turn(TurnTerms())) >> ReplyStarted(200, SSE) >> Received([sent])
        assert playbook << SendHead << body(sent) << CloseUpstream << Save << Finish()

    @pytest.mark.parametrize(
        "raw", [b"", b"<html>", b"[]", b'{"error":{"message":"x"}}', b'{"choices":null}']
    )
    def test_a_body_that_is_no_completion_goes_through(self, raw: bytes) -> None:
        playbook = Playbook(chat_turn(with_tools())) >> ReplyStarted(200, JSON) >> ReceivedWhole(raw)
        assert playbook << SendWhole(200, JSON, raw) << Save << Finish()
        assert (playbook.outcome.state, playbook.outcome.error_status) == (End.FAILED, 502)

    def test_chunks_of_any_shape_pass_without_harm(self) -> None:
        odd: list[Any] = [
            {"choices": None},
            {"choices": [None, 3]},
            {"choices": [{"delta": None}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": 7, "content": ["a"]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [None, {"function": 3}]}}]},
            {"choices": {"a": 1}, "usage": 4},
            {"error": None},
            [1],
            7,
        ]
        for terms in (TurnTerms(), with_tools(adds_usage=True)):
            turn = chat_turn(terms)
            turn.feed(ReplyStarted(200, SSE))
            turn.feed(Received([event(data) for data in odd] + [event(b"{broken"), Event(b"data\n\n", b"")]))
            commands = turn.feed(Received([chunk({"content": "x"}, "stop"), DONE]))
            assert any(isinstance(command, Save) for command in commands)


class TestForms:
    """A reply is a stream or a body as the upstream sends it, whichever the request asked for."""

    def test_a_body_in_answer_to_a_stream_request(self) -> None:
        rounds = [completion("Hm. ", (gateway_call(),)), completion("ok")]
        played = play(chat_turn(with_tools()), rounds, stream=False)
        assert played.body["choices"][0]["message"]["content"] == "Hm. ok"
        assert played.heads == [SendWhole(200, JSON, played.client_body)]

    def test_a_stream_in_answer_to_a_whole_request(self) -> None:
        terms = TurnTerms(gateway_tools=GATEWAY_TOOLS, wants_usage=True)
        played = play(chat_turn(terms), [completion(None, (gateway_call(),)), completion("ok")], stream=True)
        assert played.client.text == "ok"
        assert played.heads == [SendHead(200, SSE)]

    @pytest.mark.parametrize("wants_usage", [True, False])
    def test_a_body_after_a_hidden_round_of_a_stream_becomes_chunks(self, wants_usage: bool) -> None:
        whole = orjson.dumps(completion("Done.", id="other"))
        playbook = after_hidden_round(ROLE, chunk({"content": "Hm. "}), wants_usage=wants_usage)
        playbook = playbook >> ReplyStarted(200, JSON) >> ReceivedWhole(whole) << Save >> Saved()
        assert playbook << SendBody << Finish()
        client = read_stream(playbook.client_body)
        assert (client.text, client.ids, client.finish) == ("Hm. Done.", {"chatcmpl-1"}, ["stop"])
        assert (client.roles, client.done, len(client.usages)) == (["assistant"], 1, int(wants_usage))

    def test_a_body_that_becomes_chunks_is_announced_as_events(self) -> None:
        whole = orjson.dumps(completion("Done.", id="other"))
        playbook = after_hidden_round(ROLE) >> ReplyStarted(200, LIMITED) >> ReceivedWhole(whole) << Save
        events = (LIMITED[1], ("content-type", "text/event-stream; charset=utf-8"))
        assert playbook >> Saved() << SendHead(200, events) << SendBody << Finish()
        assert read_stream(playbook.client_body).text == "Done."

    @pytest.mark.parametrize("content", ["Hm. ", [{"type": "text", "text": "Hm. "}]])
    def test_a_stream_after_a_hidden_round_in_one_body_says_what_that_had_said(self, content: Any) -> None:
        turn = chat_turn(with_tools())
        turn.feed(ReplyStarted(200, JSON))
        body = completion("", (gateway_call(),))
        body["choices"][0]["message"]["content"] = content
        turn.feed(ReceivedWhole(orjson.dumps(body)))
        turn.feed(ToolFinished(ToolResult("call_a", "ok")))
        playbook = (
            Playbook(turn) >> ReplyStarted(200, SSE) >> Received(make_stream(completion("Done.", id="x")))
        )
        playbook = playbook << SendHead << SendBody << Save >> Saved() << SendBody << Finish()
        assert playbook
        client = read_stream(playbook.client_body)
        assert (client.text, client.ids, client.roles) == ("Hm. Done.", {"chatcmpl-1"}, ["assistant"])


class TestClientGone:
    def test_in_any_state_the_upstream_is_closed_and_the_text_so_far_is_stored(self) -> None:
        """Gone after the first k events of a turn with a hidden round: one Save, one Finish, nothing after it."""
        happened: list[Any] = [
            ReplyStarted(200, SSE),
            Received([ROLE, chunk({"content": "Hm. "})]),
            Received([calls(call_piece(0, ARGS, id="call_a", name="memory_insert"))]),
            Received([chunk({}, "tool_calls"), DONE]),
            ReplyEnded(),
            ToolFinished(ToolResult("call_a", "ok")),
            ReplyStarted(200, SSE),
            Received([chunk({"content": "Do"})]),
            Received([chunk({"content": "ne."}, "stop")]),
        ]
        texts = ["", "", *["Hm. "] * 6, "Hm. Do", "Hm. Done."]
        for k, text in enumerate(texts):
            playbook = Playbook(chat_turn(with_tools()))
            for each in happened[:k]:
                playbook.commands += playbook.turn.feed(each)
            assert playbook >> ClientLeft() << CloseUpstream() << Save << Finish()
            assert playbook.outcome.state is End.CANCELLED
            assert playbook.outcome.text == text
            # The call, once it is made, with its result or that it was interrupted.
            assert len(playbook.outcome.full_reply) == (2 if k > 3 else 0)
            for late in [
                *happened[k:],
                Saved(),
                ToolFinished(ToolResult("call_a", "ok")),
                ClientLeft(),
                ReplyEnded(),
            ]:
                assert playbook.turn.feed(late) == []

    def test_while_the_end_is_being_saved_the_turn_stays_finished(self) -> None:
        playbook = Playbook(chat_turn(TurnTerms(holds_end=True))) >> ReplyStarted(200, SSE)
        playbook = playbook >> Received([chunk({"content": "x"}, "stop"), DONE]) << Save
        assert playbook >> ClientLeft() << CloseUpstream() << Finish() >> Saved()
        assert playbook.outcome.state is End.FINISHED
