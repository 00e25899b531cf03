"""The bounds on the time that a call of an upstream takes."""

from __future__ import annotations

import aiohttp
from msgspec import Struct


class Timeouts(Struct, frozen=True):
    """The bounds of a call, in seconds."""

    # The time that a new connection may take: look-up of the name, TCP and TLS.
    connect_s: float = 10.0
    # From the call to the response's headers, the sending of the body included; of an upload, from its end. A whole
    # reply's first byte comes when the model is done; OpenAI's SDK waits as long.
    first_byte_s: float = 600.0
    # Silence of the upstream within the body; a slow reader does not count, since a full buffer stops the clock. Of an
    # upload, how long the upstream may take no piece.
    between_chunks_s: float = 300.0
    # From the call to the last byte; None: no bound.
    total_s: float | None = None

    @property
    def headers_s(self) -> float:
        """How long the headers may take."""
        if self.total_s is None:
            return self.first_byte_s
        return min(self.first_byte_s, self.total_s)

    @property
    def for_connection(self) -> aiohttp.ClientTimeout:
        """The bound on a new connection, in aiohttp's form."""
        return aiohttp.ClientTimeout(total=None, connect=min(self.connect_s, self.headers_s))
