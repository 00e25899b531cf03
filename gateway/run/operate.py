"""What an operator may ask of the process that owns the database: named operations, JSON in, JSON out.

The command line calls them directly when nobody serves, and over the owner's admin route when somebody does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from gateway.errors import BadRequest, MemoryUnavailable
from storage.base import Keys
from storage.errors import NotFound, StoreError

__all__ = ["Operation", "key_operations", "telling"]

Operation = Callable[[Mapping[str, Any]], Awaitable[Any]]


def key_operations(keys: Keys) -> dict[str, Operation]:
    async def create(arguments: Mapping[str, Any]) -> Any:
        key, secret = await keys.create(_text(arguments, "project"), _text(arguments, "name"))
        return {**asdict(key), "secret": secret}

    async def show(_: Mapping[str, Any]) -> Any:
        return [asdict(key) for key in keys.list()]

    async def revoke(arguments: Mapping[str, Any]) -> Any:
        try:
            return asdict(await keys.revoke(_text(arguments, "key")))
        except NotFound as error:
            raise BadRequest(f"{error.message}; `mnemogate keys list` shows them", param="key") from error

    return {"keys-create": create, "keys-list": show, "keys-revoke": revoke}


def telling(operation: Operation) -> Operation:
    """The same, with what is wrong with the store said in words."""

    async def perform(arguments: Mapping[str, Any]) -> Any:
        try:
            return await operation(arguments)
        except StoreError as error:
            raise MemoryUnavailable(error.message, retry_after_s=1.0) from error

    return perform


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{name} must be a non-empty text, saw {value!r}.", param=name)
    return value
