"""Who is asked, who is asked next when that fails, and how long to wait before it. No clock, no chance, no IO.

A route is a row of targets by rank: those of one rank are places of the same model and share the load, a higher rank
is a fallback. What is known of a place is its `EndpointHealth`, in two parts. Its *breaker* opens after so many
failures in a row; when its rest is over one request probes, and closes it or opens it again. And it may have
*told* us to wait for a model (Retry-After). A place that rests is passed over while there is another; it is
never taken out when it is the only one, since the upstream's own answer says more than any of ours.

A conversation stays where it was (the provider's prompt cache is there), unless that place is clearly busier than
another: rendezvous hashing with bounded load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Final, NamedTuple

__all__ = [
    "EndpointHealth",
    "Failure",
    "NextAttempt",
    "Policy",
    "RouteMember",
    "Target",
    "backoff_s",
    "decide",
    "has_credit",
    "is_failure",
    "order",
    "take_credit",
]

# What another try may mend; 529 is Anthropic's "overloaded". Other statuses are about the request.
_TRANSIENT: Final = frozenset((429, 500, 502, 503, 504, 529))
_BACKOFF_FIRST_S: Final = (
    0.1  # chosen: a voice caller does not notice it, a restarting upstream often needs no more
)
_LONGEST_REST_S: Final = 3600.0  # a Retry-After of a day would be a decision of the operator's
_LEAN: Final = 4  # how many more requests a conversation's own place may have in flight than the idlest
_CREDIT_MOST: Final = 10.0


class Target(NamedTuple):  # a frozen dataclass costs three times as much to make, and each request makes one
    """upstream: a name of the settings. model: what that upstream calls it. context_window: tokens, None if unknown."""

    upstream: str
    model: str
    context_window: int | None = None
    rank: int = 0

    def gets_credential(self, upstream: str) -> bool:
        """Whether it gets the caller's own: that is for whom he asked, not for whoever stands in."""
        return self.rank == 0 or self.upstream == upstream


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided for an upstream; see `mnemogate.example.toml`."""

    retries: int = 0
    retry_budget: float = 0.2
    retry_wait_s: float = 2.0
    breaker_failures: int = 5
    breaker_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """kind: an HTTP status or a word. sent: whether the upstream may have seen the request.

    repeatable: whether the same upstream may be asked again: not after a wait of ours ran out.
    """

    kind: str
    sent: bool = True
    repeatable: bool = True
    retry_after_s: float | None = None


@dataclass(slots=True)
class EndpointHealth:
    """What is known of one place. Times are those of the caller's monotonic clock."""

    failures: int = 0  # in a row
    rests_until: float = -math.inf  # the breaker
    told: dict[str, float] = field(default_factory=dict)  # model -> until when, by its own Retry-After
    is_probed: bool = False
    in_flight: int = 0
    requests: int = 0  # since the credit was looked at
    credit: float = _CREDIT_MOST  # for retries

    def begin(self, policy: Policy) -> bool:
        """A request goes out; whether it is the breaker's probe."""
        self.requests += 1
        if self.failures and 0 < policy.breaker_failures <= self.failures:
            self.is_probed = True
            return True
        return False

    def succeeded(self, model: str) -> None:
        self.failures = 0
        self.rests_until = -math.inf
        self.told.pop(model, None)

    def failed(self, policy: Policy, now: float, model: str, retry_after_s: float | None = None) -> None:
        self.failures += 1
        if policy.breaker_failures and self.failures >= policy.breaker_failures:
            self.rests_until = now + policy.breaker_s
        if retry_after_s:
            self._wait(now, model, retry_after_s)

    def limited(self, now: float, model: str, retry_after_s: float) -> None:
        """It is well, but has had enough of one model's requests for so long."""
        self.succeeded(model)
        self._wait(now, model, retry_after_s)

    def _wait(self, now: float, model: str, seconds: float) -> None:
        # Those that are over go, since names are the callers'.
        self.told = {name: until for name, until in self.told.items() if until > now}
        self.told[model] = now + min(seconds, _LONGEST_REST_S)

    def told_until(self, model: str) -> float:
        return self.told.get(model, -math.inf)

    def is_willing(self, now: float, model: str) -> bool:
        return now >= self.rests_until and now >= self.told_until(model) and not self.is_probed

    def is_resting(self, now: float) -> bool:
        """Whether somebody is kept from it, for one model at least."""
        return self.is_probed or now < max(self.rests_until, *self.told.values(), -math.inf)


