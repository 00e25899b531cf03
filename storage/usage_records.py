"""The values of usage: counters by day, project, user, key, upstream and model; and limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

# The most rows that one transaction writes, so that turns do not wait long for the transaction.
ROWS_AT_ONCE: Final = 500
# The user of counters of forgotten users. No request names it: names have no blanks around them.
FORGOTTEN_USER: Final = " forgotten"


class UsageKey(NamedTuple):
    """The key of counters. It is a tuple because each request looks it up in dictionaries.

    The fields have the names of the columns by which operators group.
    """

    # The day on which the request came: days since the epoch, UTC.
    day: int
    # The project of the request.
    project: str
    # The name of the user, or `FORGOTTEN_USER`; "": the request named no user.
    user: str
    # The id of the gateway key; 0: the request had no key.
    key: int
    # The name of the upstream; "": no upstream was called.
    upstream: str
    # The name of the model; "": no model was called, or too many names are counted.
    model: str


# The counters that operators see. `cost` is in billionths of the currency.
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
    "cost",
    "unpriced_tokens",
)
# All counters, in their order in a row. A limit on the requests of a day or a month counts `answered`: the requests
# that a model answered, in full or in part, and the requests that need no model. The daily budget of background calls
# does not count `question_tokens`, the tokens of questions that are embedded to search memory.
COUNTERS: Final = (*SHOWN_COUNTERS, "answered", "question_tokens")

# A key, and its counters in the order of COUNTERS.
UsageRow = tuple[UsageKey, Sequence[int]]


class UsagePart(Struct, frozen=True):
    """A part of the counts of one process."""

    # A name that only this process has.
    process: str
    # The number of the part, from 1 on; each new part of a process has a higher number.
    number: int
    # When the part was written, in seconds since the epoch.
    at: float
    # At most `ROWS_AT_ONCE` rows, in the order of their keys.
    rows: Sequence[UsageRow]


def add_counters(sums: list[int], counters: Sequence[int]) -> None:
    """Adds counters to sums, in place."""
    for index, value in enumerate(counters):
        sums[index] += value


def sum_rows(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """Returns one row for each key, with the sums of the key's rows, in the order of the keys."""
    sums: dict[UsageKey, list[int]] = {}
    for key, counters in rows:
        add_counters(sums.setdefault(key, [0] * len(COUNTERS)), counters)
    return [(key, sums[key]) for key in sorted(sums)]


class UsageQuery(Struct, frozen=True):
    """A query for sums of counters."""

    # The fields of `UsageKey` by which counters are grouped. The page is sorted by these fields, in this order.
    by: tuple[str, ...]
    # The first day that counts, in days since the epoch.
    first_day: int
    # The last day that counts, in days since the epoch.
    last_day: int
    # The only values of fields of `UsageKey` that count: name and value of each field.
    only: Sequence[tuple[str, str | int]] = ()
    # The values of the fields `by` after which the page begins; None: the first page.
    after: Sequence[str | int] | None = None
    # The most groups on the page.
    limit: int = 1000


class UsageSum(Struct, frozen=True):
    """The sums of the counters of one group."""

    # The values of the fields that the query groups by.
    group: tuple[str | int, ...]
    # The sums, in the order of COUNTERS.
    counters: tuple[int, ...]


class UsageLimit(Struct, frozen=True):
    """A bound on the usage of a key, a user or a project."""

    # The row of the limit.
    id: int
    # The project in which usage is bounded.
    project: str
    # The key that is bounded; None: the bound is for all keys together.
    key_id: int | None
    # The user that is bounded; EACH_USER: each user by itself; None: the bound is for all users together.
    user: str | None
    # The unit of the amount: requests, tokens (input and output), cost, or concurrent (requests under way at a time).
    unit: str
    # The period: minute, day or month, by the calendar of UTC; None if `unit` is concurrent.
    per: str | None
    # The amount of the unit that is allowed; cost is in the currency of the prices and not in billionths.
    most: float
    # The consequence above the limit: REFUSE, or the name of the model that answers in place of the requested one.
    then: str


# The `UsageLimit.user` of a limit for each user by itself, and for no user as one.
EACH_USER: Final = "*"
# The `UsageLimit.then` of a limit that refuses requests.
REFUSE: Final = "refuse"
UNITS: Final = ("requests", "tokens", "cost", "concurrent")
PERIODS: Final = ("minute", "day", "month")
