"""The known providers, as data: their addresses and capabilities. A new provider is a new row of the table.

The columns follow the providers' own documents and errors (November 2026). They describe the provider, not each of its
models; `refused_fields` has what a model refuses wherever it is served. A server that operators run themselves (vllm,
ollama, lmstudio, llama.cpp) takes what its model takes, so its row describes only the server.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from adapters.claude.model_traits import binds_thoughts, can_force, thinks_when_asked
from adapters.types import Capabilities, any_effort

# The fields that OpenAI's models refuse: the models that think, and the models that do not.
_REFUSED_THINKING: Final = frozenset({"temperature", "max_tokens"})
_REFUSED_NOT_THINKING: Final = frozenset({"reasoning_effort", "verbosity"})
# Names of OpenAI's models, perhaps after a proxy's prefix, and the fields that they answer with "Unsupported parameter"
# or "Unsupported value". The first match counts. Letta's server leaves out the same fields for these names.
_REFUSED_BY_NAME: Final = tuple(
    (re.compile(rf"(?:.*/)?(?:{names})"), refused)
    for names, refused in (
        (r"o[134](?![^-])", _REFUSED_THINKING | {"parallel_tool_calls"}),
        (r"gpt-[5-9][^/]*-chat|gpt-4|gpt-3\.5|chatgpt-", _REFUSED_NOT_THINKING),
        (r"gpt-[5-9]", _REFUSED_THINKING),
    )
)
# OpenAI's models from 5.2 on answer "Function tools with reasoning_effort are not supported": up to 5.4 where a request
# names an effort, and newer ones unless it names `none`, since they think by default. At Azure that begins with 5.7.
_NAMES_NO_EFFORT: Final = re.compile(r"(?:.*/)?gpt-5\.[2-4](?!\d)")
_NAMES_NO_EFFORT_AT_AZURE: Final = re.compile(r"(?:.*/)?gpt-5\.[2-6](?!\d)")
_NAMES_EFFORT_NONE: Final = re.compile(r"(?:.*/)?gpt-(?:5\.[5-9]|[6-9])")


@lru_cache(maxsize=256)
def refused_fields(model: str) -> frozenset[str]:
    """Returns the fields that a model refuses. A model that refuses `max_tokens` takes `max_completion_tokens`."""
    return next((refused for names, refused in _REFUSED_BY_NAME if names.match(model)), frozenset())


def effort_with_tools(model: str) -> str | None:
    """Returns the effort of a chat completion with functions, as `Capabilities` has it."""
    if _NAMES_NO_EFFORT.match(model):
        return ""
    return "none" if _NAMES_EFFORT_NONE.match(model) else None


def azures_effort_with_tools(model: str) -> str | None:
    return "" if _NAMES_NO_EFFORT_AT_AZURE.match(model) else effort_with_tools(model)


# The capabilities of an upstream that is none of the known providers: a proxy may serve any model.
UNKNOWN: Final = Capabilities(
    can_force=can_force, refused_fields=refused_fields, effort_with_tools=effort_with_tools
)
# Each of these sets of capabilities extends another set by one capability.
_WITH_STREAM_USAGE: Final = replace(UNKNOWN, stream_usage=True)
_WITH_COMPLETION_LIMIT: Final = replace(_WITH_STREAM_USAGE, max_completion_tokens=True)
_OPENAI: Final = replace(_WITH_COMPLETION_LIMIT, developer_role=True)
# DeepSeek and Mistral answer `developer` with a 400 or 422; most chat templates that vLLM and LM Studio run raise an
# error, and Ollama silently leaves the message out. llama.cpp renders the role in a way of its own.
_NO_DEVELOPER: Final = replace(_WITH_STREAM_USAGE, developer_role=False)
# The Messages API has no place for `untranslatable_fields`: of `metadata` it takes `user_id` only, a prefix to cache is
# named by marks and not by a key, an image has one size, only users have names
# (tests/golden/anthropic/requests/names.json), and few tools can be strict. With thinking on it refuses a `tool_choice`
# that forces a call.
_ANTHROPIC: Final = replace(
    _OPENAI,
    metadata=True,
    web_search=True,
    speaks_messages=True,
    counts_tokens=True,
    binds_thoughts=binds_thoughts,
    thinks_when_asked=thinks_when_asked,
    can_force_when_thinking=False,
    untranslatable_fields=(
        *("metadata", "prompt_cache_key", "messages.content.image_url.detail", "messages.name"),
        "tools.function.strict",
    ),
)


class ProviderSpec(Struct, frozen=True):
    """A known provider: a row of the table."""

    name: str
    # None: each customer has its own address.
    base_url: str | None
    capabilities: Capabilities = UNKNOWN
    # The API spoken there.
    dialect: Literal["openai", "anthropic"] = "openai"
    # A server that operators run themselves, with `base_url` as its default address.
    is_server: bool = False


PROVIDERS: Final[dict[str, ProviderSpec]] = {
    row.name: row
    for row in (
        ProviderSpec(
            "openai", "https://api.openai.com/v1", replace(_OPENAI, responses="stored", custom_tools=True)
        ),
        ProviderSpec("anthropic", "https://api.anthropic.com/v1", _ANTHROPIC, "anthropic"),
        # https://<resource>.openai.azure.com/openai/v1
        ProviderSpec(
            "azure",
            None,
            replace(
                _OPENAI,
                responses="stored",
                custom_tools=True,
                effort_with_tools=azures_effort_with_tools,
            ),
        ),
        # OpenRouter asks OpenAI for a response, whichever endpoint it is asked at.
        ProviderSpec(
            "openrouter",
            "https://openrouter.ai/api/v1",
            replace(_OPENAI, metadata=True, effort_with_tools=any_effort),
        ),
        ProviderSpec("groq", "https://api.groq.com/openai/v1", _WITH_COMPLETION_LIMIT),
        ProviderSpec("together", "https://api.together.xyz/v1", _WITH_STREAM_USAGE),
        ProviderSpec("mistral", "https://api.mistral.ai/v1", replace(_NO_DEVELOPER, any_call_id=False)),
        ProviderSpec(
            "deepseek", "https://api.deepseek.com/v1", replace(_NO_DEVELOPER, replies_without_thoughts=False)
        ),
        ProviderSpec(
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            replace(_WITH_COMPLETION_LIMIT, omits_call_index=True, requires_call_signatures=True),
        ),
        ProviderSpec("xai", "https://api.x.ai/v1", replace(_WITH_COMPLETION_LIMIT, responses="stored")),
        ProviderSpec("fireworks", "https://api.fireworks.ai/inference/v1", _WITH_STREAM_USAGE),
        ProviderSpec("vllm", "http://127.0.0.1:8000/v1", _NO_DEVELOPER, is_server=True),
        ProviderSpec("ollama", "http://127.0.0.1:11434/v1", _NO_DEVELOPER, is_server=True),
        ProviderSpec("lmstudio", "http://127.0.0.1:1234/v1", _NO_DEVELOPER, is_server=True),
        ProviderSpec("llama.cpp", "http://127.0.0.1:8080/v1", _WITH_STREAM_USAGE, is_server=True),
    )
}
