"""Limits as operators set them, over REST and the command line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct

from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.operation_arguments import Arguments, RawArguments, check_names, check_project
from gateway.run.admin.requested_page import read_requested_page, render_page
from storage.errors import NotFound
from storage.records import DEFAULT_PROJECT
from storage.sql.keys import Keys
from storage.sql.limits import UsageLimits
from storage.usage_records import PERIODS, REFUSE, UNITS, UsageLimit

# The fields of a limit that is added with its key.
TERM_FIELDS: Final = ("user", "unit", "per", "most", "then")
_FIELDS: Final = ("project", "key", *TERM_FIELDS)
_CHANGE_FIELDS: Final = ("most", "then")
# The highest amount: exact as a database's number, and above all real usage.
_MAX_AMOUNT: Final = 1e15


class LimitOperations(Struct, frozen=True):
    """Lists, adds, changes and removes limits."""

    limits: UsageLimits
    keys: Keys
    # The aliases of models in the settings. A limit that is reached may pass requests on to one of these models.
    aliases: Collection[str]

    async def show_all(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns limits, the oldest first. project: the only project that the caller sees; None: all projects."""
        page = read_requested_page(raw, project)
        return render_page(page.select(await self.limits.list()), page.limit, render_limit)

    async def show(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """Returns a limit. Raises: UnknownId."""
        return render_limit(await self._get(number, project))

    async def add(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Adds a limit. project: the only project that the caller sees; None: all projects. Raises: BadRequest."""
        limit = self.parse(raw, project or DEFAULT_PROJECT)
        check_project(limit.project, project)
        if limit.key_id is not None and not any(
            (key.id, key.project) == (limit.key_id, limit.project) for key in await self.keys.list()
        ):
            raise BadRequest(f"There is no key {limit.key_id} in the project {limit.project!r}.", param="key")
        return render_limit(await self.limits.add(limit))

    def parse(self, raw: RawArguments, project: str) -> UsageLimit:
        """Returns a limit that is to be added. project: the limit's, if `raw` names none. Raises: BadRequest."""
        check_names(raw, _FIELDS)
        arguments = Arguments(raw)
        unit, per = _read_unit_and_period(raw)
        return UsageLimit(
            id=0,
            project=arguments.read_optional_text("project") or project,
            key_id=arguments.read_optional_number("key"),
            user=arguments.read_optional_id("user"),
            unit=unit,
            per=per,
            most=_read_most(raw, unit),
            then=self._read_then(raw),
        )

    async def change(self, number: int, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Changes `most` and `then` of a limit. Raises: BadRequest, UnknownId."""
        check_names(raw, _CHANGE_FIELDS)
        limit = await self._get(number, project)
        most = _read_most(raw, limit.unit) if "most" in raw else None
        then = self._read_then(raw) if "then" in raw else None
        with _map_not_found():
            await self.limits.change(number, most, then)
        return render_limit(await self._get(number, project))

    async def remove(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """Removes a limit. Raises: UnknownId."""
        await self._get(number, project)
        with _map_not_found():
            await self.limits.remove(number)
        return {"id": number, "object": "limit", "deleted": True}

    async def remove_named(self, raw: RawArguments) -> dict[str, Any]:
        """Removes the limit with the number in `limit`. Raises: BadRequest, UnknownId."""
        return await self.remove(Arguments(raw).read_number("limit"))

    async def _get(self, number: int, project: str | None) -> UsageLimit:
        for limit in await self.limits.list():
            if limit.id == number and project in (None, limit.project):
                return limit
        raise UnknownId(f"There is no limit {number}.")

    def _read_then(self, raw: RawArguments) -> str:
        then = raw.get("then", REFUSE)
        if then != REFUSE and then not in self.aliases:
            raise BadRequest(
                f"then must be 'refuse' or an alias of the settings, saw {then!r}.", param="then"
            )
        return str(then)


def render_limit(limit: UsageLimit) -> dict[str, Any]:
    """Returns a limit as it is shown."""
    most = int(limit.most) if limit.most.is_integer() else limit.most
    return {
        "id": limit.id,
        "object": "limit",
        "project": limit.project,
        "key": limit.key_id,
        "user": limit.user,
        "unit": limit.unit,
        "per": limit.per,
        "most": most,
        "then": limit.then,
    }


@contextmanager
def _map_not_found() -> Iterator[None]:
    """Raises UnknownId in place of the store's NotFound: another caller has removed the limit meanwhile."""
    try:
        yield
    except NotFound as error:
        raise UnknownId(f"{error.message[0].upper()}{error.message[1:]}.") from error


def _read_most(raw: RawArguments, unit: str) -> float:
    most: Any = raw.get("most")
    is_number = isinstance(most, int) or (unit == "cost" and isinstance(most, float))
    if not is_number or isinstance(most, bool) or not 0 <= most <= _MAX_AMOUNT:
        kind = "a number" if unit == "cost" else "a whole number"
        raise BadRequest(f"most must be {kind} from 0 on, saw {most!r}.", param="most")
    return float(most)


def _read_unit_and_period(raw: RawArguments) -> tuple[str, str | None]:
    unit = _read_choice(raw, "unit", UNITS)
    if unit == "concurrent" and raw.get("per") is not None:
        raise BadRequest("per must be left out where unit is concurrent.", param="per")
    return unit, None if unit == "concurrent" else _read_choice(raw, "per", PERIODS)


def _read_choice(raw: RawArguments, name: str, choices: Collection[str]) -> str:
    value = raw.get(name)
    if value is None:
        raise BadRequest(f"{name} is missing: one of {', '.join(choices)}.", param=name)
    if value not in choices:
        raise BadRequest(f"{name} must be one of {', '.join(choices)}, saw {value!r}.", param=name)
    return str(value)
