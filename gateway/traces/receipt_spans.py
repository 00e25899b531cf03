"""Adds the spans of one receipt, with their ids, their parents and their times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.core.ids import make_id
from gateway.core.trace_context import TraceContext
from gateway.run.receipt import GatewayStep, Receipt
from gateway.run.upstream_call import UpstreamCall
from gateway.traces import names
from gateway.traces.span_writer import SpanWriter, encode_span_id, encode_trace_id


class ReceiptSpans:
    """Makes the spans of one receipt."""

    def __init__(
        self, receipt: Receipt, context: TraceContext, new_span: Callable[[], Span], to_epoch_s: float
    ) -> None:
        """Takes a receipt with its trace.

        new_span: a function that adds an empty span to the export, and returns the span.
        to_epoch_s: the difference between seconds since the epoch and those of `perf_counter`.
        """
        self.receipt = receipt
        self.context = context
        # The id of the span above those of calls and steps.
        self.parent_id = context.span_id
        self._new_span = new_span
        self._to_epoch_s = to_epoch_s
        self._trace_id = encode_trace_id(context.trace_id)

    def to_nanoseconds(self, time_s: float) -> int:
        """Returns a time of `perf_counter` in nanoseconds since the epoch."""
        return int((time_s + self._to_epoch_s) * 1e9)

    def add(
        self, name: str, kind: Any, span_id: int, parent_id: int, started_at: float, ended_at: float
    ) -> SpanWriter:
        """Adds a span.

        kind: a value of `Span.SpanKind`.
        parent_id: the id of the span above it; 0: there is none.
        started_at, ended_at: times of `perf_counter`.
        """
        span = self._new_span()
        span.trace_id = self._trace_id
        span.span_id = encode_span_id(span_id)
        if parent_id:
            span.parent_span_id = encode_span_id(parent_id)
        span.name = name
        span.kind = kind
        span.start_time_unix_nano = self.to_nanoseconds(started_at)
        span.end_time_unix_nano = self.to_nanoseconds(ended_at)
        return SpanWriter(span)

    def add_root(self, name: str, kind: Any) -> SpanWriter:
        """Adds the span above all others."""
        clock = self.receipt.clock
        return self.add(
            name, kind, self.context.span_id, self.context.parent_id, clock.started_at, clock.ended_at
        )

    def add_call(self, name: str, number: int, call: UpstreamCall) -> SpanWriter:
        """Adds the span of a call of an upstream."""
        span_id = self.context.make_call_id(number)
        ended_at = call.ended_at or self.receipt.clock.ended_at
        return self.add(name, Span.SPAN_KIND_CLIENT, span_id, self.parent_id, call.started_at, ended_at)

    def add_agent(self) -> None:
        """Adds the span of an agent's run, if the request is one. The spans that are added later are below it."""
        run = self.receipt.agent_run
        if run is None:
            return
        span_id = self.context.make_step_id(len(self.receipt.steps) + 1)
        span = self.add(
            "invoke_agent",
            Span.SPAN_KIND_INTERNAL,
            span_id,
            self.parent_id,
            run.started_at,
            self.receipt.clock.ended_at,
        )
        span.add_text(names.OPERATION, "invoke_agent")
        span.add_text(names.AGENT, make_id("agent", run.uid))
        self.parent_id = span_id

    def add_step(self, number: int, step: GatewayStep) -> None:
        """Adds the span of a step with this number: a tool's call, or an access of memory."""
        name = f"{step.kind} {step.name}".rstrip()
        span_id = self.context.make_step_id(number)
        span = self.add(
            name, Span.SPAN_KIND_INTERNAL, span_id, self.parent_id, step.started_at, step.ended_at
        )
        span.add_text(names.OPERATION, step.kind)
        span.fail(step.failure)
        if step.kind == "execute_tool":
            span.add_text(names.TOOL_NAME, step.name)
            span.add_text(names.TOOL_TYPE, "function")
            return
        span.add_text(names.MEMORY_STORE_ID, self.receipt.headers.get("x-mnemogate-agent"))
        is_search = step.kind == "search_memory"
        span.add_text(names.SPAN_KIND, names.KIND_RETRIEVER if is_search else names.KIND_CHAIN)
        if is_search:
            span.add_number(names.RECORD_COUNT, step.count, keeps_zero=True)
            span.add_number(names.RECALL_TOKENS, step.tokens, keeps_zero=True)
            span.add_flag(names.RECALL_LATE, step.is_late)
        else:
            span.add_flag(names.IS_DURABLE, step.is_durable)
