"""A noted reply comes again in the form in which it was noted."""

from __future__ import annotations

from typing import Any, cast

from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.replayed_replies import ReplayedReplies


async def test_a_body_is_no_stream_whatever_white_space_it_begins_with() -> None:
    """OpenRouter sends white space before a body, as a sign of life."""
    noted = [b'{"choices":[]}', b'\n  {"choices":[]}', b'data: {"choices":[]}\n\ndata: [DONE]\n\n']
    source = ReplayedReplies(cast("Attempts", None), [*noted])
    make: Any = None
    replies = [await source.send(make) for _ in noted]
    assert [reply.is_stream for reply in replies] == [False, False, True]
    assert [await reply.read(100) for reply in replies] == noted
