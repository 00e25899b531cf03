"""A request with ASGI's three values, for routes that read a request first and answer it later."""

from __future__ import annotations

from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from gateway.core.request.request_headers import RawHeaders
from gateway.web.client_reply import ClientReply
from gateway.web.request_info import RequestInfo, get_request_info


def read_memories(scope: Scope) -> frozenset[int]:
    """Returns the rows of the memories from which a socket has put earlier messages before the request's own."""
    memories: frozenset[int] = scope["state"].get("memories", frozenset())
    return memories


class Incoming(NamedTuple):
    """A request, and the way back to its client. (`OutgoingRequest` is a request that goes upstream.)"""

    # The ASGI scope of the request.
    scope: Scope
    # Returns the next part of the request's body.
    receive: Receive
    # Sends a part of the response.
    send: Send

    @property
    def info(self) -> RequestInfo:
        """The facts of the request, which the edge has begun."""
        return get_request_info(self.scope)

    @property
    def headers(self) -> RawHeaders:
        """The headers of the request, with names in lower case."""
        headers: RawHeaders = self.scope["headers"]
        return headers

    @property
    def query(self) -> str:
        """The query of the request as it came, without "?"."""
        query: bytes = self.scope["query_string"]
        return query.decode("latin-1")

    @property
    def upstream_path(self) -> str:
        """The path below an upstream's base URL, with the query."""
        path: str = self.scope["path"].removeprefix("/v1")
        return f"{path}?{self.query}" if self.query else path

    def begin_reply(self, send_timeout_s: float) -> ClientReply:
        """Returns the reply, to be used in a `with` block. The body must have been read before."""
        return ClientReply(*self, send_timeout_s)
