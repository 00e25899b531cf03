"""What the machine commands, and the outcome of a turn that it has saved."""

from __future__ import annotations

from enum import StrEnum

from adapters.types import Header
from gateway.core.turn.stream import Json
from gateway.errors import GatewayError
from storage.value import frozen

__all__ = [
    "CallModel",
    "CloseUpstream",
    "Command",
    "End",
    "Finish",
    "Refuse",
    "RunTool",
    "Save",
    "SendBody",
    "SendHead",
    "TurnOutcome",
]


@frozen
class SendHead:
    status: int
    headers: tuple[Header, ...]


@frozen
class SendBody:
    data: bytes


@frozen
class Refuse:
    """Answer with an error of ours; nothing has been sent."""

    error: GatewayError


@frozen
class CallModel:
    """Call the model again.

    messages: what follows the first request's messages: all hidden rounds so far.
    budget_tokens: what is left of the client's budget. tools_final: with the same tools, but `tool_choice: none`.
    """

    messages: tuple[Json, ...]
    budget_tokens: int | None
    tools_final: bool = False


@frozen
class RunTool:
    """Run a tool of ours. tool: its canonical name; arguments: a JSON object."""

    call_id: str
    tool: str
    arguments: Json


@frozen
class CloseUpstream:
    """Close the reply that is being read, or give up the call that waits for one."""


@frozen
class Save:
    outcome: TurnOutcome


@frozen
class Finish:
    pass


Command = SendHead | SendBody | Refuse | CallModel | RunTool | CloseUpstream | Save | Finish


class End(StrEnum):
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"  # an error of the upstream's, whatever of the reply had been sent: as if never said


@frozen
class TurnOutcome:
    """What became of a turn.

    full: the reply's messages as the upstream saw or said them, hidden rounds included. It ends with tool results
        of ours where the round was mixed, or where nothing of the budget was left to go on with.
    said: the one assistant message that the client has; of an unfinished turn what had been generated.
    finish_reason: as told to the client. usage: as told to the client, or as it would have been.
    rounds: replies of the model that began. hidden: whether `full` holds calls that the client never saw.
    """

    state: End
    full: tuple[Json, ...] = ()
    said: Json | None = None
    finish_reason: str | None = None
    usage: Json | None = None
    rounds: int = 0
    hidden: bool = False

    @property
    def text(self) -> str:
        content = self.said.get("content") if self.said else None
        return content if isinstance(content, str) else ""
