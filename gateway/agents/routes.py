"""The routes of the agents API, and the document that describes them."""

from __future__ import annotations

from functools import cache, partial
from importlib.metadata import version
from typing import Any, Final, Protocol

from starlette.routing import Route

from gateway.agents.agent_file.file_routes import AgentFileRoutes
from gateway.agents.api._openapi import describe_routes
from gateway.agents.api._refused import REFUSED_ROUTES
from gateway.agents.api._route import AgentsRoute, ApiRequest, make_starlette_routes
from gateway.agents.api.agents import AgentRoutes
from gateway.agents.api.batches import BatchRoutes
from gateway.agents.api.blocks import BlockRoutes
from gateway.agents.api.conversations import ConversationRoutes
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.folders import FolderRoutes
from gateway.agents.api.groups import GroupRoutes
from gateway.agents.api.identities import IdentityRoutes
from gateway.agents.api.legacy import LegacyRoutes
from gateway.agents.api.mcp_servers import McpServerRoutes
from gateway.agents.api.messages import MessageRoutes
from gateway.agents.api.models_and_tags import ModelAndTagRoutes
from gateway.agents.api.passages import ArchiveRoutes, PassageRoutes
from gateway.agents.api.runs import RunRoutes, StepRoutes
from gateway.agents.api.sends import SendRoutes
from gateway.agents.api.tools import ToolRoutes
from gateway.agents.wire.faults import LettaErrors
from gateway.errors import ErrorForm
from gateway.web.body import BodyReader

# The paths with errors in the form of this API, whatever raises them. `/v1/messages` without a slash is Anthropic's.
_PREFIXES: Final = (
    "/v1/agents", "/v1/blocks", "/v1/tools", "/v1/runs", "/v1/steps", "/v1/tags", "/v1/passages", "/v1/messages/",
    "/v1/archives", "/v1/folders", "/v1/sources", "/v1/mcp-servers", "/v1/identities", "/v1/templates", "/v1/groups",
    "/v1/environments", "/v1/client-side-access-tokens", "/v1/health", "/v1/jobs", "/v1/providers",
    "/v1/telemetry", "/v1/projects", "/openapi.json",
    # Other conversations are OpenAI's.
    "/v1/conversations/conv-", "/v1/conversations/agent-", "/v1/conversations/default",
)  # fmt: skip


class _HasRoutes(Protocol):
    """A class with the routes of one kind of resource, and the handlers that answer them."""

    def list_routes(self) -> list[AgentsRoute]:
        """Returns the routes of the resource, in the order in which paths are matched."""


def list_error_forms() -> dict[str, ErrorForm]:
    """Returns the form of errors by path prefix."""
    return dict.fromkeys(_PREFIXES, LettaErrors())


def make_routes(api: AgentsApi, bodies: BodyReader) -> list[Route]:
    """Returns the routes of the agents API: first the served routes, then the refused ones."""
    gateway_version = version("mnemogate")
    resources: tuple[_HasRoutes, ...] = (
        # Paths are matched in order. Sends come first, because they must be fast.
        SendRoutes(api),
        # Before the messages, or `/messages/batches` would match `/messages/{message_id}`.
        BatchRoutes(api), AgentFileRoutes(api), AgentRoutes(api), BlockRoutes(api), ToolRoutes(api),
        McpServerRoutes(api), MessageRoutes(api), ConversationRoutes(api), PassageRoutes(api),
        ArchiveRoutes(api), FolderRoutes(api), RunRoutes(api), StepRoutes(api), GroupRoutes(api),
        IdentityRoutes(api), ModelAndTagRoutes(api, gateway_version), LegacyRoutes(api),
    )  # fmt: skip
    served = [route for resource in resources for route in resource.list_routes()]
    # The description is made at the first request for it.
    describe = cache(partial(describe_routes, served, gateway_version))

    async def describe_api(_: ApiRequest) -> Any:
        return describe()

    description = AgentsRoute("GET", "/openapi.json", describe_api, "Describe this API.", slashes=("",))
    return make_starlette_routes([*served, *REFUSED_ROUTES, description], bodies)
