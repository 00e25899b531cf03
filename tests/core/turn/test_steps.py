"""A turn whose steps are saved one by one: what is committed when, and what follows on a commit."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.types import EVENT_STREAM_HEADER
from gateway.core.turn.calls import INTERRUPTED_RESULT, ResumedCalls
from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.commands import (
    KEEP_ALIVE,
    CallModel,
    CloseUpstream,
    Command,
    End,
    Finish,
    RunTool,
    Save,
    SaveStep,
    SendBody,
    SendError,
    SendHead,
    SendWhole,
)
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyFailed,
    ReplyStarted,
    Saved,
    Silence,
    StepSaved,
    Stopped,
    ToolFinished,
)
from gateway.core.turn.guide import (
    Allowed,
    Forbidden,
    FreeGuide,
    NeedsApproval,
    Offer,
    ProposedCall,
    Stop,
    Undecided,
    Verdict,
)
from gateway.core.turn.machine import Turn
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import UpstreamReplyBroken
from tests.core.turn.playbook import JSON, SSE, Playbook, chat_turn, chunk, completion, make_stream
from tests.doubles.lines_view import LinesView

ARGS = '{"label":"human","new_string":"tea"}'
CALL = ("a", "memory_insert", ARGS)


class Script(FreeGuide):
    """A guide whose decisions a test sets."""

    def __init__(self, verdicts: dict[str, list[Verdict]] | None = None, *follows: Offer | Stop) -> None:
        """verdicts: tool -> the verdicts on its next calls. follows: the decisions after the next rounds."""
        super().__init__(50)
        self.verdicts = verdicts or {}
        self.follows = list(follows)
        # The calls that it has judged.
        self.judged_calls: list[ProposedCall] = []
        # The results that it was given.
        self.results: list[ToolResult] = []

    def judge(self, call: ProposedCall) -> Verdict:
        self.judged_calls.append(call)
        super().judge(call)
        left = self.verdicts.get(call.name)
        return left.pop(0) if left else Allowed()

    def add_result(self, result: ToolResult) -> None:
        self.results.append(result)

    def decide_next(self) -> Offer | Stop:
        usual = super().decide_next()
        return self.follows.pop(0) if self.follows else usual


def steps(guide: FreeGuide | None = None, client: tuple[str, ...] = (), **fields: Any) -> Playbook:
    given = {"holds_end": True, "wants_usage": True, "shows_steps": True, "saves_steps": True, **fields}
    terms = TurnTerms(gateway_tools=AllBut(client), **given)
    return Playbook(Turn(terms, LinesView(terms), guide or Script()))


def reply(playbook: Playbook, *args: Any, **fields: Any) -> Playbook:
    """Feeds a whole reply as a stream."""
    return playbook >> ReplyStarted(200, SSE) >> Received(make_stream(completion(*args, **fields)))


def skip(playbook: Playbook) -> Playbook:
    """Passes over what is sent."""
    while playbook._due and isinstance(playbook._due[0], SendHead | SendBody | SendWhole):
        playbook << type(playbook._due[0])
    return playbook


def saved(command: Command) -> Any:
    assert isinstance(command, Save)
    return command.outcome


def kept(playbook: Playbook) -> list[SaveStep]:
    return [command for command in playbook.commands if isinstance(command, SaveStep)]


def test_a_reply_is_stored_before_its_tools_run_and_their_results_before_the_next_call() -> None:
    guide = Script()
    playbook = skip(reply(steps(guide), "Let me see.", (CALL,), tokens=(10, 5)))
    first = kept(playbook)[0]
    assert first.reply is not None
    assert first.reply["content"] == "Let me see."
    assert [call["id"] for call in first.reply["tool_calls"]] == ["a"]
    assert (first.results, first.nudge, first.waiting) == ((), "", {})
    assert first.usage is not None
    assert first.usage["prompt_tokens"] == 10
    playbook << SaveStep >> StepSaved(7, 8) << RunTool("a", "memory_insert", orjson.loads(ARGS))
    result = ToolResult("a", "done", "success", "out", "err")
    playbook >> ToolFinished(ToolResult("a", "done", stdout="out", stderr="err"))
    assert skip(playbook) << SaveStep(results=(result,))
    assert guide.results == [result]
    # What is saved is in the next prompt, so the command repeats nothing.
    assert skip(playbook >> StepSaved(8, 9)) << CallModel((), None)
    assert b"step 8 9\n" in playbook.client_body
    reply(playbook, "Noted.", tokens=(30, 4))
    assert skip(playbook) << Save
    outcome = playbook.outcome
    assert outcome.full_reply == ({"role": "assistant", "content": "Noted."},)
    assert outcome.shown_reply == outcome.full_reply[0]
    assert (outcome.stop_reason, outcome.results, dict(outcome.waiting)) == (StopReason.END_TURN, (), {})
    assert outcome.step_usage is not None
    assert outcome.step_usage["prompt_tokens"] == 30
    assert outcome.usage is not None
    assert outcome.usage["completion_tokens"] == 9
    assert skip(playbook >> Saved()) << Finish()


def test_steps_are_shown_without_a_gap_and_with_a_head_of_their_own() -> None:
    playbook = (
        skip(reply(steps(), "One.", (CALL,)))
        << SaveStep
        >> StepSaved(1, 2)
        << RunTool
        >> ToolFinished(ToolResult("a", "x"))
    )
    skip(playbook) << SaveStep >> StepSaved(2, 3)
    skip(playbook) << CallModel
    playbook >> ReplyStarted(200, JSON) >> ReceivedWhole(orjson.dumps(completion("Two.")))
    skip(playbook) << Save >> Saved()
    assert skip(playbook) << Finish
    assert SendHead(200, (("content-type", "text/event-stream; charset=utf-8"),)) in playbook.commands
    texts = [line for line in playbook.client_body.decode().splitlines() if line.startswith("text")]
    assert texts == ["text One.", "text Two."]


def test_a_reply_with_calls_that_are_not_run_is_stored_with_their_results_at_once() -> None:
    playbook = skip(reply(steps(Script({"memory_insert": [Forbidden("Not now.")]})), None, (CALL,)))
    (step,) = kept(playbook)
    assert step.reply is not None
    assert step.results == (ToolResult("a", "Not now.", "error", was_run=False),)
    assert skip(playbook << SaveStep >> StepSaved(3, 4)) << CallModel


def test_an_unknown_name_is_a_gateway_call_and_a_client_tool_is_not() -> None:
    calls = (("a", "nobody", "{}"), ("b", "search", "{}"))
    playbook = skip(reply(steps(client=("search",)), None, calls))
    assert playbook << (lambda c: isinstance(c, SaveStep) and c.waiting == {"b": "client"})
    (
        playbook
        >> StepSaved(1, 2)
        << RunTool("a", "nobody", {})
        >> ToolFinished(ToolResult("a", "There is no such tool.", "error"))
    )
    assert skip(playbook) << Save
    assert playbook.outcome.full_reply == ()
    assert playbook.outcome.shown_reply is None
    assert playbook.outcome.results == (ToolResult("a", "There is no such tool.", "error"),)
    assert dict(playbook.outcome.waiting) == {"b": "client"}
    assert playbook.outcome.stop_reason is StopReason.REQUIRES_APPROVAL


def test_the_other_calls_wait_for_an_approval() -> None:
    calls = (CALL, ("b", "pay", "{}"), ("c", "broken", "{"), ("d", "search", "{}"))
    guide = Script({"pay": [NeedsApproval()]})
    playbook = skip(reply(steps(guide, client=("search",)), "I pay.", calls))
    assert playbook << Save
    outcome = playbook.outcome
    assert dict(outcome.waiting) == {"a": "held", "b": "approval", "d": "client"}
    assert [result.call_id for result in outcome.results] == ["c"]
    assert [call["id"] for call in outcome.full_reply[0]["tool_calls"]] == ["a", "b", "c", "d"]
    assert outcome.full_reply[0] == outcome.shown_reply
    assert not [command for command in playbook.commands if isinstance(command, RunTool)]


def test_after_a_call_to_be_approved_what_a_rule_forbids_is_judged_again() -> None:
    """The rules go by what was run before, and the call that waits may be what they ask for."""
    calls = (("z", "early", "{}"), ("b", "pay", "{}"), CALL, ("c", "broken", "{"))
    verdicts: dict[str, list[Verdict]] = {
        "early": [Forbidden("Not yet.")],
        "pay": [NeedsApproval()],
        "memory_insert": [Forbidden("Pay first.")],
    }
    playbook = skip(reply(steps(Script(verdicts)), None, calls)) << Save
    outcome = playbook.outcome
    assert dict(outcome.waiting) == {"a": "held", "b": "approval"}
    # What cannot be read never will be, and no answer changes what came before.
    assert [(result.call_id, result.was_run) for result in outcome.results] == [("z", False), ("c", False)]
    resumed = ResumedCalls(tuple(outcome.full_reply[0]["tool_calls"]), outcome.results, frozenset("b"))
    commands = steps(Script()).turn.feed(resumed)
    assert [each.name for each in commands if isinstance(each, RunTool)] == ["pay", "memory_insert"]


def test_an_answered_pause_goes_on_with_all_results_in_the_order_of_the_calls() -> None:
    calls = (CALL, ("b", "pay", "{}"), ("d", "search", "{}"))
    guide = Script({"pay": [NeedsApproval()]})
    playbook = skip(reply(steps(guide, client=("search",)), None, calls)) << Save
    message = playbook.outcome.full_reply[0]
    answer = ToolResult("d", "found")
    next_turn = steps(guide)
    commands = next_turn.turn.feed(ResumedCalls(tuple(message["tool_calls"]), (answer,), frozenset("b")))
    assert [each for each in commands if isinstance(each, RunTool)] == [
        RunTool("a", "memory_insert", orjson.loads(ARGS)),
        RunTool("b", "pay", {}),
    ]
    assert [(call.id, call.is_approved) for call in guide.judged_calls[-2:]] == [("a", False), ("b", True)]
    skip(next_turn >> ToolFinished(ToolResult("b", "paid")))
    skip(next_turn >> ToolFinished(ToolResult("a", "done")))
    paid = ToolResult("b", "paid", approval="approved")
    next_turn << SaveStep(results=(ToolResult("a", "done"), paid, answer)) >> StepSaved(9, 10)
    assert skip(next_turn) << CallModel((), None)


@pytest.mark.parametrize("shows_steps", [False, True])
def test_while_resumed_calls_run_only_a_reader_of_steps_gets_a_comment(shows_steps: bool) -> None:
    """A client of chat completions may wait for a body, and a stream's headers come with the first reply."""
    terms = TurnTerms(gateway_tools=AllBut(), holds_end=True, shows_steps=shows_steps, saves_steps=True)
    turn = Turn(terms, LinesView(terms), Script()) if shows_steps else chat_turn(terms)
    turn.feed(ResumedCalls(({"id": "a", "function": {"name": "look", "arguments": "{}"}},)))
    comment = [SendHead(200, (EVENT_STREAM_HEADER,)), SendBody(KEEP_ALIVE)]
    assert turn.feed(Silence()) == (comment if shows_steps else [])


