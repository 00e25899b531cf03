"""Counts the tokens of prompts and of requests by the tokenizer of their model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import orjson

from adapters.types import Json
from gateway.core.message_text import with_text_before
from gateway.core.prompt.note_text import estimate_tokens
from gateway.run.memory.prompt import Prompt
from gateway.tokens import TooMuchToCount, choose_tokenizer, count_message_tokens

T = TypeVar("T")

# The most new characters that are counted in the event loop, in 3 ms. A conversation that goes on brings fewer.
_COUNTED_AT_ONCE = 50_000


async def count_tokens(model: str, text: str) -> int:
    """Returns the tokens of a text by a model's tokenizer."""
    return await with_counter(model, lambda count: count(text))


async def count_request_tokens(model: str, body: Mapping[str, Any]) -> int:
    """Returns the tokens of a chat completion request: its messages and tools."""
    tools = body.get("tools")
    return await with_counter(
        model,
        lambda count: (
            sum(count_message_tokens(message, count) for message in body["messages"])
            + (count(orjson.dumps(tools).decode()) if tools else 0)
        ),
    )


async def count_prompt_tokens(prompt: Prompt) -> int:
    """Returns the tokens of a prompt by its model's tokenizer, which is loaded if necessary."""
    return prompt.window.tokens or await with_counter(
        prompt.target.model, partial(_count_messages_and_tools, prompt)
    )


def estimate_usage(prompt: Prompt, text: str) -> Json:
    """Returns the usage of a reply with this text by the gateway's count, for an upstream that reports none.

    It is exact for OpenAI's models if their tokenizer is loaded, and an estimate otherwise. No tokenizer is loaded.
    """
    tokenizer = choose_tokenizer(prompt.target.model)
    count = tokenizer.count if tokenizer.is_loaded else estimate_tokens
    input_tokens = prompt.window.tokens or _count_messages_and_tools(prompt, count)
    output_tokens = count(text)
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def _count_messages_and_tools(prompt: Prompt, count: Callable[[str], int]) -> int:
    """Counts the tokens of the prompt: its messages, its texts and its tools."""
    request = prompt.request
    window = prompt.window
    composition = prompt.composition
    replacements = prompt.replacements
    messages = [
        with_text_before(message, composition.notes.get(i, ""))
        for i, message in enumerate(request.messages)
        if i not in window.dropped_indices and i not in replacements
    ]
    messages += [inserted.message for inserted in window.list_inserted(composition)]
    messages += chain.from_iterable(replacements.values())
    return (
        sum(count_message_tokens(message, count) for message in messages)
        + sum(count(text) for text in (prompt.system, window.summary))
        + sum(count(orjson.dumps(tool).decode()) for tool in prompt.list_all_tools())
    )


async def with_counter(model: str, work: Callable[[Callable[[str], int]], T]) -> T:
    """Returns the result of `work`, which is called with a function that counts the tokens of a text for a model.

    If `work` counts many characters that were not counted before, it is stopped and called again in a thread.
    """
    tokenizer = choose_tokenizer(model)
    if not tokenizer.is_loaded:
        await asyncio.to_thread(tokenizer.load)
    try:
        return work(tokenizer.count_within(_COUNTED_AT_ONCE))
    except TooMuchToCount:
        return await asyncio.to_thread(work, tokenizer.count)
