"""Makes the spans of a receipt, with the official protobuf classes.

Values come from closed lists or are ids of the gateway or numbers, so that no span quotes a client, a model or a tool.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.core.applications import APPLICATIONS
from gateway.core.ids import make_id
from gateway.core.trace_context import TraceContext
from gateway.core.usage.gen_ai import (
    CANCELLED_FAILURE,
    OTHER,
    ModelNames,
    name_error_type,
    name_operation,
    name_provider,
)
from gateway.run.receipt import CLIENT_GONE, GatewayStep, Receipt, RequestLine
from gateway.run.upstream_call import UpstreamCall
from gateway.run.usage.gen_ai_metrics import classify_call_failure
from gateway.traces import names

_METHODS: Final = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))
# The value for any other method. In the name of a span "HTTP" stands for such a method.
_OTHER_METHOD: Final = "_OTHER"
_MEMORY_MODES: Final = frozenset(("on", "read", "off", "none", "unavailable"))
_SIDE_REQUESTS: Final = frozenset((*(rule.name for rule in APPLICATIONS.side_requests), "sub-agent"))
# An id that the gateway has made. One that a client has sent may hold any text.
_REQUEST_ID: Final = re.compile(r"req_[0-9a-f]{24}")
# The kinds of work that are linked to turns of their memory.
_LINKED_WORK: Final = frozenset(("learn", "compact", "sleeptime", "embed"))
# The most turns of a memory to which its work is linked. Not measured: each link takes some bytes in a span, and the
# newest turns are linked.
_LINKS_PER_MEMORY: Final = 8
# The most memories of which turns are remembered for links. Not measured: the work of another memory has no links.
_LINKED_MEMORIES: Final = 4096
# The largest integer of protobuf. A client may name a higher bound of tokens.
_MAX_INT: Final = (1 << 63) - 1


class RouteTemplates:
    """Finds the template of a path, so that no id of a path stands in a span."""

    def __init__(self, routes: Iterable[tuple[str, re.Pattern[str]]]) -> None:
        """Takes templates with the patterns of their paths, in the order in which they are tried."""
        routes = [*routes]
        self._patterns = [(template, pattern) for template, pattern in routes if "{" in template]
        self._fixed_paths = {template for template, _ in routes if "{" not in template}

    def match(self, path: str) -> str:
        """Returns the template of a path; "": no route has the path."""
        if path in self._fixed_paths:
            return path
        return next((template for template, pattern in self._patterns if pattern.match(path)), "")


class SpanMaker:
    """Makes spans, in the exporting thread alone."""

    def __init__(
        self, models: ModelNames, addresses: Mapping[str, str], users: Literal["hash", "plain", "none"]
    ) -> None:
        """Makes a maker without routes.

        addresses: base URLs of upstreams, by their names.
        users: how a span names a user.
        """
        self._templates = RouteTemplates(())
        self._models = models
        self._servers = {name: _split_host_and_port(url) for name, url in addresses.items()}
        self._users = users
        # The key with which names of users are hashed. While it is None, no span has such a hash.
        self.user_key: bytes | None = None
        # The newest turns of memories, by the memories' rows.
        self._turns: OrderedDict[int, deque[TraceContext]] = OrderedDict()

    def add_routes(self, routes: Iterable[tuple[str, re.Pattern[str]]]) -> None:
        """Sets the gateway's routes, as `RouteTemplates` takes them. Call it before the start."""
        self._templates = RouteTemplates(routes)

    def make(self, receipt: Receipt, new_span: Callable[[], Span], to_epoch_s: float) -> None:
        """Makes all spans of a receipt.

        new_span: adds an empty span to the request.
        to_epoch_s: the difference between seconds since the epoch and those of `perf_counter`.
        """
        context = receipt.trace
        assert context is not None  # receipts without a trace are not given to the tracer
        receipt_spans = _ReceiptSpans(receipt, context, new_span, to_epoch_s)
        if receipt.request_line is None:
            self._add_work_root(receipt_spans)
        else:
            self._add_request_root(receipt_spans, receipt.request_line)
        if receipt.agent_row and receipt.request_line is not None:
            self._remember_turn(receipt.agent_row, context)
        receipt_spans.add_agent()
        for number, call in enumerate(receipt.calls, 1):
            if call.upstream:
                self._add_call(receipt_spans, number, call)
        for number, step in enumerate(receipt.steps, 1):
            receipt_spans.add_step(number, step)

    # -- roots

    def _add_request_root(self, receipt_spans: _ReceiptSpans, line: RequestLine) -> None:
        """Adds the span of a request."""
        receipt, (method, scheme, path) = receipt_spans.receipt, line
        is_known = method in _METHODS
        route = self._templates.match(path)
        name = f"{method if is_known else 'HTTP'} {route}".rstrip()
        span = receipt_spans.add_root(name, Span.SPAN_KIND_SERVER)
        span.add_text(names.SPAN_KIND, names.KIND_CHAIN)
        span.add_text(names.METHOD, method if is_known else _OTHER_METHOD)
        span.add_text(names.ROUTE, route)
        span.add_text(names.SCHEME, scheme if scheme in ("http", "https") else OTHER)
        if receipt.status != CLIENT_GONE:
            span.add_number(names.STATUS, receipt.status)
        else:
            span.add_flag(names.CLIENT_GONE, True)
        span.fail(_classify_failure(receipt))
        if _REQUEST_ID.fullmatch(receipt.request_id):
            span.add_text(names.REQUEST_ID, receipt.request_id)
        span.add_text(names.PROJECT, receipt.project)
        span.add_number(names.KEY_ID, receipt.key_id)
        span.add_number(names.LIMIT_ID, receipt.limit_id)
        span.add_text(names.USER, self._make_user_label(receipt.user))
        headers = receipt.headers
        span.add_text(names.MEMORY, _choose_known_value(headers.get("x-mnemogate-memory"), _MEMORY_MODES))
        span.add_text(
            names.SIDE_REQUEST, _choose_known_value(headers.get("x-mnemogate-side-request"), _SIDE_REQUESTS)
        )
        span.add_text(names.SESSION, headers.get("x-mnemogate-conversation"))
        for name, header in names.ATTRIBUTE_HEADERS.items():
            if (value := headers.get(header)) is not None:
                span.add_number(name, int(value), keeps_zero=True)
        if receipt.clock.added_ms is not None:
            span.add_real(names.ADDED_MS, receipt.clock.added_ms)

    def _add_work_root(self, receipt_spans: _ReceiptSpans) -> None:
        """Adds the span of background work, with links to the turns that it is done for."""
        receipt = receipt_spans.receipt
        kind = "" if receipt.work is None else receipt.work.kind
        span = receipt_spans.add_root(names.WORK_PREFIX + kind, Span.SPAN_KIND_INTERNAL)
        span.add_text(names.SPAN_KIND, names.KIND_CHAIN)
        span.add_text(names.PROJECT, receipt.project)
        if kind in _LINKED_WORK:
            for turn in self._turns.get(receipt.work_agent_row, ()):
                link = span.proto.links.add()
                link.trace_id = _encode_trace(turn.trace_id)
                link.span_id = _encode_span(turn.span_id)

    def _remember_turn(self, agent_row: int, context: TraceContext) -> None:
        """Remembers a turn, so that later work for its memory can be linked to it."""
        turns = self._turns.setdefault(agent_row, deque(maxlen=_LINKS_PER_MEMORY))
        turns.append(context)
        self._turns.move_to_end(agent_row)
        if len(self._turns) > _LINKED_MEMORIES:
            self._turns.popitem(last=False)

    def _make_user_label(self, user: str) -> str:
        """Returns the name of a user in a span; "": the span does not name the user."""
        if not user or self._users == "none":
            return ""
        if self._users == "plain":
            return user
        if self.user_key is None:
            return ""
        return blake2b(user.encode("utf-8", "replace"), key=self.user_key, digest_size=8).hexdigest()

    # -- calls

    def _add_call(self, receipt_spans: _ReceiptSpans, number: int, call: UpstreamCall) -> None:
        """Adds the span of the call of an upstream with this number."""
        receipt = receipt_spans.receipt
        operation = name_operation(call.path)
        model = self._models.choose_name(call.model, call.status) if operation else ""
        name = f"{operation} {model}"
        if not operation:
            name = call.method if call.method in _METHODS else "HTTP"
        span = receipt_spans.add_call(name, number, call)
        span.add_text(names.UPSTREAM, call.upstream)
        address, port = self._servers.get(call.upstream, ("", 0))
        span.add_text(names.SERVER_ADDRESS, address)
        span.add_number(names.SERVER_PORT, port)
        span.fail(classify_call_failure(call, receipt))
        for each in call.tries:
            event = span.proto.events.add()
            event.name = names.TRY_EVENT
            event.time_unix_nano = receipt_spans.to_nanoseconds(each.failed_at)
            _add_text_attribute(event.attributes, names.UPSTREAM, each.endpoint)
            _add_text_attribute(event.attributes, names.ERROR_TYPE, name_error_type(each.outcome))
        if operation:
            _describe_operation(span, receipt, call, operation, model)


