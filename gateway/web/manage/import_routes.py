"""`/v1/manage/imports`: the file is the body of the request."""

from __future__ import annotations

import asyncio
import tempfile
from typing import IO, Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import BadRequest, GatewayError
from gateway.run.admin.imports.import_operations import UNDO_WAIT_S, ImportOperations
from gateway.run.store_errors import map_store_errors
from gateway.web.json_response import JsonResponse
from gateway.web.manage.record_routes import ManageRouteFactory
from gateway.web.query import read_query
from gateway.web.request_info import get_request_info
from gateway.web.upload import UploadBody

_IMPORTS_PATH: Final = "/v1/manage/imports"
_FLAG_NAMES: Final = ("learn", "preview")
# A flag without a value is set.
_FLAG_VALUES: Final = {"true": True, "1": True, "": True, "false": False, "0": False}


def make_import_routes(
    operations: ImportOperations, route_factory: ManageRouteFactory, limit_bytes: int, timeout_s: float
) -> list[Route]:
    """Returns the routes of imports.

    limit_bytes: the most bytes of a file.
    timeout_s: the seconds that its bytes may take, as for `UploadBody`.
    """

    async def begin(request: Request) -> Response:
        """Begins the import of the body, or returns the preview of it."""
        get_request_info(request.scope).route = "manage"
        query = read_query(request.scope)
        project = await route_factory.guard.admit(request, writes=True)
        import_request = operations.read_request(_with_flags(query), visible_project=project)
        body = UploadBody(request.scope, request.receive, limit_bytes, timeout_s)
        file = await _store_body(body)
        with map_store_errors():
            running = await operations.begin(file, import_request)
            if import_request.is_preview and running.task is not None:
                await running.task
        status = 200 if import_request.is_preview else 202
        return JsonResponse(running.to_json(), status)

    async def show_all(project: str | None, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show_all(read_query(request.scope), project=project)

    async def show(project: str | None, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.show(request.path_params["id"], project=project)

    async def undo(project: str | None, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        return await operations.undo(request.path_params["id"], project=project, wait_s=UNDO_WAIT_S)

    import_path = f"{_IMPORTS_PATH}/{{id}}"
    return [
        Route(_IMPORTS_PATH, begin, methods=["POST"]),
        route_factory.make_route(_IMPORTS_PATH, "GET", show_all),
        route_factory.make_route(import_path, "GET", show),
        route_factory.make_route(import_path, "DELETE", undo),
    ]


async def _store_body(body: UploadBody) -> IO[bytes]:
    """Returns a temporary file with a body, which the import closes.

    Raises: GatewayError: the file cannot be written; the errors of `UploadBody.pieces`.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            async for piece in body.pieces():
                await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(file.flush)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise GatewayError(
            f"The file cannot be stored on this machine while it is imported: {error.strerror}. TMPDIR names the "
            "folder in which it is stored."
        ) from error
    return file


def _with_flags(query: dict[str, str]) -> dict[str, Any]:
    """Returns a query with its flags as booleans, and without other parameters that are empty. Raises: BadRequest."""
    arguments: dict[str, Any] = {name: value for name, value in query.items() if value or name in _FLAG_NAMES}
    for name in _FLAG_NAMES:
        if name in query:
            if query[name] not in _FLAG_VALUES:
                raise BadRequest(f"{name} must be true or false.", param=name)
            arguments[name] = _FLAG_VALUES[query[name]]
    return arguments
