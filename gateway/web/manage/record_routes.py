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
from gateway.web.manage.access import Access, Manager
from gateway.web.query import read_query
from gateway.web.request_info import get_request_info

LIMITS_PATH: Final = "/v1/manage/limits"
KEYS_PATH: Final = "/v1/manage/keys"
_Perform = Callable[[Manager, Request, dict[str, Any]], Awaitable[dict[str, Any]]]


class RecordOperations(Protocol):
    """The operations on one kind of record.

    The parameter `project` is the only project that the caller sees; None: all projects. Each method raises BadRequest,
    UnknownId and StoreError.
    """

    async def show_all(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]: ...
    async def add(self, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]: ...
    async def show(self, id: int, *, project: str | None = None) -> dict[str, Any]: ...
    async def change(self, id: int, raw: RawArguments, *, project: str | None = None) -> dict[str, Any]: ...
    async def remove(self, id: int, *, project: str | None = None) -> dict[str, Any]: ...


class ManagedRoutes(Struct, frozen=True):
    """Makes routes that answer with a JSON object. A request's body is one, too; without a body it counts as empty."""

    access: Access
    bodies: BodyReader

    def make(self, path: str, method: str, perform: _Perform, *, status: int = 200) -> Route:
        """Returns a route.

        perform: performs the operation; it gets the caller, the request and its body, and returns the reply's body.
        """

        async def answer(request: Request) -> Response:
            get_request_info(request.scope).route = "manage"
            # Each method other than GET changes something.
            manager = await self.access.admit(request, writes=method != "GET")
            async with self.bodies.read(request.scope, request.receive) as raw:
                body = await parse_json_body(bytes(raw)) if raw else {}
            check_no_nul(body)
            with map_store_errors():
                answer_body = await perform(manager, request, body)
            return JsonResponse(answer_body, status)

        return Route(path, answer, methods=[method])


def make_record_routes(path: str, operations: RecordOperations, managed: ManagedRoutes) -> list[Route]:
    """Returns the routes of one kind of record. path: the path of the list."""

    async def show_all(manager: Manager, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show_all(read_query(request.scope), project=manager.project)

    async def add(manager: Manager, _: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.add(body, project=manager.project)

    async def show(manager: Manager, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show(read_record_number(request), project=manager.project)

    async def change(manager: Manager, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return await operations.change(read_record_number(request), body, project=manager.project)

    async def remove(manager: Manager, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.remove(read_record_number(request), project=manager.project)

    record_path = f"{path}/{{id}}"
    return [
        managed.make(path, "GET", show_all),
        managed.make(path, "POST", add, status=201),
        managed.make(record_path, "GET", show),
        managed.make(record_path, "PATCH", change),
        managed.make(record_path, "DELETE", remove),
    ]


def read_record_number(request: Request) -> int:
    """Returns the number of a record in a path. Raises: UnknownId: the path has no number there."""
    text: str = request.path_params["id"]
    number = parse_record_number(text)
    if number is None:
        raise UnknownId(f"There is nothing with the id {text!r}.")
    return number
