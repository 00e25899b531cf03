"""Keys as the command line and the page make, list and revoke them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, cast

from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.key_draft import ALL_PROJECTS, create_key, read_draft
from gateway.run.admin.list_page import ListPage, next_cursor, read_cursor
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.settings import DefaultMode
from storage.errors import NotFound, WriteConflict
from storage.listing import LAST_NUMBER
from storage.records import DEFAULT_PROJECT, OPERATOR_READ, Key
from storage.sql.keys import Keys

KeyKind = Literal["app", "metrics", "operator", "operator-read"]


class KeyRecord(Struct, frozen=True):
    """A gateway key, without its secret."""

    id: int
    name: str
    # None: the key is an operator's, for all projects.
    project: str | None
    # The first characters of the key.
    prefix: str
    kind: KeyKind
    # The memory mode of requests that ask for no mode; None: the settings decide.
    memory: str | None
    created: float
    revoked: float | None


class NewKey(KeyRecord, frozen=True, kw_only=True):
    """A key that was just made. secret: the key itself, which cannot be shown again."""

    secret: str


class KeyOperations(Struct, frozen=True):
    """Makes, lists and revokes keys."""

    keys: Keys
    # The projects that the settings name.
    projects: Collection[str] = ()

    async def create(self, raw: RawArguments) -> dict[str, Any]:
        """Creates a key. Returns it with its "secret", which cannot be shown again. Raises: BadRequest.

        The answer also says whether "is_new", so that no key and no setting named its project before, and whether
        "is_first", so that requests needed no key until now.
        """
        keys_before = await self.keys.list()
        arguments = Arguments(raw)
        expires = arguments.optional_number("expires")
        models = arguments.optional_text("models")
        fields = {
            "name": arguments.text("name"),
            "project": arguments.raw("project"),
            "memory": arguments.raw("memory"),
            "models": None if models is None else [each.strip() for each in models.split(",")],
            "user": arguments.raw("user"),
            "expires_at": None if expires is None else self.keys.expiry(expires),
            "opens": _opens(arguments),
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
        return [asdict(key) for key in await self.keys.list()]

    async def list_page(self, *, after: str | None = None, limit: int = 50) -> ListPage[KeyRecord]:
        """Returns a page of keys, the newest first. after: `next` of the page before. Raises: BadRequest."""
        before = read_cursor(after, LAST_NUMBER)
        keys = [key for key in reversed(await self.keys.list()) if key.id < before]
        items = tuple(map(_key_record, keys[:limit]))
        return ListPage(items, next_cursor(keys, limit, lambda key: str(key.id)))

    async def create_of_kind(
        self, name: str, project: str, kind: KeyKind, memory: DefaultMode | None
    ) -> NewKey:
        """Creates a key, with its secret. Raises: BadRequest.

        project: ""; for an operator's key that means all projects, else the default project.
        """
        opens = None if kind == "app" else kind
        fields = {"name": name, "project": project or None, "memory": memory, "opens": opens}
        key, secret = await create_key(self.keys, read_draft(fields))
        return NewKey(**asdict(_key_record(key)), secret=secret)

    async def revoke_by_id(self, id: int) -> KeyRecord:
        """Revokes a key by its number. Raises: UnknownId: no key in use has this number."""
        try:
            return _key_record(await self.keys.revoke_by_id(id))
        except NotFound as error:
            raise UnknownId("There is no such key in use.") from error

    async def revoke(self, raw: RawArguments) -> dict[str, Any]:
        """Revokes a key. key: its number or its name."""
        try:
            return asdict(await self.keys.revoke(Arguments(raw).text("key")))
        except (NotFound, WriteConflict) as error:
            raise BadRequest(f"{error.message}; `mnemogate keys list` shows them", param="key") from error


def _key_record(key: Key) -> KeyRecord:
    kind = cast(KeyKind, key.opens or "app")
    return KeyRecord(
        id=key.id,
        name=key.name,
        project=key.project or None,
        prefix=key.prefix,
        kind=kind,
        memory=key.memory,
        created=key.created,
        revoked=key.revoked,
    )


def _opens(arguments: Arguments) -> str | None:
    """Returns `Key.opens` for a new key. Raises: BadRequest."""
    opened = [name for name in ("metrics", "operator") if arguments.flag(name)]
    if len(opened) > 1:
        raise BadRequest("A key opens /metrics or the page, not both.", param="operator")
    if arguments.flag("read") and "operator" not in opened:
        raise BadRequest("Only a key of an operator can be one that changes nothing.", param="read")
    if not opened:
        return None
    return OPERATOR_READ if arguments.flag("read") else opened[0]
