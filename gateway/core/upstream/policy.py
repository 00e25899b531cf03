"""Failover policy: decides which endpoint is asked, which endpoint follows a failure, and the wait before it.

No clock, no randomness, no IO. The targets of a route have ranks: targets of one rank are endpoints of the same model
and share the load, targets of a higher rank are fallbacks. `EndpointHealth` is the state of an endpoint, in two parts.
Its *circuit breaker* opens after several failures in a row, before a reply or within one. When its time is over, a
request probes the endpoint, and closes the circuit or opens it again. A *cooldown* is the Retry-After of one model. An
endpoint with an open circuit or a cooldown is passed over while there is another. If it is the only one, it is tried,
because the upstream's own answer is more exact than an error of the gateway.

A conversation stays at its endpoint, which has the provider's prompt cache, unless another endpoint is clearly less
busy: rendezvous hashing with bounded load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Final, NamedTuple

from msgspec import Struct

# The statuses that another endpoint or a later attempt may avoid. Others concern the request, as 501 does. 402 is
# DeepSeek's and OpenRouter's for an account without credit. 520 to 530 are Cloudflare's for an upstream that is down,
# and 529 is Anthropic's "overloaded".
TRANSIENT_STATUSES: Final = frozenset((402, 408, 429, *range(500, 600))) - {501}
# The wait before the first retry. A voice caller does not notice it, and a restarting upstream often needs no more; not
# measured.
_FIRST_BACKOFF_S: Final = 0.1
# The longest cooldown. A longer Retry-After is cut, so that a wrong one does not take an endpoint out for days. Not
# measured.
_MAX_COOLDOWN_S: Final = 3600.0
# A conversation stays at its endpoint, for the provider's cache, until the endpoint has this many more requests in
# flight than the idlest one. Not measured: fewer give up the cache sooner, more let requests queue at one endpoint.
_MAX_MORE_IN_FLIGHT: Final = 4
# The most retries that an endpoint saves up while it needs none. Not measured.
_MAX_RETRIES_LEFT: Final = 10.0


class Target(NamedTuple):
    """A model at an upstream."""

    # The upstream's name in the settings.
    upstream: str
    # The model's name at the upstream.
    model: str
    # The context window in tokens; None: not known.
    context_window: int | None = None
    # The rank: 0 for the requested model, higher for fallbacks.
    rank: int = 0

    def gets_credential(self, upstream: str) -> bool:
        """Returns whether the target gets the caller's own credential.

        upstream: the upstream for which the credential is meant. A fallback at another upstream does not get it.
        """
        return self.rank == 0 or self.upstream == upstream


class Policy(Struct, frozen=True):
    """The settings of an upstream for retries and its circuit breaker (docs/settings.toml)."""

    # The most retries of one request at one endpoint.
    retries: int = 0
    # The most retries, as a share of requests.
    retry_budget: float = 0.2
    # The longest wait before a retry, in seconds.
    retry_wait_s: float = 2.0
    # The number of failures in a row that open the circuit; 0: no number does.
    breaker_failures: int = 5
    # The seconds for which the circuit stays open.
    breaker_s: float = 10.0


class Failure(Struct, frozen=True):
    """A failed attempt."""

    # An HTTP status, or a word such as "unreachable".
    kind: str
    # True: the upstream may have seen the request.
    was_sent: bool = True
    # The same endpoint may be asked again. False: the gateway's own deadline has passed, or the upstream forbids it.
    is_repeatable: bool = True
    # The upstream's Retry-After; None: the upstream gave none.
    retry_after_s: float | None = None
    # A limit of the gateway's own: the endpoint was not asked.
    is_own: bool = False


@dataclass(slots=True)
class EndpointHealth:
    """The state of one endpoint. Times are by the caller's monotonic clock."""

    # The number of attempts in a row that failed before a reply began.
    failure_count: int = 0
    # The number of replies in a row that broke off. Only a complete reply ends the row.
    break_count: int = 0
    # The end of the open circuit.
    open_until: float = -math.inf
    # The ends of models' cooldowns, from Retry-After, by the names of the models.
    cooldowns: dict[str, float] = field(default_factory=dict)
    # The one request that may close the circuit is under way.
    is_probing: bool = False
    # The number of requests under way.
    in_flight: int = 0
    # The retries that the budget has left: each request adds a share of a retry.
    retries_left: float = _MAX_RETRIES_LEFT

    @property
    def may_retry(self) -> bool:
        """True if the retry budget has a retry."""
        return self.retries_left >= 1

    def begin_attempt(self, policy: Policy) -> AbstractContextManager[None]:
        """Adds a request's share to the retry budget.

        After enough failures the request that is sent within the block is the circuit breaker's probe, and others pass
        the endpoint over until it has ended.
        """
        self.retries_left = min(_MAX_RETRIES_LEFT, self.retries_left + policy.retry_budget)
        return self._hold_probe() if self._has_failed_enough(policy) else nullcontext()

    def record_answer(self, model: str) -> None:
        """Notes that the endpoint answers: a reply has begun, or a refusal or a rate limit has come."""
        self.failure_count = 0
        self.cooldowns.pop(model, None)

    def record_success(self, model: str) -> None:
        """Notes that a reply has come to its end."""
        self.record_answer(model)
        self.break_count = 0
        self.open_until = -math.inf

    def record_failure(
        self, policy: Policy, now: float, model: str, retry_after_s: float | None = None
    ) -> None:
        """Notes that an attempt failed before a reply began."""
        self.failure_count += 1
        self._open_circuit(policy, now)
        if retry_after_s:
            self._cool_down(now, model, retry_after_s)

    def record_break(self, policy: Policy, now: float) -> None:
        """Notes that a reply broke off."""
        self.break_count += 1
        self._open_circuit(policy, now)

    def record_rate_limit(self, now: float, model: str, retry_after_s: float) -> None:
        """Notes a rate limit of one model. The endpoint itself works."""
        self.record_answer(model)
        self._cool_down(now, model, retry_after_s)

    def read_cooldown_end(self, model: str) -> float:
        """Returns the end of a model's cooldown; `-inf`: no cooldown."""
        return self.cooldowns.get(model, -math.inf)

    def is_available(self, now: float, model: str) -> bool:
        """Returns whether the endpoint gets requests for a model: no circuit, cooldown or probe holds them off."""
        return now >= self.open_until and now >= self.read_cooldown_end(model) and not self.is_probing

    def is_passed_over(self, now: float) -> bool:
        """Returns whether the endpoint gets no requests at the moment, for one model at least."""
        return self.is_probing or now < max([self.open_until, *self.cooldowns.values()])

    @contextmanager
    def _hold_probe(self) -> Iterator[None]:
        """Counts an attempt as the probe of an unhealthy endpoint, inside of the block."""
        self.is_probing = True
        try:
            yield
        finally:
            self.is_probing = False

    def _open_circuit(self, policy: Policy, now: float) -> None:
        """Opens the circuit after enough failures."""
        if self._has_failed_enough(policy):
            self.open_until = now + policy.breaker_s

    def _has_failed_enough(self, policy: Policy) -> bool:
        return 0 < policy.breaker_failures <= max(self.failure_count, self.break_count)

    def _cool_down(self, now: float, model: str, seconds: float) -> None:
        # Cooldowns that are over are dropped, because callers choose the names and could fill the memory.
        self.cooldowns = {name: until for name, until in self.cooldowns.items() if until > now}
        self.cooldowns[model] = now + min(seconds, _MAX_COOLDOWN_S)


