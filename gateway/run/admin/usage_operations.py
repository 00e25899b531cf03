"""Usage as operators read it: sums of counters by day, project, user, key, upstream or model."""

from __future__ import annotations

import csv
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from typing import Any, Final

import orjson
from msgspec import Struct

from gateway.errors import BadRequest
from gateway.run.admin.operation_arguments import RawArguments, limit_of
from gateway.run.usage.meter import DAY_S, Meter
from storage.sql.usage import Usage
from storage.usage_records import COUNTERS, UsageKey, UsageQuery, UsageSum

_DEFAULT_DAYS: Final = 30
_EPOCH: Final = date(1970, 1, 1)
_FILTERS: Final = ("project", "user", "key", "upstream", "model")
_NAMES: Final = ("by", "from", "to", *_FILTERS, "limit", "after")
_BILLION: Final = 1_000_000_000
# A spreadsheet takes a field that begins with one of these for a formula.
_FORMULA: Final = ("=", "+", "-", "@")


class UsageOperations(Struct, frozen=True):
    """Reads usage."""

    usage: Usage
    # Seconds since the epoch.
    now: Callable[[], float]
    # What this process has counted; None: it counts nothing.
    meter: Meter | None = None

    async def show(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns a page of sums. project: the only one whose usage is shown; None: all are.

        Raises: BadRequest, which names the field; StoreError.
        """
        query = read_query(raw, int(self.now() // DAY_S))
        if project is not None:
            if ("project", project) not in query.only and any(name == "project" for name, _ in query.only):
                query = _with(query, ("project", ""))  # no project has this name
            else:
                query = _with(query, ("project", project))
        if self.meter is not None:
            await self.meter.settle()
        found = await self.usage.sums(_asking_for(query, query.limit + 1))
        page, has_more = found[: query.limit], len(found) > query.limit
        return {
            "object": "list",
            "from": _date(query.first),
            "to": _date(query.last),
            "by": list(query.by),
            "as_of": round(self.now(), 3),
            "has_more": has_more,
            "next": _packed(page[-1].by) if has_more else None,
            "data": [_shown(query.by, each) for each in page],
        }


def as_csv(page: Mapping[str, Any]) -> str:
    """Returns the rows of a page, with their names in the first line."""
    out = StringIO()
    lines = csv.writer(out, lineterminator="\r\n")
    lines.writerow([*page["by"], *COUNTERS])
    for row in page["data"]:
        lines.writerow([_field(row[name]) for name in (*page["by"], *COUNTERS)])
    return out.getvalue()


def read_query(raw: RawArguments, today: int) -> UsageQuery:
    """Reads the fields of a question, each a text or None. today: days since the epoch. Raises: BadRequest."""
    given = {name: value for name, value in raw.items() if value is not None}
    for name in given:
        if name not in _NAMES:
            raise BadRequest(f"There is no parameter {name!r}: there are {', '.join(_NAMES)}.", param=name)
    by = tuple(str(given.get("by", "day")).split(","))
    for name in by:
        if name not in UsageKey._fields:
            known = ", ".join(UsageKey._fields)
            raise BadRequest(f"by names columns of {known}, saw {name!r}.", param="by")
    if len(set(by)) < len(by):
        raise BadRequest("by must name each column once.", param="by")
    last = _day(given, "to", today)
    first = _day(given, "from", last - _DEFAULT_DAYS + 1)
    if first > last:
        raise BadRequest("from must not be later than to.", param="from")
    only = [
        (name, _number(given, name) if name == "key" else str(given[name]))
        for name in _FILTERS
        if name in given
    ]
    after = _unpacked(str(given["after"]), by) if "after" in given else None
    return UsageQuery(by, first, last, tuple(only), after, limit_of(given))


def _with(query: UsageQuery, only: tuple[str, str]) -> UsageQuery:
    rest = [each for each in query.only if each[0] != only[0]]
    return UsageQuery(query.by, query.first, query.last, (*rest, only), query.after, query.limit)


def _asking_for(query: UsageQuery, limit: int) -> UsageQuery:
    return UsageQuery(query.by, query.first, query.last, query.only, query.after, limit)


def _shown(by: tuple[str, ...], found: UsageSum) -> dict[str, Any]:
    values = [_date(int(value)) if name == "day" else value for name, value in zip(by, found.by, strict=True)]
    return {**dict(zip(by, values, strict=True)), **counters_json(found.counters)}


def counters_json(counters: Iterable[int]) -> dict[str, Any]:
    """Returns counters by their names, with the cost in the currency of the prices."""
    shown: dict[str, Any] = dict(zip(COUNTERS, counters, strict=True))
    return {**shown, "cost": shown["cost"] / _BILLION}


def _day(given: Mapping[str, Any], name: str, default: int) -> int:
    if name not in given:
        return default
    try:
        return (datetime.strptime(str(given[name]), "%Y-%m-%d").replace(tzinfo=UTC).date() - _EPOCH).days
    except ValueError:
        raise BadRequest(f"{name} must be a day as YYYY-MM-DD, saw {given[name]!r}.", param=name) from None


def _number(given: Mapping[str, Any], name: str) -> int:
    text = str(given[name])
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest(f"{name} must be a number, saw {given[name]!r}.", param=name)
    return int(text)


def _date(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).isoformat()


def _packed(values: tuple[str | int, ...]) -> str:
    return urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def _unpacked(text: str, by: tuple[str, ...]) -> list[str | int]:
    """Reads the `next` of a page. Raises: BadRequest: it is of no page by these columns."""
    try:
        values = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        values = None
    kinds = [int if name in ("day", "key") else str for name in by]
    if not isinstance(values, list) or [type(value) for value in values] != kinds:
        raise BadRequest("after must be the `next` of the page before, with the same `by`.", param="after")
    return values


def _field(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
