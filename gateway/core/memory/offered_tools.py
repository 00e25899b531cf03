"""The names under which memory tools are offered to a model, and the requests that can have such tools."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from adapters.types import Json
from gateway.core.grammar_fields import has_grammar
from gateway.core.memory.memory_tools import MEMORY_TOOLS

PREFIX = "mnemogate_"


def make_tool_definitions(names: Mapping[str, str]) -> list[Json]:
    """Returns the entries for a request's `tools`. names: offered name -> canonical tool, in a fixed order."""
    return [
        {"type": "function", "function": {"name": name, **MEMORY_TOOLS[tool].schema}}
        for name, tool in names.items()
    ]


def allows_hidden_tools(body: Mapping[str, Any]) -> bool:
    """Returns whether a request can have tools that its client does not know of.

    It can if it asks for one choice, leaves the choice of tools to the model, and takes a reply in plain text. In any
    other request a hidden round of tools would change the client's wish, could not be hidden, or is refused.
    """
    if body.get("n") not in (None, 1) or body.get("logprobs") or body.get("top_logprobs") is not None:
        return False
    if body.get("tool_choice") not in (None, "auto") or body.get("function_call") is not None:
        return False
    if body.get("functions") is not None or body.get("audio") is not None:
        return False
    # OpenAI takes no functions with a predicted output, nor do its models that search the web by themselves.
    if body.get("prediction") is not None or body.get("web_search_options") is not None:
        return False
    if body.get("tools") is not None and not isinstance(body["tools"], list):
        return False
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        return False
    if has_grammar(body):  # llama.cpp refuses it with tools
        return False
    if body.get("modalities") not in (None, ["text"]):
        return False
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    # The model is to continue a last message that is the assistant's.
    return messages[-1].get("role") != "assistant"


def choose_tool_names(
    enabled: Iterable[str], client_names: Collection[str], earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the tools that one request offers: offered name -> canonical tool. {}: the request gets no `tools`.

    enabled: the canonical names, in the order of the profile.
    client_names: the names of the client's own tools.
    earlier: offered name -> canonical tool, from the first offer in this conversation. These names stay; if a tool of
        the client's has taken one of them since, no tool is offered. None: no tool was offered yet.
    """
    if earlier:
        if any(name in client_names for name in earlier):
            return {}
        allowed = frozenset(enabled)
        return {name: tool for name, tool in earlier.items() if tool in allowed}
    offered: dict[str, str] = {}
    for tool in enabled:
        if tool not in MEMORY_TOOLS:
            continue
        name = tool
        while name in client_names or name in offered:
            name = PREFIX + name
        offered[name] = tool
    return offered
