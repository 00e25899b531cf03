"""From the name of a provider to the thing itself: a row of `adapters/providers.py`, and what speaks its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adapters.anthropic import Anthropic
from adapters.openai import OpenAICompatible
from adapters.providers import ROWS, Row
from adapters.transport import HttpTransport, Timeouts
from adapters.types import Capabilities, Header

__all__ = ["ROWS", "Row", "make_provider"]


def make_provider(
    kind: str = "openai",
    *,
    name: str | None = None,
    base_url: str | None = None,
    key: str | None = None,
    headers: tuple[Header, ...] = (),
    capabilities: Capabilities | None = None,
    known: Mapping[str, Any] | None = None,
    transport: HttpTransport | None = None,
    timeouts: Timeouts | None = None,
) -> OpenAICompatible | Anthropic:
    """A provider from a row, each of its values replaceable.

    kind: a row's name, or anything if `base_url` is given. At another address than the row's the row's capabilities
    do not count, since who answers there is not known. They do for a row without an address, for a server that one
    runs oneself, and for a dialect that is translated here: what can be said in it is known.
    known: capabilities by name, in place of those.
    Raises: ValueError: an unknown kind without an address, or an address that is none.
    """
    row = ROWS.get(kind)
    address = base_url if base_url is not None else row.base_url if row is not None else None
    if address is None:
        names = ", ".join(sorted(each.name for each in ROWS.values() if each.base_url is not None))
        raise ValueError(f"no address for an upstream of kind {kind!r}: give its base_url, or one of {names}")
    if capabilities is None:
        is_known = row is not None and (
            address == row.base_url or row.base_url is None or row.is_server or _is_ours(row)
        )
        capabilities = row.capabilities if row is not None and is_known else Capabilities()
    if known:
        capabilities = replace(capabilities, **known)
    speak = Anthropic if row is not None and _is_ours(row) else OpenAICompatible
    return speak(
        name or kind,
        address,
        key=key,
        headers=headers,
        capabilities=capabilities,
        transport=transport,
        timeouts=timeouts,
    )


def _is_ours(row: Row) -> bool:
    return row.dialect == "anthropic"