class RouteMember(Struct, frozen=True):
    """An endpoint as a candidate."""

    # The endpoint's name. The hash of the name decides which conversations come to this member of the rank.
    name: str
    # The rank of the endpoint's target.
    rank: int
    # The state of the endpoint.
    health: EndpointHealth
    # The model that a request names at this endpoint.
    model: str = ""

    def is_available(self, now: float) -> bool:
        return self.health.is_available(now, self.model)

    @property
    def cooldown_end(self) -> float:
        return self.health.read_cooldown_end(self.model)

    @property
    def available_at(self) -> float:
        """The time at which both the circuit and the cooldown are over; a probe under way does not count."""
        return max(self.health.open_until, self.cooldown_end)


class NextAttempt(Enum):
    """The step after a failure."""

    # The same endpoint is asked again.
    RETRY = "retry"
    # The next endpoint is asked.
    FAIL_OVER = "fail over"
    # The client gets the failure.
    STOP = "stop"


class NextStep(NamedTuple):
    """The step after a failure, and the seconds to wait before it."""

    # The attempt that follows.
    attempt: NextAttempt
    # The seconds to wait before it.
    wait_s: float = 0.0


def choose_next(
    failure: Failure,
    policy: Policy,
    *,
    failure_count: int,
    has_peer: bool,
    has_fallback: bool,
    may_retry: bool,
    chance: float,
) -> NextStep:
    """Returns the step after a failed attempt.

    failure_count: the number of attempts of this request at the endpoint, all of which failed.
    has_peer: True if the next endpoint has the same rank.
    has_fallback: True if the route has a next endpoint.
    may_retry: True if the retry budget allows a retry.
    chance: a random number from 0 to 1, for the jitter.
    """
    # Another endpoint of the same model answers sooner than a retry, and as well.
    if has_peer:
        return NextStep(NextAttempt.FAIL_OVER)
    limit = policy.retries if failure.is_repeatable else 0
    # If nothing was sent, another attempt is always safe.
    if not failure.was_sent and failure.is_repeatable and not has_fallback:
        limit = max(limit, 1)
    if failure_count <= limit and may_retry:
        wait_s = choose_backoff_s(failure_count, chance, policy.retry_wait_s)
        if failure.retry_after_s is not None:
            wait_s = max(wait_s, failure.retry_after_s)
        # After a longer wait, a fallback or the error serves the client better.
        if wait_s <= policy.retry_wait_s:
            return NextStep(NextAttempt.RETRY, wait_s)
    return NextStep(NextAttempt.FAIL_OVER if has_fallback else NextAttempt.STOP)


