"""Measures what traces cost the loop's thread: off, sampled out, on, and with a collector that hangs.

The measured code is that of a request, without sockets, so that other work on the machine disturbs little: a receipt
with one streamed call, a search and a write, as a chat with memory has. A traced request costs `Tracer.begin`, the
traced parts of the receipt, the header for the upstream and `Tracer.enqueue`. `off` is a gateway without a tracer.

The figures are microseconds of a thread's processor time; of several runs the least counts. The time of the exporting
thread is measured with a collector that answers. `--json` prints the figures of all runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from adapters.types import ModelRequest
from gateway.core.usage.gen_ai import ModelNames
from gateway.metrics import Metrics
from gateway.run.memory.recall_result import RecallResult
from gateway.run.receipt import Receipt, RequestLine
from gateway.run.receipts import Receipts
from gateway.run.upstream.propagation import with_trace_headers
from gateway.traces.otlp import OtlpSettings
from gateway.traces.spans import SpanMaker
from gateway.traces.tracer import Tracer
from storage.run_records import TokenCounts
from tests.doubles.collector import StrictCollector
from tests.doubles.upstream import Gate

TRACE_ID = b"0af7651916cd43dd8448eb211c80319c"
HEADERS = [
    (b"host", b"gateway"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer sk-app"),
]
PARENT = [*HEADERS, (b"traceparent", b"00-" + TRACE_ID + b"-b7ad6b7169203331-01")]
FIRST = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{}}]}\n\n'
PIECE = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
LAST = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
PIECES = [FIRST, *[PIECE] * 20, LAST]
REQUEST = ModelRequest(b"{}", (("user-agent", "app"), ("accept", "*/*")))
REQUESTS_PER_RUN = 500
SPANS_PER_REQUEST = 4
# 2,000 requests have 8,000 spans, of which the tracer's queue holds 8,192.
EXPORTED_REQUESTS = 2_000
# How long the bench waits for an export.
EXPORT_S = 20.0


def do_request(receipts: Receipts, headers: list[tuple[bytes, bytes]]) -> None:
    """Does one request's work on its receipt. headers: the headers of the request."""
    receipt = Receipt("req_0123456789abcdef01234567")
    if receipts.tracer is not None:
        receipt.trace = receipts.tracer.begin(headers)
    RecallResult(
        note_tokens=100, search_ms=1.0, started_at=receipt.clock.started_at, hit_count=2
    ).note_search(receipt)
    call = receipt.begin_call()
    call.upstream, call.provider, call.model, call.path = "up", "openai", "m", "/chat/completions"
    call.status, call.is_streamed = 200, True
    if receipt.trace is not None:
        with_trace_headers(REQUEST, receipt, call, propagates=True)
    for piece in PIECES:
        call.note_piece(piece)
    call.counts = TokenCounts(40, 7)
    call.end()
    receipt.note_write(receipt.clock.started_at)
    receipt.status = 200
    if receipt.trace is not None:
        receipt.request_line = RequestLine("POST", "http", "/v1/chat/completions")
    receipts.publish(receipt)


def tracer_of(endpoint: str, sampler: str = "always_on", ratio: float = 1.0) -> Tracer:
    otlp = OtlpSettings(endpoint, sampler=sampler, ratio=ratio)
    return Tracer(otlp, SpanMaker(ModelNames(["m"]), {"up": "http://up:1/v1"}, "hash"), Metrics())


def wait_until_empty(tracer: Tracer) -> None:
    """Waits until the tracer has taken all receipts out of its queue.

    It is woken by its private event: by itself it would begin seconds later, and the gateway never needs it earlier.
    """
    until = time.monotonic() + EXPORT_S
    while tracer._queue and time.monotonic() < until:
        tracer._wake.set()
        time.sleep(0.01)


def loop_costs_us(
    tracer: Tracer | None, headers: list[tuple[bytes, bytes]], runs: int, *, is_exporting: bool = True
) -> list[float]:
    """Returns what a request costs this thread in each run, in microseconds.

    tracer: None: nothing is traced.
    is_exporting: the queue becomes empty between two runs. Otherwise it fills, and further receipts are dropped.
    """
    receipts = Receipts(tracer)
    if tracer is not None:
        tracer.start()
    costs_us = []
    for _ in range(runs):
        begun = time.thread_time_ns()
        for _ in range(REQUESTS_PER_RUN):
            do_request(receipts, headers)
        costs_us.append((time.thread_time_ns() - begun) / REQUESTS_PER_RUN / 1000)
        if tracer is not None and is_exporting:
            wait_until_empty(tracer)
    return costs_us


def export_cost_us() -> float:
    """Returns what a request of four spans costs the exporting thread, in microseconds."""
    with StrictCollector() as collector:
        tracer = tracer_of(collector.url)
        receipts = Receipts(tracer)
        for _ in range(EXPORTED_REQUESTS):
            do_request(receipts, HEADERS)
        tracer.start()
        thread_id = tracer._thread.ident
        assert thread_id is not None
        collector.wait_for(EXPORTED_REQUESTS * SPANS_PER_REQUEST)
        # The thread waits for more receipts, so that its clock is still there.
        cost_s = time.clock_gettime(time.pthread_getcpuclockid(thread_id))
        tracer.stop()
    return cost_s * 1e6 / EXPORTED_REQUESTS


def measure_all(runs: int) -> dict[str, list[float]]:
    """Returns the costs of `loop_costs_us` by what is done about traces."""
    with StrictCollector() as collector, StrictCollector() as hanging:
        hanging.hold = Gate()
        return {
            "off": loop_costs_us(None, HEADERS, runs),
            "sampled out": loop_costs_us(tracer_of(collector.url, "always_off"), HEADERS, runs),
            "sampled out by its caller": loop_costs_us(
                tracer_of(collector.url, "parentbased_always_off"), HEADERS, runs
            ),
            "1 %": loop_costs_us(tracer_of(collector.url, "traceidratio", 0.01), HEADERS, runs),
            "100 %": loop_costs_us(tracer_of(collector.url), HEADERS, runs),
            "100 %, in its caller's trace": loop_costs_us(tracer_of(collector.url), PARENT, runs),
            "100 %, the collector hangs": loop_costs_us(
                tracer_of(hanging.url), HEADERS, runs, is_exporting=False
            ),
        }


def print_table(rows: dict[str, list[float]], exporting_us: float) -> None:
    base_us = min(rows["off"])
    print("| traces | least, us a request | median, us | added to the least, us |\n|---|---|---|---|")
    for name, costs_us in rows.items():
        least_us = min(costs_us)
        print(f"| {name} | {least_us:.1f} | {statistics.median(costs_us):.1f} | {least_us - base_us:.1f} |")
    print(f"\nThe exporting thread: {exporting_us:.0f} us a request of four spans.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure_all(options.runs)
    exporting_us = export_cost_us()
    if options.json:
        print(json.dumps({"rows": rows, "exporting_us": exporting_us}))
    else:
        print_table(rows, exporting_us)


if __name__ == "__main__":
    main()
