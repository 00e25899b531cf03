"""The seam by which a dialect reads the reply to a native request as it passes, for the store.

The client gets the reply untranslated, with all that the upstream can do. (The request is described in
gateway.run.native_request.)
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from adapters.types import Event, Json
from gateway.core.turn.commands import End


class NativeReply(Struct, frozen=True):
    """A reply as far as it has come."""

    # FINISHED: the reply is complete; FAILED: the upstream reports a failure; CANCELLED: the reply would be cut here.
    end: End
    # The reply as a message; None: the reply has no content.
    shown_reply: Json | None = None
    # The ids by which the client may refer to the reply: the reply's own id, and the ids of its parts.
    ids: tuple[str, ...] = ()


class NativeReader(Protocol):
    """Reads one reply: the events of a stream as they come, or the body of a whole reply."""

    @property
    def is_over(self) -> bool:
        """True if the reply's end has been read."""

    @property
    def background_id(self) -> str | None:
        """The id of a response that the upstream makes in the background; None: it makes no such response."""

    def read(self, event: Event) -> None:
        """Reads the next event of a stream. An event after the reply's end is ignored."""

    def read_whole(self, body: bytes) -> None:
        """Reads a whole reply."""

    def make_reply(self) -> NativeReply:
        """Returns the reply as far as it has been read, at any time; a stream without an end is CANCELLED."""
