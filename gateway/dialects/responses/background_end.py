"""The end of a response that its upstream makes in the background, as a client's GET sees it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from adapters.types import Event
from gateway.core.lenient import decode_object
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.usage.reported import is_pending
from gateway.dialects.responses.members import decode_upstream_members

_BACKGROUND_KEY: Final = b'"background"'
_END_EVENTS: Final = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


class EndedResponse(NamedTuple):
    """A response that has ended."""

    # The id of the response.
    id: str
    # The response as its upstream sent it.
    body: bytes


class BackgroundEnd(ReplyChange):
    """Changes a reply as another change does, and records a response in the reply that has ended."""

    def __init__(self, change: ReplyChange) -> None:
        """Takes the change of a reply that is to begin. change: the change."""
        self._change = change
        # The response that has ended; None: none has, or it was taken.
        self._ended_response: EndedResponse | None = None

    def take_ended(self) -> EndedResponse | None:
        """Returns the response that has ended, once; None: no response has ended since the last call."""
        ended_response = self._ended_response
        self._ended_response = None
        return ended_response

    def change_event(self, event: Event) -> bytes:
        data = event.data
        if data is not None and _BACKGROUND_KEY in data:
            fields = decode_object(data)
            response = fields.get("response")
            if fields.get("type") in _END_EVENTS and isinstance(response, dict):
                # The bytes of the response are taken, since it may be nested more deeply than orjson writes.
                self._record_end(response, decode_upstream_members(data)["response"])
        return self._change.change_event(event)

    def change_unfinished(self, rest: bytes) -> bytes:
        return self._change.change_unfinished(rest)

    def change_body(self, body: bytes) -> bytes:
        if _BACKGROUND_KEY in body:
            self._record_end(decode_object(body), body)
        return self._change.change_body(body)

    def _record_end(self, response: dict[str, Any], body: bytes) -> None:
        response_id = response.get("id")
        is_background = response.get("background") is True
        if isinstance(response_id, str) and is_background and not is_pending(response):
            self._ended_response = EndedResponse(response_id, body)
