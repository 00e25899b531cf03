"""The seam to a dialect whose requests may go upstream in it, with memory added; the reply passes as it comes.

Nothing is translated, so all that the upstream can do stays. Memory reads along: what the request says in messages of
chat completions tells the conversation, and what the reply says is written as its turn. (The request is described in
gateway.run.native_request.)
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from adapters.types import Event, Json
from gateway.core.turn.commands import End

# The uid of a memory, and its epoch: after a forgetting its replies are looked up anew.
MemoryKey = tuple[str, int]


class NativeReply(Struct, frozen=True):
    """A reply as far as it has come."""

    # FINISHED: it is complete; FAILED: the upstream reports a failure; CANCELLED: it would be cut here.
    end: End
    # The reply as a message; None: it has no content.
    shown_reply: Json | None = None
    # The ids by which its client may refer to it: its own and those of its parts.
    ids: tuple[str, ...] = ()


class NativeReader(Protocol):
    """Reads a reply along as it passes."""

    @property
    def is_over(self) -> bool:
        """Says whether the reply's end was among what has passed."""

    @property
    def background_id(self) -> str | None:
        """Returns the id of a response that the upstream makes in the background; None: it does not."""

    def take(self, event: Event) -> None: ...

    def take_whole(self, body: bytes) -> None: ...

    def reply(self) -> NativeReply: ...


class ReplyChange(Protocol):
    """Changes what the client gets of one reply. All raise UpstreamError: it cannot be read."""

    def event(self, event: Event) -> bytes: ...

    def unfinished(self, rest: bytes) -> bytes:
        """Returns what the client gets of an event that has no end."""

    def whole(self, body: bytes) -> bytes: ...


class Earlier(Protocol):
    """The replies that clients may refer to by the ids that an upstream has given them."""

    def path(self, memory: MemoryKey, id: str | None) -> list[Json]:
        """Returns the messages down to a reply, oldest first, as far up as they are known."""

    def reply(self, memory: MemoryKey, id: str) -> Json | None:
        """Returns the reply that has this id, or a part with it."""
