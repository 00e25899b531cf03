"""The arguments of operations: JSON objects, which each operation reads once into typed values.

A mistake in them is a BadRequest. Its message and its `param` name the field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol, TypeVar

from msgspec import Meta, Struct

from gateway.checked import Fault, InvalidValue, convert
from gateway.core.request.identity import checked_id
from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.memory_names import MemoryOwner, subject_of
from gateway.settings import DEFAULT_PROFILE
from storage.records import API_PROFILE

RawArguments = Mapping[str, Any]
_NonEmptyText = Annotated[str, Meta(min_length=1)]
# The bound is above every row number that SQLite assigns, and below the largest integer that it can hold.
_RowNumber = Annotated[int, Meta(gt=0, lt=1 << 62)]
# The records of a page where the caller names no limit, and the highest limit.
DEFAULT_LIMIT: Final = 1_000
MAX_LIMIT: Final = 10_000


class _Numbered(Protocol):
    @property
    def id(self) -> int: ...


class _OfProject(_Numbered, Protocol):
    @property
    def project(self) -> str: ...


_Record = TypeVar("_Record", bound=_Numbered)
_ProjectRecord = TypeVar("_ProjectRecord", bound=_OfProject)
_First = TypeVar("_First", int, None)


class Defaults(Struct, frozen=True):
    """The user and the profile of chat requests that name none. Operations use them, too, to mean the same memory."""

    # The user; None: such requests have no user.
    user: str | None = None
    # Returns the profile, given the project.
    profile: Callable[[str], str] = lambda project: DEFAULT_PROFILE


# The defaults of a gateway with settings that name no user and no profile.
NO_DEFAULTS = Defaults()


class Arguments:
    """Reads fields by name. A field that is null counts as left out.

    Raises: BadRequest: a field is missing, or of another type.
    """

    def __init__(self, raw: RawArguments) -> None:
        self._fields = {name: value for name, value in raw.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def optional(self, name: str) -> Any:
        """Returns a field unread; None: it was left out."""
        return self._fields.get(name)

    def text(self, name: str) -> str:
        value: str = self._read(name, _NonEmptyText, "a non-empty text")
        return value

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if name in self else None

    def optional_id(self, name: str) -> str | None:
        """Returns the id of a user or a conversation, if requests may name it so; None: it was left out."""
        if name not in self:
            return None
        id = checked_id(self.text(name), name)
        if id is None:
            raise BadRequest(f"`{name}` is empty.", param=name)
        return id

    def number(self, name: str) -> int:
        value: int = self._read(name, _RowNumber, "a positive number")
        return value

    def optional_number(self, name: str) -> int | None:
        return self.number(name) if name in self else None

    def flag(self, name: str) -> bool:
        return name in self and self._read(name, bool, "true or false")

    def texts(self, name: str) -> list[str]:
        value: list[str] = self._read(name, list[str], "a list of texts", is_shown=False)
        return value

    def numbers(self, name: str) -> list[int]:
        return self._read(name, list[int], "a list of numbers", is_shown=False) if name in self else []

    def list_of(self, name: str, length: int) -> list[Any]:
        """Returns a list of this length: a position that an answer has given, at which the next call continues."""
        value_type = Annotated[list[Any], Meta(min_length=length, max_length=length)]
        value: list[Any] = self._read(name, value_type, "what the answer before gave")
        return value

    def owner(self, defaults: Defaults | None = None, *, is_new: bool = False) -> MemoryOwner:
        """Reads whose memory is meant: `project` with `profile` and `user` or `conversation`, or with `agent`.

        defaults: replace a user and a profile that are left out; None: they stay left out.
        is_new: the memory is to be made, so requests must be able to name its owner.
        """
        project = self.optional_text("project")
        if project is None:
            raise BadRequest("Say in which project.", param="project")
        profile = self.optional_text("profile")
        read = self.optional_id if is_new else self.optional_text
        user, conversation = read("user"), read("conversation")
        if "agent" in self:
            if profile or user or conversation:
                raise BadRequest("An agent is named by its id alone.", param="agent")
            return MemoryOwner(project, API_PROFILE, subject_of(self.text("agent")))
        if user and conversation:
            raise BadRequest("Name a user, or a conversation without a user, not both.", param="conversation")
        if defaults is not None:
            profile = profile or defaults.profile(project)
            user = user or (None if conversation else defaults.user)
        subject = f"user:{user}" if user else None
        if subject is None and conversation:
            subject = f"conversation:{conversation}"
        return MemoryOwner(project, profile, subject)

    def _read(self, name: str, value_type: Any, words: str, *, is_shown: bool = True) -> Any:
        value = self._fields.get(name)
        try:
            return convert(value, value_type)
        except InvalidValue as error:
            seen = f", saw {value!r}" if is_shown else ""
            raise BadRequest(f"{name} must be {words}{seen}.", param=name) from error


def check_names(raw: RawArguments, names: Collection[str]) -> None:
    """Checks that all fields are known. Raises: BadRequest."""
    for name in raw:
        if name not in names:
            raise BadRequest(f"There is no field {name!r}: there are {', '.join(names)}.", param=name)


def check_project(project: str | None, visible: str | None) -> None:
    """Checks that a caller may name a project. visible: the only project that the caller sees; None: all projects.

    Raises: UnknownId.
    """
    if visible not in (None, project):
        raise UnknownId(f"There is no project {project!r} here.")


class RequestedPage(Struct, frozen=True):
    """The page of a list that a caller asks for; the list is in the order of its records' numbers."""

    # Only the records of this project are shown; None: those of all projects.
    project: str | None
    # The number after which the page begins; None: it is the first page.
    after: int | None
    limit: int

    def select(self, records: Iterable[_ProjectRecord]) -> list[_ProjectRecord]:
        """Returns the records from the page's beginning on, for `page_json`. records: the oldest first."""
        first = 1 if self.after is None else self.after + 1
        return [record for record in records if self.project in (None, record.project) and record.id >= first]


