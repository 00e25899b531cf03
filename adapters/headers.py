"""The headers that a proxy passes on between a client and an upstream, and the text that stands for their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from adapters.types import Header

# Headers about one connection: those of RFC 9110 7.6.1 and of its framing; `alt-svc` is about the upstream's host.
_HOP_BY_HOP_HEADERS: Final = frozenset(
    (
        *("alt-svc", "connection", "content-length", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)
# Control characters but the tab become blanks (RFC 9110 5.5).
_CONTROLS_TO_BLANKS: Final = dict.fromkeys((*range(9), *range(10, 32), 127), " ")
# Content codings that aiohttp decodes. For a body that cannot be decoded, aiohttp raises an error.
_DECODED_CODINGS: Final = frozenset(("br", "deflate", "gzip", "identity", "zstd"))
# The names of headers as text, by their bytes; "": the header is not passed on. Upstreams send the same few names with
# every reply.
_NAME_CACHE: dict[bytes, str] = {}
# Bounds of the cache. Not measured.
_MAX_CACHED_NAMES: Final = 1024
_MAX_NAME_BYTES: Final = 64


def choose_request_headers(headers: Iterable[Header]) -> list[Header]:
    """Returns the headers that a proxy passes on: all but hop-by-hop headers and those that `Connection` names."""
    forwarded_headers: list[Header] = []
    dropped_names: frozenset[str] = frozenset()
    for spelled_name, value in headers:
        name = spelled_name.lower()
        if name == "connection":
            dropped_names |= _parse_tokens(value)
        elif name not in _HOP_BY_HOP_HEADERS:
            forwarded_headers.append((name, value))
    if not dropped_names:
        return forwarded_headers
    return [(name, value) for name, value in forwarded_headers if name not in dropped_names]


def choose_response_headers(raw_headers: Iterable[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    """Returns the headers of a response that a proxy passes on.

    Hop-by-hop headers are left out, and so is the content coding, since the body is decoded.
    """
    forwarded_headers: list[Header] = []
    dropped_names: frozenset[str] = frozenset()
    for raw_name, raw_value in raw_headers:
        name = _NAME_CACHE.get(raw_name)
        if name is None:
            name = _decode_name(raw_name)
        if not name:
            continue
        # Bytes that are not UTF-8 become surrogates, so that the client gets the same bytes.
        value = raw_value.decode("utf-8", "surrogateescape")
        if name == "connection":
            dropped_names |= _parse_tokens(value) - _HOP_BY_HOP_HEADERS
        elif name != "content-encoding" or value.lower() not in _DECODED_CODINGS:
            forwarded_headers.append(
                (name, value if value.isprintable() else value.translate(_CONTROLS_TO_BLANKS))
            )
    if not dropped_names:
        return tuple(forwarded_headers)
    return tuple((name, value) for name, value in forwarded_headers if name not in dropped_names)


def decode_as_utf8(value: str) -> str:
    """Returns the value of a header, which was decoded as latin-1, decoded as UTF-8 instead."""
    if not value.isascii():
        # The value stays as it is if its bytes are not UTF-8.
        with suppress(UnicodeError):
            return value.encode("latin-1").decode("utf-8")
    return value


def _parse_tokens(value: str) -> frozenset[str]:
    return frozenset(token.strip().lower() for token in value.split(","))


def _decode_name(raw_name: bytes) -> str:
    """Returns the name of a header in lower case, and caches it; "": the header is not passed on."""
    name = raw_name.decode("latin-1").lower()
    if name in _HOP_BY_HOP_HEADERS and name != "connection":
        name = ""
    if len(raw_name) <= _MAX_NAME_BYTES and len(_NAME_CACHE) < _MAX_CACHED_NAMES:
        _NAME_CACHE[raw_name] = name
    return name
