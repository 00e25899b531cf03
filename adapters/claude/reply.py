"""The translation of a whole message of Anthropic's into a chat completion, and the parts its stream shares with it.

Nothing is lost. Unknown fields of the message stay next to the completion's own, and `usage` has Anthropic's counts
next to OpenAI's. Blocks that a chat message has no field for are passed on as they are, so that the client can send
them back (`thinking_blocks`, `provider_blocks`). Each such block has its indices, since the API refuses thoughts at any
others: `index` among all blocks, and, unless 0, `start_index` in the content and `call_index` among the calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from adapters.token_counts import read_token_count
from adapters.types import Json

_FINISH_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "pause_turn": "stop",  # a server's own tools need another request; `native_finish_reason` has the true reason
}
THINKING_TYPES: Final = ("thinking", "redacted_thinking")
OPAQUE_FIELDS: Final = ("thinking_blocks", "provider_blocks")
INDEX_FIELDS: Final = ("index", "start_index", "call_index")
CALL_FIELDS: Final = frozenset(("type", "id", "name", "input"))
MESSAGE_FIELDS: Final = frozenset(
    ("id", "type", "role", "content", "model", "stop_reason", "stop_sequence", "stop_details", "usage")
)


def translate_message(message: Json, created: int, first_index: int = 0) -> Json:
    """Returns the chat completion for a message, the body of a 200.

    created: the time of the reply, in seconds since the epoch, which Anthropic does not report.
    first_index: the index of the message's first block, see `choose_next_block_index`.
    """
    parts = _Parts()
    for index, block in enumerate(message.get("content") or (), first_index):
        parts.add(index, block)
    chat_message = parts.make_message()
    ending = read_ending(message)
    if ending.refusal is not None:
        chat_message["refusal"] = ending.refusal
    return {
        "id": message.get("id"),
        "object": "chat.completion",
        "created": created,
        "model": message.get("model"),
        "choices": [
            {
                "index": 0,
                "message": chat_message,
                "logprobs": None,
                "finish_reason": ending.finish_reason
                or ("tool_calls" if "tool_calls" in chat_message else "stop"),
                **ending.native_fields,
            }
        ],
        "usage": translate_usage(message.get("usage") or {}),
        **{key: value for key, value in message.items() if key not in MESSAGE_FIELDS},
    }


def make_native_reply(message: Json) -> Json:
    """Returns the value of the field `NATIVE_REPLY` (adapters/types.py) for a whole message."""
    blocks = [make_native_block(block) for block in message.get("content") or ()]
    return {"content": blocks, **make_container_field(message)}


def make_native_block(block: Json) -> Json:
    """Returns a block as `NATIVE_REPLY` has it: a call, which is in `tool_calls`, is only a placeholder."""
    return {"type": "tool_use"} if block.get("type") == "tool_use" else block


def make_container_field(source: Json) -> Json:
    """Returns the field `container` with the id of a message's container; {} where the message has no container.

    source: the message, or the delta of its end.
    """
    container = source.get("container")
    container_id = container.get("id") if isinstance(container, dict) else None
    return {"container": {"id": container_id}} if isinstance(container_id, str) else {}


@dataclass(slots=True)
class _Parts:
    """The parts of a chat message, collected from blocks."""

    # The content.
    text: str = ""
    # The readable thoughts.
    reasoning: str = ""
    # The calls in OpenAI's form.
    calls: list[Json] = field(default_factory=list)
    # The blocks with thoughts, with their indices.
    thinking_blocks: list[Json] = field(default_factory=list)
    # The other blocks without a field in OpenAI's form, with their indices.
    provider_blocks: list[Json] = field(default_factory=list)
    # The citations of all text blocks, with their spans of the content.
    citations: list[Json] = field(default_factory=list)
    # True if there is a text block, though its text may be empty.
    has_text: bool = False

    def add(self, index: int, block: Json) -> None:
        """Adds a block with its index in the message."""
        block_type = block.get("type")
        if block_type == "text":
            text = block.get("text") or ""
            start, count = len(self.text), len(self.citations)
            self.citations += place_citations(block.get("citations"), start, start + len(text), count)
            self.text += text
            self.has_text = True
        elif block_type == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            function = {"name": block.get("name"), "arguments": arguments}
            other_fields = {key: value for key, value in block.items() if key not in CALL_FIELDS}
            self.calls.append(
                {"id": block.get("id"), "type": "function", "function": function, **other_fields}
            )
        elif block_type in THINKING_TYPES:
            self.reasoning += block.get("thinking") or ""
            self.thinking_blocks.append(with_indices(block, index, len(self.text), len(self.calls)))
        else:
            self.provider_blocks.append(with_indices(block, index, len(self.text), len(self.calls)))

    def make_message(self) -> Json:
        """Returns the chat message, without the fields that have no part."""
        optional_fields = {
            "tool_calls": self.calls,
            "reasoning_content": self.reasoning,
            "thinking_blocks": self.thinking_blocks,
            "provider_blocks": self.provider_blocks,
            "citations": self.citations,
        }
        chat_message: Json = {
            "role": "assistant",
            "content": self.text if self.has_text else None,
            "refusal": None,
        }
        return chat_message | {key: value for key, value in optional_fields.items() if value}


def with_indices(block: Json, index: int, start_index: int, call_index: int) -> Json:
    """Returns a copy of a block with its indices.

    index: the number of blocks before the block.
    start_index: the number of characters of content before the block.
    call_index: the number of calls before the block.
    """
    indices: Json = {"index": index}
    if start_index:
        indices["start_index"] = start_index
    if call_index:
        indices["call_index"] = call_index
    return {**indices, **block}


class MessageEnding(NamedTuple):
    """The reason for the end of a message."""

    # The reason in OpenAI's words; None: the message has not ended.
    finish_reason: str | None
    # Anthropic's own fields about the reason, for the choice of the completion.
    native_fields: Json
    # The model's explanation of a refusal; None: the model has not refused, or gives no explanation.
    refusal: str | None


def read_ending(source: Json) -> MessageEnding:
    """Returns why a message ended. An unknown reason counts as "stop". source: the message, or the delta of its end."""
    reason = source.get("stop_reason")
    if reason is None:
        return MessageEnding(finish_reason=None, native_fields={}, refusal=None)
    native_fields: Json = {"native_finish_reason": reason}
    for key in ("stop_sequence", "stop_details"):
        if source.get(key) is not None:
            native_fields[key] = source[key]
    refusal = None
    details = source.get("stop_details")
    if reason == "refusal" and isinstance(details, dict) and isinstance(details.get("explanation"), str):
        refusal = details["explanation"] or None
    return MessageEnding(_FINISH_REASONS.get(reason, "stop"), native_fields, refusal)


def choose_next_block_index(messages: Any) -> int:
    """Returns the index of the next reply's first block: above the indices of all blocks since the last user message.

    Replies in a row may reach the client as one message (hidden tool rounds), and a client would take blocks with the
    same index for pieces of one block.
    """
    highest_index = -1
    newest_first = reversed(messages) if isinstance(messages, list) else ()
    for message in newest_first:
        if not isinstance(message, dict) or message.get("role") == "user":
            break
        for key in OPAQUE_FIELDS:
            blocks: Any = message.get(key)
            for block in blocks if isinstance(blocks, list) else ():
                index = block.get("index") if isinstance(block, dict) else None
                if isinstance(index, int):
                    highest_index = max(highest_index, index)
    return highest_index + 1


def place_citations(citations: Any, start: int, end: int, first_index: int) -> list[Json]:
    """Returns a text block's citations, each with the block's span of `content`. first_index: the first one's index."""
    if not isinstance(citations, list):
        return []
    return [
        {"index": index, "start_index": start, "end_index": end, "citation": citation}
        for index, citation in enumerate(citations, first_index)
    ]


def translate_usage(usage: Json) -> Json:
    """Returns OpenAI's usage, with Anthropic's counts next to it."""
    cached_tokens = read_token_count(usage, "cache_read_input_tokens")
    cache_write_tokens = read_token_count(usage, "cache_creation_input_tokens")
    prompt_tokens = read_token_count(usage, "input_tokens") + cached_tokens + cache_write_tokens
    completion_tokens = read_token_count(usage, "output_tokens")
    translated: Json = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": cache_write_tokens},
    }
    details = usage.get("output_tokens_details")
    thinking_tokens = details.get("thinking_tokens") if isinstance(details, dict) else None
    if isinstance(thinking_tokens, int):
        translated["completion_tokens_details"] = {"reasoning_tokens": thinking_tokens}
    return {**translated, **usage}
