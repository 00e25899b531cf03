"""Usage as operators read it: sums of counters by day, project, user, key, upstream or model."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.dates import DAY_S
from gateway.core.usage.limit_rules import BILLION
from gateway.errors import BadRequest
from gateway.run.admin.list_page import parse_record_number
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.run.admin.requested_page import read_limit
from gateway.run.usage.meter import Meter
from storage.sql.usage import Usage
from storage.usage_records import COUNTERS, SHOWN_COUNTERS, UsageKey, UsageQuery, UsageSum

# The days of a query that names no first day.
_DEFAULT_DAYS: Final = 30
_EPOCH: Final = date(1970, 1, 1)
# The largest number in a column of a database.
_MAX_NUMBER: Final = (1 << 63) - 1
# The first day that a date can name, counted since 1970.
_FIRST_DAY: Final = (date.min - _EPOCH).days
# The parameters that pick rows.
_FILTERS: Final = ("project", "user", "key", "upstream", "model")
# All parameters.
_NAMES: Final = ("by", "from", "to", *_FILTERS, "limit", "after")


class UsageOperations(Struct, frozen=True):
    """Reads usage."""

    usage: Usage
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The counters of this process; None: the process counts nothing.
    meter: Meter | None = None

    async def show(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]:
        """Returns a page of sums, with the counters of this process up to now.

        project: the only project that the caller may see; None: all projects.

        Raises: BadRequest: a field is wrong, and the error names it; StoreError.
        """
        query = _read_usage_query(raw, int(self.now() // DAY_S))
        if project is not None:
            query = _restrict_to_project(query, project)
        if self.meter is not None:
            await self.meter.flush()
        sums = await self.usage.load_sums(replace(query, limit=query.limit + 1))
        page = sums[: query.limit]
        has_more = len(sums) > query.limit
        return {
            "object": "list",
            "from": _render_day(query.first_day),
            "to": _render_day(query.last_day),
            "by": list(query.by),
            "as_of": round(self.now(), 3),
            "has_more": has_more,
            "next": _encode_cursor(page[-1].group) if has_more else None,
            "data": [_render_sum(query.by, row) for row in page],
        }


def _read_usage_query(raw: RawArguments, today: int) -> UsageQuery:
    """Reads the fields of a query, each a text or None. today: the days since the epoch. Raises: BadRequest."""
    fields = {name: value for name, value in raw.items() if value is not None}
    for name in fields:
        if name not in _NAMES:
            raise BadRequest(f"There is no parameter {name!r}: there are {', '.join(_NAMES)}.", param=name)
    by = tuple(str(fields.get("by", "day")).split(","))
    for name in by:
        if name not in UsageKey._fields:
            columns = ", ".join(UsageKey._fields)
            raise BadRequest(f"by names columns of {columns}, saw {name!r}.", param="by")
    if len(set(by)) < len(by):
        raise BadRequest("by must name each column once.", param="by")
    last_day = _read_day(fields, "to", today)
    first_day = _read_day(fields, "from", max(last_day - _DEFAULT_DAYS + 1, _FIRST_DAY))
    if first_day > last_day:
        raise BadRequest("from must not be later than to.", param="from")
    filters = [
        (name, _read_number(fields, name) if name == "key" else str(fields[name]))
        for name in _FILTERS
        if name in fields
    ]
    after = _decode_cursor(str(fields["after"]), by) if "after" in fields else None
    return UsageQuery(
        by=by,
        first_day=first_day,
        last_day=last_day,
        only=tuple(filters),
        after=after,
        limit=read_limit(Arguments(raw)),
    )


def _restrict_to_project(query: UsageQuery, project: str) -> UsageQuery:
    """Returns a query that finds rows of this project alone: none where the query asks for another project."""
    other_filters = [(name, value) for name, value in query.only if name != "project"]
    asks_for_another = any(name == "project" and value != project for name, value in query.only)
    # No project has an empty name.
    return replace(query, only=(*other_filters, ("project", "" if asks_for_another else project)))


def _render_sum(by: tuple[str, ...], row: UsageSum) -> dict[str, Any]:
    """Returns a sum as a row of a page: the columns by which usage was grouped, and the counters of the sum."""
    group = {
        name: _render_day(int(value)) if name == "day" else value
        for name, value in zip(by, row.group, strict=True)
    }
    return {**group, **render_counters(row.counters)}


def render_counters(counters: Iterable[int]) -> dict[str, Any]:
    """Returns the counters that are shown by their names, with the cost in the currency of the prices."""
    counters_by_name: dict[str, Any] = dict(zip(COUNTERS, counters, strict=True))
    counters_by_name["cost"] /= BILLION
    return {name: counters_by_name[name] for name in SHOWN_COUNTERS}


def _read_day(fields: Mapping[str, Any], name: str, default: int) -> int:
    """Returns the day that a field names as YYYY-MM-DD, in days since the epoch. Raises: BadRequest."""
    if name not in fields:
        return default
    try:
        return (datetime.strptime(str(fields[name]), "%Y-%m-%d").replace(tzinfo=UTC).date() - _EPOCH).days
    except ValueError:
        raise BadRequest(f"{name} must be a day as YYYY-MM-DD, saw {fields[name]!r}.", param=name) from None


def _read_number(fields: Mapping[str, Any], name: str) -> int:
    """Returns the number of the row that a field names by a record's id. Raises: BadRequest."""
    number = parse_record_number(str(fields[name]))
    if number is None:
        raise BadRequest(f"{name} must be a number, saw {fields[name]!r}.", param=name)
    return number


def _render_day(day: int) -> str:
    """Returns a day, in days since the epoch, as YYYY-MM-DD."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def _encode_cursor(values: tuple[str | int, ...]) -> str:
    """Returns the `next` of a page. values: the group of the page's last row."""
    return urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def _decode_cursor(text: str, by: tuple[str, ...]) -> list[str | int]:
    """Reads the `next` of a page. Raises: BadRequest: the text is no `next` of a page by these columns."""
    try:
        values = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        values = None
    value_types = [int if name in ("day", "key") else str for name in by]
    if (
        not isinstance(values, list)
        or [type(value) for value in values] != value_types
        or not all(map(_fits_column, values))
    ):
        raise BadRequest("after must be the `next` of the page before, with the same `by`.", param="after")
    return values


def _fits_column(value: str | int) -> bool:
    """Returns whether a column of a database can have this value."""
    return isinstance(value, str) or abs(value) <= _MAX_NUMBER
