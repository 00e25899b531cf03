"""The records, besides memories, that move from one store to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from storage.records import Scope


class MovedKey(NamedTuple):
    """A gateway key without its row, which differs between stores. The order is that of the statement `keys`."""

    # The project of the key.
    project: str
    # The name that the key was given.
    name: str
    # The SHA-256 of the key's secret.
    digest: bytes
    # The first characters of the secret, which lists show.
    prefix: str
    # The time at which the key was made, in seconds since the epoch.
    created_at: float
    # The time at which the key was revoked, in seconds since the epoch; None: the key is in use.
    revoked_at: float | None
    # The mode of memory, as `Key.memory`.
    memory: str | None
    # The part of the gateway that the key opens, as `Key.opens`.
    opens: str | None
    # The time at which the key was last used, in seconds since the epoch; None: never.
    used_at: float | None
    # The time from which on the key opens nothing, in seconds since the epoch; None: the key does not expire.
    expires_at: float | None
    # Patterns of models, as JSON; None: the key may ask for every model.
    models: str | None
    # The user of all requests with the key, as `Key.user`.
    user: str | None
    # The SHA-256 of the secret before the last rotation, valid until `old_expires_at`; None: the key was not rotated.
    old_digest: bytes | None
    # The time until which the secret before the last rotation is valid, in seconds since the epoch; None: the key was
    # not rotated.
    old_expires_at: float | None
    # The SHA-256 with which the settings have installed the key (`Keys.install`); None: the gateway has made the key.
    installed: bytes | None


class MovedDefinition(NamedTuple):
    """A tool, a server or an identity, in the order of the statement `definitions`."""

    # The row of the definition in the source.
    id: int
    # The project of the definition.
    project: str
    # The kind of the object, a `DefinitionKind`.
    kind: str
    # The public id.
    uid: str
    # The name of the object.
    name: str
    # The time of the first change, in seconds since the epoch.
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

    # The number of the version.
    version: int
    # The number of the earlier version that this version restored; None: it restored none.
    restores: int | None
    # The time at which the value was written, in seconds since the epoch.
    at: float
    # The writer of the value, as `Revision.origin`.
    origin: str
    # The exchange in which the value was written; None: there is none, or it is gone.
    exchange: ExchangeAddress | None
    # The exchanges that the value came from.
    sources: Sequence[ExchangeAddress]
    # The text of the value.
    value: str


class MovedBlock(Struct, frozen=True):
    """A block that no memory owns."""

    # The row of the block in the source.
    id: int
    # The project of the block.
    project: str
    # The profile of the users that share the block; "": no profile shares it.
    profile: str
    # The label of the block.
    label: str
    # The purpose of the block, as models read it.
    description: str
    # The most characters of the value.
    limit: int
    # True if models and agents cannot change the value.
    read_only: bool
    # The public id of the block.
    uid: str
    # The body of the block's definition; empty: the block has none.
    details: dict[str, Any]
    # The values that the block had, oldest first.
    versions: Sequence[MovedVersion]


class MovedReader(NamedTuple):
    """A sleeptime agent that reads a memory."""

    # The scope of the agent's own memory.
    scope: Scope
    # The number of the last message that the agent has read.
    seq: int
    # The time at which the agent read that message, in seconds since the epoch.
    at: float


class MovedLinks(Struct, frozen=True):
    """The links of a memory."""

    # The objects that are attached to the agent, in order.
    attached: Sequence[dict[str, Any]]
    # The sleeptime agents that read the memory.
    readers: Sequence[MovedReader]
