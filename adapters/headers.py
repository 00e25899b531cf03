"""Header fields that go on to the other end, and in which bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from adapters.types import Header

# The list of RFC 9110 7.6.1, and headers of the connection's own framing; `alt-svc` is about the upstream's host.
_HOP_BY_HOP: Final = frozenset(
    re.findall(
        r"[\w-]+",
        "alt-svc connection content-length keep-alive proxy-authenticate proxy-authorization proxy-connection te "
        "trailer transfer-encoding upgrade",
    )
)
# Control characters but the tab (RFC 9110 5.5).
_AS_BLANKS: Final = dict.fromkeys((*range(9), *range(10, 32), 127), " ")
# aiohttp decodes these, or refuses the reply.
_DECODED: Final = frozenset(("br", "deflate", "gzip", "identity", "zstd"))


def end_to_end(headers: Iterable[Header]) -> list[Header]:
    """Returns the headers for the other end: without hop-by-hop ones and those that `Connection` names."""
    kept: list[Header] = []
    named: frozenset[str] = frozenset()
    for spelled, value in headers:
        name = spelled.lower()
        if name == "connection":
            named |= _tokens(value)
        elif name not in _HOP_BY_HOP:
            kept.append((name, value))
    return [pair for pair in kept if pair[0] not in named] if named else kept


def _tokens(value: str) -> frozenset[str]:
    return frozenset(token.strip().lower() for token in value.split(","))


def received(raw: Iterable[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    """Returns the headers of a response for its client: without hop-by-hop ones and the encoding that was decoded."""
    kept: list[Header] = []
    named: frozenset[str] = frozenset()
    for raw_name, raw_value in raw:
        name = _seen.get(raw_name)
        if name is None:
            name = _learn(raw_name)
        if not name:
            continue
        # What is no text becomes surrogates, so that it goes on to the client in its own bytes.
        value = raw_value.decode("utf-8", "surrogateescape")
        if name == "connection":
            named |= _tokens(value) - _HOP_BY_HOP
        elif name != "content-encoding" or value.lower() not in _DECODED:
            kept.append((name, value if value.isprintable() else value.translate(_AS_BLANKS)))
    return tuple(pair for pair in kept if pair[0] not in named) if named else tuple(kept)


# Upstreams send the same few names with every reply: name -> itself as text; "": it is dropped.
_seen: dict[bytes, str] = {}


def _learn(raw: bytes) -> str:
    name = raw.decode("latin-1").lower()
    if name in _HOP_BY_HOP and name != "connection":
        name = ""
    if len(raw) <= 64 and len(_seen) < 1024:
        _seen[raw] = name
    return name


def as_sent(value: str) -> str:
    """Returns a header's value as it is to be given to `send`, which writes UTF-8; it came in as latin-1."""
    if not value.isascii():
        # A value that was not UTF-8 goes as it is.
        with suppress(UnicodeError):
            return value.encode("latin-1").decode("utf-8")
    return value
