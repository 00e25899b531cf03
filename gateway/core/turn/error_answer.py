"""The answer to a client in place of a reply that its upstream refused."""

from __future__ import annotations

import orjson

from adapters.types import JSON_TYPE, Header, Json, with_content_type
from gateway.core.turn.client_view import ClientView
from gateway.core.turn.commands import SendError, SendWhole
from gateway.errors import UpstreamBroke


def answer_error_reply(
    view: ClientView, status: int, headers: tuple[Header, ...], body: bytes, error: Json
) -> SendWhole | SendError:
    """Returns the answer with the upstream's error; an error of the gateway's if the body is no chat completion.

    status, headers, body: of the upstream's reply.
    error: what the body says, as OpenAI's error object.
    """
    client_body = view.error_reply(status, body)
    if client_body is None and status >= 400:  # a page of a server before the upstream: its status counts
        client_body = view.error_reply(status, orjson.dumps({"error": error}))
    if client_body is None:
        return SendError(UpstreamBroke("The upstream's answer is not a chat completion."))
    if client_body != body:  # in a dialect's own form, whatever form it came in
        headers = with_content_type(headers, JSON_TYPE)
    return SendWhole(status, headers, client_body)
