"""The decision of a person or a client about calls that wait for one."""

from __future__ import annotations

from msgspec import Struct

from adapters.types import Json


class CallDecision(Struct, frozen=True):
    """A decision about a call that waits."""

    # The call; None: all calls that wait.
    call_id: str | None
    # A person allows the call. False may be given for a client call, too.
    approve: bool = True
    # The reason of a person who does not allow it.
    reason: str | None = None
    # The result of a call that the client ran.
    result: Json | None = None
    # The public id of the message that asks for the decision; None: the one that waits.
    request: str | None = None
