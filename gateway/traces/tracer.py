"""The tracer: the event loop decides what is sampled and queues receipts that have ended, a thread exports them."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from gateway.core.trace_context import TraceContext, find_caller_trace
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.traces import names
from gateway.traces.export import Exporter
from gateway.traces.otlp import OtlpSettings
from gateway.traces.sampling import make_sampler
from gateway.traces.spans import SpanMaker

_log = logging.getLogger("mnemogate")
# How long `stop` waits until the queued receipts are sent. Not measured: the process ends as much later if the
# collector does not answer.
FLUSH_S: Final = 2.0
# The id of a request's own span is at least 2**61 and less than 2**61 + 2**62. The ids of its calls count up from it,
# those of its steps down (`TraceContext`), so that none reaches 0, which is no id, or exceeds 64 bits.
_SPAN_BITS: Final = 62
_MIN_SPAN: Final = 1 << 61


class Tracer:
    """The tracer of the process. Implements `RequestTracer` (gateway.run.receipts)."""

    def __init__(self, otlp: OtlpSettings, maker: SpanMaker, metrics: Metrics) -> None:
        self._otlp = otlp
        # The application adds its routes when it has them.
        self.maker = maker
        self._samples = make_sampler(otlp.sampler, otlp.ratio)
        self._random = random.Random()
        self._queue: deque[Receipt] = deque()
        # How many spans were queued, and how many of them taken out. Each number is written by one thread alone.
        self._queued_spans = self._dequeued_spans = 0
        self._wake = threading.Event()
        self._is_stopping = False
        self._exported = metrics.add_counter("spans_exported", "Spans that a collector has taken.")
        self._dropped = metrics.add_counter("spans_dropped", "Spans that no collector has.", "reason")
        for reason in ("queue", "refused", "unreachable"):
            # Two threads count, and a new key while a scrape reads the counter would make it fail.
            self._dropped.inc(reason, by=0)
        self._exporter = Exporter(otlp, self._exported, self._dropped, self._pause)
        self._resource = {
            names.SERVICE_VERSION: version("mnemogate"),
            names.SERVICE_INSTANCE: str(uuid.uuid4()),
            **otlp.resource,
        }
        self._thread = threading.Thread(target=self._send_queued, name="traces", daemon=True)

    # -- in the event loop

    def begin(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> TraceContext | None:
        """Returns the trace of a request or of work that begins now; None: it is not sampled.

        headers: those of the request.
        """
        caller = find_caller_trace(headers)
        if caller is None:
            trace_id = self._random.getrandbits(128) or 1
            if not self._samples(None, trace_id):
                return None
            return TraceContext(trace_id, self._make_span_id())
        if not self._samples(caller, caller.trace_id):
            return None
        return TraceContext(caller.trace_id, self._make_span_id(), caller.span_id, caller.state)

    def _make_span_id(self) -> int:
        return _MIN_SPAN + self._random.getrandbits(_SPAN_BITS)

    def enqueue(self, receipt: Receipt) -> None:
        """Ends the receipt of traced work and queues it, or drops it if the queue is full."""
        receipt.clock.ended_at = time.perf_counter()
        for call in receipt.calls:
            call.read_reply()  # drops the text of the reply, of which only facts are needed
        count = _count_spans(receipt)
        if self._queued_spans - self._dequeued_spans + count > self._otlp.queue_spans:
            self._dropped.inc("queue", by=count)
            return
        self._queued_spans += count
        self._queue.append(receipt)
        # `set` takes a lock, which `is_set` does not.
        if self._queued_spans - self._dequeued_spans >= self._otlp.batch_spans and not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """Starts the thread that sends the queued receipts."""
        self._thread.start()

    def stop(self) -> None:
        """Sends the queued receipts, and blocks for `FLUSH_S` at most. Receipts that are queued later are not sent."""
        if not self._thread.is_alive():
            return
        self._exporter.ends_at = time.monotonic() + FLUSH_S
        self._is_stopping = True
        self._wake.set()
        self._thread.join(FLUSH_S)

    # -- in the thread

    def _send_queued(self) -> None:
        while not self._is_stopping:
            self._wake.wait(self._otlp.delay_s)
            self._wake.clear()
            while self._queue:
                self._exporter.send(self._dequeue_batch())
        self._exporter.close()

    def _pause(self, seconds: float) -> None:
        """Waits for some seconds, or until the gateway stops."""
        until = time.monotonic() + seconds
        while not self._is_stopping and (remaining_s := until - time.monotonic()) > 0:
            self._wake.wait(remaining_s)
            if not self._is_stopping:
                self._wake.clear()  # new receipts have woken the thread: they do not end the pause

    def _dequeue_batch(self) -> ExportTraceServiceRequest:
        """Removes the first receipts from the queue, and returns their spans, as many as a request may have."""
        request = ExportTraceServiceRequest()
        scope_spans = self._add_scope(request)
        # Receipts have times of `perf_counter`; adding this makes them seconds since the epoch.
        to_epoch_s = time.time() - time.perf_counter()
        batch_count = 0
        while self._queue:
            count = _count_spans(self._queue[0])
            if batch_count and batch_count + count > self._otlp.batch_spans:
                break
            self._make_spans(self._queue.popleft(), scope_spans.spans.add, to_epoch_s)
            batch_count += count
            self._dequeued_spans += count
            time.sleep(0)  # the loop's thread gets the interpreter between two receipts
        return request

    def _add_scope(self, request: ExportTraceServiceRequest) -> ScopeSpans:
        """Adds the resource and the scope of all spans to a request. Returns where the spans are to be added."""
        resource_spans = request.resource_spans.add()
        for name, value in self._resource.items():
            attribute = resource_spans.resource.attributes.add()
            attribute.key, attribute.value.string_value = name, value
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name = names.SCOPE_NAME
        scope_spans.scope.version = self._resource[names.SERVICE_VERSION]
        return scope_spans

    def _make_spans(self, receipt: Receipt, new_span: Callable[[], Span], to_epoch_s: float) -> None:
        try:
            self.maker.make(receipt, new_span, to_epoch_s)
        except Exception as error:
            # A fault in one receipt must not end the thread. The error's message may quote a user, so it is not logged.
            _log.error("A request has no trace, by a fault in the gateway: %s", type(error).__name__)


def _count_spans(receipt: Receipt) -> int:
    return 1 + len(receipt.calls) + len(receipt.steps) + (receipt.agent_run is not None)
