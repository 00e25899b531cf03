"""`/v1/manage/keys`, `/v1/manage/limits` and their like: records that are listed, added, shown, changed and removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.nul import check_no_nul
from gateway.errors import UnknownId
from gateway.run.admin.list_page import parse_record_number
from gateway.run.admin.operation_arguments import RawArguments
from gateway.run.store_errors import map_store_errors
from gateway.web.body import BodyReader, parse_json_body
from gateway.web.json_response import JsonResponse
from gateway.web.manage.manage_guard import ManageGuard
from gateway.web.query import read_query
from gateway.web.request_info import get_request_info

LIMITS_PATH: Final = "/v1/manage/limits"
KEYS_PATH: Final = "/v1/manage/keys"
# An operation of a route: it gets the only project that the caller manages (None: all projects), the request and the
# request's body, and returns the reply's body.
_Operation = Callable[[str | None, Request, dict[str, Any]], Awaitable[dict[str, Any]]]


class RecordOperations(Protocol):
    """The operations on one kind of record. Each raises BadRequest, UnknownId and StoreError.

    raw: the parameters of the request, not checked yet.
    number: the number of the record.
    project: the only project that the caller sees; None: all projects.
    """

    async def show_all(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]: ...
    async def add(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]: ...
    async def show(self, number: int, *, project: str | None = None) -> dict[str, Any]: ...
    async def change(
        self, number: int, raw: RawArguments, *, project: str | None = None
    ) -> dict[str, Any]: ...
    async def remove(self, number: int, *, project: str | None = None) -> dict[str, Any]: ...


class ManageRouteFactory(Struct, frozen=True):
    """Makes routes of `/v1/manage` whose requests and replies have a JSON object as their body."""

    # Admits the callers.
    guard: ManageGuard
    # Reads the bodies of requests.
    bodies: BodyReader

    def make_route(self, path: str, method: str, operation: _Operation, *, status: int = 200) -> Route:
        """Returns a route. A request without a body counts as one with an empty object.

        status: the status of a reply to an operation that has succeeded.
        """

        async def handle(request: Request) -> Response:
            get_request_info(request.scope).route = "manage"
            # Each method other than GET changes something.
            project = await self.guard.admit(request, writes=method != "GET")
            async with self.bodies.read(request.scope, request.receive) as raw_body:
                body = await parse_json_body(bytes(raw_body)) if raw_body else {}
            check_no_nul(body)
            with map_store_errors():
                reply_body = await operation(project, request, body)
            return JsonResponse(reply_body, status)

        return Route(path, handle, methods=[method])


def make_record_routes(
    path: str, operations: RecordOperations, route_factory: ManageRouteFactory
) -> list[Route]:
    """Returns the routes of one kind of record.

    path: the path of the list; the path of a record has the record's number after it.
    """

    async def show_all(project: str | None, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show_all(read_query(request.scope), project=project)

    async def add(project: str | None, _: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.add(body, project=project)

    async def show(project: str | None, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show(read_record_number(request), project=project)

    async def change(project: str | None, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.change(read_record_number(request), body, project=project)

    async def remove(project: str | None, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.remove(read_record_number(request), project=project)

    record_path = f"{path}/{{id}}"
    return [
        route_factory.make_route(path, "GET", show_all),
        route_factory.make_route(path, "POST", add, status=201),
        route_factory.make_route(record_path, "GET", show),
        route_factory.make_route(record_path, "PATCH", change),
        route_factory.make_route(record_path, "DELETE", remove),
    ]


def read_record_number(request: Request) -> int:
    """Returns the number of a record in a path. Raises: UnknownId: the path has no number there."""
    text: str = request.path_params["id"]
    number = parse_record_number(text)
    if number is None:
        raise UnknownId(f"There is nothing with the id {text!r}.")
    return number
