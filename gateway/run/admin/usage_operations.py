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
from msgspec.structs import replace

from gateway.errors import BadRequest
from gateway.run.admin.operation_arguments import RawArguments, read_limit, record_number
from gateway.run.usage.meter import DAY_S, Meter
from storage.sql.usage import Usage
from storage.usage_records import COUNTERS, SHOWN_COUNTERS, UsageKey, UsageQuery, UsageSum

_DEFAULT_DAYS: Final = 30
_EPOCH: Final = date(1970, 1, 1)
_MAX_NUMBER: Final = (1 << 63) - 1  # of a database's column
_FIRST_DAY: Final = (date.min - _EPOCH).days
_FILTERS: Final = ("project", "user", "key", "upstream", "model")
_NAMES: Final = ("by", "from", "to", *_FILTERS, "limit", "after")
_BILLION: Final = 1_000_000_000  # a cost is counted in billionths
# A spreadsheet takes a field that begins with one of these for a formula.
_FORMULA_SIGNS: Final = ("=", "+", "-", "@")


class UsageOperations(Struct, frozen=True):
    """Reads usage."""

    usage: Usage
    # Seconds since the epoch.
    now: Callable[[], float]
    # What this process has counted; None: it counts nothing.
    meter: Meter | None = None

    async def show(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns a page of sums, with the counters of this process up to now.

        project: the only one that the caller may see; None: all.

        Raises: BadRequest, which names the field; StoreError.
        """
        query = read_query(raw, int(self.now() // DAY_S))
        if project is not None:
            query = _within_project(query, project)
        if self.meter is not None:
            await self.meter.flush()
        found = await self.usage.sums(replace(query, limit=query.limit + 1))
        page, has_more = found[: query.limit], len(found) > query.limit
        return {
            "object": "list",
            "from": _date(query.first_day),
            "to": _date(query.last_day),
            "by": list(query.by),
            "as_of": round(self.now(), 3),
            "has_more": has_more,
            "next": _encode_cursor(page[-1].group) if has_more else None,
            "data": [_row_json(query.by, each) for each in page],
        }


def as_csv(page: Mapping[str, Any]) -> str:
    """Returns the rows of a page as CSV, with the names of the columns in the first line."""
    out = StringIO()
    lines = csv.writer(out, lineterminator="\r\n")
    columns = [*page["by"], *SHOWN_COUNTERS]
    lines.writerow(columns)
    for row in page["data"]:
        lines.writerow([_csv_field(row[name]) for name in columns])
    return out.getvalue()


def read_query(raw: RawArguments, today: int) -> UsageQuery:
    """Reads the fields of a query, each a text or None. today: days since the epoch. Raises: BadRequest."""
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
    first = _day(given, "from", max(last - _DEFAULT_DAYS + 1, _FIRST_DAY))
    if first > last:
        raise BadRequest("from must not be later than to.", param="from")
    only = [
        (name, _number(given, name) if name == "key" else str(given[name]))
        for name in _FILTERS
        if name in given
    ]
    after = _decode_cursor(str(given["after"]), by) if "after" in given else None
    return UsageQuery(by, first, last, tuple(only), after, read_limit(given))


def _within_project(query: UsageQuery, project: str) -> UsageQuery:
    """Returns a query of one project; one that asks for another project finds nothing."""
    others = [(name, value) for name, value in query.only if name != "project"]
    asks_for_another = any(name == "project" and value != project for name, value in query.only)
    # No project has an empty name.
    return replace(query, only=(*others, ("project", "" if asks_for_another else project)))


def _row_json(by: tuple[str, ...], found: UsageSum) -> dict[str, Any]:
    key = {
        name: _date(int(value)) if name == "day" else value
        for name, value in zip(by, found.group, strict=True)
    }
    return {**key, **counters_json(found.counters)}


def counters_json(counters: Iterable[int]) -> dict[str, Any]:
    """Returns the counters that are shown by their names, with the cost in the currency of the prices."""
    named: dict[str, Any] = dict(zip(COUNTERS, counters, strict=True))
    named["cost"] /= _BILLION
    return {name: named[name] for name in SHOWN_COUNTERS}


def _day(given: Mapping[str, Any], name: str, default: int) -> int:
    if name not in given:
        return default
    try:
        return (datetime.strptime(str(given[name]), "%Y-%m-%d").replace(tzinfo=UTC).date() - _EPOCH).days
    except ValueError:
        raise BadRequest(f"{name} must be a day as YYYY-MM-DD, saw {given[name]!r}.", param=name) from None


def _number(given: Mapping[str, Any], name: str) -> int:
    number = record_number(str(given[name]))
    if number is None:
        raise BadRequest(f"{name} must be a number, saw {given[name]!r}.", param=name)
    return number


def _date(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).isoformat()


def _encode_cursor(values: tuple[str | int, ...]) -> str:
    """Returns the `next` of a page that ends with the row of these values."""
    return urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def _decode_cursor(text: str, by: tuple[str, ...]) -> list[str | int]:
    """Reads the `next` of a page. Raises: BadRequest: it is not from a page by these columns."""
    try:
        values = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        values = None
    kinds = [int if name in ("day", "key") else str for name in by]
    if (
        not isinstance(values, list)
        or [type(value) for value in values] != kinds
        or not all(map(_fits, values))
    ):
        raise BadRequest("after must be the `next` of the page before, with the same `by`.", param="after")
    return values


def _fits(value: str | int) -> bool:
    """Returns whether a database has a value like this."""
    return isinstance(value, str) or abs(value) <= _MAX_NUMBER


def _csv_field(value: Any) -> Any:
    """Returns a value for CSV; a text that a spreadsheet would take for a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_SIGNS) else value
