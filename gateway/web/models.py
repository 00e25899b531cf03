"""`GET /v1/models` and `GET /v1/models/{id}`, answered at once from the list that is known."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import UnknownModel
from gateway.run.upstream.models import ModelList
from gateway.web.middleware import trace_of


def model_routes(models: ModelList) -> list[Route]:
    async def index(request: Request) -> Response:
        trace_of(request.scope).route = "models"
        return _json({"object": "list", "data": models.entries})

    async def one(request: Request) -> Response:
        trace_of(request.scope).route = "models"
        name = request.path_params["name"]
        for entry in models.entries:
            if entry["id"] == name:
                return _json(entry)
        raise UnknownModel(f"The model {name!r} does not exist here.", param="model")

    return [Route("/v1/models", index), Route("/v1/models/{name:path}", one)]


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
