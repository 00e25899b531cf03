"""The source of a summary: messages as lines of text, in parts that a small model can read.

These are the client's words and the reply as the client has it. Notes and hidden rounds are left out: they may quote
other conversations, with which the summary would have to be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.fillers import without_fillers_and_thoughts
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, is_system, read_named_calls, read_text
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.roles import RESULT_ROLES
from storage.records import REPLY, Exchange

# The most tokens that one call reads, so that a small model will do; estimated.
PART_TOKENS = 12_000
# The most characters of a message. A longer message is clipped.
MESSAGE_CHARS = 6_000
# The most characters of a tool's result, fewer since the reply repeats the important part.
RESULT_CHARS = 1_200
# The most characters of a call's arguments, the fewest since its result shows its effect.
_CALL_CHARS = 400


def list_exchange_lines(exchanges: Sequence[Exchange]) -> list[str]:
    """Returns the lines of stored exchanges, without messages that were forgotten or off the record."""
    return [line for exchange in exchanges for line in _render_exchange(exchange)]


def list_message_lines(messages: Sequence[WireMessage]) -> list[str]:
    """Returns the lines of messages that are stored nowhere, without system messages."""
    return [
        line
        for message in messages
        if not is_system(message)
        for line in _render_message(without_fillers_and_thoughts(message))
    ]


def split_into_parts(lines: Sequence[str], max_tokens: int) -> list[list[str]]:
    """Returns the lines in parts. One call of the model reads each part, with the notes on the parts before.

    max_tokens: the most tokens of a part, estimated; a longer line is a part by itself.
    """
    parts: list[list[str]] = [[]]
    size = 0
    for line in lines:
        tokens = estimate_tokens(line)
        if parts[-1] and size + tokens > max_tokens:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += tokens
    return parts if parts[0] else []


def _render_exchange(exchange: Exchange) -> Iterator[str]:
    """Yields the lines of an exchange's messages that may be shown; a superseded exchange has no such lines."""
    if is_tombstone(exchange) or exchange.superseded:
        return
    content = Tree([exchange]).contents.get(exchange)
    for i, message in enumerate(content.messages or ()):
        if i not in exchange.redactions:
            yield from _render_message(without_fillers_and_thoughts(message))
    if content.shown_reply is not None and REPLY not in exchange.redactions:
        yield from _render_message(without_fillers_and_thoughts(content.shown_reply))


def _render_message(message: WireMessage) -> Iterator[str]:
    """Yields the line of a message's text, then a line for each of its calls."""
    role = str(message.get("role"))
    text = read_text(message).strip()
    if role in RESULT_ROLES:
        yield f"Tool result: {_clip(text, RESULT_CHARS)}"
        return
    if text:
        yield f"{role.capitalize()}: {_clip(text, MESSAGE_CHARS)}"
    if role == "assistant":
        for name, arguments in read_named_calls(message):
            yield f"Assistant called {' '.join(name.split())}: {_clip(str(arguments), _CALL_CHARS)}"


def _clip(text: str, max_chars: int) -> str:
    """Returns the beginning and the end of a text, with its lines indented, so that no line passes for an entry."""
    if len(text) > max_chars:
        text = f"{text[: max_chars * 2 // 3]} […] {text[-(max_chars // 3) :]}"
    return "\n  ".join(text.splitlines())
