"""The context of an agent as the agents API shows it: the parts of its next prompt, with estimated tokens."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.core.prompt.note_text import estimate_tokens
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_body import make_body


def render_context(
    prompt: Prompt, *, system: str, window: int, passage_count: int, message_count: int
) -> dict[str, Any]:
    """Returns the JSON of a prompt in its parts.

    system: the agent's own system text, with which the memory section begins.
    window: the size of the model's context window in tokens.
    passage_count: the number of the agent's passages.
    message_count: the number of messages in all conversations of the agent.
    """
    body, summary = make_body(prompt), prompt.window.summary
    messages = [message for message in body["messages"] if message.get("role") != "system"]
    core_memory = prompt.section.text.removeprefix(system).strip()
    tools = body.get("tools") or []
    counts = {
        "num_tokens_system": estimate_tokens(system),
        "num_tokens_core_memory": estimate_tokens(core_memory),
        "num_tokens_summary_memory": estimate_tokens(summary),
        "num_tokens_functions_definitions": estimate_tokens(orjson.dumps(tools).decode()) if tools else 0,
        "num_tokens_messages": sum(estimate_tokens(orjson.dumps(message).decode()) for message in messages),
        "num_tokens_external_memory_summary": 0,  # there is none; Letta's clients want the fields
    }
    return {
        "context_window_size_max": window,
        "context_window_size_current": sum(counts.values()),
        "num_messages": len(messages),
        "num_archival_memory": passage_count,
        "num_recall_memory": message_count,
        **counts,
        "system_prompt": system,
        "core_memory": core_memory,
        "summary_memory": summary or None,
        "external_memory_summary": "",
        "functions_definitions": tools,
        "messages": messages,
    }
