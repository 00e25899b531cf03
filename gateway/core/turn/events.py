"""What the machine is told: the events of one turn, in the order in which they happen."""

from __future__ import annotations

from adapters.types import Event, Header
from gateway.errors import GatewayError
from storage.value import frozen

__all__ = [
    "ClientLeft",
    "Received",
    "ReceivedWhole",
    "ReplyEnded",
    "ReplyFailed",
    "ReplyStarted",
    "Saved",
    "ToolFinished",
    "TurnEvent",
]


@frozen
class ReplyStarted:
    status: int
    headers: tuple[Header, ...] = ()


@frozen
class Received:
    """Events of a streamed reply, all that one read brought."""

    events: list[Event]


@frozen
class ReceivedWhole:
    """The whole body of a reply that is not a stream; its end as well."""

    body: bytes


@frozen
class ReplyEnded:
    """A streamed reply's body has ended properly. After `[DONE]` it says nothing new and may be left out."""


@frozen
class ReplyFailed:
    """The upstream could not be reached, broke off or took too long."""

    error: GatewayError


@frozen
class ToolFinished:
    """content: the tool's result, or what went wrong, as the model shall read it."""

    call_id: str
    content: str


@frozen
class Saved:
    """durable: committed; False: released without (too slow, or the store is down)."""

    durable: bool = True


@frozen
class ClientLeft:
    pass


TurnEvent = (
    ReplyStarted | Received | ReceivedWhole | ReplyEnded | ReplyFailed | ToolFinished | Saved | ClientLeft
)
