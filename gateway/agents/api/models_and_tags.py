"""Models, tags and the health of the gateway, which belong to no agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.agents.api._paging import OLDEST_FIRST, read_page_at
from gateway.agents.api._query import ModelsQuery, TagsQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.model_json import render_embedding_model, render_model
from gateway.agents.registry.agent_models import find_model_window, make_handle
from gateway.agents.wire.sent_values import find_sent
from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.web.request_info import get_request_info


class ModelAndTagRoutes:
    """The routes of models, of tags and of the gateway's health."""

    def __init__(self, api: AgentsApi, version: str) -> None:
        """Makes the routes. version: the version of the gateway."""
        self._api = api
        self._version = version

    def list_routes(self) -> list[AgentsRoute]:
        return [
            AgentsRoute("GET", "/v1/tags", self.list_tags, paging=OLDEST_FIRST),
            # The path without the slash is OpenAI's.
            AgentsRoute("GET", "/v1/models", self.list_models, slashes=("/",)),
            AgentsRoute("GET", "/v1/models/embedding", self.list_embedders),
            AgentsRoute("GET", "/v1/health", self.report_health),
        ]

    async def list_tags(self, request: ApiRequest, query: TagsQuery) -> Sequence[str]:
        """List the tags of agents."""
        page, text = read_page_at(query, str), find_sent(query.query_text) or find_sent(query.name)
        return await self._api.store.defined_agents.list_tags(request.project, page, text=text)

    async def list_models(self, request: ApiRequest, query: ModelsQuery) -> list[dict[str, Any]]:
        """List the models that the caller may ask."""
        caller = get_request_info(request.http.scope).caller
        settings = self._api.settings
        names = [str(entry["id"]) for entry in await self._api.models.list_entries_for(caller.credential)]
        models = [
            render_model(make_handle(settings, name), find_model_window(settings, name))
            for name in names
            if caller.may_ask(name) and not name.startswith(AGENT_PREFIX)
        ]
        return [model for model in models if _matches(model, query)]

    async def list_embedders(self, request: ApiRequest) -> list[dict[str, Any]]:
        """List the embedding model, if there is one."""
        name = self._api.settings.memory.embedder
        return [] if not name else [render_embedding_model(name)]

    async def report_health(self, request: ApiRequest) -> dict[str, Any]:
        """Say that the gateway lives, and its version."""
        return {"status": "ok", "version": self._version}


def _matches(model: dict[str, Any], query: ModelsQuery) -> bool:
    """Returns whether a model has the provider that a query asks for. A field that was not sent matches all."""
    categories = find_sent(query.provider_category)
    return (
        find_sent(query.provider_name) in (None, model["provider_name"])
        and find_sent(query.provider_type) in (None, model["provider_type"])
        and (not categories or model["provider_category"] in categories)
    )
