"""The overview."""

from __future__ import annotations

from msgspec import Struct

from gateway.page.operations import PageOperations
from gateway.page.screen import Action, Ask, NoFields, Screen, View


class _Overview(Struct, frozen=True):
    version: str


def screens(operations: PageOperations) -> list[Screen | Action]:
    async def show(ask: Ask, query: NoFields) -> View:
        return View(_Overview(""), "overview.html", "Overview")

    return [Screen("", show)]
