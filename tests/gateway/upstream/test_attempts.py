"""The attempts of one request, and the requests that its endpoints count as in flight."""

from __future__ import annotations

from adapters.scripted import ScriptedProvider
from gateway.core.upstream.policy import Target
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.candidates import Candidate, Candidates
from gateway.run.upstream.failover import Failover
from gateway.settings import Settings, UpstreamSettings


def test_a_request_is_in_flight_at_the_fallback_that_is_left() -> None:
    names = ("small", "large", "largest")
    settings = Settings(upstreams=tuple(UpstreamSettings(name, "scripted") for name in names))
    failover = Failover(settings, {name: ScriptedProvider() for name in names}, Metrics())
    first, *rest = [
        Candidate(failover.endpoints[name][0], Target(name, "m", rank=rank))
        for rank, name in enumerate(names, 1)
    ]
    attempts = Attempts(failover, Candidates(first, rest), Receipt())

    def in_flight() -> list[int]:
        return [failover.endpoints[name][0].health.in_flight for name in names]

    assert attempts.skip_fallback()
    assert in_flight() == [0, 0, 0]
    with attempts:
        assert in_flight() == [0, 1, 0]
        assert attempts.skip_fallback()
        assert in_flight() == [0, 0, 1]
    assert in_flight() == [0, 0, 0]


def test_a_model_of_its_own_is_not_skipped_and_loses_no_candidate() -> None:
    settings = Settings(upstreams=tuple(UpstreamSettings(name, "scripted") for name in ("up", "other")))
    failover = Failover(settings, {name: ScriptedProvider() for name in ("up", "other")}, Metrics())
    endpoint, other = (failover.endpoints[name][0] for name in ("up", "other"))
    passed_over = [Candidate(other, Target("other", "m"))]
    candidates = Candidates(Candidate(endpoint, Target("up", "m")), unavailable=passed_over)
    assert not candidates.skip_fallback()
    assert candidates.unavailable == passed_over
