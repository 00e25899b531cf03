"""Upstreams that speak OpenAI's dialect, as data: a row says where one is and what it takes.

A new one is a new row. An upstream that needs more than a row has a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adapters.openai import OpenAICompatible
from adapters.transport import HttpTransport, Timeouts
from adapters.types import Capabilities, Header

__all__ = ["ROWS", "Row", "make_provider"]

_PLAIN: Final = Capabilities()


@dataclass(frozen=True, slots=True)
class Row:
    """key_variable: the environment variable that by the provider's own documents holds the key."""

    name: str
    base_url: str
    key_variable: str | None = None
    capabilities: Capabilities = _PLAIN


ROWS: Final[dict[str, Row]] = {
    row.name: row
    for row in (
        Row(
            "openai",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            Capabilities(max_completion_tokens=True),
        ),
        Row("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        Row(
            "groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", Capabilities(max_completion_tokens=True)
        ),
        Row("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
        Row("ollama", "http://127.0.0.1:11434/v1"),
    )
}


def make_provider(
    kind: str = "openai",
    *,
    name: str | None = None,
    base_url: str | None = None,
    key: str | None = None,
    headers: tuple[Header, ...] = (),
    capabilities: Capabilities | None = None,
    transport: HttpTransport | None = None,
    timeouts: Timeouts | None = None,
) -> OpenAICompatible:
    """A provider from a row, each of its values replaceable.

    kind: a row's name, or anything if `base_url` is given. At another address than the row's the row's
    capabilities do not count: who it is that answers there is not known.
    Raises: ValueError: an unknown kind without an address, or an address that is none.
    """
    row = ROWS.get(kind)
    if row is None and base_url is None:
        raise ValueError(
            f"no upstream called {kind!r}: give its base_url, or one of {', '.join(sorted(ROWS))}"
        )
    if capabilities is None and row is not None and base_url in (None, row.base_url):
        capabilities = row.capabilities
    address = base_url if base_url is not None else row.base_url if row is not None else ""
    return OpenAICompatible(
        name or kind,
        address,
        key=key,
        headers=headers,
        capabilities=capabilities,
        transport=transport,
        timeouts=timeouts,
    )
