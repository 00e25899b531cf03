"""Failover: the endpoints of the process, and the order in which a request asks them.

`gateway.core.upstream.policy` decides the order; `gateway.run.upstream.attempts` asks the endpoints. Failover happens
only before the client gets the first event of a reply.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from copy import copy

from msgspec.structs import replace

from adapters.base import Provider
from adapters.types import CHAT_PATH
from gateway.core.upstream.context_window import ContextWindows
from gateway.core.upstream.policy import Policy, RouteMember, order_members
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.upstream.attempts import Attempts, no_caller_error
from gateway.run.upstream.candidates import Candidate, Candidates
from gateway.run.upstream.endpoint import Endpoint
from gateway.run.upstream.propagation import choose_propagation
from gateway.run.upstream.route import Route
from gateway.settings import Settings


class Failover:
    """The endpoints of the process. Clocks, sleep and random numbers are fields, which tests replace."""

    def __init__(self, settings: Settings, providers: Mapping[str, Provider], metrics: Metrics) -> None:
        """Makes the endpoints.

        providers: the providers by their names; the providers of further keys have the names `name#2`, ...
        """
        # Returns the seconds of a monotonic clock.
        self.now: Callable[[], float] = time.monotonic
        # Returns the seconds since the epoch, for dates in Retry-After.
        self.wall_clock: Callable[[], float] = time.time
        # Waits for a number of seconds.
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        # Returns a random number from 0 to 1, which spreads the waits of requests over time.
        self.chance: Callable[[], float] = random.random
        self.metrics = metrics
        # With keep-alive comments the status may leave before the first event, so an error in that event has no status.
        self.may_peek = not settings.server.keep_alive_comment_s
        # The windows of models, as far as errors of upstreams have shown them.
        self.context_windows = ContextWindows()
        # The endpoints of each upstream by its name: one for each key, in the order of the settings.
        self.endpoints: dict[str, list[Endpoint]] = {}
        for upstream in settings.upstreams:
            policy = Policy(upstream.retries)
            names = [upstream.name, *(f"{upstream.name}#{n + 1}" for n in range(1, len(upstream.keys)))]
            self.endpoints[upstream.name] = [
                Endpoint(
                    name=name,
                    upstream=upstream.name,
                    provider=providers[name],
                    policy=policy,
                    has_key=upstream.has_key,
                    kind=upstream.kind,
                    asks_usage=settings.usage.ask_streams
                    and providers[name].capabilities.stream_usage is True,
                    propagates=choose_propagation(upstream, providers[name]),
                )
                for name in names
                if name in providers
            ]
        metrics.add_gauge(
            "upstream_resting",
            "Whether an upstream is passed over, for one model at least, while there is another.",
            lambda: {(name,): int(is_passed) for name, is_passed in self.find_passed_over().items()},
            "upstream",
        )

    def with_providers(self, providers: Mapping[str, Provider]) -> Failover:
        """Returns a copy that uses other providers, by the same names. It shares the health of each endpoint."""
        failover = copy(self)
        failover.endpoints = {
            upstream: [replace(each, provider=providers[each.name]) for each in endpoints]
            for upstream, endpoints in self.endpoints.items()
        }
        return failover

    def list_endpoints(self, route: Route) -> Iterator[Endpoint]:
        """Yields the endpoints that may answer on a route, in the order of its targets."""
        for target in route.targets:
            yield from self.endpoints[target.upstream]

    def make_attempts(
        self,
        route: Route,
        spread_key: Callable[[], int],
        receipt: Receipt,
        path: str = CHAT_PATH,
        caller_error: Callable[[], Exception | None] = no_caller_error,
    ) -> Attempts:
        """Returns the attempts of a request. Nothing is sent yet.

        spread_key: returns the number that chooses among several endpoints; the same number chooses the same endpoint.
        path: the path of the request; an endpoint that is known not to serve it is left out. The route's own upstream
            serves it.
        caller_error: the value of `Attempts.caller_error`.
        """
        endpoints = self.endpoints[route.upstream]
        # The common route has one endpoint and needs no order.
        if not route.others and len(endpoints) == 1:
            candidate = Candidate(endpoints[0], self.context_windows.with_known_window(route.first))
            return Attempts(self, Candidates(candidate), receipt, caller_error=caller_error)
        candidates = [
            Candidate(endpoint, target)
            for target in map(self.context_windows.with_known_window, route.targets)
            for endpoint in self.endpoints[target.upstream]
            if path == CHAT_PATH or endpoint.provider.has_endpoint(path)
        ]
        members = [
            RouteMember(f"{endpoint.name}/{target.model}", target.rank, endpoint.health, target.model)
            for endpoint, target in candidates
        ]
        order = order_members(members, self.now(), spread_key())
        # The route's own upstream serves the path, so there is a first candidate.
        first_candidate, *later_candidates = [candidates[index] for index in order]
        # Candidates of rank 0 are no fallbacks: a request may wait for them. The first to be available comes first.
        unavailable_candidates = [
            candidates[index]
            for index in sorted(range(len(members)), key=lambda index: members[index].available_at)
            if members[index].rank == 0 and index not in order
        ]
        return Attempts(
            self,
            Candidates(first_candidate, later_candidates, unavailable_candidates),
            receipt,
            caller_error=caller_error,
        )

    def make_attempts_at_first_key(
        self,
        route: Route,
        receipt: Receipt,
        *,
        sends_once: bool = False,
        caller_error: Callable[[], Exception | None] = no_caller_error,
    ) -> Attempts:
        """Returns attempts at the first key alone, the account with an upstream's files and the like.

        The target's window is left out, so no prompt is cut to fit it.

        sends_once: the value of `Attempts.sends_once`.
        caller_error: the value of `Attempts.caller_error`.
        """
        candidate = Candidate(self.endpoints[route.upstream][0], route.first._replace(context_window=None))
        return Attempts(
            self, Candidates(candidate), receipt, sends_once=sends_once, caller_error=caller_error
        )

    def find_passed_over(self) -> dict[str, bool]:
        """Returns whether each endpoint is passed over, for one model at least, by the endpoint's name."""
        now = self.now()
        return {
            endpoint.name: endpoint.health.is_passed_over(now)
            for endpoints in self.endpoints.values()
            for endpoint in endpoints
        }
