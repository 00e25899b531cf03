"""The record of a link."""

from __future__ import annotations

from msgspec import Struct

from storage.records import Scope


class FoundLink(Struct, frozen=True):
    """A link by which a person sees a memory, and which has not ended."""

    memory_uid: str
    scope: Scope
    # When the link ends, in seconds since the epoch.
    expires_at: float
    # The names of the rights that the link gives.
    rights: tuple[str, ...]
    # When the memory was paused, in seconds since the epoch; None: the memory is not paused.
    paused_at: float | None
