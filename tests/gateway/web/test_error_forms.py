"""Errors take the form of the dialect whose route they are answered on."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import orjson
import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import BadRequest, GatewayError, Overloaded, UpstreamReplyBroken
from gateway.log import AccessLog
from gateway.metrics import Metrics
from gateway.web.auth import Guard
from gateway.web.middleware import Edge
from gateway.web.request_info import get_request_info
from tests.doubles.keys import NoKeys


class DetailErrors:
    """The form of a second dialect: a sentence under `detail`, and a name for the event."""

    id_header: ClassVar[bytes | None] = b"the-request-id"

    def render_body(self, error: GatewayError) -> bytes:
        return orjson.dumps({"detail": error.message})

    def render_event(self, error: GatewayError) -> bytes:
        return b"event: error\ndata: " + self.render_body(error) + b"\n\n"


def answer(error: Exception, path: str, *, host: bytes = b"localhost", begun: bool = False) -> list[Message]:
    """What the edge sends where a route fails with an error. begun: after the first event of a stream."""
    sent: list[Message] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if path.startswith("/either/"):
            get_request_info(scope).error_form = DetailErrors()
        if begun:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        raise error

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    edge = Edge(
        route,
        Guard(NoKeys()),
        Metrics(),
        AccessLog(is_enabled=False),
        lambda: 0.0,
        error_forms={"/agents/": DetailErrors()},
    )
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", host)]}
    asyncio.run(edge(scope, receive, send))
    return sent


def test_a_route_of_the_dialect_answers_in_its_form() -> None:
    head, body = answer(Overloaded("Full.", retry_after_s=2), "/agents/1")
    assert head["status"] == 503
    assert dict(head["headers"])[b"retry-after"] == b"2"
    assert dict(head["headers"])[b"the-request-id"] == dict(head["headers"])[b"x-request-id"]
    assert orjson.loads(body["body"]) == {"detail": "Full."}


def test_every_other_route_answers_in_openais_form() -> None:
    head, body = answer(BadRequest("Wrong.", param="n"), "/v1/chat/completions")
    assert head["status"] == 400
    error = {"message": "Wrong.", "type": "invalid_request_error", "param": "n", "code": None}
    assert orjson.loads(body["body"]) == {"error": error}


@pytest.mark.parametrize(
    ("error", "host", "status"),
    [
        (GatewayError("never raised"), b"elsewhere.example", 403),  # refused before any route is asked
        (HTTPException(404), b"localhost", 404),  # no route knows the path
        (ValueError("a bug of ours"), b"localhost", 500),
    ],
)
def test_errors_without_a_route_have_the_dialects_form(error: Exception, host: bytes, status: int) -> None:
    head, body = answer(error, "/agents/1", host=host)
    assert head["status"] == status
    assert list(orjson.loads(body["body"])) == ["detail"]


def test_a_stream_ends_with_an_event_of_the_dialect() -> None:
    *_, last = answer(UpstreamReplyBroken("It broke."), "/agents/1", begun=True)
    assert last["body"] == b'event: error\ndata: {"detail":"It broke."}\n\n'
    *_, last = answer(UpstreamReplyBroken("It broke."), "/v1/chat/completions", begun=True)
    assert last["body"].startswith(b'data: {"error":{"message":"It broke.","type":"upstream_error"')


def test_a_route_may_name_another_form_than_its_path_has() -> None:
    _, body = answer(BadRequest("Wrong."), "/either/1")
    assert orjson.loads(body["body"]) == {"detail": "Wrong."}
