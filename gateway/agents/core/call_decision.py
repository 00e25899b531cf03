"""Decisions about tool calls that wait: allowed or denied by a person, or run by the client."""

from __future__ import annotations

from msgspec import Struct

from adapters.types import Json


class CallDecision(Struct, frozen=True):
    """The decision of a person or a client about calls that wait for one.

    A person allows (`approve`) or denies (`approve=False`, with a `reason`). A client gives a `result`, and `approve`
    stays True.
    """

    # The call; None: all calls that wait for a person. A denial is also of those that wait for the client.
    call_id: str | None
    # Whether the call is allowed. A call that the client would run can be denied as well.
    approve: bool = True
    # The reason of a person who does not allow it.
    reason: str | None = None
    # The result of a call that the client ran.
    result: Json | None = None
    # The public id of the message that asks for the decision; None: the one that waits.
    request: str | None = None