def read_requested_page(raw: RawArguments, visible_project: str | None) -> RequestedPage:
    """Reads `project`, `limit` and `after`. Raises: BadRequest, UnknownId.

    visible_project: the only project that the caller sees; None: all projects.
    """
    check_names(raw, ("project", "limit", "after"))
    arguments = Arguments(raw)
    project = arguments.optional_text("project") or visible_project
    check_project(project, visible_project)
    return RequestedPage(project, read_cursor(arguments.optional_text("after"), None), read_limit(raw))


def read_limit(raw: RawArguments) -> int:
    """Reads `limit`, the most records of a page. Raises: BadRequest."""
    text = raw.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    limit = record_number(str(text))
    if limit is None or not 1 <= limit <= MAX_LIMIT:
        raise BadRequest(f"limit must be from 1 to {MAX_LIMIT}, saw {text!r}.", param="limit")
    return limit


def page_json(
    records: Sequence[_Record], limit: int, record_json: Callable[[_Record], dict[str, Any]]
) -> dict[str, Any]:
    """Returns a page of records as JSON.

    records: the records of the page, and one more if the list goes on.
    record_json: returns a record as JSON.
    """
    has_more = len(records) > limit
    return {
        "object": "list",
        "data": [record_json(record) for record in records[:limit]],
        "has_more": has_more,
        "next": str(records[limit - 1].id) if has_more else None,
    }


def read_cursor(after: str | None, first: _First, param: str = "after") -> int | _First:
    """Returns the number of a record, which a caller sends as `after` from the `next` of a page.

    first: returned for the first page, which has no `after`.

    Raises: BadRequest: `after` is no number of a record.
    """
    if after is None:
        return first
    number = record_number(after)
    if number is None:
        raise unreadable_cursor(param)
    return number


def unreadable_cursor(param: str = "after") -> BadRequest:
    """Returns the error of a cursor that is not the `next` of a page."""
    return BadRequest(f"{param} must be the `next` of the page before.", param=param)


def record_number(text: str) -> int | None:
    """Reads the number of a record. None: the text is no number, or has more digits than a record's."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def refusal(fault: Fault) -> BadRequest:
    """Returns the error for a fault in a body or a query. It names the field."""
    name = ".".join(map(str, fault.path)) or None
    if fault.kind == "extra_forbidden":
        hint = f" Did you mean {fault.nearest}?" if fault.nearest else ""
        return BadRequest(f"Unknown field: {name}.{hint}", param=name)
    if fault.kind == "missing":
        return BadRequest(f"The field {name} is missing.", param=name)
    return BadRequest(f"{name or 'The body'}: {fault.message}.", param=name)
