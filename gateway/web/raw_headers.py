"""Headers as ASGI has them: pairs of bytes, their names in lower case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapters.types import Header
from gateway.core.request.request_headers import RawHeaders, read_header, refuse_repeated
from gateway.run.upstream.route import UPSTREAM_HEADER

_UPSTREAM_HEADER = UPSTREAM_HEADER.encode()


def find_header(headers: Iterable[tuple[bytes, bytes]], lower_name: bytes) -> bytes | None:
    """Returns the value of the first header with this name."""
    for name, value in headers:
        if name == lower_name:
            return value
    return None


def read_upstream_name(headers: RawHeaders) -> str | None:
    """Returns the name of the upstream that a request asks for, or None if it names no upstream.

    Raises: BadRequest: the header came twice, or its value is no text.
    """
    refuse_repeated(headers, (_UPSTREAM_HEADER,))
    value = find_header(headers, _UPSTREAM_HEADER)
    return None if value is None else read_header(value, UPSTREAM_HEADER).strip() or None


def encode_headers(headers: Sequence[Header]) -> list[tuple[bytes, bytes]]:
    """Returns headers as ASGI sends them. Bytes of an upstream's value that are no UTF-8 stay the same bytes."""
    try:
        return [(name.encode(), value.encode()) for name, value in headers]
    except UnicodeEncodeError:
        return [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers]
