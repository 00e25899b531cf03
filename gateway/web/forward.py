"""What of a request goes on to the upstream: its headers without those that are ours, its body with another model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson

__all__ = ["forwarded_headers", "with_model"]

# RFC 9110 7.6.1 (hop by hop), what the next hop sets anew, credentials, and what belongs to a browser.
_STAY = frozenset(
    (
        b"accept-encoding",
        b"api-key",
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"keep-alive",
        b"origin",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"referer",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"x-api-key",
        b"x-real-ip",
    )
)
_STAY_PREFIXES = (b"x-mnemogate-", b"x-forwarded-", b"sec-")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)


def forwarded_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """The caller's headers that go on; those its `connection` header names stay too, and so does any key of ours."""
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name == b"connection":
            named = frozenset(part.strip().lower() for part in value.split(b","))
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name not in _STAY
        and not name.startswith(_STAY_PREFIXES)
        and name not in named
        and not (b"mg-" in value and re.search(rb"(^|[\s=:,;])mg-", value))
    )


def with_model(body: bytes, parsed: dict[str, Any], model: str) -> bytes:
    """The same bytes with another value for the top-level `model`; everything else stays as the client wrote it."""
    depth, key, start = 0, None, None
    spans: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(body):
        token = match[0]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
        elif depth == 1:
            if token == b":":
                start = match.end()
            elif token == b",":
                key = start = None
            elif start is None and token[:1] == b'"':
                key = orjson.loads(token)
            elif key == "model" and start is not None:
                spans.append(match.span())
    if not spans:
        return orjson.dumps({**parsed, "model": model})
    name = orjson.dumps(model)
    for first, last in reversed(spans):  # a key given twice: whichever the upstream reads says the same
        body = body[:first] + name + body[last:]
    return body
