"""The two doors to one memory: an operator's (`/ui/m/UID`), and by a link that of its person (`/ui/me/TOKEN`).

Both show the same screens. A door decides under which paths they are, what their visitor may do, and what they leave
out.
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
# Fields of records that are for operators alone: the request that a reply answers, a command.
_OPERATOR_FIELDS = ("request", "command")
# The screen of searches is for operators alone: it shows scores.
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
        """Returns a record as the visitor may see it.

        For a person the fields of operators are None, and links to the memory lead to this door.
        """
        return self._for_person(record) if self.is_person else record

    def _for_person(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._for_person, value))
        if not isinstance(value, Struct):
            return value
        changed = {
            each.name: self._field_for_person(each.name, getattr(value, each.name)) for each in fields(value)
        }
        return replace(value, **changed)

    def _field_for_person(self, name: str, value: Any) -> Any:
        if name in _OPERATOR_FIELDS:
            return None
        if name == "href" and value is not None:
            return self._link_for_person(value)
        return self._for_person(value)

    def _link_for_person(self, link: str) -> str | None:
        operators = page_path("m", self.uid)
        if not link.startswith(operators):
            return link
        if link.startswith(page_path("m", self.uid, _SEARCH)):
            return None
        return page_path(*self.parts) + link.removeprefix(operators)


def door_of(ask: Ask) -> MemoryDoor:
    """Returns the door by which a request has come."""
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