class _ReceiptSpans:
    """Makes the spans of one receipt."""

    def __init__(
        self, receipt: Receipt, context: TraceContext, new_span: Callable[[], Span], to_epoch_s: float
    ) -> None:
        self.receipt, self.context = receipt, context
        # The id of the span above those of calls and steps.
        self.parent_id = context.span_id
        self._new_span, self._to_epoch_s = new_span, to_epoch_s
        self._trace_id = _encode_trace(context.trace_id)

    def to_nanoseconds(self, at: float) -> int:
        """Returns a time of `perf_counter` in nanoseconds since the epoch."""
        return int((at + self._to_epoch_s) * 1e9)

    def add(
        self, name: str, kind: Any, span_id: int, parent_id: int, started_at: float, ended_at: float
    ) -> _SpanWriter:
        """Adds a span. parent_id: 0: it has no parent. started_at, ended_at: times of `perf_counter`."""
        span = self._new_span()
        span.trace_id = self._trace_id
        span.span_id = _encode_span(span_id)
        if parent_id:
            span.parent_span_id = _encode_span(parent_id)
        span.name, span.kind = name, kind
        span.start_time_unix_nano = self.to_nanoseconds(started_at)
        span.end_time_unix_nano = self.to_nanoseconds(ended_at)
        return _SpanWriter(span)

    def add_root(self, name: str, kind: Any) -> _SpanWriter:
        """Adds the span above all others."""
        clock, context = self.receipt.clock, self.context
        return self.add(name, kind, context.span_id, context.parent_id, clock.started_at, clock.ended_at)

    def add_call(self, name: str, number: int, call: UpstreamCall) -> _SpanWriter:
        """Adds the span of a call of an upstream."""
        span_id = self.context.make_call_id(number)
        ended_at = call.ended_at or self.receipt.clock.ended_at
        return self.add(name, Span.SPAN_KIND_CLIENT, span_id, self.parent_id, call.started_at, ended_at)

    def add_agent(self) -> None:
        """Adds the span of an agent's run, if the request is one. The spans that are added later are below it."""
        run, ended_at = self.receipt.agent_run, self.receipt.clock.ended_at
        if run is None:
            return
        span_id = self.context.make_step_id(len(self.receipt.steps) + 1)
        span = self.add(
            "invoke_agent", Span.SPAN_KIND_INTERNAL, span_id, self.parent_id, run.started_at, ended_at
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


class _SpanWriter:
    """Writes attributes of one span; an empty value is left out."""

    __slots__ = ("proto",)

    def __init__(self, span: Span) -> None:
        self.proto = span

    def add_text(self, key: str, value: str | None) -> None:
        if value:
            _add_text_attribute(self.proto.attributes, key, value)

    def add_texts(self, key: str, values: Sequence[str]) -> None:
        if values:
            attribute = self.proto.attributes.add()
            attribute.key = key
            for value in values:
                attribute.value.array_value.values.add().string_value = value

    def add_number(self, key: str, value: int, *, keeps_zero: bool = False) -> None:
        if value or keeps_zero:
            attribute = self.proto.attributes.add()
            attribute.key = key
            attribute.value.int_value = min(value, _MAX_INT)

    def add_real(self, key: str, value: float) -> None:
        attribute = self.proto.attributes.add()
        attribute.key, attribute.value.double_value = key, value

    def add_flag(self, key: str, value: bool) -> None:
        attribute = self.proto.attributes.add()
        attribute.key, attribute.value.bool_value = key, value

    def fail(self, failure: str) -> None:
        """Marks the span as failed. failure: a word of a closed list; "": the span has not failed."""
        if failure:
            self.add_text(names.ERROR_TYPE, failure)
            self.proto.status.code = Status.STATUS_CODE_ERROR


def _describe_operation(
    span: _SpanWriter, receipt: Receipt, call: UpstreamCall, operation: str, model: str
) -> None:
    """Writes the attributes of the GenAI conventions: what was requested of a model, and what it answered."""
    span.add_text(names.OPERATION, operation)
    span.add_text(names.PROVIDER, name_provider(call.provider))
    span.add_text(names.MODEL, model)
    span.add_number(names.MAX_TOKENS, call.prompt.max_tokens or 0)
    if call.is_streamed:
        span.add_flag(names.STREAM, True)
        if call.first_at:
            span.add_real(names.FIRST_CHUNK, call.first_at - call.started_at)
    if call.counts is not None:
        for key, count in zip(names.TOKEN_COUNTS, call.counts, strict=True):
            span.add_number(key, count)
        span.add_number(names.CACHE_CREATION, call.counts.written)
    span.add_text(names.CONVERSATION, receipt.headers.get("x-mnemogate-conversation"))
    if call.prompt.is_compacted:
        span.add_flag(names.COMPACTED, True)
    if 0 < call.status < 400:
        span.add_text(names.RESPONSE_ID, call.reply.id)
        span.add_text(names.RESPONSE_MODEL, call.reply.model)
        span.add_texts(names.FINISH_REASONS, call.reply.finish_reasons)


def _add_text_attribute(attributes: Any, key: str, value: str) -> None:
    attribute = attributes.add()
    attribute.key, attribute.value.string_value = key, value


def _classify_failure(receipt: Receipt) -> str:
    """Returns the kind of a request's failure; "": it succeeded, or the request itself was wrong."""
    if receipt.status == CLIENT_GONE or receipt.is_cut:
        return CANCELLED_FAILURE
    if receipt.status >= 400:
        return str(receipt.status) if receipt.status >= 500 else ""
    last = receipt.last_call
    return "" if last is None else name_error_type(last.failure)


def _choose_known_value(value: str | None, known: frozenset[str]) -> str:
    """Returns a header's value if a closed list has it, else `OTHER`; "": the header is missing."""
    if not value:
        return ""
    value = unquote(value)
    return value if value in known else OTHER


def _split_host_and_port(url: str) -> tuple[str, int]:
    """Returns the host and the port of a URL; 0: its scheme has none."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _encode_trace(id: int) -> bytes:
    return id.to_bytes(16, "big")


def _encode_span(id: int) -> bytes:
    return id.to_bytes(8, "big")
