"""`GET /v1/models` and `GET /v1/models/{id}`.

They are answered at once from the list that is known; only an upstream that wants the caller's own key is waited for.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.run.upstream.forward import UPSTREAM_HEADER
from gateway.run.upstream.models import ModelList
from gateway.web.middleware import trace_of


def model_routes(models: ModelList) -> list[Route]:
    async def index(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.route = "models"
        named = request.headers.get(UPSTREAM_HEADER)
        return _json({"object": "list", "data": await models.entries_for(trace.caller.credential, named)})

    async def one(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.route = "models"
        return _json(await models.find(request.path_params["name"], trace.caller.credential))

    return [Route("/v1/models", index), Route("/v1/models/{name:path}", one)]


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
