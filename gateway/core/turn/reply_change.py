"""The seam by which a dialect changes a reply that otherwise passes as the upstream sent it."""

from __future__ import annotations

from typing import Protocol

from adapters.types import Event


class ReplyChange(Protocol):
    """Changes what the client gets of one reply. All methods raise UpstreamError: the reply cannot be read."""

    def event(self, event: Event) -> bytes:
        """Returns what the client gets of an event, as bytes of the stream."""

    def unfinished(self, rest: bytes) -> bytes:
        """Returns what the client gets of an event that did not come to its end."""

    def change_body(self, body: bytes) -> bytes:
        """Returns the body that the client gets of a whole reply."""
