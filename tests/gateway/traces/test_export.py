"""Spans arrive at a collector that works, in the end at one that is busy, and cost nothing where one hangs."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.core.usage.gen_ai import ModelNames
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt, RequestLine
from gateway.traces import export
from gateway.traces import tracer as tracing
from gateway.traces.otlp import OtlpSettings, read_otlp
from gateway.traces.spans import SpanMaker
from gateway.traces.tracer import Tracer
from tests.doubles.certificate import make_certificate
from tests.doubles.collector import Answer, StrictCollector, attributes
from tests.doubles.upstream import Gate, StrictUpstream
from tests.gateway.sdk import remember
from tests.patience import becomes
from tests.server import held_port

Make = Callable[..., Tracer]


@pytest.fixture
def collector() -> Iterator[StrictCollector]:
    with StrictCollector() as found:
        yield found


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes tracers, and ends them without a wait."""
    made: list[Tracer] = []

    def start(endpoint: str, **options: object) -> Tracer:
        otlp = OtlpSettings(endpoint, **{"delay_s": 0.01, **options})  # type: ignore[arg-type]
        tracer = Tracer(otlp, SpanMaker(ModelNames(()), {}, "hash"), Metrics())
        made.append(tracer)
        tracer.start()
        return tracer

    yield start
    monkeypatch.setattr(tracing, "FLUSH_S", 0.05)
    for each in made:
        each.stop()


def take(tracer: Tracer, count: int = 1) -> None:
    for _ in range(count):
        receipt = Receipt()
        receipt.trace = tracer.begin()
        receipt.request_line, receipt.status = RequestLine("GET", "http", "/v1/models"), 200
        tracer.enqueue(receipt)


def dropped(tracer: Tracer) -> dict[tuple[str, ...], int]:
    return {reason: count for reason, count in tracer._dropped.values.items() if count}


def test_batches_are_no_larger_than_they_may_be(collector: StrictCollector, make: Make) -> None:
    tracer = make(collector.url, batch_spans=3, delay_s=60.0, is_compressed=True, headers=(("x-key", "k"),))
    take(tracer, 7)
    collector.wait_for(6)  # the last may wait for the time, or the end
    tracer.stop()
    assert max(collector.sizes) == 3
    assert sum(collector.sizes) == 7
    assert collector.heads[0]["x-key"] == "k"
    assert tracer._exported.values == {(): 7}


