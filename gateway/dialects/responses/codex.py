"""Requests of Codex that no user has written: from its sub-agents, for titles, and to consolidate its memory.

Codex names the source of each thread in `client_metadata`, over HTTP and over a WebSocket.
"""

from __future__ import annotations

from typing import Final

from adapters.types import Json
from gateway.core.lenient import decode_object

SUB_AGENT: Final = "codex sub-agent"
# A longer `x-codex-turn-metadata` is not read: Codex names workspaces there, in a few thousand characters.
_MAX_TURN_CHARS: Final = 100_000
# The kinds of side requests by the `thread_source` that Codex gives.
_SIDE_REQUESTS: Final = {
    "subagent": SUB_AGENT,
    "thread_title": "codex title",
    "memory_consolidation": "codex memory consolidation",
}


def find_codex_side_request(json: Json) -> str | None:
    """Returns the name of a side request of Codex; None: a user has written the request, or it is not Codex's."""
    metadata = json.get("client_metadata")
    if not isinstance(metadata, dict):
        return None
    turn_json = metadata.get("x-codex-turn-metadata")
    turn_metadata: Json = {}
    if isinstance(turn_json, str) and len(turn_json) <= _MAX_TURN_CHARS:
        turn_metadata = decode_object(turn_json)
    source = turn_metadata.get("thread_source")
    if isinstance(source, str) and source in _SIDE_REQUESTS:
        return _SIDE_REQUESTS[source]
    return SUB_AGENT if metadata.get("x-openai-subagent") else None
