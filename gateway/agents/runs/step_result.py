"""The result of a step of a run, and the end of the run as the outcome of its turn decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from msgspec import Struct, field

from adapters.types import Json
from gateway.agents.runs.calls.call_record import number_call
from gateway.core.conversation.private import with_private
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult
from gateway.run.memory.prompt import Prompt
from storage.records import Exchange
from storage.run_records import RunState, WaitKind

# The stop reasons after which the run of a sleeptime agent is tried again, unless the upstream refused its messages.
UPSTREAM_FAULTS = frozenset({StopReason.UPSTREAM_ERROR, StopReason.NO_CREDITS, StopReason.BAD_REPLY})

# Replaces the message of an upstream's error that may quote the memory that the run reads.
ERROR_WITHHELD = (
    "The upstream gave an error, whose words are not kept here, since they may quote what was read."
)

_STATES = {End.FINISHED: RunState.COMPLETED, End.CANCELLED: RunState.CANCELLED, End.FAILED: RunState.FAILED}


class StepResult(Struct, frozen=True):
    """The result of a step."""

    # The messages of the reply, as they go upstream again; empty: there is no reply.
    full_reply: Sequence[WireMessage] = ()
    # The part of the reply that the client got; None: all of the reply.
    shown_reply: WireMessage | None = None
    # The token counts that the upstream sent.
    usage: Json | None = None
    # The calls that wait for an answer, as in `RunStep`.
    waiting: Mapping[str, WaitKind] = field(default_factory=dict)
    # Results of the step's calls, stored until all calls have results.
    results: Sequence[ToolResult] = ()
    # The reason why the run ends with this step; None: it continues.
    stop: str | None = None
    # The class of the error, as in `RunStep`.
    error: str | None = None
    # True: the upstream refused the messages of the step, and would refuse them again.
    is_refused: bool = False
    # The message of the error that ended the run, which may quote the user; "": there was no error.
    error_message: str = ""
    # The HTTP status of that error; 0: there was no error, or the error has no status.
    error_status: int = 0

    @staticmethod
    def of(outcome: TurnOutcome, stop: StopReason, error: str | None, *, withholds_error: bool) -> StepResult:
        """Returns the result of a run's last step. A reply that was cut off is stored as far as it came.

        withholds_error: True if the run reads another memory, which the error's message may quote.
        """
        full_reply, shown_reply = outcome.full_reply, outcome.shown_reply
        if not full_reply and outcome.text and shown_reply is not None:
            shown_reply = with_private(shown_reply, cut=True)
            full_reply = (shown_reply,)
        # The error's message may quote another memory, and forgetting there would not find it here.
        is_withheld = withholds_error and bool(outcome.error_message)
        error_message = ERROR_WITHHELD if is_withheld else outcome.error_message
        return StepResult(
            full_reply, shown_reply if full_reply else None, outcome.step_usage, waiting=outcome.waiting,
            results=outcome.results if outcome.waiting else (), stop=stop, error=error,
            is_refused=outcome.is_refused, error_message=error_message, error_status=outcome.error_status,
        )  # fmt: skip


def choose_end(prompt: Prompt, outcome: TurnOutcome) -> tuple[RunState, StopReason]:
    """Returns the state of a run after its turn, and its stop reason."""
    state, stop = _STATES[outcome.state], outcome.stop_reason
    # If the agent's own prompt fills the window, evicting messages makes no room.
    window = prompt.target.context_window
    is_full = window is not None and estimate_tokens(prompt.system) >= window
    if is_full and stop is StopReason.UPSTREAM_ERROR:
        stop = StopReason.SYSTEM_OVERFLOW
    if state is RunState.COMPLETED and not stop.is_proper:
        state = RunState.FAILED
    return state, stop


def number_results(exchange: Exchange, results: Sequence[ToolResult]) -> dict[int, bytes]:
    """Returns results by the numbers of their calls, as they are stored until all calls of the step have results."""
    return {number_call(exchange, result.call_id): orjson.dumps(result.as_stored()) for result in results}
