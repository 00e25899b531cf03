"""POST /v1/chat/completions: a plain ASGI callable in front of the router, since this is where time counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from adapters.base import Provider
from adapters.types import ModelRequest
from gateway.errors import BadRequest, UpstreamBroke, UpstreamError, UpstreamTimeout
from gateway.metrics import Metrics
from gateway.run.relay import Receipt, relay
from gateway.run.route import resolve_route
from gateway.settings import Settings
from gateway.web.body import BodyReader
from gateway.web.forward import forwarded_headers, with_model
from gateway.web.middleware import trace_of
from gateway.web.sse import Reply

__all__ = ["CHAT_PATH", "ChatRoute"]

CHAT_PATH = "/v1/chat/completions"


class ChatRoute:
    def __init__(
        self, settings: Settings, providers: Mapping[str, Provider], bodies: BodyReader, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._bodies = bodies
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        trace.route = "chat"
        async with self._bodies.read(scope, receive) as body:
            trace.bytes_in = len(body)
            asked = _parse(body)
            model, stream = asked["model"], asked.get("stream") is True
            trace.model, trace.stream = model, stream
            route = resolve_route(self._settings, model)
            receipt = Receipt(trace.begun, [("x-mnemogate-memory", "off")])
            request = ModelRequest(
                body=body if route.model == model else with_model(body, asked, route.model),
                stream=stream,
                headers=forwarded_headers(scope["headers"]),
                credential=trace.caller.credential,
            )
            async with Reply(receive, send, self._settings.server.send_timeout_s) as reply:
                try:
                    status = await relay(self._providers[route.upstream], request, reply, receipt)
                except UpstreamError as error:
                    self._metrics.upstream_error(route.upstream, _kind(error))
                    raise
                finally:
                    trace.added_ms = receipt.added_ms
                    trace.memory = "off"
            self._metrics.added_ms.observe(receipt.added_ms)
            self._metrics.memory("off")
            if status >= 400:
                self._metrics.upstream_error(route.upstream, str(status))


def _parse(body: bytes) -> dict[str, Any]:
    """The body as JSON, as far as this route acts on it. Raises: BadRequest."""
    try:
        asked = orjson.loads(body)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.") from None
    if not isinstance(asked, dict):
        raise BadRequest("The request body must be a JSON object.")
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model must be a non-empty string.", param="model")
    if not isinstance(asked.get("stream"), bool | None):
        raise BadRequest("stream must be true or false.", param="stream")
    return asked


def _kind(error: UpstreamError) -> str:
    match error:
        case UpstreamTimeout():
            return "timeout"
        case UpstreamBroke():
            return "broke"
        case _:
            return "unreachable"
