"""`GET /v1/models` and `GET /v1/models/{id}`.

Clients of Anthropic's API, which send `anthropic-version`, get lists in its form. The cached lists of upstreams are
sent at once; only an upstream that wants the caller's own key is asked first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.ids import make_id, parse_uid
from gateway.core.request.requested_agent import AGENT_PREFIX, asks_agent
from gateway.dialects.messages.models import render_model, render_page
from gateway.run.upstream.model_list import ModelList
from gateway.web.json_response import JsonResponse
from gateway.web.messages_paths import is_anthropic_client
from gateway.web.raw_headers import read_upstream_name
from gateway.web.request_info import RequestInfo, get_request_info
from storage.definition_records import Definition
from storage.errors import StoreError
from storage.listing import NamedAgent

# The most agents in a list. Not measured: clients read the list as a whole, and older agents are not in it.
_MAX_LISTED_AGENTS = 1000


class NamedAgents(Protocol):
    """The agents of the agents API. The methods raise StoreError."""

    async def list_newest(self, project: str, limit: int) -> Sequence[NamedAgent]:
        """Returns the newest agents of a project."""

    async def find_by_name_or_uid(self, project: str, name: str, uid: str | None) -> Sequence[Definition]:
        """Returns the definition of a project's agent with this public id, or of at most two agents with this name.

        uid: the public id; None: the name is searched for.
        """


def make_model_routes(models: ModelList, agents: NamedAgents | None) -> list[Route]:
    """Returns the routes. agents: the agents of the agents API; None: no agents are listed."""
    handlers = _ModelHandlers(models, agents)
    return [
        Route("/v1/models", handlers.list_models),
        Route("/v1/models/{name:path}", handlers.show_model),
    ]


@dataclass(eq=False)
class _ModelHandlers:
    """Answers the requests for models."""

    # The models of all upstreams.
    models: ModelList
    # The agents of the agents API; None: no agents are listed.
    agents: NamedAgents | None

    async def list_models(self, request: Request) -> Response:
        """Returns all models that the caller may ask for."""
        info = get_request_info(request.scope)
        info.route = "models"
        upstream = read_upstream_name(request.scope["headers"])
        agent_entries = await self._list_agent_entries(info)
        # If the caller has agents, they are listed even if an upstream fails.
        upstream_entries = await self.models.list_entries_for(
            info.caller.credential, upstream, has_others=bool(agent_entries)
        )
        entries = (*agent_entries, *upstream_entries)
        allowed_entries = [entry for entry in entries if info.caller.may_ask(str(entry.get("id")))]
        if is_anthropic_client(request.scope):
            return JsonResponse(render_page(allowed_entries, request.query_params))
        return JsonResponse({"object": "list", "data": allowed_entries})

    async def show_model(self, request: Request) -> Response:
        """Returns one model, by its name."""
        info = get_request_info(request.scope)
        info.route = "models"
        name = request.path_params["name"]
        info.caller.check_model(name)
        entry = await self._find_agent_entry(info, name) if asks_agent(name) else None
        if entry is None:
            entry = await self.models.get(name, info.caller.credential)
        return JsonResponse(render_model(entry) if is_anthropic_client(request.scope) else entry)

    async def _list_agent_entries(self, info: RequestInfo) -> list[dict[str, Any]]:
        """Returns the caller's newest agents as models: by their names, or by their ids if two have the same name."""
        agents = self._find_agents(info)
        if agents is None:
            return []
        try:
            named_agents = await agents.list_newest(info.caller.project, _MAX_LISTED_AGENTS)
        except StoreError:
            # Without its store the gateway still lists the models of upstreams.
            return []
        counts = Counter(agent.name for agent in named_agents)
        return [
            _make_entry(
                AGENT_PREFIX + (agent.name if counts[agent.name] == 1 else make_id("agent", agent.uid)),
                agent.created,
            )
            for agent in named_agents
        ]

    async def _find_agent_entry(self, info: RequestInfo, model: str) -> dict[str, Any] | None:
        """Returns the caller's agent that a model's name asks for as a model, or None if not exactly one is found."""
        agents = self._find_agents(info)
        if agents is None:
            return None
        name = model.removeprefix(AGENT_PREFIX)
        try:
            definitions = await agents.find_by_name_or_uid(
                info.caller.project, name, parse_uid("agent", name)
            )
        except StoreError:
            return None  # the name may be a profile's
        return _make_entry(model, definitions[0].created) if len(definitions) == 1 else None

    def _find_agents(self, info: RequestInfo) -> NamedAgents | None:
        """Returns the agents of the agents API if the caller has any."""
        # The agents belong to their project, so a key of one user does not open them.
        return self.agents if info.caller.user is None else None


def _make_entry(model: str, created: float) -> dict[str, Any]:
    """Returns an agent as a model.

    model: the name under which chat completions ask the agent.
    created: the time when the agent was made, in seconds since the epoch.
    """
    return {"id": model, "object": "model", "created": int(created), "owned_by": "mnemogate"}
