"""Cache marks: the points up to which the provider caches a prompt for the next request.

The Messages API caches the prefix of tools, system and turns up to each mark, four marks at most, and uses it again if
its bytes are the same. Each request of a conversation has the request before it as its prefix, so marks pay at these
places: the end of the tools (memory may change the system prompt), the end of the system prompt, the last user turn
(the next request reads up to there), and the user turn before it (for a turn with more blocks than the API looks back
over, and for a last message that is sent again with other words).
(platform.claude.com/docs/en/build-with-claude/prompt-caching)
"""

from __future__ import annotations

from adapters.types import Json


def place_marks(claude_request: Json, ttl: str | None) -> None:
    """Marks a request without marks of the client. ttl: the marks' lifetime; None: the provider's, five minutes."""
    mark: Json = {"type": "ephemeral"}
    if ttl is not None:
        mark["ttl"] = ttl
    tools = claude_request.get("tools")
    if tools:
        indexes = reversed(range(len(tools)))
        last_index = next((index for index in indexes if not tools[index].get("defer_loading")), None)
        if last_index is not None:
            tools[last_index] = {**tools[last_index], "cache_control": mark}
    if claude_request.get("system"):
        _mark_last(claude_request["system"], mark)
    # Assistant turns stay unmarked: thinking blocks must not be marked, and the user's turns serve as well.
    user_messages = [message for message in claude_request["messages"] if message["role"] == "user"]
    for message in user_messages[-2:]:
        _mark_last(message["content"], mark)


def _mark_last(blocks: list[Json], mark: Json) -> None:
    blocks[-1] = {**blocks[-1], "cache_control": mark}
