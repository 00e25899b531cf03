"""Replies of the page, and the function that sends them."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from http import HTTPStatus

import msgspec
from msgspec import Struct
from starlette.types import Send

from gateway.errors import GatewayError
from gateway.page.defence import RawHeader


class PageReply(Struct):
    """A reply, without the headers that all replies have."""

    # The HTTP status.
    status: int
    # The value of the header `content-type`.
    content_type: str
    # The whole body, or its pieces.
    body: bytes | AsyncIterator[bytes] = b""
    # The headers of this reply alone, with their names in lower case.
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list)
    # True for a file whose path changes with its content; a browser stores no other reply.
    may_be_cached: bool = False


def redirect(to: str, status: int) -> PageReply:
    """Returns a reply that redirects. to: a URL, or an absolute path."""
    return PageReply(status, "text/plain; charset=utf-8", b"", [("location", to)])


def add_error_headers(reply: PageReply, error: GatewayError) -> None:
    """Adds the headers of an error, among them `retry-after`, if it knows when a request may be sent again."""
    if error.status == HTTPStatus.UNAUTHORIZED:
        reply.headers.append(("www-authenticate", "Bearer"))  # a 401 must have it (RFC 9110 15.5.2)
    reply.headers += error.headers
    if error.retry_after_s is not None:
        reply.headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))


async def send_reply(reply: PageReply, headers: list[RawHeader], began_at: float, send: Send) -> None:
    """Sends a reply.

    headers: the headers that all replies have.
    began_at: the time at which the request began, by `time.perf_counter`.
    """
    all_headers = [
        (b"content-type", reply.content_type.encode()),
        *((name.encode(), value.encode()) for name, value in reply.headers),
        *headers,
        (b"cache-control", b"max-age=31536000, immutable" if reply.may_be_cached else b"no-store"),
        (b"server-timing", f"total;dur={(time.perf_counter() - began_at) * 1000:.2f}".encode()),
    ]
    body = reply.body
    if isinstance(body, bytes):
        all_headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": all_headers})
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return
    async for chunk in body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
