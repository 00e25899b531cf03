"""A page of a list in the management API: the arguments that ask for it, and its JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct

from gateway.errors import BadRequest
from gateway.run.admin.list_page import parse_cursor, parse_record_number
from gateway.run.admin.operation_arguments import Arguments, RawArguments, check_names, check_project

# The records of a page where the caller names no limit.
DEFAULT_LIMIT: Final = 1_000
# The highest limit.
MAX_LIMIT: Final = 10_000


class _HasId(Protocol):
    @property
    def id(self) -> int: ...


class _HasProject(_HasId, Protocol):
    @property
    def project(self) -> str: ...


_Record = TypeVar("_Record", bound=_HasId)
_ProjectRecord = TypeVar("_ProjectRecord", bound=_HasProject)


class RequestedPage(Struct, frozen=True):
    """The page that a caller asks for, of a list in the order of its records' numbers."""

    # The project of the records that are shown; None: all projects.
    project: str | None
    # The number after which the page begins; None: the page is the first one.
    after: int | None
    limit: int

    def select(self, records: Iterable[_ProjectRecord]) -> list[_ProjectRecord]:
        """Returns the project's records from the page's beginning on, for `render_page`. records: the oldest first."""
        after = self.after or 0
        return [record for record in records if self.project in (None, record.project) and record.id > after]


def read_requested_page(raw: RawArguments, visible_project: str | None) -> RequestedPage:
    """Reads `project`, `limit` and `after`. Raises: BadRequest, UnknownId.

    visible_project: the only project that the caller sees; None: all projects.
    """
    check_names(raw, ("project", "limit", "after"))
    arguments = Arguments(raw)
    project = arguments.read_optional_text("project") or visible_project
    check_project(project, visible_project)
    return RequestedPage(
        project, parse_cursor(arguments.read_optional_text("after"), None), read_limit(arguments)
    )


def read_limit(arguments: Arguments) -> int:
    """Reads `limit`, the most records of a page: a text in a query, else a number. Raises: BadRequest."""
    if "limit" not in arguments:
        return DEFAULT_LIMIT
    value = arguments.read_raw("limit")
    limit = parse_record_number(str(value))
    if limit is None or not 1 <= limit <= MAX_LIMIT:
        raise BadRequest(f"limit must be from 1 to {MAX_LIMIT}, saw {value!r}.", param="limit")
    return limit


def render_page(
    records: Sequence[_Record], limit: int, render_record: Callable[[_Record], dict[str, Any]]
) -> dict[str, Any]:
    """Returns a page of records as JSON.

    records: the records of the page, and one more if the list goes on.
    render_record: returns a record as JSON.
    """
    has_more = len(records) > limit
    return {
        "object": "list",
        "data": [render_record(record) for record in records[:limit]],
        "has_more": has_more,
        "next": str(records[limit - 1].id) if has_more else None,
    }
