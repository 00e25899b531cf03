"""`GET /v1/models` and `GET /v1/models/{id}`.

They are answered at once from the list that is known; only an upstream that wants the caller's own key is waited for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.ids import named
from gateway.core.request.identity import AGENT_PREFIX, asks_agent
from gateway.run.agents.registry import Registry
from gateway.run.upstream.models import ModelList
from gateway.web.headers import named_upstream
from gateway.web.middleware import trace_of
from storage.errors import StoreError


def model_routes(models: ModelList, registry: Registry) -> list[Route]:
    """registry: of the agents that were made over REST."""

    async def index(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.route = "models"
        upstream = named_upstream(request.scope["headers"])
        agents = await agent_models(registry, trace.caller.project)
        found = await models.entries_for(trace.caller.credential, upstream, has_others=bool(agents))
        return _json({"object": "list", "data": [*agents, *found]})

    async def one(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.route = "models"
        name = request.path_params["name"]
        if asks_agent(name):
            for each in await agent_models(registry, trace.caller.project):
                if name == each["id"]:
                    return _json(each)
        return _json(await models.find(name, trace.caller.credential))

    return [Route("/v1/models", index), Route("/v1/models/{name:path}", one)]


async def agent_models(registry: Registry, project: str) -> list[dict[str, Any]]:
    """Returns the newest agents as models: by their names, where two have one by their ids."""
    try:
        found = await registry.names(project)
    except StoreError:
        return []
    names = Counter(name for name, _, _ in found)
    return [
        {
            "id": AGENT_PREFIX + (name if names[name] == 1 else named("agent", uid)),
            "object": "model",
            "created": int(created),
            "owned_by": "mnemogate",
        }
        for name, uid, created in found
    ]


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
