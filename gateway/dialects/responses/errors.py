"""The form of an error in the Responses API: a body as everywhere in OpenAI's API, and an event with its type in it."""

from __future__ import annotations

from typing import Any

import orjson

from adapters.types import Json
from gateway.dialects.chat.errors import ChatErrors
from gateway.errors import GatewayError


class ResponsesErrors(ChatErrors):
    """The `ErrorForm` of the Responses API."""

    def event(self, error: GatewayError) -> bytes:
        # Whoever writes this does not know how many events came before; typed clients ask for a number.
        fields = error_fields(error.message, error.code, error.kind, error.param)
        return frame("error", {**fields, "sequence_number": 0})


def error_fields(message: str, code: str | None, kind: str, param: Any) -> Json:
    """Returns the fields of an event of the type `error`."""
    fields = {"code": code or kind, "message": message, "param": param}
    # The reference has these fields in the event itself. OpenAI sends them in `error`, which its SDKs raise.
    return {**fields, "error": {"type": kind, **fields}}


def frame(kind: str, fields: Json) -> bytes:
    """Returns an event of a stream."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
