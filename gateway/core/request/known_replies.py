"""The seam to the replies that a request may refer to by the ids that an upstream has given them."""

from __future__ import annotations

from typing import Protocol

from adapters.types import Json

# The uid of a memory, and its epoch. When the epoch rises, as with a forgetting, the replies are looked up again.
MemoryKey = tuple[str, int]


class KnownReplies(Protocol):
    """The replies of memories that are known by an upstream's ids."""

    def list_path(self, memory: MemoryKey, reply_id: str | None) -> list[Json]:
        """Returns the messages down to a reply, oldest first, as far up as they are known."""

    def find_reply(self, memory: MemoryKey, reply_id: str) -> Json | None:
        """Returns the reply with an id, or with a part that has the id; None: no known reply has it."""
