"""The gateway's keys: made, listed and revoked by operators of all projects."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.errors import BadRequest, NotAllowed
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ActionResult, Answer, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.page_records import KeyKind, KeyPage, NewKey
from gateway.settings import DefaultMode


class KeyForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is to be made."""

    name: str
    # The project that the key opens; "": all projects for an operator's key, else the default project.
    project: str = ""
    kind: KeyKind = "app"
    # The memory mode of requests that name none; "" or None: that of the settings.
    memory: DefaultMode | Literal[""] | None = None


def screens(operations: PageOperations) -> list[Screen | Action]:
    keys = operations.keys

    async def show(request: ScreenRequest, query: ListQuery) -> Answer:
        _require_key_operator(request)
        return _keys_page(await keys.page(after=query.after, limit=query.limit))

    async def make(request: ScreenRequest, form: KeyForm) -> Answer:
        _require_key_operator(request)
        try:
            made = await keys.create_of_kind(
                form.name.strip(), form.project.strip(), form.kind, form.memory or None
            )
        except BadRequest as error:
            return _keys_page(await keys.page(), error=error, form=form)
        await operations.sign_in.note(request.visitor.actor, "key_create", what=f"key {made.id}")
        # The answer itself shows the secret: it is nowhere else.
        if request.is_twin:
            return View(made, "keys.html", "Keys")
        return _keys_page(await keys.page(), made=made)

    async def revoke(request: ScreenRequest, form: NoFields) -> Answer:
        _require_key_operator(request)
        revoked = await keys.revoke_by_id(request.params["id"])
        await operations.sign_in.note(request.visitor.actor, "key_revoke", what=f"key {revoked.id}")
        return ActionResult(revoked, "keys")

    return [
        Screen("keys", show, ListQuery),
        Action("keys", make, KeyForm),
        Action("keys/{id:int}/revoke", revoke),
    ]


def _require_key_operator(request: ScreenRequest) -> None:
    if request.visitor.project is not None or not request.visitor.may_write:
        raise NotAllowed("Keys are for operators of all projects who may change them.")


def _keys_page(
    page: KeyPage, *, made: NewKey | None = None, error: BadRequest | None = None, form: KeyForm | None = None
) -> View:
    form = form or KeyForm("")
    return View(page, "keys.html", "Keys", {"made": made, "form": form}, error)