def choose_backoff_s(failure_count: int, chance: float, longest_s: float) -> float:
    """Returns a wait that doubles with each failure. Half of it is jitter, so that failed requests spread out."""
    wait_s: float = min(_FIRST_BACKOFF_S * 2.0 ** (failure_count - 1), longest_s)
    return wait_s * (0.5 + 0.5 * chance)


def order_members(members: Sequence[RouteMember], now: float, spread_key: int) -> list[int]:
    """Returns the indices of the members to try, first to last.

    Available members come first, by rank. The last resort is the member with the circuit that closes next, unless it
    has a cooldown. If no member is available, only the one that will be available first is tried.

    spread_key: a number that is the same for all requests of one conversation.
    """
    order: list[int] = []
    for rank in sorted({member.rank for member in members}):
        indices = [i for i, member in enumerate(members) if member.rank == rank and member.is_available(now)]
        if len(indices) > 1:
            indices = _order_rank(members, indices, spread_key)
        order += indices
    other_indices = [i for i in range(len(members)) if i not in order]
    if order:
        other_indices = [i for i in other_indices if now >= members[i].cooldown_end]
    if other_indices:
        order.append(min(other_indices, key=lambda i: (members[i].available_at, members[i].rank)))
    return order


def _order_rank(members: Sequence[RouteMember], indices: list[int], spread_key: int) -> list[int]:
    """Returns the indices of members of one rank in the order in which this conversation tries them."""
    # Rendezvous hashing: each key orders the members in its own way. If a member is gone, only the keys that had it
    # first move, and they spread over all others.
    by_hash = sorted(indices, key=lambda i: _hash_member(spread_key, members[i].name), reverse=True)
    # Bounded load: a member with too many requests in flight comes after those that have room.
    min_in_flight = min(members[i].health.in_flight for i in indices)
    max_in_flight = min_in_flight + _MAX_MORE_IN_FLIGHT
    with_room = [i for i in by_hash if members[i].health.in_flight <= max_in_flight]
    return with_room + sorted(set(by_hash) - set(with_room), key=lambda i: members[i].health.in_flight)


def _hash_member(spread_key: int, name: str) -> bytes:
    # Not a CRC: for every key, the CRCs of two names differ in the same bits.
    return blake2b(f"{spread_key}:{name}".encode(), digest_size=8).digest()
