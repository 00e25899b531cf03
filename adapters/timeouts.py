"""The bounds on the time that a call of an upstream takes."""

from __future__ import annotations

import aiohttp
from msgspec import Struct


class Timeouts(Struct, frozen=True):
    """The bounds of a call, in seconds."""

    # The bound on opening a connection: name resolution, TCP and TLS.
    connect_s: float = 10.0
    # The bound on the wait for the response's headers. It starts with the call, or with the last byte of an upload. The
    # headers of a reply that is not streamed come when the model is done. OpenAI's SDK waits as long.
    first_byte_s: float = 600.0
    # The bound on the wait for the next bytes of the body. A full buffer stops the clock, so a slow reader does not
    # count. In an upload, it is the bound on the wait until the upstream takes the next piece.
    between_chunks_s: float = 300.0
    # The bound on the time from the call to the last byte; None: no bound.
    total_s: float | None = None

    @property
    def headers_s(self) -> float:
        """The bound on the wait for the headers, in seconds."""
        if self.total_s is None:
            return self.first_byte_s
        return min(self.first_byte_s, self.total_s)

    @property
    def for_connection(self) -> aiohttp.ClientTimeout:
        """The bound on opening a connection, as aiohttp takes it."""
        return aiohttp.ClientTimeout(total=None, connect=min(self.connect_s, self.headers_s))