def test_a_collector_is_trusted_by_its_certificate_and_gets_one(tmp_path: Path, make: Make) -> None:
    certificate, key = make_certificate(tmp_path, "localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_verify_locations(certificate)
    tls.load_cert_chain(certificate, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    with StrictCollector(tls) as collector:
        otlp = read_otlp(
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
                "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
                "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": str(certificate),
                "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key),
            }
        )
        assert otlp is not None
        take(make(otlp.endpoint, tls=otlp.tls))
        collector.wait_for(1)
        assert collector.heads[0]["host"] == collector.url.split("/")[2]


def test_a_resource_has_what_the_variables_say(collector: StrictCollector, make: Make) -> None:
    take(make(collector.url, resource={"service.name": "prod", "service.instance.id": "one"}))
    collector.wait_for(1)
    resource = attributes(collector.posts[0].resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["service.instance.id"]) == ("prod", "one")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_collector_is_asked_again(
    collector: StrictCollector, make: Make, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(export, "_FIRST_PAUSE_S", 0.01)
    collector.answers += [Answer(status, {"retry-after": "0"}), Answer(status, {"retry-after": "0"})]
    tracer = make(collector.url)
    pauses: list[float] = []
    monkeypatch.setattr(tracer._exporter, "_pause", pauses.append)
    take(tracer)
    collector.wait_for(1)
    assert collector.request_count == 3
    assert not dropped(tracer)
    assert 0 < pauses[0] < pauses[1]


def test_a_long_retry_after_is_longer_than_a_minute(collector: StrictCollector, make: Make) -> None:
    collector.answers.append(Answer(429, {"retry-after": "3600"}))
    tracer = make(collector.url)
    take(tracer)
    assert becomes(lambda: dropped(tracer)) == {("unreachable",): 1}
    take(tracer)
    assert len(collector.wait_for(1)) == 1


def test_a_post_that_is_too_large_is_halved_and_a_single_span_dropped(
    collector: StrictCollector, make: Make
) -> None:
    collector.most_spans = 2
    tracer = make(collector.url, delay_s=60.0)
    take(tracer, 7)
    tracer._wake.set()
    collector.wait_for(7)
    assert max(collector.sizes) <= 2
    collector.most_spans = 0
    take(tracer, 2)
    tracer._wake.set()
    becomes(lambda: dropped(tracer) == {("refused",): 2})


def test_a_refusal_and_rejected_spans_are_counted_with_one_warning(
    collector: StrictCollector, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mnemogate")
    collector.answers += [Answer(401), Answer(400), Answer(rejected=1)]
    tracer = make(collector.url, delay_s=60.0)
    for refused in (1, 2):
        take(tracer)
        tracer._wake.set()
        becomes(lambda refused=refused: dropped(tracer) == {("refused",): refused})
    take(tracer, 3)
    tracer._wake.set()
    becomes(lambda: "exported again" in caplog.text)
    assert tracer._exported.values == {(): 2}
    assert dropped(tracer) == {("refused",): 3}
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "Traces are not exported: the collector at 127.0.0.1 answers 401."),
        ("INFO", "Traces are exported again."),
    ]


def test_no_more_spans_are_rejected_than_were_sent(collector: StrictCollector, make: Make) -> None:
    collector.answers.append(Answer(rejected=9))
    tracer = make(collector.url)
    take(tracer)
    assert becomes(lambda: dropped(tracer)) == {("refused",): 1}
    take(tracer)
    assert becomes(lambda: tracer._exported.values.get(())) == 1


def test_a_host_that_is_no_name_does_not_end_the_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_GIVE_UP_AFTER_S", 0.0)
    tracer = make("http://collector..example/v1/traces")
    take(tracer)
    assert becomes(lambda: dropped(tracer)) == {("unreachable",): 1}


def test_no_collector_is_waited_for_at_the_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.05)
    with held_port() as port:
        tracer = make(f"http://127.0.0.1:{port}/v1/traces")
        take(tracer)
        tracer.stop()
        becomes(lambda: dropped(tracer) == {("unreachable",): 1})


def test_a_collector_that_hangs_costs_no_request(
    collector: StrictCollector, upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.05)
    collector.hold = Gate()
    otlp = OtlpSettings(collector.url, delay_s=0.01, queue_spans=6, batch_spans=3)
    with remember(upstream, tmp_path, otlp=otlp) as world:
        for _ in range(5):
            assert world.chat().say("Hi") == "Ok."
        world.settle()
        tracer = world.gateway.app.services.tracer
        assert tracer is not None
        assert dropped(tracer)["queue",] >= 2
        assert tracer._queued_spans - tracer._dequeued_spans <= 6
        assert "mnemogate_spans_dropped_total" in world.gateway.ask("GET", "/metrics").body.decode()
    collector.hold.open()


def test_waiting_spans_are_sent_at_the_end(
    collector: StrictCollector, upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, otlp=OtlpSettings(collector.url, delay_s=3600.0)) as world:
        world.chat().say("Hi")
        world.settle()
        assert not collector.posts
    assert len(collector.spans) == 2


def test_without_an_endpoint_there_is_no_thread(upstream: StrictUpstream, tmp_path: Path) -> None:
    earlier = set(threading.enumerate())  # a thread of an earlier test may still end
    with remember(upstream, tmp_path) as world:
        world.chat().say("Hi")
        assert world.gateway.app.services.tracer is None
        assert not any(each.name == "traces" for each in set(threading.enumerate()) - earlier)
        reply = world.post([{"role": "user", "content": "Hi"}])
        assert "x-mnemogate-trace" not in reply.headers
        assert "trace_id" not in world.gateway.last_line()
