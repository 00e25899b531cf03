"""The seam by which a dialect changes a reply that otherwise passes as the upstream sent it."""

from __future__ import annotations

from adapters.types import Event


class ReplyChange:
    """Changes one reply on its way to the client; by default it changes nothing.

    Raises (all methods): UpstreamError: the reply cannot be read.
    """

    def change_event(self, event: Event) -> bytes:
        """Returns the bytes of the stream that the client gets for an event."""
        return event.raw

    def change_unfinished(self, rest: bytes) -> bytes:
        """Returns the bytes that the client gets for an event that did not come to its end."""
        return rest

    def change_body(self, body: bytes) -> bytes:
        """Returns the body that the client gets for a whole reply."""
        return body
