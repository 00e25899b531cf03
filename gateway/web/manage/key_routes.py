"""The routes of keys: the routes of all records, a rotation, and `/v1/manage/me` for the holder of a key."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import NotAllowed
from gateway.run.admin.access.key_management import KeyManagement, KeyReport
from gateway.run.admin.operation_arguments import check_names
from gateway.run.store_errors import map_store_errors
from gateway.web.json_response import JsonResponse
from gateway.web.manage.record_routes import (
    KEYS_PATH,
    ManageRouteFactory,
    make_record_routes,
    read_record_number,
)
from gateway.web.query import read_query
from gateway.web.request_info import get_request_info

_ME_PATH: Final = "/v1/manage/me"


def make_key_routes(
    operations: KeyManagement, report: KeyReport, route_factory: ManageRouteFactory
) -> list[Route]:
    """Returns the routes of keys, and the route for their holders."""

    async def rotate(project: str | None, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.rotate(read_record_number(request), body, project=project)

    async def show_own_key(request: Request) -> Response:
        get_request_info(request.scope).route = "manage"
        key = await route_factory.guard.get_key(request)
        if key.opens is not None:
            raise NotAllowed("This is for keys of applications.")
        query = read_query(request.scope)
        check_names(query, ("user",))
        user = query.get("user") or key.user or ""
        if key.user not in (None, user):
            raise NotAllowed("The key of this request is another user's.", code="user_not_allowed")
        with map_store_errors():
            report_body = await report.show(key, user)
        return JsonResponse(report_body)

    return [
        *make_record_routes(KEYS_PATH, operations, route_factory),
        route_factory.make_route(f"{KEYS_PATH}/{{id}}/rotate", "POST", rotate),
        Route(_ME_PATH, show_own_key, methods=["GET"]),
    ]
