"""Makes the spans of a receipt, with the official protobuf classes.

Values come from closed lists or are ids of the gateway or numbers, so that no span quotes a client, a model or a tool.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.core.applications import APPLICATIONS
from gateway.core.trace_context import TraceContext
from gateway.core.usage.gen_ai import (
    CANCELLED_FAILURE,
    OTHER,
    ModelNames,
    name_error_type,
    name_operation,
    name_provider,
)
from gateway.run.receipt import CLIENT_GONE, Receipt, RequestLine
from gateway.run.upstream_call import UpstreamCall
from gateway.run.usage.gen_ai_metrics import classify_call_failure
from gateway.traces import names
from gateway.traces.receipt_spans import ReceiptSpans
from gateway.traces.span_writer import SpanWriter, add_text_attribute, encode_span_id, encode_trace_id

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
        # The newest turns of the memories that were used last, by the rows of the memories.
        self._recent_turns: OrderedDict[int, deque[TraceContext]] = OrderedDict()

    def add_routes(self, routes: Iterable[tuple[str, re.Pattern[str]]]) -> None:
        """Sets the gateway's routes, as `RouteTemplates` takes them. Call it before the start."""
        self._templates = RouteTemplates(routes)

    def make(self, receipt: Receipt, new_span: Callable[[], Span], to_epoch_s: float) -> None:
        """Makes all spans of a receipt.

        new_span: a function that adds an empty span to the export, and returns the span.
        to_epoch_s: the difference between seconds since the epoch and those of `perf_counter`.
        """
        context = receipt.trace
        assert context is not None  # receipts without a trace are not given to the tracer
        receipt_spans = ReceiptSpans(receipt, context, new_span, to_epoch_s)
        if receipt.request_line is None:
            self._add_work_root(receipt_spans)
        else:
            self._add_request_root(receipt_spans, receipt.request_line)
        if receipt.memory.agent_row and receipt.request_line is not None:
            self._remember_turn(receipt.memory.agent_row, context)
        receipt_spans.add_agent()
        for number, call in enumerate(receipt.calls, 1):
            if call.upstream:
                self._add_call(receipt_spans, number, call)
        for number, step in enumerate(receipt.steps, 1):
            receipt_spans.add_step(number, step)

    # -- roots

    def _add_request_root(self, receipt_spans: ReceiptSpans, line: RequestLine) -> None:
        """Adds the span of a request."""
        receipt = receipt_spans.receipt
        is_known = line.method in _METHODS
        route = self._templates.match(line.path)
        name = f"{line.method if is_known else 'HTTP'} {route}".rstrip()
        span = receipt_spans.add_root(name, Span.SPAN_KIND_SERVER)
        span.add_text(names.SPAN_KIND, names.KIND_CHAIN)
        span.add_text(names.METHOD, line.method if is_known else _OTHER_METHOD)
        span.add_text(names.ROUTE, route)
        span.add_text(names.SCHEME, line.scheme if line.scheme in ("http", "https") else OTHER)
        if receipt.status != CLIENT_GONE:
            span.add_number(names.STATUS, receipt.status)
        else:
            span.add_flag(names.CLIENT_GONE, True)
        span.fail(_classify_failure(receipt))
        if _REQUEST_ID.fullmatch(receipt.request_id):
            span.add_text(names.REQUEST_ID, receipt.request_id)
        span.add_text(names.PROJECT, receipt.project)
        span.add_number(names.KEY_ID, receipt.key_id)
        span.add_number(names.LIMIT_ID, receipt.limits.limit_id)
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

    def _add_work_root(self, receipt_spans: ReceiptSpans) -> None:
        """Adds the span of background work, with links to the turns that it is done for."""
        receipt = receipt_spans.receipt
        kind = "" if receipt.work is None else receipt.work.kind
        span = receipt_spans.add_root(names.WORK_PREFIX + kind, Span.SPAN_KIND_INTERNAL)
        span.add_text(names.SPAN_KIND, names.KIND_CHAIN)
        span.add_text(names.PROJECT, receipt.project)
        if kind in _LINKED_WORK:
            for turn in self._recent_turns.get(receipt.work_agent_row, ()):
                link = span.proto.links.add()
                link.trace_id = encode_trace_id(turn.trace_id)
                link.span_id = encode_span_id(turn.span_id)

    def _remember_turn(self, agent_row: int, context: TraceContext) -> None:
        """Remembers a turn, so that later work for its memory can be linked to it."""
        turns = self._recent_turns.setdefault(agent_row, deque(maxlen=_LINKS_PER_MEMORY))
        turns.append(context)
        self._recent_turns.move_to_end(agent_row)
        if len(self._recent_turns) > _LINKED_MEMORIES:
            self._recent_turns.popitem(last=False)

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

    def _add_call(self, receipt_spans: ReceiptSpans, number: int, call: UpstreamCall) -> None:
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
        for failed_try in call.tries:
            event = span.proto.events.add()
            event.name = names.TRY_EVENT
            event.time_unix_nano = receipt_spans.to_nanoseconds(failed_try.failed_at)
            add_text_attribute(event.attributes, names.UPSTREAM, failed_try.endpoint)
            add_text_attribute(event.attributes, names.ERROR_TYPE, name_error_type(failed_try.outcome))
        if operation:
            _describe_operation(span, receipt, call, operation, model)


def _describe_operation(
    span: SpanWriter, receipt: Receipt, call: UpstreamCall, operation: str, model: str
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


def _classify_failure(receipt: Receipt) -> str:
    """Returns the kind of a request's failure; "": it succeeded, or the request itself was wrong."""
    if receipt.status == CLIENT_GONE or receipt.is_cut:
        return CANCELLED_FAILURE
    if receipt.status >= 400:
        return str(receipt.status) if receipt.status >= 500 else ""
    last_call = receipt.last_call
    return "" if last_call is None else name_error_type(last_call.failure)


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
