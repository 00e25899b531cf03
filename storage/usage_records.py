"""The values of usage: counters by day, project, user, key, upstream and model; and limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

# The most rows that one transaction writes, so that turns do not wait long for it.
ROWS_AT_ONCE: Final = 500
# The user of counters of forgotten users. No request names it: names have no blanks around them.
FORGOTTEN_USER: Final = " forgotten"


class UsageKey(NamedTuple):
    """The key of counters. A key of dictionaries in each request's path, hence a tuple.

    The fields are named like the columns, by which operators group.
    """

    # Days since the epoch, UTC, when the request came.
    day: int
    project: str
    # "" for no user; or `FORGOTTEN_USER`.
    user: str
    # The id of the gateway key; 0: none.
    key: int
    # "": no upstream was asked.
    upstream: str
    model: str


# The counters that operators are shown.
SHOWN_COUNTERS: Final = (
    "requests",
    "refused",
    "errors",
    "cancelled",
    "calls",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "estimated_input_tokens",
    "estimated_output_tokens",
    "injected_tokens",
    "evicted_tokens",
    "background_input_tokens",
    "background_output_tokens",
    "batch_input_tokens",
    "batch_output_tokens",
    "cost",  # in billionths of the currency
    "unpriced_tokens",
)
# All counters, in their order in a row. A limit on the requests of a day or a month counts `answered`: the requests
# that a model answered, in full or in part, and those that ask no model. The daily budget of background calls does not
# count `question_tokens`, the part of them by which memory is searched.
COUNTERS: Final = (*SHOWN_COUNTERS, "answered", "question_tokens")

# A key, and its counters in the order of COUNTERS.
UsageRow = tuple[UsageKey, Sequence[int]]


class UsagePart(Struct, frozen=True):
    """A part of the counts of one process."""

    # A name that only this process has.
    process: str
    # From 1 on; each new part of a process has a higher number.
    number: int
    # Seconds since the epoch.
    at: float
    # At most `ROWS_AT_ONCE`, in the order of their keys.
    rows: Sequence[UsageRow]


def add_counters(sums: list[int], counters: Sequence[int]) -> None:
    """Adds counters to sums, which are changed."""
    for n, value in enumerate(counters):
        sums[n] += value


def sum_rows(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """Returns one row for each key, with the sums of the key's rows, in the order of the keys."""
    sums: dict[UsageKey, list[int]] = {}
    for key, counters in rows:
        add_counters(sums.setdefault(key, [0] * len(COUNTERS)), counters)
    return [(key, sums[key]) for key in sorted(sums)]


class UsageQuery(Struct, frozen=True):
    """A question for sums of counters."""

    # The fields of `UsageKey` to group by. The page is sorted by them, in this order.
    by: tuple[str, ...]
    # Days since the epoch, both included.
    first_day: int
    last_day: int
    # Values of `UsageKey`'s fields, by their names.
    only: Sequence[tuple[str, str | int]] = ()
    # The values of `by` after which the page begins.
    after: Sequence[str | int] | None = None
    limit: int = 1000


class UsageSum(Struct, frozen=True):
    """The sums of the counters of one group."""

    # The values of the fields that the query groups by.
    group: tuple[str | int, ...]
    # In the order of COUNTERS.
    counters: tuple[int, ...]


class UsageLimit(Struct, frozen=True):
    """A bound on the usage of a key, a user or a project."""

    id: int
    project: str
    # The key that is bounded; None: the bound is for all keys together.
    key_id: int | None
    # The user that is bounded; EACH_USER: each user by itself; None: the bound is for all users together.
    user: str | None
    # requests, tokens (input and output), cost, or concurrent: requests that are under way at a time.
    unit: str
    # minute, day or month, by the calendar of UTC; None where `unit` is concurrent.
    per: str | None
    # The amount of the unit that is allowed; cost is in the currency of the prices and not in billionths.
    most: float
    # The consequence above the limit: REFUSE, or the name of the model that answers in place of the requested one.
    then: str


# The `UsageLimit.user` of a limit for each user by itself, and for no user as one.
EACH_USER: Final = "*"
# A value of `UsageLimit.then`.
REFUSE: Final = "refuse"
UNITS: Final = ("requests", "tokens", "cost", "concurrent")
PERIODS: Final = ("minute", "day", "month")
