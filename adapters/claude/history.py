"""The order of messages: OpenAI's list in, Anthropic's turns out.

The Messages API wants turns that alternate, beginning with the user's, and within a user's turn the results of the
calls just before it ahead of everything else. So all that stands between two assistant messages becomes one user
turn: tool results first, then user messages, in their order; assistant messages in a row become one. Of calls
with the same id, which are unique there, the later ones get another.

System messages ahead of everything are the `system` field. Later ones end the user turn that they stand in, which
is where the API takes them; a model that takes none there has them at the end of `system` instead, at the price of its
prompt cache. Where only such messages ask for a reply, a short turn of the gateway's stands for the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from adapters.claude.content import assistant_blocks, text_blocks, tool_result, user_blocks
from adapters.claude.error_form import Untranslatable
from adapters.claude.reply import THINKING
from adapters.types import Json

OPENING: Final = "(The assistant speaks first.)"
"""The first turn must be a user's, so a list that opens with the assistant's greeting gets this one before it.

So does one of system messages alone, by which voice agents ask for a greeting.
"""

AGAIN: Final = "(The assistant speaks again.)"
"""The last turn must be a user's, or its text is continued. A reply that is asked for behind one gets this between."""

BROKEN_OFF: Final = "(The reply was broken off.)"
"""It stands for a reply that only began a call of one of Anthropic's own tools."""

_PROVIDER_CALLS: Final = ("server_tool_use", "mcp_tool_use")


@dataclass(slots=True)
class ClaudeMessages:
    """Messages for the Messages API. system: text blocks. messages: their content is always a list of blocks."""

    system: list[Json] = field(default_factory=list)
    messages: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class _UserTurn:
    results: list[Json] = field(default_factory=list)
    content: list[Json] = field(default_factory=list)
    system: list[Json] = field(default_factory=list)


def arrange_turns(messages: Sequence[Json], *, late_system: bool) -> ClaudeMessages:
    """Returns the messages. late_system: the model takes system messages after the user's. Raises: Untranslatable."""
    found = ClaudeMessages()
    turn = _UserTurn()
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        match message.get("role"):
            case "system" | "developer":
                blocks = text_blocks(message, where)
                is_leading = not (found.messages or turn.results or turn.content)
                (found.system if is_leading else turn.system).extend(blocks)
            case "user":
                turn.content += user_blocks(message, where)
            case "tool":
                turn.results.append(tool_result(message, where))
            case "assistant":
                blocks = assistant_blocks(message, where)
                if blocks:  # an empty one separates nothing
                    _end_user_turn(found, turn, late_system)
                    turn = _UserTurn()
                    _add_assistant_turn(found, blocks)
            case role:
                raise Untranslatable(f"Messages of role '{role}' are not supported here.", f"{where}.role")
    if messages and messages[-1].get("role") != "assistant" and not (turn.results or turn.content):
        # Only system messages, or nothing visible, came after the last reply, and another one is asked for.
        turn.content.append({"type": "text", "text": AGAIN if found.messages else OPENING})
    _end_user_turn(found, turn, late_system)
    _make_ids_unique(found)
    _drop_unanswered_calls(found)
    _trim_prefill(found)
    return found


def _end_user_turn(history: ClaudeMessages, turn: _UserTurn, late_system: bool) -> None:
    blocks = [*turn.results, *turn.content]
    if blocks:
        history.messages.append({"role": "user", "content": blocks})
    if turn.system and blocks and late_system:
        history.messages.append({"role": "system", "content": turn.system})
    else:
        history.system += turn.system


def _add_assistant_turn(history: ClaudeMessages, blocks: list[Json]) -> None:
    if history.messages and history.messages[-1]["role"] == "assistant":
        history.messages[-1]["content"] += blocks
        return
    if not history.messages:
        history.messages.append({"role": "user", "content": [{"type": "text", "text": OPENING}]})
    history.messages.append({"role": "assistant", "content": blocks})


def _make_ids_unique(history: ClaudeMessages) -> None:
    """Renames calls with an id that occurs twice: some providers restart their numbers with each reply."""
    taken: set[str] = set()
    # From the id that a call came with to the ids that the last assistant message's calls of that id have now.
    last: dict[str, list[str]] = {}
    for message in history.messages:
        if message["role"] == "assistant":
            last = {}
        for block in message["content"]:
            match block:
                case {"type": "tool_use", "id": str(own)}:
                    while block["id"] in taken:
                        block["id"] = f"{own}_{len(taken)}"
                    taken.add(block["id"])
                    last.setdefault(own, []).append(block["id"])
                case {"type": "tool_result", "tool_use_id": str(own)} if own in last:
                    # Results come in the order of their calls; a result too many belongs to the last call.
                    block["tool_use_id"] = last[own][0]
                    last[own] = last[own][1:] or last[own]


def _drop_unanswered_calls(history: ClaudeMessages) -> None:
    """Drops calls of Anthropic's own tools without a result, which are refused: their reply was paused or broken off.

    They stay where the API goes on with them: at the end, and with calls that only their results follow.
    """
    calls: dict[str, int] = {}
    last = -1
    for place, message in enumerate(history.messages):
        if message["role"] != "assistant":
            continue
        last = place
        for block in message["content"]:
            kind = block.get("type")
            if kind in _PROVIDER_CALLS:
                calls[str(block.get("id"))] = place
            elif calls and isinstance(kind, str) and kind.endswith("_tool_result"):
                calls.pop(str(block.get("tool_use_id")), None)
    if not calls:
        return
    after = [block for each in history.messages[last + 1 :] for block in each["content"]]
    goes_on = all(block.get("type") == "tool_result" for block in after)
    for place in {place for place in calls.values() if place < last or not goes_on}:
        content: list[Json] = []
        is_after_call = False  # thoughts after such a call count there alone
        for block in history.messages[place]["content"]:
            if block.get("type") in _PROVIDER_CALLS and str(block.get("id")) in calls:
                is_after_call = True
            elif not (is_after_call and block.get("type") in THINKING):
                content.append(block)
        while content and content[-1].get("type") in THINKING:
            content.pop()
        history.messages[place]["content"] = content or [{"type": "text", "text": BROKEN_OFF}]


def _trim_prefill(history: ClaudeMessages) -> None:
    """Strips the end of a reply that the model is to continue: the API refuses white space there."""
    if not history.messages or history.messages[-1]["role"] != "assistant":
        return
    content = history.messages[-1]["content"]
    last = content[-1]
    if last.get("type") == "text" and isinstance(last.get("text"), str):
        content[-1] = {**last, "text": last["text"].rstrip()}
