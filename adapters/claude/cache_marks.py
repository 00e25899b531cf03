"""Cache marks: the places up to which the provider keeps a prompt for the next request.

The Messages API keeps a prefix of tools, system and turns up to each mark, four marks at most, and finds it again if
the bytes before it are the same. Each turn of a conversation sends the one before it as its prefix, so these places
pay: the end of the tools (memory may change the system prompt), the end of the system prompt, the end of the list
(the next turn reads up to there), and the user turn before (for a turn with more blocks than are looked back over,
and for a newest message that is sent again with other words).
(platform.claude.com/docs/en/build-with-claude/prompt-caching)
"""

from __future__ import annotations

from adapters.types import Json


def place_marks(wire: Json, ttl: str | None) -> None:
    """Marks a request in which the client has marked nothing. ttl: None is the provider's default, five minutes."""
    mark: Json = {"type": "ephemeral"} if ttl is None else {"type": "ephemeral", "ttl": ttl}
    tools = wire.get("tools")
    if tools:
        last = next((n for n in reversed(range(len(tools))) if not tools[n].get("defer_loading")), None)
        if last is not None:
            tools[last] = {**tools[last], "cache_control": mark}
    if wire.get("system"):
        _mark_last(wire["system"], mark)
    # Assistant turns stay unmarked: thinking blocks must not be marked, and the user's turns serve as well.
    user_messages = [message for message in wire["messages"] if message["role"] == "user"]
    for message in user_messages[-2:]:
        _mark_last(message["content"], mark)


def _mark_last(blocks: list[Json], mark: Json) -> None:
    blocks[-1] = {**blocks[-1], "cache_control": mark}
