"""The HTTP requests that a WebSocket of the Responses API passes to the application."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Message, Scope

from gateway.core.request.request_headers import RawHeaders

# Headers of the handshake that are not repeated in its requests: they belong to the upgrade, or to one message.
_DROPPED_HEADERS: Final = frozenset(
    b"connection upgrade content-length content-type content-encoding transfer-encoding expect x-request-id".split()
)
_BETA_HEADER: Final = b"openai-beta"


class BodyReceiver:
    """The ASGI `receive` of one request with a complete body."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}


def make_request_scope(
    socket_scope: Scope,
    *,
    method: str,
    path: str,
    state: dict[str, Any],
    headers: RawHeaders,
    query: bytes = b"",
) -> Scope:
    """Returns the scope of an HTTP request that came over a socket. socket_scope: the scope of the socket."""
    return {
        "type": "http",
        "asgi": socket_scope["asgi"],
        "http_version": "1.1",
        "method": method,
        "scheme": "https" if socket_scope["scheme"] == "wss" else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": socket_scope["client"],
        "server": socket_scope["server"],
        "state": state,
    }


def make_request_headers(handshake_headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Returns the headers that each request of a socket has of its handshake."""
    request_headers = []
    for name, value in handshake_headers:
        if name == _BETA_HEADER:
            value = _drop_socket_betas(value)
        if value and name not in _DROPPED_HEADERS and not name.startswith(b"sec-websocket-"):
            request_headers.append((name, value))
    return request_headers


def _drop_socket_betas(value: bytes) -> bytes:
    """Returns a list of betas without the beta of the socket: the upstream's request goes over HTTP."""
    betas = (beta for beta in value.split(b",") if not beta.strip().startswith(b"responses_websockets"))
    return b",".join(betas).strip()
