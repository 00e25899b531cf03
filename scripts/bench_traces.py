"""Measures what traces cost the loop's thread: off, sampled out, on, and with a collector that hangs.

The code is that of a request, without sockets, so that other work on the machine disturbs little: a receipt with one
streamed call, a search and a write, as a chat with memory has. The best of several runs counts, in microseconds of
processor time of this thread. A traced request costs `Tracer.begin`, the traced parts of the receipt, the header for
the upstream and `Tracer.take`. `off` is a gateway without a tracer. The time of the exporting thread is measured with a
collector that answers and with a collector that hangs. `--json` prints the figures as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from adapters.types import ModelRequest
from gateway.core.usage.gen_ai import ModelNames
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt, RequestLine
from gateway.run.receipts import Receipts
from gateway.run.upstream.propagation import with_trace_headers
from gateway.traces import tracer as tracing
from gateway.traces.otlp import OtlpSettings
from gateway.traces.spans import SpanMaker
from gateway.traces.tracer import Tracer
from storage.records import TokenCounts
from tests.doubles.collector import StrictCollector
from tests.doubles.upstream import Gate

ID = b"0af7651916cd43dd8448eb211c80319c"
HEADERS = [
    (b"host", b"gateway"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer sk-app"),
]
PARENT = [*HEADERS, (b"traceparent", b"00-" + ID + b"-b7ad6b7169203331-01")]
FIRST = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{}}]}\n\n'
PIECE = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
LAST = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
PIECES = [FIRST, *[PIECE] * 20, LAST]
REQUEST = ModelRequest(b"{}", (("user-agent", "app"), ("accept", "*/*")))
AT_ONCE = 500  # requests between two looks at the clock
SETTLED_S = 20.0


def request(receipts: Receipts, headers: list[tuple[bytes, bytes]], *, traced: bool) -> None:
    """Does one request's work on its receipt. traced: with the work that only a tracer needs."""
    receipt = Receipt(time.perf_counter(), "req_0123456789abcdef01234567")
    if traced and receipts.tracer is not None:
        receipt.trace = receipts.tracer.begin(headers)
    receipt.note_search(receipt.begun, 1.0, 2, 100, is_late=False)
    call = receipt.begin_call()
    call.upstream, call.provider, call.model, call.path = "up", "openai", "m", "/chat/completions"
    call.status, call.is_streamed = 200, True
    if receipt.trace is not None:
        with_trace_headers(REQUEST, receipt, call, propagates=True)
    for piece in PIECES:
        call.note_piece(piece)
    call.counts = TokenCounts(40, 7)
    call.end()
    receipt.note_write(receipt.begun)
    receipt.status = 200
    if receipt.trace is not None:
        receipt.request_line = RequestLine("POST", "http", "/v1/chat/completions")
    receipts.hand_on(receipt)


def cost_us(work: Callable[[], None], runs: int) -> list[float]:
    """Returns microseconds of this thread's processor for one call, of each run."""
    times_us = []
    for _ in range(runs):
        begun = time.thread_time_ns()
        for _ in range(AT_ONCE):
            work()
        times_us.append((time.thread_time_ns() - begun) / AT_ONCE / 1000)
    return times_us


def tracer_of(endpoint: str, sampler: str = "always_on", ratio: float = 1.0) -> Tracer:
    otlp = OtlpSettings(endpoint, sampler=sampler, ratio=ratio)
    return Tracer(otlp, SpanMaker(ModelNames(["m"]), {"up": "http://up:1/v1"}, "hash"), Metrics())


def settle(tracer: Tracer) -> None:
    until = time.monotonic() + SETTLED_S
    while tracer._queue and time.monotonic() < until:
        tracer._wake.set()
        time.sleep(0.01)


def measure(
    tracer: Tracer | None, headers: list[tuple[bytes, bytes]], runs: int, *, hangs: bool = False
) -> list[float]:
    receipts = Receipts(tracer)
    if tracer is not None:
        tracer.start()
    times_us = []
    for _ in range(runs):
        times_us += cost_us(lambda: request(receipts, headers, traced=True), 1)
        if tracer is not None and not hangs:
            settle(tracer)
    return times_us


def thread_us(collector: StrictCollector) -> float:
    """Returns the processor time of the exporting thread for a request with four spans, in microseconds."""
    tracer = tracer_of(collector.url)
    times: list[float] = []
    run = tracer._run

    def timed() -> None:
        run()
        times.append(time.thread_time_ns() / 1000)

    tracer._thread = threading.Thread(target=timed, daemon=True)
    receipts = Receipts(tracer)
    count = 2000  # of spans four times as many: they fit the queue
    for _ in range(count):
        request(receipts, HEADERS, traced=True)
    tracer.start()
    settle(tracer)
    tracer.stop()
    tracer._thread.join(SETTLED_S)
    return times[0] / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tracing.FLUSH_S = 0.1
    with ExitStack() as stack:
        collector = stack.enter_context(StrictCollector())
        hanging = stack.enter_context(StrictCollector())
        hanging.hold = Gate()
        rows = {
            "off": measure(None, HEADERS, options.runs),
            "sampled out": measure(tracer_of(collector.url, "always_off"), HEADERS, options.runs),
            "sampled out by its caller": measure(
                tracer_of(collector.url, "parentbased_always_off"), HEADERS, options.runs
            ),
            "1 %": measure(tracer_of(collector.url, "traceidratio", 0.01), HEADERS, options.runs),
            "100 %": measure(tracer_of(collector.url), HEADERS, options.runs),
            "100 %, in its caller's trace": measure(tracer_of(collector.url), PARENT, options.runs),
            "100 %, the collector hangs": measure(tracer_of(hanging.url), HEADERS, options.runs, hangs=True),
        }
        exporting = thread_us(collector)
        hanging.hold.open()
    base = min(rows["off"])
    if options.json:
        print(json.dumps({"rows": rows, "exporting_us": exporting}))
        return
    print("| traces | least, us a request | median, us | added to the least, us |\n|---|---|---|---|")
    for name, traces in rows.items():
        print(f"| {name} | {min(traces):.1f} | {statistics.median(traces):.1f} | {min(traces) - base:.1f} |")
    print(f"\nThe exporting thread: {exporting:.0f} us a request of four spans.")


if __name__ == "__main__":
    main()
