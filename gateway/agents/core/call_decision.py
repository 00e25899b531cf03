"""Decisions about tool calls that wait: allowed or denied by a person, or run by the client."""

from __future__ import annotations

from msgspec import Struct

from adapters.types import Json


class CallDecision(Struct, frozen=True):
    """The decision of a person or a client about waiting calls.

    A person allows (`approve`) or denies (`approve=False`, with a `reason`). A client gives a `result`, and `approve`
    stays True.
    """

    # The id of the call; None: all calls that wait for a person. A denial without an id is also of the calls that wait
    # for the client.
    call_id: str | None
    # True: the call is allowed. A call that the client would run can be denied as well.
    approve: bool = True
    # The reason for a denial; None: the person gave none.
    reason: str | None = None
    # The result of a call that the client ran; None: a person has decided.
    result: Json | None = None
    # The public id of the message with the calls; None: the message with the calls that wait now.
    request: str | None = None
