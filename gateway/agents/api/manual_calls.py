"""Calls of tools by hand: by a request of the agents API, without a model."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from gateway.agents.api._route import ApiRequest
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.tools.argument_check import validate_arguments
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.agents.wire.struct_fields import Body, Maybe
from gateway.core import exact_json, ids
from gateway.core.definition import ToolDefinition
from gateway.core.nul import without_nul
from gateway.errors import BadRequest
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer


class ManualCall(Body):
    """The body of a call by hand: the arguments of the tool."""

    args: Maybe[dict[str, Any]] = UNSET


async def call_by_hand(
    tools: DefinedTools, request: ApiRequest, name: str, tool: ToolDefinition, view: AgentView | None = None
) -> ToolAnswer:
    """Returns the answer to a call of a tool with the arguments in the request's body.

    view: the agent for which the tool is called; None: the tool is called for no agent.

    Raises: BadRequest if the arguments are wrong.
    """
    # Parsed again from the bytes of the body, so that integers of any size stay exact.
    sent_arguments = without_nul(exact_json.loads(request.data.decode() or "{}").get("args") or {})
    parameters = tool.schema.get("parameters") or {}
    validated = await validate_arguments(tools.children, name, parameters, sent_arguments)
    if validated.error is not None:
        raise BadRequest(validated.error, param="args")
    call = ForeignCall(
        name,
        validated.arguments,
        call_id="",
        agent="" if view is None else ids.make_id("agent", view.agent.uid),
        run="",
        key=ids.new_uid(),
        agent_name="" if view is None else view.definition.name,
        blocks=() if view is None else [entry.block for entry in view.blocks],
        project=request.project,
    )
    return await tools.run(tool, call)
