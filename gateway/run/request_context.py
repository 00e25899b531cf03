"""The context of a request: all that its body does not have."""

from __future__ import annotations

from msgspec import Struct

from gateway.core.request.request_headers import RawHeaders


class RequestContext(Struct, frozen=True):
    """The headers of a request, and what its caller's key decides about it."""

    headers: RawHeaders
    project: str
    # The caller's own credential, for an upstream without a key of its own.
    credential: str | None = None
    # The memory mode that the key has for requests that ask for none.
    memory_mode: str | None = None
