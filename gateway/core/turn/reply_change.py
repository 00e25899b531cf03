"""The seam by which a dialect changes a reply that otherwise passes as the upstream sent it."""

from __future__ import annotations

from adapters.types import Event


class ReplyChange:
    """Changes what the client gets of one reply; by default nothing.

    All methods raise UpstreamError: the reply cannot be read.
    """

    def event(self, event: Event) -> bytes:
        """Returns what the client gets of an event, as bytes of the stream."""
        return event.raw

    def unfinished(self, rest: bytes) -> bytes:
        """Returns what the client gets of an event that did not come to its end."""
        return rest

    def change_body(self, body: bytes) -> bytes:
        """Returns the body that the client gets of a whole reply."""
        return body