@dataclass(frozen=True, slots=True)
class RouteMember:
    """A place as a candidate. name: what its hash is made of. model: what it would be asked for."""

    name: str
    rank: int
    health: EndpointHealth
    model: str = ""

    def is_willing(self, now: float) -> bool:
        return self.health.is_willing(now, self.model)

    @property
    def told_until(self) -> float:
        return self.health.told_until(self.model)


class NextAttempt(Enum):
    AGAIN = "again"  # the same place
    NEXT = "next"
    STOP = "stop"  # the client gets what came


def is_failure(status: int) -> bool:
    """Whether another place or another moment may answer better."""
    return status in _TRANSIENT


def decide(
    failure: Failure,
    policy: Policy,
    *,
    tries: int,
    has_peer: bool,
    has_fallback: bool,
    has_credit: bool,
    chance: float,
) -> tuple[NextAttempt, float]:
    """What follows a failed try, and the seconds to wait before it.

    tries: of this place, for this request. has_peer: another place of the same rank is left; has_fallback: one of a
    higher rank. has_credit: the retry budget allows one more. chance: between 0 and 1.
    """
    if has_peer:
        return NextAttempt.NEXT, 0.0
    limit = policy.retries if failure.repeatable else 0
    if not failure.sent and failure.repeatable and not has_fallback:
        limit = max(limit, 1)  # nothing was asked yet: dialling once more is always safe
    if tries <= limit and has_credit:
        wait = backoff_s(tries, chance, policy.retry_wait_s)
        if failure.retry_after_s is not None:
            wait = max(wait, failure.retry_after_s)
        if wait <= policy.retry_wait_s:
            return NextAttempt.AGAIN, wait
    return (NextAttempt.NEXT if has_fallback else NextAttempt.STOP), 0.0


def backoff_s(tries: int, chance: float, longest_s: float) -> float:
    """Doubling, the upper half of it by chance, so that those who failed together do not come back together."""
    wait: float = min(_BACKOFF_FIRST_S * 2.0 ** (tries - 1), longest_s)
    return wait * (0.5 + 0.5 * chance)


def take_credit(health: EndpointHealth, policy: Policy) -> bool:
    """Whether one more retry is within the budget: a share of the requests, and a few for a quiet time."""
    if not has_credit(health, policy):
        return False
    health.credit -= 1
    return True


def has_credit(health: EndpointHealth, policy: Policy) -> bool:
    health.credit = min(_CREDIT_MOST, health.credit + health.requests * policy.retry_budget)
    health.requests = 0
    return health.credit >= 1


def order(members: Sequence[RouteMember], now: float, key: int) -> list[int]:
    """Indices of who is to be tried, first to last. key: the same for the requests of one conversation.

    Willing ones by rank. Behind them, as a last resort, the one whose breaker closes next; one that told us when to
    come back is spared. If none is willing, the one that will be first.
    """
    found: list[int] = []
    for rank in sorted({member.rank for member in members}):
        group = [i for i, m in enumerate(members) if m.rank == rank and m.is_willing(now)]
        if len(group) > 1:
            group = _shared(members, group, key)
        found += group
    resting = [i for i in range(len(members)) if i not in found]
    if found:
        resting = [i for i in resting if now >= members[i].told_until]
    if resting:
        found.append(min(resting, key=lambda i: (_wakes(members[i]), members[i].rank)))
    return found


def _shared(members: Sequence[RouteMember], group: list[int], key: int) -> list[int]:
    least = min(members[i].health.in_flight for i in group)
    ranked = sorted(group, key=lambda i: _score(key, members[i].name), reverse=True)
    lean = [i for i in ranked if members[i].health.in_flight <= least + _LEAN]
    return lean + sorted(set(ranked) - set(lean), key=lambda i: members[i].health.in_flight)


def _score(key: int, name: str) -> bytes:
    """Not a CRC: those of two names differ in the same bits for every key."""
    return blake2b(f"{key}:{name}".encode(), digest_size=8).digest()


def _wakes(member: RouteMember) -> float:
    return max(member.health.rests_until, member.told_until)
