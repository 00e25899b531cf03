"""The agent that a request names, by its header or its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.core.request.request_ids import normalize_id, read_header_id
from gateway.errors import BadRequest, UnknownModel

# The header that names the agent of a request.
AGENT_HEADER = b"x-mnemogate-agent"
# The beginning of a model's name that asks for an agent.
AGENT_PREFIX = "agent/"
# The id of an agent of the agents API.
_AGENT_ID = re.compile(r"agent-(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def asks_agent(model: str) -> bool:
    """Returns whether a model's name asks for an agent: `agent/<name or id>`, or an agent's id by itself."""
    # Nearly all names are names of models, for which the first comparison is enough.
    return model.startswith("agent") and (
        model.startswith(AGENT_PREFIX) or _AGENT_ID.fullmatch(model) is not None
    )


def read_agent(headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> str | None:
    """Returns the name or id of the agent; None: the request names no agent. Raises: BadRequest."""
    raw = headers.get(AGENT_HEADER)
    header_agent = None if raw is None else read_header_id(raw, "x-mnemogate-agent")
    model = body.get("model")
    if not isinstance(model, str) or not asks_agent(model):
        return header_agent
    model_agent = normalize_id(model.removeprefix(AGENT_PREFIX), "model")
    if model_agent is None:
        raise UnknownModel("`model` names no agent: expected `agent/<name or id>`.", param="model")
    if header_agent is not None and header_agent != model_agent:
        raise BadRequest(
            "`model` and `x-mnemogate-agent` name two different agents.", param="x-mnemogate-agent"
        )
    return model_agent
