"""Headers as ASGI has them: pairs of bytes, their names in lower case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapters.types import Header
from gateway.core.request.request_headers import RawHeaders, header_text, refuse_repeated
from gateway.run.upstream.route import UPSTREAM_HEADER

_UPSTREAM = UPSTREAM_HEADER.encode()


def header_of(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """Returns the value of the first header with this name."""
    for name, value in headers:
        if name == wanted:
            return value
    return None


def named_upstream(headers: RawHeaders) -> str | None:
    """Returns the upstream that the caller names. Raises: BadRequest: two of them, or no text."""
    refuse_repeated(headers, (_UPSTREAM,))
    named = header_of(headers, _UPSTREAM)
    return None if named is None else header_text(named, UPSTREAM_HEADER).strip() or None


def as_bytes(headers: Sequence[Header]) -> list[tuple[bytes, bytes]]:
    """Returns headers as they go out: what an upstream sent that is no text goes on in its own bytes."""
    try:
        return [(name.encode(), value.encode()) for name, value in headers]
    except UnicodeEncodeError:
        return [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers]
