"""`/v1/memory/…`: why a reply recalled what it did, for applications that show sources under their replies."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import MemoryUnavailable
from gateway.run.admin.requests import RequestOperations
from gateway.web.middleware import trace_of
from storage.errors import StoreError


def memory_routes(requests: RequestOperations) -> list[Route]:
    """Returns the routes. A caller sees what belongs to the project of its key."""

    async def explain(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.route = "memory"
        try:
            found = await requests.explain(request.path_params["id"], trace.caller.project)
        except StoreError as error:
            raise MemoryUnavailable.since(error.status) from error
        return Response(msgspec.json.encode(found), media_type="application/json")

    return [Route("/v1/memory/requests/{id:path}", explain, methods=["GET"])]
