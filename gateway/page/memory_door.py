"""The door to one memory: an operator's (`/ui/m/UID`) or its person's, by a link (`/ui/me/TOKEN`).

The screens of a memory are the same behind both; this says whose they are, where they lie, and what they leave out.
"""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import fields, replace

from gateway.errors import GatewayError
from gateway.page.screen import Action, Ask, Door, Screen, View
from gateway.run.admin.link_operations import Right
from gateway.run.admin.memory_edits import Editor
from gateway.run.admin.page_paths import page_path

T = TypeVar("T")
# Fields of records that are of use to operators alone: the request that a reply answers, a command.
_OPERATORS_FIELDS = ("request", "command")
# What is looked up there has scores.
_SEARCH = "search"


class MemoryDoor(Struct, frozen=True):
    """A memory as a visitor has asked for it."""

    uid: str
    # The path of its page, in parts.
    parts: tuple[str, ...]
    editor: Editor
    # The rights of its person's link; None: of an operator.
    rights: tuple[str, ...] | None
    may_write: bool

    @property
    def project(self) -> str | None:
        """The only project that the visitor sees; None: all."""
        return self.editor.project

    @property
    def is_person(self) -> bool:
        return self.rights is not None

    def may(self, right: Right) -> bool:
        """Returns whether the visitor may do this."""
        return self.may_write if self.rights is None else right in self.rights

    def path(self, *parts: str | int) -> str:
        """Returns the path of a screen of the memory, relative to /ui/."""
        return page_path(*self.parts, *parts)

    def view(
        self, record: Any, template: str, heading: str, error: GatewayError | None = None, **context: Any
    ) -> View:
        """Returns a screen of the memory.

        template: an operator's. A person's, in plain words, has `me_` before its name.
        context: what it knows besides the record.
        """
        name = f"me_{template}" if self.is_person else template
        return View(self.seen(record), name, heading, {"door": self, "base": self.parts, **context}, error)

    def seen(self, record: T) -> T:
        """Returns a record as the visitor may see it: of a person, links lie at this door, and lead to no request."""
        return self._of_person(record) if self.is_person else record

    def _of_person(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._of_person, value))
        if not isinstance(value, Struct):
            return value
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: self._field_of_person(name, each) for name, each in found.items()})

    def _field_of_person(self, name: str, value: Any) -> Any:
        if name in _OPERATORS_FIELDS:
            return None
        if name != "href" or value is None:
            return self._of_person(value)
        own = page_path("m", self.uid)
        if value.startswith(page_path("m", self.uid, _SEARCH)):
            return None
        return page_path(*self.parts) + value.removeprefix(own) if value.startswith(own) else value


def door_of(ask: Ask) -> MemoryDoor:
    """Returns the door by which a request comes."""
    visitor = ask.visitor
    if visitor.link is None:
        uid = str(ask.params["uid"])
        return MemoryDoor(uid, ("m", uid), visitor.editor, None, visitor.may_write)
    link = visitor.link
    return MemoryDoor(
        link.memory_uid, ("me", str(ask.params["token"])), visitor.editor, link.rights, may_write=True
    )


class Way(Struct, frozen=True):
    """The way to the screens of a memory: where their paths begin, and the door before them."""

    prefix: str = "m/{uid}"
    door: Door = "session"

    @property
    def is_operators(self) -> bool:
        return self.door == "session"

    def screen(
        self, path: str, show: Any, query: Any = None, *, right: Right = "see", has_twin: bool = True
    ) -> Screen:
        """Makes a screen of a memory. path: below the memory's."""
        more = {} if query is None else {"query": query}
        return Screen(self._whole(path), show, door=self.door, right=right, has_twin=has_twin, **more)

    def action(self, path: str, perform: Any, form: Any, right: Right, query: Any = None) -> Action:
        """Makes a change of a memory. path: below the memory's."""
        more = {} if query is None else {"query": query}
        return Action(self._whole(path), perform, form, door=self.door, right=right, **more)

    def _whole(self, path: str) -> str:
        return f"{self.prefix}/{path}" if path else self.prefix


OPERATORS = Way()
PERSONS = Way("me/{token}", "link")
