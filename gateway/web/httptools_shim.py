"""One shim for what httptools does with heads that uvicorn's own protocol does not mend.

`Upgrade`: Java's client offers HTTP/2 with every first request. A server may ignore that (RFC 9110 7.8), but httptools
takes all that follows such a head for the other protocol's, and the request's body is lost (MagicStack/httptools#124,
Kludex/uvicorn#2722, both open). Trailers: httptools reports them as headers, and uvicorn adds them to those of the
request that is being answered, although they are none (RFC 9110 6.5.1). Goes away when both are mended there.
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_UPGRADE = re.compile(rb"(^|\n)[Uu]pgrade(?=[ \t]*:)")


class HttpToolsShim(HttpToolsProtocol):
    """uvicorn's protocol for a server that speaks HTTP/1.1 and nothing else, and reads no trailers."""

    _in_body = False

    def data_received(self, data: bytes) -> None:
        # A head mostly comes with its whole body, through which it would take long to look.
        if not self._in_body and data.find(b"pgrade", 0, data.find(b"\r\n\r\n")) >= 0:
            data = _without_upgrade(data)
        super().data_received(data)
        if self._in_body:
            self.headers.clear()  # else trailers without end would fill the memory

    def on_headers_complete(self) -> None:
        self._in_body = True
        super().on_headers_complete()
        # The scope keeps the list it was given. Trailers go to this one, which nobody reads: what a proxy in front
        # lets through as a trailer may be somebody's name or key.
        self.headers = []

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()


def _without_upgrade(data: bytes) -> bytes:
    """Returns the beginning of a request that asks for no other protocol.

    The field gets the name of another one that is as long and goes no further, so that no offset moves.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\\1trailer", head) + blank + rest
