"""The routes of a memory's screens: each screen has a path for operators, and one for the memory's person."""

from __future__ import annotations

from msgspec import Struct

from gateway.page.screen import Action, NoFields, Screen, ScreenHandler
from gateway.run.admin.access.link_operations import Right


class MemoryRoutes(Struct, frozen=True):
    """Makes the routes of a memory's screens, for operators or for its person."""

    is_for_person: bool

    def make_screen(
        self,
        path: str,
        show: ScreenHandler,
        query: type[Struct] = NoFields,
        *,
        right: Right = "see",
        has_twin: bool = True,
        searches: bool = False,
    ) -> Screen:
        """Makes a screen of a memory. path: the path below the memory's."""
        return Screen(
            self._path(path), show, query, self.is_for_person, right, has_twin=has_twin, searches=searches
        )

    def make_action(
        self,
        path: str,
        perform: ScreenHandler,
        form: type[Struct],
        right: Right,
        query: type[Struct] = NoFields,
    ) -> Action:
        """Makes a change of a memory. path: the path below the memory's."""
        return Action(self._path(path), perform, form, query, self.is_for_person, right)

    def _path(self, path: str) -> str:
        base = "me/{token}" if self.is_for_person else "m/{uid}"
        return f"{base}/{path}" if path else base


OPERATOR_ROUTES = MemoryRoutes(is_for_person=False)
PERSON_ROUTES = MemoryRoutes(is_for_person=True)
