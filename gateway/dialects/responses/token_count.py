"""The count of a request's tokens in the form of the Responses API: the gateway's own, or an upstream's."""

from __future__ import annotations

import orjson

from adapters.types import Event
from gateway.core.turn.reply_change import ReplyChange
from gateway.errors import UpstreamReplyBroken


def render_count(tokens: int) -> bytes:
    """Returns the body that answers a request for a count."""
    return orjson.dumps({"object": "response.input_tokens", "input_tokens": tokens})


class CountChange(ReplyChange):
    """Puts an upstream's count into the form of the Responses API."""

    def change_event(self, event: Event) -> bytes:
        raise UpstreamReplyBroken("The upstream has answered a count with a stream.")

    def change_unfinished(self, rest: bytes) -> bytes:
        return b""

    def change_body(self, body: bytes) -> bytes:
        try:
            return render_count(int(orjson.loads(body)["input_tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UpstreamReplyBroken("The upstream's answer is no count of tokens.") from error
