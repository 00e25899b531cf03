"""Where providers are and what they take, as data. A new one is a new row.

The columns are what their own documents and errors say (November 2026), and mean the provider, not each of its
models. A server that one runs oneself (vllm, ollama, lmstudio, llama.cpp) takes what its model takes: only what the
server itself does is said there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from adapters.types import Capabilities

__all__ = ["ROWS", "Row"]

_PLAIN: Final = Capabilities()
_COUNTS: Final = Capabilities(stream_usage=True)
_NEWER: Final = replace(_COUNTS, max_completion_tokens=True)
_OPENAI: Final = replace(_NEWER, developer_role=True)
# DeepSeek and Mistral answer `developer` with a 400 or 422; most chat templates that vLLM and LM Studio run raise, and
# Ollama leaves the message out without a word. llama.cpp has its own way with it.
_NO_DEVELOPER: Final = replace(_COUNTS, developer_role=False)
# Translated by us. Of `metadata` Anthropic takes `user_id`; which prefix to cache is said by marks, not by a key; an
# image has one size, and only users have names (tests/golden/anthropic/requests/names.json).
_ANTHROPIC: Final = replace(
    _OPENAI,
    metadata=True,
    spends=("metadata", "prompt_cache_key", "messages.content.image_url.detail", "messages.name"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """base_url: None: every customer has one of his own. dialect: what is spoken there.

    is_server: one runs it oneself, and `base_url` is only where it listens unless told otherwise.
    key_variable: the environment variable that by the provider's own documents holds the key.
    """

    name: str
    base_url: str | None
    key_variable: str | None = None
    capabilities: Capabilities = _PLAIN
    dialect: Literal["openai", "anthropic"] = "openai"
    is_server: bool = False


ROWS: Final[dict[str, Row]] = {
    row.name: row
    for row in (
        Row("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", _OPENAI),
        Row("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", _ANTHROPIC, "anthropic"),
        Row("azure", None, "AZURE_OPENAI_API_KEY", _OPENAI),  # https://<resource>.openai.azure.com/openai/v1
        Row(
            "openrouter",
            "https://openrouter.ai/api/v1",
            "OPENROUTER_API_KEY",
            replace(_OPENAI, metadata=True),
        ),
        Row("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", _NEWER),
        Row("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", _COUNTS),
        Row("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", _NO_DEVELOPER),
        Row("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", _NO_DEVELOPER),
        Row(
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "GEMINI_API_KEY",
            replace(_NEWER, omits_call_index=True),
        ),
        Row("xai", "https://api.x.ai/v1", "XAI_API_KEY", _NEWER),
        Row("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", _COUNTS),
        Row("vllm", "http://127.0.0.1:8000/v1", None, _NO_DEVELOPER, is_server=True),
        Row("ollama", "http://127.0.0.1:11434/v1", None, _NO_DEVELOPER, is_server=True),
        Row("lmstudio", "http://127.0.0.1:1234/v1", None, _NO_DEVELOPER, is_server=True),
        Row("llama.cpp", "http://127.0.0.1:8080/v1", None, _COUNTS, is_server=True),
    )
}
