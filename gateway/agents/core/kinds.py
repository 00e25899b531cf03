"""Kinds of agents: how each speaks, and with which tools and rules it begins. The ids of built-in tools.

A kind has its name in the agents API. The definition of a new agent gets a copy of the tools and rules of its kind, so
a change here does not change existing agents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct

from gateway.core.agent import SpeakingStyle
from gateway.core.memory.builtin import BUILT_IN_TOOLS, ToolUse, list_built_in_tools

MULTI_AGENT_TOOLS = list_built_in_tools(ToolUse.ASK_AGENT)
# The tools that an agent has while a folder is attached to it.
FILE_TOOLS = list_built_in_tools(ToolUse.SEARCH_FILES)

# Tools of Letta's that need a service outside the gateway. Each exists here only if a caller has created it.
EXTERNAL_TOOLS = frozenset({"web_search", "fetch_webpage", "run_code", "run_code_with_tools"})

# The turn ends after these built-in tools, and goes on after all others.
_ENDS_TURN = frozenset({"send_message", "send_message_to_agent_async", "memory_finish_edits"})

# The uid of each built-in tool by its name. Clients store the uids, so they are the same in every database.
BUILT_IN_UIDS = {
    name: blake2b(name.encode(), digest_size=16, person=b"mnemogate tool").hexdigest()
    for name in BUILT_IN_TOOLS
}
# The number of each built-in tool by its name. Stored attachments of agents have the number in place of a row.
BUILT_IN_NUMBERS = {name: -1 - index for index, name in enumerate(BUILT_IN_TOOLS)}
FILE_TOOL_NUMBERS = tuple(BUILT_IN_NUMBERS[name] for name in FILE_TOOLS)

_BLOCK_EDITS = ("memory_insert", "memory_replace")
_OLDER_BLOCK_EDITS = ("core_memory_append", "core_memory_replace")
_SLEEPTIME_TOOLS = ("memory_replace", "memory_insert", "memory_rethink", "memory_finish_edits")
_MESSAGE_TOOLS = ("send_message", "conversation_search")


class AgentKind(Struct, frozen=True):
    """A kind of agents."""

    # The way in which an agent speaks: by its reply, or by the tool `send_message`.
    style: SpeakingStyle
    # The built-in tools that a new agent has.
    tools: tuple[str, ...] = ()
    # True: a new agent gets a rule for each of these tools, by which its turn ends or goes on after the tool.
    has_rules: bool = False
    # True: the window is emptied before each user message.
    clears: bool = False
    # The most messages of the window; None: no bound.
    most_messages: int | None = None
    # The fewest messages that the window retains; None: no bound.
    least_messages: int | None = None
    # The default filler before a tool.
    filler: Literal["model", "none"] = "none"


KINDS: Mapping[str, AgentKind] = MappingProxyType(
    {
        "letta_v1_agent": AgentKind("reply", ("conversation_search", *_BLOCK_EDITS)),
        "react_agent": AgentKind("reply"),
        "sleeptime_agent": AgentKind("reply", _SLEEPTIME_TOOLS, has_rules=True, clears=True),
        "voice_convo_agent": AgentKind(
            "reply", ("search_memory",), most_messages=30, least_messages=15, filler="model"
        ),
        "voice_sleeptime_agent": AgentKind("reply", _SLEEPTIME_TOOLS, has_rules=True, clears=True),
        "memgpt_agent": AgentKind("message", (*_MESSAGE_TOOLS, *_OLDER_BLOCK_EDITS), has_rules=True),
        "memgpt_v2_agent": AgentKind("message", (*_MESSAGE_TOOLS, *_BLOCK_EDITS), has_rules=True),
        "split_thread_agent": AgentKind("message", (*_MESSAGE_TOOLS, *_OLDER_BLOCK_EDITS), has_rules=True),
        "workflow_agent": AgentKind("message", clears=True),
    }
)

# The kind of an agent that is created without one, and of users' memories.
DEFAULT_KIND = "letta_v1_agent"
VOICE_KIND = "voice_convo_agent"
# Agents of these kinds read the messages of others and get none themselves.
READING_KINDS = frozenset({"sleeptime_agent", "voice_sleeptime_agent"})


def choose_kind(name: str) -> AgentKind:
    """Returns the kind with this name; the default kind if the name is unknown."""
    return KINDS.get(name, KINDS[DEFAULT_KIND])


def make_base_rules(tools: Sequence[str], rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a rule for each of these built-in tools, by which the turn ends or goes on after the tool.

    rules: the agent's own rules. A tool with such a rule among them gets no other.
    """
    ruled_names = {
        rule.get("tool_name") for rule in rules if rule.get("type") in ("continue_loop", "exit_loop")
    }
    return [
        {"tool_name": name, "type": "exit_loop" if name in _ENDS_TURN else "continue_loop"}
        for name in tools
        if name in BUILT_IN_TOOLS and name not in ruled_names
    ]
