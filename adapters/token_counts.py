"""The numbers of tokens that upstreams report in a `usage`."""

from __future__ import annotations

from typing import Any, Final

# An estimate for upstreams that report no count.
BYTES_PER_TOKEN: Final = 4
# Above what any call costs, and so low that the sums of millions of calls fit into 64 bits of a database.
_MAX_TOKENS = 1 << 40
# Python refuses to parse a number of thousands of digits.
_MAX_DIGITS = 20


def read_token_count(usage: Any, key: str) -> int:
    """Returns a number of tokens in a `usage`, where an upstream may put anything; 0: there is no such number."""
    value = usage.get(key) if usage.__class__ is dict else None
    # Nearly all counts are integers.
    if value.__class__ is not int:
        return 0 if value is None else _read_unusual_count(value)
    return value if 0 <= value <= _MAX_TOKENS else 0


def _read_unusual_count(value: Any) -> int:
    """Returns a number of tokens that is written as a text or with a decimal point; 0: the value is no such number."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < _MAX_DIGITS else 0
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if value.__class__ is int and 0 <= value <= _MAX_TOKENS else 0


def read_cached_tokens(usage: Any) -> int:
    """Returns the tokens of the prompt that were read from a cache, by the `usage` of a chat completion."""
    details = usage.get("prompt_tokens_details") if usage.__class__ is dict else None
    return (
        read_token_count(details, "cached_tokens")
        or read_token_count(usage, "cached_tokens")  # Kimi
        or read_token_count(usage, "prompt_cache_hit_tokens")  # DeepSeek
    )


def count_completion_tokens(usage: Any) -> int:
    """Returns the tokens that a model wrote, its thoughts among them, by the `usage` of a chat completion.

    Gemini and xAI count thoughts in the total, and not in `completion_tokens`; Gemini often counts them nowhere else.
    (docs.x.ai/docs/key-information/consumption-and-rate-limits)
    """
    prompt = read_token_count(usage, "prompt_tokens")
    completion = read_token_count(usage, "completion_tokens")
    return max(completion, read_token_count(usage, "total_tokens") - prompt) if prompt else completion
