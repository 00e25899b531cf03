"""The guide and the terms of an agent's turn, made of the agent's definition and its tool rules."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from gateway.agents.core.rule_guide import DEFAULT_MAX_STEPS, RuleGuide
from gateway.agents.core.tool_rules import CalledTool
from gateway.agents.runs.run import RoutedSend
from gateway.agents.tools.agent_tools import find_approval_tools, find_serial_tools, read_asides
from gateway.core.agent import AgentSpec
from gateway.core.prompt.window import reserve_for_reply
from gateway.core.tool_rule import read_rules
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import count_tokens
from gateway.tokens import count_upper_bound


def make_guide(
    spec: AgentSpec,
    prompt: Prompt,
    max_steps: int = DEFAULT_MAX_STEPS,
    calls: Iterable[CalledTool] = (),
    *,
    can_ask: bool = False,
    has_later_message: bool = False,
) -> RuleGuide:
    """Returns the guide of an agent's turn. The agent's rules do not apply if no tool is offered.

    calls: the calls of earlier runs since the user's newest message.
    can_ask: True if a person can be asked to approve a call.
    has_later_message: True if a message of the send follows the results of its calls.
    """
    names = [tool["function"]["name"] for tool in prompt.offered_tools]
    return RuleGuide(
        read_rules(spec.definition.rules) if names else (),
        names,
        style=spec.style if names else "reply",
        max_steps=max_steps,
        calls=calls,
        approval_tools=find_approval_tools(spec),
        can_ask=can_ask,
        has_later_message=has_later_message,
    )


def make_terms(send: RoutedSend, prompt: Prompt) -> TurnTerms:
    """Returns the terms of the turn in which an agent answers a send."""
    request = send.request
    return TurnTerms(
        wants_usage=request.wants_usage or send.shows_steps,
        adds_usage=prompt.adds_usage,
        gateway_tools=AllBut(request.tool_names),
        budget_tokens=None if send.shows_steps else request.max_tokens,
        holds_end=True,
        saves_steps=True,
        shows_steps=send.shows_steps,
        has_status=send.accepted is not None,
        serial_tools=find_serial_tools(send.spec),
        filler=send.spec.fixed_filler,
        asides=read_asides(send.spec, request.tool_names),
    )


async def is_overfull(prompt: Prompt) -> bool:
    """Returns whether the system text and the tools alone fill the window, so that evicting messages makes no room."""
    context, tools = prompt.target.context_window, prompt.tools
    text = prompt.system + (orjson.dumps(tools).decode() if tools else "")
    if context is None or count_upper_bound(text) < context // 2:
        return False
    reserve = reserve_for_reply(context, prompt.request.max_tokens)
    return await count_tokens(prompt.target.model, text) > context - reserve
