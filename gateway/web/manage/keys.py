"""`/v1/manage/keys` and `/v1/manage/me`."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import MemoryUnavailable, NotAllowed
from gateway.run.admin.key_management import KeyHolder, KeyManagement
from gateway.web.body import BodyReader
from gateway.web.manage.access import Access, Manager
from gateway.web.manage.limits import managed, number_in
from gateway.web.middleware import trace_of
from storage.errors import StoreError

KEYS_PATH: Final = "/v1/manage/keys"
ME_PATH: Final = "/v1/manage/me"


def key_routes(
    operations: KeyManagement, holder: KeyHolder, access: Access, bodies: BodyReader
) -> list[Route]:
    """Returns the routes of keys, and the one that is for their holders."""

    async def show_all(manager: Manager, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show_all(dict(request.query_params), project=manager.project)

    async def make(manager: Manager, _: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.make(body, project=manager.project)

    async def show(manager: Manager, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show(number_in(request), project=manager.project)

    async def change(manager: Manager, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.change(number_in(request), body, project=manager.project)

    async def rotate(manager: Manager, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.rotate(number_in(request), body, project=manager.project)

    async def revoke(manager: Manager, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.revoke(number_in(request), project=manager.project)

    async def show_own(request: Request) -> Response:
        trace_of(request.scope).route = "manage"
        key = await access.key_of(request)
        if key.opens is not None:
            raise NotAllowed("This is for keys of applications.")
        user = request.query_params.get("user") or key.user or ""
        if key.user not in (None, user):
            raise NotAllowed("The key of this request is another user's.", code="user_not_allowed")
        try:
            shown = await holder.show(key, user)
        except StoreError as error:
            raise MemoryUnavailable.since(error.status) from error
        return Response(orjson.dumps(shown), media_type="application/json")

    one = f"{KEYS_PATH}/{{id}}"
    return [
        managed(KEYS_PATH, "GET", show_all, access, bodies),
        managed(KEYS_PATH, "POST", make, access, bodies, status=201),
        managed(one, "GET", show, access, bodies),
        managed(one, "PATCH", change, access, bodies),
        managed(one, "DELETE", revoke, access, bodies),
        managed(f"{one}/rotate", "POST", rotate, access, bodies),
        Route(ME_PATH, show_own, methods=["GET"]),
    ]