def test_a_turn_that_ends_after_its_tools_has_no_reply() -> None:
    playbook = skip(reply(steps(Script({}, Stop(StopReason.TOOL_RULE))), "Bye.", (CALL,), tokens=(10, 5)))
    playbook << SaveStep >> StepSaved(1, 2) << RunTool >> ToolFinished(ToolResult("a", "done"))
    assert skip(playbook) << Save
    outcome = playbook.outcome
    assert (outcome.full_reply, outcome.shown_reply, outcome.stop_reason) == ((), None, StopReason.TOOL_RULE)
    assert outcome.results == (ToolResult("a", "done"),)
    assert outcome.usage is not None
    assert outcome.usage["completion_tokens"] == 5


def test_a_client_that_reads_one_reply_gets_its_usage_though_the_turn_ends_after_a_hidden_round() -> None:
    terms = TurnTerms(gateway_tools=AllBut(), holds_end=True, wants_usage=True, saves_steps=True)
    turn = chat_turn(terms)
    turn._guide = Script({}, Stop(StopReason.TOOL_RULE))
    playbook = skip(reply(Playbook(turn), "Bye.", (CALL,), tokens=(10, 5)))
    playbook << SaveStep >> StepSaved(1, 2) << RunTool >> ToolFinished(ToolResult("a", "done"))
    skip(playbook) << Save >> Saved()
    assert skip(playbook) << Finish
    client = playbook.client_body.decode()
    assert client.count('"finish_reason":"stop"') == 1
    assert client.count('"completion_tokens":5') == 1
    assert client.rstrip().endswith("data: [DONE]")


