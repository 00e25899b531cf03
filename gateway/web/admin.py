"""Makes the route through which the command line reaches the process that owns the database."""

from __future__ import annotations

import hmac
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import BadRequest, BodyTooLarge, NotAuthenticated
from gateway.run.admin.command_line.serving import ADMIN_HEADER
from gateway.run.admin.command_line.streams import MAX_PAGE_JSON_BYTES
from gateway.run.admin.operation_table import OperationTable
from gateway.web.json_response import JsonResponse
from gateway.web.request_info import get_request_info

ADMIN_PREFIX = "/admin/"
# The most bytes of an operation's arguments: a page of lines, and 64 KiB for the other arguments and the commas.
_MAX_ARGUMENT_BYTES = MAX_PAGE_JSON_BYTES + (64 << 10)


def make_admin_routes(operations: OperationTable, token: str) -> list[Route]:
    """Returns the route of operations. token: the secret that a caller has to present."""

    async def perform(request: Request) -> Response:
        get_request_info(request.scope).route = "admin"
        presented_token = request.headers.get(ADMIN_HEADER, "")
        if not hmac.compare_digest(presented_token.encode("utf-8", "surrogateescape"), token.encode()):
            raise NotAuthenticated("This route is for the command line of the account that runs the gateway.")
        arguments = await _read_arguments(request)
        return JsonResponse(await operations.perform(request.path_params["operation"], arguments))

    return [Route(ADMIN_PREFIX + "{operation}", perform, methods=["POST"])]


async def _read_arguments(request: Request) -> dict[str, Any]:
    """Returns the arguments of an operation. Raises: BodyTooLarge; BadRequest: the body is no JSON object."""
    # The limit of a chat's body does not hold here: only the operator calls this route.
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_ARGUMENT_BYTES:
            raise BodyTooLarge(f"The arguments have more than {_MAX_ARGUMENT_BYTES} bytes.")
    try:
        arguments = orjson.loads(body)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise BadRequest("The arguments must be a JSON object.")
    return arguments
