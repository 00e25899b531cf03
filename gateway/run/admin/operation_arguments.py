"""The arguments of operations: JSON objects, which each operation reads once into typed values.

A mistake in them is a BadRequest. Its message and its `param` name the field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from gateway.core.request.request_ids import normalize_id
from gateway.errors import BadRequest, UnknownId
from gateway.run.admin.memory_names import MemoryOwner, make_subject
from gateway.settings import DEFAULT_PROFILE
from gateway.validation import InvalidValue, convert
from storage.records import API_PROFILE

RawArguments = Mapping[str, Any]
_NonEmptyText = Annotated[str, Meta(min_length=1)]
# Mostly the number of a row. The bound is above every one that SQLite assigns, and below the largest integer that it
# can hold.
_PositiveNumber = Annotated[int, Meta(gt=0, lt=1 << 62)]


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

    def read_raw(self, name: str) -> Any:
        """Returns a field unread, or None if it was left out."""
        return self._fields.get(name)

    def read_text(self, name: str) -> str:
        value: str = self._read(name, _NonEmptyText, "a non-empty text")
        return value

    def read_optional_text(self, name: str) -> str | None:
        return self.read_text(name) if name in self else None

    def read_optional_id(self, name: str) -> str | None:
        """Returns the id of a user or a conversation, or None if it was left out.

        Raises: BadRequest: requests cannot have this id.
        """
        if name not in self:
            return None
        checked_id = normalize_id(self.read_text(name), name)
        if checked_id is None:
            raise BadRequest(f"`{name}` is empty.", param=name)
        return checked_id

    def read_number(self, name: str) -> int:
        value: int = self._read(name, _PositiveNumber, "a positive number")
        return value

    def read_optional_number(self, name: str) -> int | None:
        return self.read_number(name) if name in self else None

    def read_flag(self, name: str) -> bool:
        return name in self and self._read(name, bool, "true or false")

    def read_texts(self, name: str) -> list[str]:
        value: list[str] = self._read(name, list[str], "a list of texts", is_shown=False)
        return value

    def read_optional_object(self, name: str) -> dict[str, Any]:
        """Returns a JSON object; an empty one: it was left out."""
        if name not in self:
            return {}
        value: dict[str, Any] = self._read(name, dict[str, Any], "a JSON object", is_shown=False)
        return value

    def read_optional_numbers(self, name: str) -> list[int]:
        """Returns a list of positive numbers; an empty one: it was left out."""
        if name not in self:
            return []
        value: list[int] = self._read(
            name, list[_PositiveNumber], "a list of positive numbers", is_shown=False
        )
        return value

    def read_position(self, name: str, length: int) -> list[Any]:
        """Returns the position at which this call continues, as the answer before gave it: a list of this length."""
        value_type = Annotated[list[Any], Meta(min_length=length, max_length=length)]
        value: list[Any] = self._read(name, value_type, "what the answer before gave")
        return value

    def read_owner(self, defaults: Defaults | None = None, *, is_new: bool = False) -> MemoryOwner:
        """Returns the owner of a memory: `project` with `profile` and `user` or `conversation`, or with `agent`.

        defaults: the values for a user and a profile that are left out; None: no values.
        is_new: True: the memory is to be made, so requests must be able to name its owner.
        """
        project = self.read_optional_text("project")
        if project is None:
            raise BadRequest("Say in which project.", param="project")
        profile = self.read_optional_text("profile")
        read = self.read_optional_id if is_new else self.read_optional_text
        user = read("user")
        conversation = read("conversation")
        if "agent" in self:
            if profile or user or conversation:
                raise BadRequest("An agent is named by its id alone.", param="agent")
            return MemoryOwner(project, API_PROFILE, make_subject(self.read_text("agent")))
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
            shown_value = f", saw {value!r}" if is_shown else ""
            raise BadRequest(f"{name} must be {words}{shown_value}.", param=name) from error


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
