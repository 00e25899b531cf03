"""Keys as the page makes, lists and revokes them."""

from __future__ import annotations

from typing import Literal, cast

from msgspec import Struct
from msgspec.structs import asdict

from gateway.core.nul import check_no_nul
from gateway.errors import UnknownId
from gateway.run.admin.access.key_draft import create_key, read_draft
from gateway.run.admin.list_page import ListPage, make_next_cursor, parse_cursor
from gateway.settings import DefaultMode
from storage.errors import NotFound
from storage.key_record import Key
from storage.listing import LAST_NUMBER
from storage.sql.keys import Keys

KeyKind = Literal["app", "metrics", "operator", "operator-read"]


class KeyRecord(Struct, frozen=True):
    """A gateway key, without its secret."""

    id: int
    # The name in lists of keys.
    name: str
    # The project that the key opens; None: the key is an operator's, for all projects.
    project: str | None
    # The first characters of the key.
    prefix: str
    # The routes that it opens.
    kind: KeyKind
    # The memory mode of requests that ask for no mode; None: the settings decide.
    memory: str | None
    # The time at which it was made, in seconds since the epoch.
    created: float
    # The time at which it was revoked; None: the key is in use.
    revoked: float | None


class NewKey(KeyRecord, frozen=True, kw_only=True):
    """A key that was just made."""

    # The key itself, which cannot be shown again.
    secret: str


class KeyRecords(Struct, frozen=True):
    """Makes, lists and revokes keys, each as a record."""

    keys: Keys

    async def list_page(self, *, after: str | None = None, limit: int = 50) -> ListPage[KeyRecord]:
        """Returns a page of keys, the newest first. after: `next` of the page before. Raises: BadRequest."""
        before = parse_cursor(after, LAST_NUMBER)
        keys = [key for key in reversed(await self.keys.list()) if key.id < before]
        items = tuple(map(_make_key_record, keys[:limit]))
        return ListPage(items, make_next_cursor(keys, limit, lambda key: str(key.id)))

    async def are_needed(self) -> bool:
        """Returns whether requests need a key: they do from the first key on that is not an operator's."""
        return any(not key.is_operator for key in await self.keys.list())

    async def create(self, name: str, project: str, kind: KeyKind, memory: DefaultMode | None) -> NewKey:
        """Creates a key, with its secret. Raises: BadRequest.

        project: "" means all projects for an operator's key, else the default project.
        """
        opens = None if kind == "app" else kind
        fields = {"name": name, "project": project or None, "memory": memory, "opens": opens}
        check_no_nul(fields)
        key, secret = await create_key(self.keys, read_draft(fields))
        return NewKey(**asdict(_make_key_record(key)), secret=secret)

    async def revoke(self, id: int) -> KeyRecord:
        """Revokes a key by its number. Raises: UnknownId: no key in use has this number."""
        try:
            return _make_key_record(await self.keys.revoke_by_id(id))
        except NotFound as error:
            raise UnknownId("There is no such key in use.") from error


def _make_key_record(key: Key) -> KeyRecord:
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