def test_a_client_that_reads_step_by_step_gets_each_usage_once() -> None:
    counted: list[int] = []

    class Counting(LinesView):
        def show(self, event: ReplyEvent) -> None:
            super().show(event)
            if event.chunk is not None and event.chunk.get("usage"):
                counted.append(event.chunk["usage"]["completion_tokens"])

    terms = TurnTerms(
        gateway_tools=AllBut(), holds_end=True, wants_usage=True, shows_steps=True, saves_steps=True
    )
    playbook = Playbook(Turn(terms, Counting(terms), Script({}, Stop(StopReason.TOOL_RULE))))
    skip(reply(playbook, "Bye.", (CALL,), tokens=(10, 5))) << SaveStep >> StepSaved(1, 2) << RunTool
    skip(playbook >> ToolFinished(ToolResult("a", "done"))) << Save >> Saved()
    assert skip(playbook) << Finish
    assert counted == [5]


def test_a_nudge_goes_on_from_a_reply_without_calls() -> None:
    playbook = skip(reply(steps(Script({}, Offer(nudge="You have to look it up."))), "Hm."))
    assert playbook << SaveStep(
        {"role": "assistant", "content": "Hm."},
        usage=kept(playbook)[0].usage,
        nudge="You have to look it up.",
    )
    assert skip(playbook >> StepSaved(2, 3)) << CallModel


