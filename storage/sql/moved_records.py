"""The records, besides memories, that move from one store to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from storage.records import Scope


class MovedKey(NamedTuple):
    """A gateway key without its row, which differs between stores. The order is that of the statement `keys`."""

    project: str
    name: str
    # The SHA-256 of the key's secret.
    digest: bytes
    # The first characters of the secret, which lists show.
    prefix: str
    created_at: float
    revoked_at: float | None
    # The fields of `Key` with these names.
    memory: str | None
    opens: str | None
    # When the key was last used, and when it ends, as in `Key`.
    used_at: float | None
    expires_at: float | None
    # Patterns of models, as JSON; None: the key may ask for every model.
    models: str | None
    user: str | None
    # The SHA-256 of the secret before the last rotation, valid until `old_expires_at`; None: the key was not rotated.
    old_digest: bytes | None
    old_expires_at: float | None
    # The SHA-256 with which the settings have installed the key (`Keys.install`); None: the gateway has made the key.
    installed: bytes | None


class MovedDefinition(NamedTuple):
    """A tool, a server or an identity, in the order of the statement `definitions`."""

    # The row of the definition in the source.
    id: int
    project: str
    kind: str
    uid: str
    name: str
    created_at: float
    # The body of the definition, as JSON.
    body: bytes


class ExchangeAddress(Struct, frozen=True):
    """The address of an exchange, which is the same in every store; its row is not."""

    # The scope of the exchange's memory.
    scope: Scope
    # The exchange's number in that memory.
    seq: int


class MovedVersion(Struct, frozen=True):
    """A value that a block had, with the exchanges that it came from, as far as they exist."""

    version: int
    # The earlier version that this version restored; None: it restored none.
    restores: int | None
    at: float
    origin: str
    exchange: ExchangeAddress | None
    sources: Sequence[ExchangeAddress]
    value: str


class MovedBlock(Struct, frozen=True):
    """A block that no memory owns."""

    # The row of the block in the source.
    id: int
    project: str
    # The profile of the users that share the block; "": no profile shares it.
    profile: str
    label: str
    description: str
    limit: int
    read_only: bool
    uid: str
    # The body of the block's definition; empty: the block has none.
    details: dict[str, Any]
    # The values that the block had, oldest first.
    versions: Sequence[MovedVersion]


class MovedReader(NamedTuple):
    """A sleeptime agent that reads a memory."""

    scope: Scope
    # The number of the last message that the agent has read.
    seq: int
    # When the agent read that message.
    at: float


class MovedLinks(Struct, frozen=True):
    """The links of a memory."""

    # The objects that are attached to the agent, in order.
    attached: Sequence[dict[str, Any]]
    # The sleeptime agents that read the memory.
    readers: Sequence[MovedReader]
