"""Makes providers: from a name to a row of `adapters/providers.py`, and to the class that speaks its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from adapters.anthropic import Anthropic
from adapters.openai import OpenAICompatible
from adapters.providers import PROVIDERS, UNKNOWN
from adapters.transport import HttpTransport
from adapters.types import Header


def make_provider(
    kind: str,
    *,
    name: str | None = None,
    base_url: str | None = None,
    key: str | None = None,
    headers: tuple[Header, ...] = (),
    known_capabilities: Mapping[str, Any] | None = None,
    transport: HttpTransport | None = None,
) -> OpenAICompatible:
    """Returns a provider made from a row of `PROVIDERS`; each value of the row can be replaced.

    kind: a row's name, or any name if `base_url` is given.
    known_capabilities: capabilities, by their names, that replace the row's.

    Raises: ValueError: an unknown kind without an address, or an invalid address.
    """
    row = PROVIDERS.get(kind)
    address = base_url
    if address is None and row is not None:
        address = row.base_url
    if address is None:
        names = ", ".join(
            sorted(provider.name for provider in PROVIDERS.values() if provider.base_url is not None)
        )
        raise ValueError(f"no address for an upstream of kind {kind!r}: give its base_url, or one of {names}")
    capabilities = UNKNOWN if row is None else row.get_capabilities_at(address)
    provider_class = Anthropic if row is not None and row.is_translated else OpenAICompatible
    return provider_class(
        name or kind,
        address,
        key=key,
        headers=headers,
        capabilities=replace(capabilities, **(known_capabilities or {})),
        transport=transport,
    )
