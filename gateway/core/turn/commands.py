"""The commands that the machine gives to its shell, and the outcome of a turn that it has saved."""

from __future__ import annotations

from enum import StrEnum

from adapters.types import Header, Json
from gateway.errors import GatewayError
from storage.value import frozen


@frozen
class SendHead:
    """Send status and headers; they leave with the first bytes of the body."""

    status: int
    headers: tuple[Header, ...]


@frozen
class SendBody:
    """Send bytes of the body."""

    data: bytes


@frozen
class Refuse:
    """Answer with an error of the gateway's; nothing has been sent."""

    error: GatewayError


@frozen
class CallModel:
    """Call the model again.

    messages: of all hidden rounds so far; they follow the messages of the first request.
    budget_tokens: the rest of the client's budget; None: not limited.
    tools_final: the limit of rounds is reached: send the same tools, but `tool_choice: none`.
    """

    messages: tuple[Json, ...]
    budget_tokens: int | None
    tools_final: bool = False


@frozen
class RunTool:
    """Run a tool of ours. name: as it was offered; arguments: a JSON object."""

    call_id: str
    name: str
    arguments: Json


@frozen
class CloseUpstream:
    """Close the reply that is being read, or give up the call that waits for one."""


@frozen
class Save:
    """Write the turn down, then feed `Saved`."""

    outcome: TurnOutcome


@frozen
class Finish:
    """End the reply to the client; nothing follows."""


Command = SendHead | SendBody | Refuse | CallModel | RunTool | CloseUpstream | Save | Finish


class End(StrEnum):
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"  # by an error; whatever of the reply was sent counts as never said


@frozen
class TurnOutcome:
    """The outcome of a turn.

    full: the reply's messages as the upstream saw or said them, hidden rounds included. It ends with results of our
        tools where the last round was mixed, or where the budget was used up.
    said: the one assistant message that the client has; of an unfinished turn the text generated so far.
    finish_reason, usage: those that the client is told, or would have been.
    rounds: replies of the model that began. hidden: `full` holds results of our tools, which the client never saw.
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
