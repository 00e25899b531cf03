"""Access to one memory: by an operator (`/ui/m/UID`), or by a person with a link (`/ui/me/TOKEN`).

Both have the same screens, under paths of their own. The access decides what the visitor may do and see.
"""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import parse_qs

from msgspec import Struct
from msgspec.structs import fields, replace

from gateway.errors import GatewayError
from gateway.page.screen import Action, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.editor import Editor
from gateway.run.admin.link_operations import Right
from gateway.run.admin.page_paths import page_path

T = TypeVar("T")
# Fields of records that only operators see: the request that a reply answers, a command.
_OPERATOR_FIELDS = ("request", "command")
# The screen of searches shows scores, so only operators see it.
_SEARCH = "search"


class MemoryAccess(Struct, frozen=True):
    """The access of a visitor to one memory: paths, rights, and the form in which records are shown."""

    uid: str
    # The path of the memory's page, in parts.
    base: tuple[str, ...]
    editor: Editor
    # The rights of the person's link; None: the visitor is an operator.
    rights: tuple[str, ...] | None
    may_write: bool

    @property
    def project(self) -> str | None:
        """The only project that the visitor sees; None: all projects."""
        return self.editor.project

    @property
    def is_person(self) -> bool:
        return self.rights is not None

    def may(self, right: Right) -> bool:
        """Returns whether the visitor has a right."""
        return right in self.rights if self.rights is not None else self.may_write

    def path(self, *parts: str | int) -> str:
        """Returns the path of a screen of the memory, relative to /ui/."""
        return page_path(*self.base, *parts)

    def view(
        self, record: Any, template: str, heading: str, error: GatewayError | None = None, **context: Any
    ) -> View:
        """Returns a screen of the memory.

        template: the template for operators. The template for persons, in plain words, has `me_` before its name.
        context: the names that the template knows besides the record, and their values.
        """
        name = f"me_{template}" if self.is_person else template
        return View(self.filter(record), name, heading, {"access": self, "base": self.base, **context}, error)

    def twin(self, record: Any) -> View:
        """Returns a record for a program."""
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
        operator_path = page_path("m", self.uid)
        if not link.startswith(operator_path):
            return link
        if link.startswith(page_path("m", self.uid, _SEARCH)):
            return None
        return page_path(*self.base) + link.removeprefix(operator_path)


def make_access(request: ScreenRequest) -> MemoryAccess:
    """Returns the access that a request has to its memory."""
    visitor = request.visitor
    link = visitor.link
    if link is None:
        uid = str(request.params["uid"])
        return MemoryAccess(
            uid, base=("m", uid), editor=visitor.editor, rights=None, may_write=visitor.may_write
        )
    base = ("me", str(request.params["token"]))
    return MemoryAccess(link.memory_uid, base=base, editor=visitor.editor, rights=link.rights, may_write=True)


def read_sought_words(request: ScreenRequest, screen: str) -> str:
    """Returns the words of the search that led to the screen with the form of a change; "": none did.

    screen: the path of the screen, relative to /ui/. Its query has them as `words`.
    """
    path = request.referrer.partition("?")[0]
    return read_query_field(request.referrer, "words") if path == screen else ""


def read_query_field(address: str, name: str) -> str:
    """Returns the first value of a field in the query of an address; "": the query has no such field."""
    return next(iter(parse_qs(address.partition("?")[2]).get(name, ())), "")


class MemoryRoutes(Struct, frozen=True):
    """Makes the routes of a memory's screens, for operators or for its person."""

    is_for_person: bool

    def screen(
        self,
        path: str,
        show: Any,
        query: type[Struct] = NoFields,
        *,
        right: Right = "see",
        has_twin: bool = True,
        searches: bool = False,
    ) -> Screen:
        """Makes a screen of a memory. path: below the memory's path."""
        return Screen(
            self._path(path), show, query, self.is_for_person, right, has_twin=has_twin, searches=searches
        )

    def action(
        self, path: str, perform: Any, form: type[Struct], right: Right, query: type[Struct] = NoFields
    ) -> Action:
        """Makes a change of a memory. path: below the memory's path."""
        return Action(self._path(path), perform, form, query, self.is_for_person, right)

    def _path(self, path: str) -> str:
        base = "me/{token}" if self.is_for_person else "m/{uid}"
        return f"{base}/{path}" if path else base


OPERATOR_ROUTES = MemoryRoutes(is_for_person=False)
PERSON_ROUTES = MemoryRoutes(is_for_person=True)
