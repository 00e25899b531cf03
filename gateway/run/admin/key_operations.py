"""Keys as the command line and the page make, list and revoke them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast, get_args

from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.operation_arguments import Arguments, RawArguments, read_cursor
from gateway.run.admin.page_records import KeyKind, KeyPage, KeyRecord, NewKey
from gateway.settings import DefaultMode
from storage.errors import NotFound, WriteConflict
from storage.listing import LAST_NUMBER
from storage.records import OPERATOR, OPERATOR_READ, Key
from storage.sql.keys import DEFAULT_PROJECT, Keys

# The project of keys of operators that see all.
ALL_PROJECTS = ""
OPENS_PAGE = (OPERATOR, OPERATOR_READ)
# The names of the keys in the settings, by which a new one takes the place of the one before.
SETTINGS_KEY, SETTINGS_OPERATOR_KEY = "server.key", "server.operator_key"


class KeyOperations(Struct, frozen=True):
    """Makes, lists and revokes keys."""

    keys: Keys
    # Those that the settings name.
    projects: Collection[str] = ()

    async def create(self, raw: RawArguments) -> dict[str, Any]:
        """Creates a key. Returns it with its "secret", which cannot be shown again. Raises: BadRequest.

        "is_new": nothing named its project before. "is_first": requests needed no key until now.
        """
        listed = await self.keys.list()
        key, secret = await self._create(Arguments(raw))
        known = {ALL_PROJECTS, DEFAULT_PROJECT, *self.projects, *(each.project for each in listed)}
        return {
            **asdict(key),
            "secret": secret,
            "is_new": key.project not in known,
            "is_first": all(each.is_operator for each in listed) and not key.is_operator,
        }

    async def _create(self, arguments: Arguments) -> tuple[Key, str]:
        """Creates a key. Returns it with its secret. Raises: BadRequest."""
        memory = arguments.optional_text("memory")
        if memory is not None and memory not in get_args(DefaultMode):
            raise BadRequest(f"memory must be on, read or off, saw {memory!r}.", param="memory")
        opens = _opens(arguments)
        project = arguments.optional_text("project") or default_project(opens)
        name = arguments.text("name")
        check_name(name)
        expires, models = arguments.optional_number("expires"), arguments.optional_text("models")
        user = arguments.optional_user()
        check_opens(opens, memory=memory, models=models, user=user)
        return await self.keys.create(
            project,
            name,
            memory,
            opens,
            expires=None if expires is None else self.keys.expiry(expires),
            models=None if models is None else tuple(each.strip() for each in models.split(",")),
            user=user,
        )

    async def show_all(self, _: RawArguments) -> list[dict[str, Any]]:
        return [asdict(key) for key in await self.keys.list()]

    async def page(self, *, after: str | None = None, limit: int = 50) -> KeyPage:
        """Returns a page of keys, the newest first. after: `next` of the page before. Raises: BadRequest."""
        before = read_cursor(after, LAST_NUMBER)
        found = [key for key in reversed(await self.keys.list()) if key.id < before]
        shown = tuple(map(_key_record, found[:limit]))
        return KeyPage(shown, str(shown[-1].id) if len(found) > limit else None)

    async def create_of_kind(
        self, name: str, project: str, kind: KeyKind, memory: DefaultMode | None
    ) -> NewKey:
        """Creates a key, with its secret. Raises: BadRequest.

        project: "" stands for all, of an operator's key, else for the default.
        """
        arguments = Arguments(
            {
                "name": name,
                "project": project or None,
                "memory": memory,
                "metrics": kind == "metrics",
                "operator": kind in OPENS_PAGE,
                "read": kind == OPERATOR_READ,
            }
        )
        key, secret = await self._create(arguments)
        return NewKey(**asdict(_key_record(key)), secret=secret)

    async def revoke_by_id(self, id: int) -> KeyRecord:
        """Revokes a key by its number. Raises: UnknownId: there is none in use."""
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
        key.id, key.name, key.project or None, key.prefix, kind, key.memory, key.created, key.revoked
    )


def check_opens(opens: str | None, **bounds: object) -> None:
    """Checks that a key has no bounds of replies where it asks for none. Raises: BadRequest.

    opens: what it opens in place of replies; None: replies.
    bounds: by their fields; None: the key has no such bound.
    """
    for field, value in bounds.items():
        if opens is not None and value is not None:
            raise BadRequest(f"A key that opens metrics or /v1/manage has no {field}.", param=field)


def check_name(name: str, before: str = "") -> None:
    """Checks a key's name. before: the one that it has. Raises: BadRequest: one of the two is of the settings' keys."""
    for each in (SETTINGS_KEY, SETTINGS_OPERATOR_KEY):
        if name != before and each in (name, before):
            raise BadRequest(
                f"The name {each} is that of the key in the settings, and of no other.", param="name"
            )


def default_project(opens: str | None) -> str:
    """Returns the project of a key that names none."""
    return ALL_PROJECTS if opens in OPENS_PAGE else DEFAULT_PROJECT


def _opens(arguments: Arguments) -> str | None:
    """Returns all that a new key opens, as `Key.opens`. Raises: BadRequest: it cannot open both."""
    wanted = [name for name in ("metrics", "operator") if arguments.flag(name)]
    if len(wanted) > 1:
        raise BadRequest("A key opens /metrics or the page, not both.", param="operator")
    if arguments.flag("read") and "operator" not in wanted:
        raise BadRequest("Only a key of an operator can be one that changes nothing.", param="read")
    if wanted and "memory" in arguments:
        raise BadRequest("A key that opens metrics or the page has no memory.", param="memory")
    if not wanted:
        return None
    return OPERATOR_READ if arguments.flag("read") else wanted[0]
