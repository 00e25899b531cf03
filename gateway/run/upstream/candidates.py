"""The candidates of one request: the endpoint that is asked, and the endpoints that follow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.core.upstream.policy import Target
from gateway.run.upstream.endpoint import Endpoint


class Candidate(NamedTuple):
    """An endpoint that may be asked, with its target."""

    # The endpoint.
    endpoint: Endpoint
    # The target, with the model that is asked there.
    target: Target


@dataclass(slots=True)
class Candidates:
    """The candidates of one request. From `begin_request` on it counts as in flight at the current candidate."""

    # The candidate of the next attempt; after an answer, the candidate that answered.
    current: Candidate
    # The candidates after the current one, in their order.
    following: list[Candidate] = field(default_factory=list)
    # The model's own endpoints that are passed over. They are asked if no fallback has room for the request.
    unavailable: list[Candidate] = field(default_factory=list)
    # True: the request counts as in flight.
    _is_in_flight: bool = field(default=False, init=False)

    def begin_request(self) -> None:
        """Counts the request as in flight."""
        self._is_in_flight = True
        self.current.endpoint.health.in_flight += 1

    def end_request(self) -> None:
        """Counts the request as in flight no more."""
        self._is_in_flight = False
        self.current.endpoint.health.in_flight -= 1

    @property
    def may_ask_usage(self) -> bool:
        """True if an endpoint that is asked for the usage of its streams may answer."""
        return any(each.endpoint.asks_usage for each in (self.current, *self.following))

    def pop_next(self) -> Candidate:
        """Returns the candidate after the current one, and takes it off the list. The current one stays."""
        return self.following.pop(0)

    def move_to(self, candidate: Candidate) -> None:
        """Makes a candidate the current one."""
        if self._is_in_flight:
            self.current.endpoint.health.in_flight -= 1
            candidate.endpoint.health.in_flight += 1
        self.current = candidate

    def set_target(self, target: Target) -> None:
        """Sets another target at the current endpoint."""
        self.current = self.current._replace(target=target)

    def skip_fallback(self) -> bool:
        """Moves on from a fallback to the next candidate. After the last one come the unavailable candidates.

        Returns False if the current candidate is no fallback, or the last candidate.
        """
        if not self.current.target.rank:
            return False
        if not self.following:
            self.following, self.unavailable = self.unavailable, []
        if not self.following:
            return False
        self.move_to(self.pop_next())
        return True
