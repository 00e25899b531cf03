"""What an operator may ask of the process that owns the database: named operations, JSON in, JSON out.

The command line calls them directly when nobody serves, and over the owner's admin route when somebody does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from gateway.errors import BadRequest
from storage.records import Key

__all__ = ["KeyBook", "KeyStore", "Operation", "key_operations"]

Operation = Callable[[Mapping[str, Any]], Awaitable[Any]]


class KeyBook(Protocol):
    """What admitting a request needs of gateway keys."""

    async def find(self, digest: bytes) -> Key | None:
        """The key with this SHA-256. A revoked one may be returned; its `revoked` says so."""

    async def has_keys(self) -> bool:
        """Whether a key was ever made: revoking the last one does not open the doors."""


class KeyStore(KeyBook, Protocol):
    async def create(self, project: str, name: str) -> tuple[Key, str]:
        """A new key and its secret, which is nowhere kept."""

    async def list(self) -> Sequence[Key]: ...

    async def revoke(self, key: int) -> Key | None:
        """The revoked key, or None if there is none with this id."""


def key_operations(keys: KeyStore, changed: Callable[[], None]) -> dict[str, Operation]:
    """changed: called when what a key opens may have changed."""

    async def create(arguments: Mapping[str, Any]) -> Any:
        key, secret = await keys.create(_text(arguments, "project"), _text(arguments, "name"))
        changed()
        return {**asdict(key), "secret": secret}

    async def show(_: Mapping[str, Any]) -> Any:
        return [asdict(key) for key in await keys.list()]

    async def revoke(arguments: Mapping[str, Any]) -> Any:
        wanted = _text(arguments, "key")
        matches = [key for key in await keys.list() if str(key.id) == wanted or key.prefix == wanted]
        if not matches:
            raise BadRequest(f"There is no key {wanted!r}; `mnemogate keys list` shows them.", param="key")
        if len(matches) > 1:
            raise BadRequest(f"{wanted!r} fits {len(matches)} keys: give the id.", param="key")
        await keys.revoke(matches[0].id)
        changed()
        return {"revoked": matches[0].id}

    return {"keys-create": create, "keys-list": show, "keys-revoke": revoke}


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{name} must be a non-empty text, saw {value!r}.", param=name)
    return value
