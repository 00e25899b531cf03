"""The known providers, as data: their addresses and capabilities. A new provider is a new row of the table.

The columns follow the providers' own documents and errors (November 2026). They describe the provider, not each of its
models: the fields that a model refuses wherever it is served are in `openai_model_traits` and `claude.model_traits`. A
server that operators run themselves (vllm, ollama, lmstudio, llama.cpp) refuses the fields that its model refuses, so
its row describes only the server.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from adapters.capabilities import Capabilities, allow_any_effort
from adapters.claude.model_traits import (
    binds_thoughts,
    can_force,
    find_max_temperature,
    list_refused_sampling,
    thinks_on_request,
)
from adapters.openai_model_traits import (
    choose_azure_effort_with_tools,
    choose_effort_with_tools,
    list_refused_fields,
)

# The capabilities of an upstream that is none of the known providers: a proxy may serve any model.
UNKNOWN: Final = Capabilities(
    can_force=can_force, refused_fields=list_refused_fields, effort_with_tools=choose_effort_with_tools
)
# The next three each add one capability.
_WITH_STREAM_USAGE: Final = replace(UNKNOWN, stream_usage=True)
_WITH_COMPLETION_LIMIT: Final = replace(_WITH_STREAM_USAGE, max_completion_tokens=True)
_OPENAI: Final = replace(_WITH_COMPLETION_LIMIT, developer_role=True)
# DeepSeek and Mistral answer `developer` with a 400 or 422; most chat templates that vLLM and LM Studio run raise an
# error, and Ollama silently leaves the message out. llama.cpp renders the role in a way of its own.
_NO_DEVELOPER: Final = replace(_WITH_STREAM_USAGE, developer_role=False)
# The Messages API has no place for `untranslatable_fields`: of `metadata` it takes `user_id` only, a prefix to cache is
# named by marks (the adapter places them, so OpenAI's breakpoints are not needed) and not by a key, an image has one
# size, only users have names (tests/golden/anthropic/requests/names.json), and few tools can be strict. With thinking
# on it refuses a `tool_choice` that forces a call.
_ANTHROPIC: Final = replace(
    _OPENAI,
    metadata=True,
    web_search=True,
    speaks_messages=True,
    counts_tokens=True,
    binds_thoughts=binds_thoughts,
    thinks_on_request=thinks_on_request,
    can_force_when_thinking=False,
    max_temperature=find_max_temperature,
    refused_fields=list_refused_sampling,
    untranslatable_fields=(
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "messages.content.prompt_cache_breakpoint",
        "messages.content.image_url.detail",
        "messages.name",
        "tools.function.strict",
    ),
)


class ProviderSpec(Struct, frozen=True):
    """A known provider: a row of the table."""

    # The provider's name in the settings.
    name: str
    # The address of the API; None: each customer has an address of its own.
    base_url: str | None
    # The capabilities of the provider.
    capabilities: Capabilities = UNKNOWN
    # The API that the provider has.
    dialect: Literal["openai", "anthropic"] = "openai"
    # True if it is a server that operators run themselves, with `base_url` as its default address.
    is_server: bool = False

    @property
    def is_translated(self) -> bool:
        """True if the provider's dialect is translated here."""
        return self.dialect == "anthropic"

    def get_capabilities_at(self, address: str) -> Capabilities:
        """Returns the capabilities of an upstream of this kind at an address.

        The row's capabilities count only at the row's address, because another server may answer elsewhere. They count
        at any address for a row without an address, for a server that operators run themselves, and for a dialect that
        is translated here.
        """
        is_at_row_address = self.base_url is None or address.rstrip("/") == self.base_url
        return self.capabilities if is_at_row_address or self.is_server or self.is_translated else UNKNOWN


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
                effort_with_tools=choose_azure_effort_with_tools,
            ),
        ),
        # OpenRouter asks OpenAI for a response, whichever endpoint it is asked at.
        ProviderSpec(
            "openrouter",
            "https://openrouter.ai/api/v1",
            replace(_OPENAI, metadata=True, effort_with_tools=allow_any_effort),
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
