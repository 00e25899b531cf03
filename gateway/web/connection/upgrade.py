"""Keeps requests that offer another protocol readable.

Java's client offers HTTP/2 with every first request. A server may ignore that (RFC 9110 7.8), but llhttp takes all that
follows such a head for the other protocol's, and the request's body is lost (MagicStack/httptools#124). A header that
comes in two pieces, or behind another request, is not seen here: such a request is the last of its connection, since
what was its body would be read as the next one.
"""

from __future__ import annotations

import re

# The handshake of the Responses API; every other path is a request's whatever it offers.
_HANDSHAKE = re.compile(rb"GET /v1(?:/responses)?/?[ ?]")
_WEBSOCKET = re.compile(rb"\nupgrade[ \t]*:[ \t]*websocket[ \t]*(?=\r|$)", re.I)
_UPGRADE = re.compile(rb"(^|\n)upgrade(?=[ \t]*:)", re.I)


def without_upgrade(data: bytes, begun: bytes | bytearray) -> bytes:
    """Returns the beginning of a request so that it asks for no other protocol than a WebSocket's.

    begun: earlier pieces of the same head. The field gets the name of another one that is as long and goes no further,
    so that no offset moves.
    """
    # A head mostly comes with its whole body, through which it would take long to look.
    if b"upgrade" not in data[: data.find(b"\r\n\r\n")].lower():
        return data
    head, blank, rest = data.partition(b"\r\n\r\n")
    if _HANDSHAKE.match(begun + head) and _WEBSOCKET.search(begun + head):
        return data
    return _UPGRADE.sub(b"\\1trailer", head) + blank + rest
