"""Access to one memory: an operator's (`/ui/m/UID`), and by a link that of its person (`/ui/me/TOKEN`).

Both have the same screens, under paths of their own. The access decides what its visitor may do and is shown.
"""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import fields, replace

from gateway.errors import GatewayError
from gateway.page.screen import Action, Screen, ScreenRequest, View
from gateway.run.admin.link_operations import Right
from gateway.run.admin.memory_edits import Editor
from gateway.run.admin.page_paths import page_path

T = TypeVar("T")
# Fields of records that are for operators alone: the request that a reply answers, a command.
_OPERATOR_FIELDS = ("request", "command")
# The screen of searches is for operators alone: it shows scores.
_SEARCH = "search"


class MemoryAccess(Struct, frozen=True):
    """The access of a visitor to one memory: its paths, the rights, and the form in which it is shown."""

    uid: str
    # The path of the memory's page, in parts.
    base: tuple[str, ...]
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
        return page_path(*self.base, *parts)

    def view(
        self, record: Any, template: str, heading: str, error: GatewayError | None = None, **context: Any
    ) -> View:
        """Returns a screen of the memory.

        template: an operator's. A person's, in plain words, has `me_` before its name.
        context: what it knows besides the record.
        """
        name = f"me_{template}" if self.is_person else template
        return View(self.filter(record), name, heading, {"access": self, "base": self.base, **context}, error)

    def twin(self, record: Any) -> View:
        """Returns a record for a program, which needs nothing of what a page shows besides."""
        return View(self.filter(record))

    def filter(self, record: T) -> T:
        """Returns a record as the visitor may see it.

        For a person the fields of operators are None, and links lead to the person's own screens.
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
        return page_path(*self.base) + link.removeprefix(operators)


def access_of(request: ScreenRequest) -> MemoryAccess:
    """Returns the access that a request has to its memory."""
    visitor = request.visitor
    link = visitor.link
    if link is None:
        uid = str(request.params["uid"])
        return MemoryAccess(uid, ("m", uid), visitor.editor, None, visitor.may_write)
    base = ("me", str(request.params["token"]))
    return MemoryAccess(link.memory_uid, base, visitor.editor, link.rights, may_write=True)


class MemoryRoutes(Struct, frozen=True):
    """Makes the routes of a memory's screens, for operators or for its person."""

    is_for_person: bool

    def screen(
        self,
        path: str,
        show: Any,
        query: Any = None,
        *,
        right: Right = "see",
        has_twin: bool = True,
        searches: bool = False,
    ) -> Screen:
        """Makes a screen of a memory. path: below the memory's."""
        more = {} if query is None else {"query": query}
        return Screen(
            self._path(path), show, is_for_person=self.is_for_person, right=right, has_twin=has_twin,
            searches=searches, **more,
        )  # fmt: skip

    def action(self, path: str, perform: Any, form: Any, right: Right, query: Any = None) -> Action:
        """Makes a change of a memory. path: below the memory's."""
        more = {} if query is None else {"query": query}
        return Action(self._path(path), perform, form, is_for_person=self.is_for_person, right=right, **more)

    def _path(self, path: str) -> str:
        base = "me/{token}" if self.is_for_person else "m/{uid}"
        return f"{base}/{path}" if path else base


OPERATOR_ROUTES = MemoryRoutes(is_for_person=False)
PERSON_ROUTES = MemoryRoutes(is_for_person=True)
