"""Keys as the command line makes, lists and revokes them. (The page: key_records.py; over REST: key_management.py.)"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import BadRequest
from gateway.run.admin.access.key_draft import ALL_PROJECTS, create_key, read_draft
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from storage.errors import NotFound, WriteConflict
from storage.key_record import OPERATOR_READ
from storage.records import DEFAULT_PROJECT
from storage.sql.keys import Keys


class KeyOperations(Struct, frozen=True):
    """Makes, lists and revokes keys."""

    keys: Keys
    # The projects that the settings name.
    projects: Collection[str] = ()

    async def create(self, raw: RawArguments) -> dict[str, Any]:
        """Creates a key. Returns it with its "secret", which cannot be shown again. Raises: BadRequest.

        The answer also has "is_new" (no key and no setting named its project before) and "is_first" (requests needed no
        key until now).
        """
        keys_before = await self.keys.list()
        arguments = Arguments(raw)
        expires = arguments.read_optional_number("expires")
        models = arguments.read_optional_text("models")
        fields = {
            "name": arguments.read_text("name"),
            "project": arguments.read_raw("project"),
            "memory": arguments.read_raw("memory"),
            "models": None if models is None else [each.strip() for each in models.split(",")],
            "user": arguments.read_raw("user"),
            "expires_at": None if expires is None else self.keys.compute_expiry(expires),
            "opens": _read_opens(arguments),
        }
        key, secret = await create_key(self.keys, read_draft(fields))
        projects = {ALL_PROJECTS, DEFAULT_PROJECT, *self.projects, *(each.project for each in keys_before)}
        return {
            **asdict(key),
            "secret": secret,
            "is_new": key.project not in projects,
            "is_first": all(each.is_operator for each in keys_before) and not key.is_operator,
        }

    async def show_all(self, _: RawArguments) -> list[dict[str, Any]]:
        """Returns all keys, without their secrets."""
        return [asdict(key) for key in await self.keys.list()]

    async def revoke(self, raw: RawArguments) -> dict[str, Any]:
        """Revokes a key. The argument `key` is its number or its name."""
        try:
            return asdict(await self.keys.revoke(Arguments(raw).read_text("key")))
        except (NotFound, WriteConflict) as error:
            raise BadRequest(f"{error.message}; `mnemogate keys list` shows them", param="key") from error


def _read_opens(arguments: Arguments) -> str | None:
    """Returns `Key.opens` for a new key. Raises: BadRequest."""
    kinds = [name for name in ("metrics", "operator") if arguments.read_flag(name)]
    if len(kinds) > 1:
        raise BadRequest("A key opens /metrics or the page, not both.", param="operator")
    if arguments.read_flag("read") and "operator" not in kinds:
        raise BadRequest("Only a key of an operator can be one that changes nothing.", param="read")
    if not kinds:
        return None
    return OPERATOR_READ if arguments.read_flag("read") else kinds[0]
