"""The order of messages: OpenAI's list in, Anthropic's turns out.

The Messages API wants turns that alternate, beginning with the user's. A user's turn must begin with the results of the
calls just before it. So the messages between two assistant messages become one user turn: tool results first, then user
messages, in their order. Assistant messages in a row become one message. The API wants unique ids of calls: where calls
share an id, the later calls get new ids.

The system messages before all others become the `system` field. A later system message ends the user turn in which it
stands. A model that takes no system message there gets it at the end of `system`, at the price of the prompt cache.
Where only system messages follow the last reply, the gateway adds a short user turn.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Final

from adapters.claude.content import (
    make_assistant_blocks,
    make_system_blocks,
    make_tool_result,
    make_user_blocks,
)
from adapters.claude.error_form import Untranslatable
from adapters.claude.reply import THINKING_TYPES
from adapters.types import Json

# The first turn must be the user's. The gateway adds this turn before an assistant's greeting, and where a request has
# only system messages, by which voice agents ask for a greeting.
_OPENING: Final = "(The assistant speaks first.)"
# The last turn must be the user's, or the model continues its last reply. The gateway adds this turn after a reply
# where the client asks for another reply.
AGAIN: Final = "(The assistant speaks again.)"
# The text of a reply that has nothing but the unanswered call of one of Anthropic's own tools, which is dropped.
_BROKEN_OFF: Final = "(The reply was broken off.)"
_PROVIDER_CALLS: Final = ("server_tool_use", "mcp_tool_use")


@dataclass(slots=True)
class ClaudeMessages:
    """Messages for the Messages API."""

    # The system prompt, as text blocks.
    system: list[Json] = field(default_factory=list)
    # The content of each message is a list of blocks.
    messages: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class _UserTurn:
    """The blocks of the messages between two assistant messages."""

    # The results of calls.
    results: list[Json] = field(default_factory=list)
    # The blocks of user messages.
    content: list[Json] = field(default_factory=list)
    # The blocks of system messages.
    system: list[Json] = field(default_factory=list)


def arrange_turns(messages: Sequence[Json], *, takes_late_system: bool) -> ClaudeMessages:
    """Returns the messages of a chat completion request in the order that the Messages API takes.

    takes_late_system: True if the model takes system messages after the user's.

    Raises: Untranslatable.
    """
    history = ClaudeMessages()
    turn = _UserTurn()
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        match message.get("role"):
            case "system" | "developer":
                blocks = make_system_blocks(message, path)
                is_leading = not (history.messages or turn.results or turn.content)
                if is_leading:
                    history.system += blocks
                else:
                    turn.system += blocks
            case "user":
                turn.content += make_user_blocks(message, path)
            case "tool":
                turn.results.append(make_tool_result(message, path))
            case "assistant":
                blocks = make_assistant_blocks(message, path)
                if blocks:  # an empty message separates no turns
                    _end_user_turn(history, turn, takes_late_system=takes_late_system)
                    turn = _UserTurn()
                    _add_assistant_turn(history, blocks)
            case role:
                raise Untranslatable(f"Messages of role '{role}' are not supported here.", f"{path}.role")
    if messages and messages[-1].get("role") != "assistant" and not (turn.results or turn.content):
        # Only system messages, or nothing visible, came after the last reply, and the client asks for another reply.
        turn.content.append({"type": "text", "text": AGAIN if history.messages else _OPENING})
    _end_user_turn(history, turn, takes_late_system=takes_late_system)
    _make_ids_unique(history)
    history.messages = without_unanswered_calls(history.messages)
    _trim_prefill(history)
    return history


def _end_user_turn(history: ClaudeMessages, turn: _UserTurn, *, takes_late_system: bool) -> None:
    """Adds a user turn, and its system messages after it or, where the model refuses them there, to the system prompt.

    In the system prompt these messages change the prefix of the request, at the price of the prompt cache.
    """
    blocks = [*turn.results, *turn.content]
    if blocks:
        history.messages.append({"role": "user", "content": blocks})
    if turn.system and blocks and takes_late_system:
        history.messages.append({"role": "system", "content": turn.system})
    else:  # the model takes no system messages there, or there is no user turn that they could follow
        history.system += turn.system


def _add_assistant_turn(history: ClaudeMessages, blocks: list[Json]) -> None:
    if history.messages and history.messages[-1]["role"] == "assistant":
        history.messages[-1]["content"] += blocks
        return
    if not history.messages:
        history.messages.append({"role": "user", "content": [{"type": "text", "text": _OPENING}]})
    history.messages.append({"role": "assistant", "content": blocks})


def _make_ids_unique(history: ClaudeMessages) -> None:
    """Renames calls with an id that occurs twice: some providers restart their numbers with each reply."""
    used_ids: set[str] = set()
    # The number of new ids that were made of an id that a call came with.
    copies: Counter[str] = Counter()
    # The new ids of the last assistant message's calls, by the id that they came with.
    new_ids: dict[str, deque[str]] = {}
    for message in history.messages:
        if message["role"] == "assistant":
            new_ids = {}
        for block in message["content"]:
            match block:
                case {"type": "tool_use", "id": str(sent_id)}:
                    while block["id"] in used_ids:
                        copies[sent_id] += 1
                        block["id"] = f"{sent_id}_{copies[sent_id]}"
                    used_ids.add(block["id"])
                    new_ids.setdefault(sent_id, deque()).append(block["id"])
                case {"type": "tool_result", "tool_use_id": str(sent_id)} if sent_id in new_ids:
                    # Results come in the order of their calls; surplus results belong to the last call.
                    block["tool_use_id"] = new_ids[sent_id][0]
                    if len(new_ids[sent_id]) > 1:
                        new_ids[sent_id].popleft()


def without_unanswered_calls(messages: list[Json], exempt: Container[str] = ()) -> list[Json]:
    """Returns a copy of messages without the calls of Anthropic's own tools that have no result: the API refuses them.

    In the last assistant message such calls stay if nothing but tool results follows: there the API runs them.

    messages: messages in the form of the Messages API.
    exempt: the ids of calls that stay.
    """
    unanswered_calls = {
        call_id: index for call_id, index in find_unanswered_calls(messages).items() if call_id not in exempt
    }
    if not unanswered_calls:
        return messages
    last_index = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    later_blocks = [block for message in messages[last_index + 1 :] for block in _read_blocks(message)]
    is_continued = all(block.get("type") == "tool_result" for block in later_blocks)
    replies_with_calls = set(unanswered_calls.values())
    if is_continued:
        replies_with_calls.discard(last_index)
    changed = [*messages]
    for index in replies_with_calls:
        content = _without_calls(messages[index]["content"], unanswered_calls)
        changed[index] = {**messages[index], "content": content or [{"type": "text", "text": _BROKEN_OFF}]}
    return changed


def find_unanswered_calls(messages: Sequence[Json]) -> dict[str, int]:
    """Returns, by the ids of the calls of Anthropic's own tools that have no result, the index of their message.

    messages: messages in the form of the Messages API.
    """
    unanswered_calls: dict[str, int] = {}
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        for block in _read_blocks(message):
            block_type = block.get("type")
            if block_type in _PROVIDER_CALLS:
                unanswered_calls[str(block.get("id"))] = index
            elif unanswered_calls and isinstance(block_type, str) and block_type.endswith("_tool_result"):
                unanswered_calls.pop(str(block.get("tool_use_id")), None)
    return unanswered_calls


def _read_blocks(message: Json) -> list[Json]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _without_calls(blocks: list[Json], call_ids: Container[str]) -> list[Json]:
    """Returns blocks without calls with these ids, and without the thoughts that count only after them."""
    remaining: list[Json] = []
    is_after_call = False
    for block in blocks:
        if block.get("type") in _PROVIDER_CALLS and str(block.get("id")) in call_ids:
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
    last_block = content[-1]
    if last_block.get("type") == "text" and isinstance(last_block.get("text"), str):
        content[-1] = {**last_block, "text": last_block["text"].rstrip()}
