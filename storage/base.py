"""The seam to a store, grouped by what is stored. One Store serves one process; SQLite's is the first.

Reads are synchronous where they are short and indexed: for a local file that costs less than a thread hop.
Every method raises errors of storage.errors and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.records import Agent, Block, Key, Passage, Scope

__all__ = ["Agents", "Blocks", "Health", "Keys", "Passages", "Store"]


@dataclass(frozen=True, slots=True)
class Health:
    """How the store is.

    status: ok, or the `status` word of the error that stops it (full, readonly, locked, corrupt, broken), slow, closed.
    error: the last failure in words, kept after recovery; failures: how many there were.
    waiting, waiting_bytes: writes not yet on disk.
    """

    status: str
    error: str | None = None
    failures: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    wal_bytes: int = 0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Keys(Protocol):
    async def create(self, project: str, name: str) -> tuple[Key, str]:
        """A new key and its plain text, which is never to be had again."""

    async def revoke(self, name_or_id: str) -> Key:
        """Raises: NotFound."""

    def list(self) -> tuple[Key, ...]: ...

    def find(self, presented: str) -> Key | None:
        """The key that was presented, unless it is revoked or was never ours."""

    def has_any(self) -> bool:
        """Whether a key was ever created, revoked ones included."""


class Agents(Protocol):
    def find(self, scope: Scope) -> Agent | None:
        """Cached: id, uid, secret and epoch are to be relied on; next_seq and indexed_seq are as old as the entry."""

    def draft(self, scope: Scope) -> Agent:
        """An agent not yet stored (id 0); the same one for all requests of the scope until it is."""

    def remember(self, agent: Agent) -> None: ...

    def forget(self, scope: Scope) -> None:
        """Drops it from the cache, so that it is read anew."""


class Blocks(Protocol):
    def load(self, agent: int) -> tuple[Block, ...]: ...

    async def write(
        self, block: int, version: int, value: str, *, at: float, origin: str, sources: Sequence[int] = ()
    ) -> Block:
        """Raises: Conflict when it is no longer at that version, NotFound."""

    async def undo(self, block: int, *, at: float) -> Block:
        """Raises: NotFound when there is nothing left to undo."""


class Passages(Protocol):
    def list(self, agent: int, *, after: int = 0, limit: int = 100) -> tuple[Passage, ...]: ...

    async def insert(self, agent: int, text: str, *, at: float, sources: Sequence[int] = ()) -> Passage: ...


class Store(Protocol):
    @property
    def keys(self) -> Keys: ...

    @property
    def agents(self) -> Agents: ...

    @property
    def blocks(self) -> Blocks: ...

    @property
    def passages(self) -> Passages: ...

    @property
    def health(self) -> Health: ...

    async def drain(self, timeout_s: float) -> bool:
        """Waits until everything given to the store is on disk; False when that took too long."""

    async def close(self) -> None: ...
