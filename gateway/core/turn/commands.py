"""The commands of the turn machine to its shell, and the outcome with which a turn is saved."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct, field

from adapters.types import ANSWER_FIELDS, Header, Json
from gateway.core.turn.guide import Offer
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import GatewayError
from storage.run_records import WaitKind


class SendHead(Struct, frozen=True):
    """Send status and headers of a stream; they leave with the first bytes of the body."""

    # The status of the reply.
    status: int
    # The headers of the reply.
    headers: tuple[Header, ...]


class SendBody(Struct, frozen=True):
    """Send bytes of the stream."""

    data: bytes


# A comment of an event stream, which clients ignore and proxies take for a sign of life.
KEEP_ALIVE: Final = b": keep-alive\n\n"


class SendWhole(Struct, frozen=True):
    """Answer with one body, which leaves at `Finish`."""

    # The status of the reply.
    status: int
    # The headers of the reply.
    headers: tuple[Header, ...]
    # The body of the reply.
    body: bytes


class SendError(Struct, frozen=True):
    """Answer with an error of the gateway's; nothing has been sent."""

    error: GatewayError


class CallModel(Struct, frozen=True):
    """Call the model again."""

    # The messages of all hidden rounds so far, which follow the messages of the first request. Empty where steps are
    # saved: the next prompt has these messages.
    messages: tuple[Json, ...]
    # The rest of the client's budget; None: the client sets no budget.
    budget_tokens: int | None
    # The tools that the model may call.
    offer: Offer = field(default_factory=Offer)


class RunTool(Struct, frozen=True):
    """Run a gateway tool."""

    # The id of the call.
    call_id: str
    # The name under which the tool was offered.
    name: str
    # A JSON object.
    arguments: Json
    # Never at the same time as another serial call.
    is_serial: bool = False


class SaveStep(Struct, frozen=True):
    """Commit a step of the turn, open the next one, or both at once, then feed `StepSaved` or `StepFailed`.

    Before the tools of a reply run, it has the `reply`. Before the model is called again, it has `results` or a
    `nudge`, the next step's input. If no tool had to run, one command has both.
    """

    # The model's message, with all its calls; None: the message is stored already.
    reply: Json | None = None
    # The message as the client got it; None: the client got `reply` as it is.
    shown_reply: Json | None = None
    # The upstream's usage of this reply; None: the upstream reported no usage.
    usage: Json | None = None
    # The client calls in this reply, by their ids. Gateway calls run, then the turn waits for the client.
    waiting: Mapping[str, WaitKind] = field(default_factory=dict)
    # The results of the calls, in the order of the calls.
    results: tuple[ToolResult, ...] = ()
    # A message of the gateway's for the model; "": no message.
    nudge: str = ""


class NoteReply(Struct, frozen=True):
    """Note a complete reply of the model, before any of its tools runs."""

    # The number of the reply in its turn, from 0.
    number: int
    # A stream or a body, as the upstream might have sent it.
    reply: bytes


class CloseUpstream(Struct, frozen=True):
    """Close the reply that is being read, or give up the call that waits for one."""

    # The error that ended the turn; None: the turn was ended from outside.
    error: GatewayError | None = None


class Save(Struct, frozen=True):
    """Write the turn down, then feed `Saved`."""

    outcome: TurnOutcome


class Finish(Struct, frozen=True):
    """End the reply to the client; nothing follows."""


FINISH: Final = Finish()


Command = (
    SendHead
    | SendBody
    | SendWhole
    | SendError
    | CallModel
    | NoteReply
    | RunTool
    | SaveStep
    | CloseUpstream
    | Save
    | Finish
)


class End(StrEnum):
    """How a turn ends."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    # An error ends the turn; the part of the reply that was sent does not count.
    FAILED = "failed"


# Bound once, because each turn reads it, and an attribute of an Enum is slow to read.
FINISHED: Final = End.FINISHED


class TurnOutcome(Struct, frozen=True):
    """The outcome of a turn.

    If a turn saves each step, `full_reply` and `shown_reply` hold the last reply alone. Both are empty if that reply is
    stored already; then `results` and `waiting` belong to it.
    """

    # The way in which the turn ended.
    state: End
    # The messages of the turn as the upstream got or sent them, hidden rounds included. They end with results of
    # gateway tools where the last round had client calls too, or where the budget was used up.
    full_reply: tuple[Json, ...] = ()
    # The one assistant message that the client got; in an unfinished turn the text generated so far.
    shown_reply: Json | None = None
    # The finish_reason for the client.
    finish_reason: str | None = None
    # The usage for the client.
    usage: Json | None = None
    # The number of the model's replies that have begun.
    round_count: int = 0
    # `full_reply` has results of gateway tools, which the client does not get.
    has_hidden_results: bool = False
    # Why the turn ended.
    stop_reason: StopReason = StopReason.END_TURN
    # The calls that wait, by their ids.
    waiting: Mapping[str, WaitKind] = field(default_factory=dict)
    # Results of calls in the last reply that no step has saved yet.
    results: tuple[ToolResult, ...] = ()
    # The upstream's usage of the last reply.
    step_usage: Json | None = None
    # True: the upstream refused the messages of the turn (of its last step, where steps are saved), and would refuse
    # them again.
    is_refused: bool = False
    # The id of a response that the upstream makes in the background; the turn is CANCELLED until the response ends.
    # None: the reply is not made in the background.
    background_id: str | None = None
    # The kind of the error that ended the turn, if the error is no upstream's; "": `stop_reason` is the kind.
    error_kind: str = ""
    # The message of the error that ended the turn, which may quote the user; "": no error.
    error_message: str = ""
    # The HTTP status of that error, with which its turn alone would have been answered; 0: no status.
    error_status: int = 0

    @property
    def is_filtered(self) -> bool:
        """True if a filter ended the reply before the model's first word, as Gemini and Claude refuse a prompt."""
        shown_reply = self.shown_reply or {}
        return self.stop_reason is StopReason.BAD_REPLY and not any(map(shown_reply.get, ANSWER_FIELDS))

    @property
    def text(self) -> str:
        content = self.shown_reply.get("content") if self.shown_reply else None
        return content if isinstance(content, str) else ""
