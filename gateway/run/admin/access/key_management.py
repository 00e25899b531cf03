"""Keys over REST: operators create, change, rotate and revoke them, and a key's holder sees its limits and usage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from gateway.core.dates import DAY_S
from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.access.key_draft import check_opens, create_key, read_draft, with_fields
from gateway.run.admin.operation_arguments import Arguments, RawArguments, check_names
from gateway.run.admin.requested_page import read_requested_page, render_page
from gateway.run.admin.usage.limit_operations import TERM_FIELDS, LimitOperations, render_limit
from gateway.run.admin.usage.usage_operations import render_counters
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.meter import Meter
from storage.errors import NotFound
from storage.key_record import Key
from storage.sql.keys import Keys
from storage.sql.usage import Usage
from storage.usage_records import COUNTERS, UsageQuery

# The fields with which a key is changed.
_CHANGE_FIELDS: Final = ("name", "memory", "models", "user", "expires_at")
# The fields with which a key is added.
_ADD_FIELDS: Final = (*_CHANGE_FIELDS, "project", "opens", "limits")
# The seconds for which the secret before a rotation is good by default: a day.
_OVERLAP_S: Final = 86_400
# The most such seconds: 30 days.
_MAX_OVERLAP_S: Final = 2_592_000


class KeyManagement(Struct, frozen=True):
    """Manages keys for a caller.

    The parameter `project` of its methods is the only project that the caller sees; None: all projects.
    """

    keys: Keys
    limits: LimitOperations

    async def show_all(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns all keys, revoked and expired ones too, the oldest first."""
        page = read_requested_page(raw, project)
        return render_page(page.select(await self.keys.list()), page.limit, _render_key)

    async def show(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """Returns a key. Raises: UnknownId."""
        return _render_key(await self._get(number, project))

    async def add(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Creates a key with its limits. Returns it with its secret. Raises: BadRequest, UnknownId, NotAllowed."""
        check_names(raw, _ADD_FIELDS)
        draft = read_draft(raw, project)
        limits = self._read_limits(raw, draft)
        key, secret = await create_key(self.keys, draft)
        answer = {**_render_key(key), "secret": secret}
        key_fields = {"key": key.id, "project": key.project}
        added_limits = [await self.limits.add({**limit, **key_fields}) for limit in limits]
        return {**answer, "limits": added_limits} if added_limits else answer

    def _read_limits(self, raw: RawArguments, key: Key) -> list[dict[str, Any]]:
        """Returns the limits of a key that is to be created. Raises: BadRequest."""
        limits = raw.get("limits") or []
        if not isinstance(limits, list) or not all(isinstance(limit, dict) for limit in limits):
            raise BadRequest("limits must be a list of objects.", param="limits")
        check_opens(key.opens, limits=limits or None)
        # They are checked before the key is created, and added after it.
        for limit in limits:
            check_names(limit, TERM_FIELDS)
            self.limits.parse(limit, key.project)
        return limits

    async def change(self, number: int, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Changes a key in use; null removes a bound. Raises: BadRequest, UnknownId."""
        check_names(raw, _CHANGE_FIELDS)
        await self._get(number, project)
        try:
            # The key is read where it is written, so that of two changes none takes back the other's.
            changed_key = await self.keys.change(number, lambda key: with_fields(raw, key))
        except NotFound as error:
            raise UnknownId(f"There is no key {number} in use.") from error
        return _render_key(changed_key)

    async def rotate(self, number: int, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Gives a key another secret. Returns the key with that secret. Raises: BadRequest, UnknownId."""
        check_names(raw, ("overlap_s",))
        overlap_s = raw.get("overlap_s", _OVERLAP_S)
        if type(overlap_s) is not int or not 0 <= overlap_s <= _MAX_OVERLAP_S:
            raise BadRequest(
                f"overlap_s must be from 0 to {_MAX_OVERLAP_S}, saw {overlap_s!r}.", param="overlap_s"
            )
        if self.keys.has_expired(await self._get(number, project)):
            raise BadRequest(
                f"The key {number} has expired: change its expires_at first (PATCH /v1/manage/keys/{number}), "
                "or make another.",
                param="expires_at",
            )
        try:
            key, secret = await self.keys.rotate(number, overlap_s)
        except NotFound as error:
            raise UnknownId(f"There is no key {number} in use.") from error
        return {**_render_key(key), "secret": secret}

    async def rotate_named(self, raw: RawArguments) -> dict[str, Any]:
        """Gives the key `key` another secret. Raises: BadRequest, UnknownId."""
        options = {name: value for name, value in raw.items() if name != "key" and value is not None}
        return await self.rotate(Arguments(raw).read_number("key"), options)

    async def remove(self, number: int, *, project: str | None = None) -> dict[str, Any]:
        """Revokes a key. A key that is revoked already stays revoked. Raises: UnknownId."""
        await self._get(number, project)
        # The key may be revoked already.
        with suppress(NotFound):
            await self.keys.revoke_by_id(number)
        return {"id": number, "object": "key", "deleted": True}

    async def _get(self, number: int, project: str | None) -> Key:
        for key in await self.keys.list():
            if key.id == number and project in (None, key.project):
                return key
        raise UnknownId(f"There is no key {number}.")


class KeyReport(Struct, frozen=True):
    """Shows a key's holder its rights, and its usage."""

    usage: Usage
    meter: Meter
    limiter: Limiter
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    async def show(self, key: Key, user: str) -> dict[str, Any]:
        """Returns a key with its limits and its usage. Raises: StoreError.

        user: the only user with limits and usage that count; "": all users.
        """
        await self.meter.flush()
        today = int(self.now() // DAY_S)
        month_start = today - datetime.fromtimestamp(self.now(), UTC).day + 1
        states = await self.limiter.list_states(key.project, key.id, user)
        limits = [
            {
                **{
                    name: render_limit(state.limit)[name]
                    for name in ("id", "unit", "per", "user", "most", "then")
                },
                "used": state.used,
                "remaining": state.remaining,
                "resets_at": state.resets_at,
            }
            for state in states
        ]
        usage = {
            "today": await self._sum(key, user, today, today),
            "month": await self._sum(key, user, month_start, today),
        }
        return {**_render_key(key), "limits": limits, "usage": usage}

    async def _sum(self, key: Key, user: str, first_day: int, last_day: int) -> dict[str, Any]:
        """Returns the usage of a key from one day to another, both included; in days since the epoch."""
        filters: list[tuple[str, str | int]] = [("project", key.project), ("key", key.id)]
        if user:
            filters.append(("user", user))
        sums = await self.usage.load_sums(UsageQuery((), first_day, last_day, tuple(filters)))
        return render_counters(sums[0].counters if sums else [0] * len(COUNTERS))


def _render_key(key: Key) -> dict[str, Any]:
    """Returns a key as it is shown, without its secret."""
    return {
        "id": key.id,
        "object": "key",
        "name": key.name,
        "project": key.project or None,
        "prefix": key.prefix,
        "memory": key.memory,
        "models": None if key.models is None else list(key.models),
        "user": key.user,
        "opens": key.opens,
        "created_at": int(key.created),
        "expires_at": _render_seconds(key.expires),
        "revoked_at": _render_whole_seconds(key.revoked),
        "rotated_until": _render_whole_seconds(key.rotated_until),
    }


def _render_seconds(seconds: float | None) -> float | None:
    """Returns whole seconds as an int: the database returns 1.0 for the 1 that was sent."""
    return int(seconds) if seconds is not None and float(seconds).is_integer() else seconds


def _render_whole_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
