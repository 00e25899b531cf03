"""The part of a request that comes beside its body: its headers, and what its caller's key decides."""

from __future__ import annotations

from msgspec import Struct

from gateway.core.request.request_headers import RawHeaders


class RequestContext(Struct, frozen=True):
    """The headers of a request, and what its caller's key decides about it."""

    headers: RawHeaders
    project: str
    # The caller's own credential, for an upstream without a key of its own.
    credential: str | None = None
    # The memory mode of requests that ask for none, where the key has one.
    memory: str | None = None
