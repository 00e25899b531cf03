"""Reads the errors of upstreams, whatever their status, and drops the errors that no client gets."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from msgspec import Struct

from adapters.base import ModelReply
from adapters.errors import ProviderError, ProviderReplyBroken
from adapters.reply_headers import WAIT_HEADERS
from adapters.reply_quota import MAX_REPLY_BYTES
from adapters.types import CHAT_PATH, JSON_HEADER, ModelRequest
from adapters.whole_reply import BufferedReply
from gateway.core.turn.upstream_error import (
    ERROR_BYTES,
    find_error_in_first_event,
    find_error_in_success_body,
)

# The paths of which a reply with an error under a status of success is known. The second one is Anthropic's.
_ANSWER_PATHS: Final = (CHAT_PATH, "/messages")
# An error that no client gets is read up to ERROR_BYTES, for this time, so that its connection can be used again.
_DISCARD_S: Final = 0.1
# The seconds within which the body of a 429 must come, of which the time to wait is read.
_LIMIT_ERROR_S: Final = 2.0


class BegunReply(Struct, frozen=True):
    """A reply, and the part of it that was read to see whether it is an error."""

    # The reply.
    reply: ModelReply
    # The data of the first event, or the body; b"": neither was read.
    begin: bytes = b""
    # True: the reply is a stream of which only comments have come so far, so another reply may take its place.
    is_replaceable: bool = False
    # True: `begin` is the whole body.
    is_whole: bool = False


async def begin_reply(reply: ModelReply, request: ModelRequest, *, may_peek: bool) -> BegunReply:
    """Returns the reply to a request, read as far as shows whether it is an error under a status of success.

    Such an error gets the status that it names. A 429 is read whole if its headers do not name the time to wait.
    may_peek: True: the first event of a stream may be read.
    """
    if reply.is_stream:
        if request.method != "POST":
            return BegunReply(reply)  # a stream that is read again may have nothing left
        return await reveal_stream_error(reply) if may_peek else BegunReply(reply, is_replaceable=True)
    if reply.status == 429 and not any(name in WAIT_HEADERS for name, _ in reply.headers):
        return await _read_limit_error(reply)
    is_answer = request.path.partition("?")[0] in _ANSWER_PATHS and reply.status < 300
    return await reveal_whole_error(reply) if is_answer else BegunReply(reply)


async def read_whole_error(reply: ModelReply) -> BufferedReply:
    """Returns an error that was read to its end. Raises: as `ModelReply.read`."""
    try:
        return BufferedReply(reply.status, reply.headers, await reply.read(MAX_REPLY_BYTES))
    finally:
        await reply.aclose()


async def reveal_stream_error(reply: ModelReply) -> BegunReply:
    """Returns a stream and its first event. Another reply may take its place if comments alone have come for long.

    A stream that begins with an error is replaced by a whole reply with that error's status, and no data.
    """
    try:
        first_event = await reply.peek()
    except BaseException:
        await reply.aclose()
        raise
    if first_event is None:
        return BegunReply(reply)
    error = find_error_in_first_event(first_event)
    if error is None:
        return BegunReply(reply, first_event.data or b"", is_replaceable=first_event.data is None)
    await discard_reply(reply)
    headers = [(name, value) for name, value in reply.headers if name != "content-type"]
    body = error.body
    # Anthropic's own error is the event's data, for a client that speaks its dialect.
    if first_event.name == "error" and first_event.data is not None:
        body = first_event.data
    return BegunReply(BufferedReply(error.status, (*headers, JSON_HEADER), body))


async def reveal_whole_error(reply: ModelReply) -> BegunReply:
    """Returns a whole reply, and its body. An error under a status of success gets the status that it names.

    A reply that breaks off while it is read here has begun, so its request is not sent again: the returned reply breaks
    off for its reader. So does a reply that ends within its JSON, since HTTP reports no error if no length was
    announced.
    """
    try:
        body = await reply.read(MAX_REPLY_BYTES)
    except BaseException as error:
        await reply.aclose()
        if not isinstance(error, ProviderError):
            raise
        return _make_broken_reply(reply, error)
    if body.lstrip().startswith(b"{") and not body.rstrip().endswith(b"}"):
        return _make_broken_reply(
            reply, ProviderReplyBroken("the upstream's reply ended in the middle of its JSON")
        )
    revealed_error = find_error_in_success_body(body)
    if revealed_error is None:
        return BegunReply(BufferedReply(reply.status, reply.headers, body), body, is_whole=True)
    error_reply = BufferedReply(revealed_error.status, reply.headers, revealed_error.body)
    return BegunReply(error_reply, body, is_whole=True)


async def _read_limit_error(reply: ModelReply) -> BegunReply:
    """Returns a 429 and its body. If the body breaks off or stalls, the returned reply breaks off for its reader."""
    try:
        async with asyncio.timeout(_LIMIT_ERROR_S):
            whole_reply = await read_whole_error(reply)
    except TimeoutError:
        return _make_broken_reply(
            reply, ProviderReplyBroken("the body of the upstream's error did not come in time")
        )
    except ProviderError as error:
        return _make_broken_reply(reply, error)
    return BegunReply(whole_reply, whole_reply.body, is_whole=True)


def _make_broken_reply(reply: ModelReply, error: ProviderError) -> BegunReply:
    """Returns a reply that breaks off for its reader."""
    return BegunReply(BufferedReply(reply.status, reply.headers, b"", error))


async def discard_reply(reply: ModelReply) -> None:
    """Reads the rest of an error, so that its connection can be used again; after a long error it is closed."""
    with suppress(ProviderError, TimeoutError):
        try:
            async with asyncio.timeout(_DISCARD_S):
                await reply.read(ERROR_BYTES)
        finally:
            await reply.aclose()
