"""A stream of which nothing but comments has come, and the reply that takes its place."""

from __future__ import annotations

import asyncio
from collections import deque

from adapters.base import ModelReply
from adapters.scripted import ScriptedReply
from gateway.core.upstream.policy import Failure
from gateway.run.upstream.unbegun_stream import UnbegunStream

GONE = b'data: {"error":{"code":502,"message":"Gone."}}\n\n'


def stream(*pieces: bytes) -> ScriptedReply:
    return ScriptedReply(200, (("content-type", "text/event-stream"),), deque(pieces))


def test_a_failed_stream_is_closed_before_another_is_awaited() -> None:
    """The wait for another try and for its answer may take minutes, in which its connection would be held."""
    failed, other = stream(b": wait\n\n", GONE), stream(b'data: {"n":1}\n\n')

    async def replace(failure: Failure) -> ModelReply:
        assert failed.is_closed
        return other

    async def read() -> list[bytes]:
        reply = UnbegunStream(failed, replace)
        found = [event.raw async for events in reply.events() for event in events]
        await reply.aclose()
        return found

    assert asyncio.run(read()) == [b": wait\n\n", b'data: {"n":1}\n\n']
    assert other.is_closed


def test_a_failed_stream_without_another_keeps_its_error() -> None:
    async def replace(failure: Failure) -> None:
        return None

    async def read() -> list[bytes]:
        reply = UnbegunStream(stream(b": wait\n\n", GONE), replace)
        return [event.raw async for events in reply.events() for event in events]

    assert asyncio.run(read()) == [b": wait\n\n", GONE]