def test_where_steps_are_not_stored_a_nudge_is_a_message_of_the_next_request() -> None:
    turn = chat_turn(TurnTerms(gateway_tools=AllBut(), holds_end=True))
    turn._guide = Script({}, Offer(nudge="Look it up."))
    playbook = skip(reply(Playbook(turn), "Hm."))
    text = "<system_message>\nLook it up.\n</system_message>"
    message = {"role": "assistant", "content": "Hm."}
    assert playbook << CallModel(
        (message, {"role": "user", "content": text}), None, Offer(nudge="Look it up.")
    )


def test_a_call_that_depends_on_a_result_is_judged_after_it() -> None:
    guide = Script({"second": [Undecided(), Allowed({"limit": 3})], "third": [Forbidden("No.")]})
    calls = (("a", "first", "{}"), ("b", "second", '{"limit":1,"q":"x"}'), ("c", "third", "{}"))
    playbook = skip(reply(steps(guide), None, calls)) << SaveStep >> StepSaved(1, 2)
    playbook << RunTool("a", "first", {}) >> ToolFinished(ToolResult("a", "1"))
    assert skip(playbook) << RunTool("b", "second", {"limit": 3, "q": "x"})
    playbook >> ToolFinished(ToolResult("b", "2"))
    results = (ToolResult("a", "1"), ToolResult("b", "2"), ToolResult("c", "No.", "error", was_run=False))
    assert skip(playbook) << SaveStep(results=results)


def test_a_call_of_a_chat_that_was_not_reached_is_said_to_be_not_made() -> None:
    """A chat completion is no run: its model was shown one that was cancelled."""
    turn = chat_turn(TurnTerms(gateway_tools=AllBut(), holds_end=True))
    turn._guide = Script({"second": [Undecided()]})
    playbook = skip(reply(Playbook(turn), None, (("a", "first", "{}"), ("b", "second", "{}")))) << RunTool
    assert playbook >> ClientLeft() << CloseUpstream << Save << Finish
    *_, last = playbook.outcome.full_reply
    assert last["content"] == "Error: the call was not made, since the turn ended before it."


def test_an_approval_after_a_result_leaves_what_has_run() -> None:
    guide = Script({"second": [Undecided(), NeedsApproval()]})
    playbook = skip(reply(steps(guide), None, (("a", "first", "{}"), ("b", "second", "{}"))))
    playbook << SaveStep >> StepSaved(1, 2) << RunTool >> ToolFinished(ToolResult("a", "1"))
    assert skip(playbook) << Save
    assert (playbook.outcome.full_reply, dict(playbook.outcome.waiting)) == ((), {"b": "approval"})
    assert playbook.outcome.results == (ToolResult("a", "1"),)


@pytest.mark.parametrize(
    ("status", "stop"),
    [(402, StopReason.NO_CREDITS), (500, StopReason.UPSTREAM_ERROR), (200, StopReason.BAD_REPLY)],
)
def test_an_error_after_a_stored_step_is_no_status(status: int, stop: StopReason) -> None:
    class Silent(LinesView):
        def take(self) -> bytes:
            return b""

    terms = TurnTerms(gateway_tools=AllBut(), holds_end=True, shows_steps=True, saves_steps=True)
    playbook = Playbook(Turn(terms, Silent(terms), Script()))
    (
        reply(playbook, None, (CALL,))
        << SaveStep
        >> StepSaved(1, 2)
        << RunTool
        >> ToolFinished(ToolResult("a", "x"))
    )
    playbook << SaveStep >> StepSaved(2, 3) << CallModel
    playbook >> ReplyStarted(status, JSON) >> ReceivedWhole(b'{"error":{"message":"no"}}')
    assert playbook << Save << Finish
    assert playbook.outcome.stop_reason is stop
    assert playbook.outcome.state is End.FAILED


def test_an_error_of_the_first_step_is_left_to_the_route() -> None:
    error = UpstreamReplyBroken("It broke.")
    assert steps() >> ReplyFailed(error) << SendError(error) << CloseUpstream << Save << Finish


