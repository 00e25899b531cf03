"""The order of messages: OpenAI's list in, Anthropic's turns out.

The Messages API wants turns that alternate, beginning with the user's, and within a user's turn the results of the
calls just before it ahead of everything else. So all that stands between two assistant messages becomes one user
turn: tool results first, then user messages, in their order; assistant messages in a row become one. The ids of
calls must be unique there: where calls share an id, the later calls get new ids.

System messages ahead of everything are the `system` field. Later ones end the user turn that they stand in, which
is where the API takes them; a model that takes none there has them at the end of `system` instead, at the price of its
prompt cache. Where only such messages ask for a reply, a short turn of the gateway's stands for the user's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Final

from adapters.claude.content import assistant_blocks, text_blocks, tool_result, user_blocks
from adapters.claude.error_form import Untranslatable
from adapters.claude.reply import THINKING_TYPES
from adapters.types import Json

# The first turn must be a user's: this one stands before an assistant's greeting. After system messages alone, by which
# voice agents ask for a greeting, it is the only one.
OPENING: Final = "(The assistant speaks first.)"
# The last turn must be a user's, or the model continues its text: this one stands between a reply and the next one.
AGAIN: Final = "(The assistant speaks again.)"
# It stands for a reply that only began a call of one of Anthropic's own tools.
BROKEN_OFF: Final = "(The reply was broken off.)"
_PROVIDER_CALLS: Final = ("server_tool_use", "mcp_tool_use")


@dataclass(slots=True)
class ClaudeMessages:
    """Messages for the Messages API."""

    # The system prompt, as text blocks.
    system: list[Json] = field(default_factory=list)
    # The content of each is a list of blocks.
    messages: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class _UserTurn:
    """The blocks of what stands between two assistant messages."""

    results: list[Json] = field(default_factory=list)
    content: list[Json] = field(default_factory=list)
    system: list[Json] = field(default_factory=list)


def arrange_turns(messages: Sequence[Json], *, late_system: bool) -> ClaudeMessages:
    """Returns the messages. late_system: the model takes system messages after the user's. Raises: Untranslatable."""
    history = ClaudeMessages()
    turn = _UserTurn()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        match message.get("role"):
            case "system" | "developer":
                blocks = text_blocks(message, where)
                is_leading = not (history.messages or turn.results or turn.content)
                (history.system if is_leading else turn.system).extend(blocks)
            case "user":
                turn.content += user_blocks(message, where)
            case "tool":
                turn.results.append(tool_result(message, where))
            case "assistant":
                blocks = assistant_blocks(message, where)
                if blocks:  # an empty one separates nothing
                    _end_user_turn(history, turn, late_system)
                    turn = _UserTurn()
                    _add_assistant_turn(history, blocks)
            case role:
                raise Untranslatable(f"Messages of role '{role}' are not supported here.", f"{where}.role")
    if messages and messages[-1].get("role") != "assistant" and not (turn.results or turn.content):
        # Only system messages, or nothing visible, came after the last reply, and another one is asked for.
        turn.content.append({"type": "text", "text": AGAIN if history.messages else OPENING})
    _end_user_turn(history, turn, late_system)
    _make_ids_unique(history)
    _drop_unanswered_calls(history)
    _trim_prefill(history)
    return history


def _end_user_turn(history: ClaudeMessages, turn: _UserTurn, late_system: bool) -> None:
    """Adds a user turn, and its system messages where the model takes them: after the turn, or to the system prompt.

    Added to the system prompt they change the prefix of the request, at the price of the prompt cache.
    """
    blocks = [*turn.results, *turn.content]
    if blocks:
        history.messages.append({"role": "user", "content": blocks})
    if turn.system and blocks and late_system:
        history.messages.append({"role": "system", "content": turn.system})
    else:  # the model takes none there, or there is no user turn that they could follow
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
    used_ids: set[str] = set()
    # How many ids were made of the one that a call came with.
    copies: Counter[str] = Counter()
    # From the id that calls of the last assistant message came with to the ids that they have now.
    new_ids: dict[str, deque[str]] = {}
    for message in history.messages:
        if message["role"] == "assistant":
            new_ids = {}
        for block in message["content"]:
            match block:
                case {"type": "tool_use", "id": str(id)}:
                    while block["id"] in used_ids:
                        copies[id] += 1
                        block["id"] = f"{id}_{copies[id]}"
                    used_ids.add(block["id"])
                    new_ids.setdefault(id, deque()).append(block["id"])
                case {"type": "tool_result", "tool_use_id": str(id)} if id in new_ids:
                    # Results come in the order of their calls; a result too many belongs to the last call.
                    block["tool_use_id"] = new_ids[id][0]
                    if len(new_ids[id]) > 1:
                        new_ids[id].popleft()


def _drop_unanswered_calls(history: ClaudeMessages) -> None:
    """Drops calls of Anthropic's own tools without a result, since the API refuses them: the reply ended before it.

    Such calls stay in the last assistant message if nothing but tool results follows it: there the API runs them.
    """
    calls = _find_unanswered_calls(history)
    if not calls:
        return
    last = max(index for index, message in enumerate(history.messages) if message["role"] == "assistant")
    later_blocks = [block for message in history.messages[last + 1 :] for block in message["content"]]
    is_continued = all(block.get("type") == "tool_result" for block in later_blocks)
    for index in {index for index in calls.values() if index < last or not is_continued}:
        content = _without_calls(history.messages[index]["content"], calls)
        history.messages[index]["content"] = content or [{"type": "text", "text": BROKEN_OFF}]


def _find_unanswered_calls(history: ClaudeMessages) -> dict[str, int]:
    """Returns the calls of Anthropic's own tools that have no result: the index of the message by the call's id."""
    calls: dict[str, int] = {}
    for index, message in enumerate(history.messages):
        if message["role"] != "assistant":
            continue
        for block in message["content"]:
            kind = block.get("type")
            if kind in _PROVIDER_CALLS:
                calls[str(block.get("id"))] = index
            elif calls and isinstance(kind, str) and kind.endswith("_tool_result"):
                calls.pop(str(block.get("tool_use_id")), None)
    return calls


def _without_calls(blocks: list[Json], calls: Container[str]) -> list[Json]:
    """Returns blocks without calls with these ids, and without the thoughts that count only after them."""
    remaining: list[Json] = []
    is_after_call = False
    for block in blocks:
        if block.get("type") in _PROVIDER_CALLS and str(block.get("id")) in calls:
            is_after_call = True
        elif not (is_after_call and block.get("type") in THINKING_TYPES):
            remaining.append(block)
    while remaining and remaining[-1].get("type") in THINKING_TYPES:
        remaining.pop()
    return remaining


def _trim_prefill(history: ClaudeMessages) -> None:
    """Strips the end of a reply that the model is to continue: the API refuses white space there."""
    if not history.messages or history.messages[-1]["role"] != "assistant":
        return
    content = history.messages[-1]["content"]
    last = content[-1]
    if last.get("type") == "text" and isinstance(last.get("text"), str):
        content[-1] = {**last, "text": last["text"].rstrip()}
