"""The events of a turn: what has happened, for the turn machine (`Turn.feed`)."""

from __future__ import annotations

from msgspec import Struct

from adapters.types import Event, Header, Json
from gateway.core.turn.calls import ResumedCalls
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import GatewayError


class ReplyStarted(Struct, frozen=True):
    """Status and headers of the upstream's reply have come."""

    # The status of the reply.
    status: int
    # The headers of the reply.
    headers: tuple[Header, ...] = ()


class Received(Struct, frozen=True):
    """Events of a streamed reply have come, all of one read."""

    events: list[Event]


class ReceivedWhole(Struct, frozen=True):
    """The whole body of a reply that is no stream has come."""

    body: bytes


class ReplyEnded(Struct, frozen=True):
    """A streamed reply's body has ended properly. After `[DONE]` it adds nothing and may be left out."""


class ReplyFailed(Struct, frozen=True):
    """The upstream could not be reached, broke off or took too long."""

    # The error that the client gets.
    error: GatewayError
    # The beginning of an event that did not come to its end.
    unfinished_event: bytes = b""


class ToolFinished(Struct, frozen=True):
    """A gateway tool has run."""

    result: ToolResult


class ToolsLate(Struct, frozen=True):
    """Gateway tools have run for so long that the user should hear a filler (`TurnTerms.filler`)."""


class Silence(Struct, frozen=True):
    """Nothing has been sent for a while. The reply that is being read, if one is, is a stream."""


class LongWait(Struct, frozen=True):
    """A sign of life of the upstream has come in its stream, and the client has waited for long and has nothing yet."""


class StepSaved(Struct, frozen=True):
    """A `SaveStep` is committed.

    The fields describe the step that it opened or, if it opened none, the step that it ended.
    """

    # The number of the step's first message, which names the step.
    first_seq: int
    # The number of the step's reply.
    reply_seq: int
    # The tool results with which the step begins, as they are stored.
    results: tuple[Json, ...] = ()


class StepFailed(Struct, frozen=True):
    """A `SaveStep` could not be committed, or the prompt of the step that it opens does not fit its window."""

    error: GatewayError


# The errors that the client of a lost turn gets (`Saved.loss`).
FORGOTTEN_LOSS = "Something of this memory was forgotten meanwhile: the reply is not stored."
TAKEN_OVER_LOSS = (
    "Another gateway has taken this conversation over meanwhile: the reply is not stored. Send it again."
)


class Saved(Struct, frozen=True):
    """A `Save` is done, or was given up: the end of the reply may leave."""

    # The turn is committed; False: the store is too slow or down.
    is_durable: bool = True
    # True: the turn is not committed yet, and its write goes on.
    is_late: bool = False
    # The reason for the client why the turn will never be stored; None: the turn is stored, or may be stored yet.
    loss: str | None = None
    # The results that were saved after the last step, where a run ends with them.
    after_stop: StepSaved | None = None


class ClientLeft(Struct, frozen=True):
    """The client has left, or counts as such because the process is about to end."""


class Stopped(Struct, frozen=True):
    """The turn is to end now, though its client is still there."""

    reason: StopReason = StopReason.CANCELLED


TurnEvent = (
    ReplyStarted
    | Received
    | ReceivedWhole
    | ReplyEnded
    | ReplyFailed
    | ToolFinished
    | ToolsLate
    | Silence
    | LongWait
    | StepSaved
    | StepFailed
    | Saved
    | ClientLeft
    | Stopped
    | ResumedCalls
)
