"""From a route to a reply: tries one place after the other, until one answers.

The order is decided by `gateway.core.upstream.policy`.

`Attempts` is one request's. It has a provider's `send`, so that whoever relays a reply need not
know how many were asked.
Everything here happens before a reply is handed on: a reply that has begun is not tried again. The first answer
settles the place; further rounds of the same turn stay there, and once the client has text they are sent just once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from adapters.base import MAX_REPLY_BYTES, BufferedReply, ModelReply, Provider
from adapters.errors import ProviderError
from adapters.types import ModelRequest, read_retry_after
from gateway.core.turn.stream import is_event_stream
from gateway.core.turn.upstream_error import refusal_in
from gateway.core.upstream.context_window import GUESS, Contexts, context_from_error
from gateway.core.upstream.policy import (
    EndpointHealth,
    Failure,
    NextAttempt,
    Policy,
    RouteMember,
    Target,
    decide,
    has_credit,
    is_failure,
    order,
    take_credit,
)
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.errors import failure_of
from gateway.run.upstream.route import Route
from gateway.settings import Settings

__all__ = ["Attempts", "Endpoint", "Failover", "RequestSource"]

# Of an error: what is read of one that nobody gets to see, so that its connection can be used again; and what is
# searched of one that may name a context. Some repeat the whole request.
_ERROR_BYTES = 64 * 1024
_ERROR_S = 0.1
CHAT: Final = "/chat/completions"
_MAY_BE_TOO_LONG = frozenset((400, 413, 422))


@dataclass(slots=True)
class Endpoint:
    """One provider with one key. name: its upstream's, and from the second key on its number.

    has_key: False: callers bring their own, and then a limit that one of them reached says nothing about the others.
    """

    name: str
    upstream: str
    provider: Provider
    policy: Policy
    has_key: bool = True
    health: EndpointHealth = field(default_factory=EndpointHealth)


Candidate = tuple[Endpoint, Target]


class RequestSource(Protocol):
    """Whoever asks: it makes the request for each target that is tried."""

    async def request_for(self, target: Target, place: Endpoint) -> ModelRequest: ...

    def fault(self) -> Exception | None:
        """Returns why the request could not be sent to its end, if the caller is to blame; no upstream is then."""


class Failover:
    """One for the process. now: a monotonic clock; wall: seconds since the epoch, for dates in Retry-After."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        metrics: Metrics,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """providers: by name of the settings; those of further keys as `name#2` and so on."""
        self.now, self.wall, self.sleep, self.chance = now, wall, sleep, chance
        self.metrics = metrics
        # A client that is to hear comments while it waits for the first event gets its status before that.
        self.may_peek = not settings.server.keep_alive_comment_s
        self._places: dict[str, list[Endpoint]] = {}
        for upstream in settings.upstreams:
            policy = Policy(upstream.retries)
            has_key = bool(upstream.keys or upstream.headers)
            names = [upstream.name, *(f"{upstream.name}#{n + 1}" for n in range(1, len(upstream.keys)))]
            self._places[upstream.name] = [
                Endpoint(name, upstream.name, providers[name], policy, has_key)
                for name in names
                if name in providers
            ]
        self.contexts = Contexts()
        metrics.watch_upstreams(self._resting)

    def tries(
        self, route: Route, key: Callable[[], int], sink: Sink, receipt: Receipt, path: str = CHAT
    ) -> Attempts:
        """Where this request goes; nothing is sent yet.

        key: the same for what stays together where there are several places. path: who is known not to have it is
        passed by.
        """
        places = self._places[route.upstream]
        if not route.others and len(places) == 1:
            window = self.contexts.of((route.upstream, route.model), route.context_window)
            target = Target(route.upstream, route.model, window)
            return Attempts(self, [(places[0], target)], sink, receipt)
        targets = [
            each._replace(context_window=self.contexts.of(each[:2], each.context_window))
            for each in route.targets
        ]
        candidates = [
            (place, target)
            for target in targets
            for place in self._places[target.upstream]
            if path == CHAT or place.provider.has_endpoint(path)
        ]
        members = [RouteMember(f"{p.name}/{t.model}", t.rank, p.health, t.model) for p, t in candidates]
        found = order(members, self.now(), key())
        return Attempts(self, [candidates[i] for i in found], sink, receipt)

    def first(self, route: Route, sink: Sink, receipt: Receipt) -> Attempts:
        """The one place of what an upstream keeps: its first key, whose account the files and the like are in."""
        target = Target(route.upstream, route.model)
        return Attempts(self, [(self._places[route.upstream][0], target)], sink, receipt)

    def _resting(self) -> dict[tuple[str, ...], int]:
        now = self.now()
        return {
            (place.name,): int(place.health.is_resting(now))
            for places in self._places.values()
            for place in places
        }


class Attempts:
    """place, target: whose turn it is; after an answer, whose answer it was. Call `done` when the request is over.

    is_once: what may have been done is not asked for again.
    """

    __slots__ = (
        "_busy",
        "_candidates",
        "_is_guess",
        "_is_settled",
        "_log",
        "_reach",
        "_receipt",
        "_sink",
        "is_answered",
        "is_once",
        "place",
        "target",
    )

    def __init__(self, reach: Failover, candidates: list[Candidate], sink: Sink, receipt: Receipt) -> None:
        self._reach = reach
        self._sink = sink
        self._receipt = receipt
        self.place, self.target = candidates[0]
        self._candidates = candidates[1:]
        self._log: list[str] = []
        self._busy: Endpoint | None = None
        self._is_settled = False
        self._is_guess = False  # whether this request was cut by guess
        self.is_answered = False  # whether the last call had a reply, whatever it said
        self.is_once = False

    async def send(self, source: RequestSource) -> ModelReply:
        """The first reply that will do, or the last one there was. Raises: ProviderError: the last error."""
        reach, tries = self._reach, 0
        request = await source.request_for(self.target, self.place)
        is_free = request.upload is None  # what was read once cannot be sent twice
        while True:
            place, health = self.place, self.place.health
            if self._busy is not place:
                self._occupy(place)
            is_probe = health.begin(place.policy)
            tries += 1
            self.is_answered = False
            reply: ModelReply | None = None
            error: ProviderError | None = None
            try:
                reply = await place.provider.send(request)
                if reach.may_peek and not self._sink.started and is_event_stream(reply.status, reply.headers):
                    reply = await _without_mask(reply)
                if not is_failure(reply.status):
                    health.succeeded(self.target.model)
                    if reply.status in _MAY_BE_TOO_LONG and request.path == CHAT and not self._is_settled:
                        reply, shorter = await self._look_for_window(reply, request, source)
                        if shorter is not None:
                            request = shorter
                            continue
                    elif self._is_guess and reply.status < 400:
                        reach.contexts.guessed(self.target[:2])
                    self._answered(str(reply.status), is_error=reply.status >= 400)
                    return reply
                failure = Failure(
                    str(reply.status), retry_after_s=read_retry_after(reply.headers, reach.wall())
                )
            except ProviderError as caught:
                if (fault := source.fault()) is not None:
                    raise fault from caught
                error, failure = caught, failure_of(caught)
            finally:
                if is_probe:
                    health.is_probed = False
            self._blame(failure)
            step, wait_s = self._decide(failure, tries) if is_free else (NextAttempt.STOP, 0.0)
            if step is NextAttempt.STOP:
                self._answered(failure.kind, is_error=True, has_reply=reply is not None)
                if reply is None:
                    assert error is not None
                    raise error
                return reply
            self._note(failure.kind, is_error=True)
            if reply is not None:
                await _let_go(reply)
            if wait_s:
                await reach.sleep(wait_s)
            if step is NextAttempt.NEXT:
                self.place, self.target = self._candidates.pop(0)
                tries = 0
                request = await source.request_for(self.target, self.place)

    async def _look_for_window(
        self, reply: ModelReply, request: ModelRequest, source: RequestSource
    ) -> tuple[ModelReply, ModelRequest | None]:
        """An error that says how long the context is: the request once more, shorter. Else the error as it came.

        If it had been cut to that length already, the upstream counts more than we do; how much more is guessed, once.
        """
        try:
            body = await reply.read(MAX_REPLY_BYTES)
        finally:
            await reply.aclose()
        told = BufferedReply(reply.status, reply.headers, body)
        tokens = context_from_error(body[:_ERROR_BYTES].decode("utf-8", "replace"), request.body)
        known, target = self.target.context_window, self.target
        if tokens is None:
            return told, None
        windows: list[int] = []
        if known is None or known > tokens:
            self._reach.contexts.told(target[:2], tokens)
            known = self._reach.contexts.of(target[:2], tokens) or tokens
            windows.append(known)
        if not self._is_guess:
            windows.append(int(known / GUESS))
        for window in windows:
            shorter = await source.request_for(target._replace(context_window=window), self.place)
            if shorter.body == request.body:
                continue  # by our count it fits
            self._is_guess = window < known
            self.target = target._replace(context_window=window)
            self._note(str(reply.status), is_error=True)
            self._receipt.say("x-mnemogate-context-tokens", str(tokens))
            return told, shorter
        return told, None

    def counted(self, ours: int, theirs: int, most: int) -> None:
        """A reply says what its prompt took."""
        self._reach.contexts.counted(self.target[:2], ours, theirs, most)

    def broke(self, kind: str) -> None:
        """A reply that had begun did not end as it must."""
        self.is_answered = False
        self._reach.metrics.upstream_error(self.place.name, kind)
        self.place.health.failed(self.place.policy, self._reach.now(), self.target.model)

    def done(self) -> None:
        """The request is over; idempotent."""
        if self._busy is not None:
            self._busy.health.in_flight -= 1
            self._busy = None

    def _blame(self, failure: Failure) -> None:
        place, model, now = self.place, self.target.model, self._reach.now()
        is_limit = failure.kind == "429"
        if is_limit and not place.has_key:
            return  # the caller's own
        if is_limit and failure.retry_after_s:
            place.health.limited(now, model, failure.retry_after_s)
        else:
            place.health.failed(place.policy, now, model, failure.retry_after_s)

    def _occupy(self, place: Endpoint) -> None:
        self.done()
        self._busy = place
        place.health.in_flight += 1

    def _decide(self, failure: Failure, tries: int) -> tuple[NextAttempt, float]:
        is_done_perhaps = failure.sent and failure.kind != "429"
        if self._sink.started or (self.is_once and is_done_perhaps):
            return NextAttempt.STOP, 0.0
        left = [] if self._is_settled else self._candidates
        health = self.place.health
        step, wait_s = decide(
            failure,
            self.place.policy,
            tries=tries,
            has_peer=any(target.rank == self.target.rank for _, target in left[:1]),
            has_fallback=bool(left),
            has_credit=has_credit(health, self.place.policy),
            chance=self._reach.chance(),
        )
        if step is NextAttempt.AGAIN:
            take_credit(health, self.place.policy)
        return step, wait_s

    def _answered(self, outcome: str, *, is_error: bool, has_reply: bool = True) -> None:
        self.is_answered = has_reply
        self._note(outcome, is_error=is_error)
        if not self._is_settled:
            self._is_settled = True
            self._receipt.say("x-mnemogate-upstream", self.place.name)
        if len(self._log) > 1:
            self._receipt.say("x-mnemogate-tries", ";".join(self._log))

    def _note(self, outcome: str, *, is_error: bool) -> None:
        name = self.place.name
        self._log.append(f"{name}:{outcome}")
        self._reach.metrics.upstream_try(name, outcome)
        if is_error:
            self._reach.metrics.upstream_error(name, outcome)


async def _without_mask(reply: ModelReply) -> ModelReply:
    """A stream that begins with an error is none: the error, as the status would have told it."""
    try:
        first = await reply.peek()
    except BaseException:
        await reply.aclose()
        raise
    refused = refusal_in(first) if first is not None else None
    if refused is None:
        return reply
    await _let_go(reply)
    kept = [(name, value) for name, value in reply.headers if name != "content-type"]
    return BufferedReply(refused[0], (*kept, ("content-type", "application/json")), refused[1])


async def _let_go(reply: ModelReply) -> None:
    with suppress(ProviderError, TimeoutError):
        try:
            async with asyncio.timeout(_ERROR_S):
                await reply.read(_ERROR_BYTES)
        finally:
            await reply.aclose()
