"""The memory tools that a request is offered, by its agent, its memory mode and its conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.core.memory.memory_tools import BLOCK_TOOLS, MEMORY_TOOLS
from gateway.core.memory.offered_tools import allows_hidden_tools, choose_tool_names
from gateway.core.request.memory_mode import Mode
from gateway.run.memory.memory_context import MemoryRequest
from storage.records import Agent, SentSection


def offer_tools(
    request: MemoryRequest, agent: Agent, section: SentSection | None, body: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the memory tools for a request: offered name -> tool.

    A request is offered memory tools if it names an agent or has tools of its own; without a user, only the tools that
    edit blocks. A request that only reads memory is offered the tools that its conversation has: other tools would
    change the beginning of the prompt, and the provider's cache would not be used.

    section: the path's section, which has the tool names that the conversation uses already; None: no section was sent.
    body: the body of the chat completion.
    """
    chat = request.chat
    identity = request.identity
    spec = request.spec
    if not spec.offers_tools or (identity.agent is None and not chat.has_tools):
        return {}
    if sampling := spec.definition.sampling:
        # Fields that come from the agent's definition, such as a response_format, do not rule out its tools.
        body = {
            name: value for name, value in body.items() if name not in sampling or sampling[name] != value
        }
    if not allows_hidden_tools(body):
        return {}
    agreed_names = section.known.get("tools") if section else None
    if identity.mode is Mode.READ and (not spec.is_profile or not agreed_names):
        return {}
    if not spec.is_profile:
        # On a clash of names the client's tool wins.
        return {tool.name: tool.name for tool in spec.tools if tool.name not in chat.tool_names}
    enabled = MEMORY_TOOLS if agent.scope.spans_conversations else BLOCK_TOOLS
    return choose_tool_names(enabled, frozenset(chat.tool_names), agreed_names)
