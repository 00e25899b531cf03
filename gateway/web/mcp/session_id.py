"""The id of a session of `/mcp`, which is the name of its client.

Clients of the older protocol name themselves only in their handshake. The gateway returns this name as the id of a
session, which clients then send with each request. The id is no secret and opens nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

import orjson
from starlette.types import Message, Send

from gateway.core.memory.mcp_tools import make_client_name
from gateway.core.request.request_headers import RawHeaders
from gateway.web.raw_headers import find_header

_SESSION_HEADER: Final = b"mcp-session-id"
# Above the ids that `with_session_id` makes. A longer one is none of them.
_MAX_SESSION_CHARS: Final = 512


def with_session_id(raw: bytes, send: Send) -> Send:
    """Returns a `send` that adds the id of a session to the answer to a handshake: the client's name, encoded."""
    client = _read_client_name(raw) if b'"initialize"' in raw else ""
    if not client:
        return send
    id = urlsafe_b64encode(client.encode()).rstrip(b"=")

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            message["headers"] = [*message["headers"], (_SESSION_HEADER, id)]
        await send(message)

    return send_with_id


def read_session_client(headers: RawHeaders) -> str:
    """Returns the name of the client that a request's session has as its id; "": the gateway has made no such id."""
    id = find_header(headers, _SESSION_HEADER)
    if not id or len(id) > _MAX_SESSION_CHARS:
        return ""
    try:
        return make_client_name(urlsafe_b64decode(id + b"=" * (-len(id) % 4)).decode(), "")
    except ValueError:
        return ""


def _read_client_name(raw: bytes) -> str:
    """Returns the name of the client in a handshake; "": the body is no handshake, or has no name that can be read."""
    try:
        message = orjson.loads(raw)
        if message["method"] != "initialize":
            return ""
        client = message["params"]["clientInfo"]
        return make_client_name(client["name"], client.get("version"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
