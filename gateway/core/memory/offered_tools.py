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

    In any other request a hidden round of tools would change the client's wish, could not be hidden, or is refused.
    """
    return _takes_plain_text(body) and _leaves_choice_of_tools(body) and _ends_with_prompt(body)


def _takes_plain_text(body: Mapping[str, Any]) -> bool:
    """Returns whether a request asks for one reply in plain text."""
    form = body.get("response_format")
    return (
        body.get("n") in (None, 1)
        and not body.get("logprobs")
        and body.get("top_logprobs") is None
        and body.get("audio") is None
        and body.get("modalities") in (None, ["text"])
        and (form is None or (isinstance(form, dict) and form.get("type") == "text"))
        and not has_grammar(body)  # llama.cpp refuses it with tools
    )


def _leaves_choice_of_tools(body: Mapping[str, Any]) -> bool:
    """Returns whether a request leaves the choice of tools to the model, and may have tools at all."""
    return (
        body.get("tool_choice") in (None, "auto")
        and (body.get("tools") is None or isinstance(body["tools"], list))
        and body.get("functions") is None
        and body.get("function_call") is None
        # OpenAI takes no functions with a predicted output, nor do its models that search the web by themselves.
        and body.get("prediction") is None
        and body.get("web_search_options") is None
    )


def _ends_with_prompt(body: Mapping[str, Any]) -> bool:
    """Returns whether the last message asks for a reply. A last message of the assistant is to be continued."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return messages[-1].get("role") != "assistant"


def choose_tool_names(
    enabled: Iterable[str], client_names: Collection[str], earlier_tools: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the tools that one request offers: offered name -> canonical tool. {}: the request gets no `tools`.

    enabled: the canonical names, in the order of the profile.
    client_names: the names of the client's own tools.
    earlier_tools: the canonical tools by their offered names, from the first offer in this conversation. These names
        stay; if a tool of the client's has taken one of them since, no tool is offered. None: no tool was offered yet.
    """
    if earlier_tools:
        if any(name in client_names for name in earlier_tools):
            return {}
        enabled_names = frozenset(enabled)
        return {name: tool for name, tool in earlier_tools.items() if tool in enabled_names}
    offered_tools: dict[str, str] = {}
    for tool in enabled:
        if tool not in MEMORY_TOOLS:
            continue
        name = tool
        while name in client_names or name in offered_tools:
            name = PREFIX + name
        offered_tools[name] = tool
    return offered_tools
