"""The gateway's keys: made, listed and revoked by operators of all projects."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.errors import BadRequest, NotAllowed
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ActionResult, Answer, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.page_records import KeyKind, KeyPage, NewKey
from gateway.settings import DefaultMode


class KeyForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is to be made."""

    name: str
    # The project that the key opens; "": all, of an operator's key, else the default.
    project: str = ""
    kind: KeyKind = "app"
    # The mode of requests that request for none; "" or None: that of the settings.
    memory: DefaultMode | Literal[""] | None = None


def screens(operations: PageOperations) -> list[Screen | Action]:
    keys = operations.keys

    async def show(request: ScreenRequest, query: ListQuery) -> Answer:
        _check(request)
        return _view(await keys.page(after=query.after, limit=query.limit))

    async def make(request: ScreenRequest, form: KeyForm) -> Answer:
        _check(request)
        try:
            made = await keys.create_named(
                form.name.strip(), form.project.strip(), form.kind, form.memory or None
            )
        except BadRequest as error:
            return _view(await keys.page(), error=error, form=form)
        await operations.sign_in.note(request.visitor.actor, "key_create", what=f"key {made.id}")
        # The answer itself shows the secret: it is nowhere else.
        return _view(await keys.page(), made=made) if not request.is_twin else View(made, "keys.html", "Keys")

    async def revoke(request: ScreenRequest, form: Struct) -> Answer:
        _check(request)
        revoked = await keys.revoke_number(request.params["id"])
        await operations.sign_in.note(request.visitor.actor, "key_revoke", what=f"key {revoked.id}")
        return ActionResult(revoked, "keys")

    return [
        Screen("keys", show, ListQuery),
        Action("keys", make, KeyForm),
        Action("keys/{id:int}/revoke", revoke),
    ]


def _check(request: ScreenRequest) -> None:
    if request.visitor.project is not None or not request.visitor.may_write:
        raise NotAllowed("Keys are for operators of all projects who may change them.")


def _view(
    page: KeyPage, *, made: NewKey | None = None, error: BadRequest | None = None, form: KeyForm | None = None
) -> View:
    form = form or KeyForm("")
    return View(page, "keys.html", "Keys", {"made": made, "form": form}, error)
