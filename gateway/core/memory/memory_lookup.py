"""The searches of memory that calls of built-in tools ask for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from gateway.core.dates import parse_moment
from storage.records import Message

# The results of a search without a limit, as in the schemas of the tools.
_DEFAULT_RESULTS = 5


class Lookup(Struct, frozen=True):
    """A search of memory."""

    # The texts to search for; empty: the newest entries.
    queries: tuple[str, ...]
    # Kinds of entries: "message", "passage", "fact".
    sources: frozenset[str]
    # Roles of messages; empty: any.
    roles: frozenset[str] = frozenset()
    # Tags of passages.
    tags: frozenset[str] = frozenset()
    # True: a passage must have all of the tags, not one of them.
    needs_all: bool = False
    # The earliest time, in seconds since the epoch; None: any time.
    since: float | None = None
    # The latest time, in seconds since the epoch; None: any time.
    until: float | None = None
    # The most results.
    limit: int = _DEFAULT_RESULTS

    def matches(self, hit: Message) -> bool:
        """Returns whether a hit fits the search, apart from its tags."""
        return (
            hit.kind in self.sources
            and (not self.roles or hit.role in self.roles)
            and self.matches_time(hit.at)
        )

    def matches_time(self, at: float) -> bool:
        """Returns whether the search takes entries of this time. at: seconds since the epoch."""
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)

    def matches_tags(self, tags: Collection[str]) -> bool:
        """Returns whether the search takes passages with these tags."""
        shared_tags = self.tags & frozenset(tags)
        return not self.tags or (shared_tags == self.tags if self.needs_all else bool(shared_tags))


# The sources of a lookup that names none.
_ALL_SOURCES = frozenset({"message", "passage", "fact"})
# The results of a search of everything. Not measured: more take room from the conversation.
_ALL_RESULTS = 8
# The most keywords of one call that are searched for. Not measured: each keyword is a search, and a model gives a few.
_MAX_QUERIES = 8
# The arguments with the earliest and the latest date, by the tool.
_DATE_ARGUMENTS: Final = {
    "archival_memory_search": ("start_datetime", "end_datetime"),
    "conversation_search": ("start_date", "end_date"),
}


def read_lookup(name: str, arguments: Mapping[str, Any], now: float, timezone: str = "UTC") -> Lookup | str:
    """Returns the search that a call asks for, or the error as a text for the model.

    arguments: arguments that fit the schema of the tool.
    now: the current time, in seconds since the epoch.
    timezone: the time zone of the dates in the arguments.
    """
    query = str(arguments.get("query") or "").strip()
    queries = (query,) if query else ()
    since_key, until_key = _DATE_ARGUMENTS.get(name, ("", ""))
    try:
        since = _read_moment(arguments.get(since_key), timezone, is_end=False)
        until = _read_moment(arguments.get(until_key), timezone, is_end=True)
    except ValueError:
        return f"Error: `{since_key}` and `{until_key}` are dates such as 2026-03-01. Nothing was done."
    match name:
        case "archival_memory_search":
            return Lookup(
                queries,
                frozenset({"passage"}),
                tags=frozenset(arguments.get("tags") or ()),
                needs_all=arguments.get("tag_match_mode") == "all",
                since=since,
                until=until,
                limit=arguments.get("top_k") or _DEFAULT_RESULTS,
            )
        case "conversation_search":
            return Lookup(
                queries,
                frozenset({"message"}),
                roles=frozenset(arguments.get("roles") or ()),
                since=since,
                until=until,
                limit=arguments.get("limit") or _DEFAULT_RESULTS,
            )
        case "search_memory":
            return _read_keyword_lookup(arguments, now)
        case _:
            return Lookup(queries, _ALL_SOURCES, limit=_ALL_RESULTS)


def _read_keyword_lookup(arguments: Mapping[str, Any], now: float) -> Lookup:
    """Returns the search of everything for several keywords, in a span of minutes before `now`."""
    keywords = [each for each in arguments.get("convo_keyword_queries") or () if each.strip()]
    queries = tuple(keywords[:_MAX_QUERIES])
    start, end = arguments.get("start_minutes_ago"), arguments.get("end_minutes_ago")
    return Lookup(
        queries,
        _ALL_SOURCES,
        since=None if start is None else now - 60 * start,
        until=None if end is None else now - 60 * end,
        limit=max(_ALL_RESULTS, 3 * len(queries)),
    )


def _read_moment(text: object, timezone: str, *, is_end: bool) -> float | None:
    """Returns a date or time in seconds since the epoch; for a date its beginning or its end. Raises: ValueError."""
    return parse_moment(str(text).strip(), _read_zone(timezone), is_end=is_end) if text else None


def _read_zone(name: str) -> tzinfo:
    """Returns the time zone with a name; UTC: there is no such zone."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        # The definition of an agent may be older than a change of the zones.
        return UTC
