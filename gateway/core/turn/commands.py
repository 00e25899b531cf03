"""The commands that the machine gives to its shell, and the outcome of a turn that it has saved."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct, field

from adapters.types import Header, Json
from gateway.core.turn.guide import Offer, StopReason, ToolResult
from gateway.errors import GatewayError


class SendHead(Struct, frozen=True):
    """Send status and headers of a stream; they leave with the first bytes of the body."""

    status: int
    headers: tuple[Header, ...]


class SendBody(Struct, frozen=True):
    """Send bytes of the stream."""

    data: bytes


class SendWhole(Struct, frozen=True):
    """Answer with one body, which leaves at `Finish`."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


class Refuse(Struct, frozen=True):
    """Answer with an error of the gateway's; nothing has been sent."""

    error: GatewayError


class CallModel(Struct, frozen=True, eq=False):
    """Call the model again.

    messages: of all hidden rounds so far; they follow the messages of the first request. None, where steps are stored.
    budget_tokens: the rest of the client's budget; None: not limited.
    offer: what the model may do.
    """

    messages: tuple[Json, ...]
    budget_tokens: int | None
    offer: Offer = field(default_factory=Offer)

    def __eq__(self, other: object) -> bool:
        """Compares what is asked; an offer follows from the turn's state."""
        if not isinstance(other, CallModel):
            return NotImplemented
        return (self.messages, self.budget_tokens) == (other.messages, other.budget_tokens)


class RunTool(Struct, frozen=True):
    """Run a gateway tool."""

    call_id: str
    # As it was offered.
    name: str
    # A JSON object.
    arguments: Json
    # Never at the same time as another such call.
    alone: bool = False


class SaveStep(Struct, frozen=True):
    """Commit a step of the turn, open the next one, or both at once, then feed `StepSaved`.

    It comes with `reply` before the tools of that reply run, and with `results` or a `nudge`, the next step's
    input, before the model is called again; with both at once if no tool had to run.
    """

    # The model's message, with all its calls; None: it is stored already.
    reply: Json | None = None
    # What the reader got of it; None: the same.
    shown_reply: Json | None = None
    # What the upstream counted for this reply; None: nothing.
    usage: Json | None = None
    # Calls of this reply wait for an answer before the turn can go on; the gateway's are run at once (call
    # id -> "client").
    waits: Mapping[str, str] = field(default_factory=dict)
    # In the order of the calls.
    results: tuple[ToolResult, ...] = ()
    # A message of the gateway's for the model; "": none.
    nudge: str = ""


class CloseUpstream(Struct, frozen=True):
    """Close the reply that is being read, or give up the call that waits for one."""


class Save(Struct, frozen=True):
    """Write the turn down, then feed `Saved`."""

    outcome: TurnOutcome


class Finish(Struct, frozen=True):
    """End the reply to the client; nothing follows."""


Command = (
    SendHead | SendBody | SendWhole | Refuse | CallModel | RunTool | SaveStep | CloseUpstream | Save | Finish
)


class End(StrEnum):
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"  # by an error; whatever of the reply was sent does not count


# Bound once, because each turn asks for it and it is slow to read off its class.
FINISHED: Final = End.FINISHED


class TurnOutcome(Struct, frozen=True):
    """The outcome of a turn.

    Of a turn that keeps each step, `full` and `shown_reply` are those of the last reply alone. They are empty
    where it is stored already; then `results` belong to it, and so does `waiting`.
    """

    state: End
    # The reply's messages as the upstream got or sent them, hidden rounds included. It ends with results of
    # our tools where the last round was mixed, or where the budget was used up.
    full: tuple[Json, ...] = ()
    # The one assistant message that the client has; of an unfinished turn the text generated so far.
    shown_reply: Json | None = None
    # finish_reason, usage: those that the client gets, or would have got.
    finish_reason: str | None = None
    usage: Json | None = None
    # Replies of the model that began.
    rounds: int = 0
    # `full` holds results of our tools, which the client never saw.
    hidden: bool = False
    # Why the turn ended.
    stop: StopReason = StopReason.END_TURN
    # Call id -> who has to answer first: "approval", "client", or "held" for a call that waits with them.
    waiting: Mapping[str, str] = field(default_factory=dict)
    # Of calls in that reply, those that no step has taken in.
    results: tuple[ToolResult, ...] = ()
    # The upstream's count of that reply.
    step_usage: Json | None = None
    # The upstream refused what went in, and would again: the turn's messages, or those of its last step where
    # steps are stored.
    is_refused: bool = False
    # Of the error that ended the turn, which may quote it; "": there is none.
    words: str = ""

    @property
    def text(self) -> str:
        content = self.shown_reply.get("content") if self.shown_reply else None
        return content if isinstance(content, str) else ""
