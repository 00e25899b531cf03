"""The requests that the client can make and this API refuses: each path is answered with the reason."""

from __future__ import annotations

from typing import Final, NoReturn

from gateway.agents.api._route import AgentsRoute, ApiRequest, RouteHandler
from gateway.agents.api.identities import NO_BLOCKS
from gateway.errors import BadRequest

_HOSTED: Final = "It belongs to Letta's hosted product."
_FILES: Final = "Files are searched, not held in the prompt."
_STORED_ANYWAY: Final = "Chat completions to the model agent/<name> are kept by themselves."
_ASK_THE_MODEL: Final = "Ask the model itself: POST /v1/chat/completions."
_MCP: Final = "MCP servers and their tools are at /v1/mcp-servers."
_JOBS: Final = "Runs are at /v1/runs, batches of agents at /v1/messages/batches."
_PROVIDERS: Final = "Upstreams and their keys are named by the gateway's settings."
_TRACES: Final = "Requests are not stored, so there are no traces."
_RUNS_STAY: Final = "A run is the record of a send, and goes with its agent. Its messages can be forgotten."
_OWN_GROUP: Final = "The group of an agent is its `managed_group`, and is at /v1/groups/{group_id}."
_NO_GROUP_MESSAGES: Final = "A group has no messages and blocks of its own: use those of its agents."
_LATER: Final = "This is not served yet."
_GROUPS: Final = (
    "A group is made and ended with its agent: enable_sleeptime; agents speak to one another by their tools."
)

# (methods, path, reason). A path that ends in `{rest:path}` stands for all paths below it.
REFUSED_PATHS: Final = (
    (("POST",), "/v1/agents/{agent_id}/messages/capture", _STORED_ANYWAY),
    (("POST",), "/v1/agents/{agent_id}/generate", _ASK_THE_MODEL),
    (("GET", "PUT"), "/v1/tools/mcp/servers", _MCP),
    (("GET", "POST", "PATCH", "DELETE"), "/v1/tools/mcp/servers/{rest:path}", _MCP),
    (("POST",), "/v1/agents/{agent_id}/files", _FILES),
    (("GET", "POST", "PATCH"), "/v1/agents/{agent_id}/files/{rest:path}", _FILES),
    (("GET", "POST", "DELETE"), "/v1/agents/{agent_id}/schedule", _LATER),
    (("GET", "DELETE"), "/v1/agents/{agent_id}/schedule/{rest:path}", _LATER),
    (("GET",), "/v1/identities/{identity_id}/blocks", NO_BLOCKS),
    (("PATCH",), "/v1/blocks/{block_id}/identities/{rest:path}", NO_BLOCKS),
    (("GET", "POST"), "/v1/templates", _HOSTED),
    (("GET", "POST", "PATCH", "DELETE"), "/v1/templates/{rest:path}", _HOSTED),
    (("GET", "POST"), "/v1/client-side-access-tokens", _HOSTED),
    (("DELETE",), "/v1/client-side-access-tokens/{rest:path}", _HOSTED),
    (("GET",), "/v1/environments", _HOSTED),
    (("GET", "POST"), "/v1/environments/{rest:path}", _HOSTED),
    (("GET",), "/v1/groups", _OWN_GROUP),
    (("POST",), "/v1/groups", _GROUPS),
    (("DELETE",), "/v1/groups/{group_id}", _GROUPS),
    (("GET", "POST", "PATCH"), "/v1/groups/{group_id}/{rest:path}", _NO_GROUP_MESSAGES),
    (("DELETE",), "/v1/runs/{run_id}", _RUNS_STAY),
    (("GET",), "/v1/agents/{agent_id}/groups", _OWN_GROUP),
    (("GET",), "/v1/jobs", _JOBS),
    (("GET", "PATCH", "DELETE"), "/v1/jobs/{rest:path}", _JOBS),
    (("GET", "POST"), "/v1/providers", _PROVIDERS),
    (("GET", "POST", "PATCH", "DELETE"), "/v1/providers/{rest:path}", _PROVIDERS),
    (("GET",), "/v1/telemetry/{step_id}", _TRACES),
    (("GET",), "/v1/projects", _HOSTED),
)


def _refuse_with(reason: str) -> RouteHandler:
    async def refuse(request: ApiRequest) -> NoReturn:
        raise BadRequest(reason)

    return refuse


# The routes that answer with their reason.
REFUSED_ROUTES: Final = tuple(
    AgentsRoute(method, path, _refuse_with(reason), f"Refused: {reason}", is_served=False)
    for methods, path, reason in REFUSED_PATHS
    for method in methods
)
