"""The form of an error in OpenAI's API: its error object, as a body and as the last event of a stream.

(platform.openai.com/docs/guides/error-codes; OpenAI's SDKs read the fields `message`, `type`, `param` and `code`)
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import orjson

from gateway.dialects.event_stream import encode_event
from gateway.errors import GatewayError


class ChatErrors:
    """The `ErrorForm` of chat completions, and of all routes that have no dialect of their own."""

    id_header: ClassVar[bytes | None] = None

    def render_body(self, error: GatewayError) -> bytes:
        return orjson.dumps(_make_error_object(error))

    def render_event(self, error: GatewayError) -> bytes:
        """Returns an error after the first byte, in the form that OpenAI's SDKs raise as APIError."""
        return encode_event(_make_error_object(error))


CHAT_ERRORS: Final = ChatErrors()


def _make_error_object(error: GatewayError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
