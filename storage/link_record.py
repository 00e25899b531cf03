"""The record of a link."""

from __future__ import annotations

from msgspec import Struct

from storage.records import Scope


class FoundLink(Struct, frozen=True):
    """A link by which a person sees a memory, and which has not ended."""

    # The public id of the memory.
    memory_uid: str
    # The scope of the memory.
    scope: Scope
    # The time at which the link ends, in seconds since the epoch.
    expires_at: float
    # The names of the rights that the link gives.
    rights: tuple[str, ...]
    # The time at which the memory was paused, in seconds since the epoch; None: the memory is not paused.
    paused_at: float | None
