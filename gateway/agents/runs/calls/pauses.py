"""Pauses of a run: calls that a person or the client has to answer, and how a later run goes on with the answers.

Answers are stored with the waiting run until each call has one. Nothing is locked meanwhile: if a plain message comes
first, its run gives each unanswered call a result that states the lack of an answer.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from msgspec import Struct

from gateway.agents.core.call_decision import CallDecision
from gateway.core.conversation.private import read_private
from gateway.core.conversation.wire_message import PRIVATE, WireMessage, read_call_id, read_text
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN
from gateway.core.turn.calls import INTERRUPTED_RESULT, NOT_MADE_RESULT, ResumedCalls
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import BadRequest
from gateway.run.memory.memory_context import MemoryContext
from storage.records import Exchange
from storage.run_records import Run, RunStep, WaitKind


class Resumption(Struct, frozen=True):
    """The stored calls with which a run begins, which waited for answers or were interrupted."""

    # The calls, with the answers and results that are known.
    calls: ResumedCalls
    # The row of the run that made the calls.
    calling_run_row: int
    # The ids of the calls that the client has answered.
    client_call_ids: frozenset[str] = frozenset()
    # The run that still waits for answers to other calls; None: all calls are answered.
    waiting_run: Run | None = None


def list_unanswered(step: RunStep, answered_ids: Container[str]) -> dict[str, WaitKind]:
    """Returns the kind of each call of a step that waits for an answer, by the ids of the calls.

    A held call is left out, since it waits only for the answers to the other calls.

    answered_ids: the ids of the calls that have an answer.
    """
    return {call_id: kind for call_id, kind in _list_open(step, answered_ids).items() if kind != "held"}


def _list_open(step: RunStep, answered_ids: Container[str]) -> dict[str, WaitKind]:
    """Returns the kind of each call of a step without an answer, held calls among them, by the ids of the calls."""
    return {call_id: kind for call_id, kind in step.waiting.items() if call_id not in answered_ids}


def make_answers(
    step: RunStep,
    answered_ids: Container[str],
    decisions: Sequence[CallDecision],
    *,
    may_repeat: bool = False,
) -> list[WireMessage]:
    """Returns the messages that store decisions about calls.

    answered_ids: the ids of the calls that have an answer.
    may_repeat: True if the send may be a repetition, so decisions about answered calls are ignored.

    Raises: BadRequest if a decision is about a call that does not wait for such an answer.
    """
    unanswered = list_unanswered(step, answered_ids)
    messages: list[WireMessage] = []
    for decision in decisions:
        # A decision without an id is about all calls that wait for approval; a denial also about the client's calls.
        kinds = ("approval",) if decision.approve else ("approval", "client")
        default_ids = [call_id for call_id, kind in unanswered.items() if kind in kinds]
        call_ids = [decision.call_id] if decision.call_id is not None else default_ids
        for call_id in call_ids:
            if may_repeat and call_id in answered_ids:
                continue
            kind = unanswered.pop(call_id, None)
            # A client may answer an approval with the call's result. It may not answer its own call with an approval.
            if kind is None or (kind == "client" and decision.result is None and decision.approve):
                # Letta's clients compare this text.
                raise BadRequest(
                    f"Invalid tool call IDs: {call_id!r} does not wait for this answer.", param="messages"
                )
            messages.append(_make_answer(decision, call_id))
    return messages


def _make_answer(decision: CallDecision, call_id: str) -> WireMessage:
    """Returns the message that stores a decision about a call."""
    if decision.result is not None:
        return {**decision.result, "role": "tool", "tool_call_id": call_id}
    if decision.approve:
        return {"role": "tool", "tool_call_id": call_id, "content": "", PRIVATE: {"approval": "approved"}}
    reason = f" Reason: {decision.reason}" if decision.reason else ""
    private = {"approval": "denied", "status": "error", "reason": decision.reason or ""}
    content = f"Error: request to call tool denied.{reason}"
    return {"role": "tool", "tool_call_id": call_id, "content": content, PRIVATE: private}


def deny_calls(step: RunStep, answered_ids: Container[str]) -> list[ToolResult]:
    """Returns results for the waiting calls of a step, which are not made, since the step's run is cancelled.

    answered_ids: the ids of the calls that have results.
    """
    deny_all = CallDecision(None, approve=False, reason="The run was cancelled.")
    answers = [read_result(answer) for answer in make_answers(step, answered_ids, [deny_all])]
    held_ids = [call_id for call_id, kind in _list_open(step, answered_ids).items() if kind == "held"]
    return [*answers, *(ToolResult(call_id, NOT_MADE_RESULT, "error", was_run=False) for call_id in held_ids)]


def resume_interrupted(context: MemoryContext, step: RunStep) -> Resumption:
    """Returns the calls of the last step of a conversation, after the step's run was interrupted.

    All calls of the gateway are made; `CallRecord` has the results of the calls that left the gateway before. The
    client's calls wait.
    """
    calls = ResumedCalls(_list_calls(context, context.path[-1]), unanswered_ids=frozenset(step.waiting))
    return Resumption(calls, step.run_row)


def resume_answered(
    context: MemoryContext, step: RunStep, answers: Sequence[WireMessage], run: Run
) -> Resumption:
    """Returns the calls of the last step of a conversation, which waits, with their answers so far.

    answers: the messages that `make_answers` has returned for the step.
    run: the newest run of the conversation that waits. It still waits if some calls have no answer.
    """
    calls = _list_calls(context, context.path[-1])
    results = []
    denied_ids, approved_ids, client_call_ids = set[str](), set[str](), set[str]()
    for message in answers:
        private, call_id = read_private(message), str(message["tool_call_id"])
        if is_bare_approval(message):
            approved_ids.add(call_id)
            continue
        results.append(read_result(message))
        if private.get("approval") == "denied":
            denied_ids.add(call_id)
        elif step.waiting.get(call_id) in ("client", "approval"):
            client_call_ids.add(call_id)
    answered_ids = approved_ids | {result.call_id for result in results}
    if step.stop is not None:
        # When the run paused, the calls that did not wait had results, which may be erased since.
        settled_ids = answered_ids | step.waiting.keys()
        erased_ids = [call_id for call_id in map(read_call_id, calls) if call_id not in settled_ids]
        results += [ToolResult(call_id, INTERRUPTED_RESULT, "error") for call_id in erased_ids]
    return Resumption(
        ResumedCalls(calls, tuple(results), frozenset(approved_ids), frozenset(denied_ids)),
        step.run_row,
        frozenset(client_call_ids),
        run if list_unanswered(step, answered_ids) else None,
    )


def is_bare_approval(answer: WireMessage) -> bool:
    """Returns whether an answer approves its call, which has no result yet."""
    return read_private(answer).get("approval") == "approved" and not read_text(answer)


def read_result(message: WireMessage) -> ToolResult:
    """Returns the result of a call, read from the stored message."""
    private = read_private(message)
    texts = {key: str(private[key]) for key in ("stdout", "stderr", "approval", "reason") if private.get(key)}
    return ToolResult(
        str(message["tool_call_id"]),
        read_text(message),
        private.get("status") or "success",
        **texts,
        was_run=not private.get("unrun"),
        is_unapproved=bool(private.get("unapproved")),
        shown=private.get("shown_blocks") or NOTHING_SHOWN,
    )


def _list_calls(context: MemoryContext, exchange: Exchange) -> tuple[WireMessage, ...]:
    """Returns the calls of the context's exchange."""
    content = context.tree.contents.get(exchange)
    replies = content.full_reply if content.is_step and content.full_reply else [content.shown_reply or {}]
    return tuple(call for reply in replies for call in reply.get("tool_calls") or ())
