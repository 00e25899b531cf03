"""The reasons for which replies end, in the words of OpenAI's dialect, whatever words an upstream has for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

# An upstream gave up in the middle of a reply: OpenAI's dialect has no reason for it.
BROKE: Final = "error"
# The reasons after which a reply may lack its end.
CUT_REASONS: Final = ("length", "content_filter", BROKE)
# Other makers' words by OpenAI's words: of Gemini, Mistral, Cohere, Bedrock, DeepSeek, GLM, OpenRouter, vLLM, SGLang,
# TGI, and of proxies that pass Claude's reasons.
_WORDS: Final = {
    "length": """
        max_tokens max_output_tokens max_new_tokens max_length token_limit model_length context_length
        context_length_exceeded model_context_window_exceeded error_limit
        """,
    "content_filter": """
        content_filtered refusal sensitive guardrail_intervened safety recitation language blocklist
        prohibited_content spii image_safety image_prohibited_content image_recitation model_armor error_toxic
        """,
    "tool_calls": "tool_call tool_use function_call",
    BROKE: """
        function_call_filter abort aborted cancelled network_error timeout insufficient_system_resource repetition
        malformed_function_call malformed_tool_call unexpected_tool_call too_many_tool_calls malformed_response
        missing_thought_signature
        """,
}
# The reason of OpenAI by each of its words.
_REASONS: Final = {word: reason for reason, words in _WORDS.items() for word in (reason, *words.split())}


def read_finish_reason(reason: Any) -> str:
    """Returns the reason for a reply's end: "stop", "tool_calls", or one of `CUT_REASONS`; "stop" for unknown words."""
    return _read_words(reason) if isinstance(reason, str) else "stop"


# Upstreams have few reasons, and the reason of a reply is read several times.
@lru_cache(maxsize=64)
def _read_words(reason: str) -> str:
    words = reason.lower().replace("-", "_").split(":")
    # Gemini's reasons have two words: "content_filter: PROHIBITED_CONTENT". The second word is the more exact.
    return next((_REASONS[word] for each in reversed(words) if (word := each.strip()) in _REASONS), "stop")
