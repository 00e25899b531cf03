"""The other endpoints: a request handed to an upstream as it is, and its answer handed back. No memory.

What fails is tried as chat is (`gateway.run.upstream.failover`), but for two things. What an upstream keeps
(files, batches,
responses) is in the account of one key: only that is asked, and not again for what may be there although the answer
says that it is not. An upload passes through once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol

from adapters.base import ModelReply, Provider
from adapters.errors import ProviderError
from adapters.types import ModelRequest
from gateway.core.request.headers import forwardable
from gateway.core.turn.stream import is_event_stream
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, UnknownPath
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.failover import Endpoint, Failover
from gateway.run.upstream.keepalive import BEAT, with_beats
from gateway.run.upstream.relay import handed_on, kind_of, split_events, translate
from gateway.run.upstream.route import AGENT_PREFIX, Route, resolve_route
from gateway.settings import Settings

__all__ = ["UPSTREAM_HEADER", "Forwarding", "Named", "Outgoing", "StreamedBody"]

UPSTREAM_HEADER: Final = "x-mnemogate-upstream"
_HELD_BYTES: Final = (
    8 * 1024 * 1024
)  # chosen: of a JSON answer, so that one cut in its middle is still a status
_NO_ENDPOINT: Final = "unsupported_endpoint"

# Of the body, which goes as it came: said of it by whoever made it.
_OF_THE_BODY: Final = frozenset((b"content-type", b"content-encoding"))
_KEPT: Final = ("/files", "/uploads", "/batches", "/responses")


class Named(Protocol):
    """A body that is here."""

    def with_model(self, model: str) -> bytes:
        """It, with another name for its model, if it has one."""


class StreamedBody(Protocol):
    """A body that comes piece by piece. size: None where it is not known. error: why it ended early, if it did."""

    size: int | None
    error: Exception | None

    def put(self, text: str) -> None:
        """Another name for its model, if it has one."""

    def pieces(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request for an upstream, its body one of the last two.

    path: below the base URL, with the query. headers: the caller's, as ASGI has them.
    """

    method: str
    path: str
    headers: Sequence[tuple[bytes, bytes]]
    credential: str | None
    named: Named | None = None
    upload: StreamedBody | None = None

    @property
    def is_kept(self) -> bool:
        return self.path.startswith(_KEPT)

    def request(self, target: Target, upstream: str) -> ModelRequest:
        """upstream: the one that was asked for."""
        about = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self.headers
            if name in _OF_THE_BODY
        ]
        if self.upload is not None:
            self.upload.put(target.model)
        return ModelRequest(
            b"" if self.named is None else self.named.with_model(target.model),
            (*forwardable(self.headers), *about),
            self.credential if target.gets_credential(upstream) else None,
            self.path,
            self.method,
            None if self.upload is None else self.upload.pieces(),
            None if self.upload is None else self.upload.size,
        )

    def failure(self) -> Exception | None:
        return None if self.upload is None else self.upload.error


class Forwarding:
    """One for the process."""

    def __init__(self, settings: Settings, providers: Mapping[str, Provider], reach: Failover) -> None:
        self._settings = settings
        self._providers = providers
        self._names = frozenset(each.name for each in settings.upstreams)
        self._reach = reach
        self._turns = count()

    def find(self, path: str, model: str | None, named: str | None) -> Route:
        """Who is asked, and what the model is called there; "" for none.

        path: below the base URL. named: the upstream the caller asks for, by its name in the settings. Without a model
        and a name: the first that has such an endpoint.
        Raises: BadRequest, UnknownModel, UnknownPath.
        """
        route = self._find(path, model, named)
        upstream = route.upstream
        if not self._providers[upstream].has_endpoint(path):
            where = "/v1" + path.partition("?")[0]
            if model is None:
                raise UnknownPath(f"The upstream {upstream!r} has no {where}.", code=_NO_ENDPOINT)
            raise UnknownPath(
                f"The model {model!r} is served by the upstream {upstream!r}, which has no {where}.",
                param="model",
                code=_NO_ENDPOINT,
            )
        return route

    def _find(self, path: str, model: str | None, named: str | None) -> Route:
        if named is not None and named not in self._names:
            raise BadRequest(
                f"There is no upstream {named!r}. Send the name of one in the settings.",
                param=UPSTREAM_HEADER,
            )
        if model is None:
            return Route(named or self._first_with(path), "")
        if model.startswith(AGENT_PREFIX):
            raise BadRequest(
                f"{model!r} answers chat completions only; name the model itself here.", param="model"
            )
        if named is not None:
            for alias in self._settings.models:
                if alias.alias == model and alias.upstream in (named, None):
                    return Route(named, alias.model)
            return Route(named, model)
        return resolve_route(self._settings, model)

    def _first_with(self, path: str) -> str:
        names = [each.name for each in self._settings.upstreams]
        return next((name for name in names if self._providers[name].has_endpoint(path)), names[0])

    async def answer(self, route: Route, asked: Outgoing, sink: Sink, receipt: Receipt) -> None:
        """Answer `sink` with what the upstream says.

        Raises: UpstreamError and below; ClientGone, with the upstream's connection closed; where the upload failed,
        what it failed of and not what became of that.
        """
        if asked.is_kept:
            tries = self._reach.first(route, sink, receipt)
        else:
            tries = self._reach.tries(route, lambda: next(self._turns), sink, receipt, asked.path)

        async def remake(target: Target, place: Endpoint) -> ModelRequest:
            return asked.request(target, route.upstream)

        tries.remake, tries.fault = remake, asked.failure
        tries.is_once = asked.is_kept and asked.method != "GET"
        reply: ModelReply | None = None
        try:
            with sink.while_here():
                receipt.upstream_called()
                reply = await tries.send(asked.request(tries.target, route.upstream))
                receipt.upstream_answered()
                await _hand_on(reply, sink, receipt, self._settings.server.keep_alive_comment_s)
        except ProviderError as error:
            if (cause := asked.failure()) is not None:
                raise cause from error
            told = translate(error)
            if tries.is_answered:  # what failed without an answer is counted already
                tries.broke(kind_of(told))
            told.headers = tuple(receipt.lines())
            raise told from error
        finally:
            tries.done()
            if reply is not None:
                await reply.aclose()


async def _hand_on(reply: ModelReply, sink: Sink, receipt: Receipt, beat_s: float) -> None:
    headers = handed_on(reply.headers)
    is_held = any(name == "content-type" and value.startswith("application/json") for name, value in headers)
    is_stream = is_event_stream(reply.status, headers)
    held: list[bytes] = []
    size = 0
    rest = b""  # of an event that is not complete, as in `relay`
    beats = with_beats(reply.chunks(), beat_s) if is_stream and beat_s else None
    try:
        async for chunk in beats or reply.chunks():
            if is_held:
                held.append(chunk)
                size += len(chunk)
                if size <= _HELD_BYTES:
                    continue
                is_held, chunk = False, b"".join(held)
            if not sink.started:
                sink.start(reply.status, [*headers, *receipt.lines()])
            if is_stream and chunk is not BEAT:
                chunk, rest = split_events(rest + chunk)
            await sink.write(chunk)
    finally:
        if beats is not None:
            await beats.aclose()
    if is_held:
        await sink.whole(reply.status, [*headers, *receipt.lines()], b"".join(held))
        return
    if not sink.started:
        sink.start(reply.status, [*headers, *receipt.lines()])
    await sink.write(rest)
    await sink.end()
