"""The screen of the gateway's keys, on which operators of all projects make, list and revoke them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.errors import BadRequest, NotAllowed
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ActionResult, Answer, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.access.key_records import KeyKind, KeyRecord, KeyRecords, NewKey
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.audited_parts import render_audited_part
from gateway.run.admin.list_page import ListPage
from gateway.settings import DefaultMode


class KeyForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is to be made."""

    name: str
    # The project that the key opens; "": all projects for an operator's key, else the default project.
    project: str = ""
    kind: KeyKind = "app"
    # The memory mode of requests that name no mode; "" or None: the mode of the settings.
    memory: DefaultMode | Literal[""] | None = None


class _KeyScreens(Struct, frozen=True):
    """Handles requests for the screen, and for the changes of keys."""

    keys: KeyRecords
    audit: AuditOperations

    async def show(self, request: ScreenRequest, query: ListQuery) -> Answer:
        _require_key_operator(request)
        return _make_keys_page(await self.keys.list_page(after=query.after, limit=query.limit))

    async def create(self, request: ScreenRequest, form: KeyForm) -> Answer:
        _require_key_operator(request)
        needed_key = await self.keys.are_needed()
        try:
            key = await self.keys.create(
                form.name.strip(), form.project.strip(), form.kind, form.memory or None
            )
        except BadRequest as error:
            return _make_keys_page(await self.keys.list_page(), error=error, form=form)
        await self.audit.add(request.visitor.actor, "key_create", what=render_audited_part("key", key.id))
        # Not a redirect: only the answer to this request can show the secret.
        if request.is_twin:
            return View(key)
        return _make_keys_page(
            await self.keys.list_page(), new_key=key, is_first=not needed_key and await self.keys.are_needed()
        )

    async def revoke(self, request: ScreenRequest, form: NoFields) -> Answer:
        _require_key_operator(request)
        key = await self.keys.revoke(request.params["id"])
        await self.audit.add(request.visitor.actor, "key_revoke", what=render_audited_part("key", key.id))
        return ActionResult(key, "keys#revoked")


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    keys = _KeyScreens(operations.keys, operations.audit)
    return [
        Screen("keys", keys.show, ListQuery),
        Action("keys", keys.create, KeyForm),
        Action("keys/{id:int}/revoke", keys.revoke),
    ]


def _require_key_operator(request: ScreenRequest) -> None:
    if request.visitor.project is not None or not request.visitor.may_write:
        raise NotAllowed("Keys are for operators of all projects who may change them.")


def _make_keys_page(
    page: ListPage[KeyRecord],
    *,
    new_key: NewKey | None = None,
    is_first: bool = False,
    error: BadRequest | None = None,
    form: KeyForm | None = None,
) -> View:
    """Returns the screen. is_first: True if requests have needed no key before `new_key`."""
    context = {"new_key": new_key, "is_first": is_first, "form": form or KeyForm("")}
    return View(page, "keys.html", "Keys", context, error)
