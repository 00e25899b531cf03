"""Access to one memory: by an operator (`/ui/m/UID`), or by a person with a link (`/ui/me/TOKEN`).

Both have the same screens, under paths of their own. The access decides what the visitor may do and see.
"""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import fields, replace

from gateway.errors import GatewayError
from gateway.page.screen import ScreenRequest, View
from gateway.run.admin.access.link_operations import Right
from gateway.run.admin.memory.editor import Editor
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.page_paths import page_path
from storage.operator_records import FoundMemory

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
        """The visitor is the memory's person, and no operator."""
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
        context: the names that the template knows besides the record, and their values. They are not filtered.
        """
        name = f"me_{template}" if self.is_person else template
        return View(self.filter(record), name, heading, {"access": self, "base": self.base, **context}, error)

    def twin(self, record: Any) -> View:
        """Returns a record for a program."""
        return View(self.filter(record))

    def filter(self, record: T) -> T:
        """Returns a record as the visitor may see it.

        For a person the fields of operators are None, and links lead to the person's own screens. What
        stands in a list or a dict is not filtered: records have tuples alone.
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
            # A person opens no other memory.
            return None if link.startswith("m/") else link
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


async def open_memory(request: ScreenRequest, views: MemoryViews) -> tuple[MemoryAccess, FoundMemory]:
    """Notes in the audit that a request reads its memory. Returns the access to the memory, and the memory.

    Raises: UnknownId: there is no such memory.
    """
    access = make_access(request)
    memory = await views.get(access.project, access.uid)
    await request.note_read(access.uid)
    return access, memory
