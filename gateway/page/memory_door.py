"""The door to one memory: an operator's (`/ui/m/UID`) or its person's, by a link (`/ui/me/TOKEN`).

The screens of a memory are the same behind both; this says whose they are, where they lie, and what they leave out.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from gateway.page.screen import Action, Ask, Door, Screen
from gateway.run.admin.links import Right
from gateway.run.admin.memory_edits import Editor
from gateway.run.admin.page_paths import page_path


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

    def place(self, href: str) -> str:
        """Returns a link of a record, relative to /ui/, as it lies at this door."""
        own = page_path("m", self.uid)
        return page_path(*self.parts) + href.removeprefix(own) if href.startswith(own) else href

    def context(self, **more: Any) -> dict[str, Any]:
        """Returns what the templates of a memory know besides the record."""
        return {"door": self, "base": self.parts, **more}


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