@pytest.mark.parametrize("event", [ClientLeft(), Stopped(), ReplyFailed(UpstreamReplyBroken("It broke."))])
def test_a_cut_reply_keeps_its_text_and_no_calls(event: Any) -> None:
    playbook = steps() >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(completion("Let me", (CALL,)))[:-3]))
    skip(playbook >> event) << CloseUpstream << Save
    assert playbook.outcome.shown_reply == {"role": "assistant", "content": "Let me"}
    assert playbook.outcome.full_reply == ()
    assert playbook.outcome.state is (End.FAILED if isinstance(event, ReplyFailed) else End.CANCELLED)


def test_a_stopped_turn_has_an_end_for_its_client() -> None:
    playbook = steps() >> ReplyStarted(200, SSE)
    skip(playbook >> Received([chunk({"content": "Let"})]))
    playbook >> Stopped() << CloseUpstream << Save >> Saved()
    assert skip(playbook) << Finish
    assert playbook.outcome.stop_reason is StopReason.CANCELLED
    assert playbook.client_body.decode().splitlines()[-1].startswith("end stop")


def test_a_turn_that_is_stopped_among_its_tools_keeps_the_results_that_are_there() -> None:
    playbook = (
        skip(reply(steps(), None, (CALL, ("b", "search", "{}"))))
        << SaveStep
        >> StepSaved(1, 2)
        << RunTool
        << RunTool
    )
    skip(playbook >> ToolFinished(ToolResult("b", "found")))
    assert playbook >> Stopped() << CloseUpstream << Save
    assert (playbook.outcome.full_reply, playbook.outcome.shown_reply) == ((), None)
    interrupted = ToolResult(CALL[0], INTERRUPTED_RESULT, "error")
    assert playbook.outcome.results == (interrupted, ToolResult("b", "found"))


def test_a_step_that_cannot_be_stored_ends_the_turn() -> None:
    playbook = skip(reply(steps(), None, (CALL,))) << SaveStep
    assert playbook >> Stopped(StopReason.ERROR) << CloseUpstream << Save
    assert (playbook.outcome.state, playbook.outcome.stop_reason) == (End.FAILED, StopReason.ERROR)


def test_a_reply_that_is_too_long_loses_its_calls() -> None:
    playbook = skip(reply(steps(client=("search",)), "So", (CALL, ("b", "search", "{")), "length"))
    assert playbook << Save
    assert playbook.outcome.full_reply == ({"role": "assistant", "content": "So"},)
    assert playbook.outcome.stop_reason is StopReason.MAX_TOKENS
    assert dict(playbook.outcome.waiting) == {}


def test_calls_decide_what_follows_and_the_finish_reason_does_not() -> None:
    assert skip(reply(steps(), None, (CALL,), "stop")) << SaveStep
    assert skip(reply(steps(), "Hi.", (), "tool_calls")) << Save


def test_a_reply_that_says_nothing_ends_the_turn() -> None:
    playbook = skip(reply(steps(), None))
    assert playbook << Save
    assert playbook.outcome.stop_reason is StopReason.END_TURN


def test_a_tool_that_runs_alone_is_commanded_so() -> None:
    playbook = skip(reply(steps(serial_tools={"memory_insert"}), None, (CALL, ("b", "search", "{}"))))
    assert (
        playbook
        << SaveStep
        >> StepSaved(1, 2)
        << RunTool("a", "memory_insert", orjson.loads(ARGS), True)
        << RunTool("b", "search", {})
    )


@pytest.mark.parametrize(
    ("offer", "fields"),
    [
        (Offer(), {}),
        (Offer(("a", "b")), {}),
        (Offer(("a", "b"), must_call=True), {"tool_choice": "required"}),
        (Offer(None, must_call=True), {"tool_choice": "required"}),
        (Offer(("a",), must_call=True), {"tool_choice": {"type": "function", "function": {"name": "a"}}}),
        (Offer(()), {"tool_choice": "none"}),
        (Offer(is_final=True, asks_for_one_call=True), {"tool_choice": "none"}),
        (Offer(asks_for_one_call=True), {"parallel_tool_calls": False}),
    ],
)
def test_an_offer_says_as_little_as_it_can(offer: Offer, fields: dict[str, Any]) -> None:
    assert offer.make_fields() == fields


def test_a_model_that_cannot_be_forced_is_asked() -> None:
    assert Offer(("a",), must_call=True, asks_for_one_call=True).make_fields(can_force=False) == {
        "parallel_tool_calls": False
    }
    assert Offer(()).make_fields(can_force=False) == {"tool_choice": "none"}
