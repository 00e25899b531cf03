"""The events of one turn that the machine is fed, in the order in which they happen."""

from __future__ import annotations

from msgspec import Struct, field

from adapters.types import Event, Header, Json
from gateway.core.prompt.shown_blocks import Shown
from gateway.core.turn.calls import ResumedCalls
from gateway.core.turn.guide import StopReason
from gateway.errors import GatewayError


class ReplyStarted(Struct, frozen=True):
    """Status and headers of the upstream's reply are there."""

    status: int
    headers: tuple[Header, ...] = ()


class Received(Struct, frozen=True):
    """Events of a streamed reply: all that one read brought."""

    events: list[Event]


class ReceivedWhole(Struct, frozen=True):
    """The body of a reply that is no stream has come, all of it."""

    body: bytes


class ReplyEnded(Struct, frozen=True):
    """A streamed reply's body has ended properly. After `[DONE]` it adds nothing and may be left out."""


class ReplyFailed(Struct, frozen=True):
    """The upstream could not be reached, broke off or took too long."""

    error: GatewayError
    # What came of an event that has no end, where the stream ended within it.
    rest: bytes = b""


class ToolFinished(Struct, frozen=True):
    """A gateway tool has run."""

    call_id: str
    content: str  # its result, or its failure, in the words that the model is to read
    status: str = "success"  # or error
    stdout: str = ""  # with stderr: the output of code that it ran
    stderr: str = ""
    changes: str = ""  # as in `ToolResult`
    shown: Shown = field(default_factory=dict)


class ToolsLate(Struct, frozen=True):
    """Gateway tools have been running for so long that the user should hear something (`TurnTerms.filler`)."""


class StepSaved(Struct, frozen=True):
    """A `SaveStep` is committed. The numbers are those of the step that is open now, or else of the one that ended."""

    # The number of the step's first message, which names the step.
    first: int
    # The number of its reply.
    reply: int
    # The tool results with which it begins, as they are stored.
    results: tuple[Json, ...] = ()


# The error that the client of a lost turn gets.
LOST = "Something of this memory was forgotten meanwhile: the reply is not kept."


class Saved(Struct, frozen=True):
    """The end of the reply may leave."""

    # The turn is committed; False: the store is too slow or down.
    durable: bool = True
    # The turn will never be stored, since the conversation that it continues was forgotten meanwhile.
    is_lost: bool = False
    # The results that were saved after the last step, where a run ends with them.
    after_stop: StepSaved | None = None


class ClientLeft(Struct, frozen=True):
    """The client is gone, or the process is about to end."""


class Stopped(Struct, frozen=True):
    """The turn is to end now, though its client is still there: it was cancelled, or a step could not be stored."""

    reason: StopReason = StopReason.CANCELLED


TurnEvent = (
    ReplyStarted
    | Received
    | ReceivedWhole
    | ReplyEnded
    | ReplyFailed
    | ToolFinished
    | ToolsLate
    | StepSaved
    | Saved
    | ClientLeft
    | Stopped
    | ResumedCalls
)
