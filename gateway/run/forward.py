"""The other endpoints: a request handed to an upstream as it is, and its answer handed back. No memory, one try."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adapters.base import ModelReply, Provider
from adapters.errors import ProviderError
from adapters.types import ModelRequest
from gateway.core.identity import forwardable
from gateway.core.stream import is_event_stream
from gateway.errors import BadRequest, UnknownPath
from gateway.metrics import Metrics
from gateway.run.relay import Receipt, handed_on, kind_of, split_events, translate
from gateway.run.route import AGENT_PREFIX, resolve_route
from gateway.run.sink import Sink
from gateway.settings import Settings

__all__ = ["UPSTREAM_HEADER", "Forwarding", "Outgoing"]

UPSTREAM_HEADER: Final = "x-mnemogate-upstream"
_HELD_BYTES: Final = (
    8 * 1024 * 1024
)  # chosen: of a JSON answer, so that one cut in its middle is still a status
_NO_ENDPOINT: Final = "unsupported_endpoint"

# Of the body, which goes as it came: said of it by whoever made it.
_OF_THE_BODY: Final = frozenset((b"content-type", b"content-encoding"))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request for an upstream. The last three are those of `ModelRequest`, in whose place `body` stands otherwise.

    path: below the base URL, with the query. headers: the caller's, as ASGI has them.
    failure: why `upload` ended early, if it did.
    """

    method: str
    path: str
    headers: Sequence[tuple[bytes, bytes]]
    credential: str | None
    body: bytes = b""
    upload: AsyncIterator[bytes] | None = None
    upload_bytes: int | None = None
    failure: Callable[[], Exception | None] = lambda: None

    def request(self) -> ModelRequest:
        about = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self.headers
            if name in _OF_THE_BODY
        ]
        return ModelRequest(
            self.body,
            (*forwardable(self.headers), *about),
            self.credential,
            self.path,
            self.method,
            self.upload,
            self.upload_bytes,
        )


class Forwarding:
    """One for the process."""

    def __init__(self, settings: Settings, providers: Mapping[str, Provider], metrics: Metrics) -> None:
        self._settings = settings
        self._providers = providers
        self._names = frozenset(each.name for each in settings.upstreams)
        self._metrics = metrics

    def find(self, path: str, model: str | None, named: str | None) -> tuple[str, str | None]:
        """The upstream's name and what it calls the model.

        path: below the base URL. named: the upstream the caller asks for, by its name in the settings. Without a model
        and a name: the first that has such an endpoint.
        Raises: BadRequest, UnknownModel, UnknownPath.
        """
        upstream, name = self._find(path, model, named)
        if not self._providers[upstream].has_endpoint(path):
            where = "/v1" + path.partition("?")[0]
            if model is None:
                raise UnknownPath(f"The upstream {upstream!r} has no {where}.", code=_NO_ENDPOINT)
            raise UnknownPath(
                f"The model {model!r} is served by the upstream {upstream!r}, which has no {where}.",
                param="model",
                code=_NO_ENDPOINT,
            )
        return upstream, name

    def _find(self, path: str, model: str | None, named: str | None) -> tuple[str, str | None]:
        if named is not None and named not in self._names:
            raise BadRequest(
                f"There is no upstream {named!r}. Send the name of one in the settings.",
                param=UPSTREAM_HEADER,
            )
        if model is None:
            return named or self._first_with(path), None
        if model.startswith(AGENT_PREFIX):
            raise BadRequest(
                f"{model!r} answers chat completions only; name the model itself here.", param="model"
            )
        if named is not None:
            for alias in self._settings.models:
                if alias.alias == model and alias.upstream in (named, None):
                    return named, alias.model
            return named, model
        route = resolve_route(self._settings, model)
        return route.upstream, route.model

    def _first_with(self, path: str) -> str:
        names = [each.name for each in self._settings.upstreams]
        return next((name for name in names if self._providers[name].has_endpoint(path)), names[0])

    async def answer(self, upstream: str, asked: Outgoing, sink: Sink, receipt: Receipt) -> None:
        """Answer `sink` with what the upstream says.

        Raises: UpstreamError and below; ClientGone, with the upstream's connection closed; where the upload failed,
        what it failed of and not what became of that.
        """
        reply: ModelReply | None = None
        try:
            with sink.while_here():
                receipt.upstream_called()
                receipt.headers.append((UPSTREAM_HEADER, upstream))
                reply = await self._providers[upstream].send(asked.request())
                receipt.upstream_answered()
                self._metrics.upstream_try(upstream, str(reply.status))
                if reply.status >= 400:
                    self._metrics.upstream_error(upstream, str(reply.status))
                await _hand_on(reply, sink, receipt)
        except ProviderError as error:
            if (cause := asked.failure()) is not None:
                raise cause from error
            told = translate(error)
            self._metrics.upstream_error(upstream, kind_of(told))
            if reply is None:
                self._metrics.upstream_try(upstream, kind_of(told))
            told.headers = tuple(receipt.lines())
            raise told from error
        finally:
            if reply is not None:
                await reply.aclose()


async def _hand_on(reply: ModelReply, sink: Sink, receipt: Receipt) -> None:
    headers = handed_on(reply.headers)
    is_held = any(name == "content-type" and value.startswith("application/json") for name, value in headers)
    is_stream = is_event_stream(reply.status, headers)
    held: list[bytes] = []
    size = 0
    rest = b""  # of an event that is not complete, as in `relay`
    async for chunk in reply.chunks():
        if is_held:
            held.append(chunk)
            size += len(chunk)
            if size <= _HELD_BYTES:
                continue
            is_held, chunk = False, b"".join(held)
        if not sink.started:
            sink.start(reply.status, [*headers, *receipt.lines()])
        if is_stream:
            chunk, rest = split_events(rest + chunk)
        await sink.write(chunk)
    if is_held:
        await sink.whole(reply.status, [*headers, *receipt.lines()], b"".join(held))
        return
    if not sink.started:
        sink.start(reply.status, [*headers, *receipt.lines()])
    await sink.write(rest)
    await sink.end()
