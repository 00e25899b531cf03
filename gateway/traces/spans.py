"""Makes the spans of an account, with the official protobuf classes.

Values are of closed lists, the gateway's own ids, or numbers: no word of a client, a model or a tool stands in a span.
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
from gateway.core.ids import id_of
from gateway.core.trace_context import TraceContext
from gateway.core.usage.gen_ai import CANCELLED, OTHER, ModelNames, error_type, operation_of, provider_of
from gateway.run.receipt import CLIENT_GONE, GatewayStep, Receipt, RequestLine, UpstreamCall
from gateway.run.usage.gen_ai_metrics import failure_of_call
from gateway.traces import names

_METHODS: Final = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))
_MEMORIES: Final = frozenset(("on", "read", "off", "none", "unavailable"))
_RULES: Final = frozenset((*(rule.name for rule in APPLICATIONS.side_requests), "sub-agent"))
# As the gateway makes them; a client may send its own, which are its words.
_REQUEST_ID: Final = re.compile(r"req_[0-9a-f]{24}")
# So many turns of a memory are linked to work that is done for it, of so many memories.
_LINKS: Final = 8
_LINKED_MEMORIES: Final = 4096
_BEARS_LINKS: Final = frozenset(("learn", "compact", "sleeptime", "embed"))


class RouteTemplates:
    """Finds the template of a path, so that no id of a path stands in a span."""

    def __init__(self, routes: Iterable[tuple[str, re.Pattern[str]]]) -> None:
        """routes: templates with what matches their paths, in the order in which they are tried."""
        routes = [*routes]
        self._patterns = [each for each in routes if "{" in each[0]]
        self._fixed = {template for template, _ in routes if "{" not in template}

    def of(self, path: str) -> str:
        """Returns the template of a path; "": no route has it."""
        if path in self._fixed:
            return path
        return next((template for template, pattern in self._patterns if pattern.match(path)), "")


class SpanMaker:
    """Makes spans, in the exporting thread alone.

    user_key: of the hash of users' names; None: it is not known yet, and they have none.
    """

    def __init__(
        self, models: ModelNames, addresses: Mapping[str, str], users: Literal["hash", "plain", "none"]
    ) -> None:
        """addresses: base URLs of upstreams, by their names."""
        self._templates = RouteTemplates(())
        self._models = models
        self._servers = {name: _server(url) for name, url in addresses.items()}
        self._users = users
        self.user_key: bytes | None = None
        self._turns: OrderedDict[int, deque[TraceContext]] = OrderedDict()

    def add_routes(self, routes: Iterable[tuple[str, re.Pattern[str]]]) -> None:
        """Adds the gateway's routes, as `RouteTemplates` has them; before the start."""
        self._templates = RouteTemplates(routes)

    def make(self, receipt: Receipt, add: Callable[[], Span], clock: float) -> None:
        """Makes all spans of an account. add: returns a new one. clock: seconds from `perf_counter` to the epoch."""
        context = receipt.trace
        assert context is not None
        maker = _OfAccount(receipt, context, add, clock)
        if receipt.request_line is None:
            self._root_of_work(maker)
        else:
            self._root_of_request(maker, receipt.request_line)
        if receipt.memory_row and receipt.request_line is not None:
            self._remember(receipt.memory_row, context)
        maker.begin_agent()
        for number, call in enumerate(receipt.calls, 1):
            if call.upstream:
                self._call(maker, number, call)
        for number, step in enumerate(receipt.steps, 1):
            maker.step(number, step)

    # -- roots

    def _root_of_request(self, maker: _OfAccount, line: RequestLine) -> None:
        receipt, (method, scheme, path) = maker.receipt, line
        method = method if method in _METHODS else "_OTHER"
        route = self._templates.of(path)
        span = maker.root(f"{method} {route}".rstrip(), Span.SPAN_KIND_SERVER)
        span.text(names.METHOD, method)
        span.text(names.ROUTE, route)
        span.text(names.SCHEME, scheme if scheme in ("http", "https") else OTHER)
        if receipt.status != CLIENT_GONE:
            span.number(names.STATUS, receipt.status)
        else:
            span.flag(names.CLIENT_GONE, True)
        span.fail(_failure_of_request(receipt))
        if _REQUEST_ID.fullmatch(receipt.request_id):
            span.text(names.REQUEST_ID, receipt.request_id)
        span.text(names.PROJECT, receipt.project)
        span.number(names.KEY, receipt.key)
        span.number(names.LIMIT, receipt.limit_id)
        span.text(names.USER, self._user(receipt.user))
        headers = receipt.headers
        span.text(names.MEMORY, _one_of(headers.get("x-mnemogate-memory"), _MEMORIES))
        span.text(names.SIDE_REQUEST, _one_of(headers.get("x-mnemogate-side-request"), _RULES))
        span.text(names.SESSION, headers.get("x-mnemogate-conversation"))
        for name, header in names.FROM_HEADERS.items():
            if (value := headers.get(header)) is not None:
                span.number(name, int(value), zero=True)
        if receipt.added_ms:
            span.real(names.ADDED_MS, receipt.added_ms)

    def _root_of_work(self, maker: _OfAccount) -> None:
        receipt = maker.receipt
        span = maker.root(names.WORK + receipt.kind, Span.SPAN_KIND_INTERNAL)
        span.text(names.PROJECT, receipt.project)
        if receipt.kind in _BEARS_LINKS:
            for turn in self._turns.get(receipt.work_memory, ()):
                link = span.made.links.add()
                link.trace_id, link.span_id = _trace_bytes(turn.trace_id), _span_bytes(turn.span_id)

    def _remember(self, memory: int, context: TraceContext) -> None:
        """Remembers a turn of a memory, for work that is done for that later. memory: its row."""
        turns = self._turns.setdefault(memory, deque(maxlen=_LINKS))
        turns.append(context)
        self._turns.move_to_end(memory)
        if len(self._turns) > _LINKED_MEMORIES:
            self._turns.popitem(last=False)

    def _user(self, user: str) -> str:
        if not user or self._users == "none":
            return ""
        if self._users == "plain":
            return user
        key = self.user_key
        return (
            ""
            if key is None
            else blake2b(user.encode("utf-8", "replace"), key=key, digest_size=8).hexdigest()
        )

    # -- calls

    def _call(self, maker: _OfAccount, number: int, call: UpstreamCall) -> None:
        receipt, operation = maker.receipt, operation_of(call.path)
        model = self._models.of(call.model, call.status) if operation else ""
        name = f"{operation} {model}" if operation else call.method if call.method in _METHODS else "_OTHER"
        ended = call.ended or receipt.ended
        span = maker.add(
            name, Span.SPAN_KIND_CLIENT, maker.context.call_id(number), maker.above, call.begun, ended
        )
        span.text(names.UPSTREAM, call.upstream)
        address, port = self._servers.get(call.upstream, ("", 0))
        span.text(names.SERVER_ADDRESS, address)
        span.number(names.SERVER_PORT, port)
        span.fail(failure_of_call(call, receipt))
        for each in call.tries:
            event = span.made.events.add()
            event.name, event.time_unix_nano = names.TRY, maker.nanoseconds(each.at)
            _text(event.attributes, names.UPSTREAM, each.endpoint)
            _text(event.attributes, names.ERROR_TYPE, error_type(each.outcome))
        if not operation:
            return
        span.text(names.OPERATION, operation)
        span.text(names.PROVIDER, provider_of(call.provider))
        span.text(names.MODEL, model)
        span.number(names.MAX_TOKENS, call.max_tokens or 0)
        if call.is_streamed:
            span.flag(names.STREAM, True)
            if call.first:
                span.real(names.FIRST_CHUNK, call.first - call.begun)
        if call.counts is not None:
            for key, count in zip(names.TOKENS, call.counts, strict=True):
                span.number(key, count)
        span.text(names.CONVERSATION, receipt.headers.get("x-mnemogate-conversation"))
        if call.is_compacted:
            span.flag(names.COMPACTED, True)
        if 0 < call.status < 400:
            span.text(names.RESPONSE_ID, call.reply.id)
            span.text(names.RESPONSE_MODEL, call.reply.model)
            span.texts(names.FINISH_REASONS, call.reply.finish_reasons)


class _OfAccount:
    """Makes the spans of one account. above: the id of the span under which calls and steps hang."""

    def __init__(
        self, receipt: Receipt, context: TraceContext, add: Callable[[], Span], clock: float
    ) -> None:
        self.receipt, self.context = receipt, context
        self.above = context.span_id
        self._add, self._clock = add, clock
        self._trace_id = _trace_bytes(context.trace_id)

    def nanoseconds(self, at: float) -> int:
        """Returns a time of `perf_counter` in nanoseconds since the epoch."""
        return int((at + self._clock) * 1e9)

    def add(self, name: str, kind: Any, id: int, parent: int, begun: float, ended: float) -> _Writer:
        """Adds a span. id, parent: of spans; 0: no parent. begun, ended: times of `perf_counter`."""
        made = self._add()
        made.trace_id, made.span_id = self._trace_id, _span_bytes(id)
        if parent:
            made.parent_span_id = _span_bytes(parent)
        made.name, made.kind = name, kind
        made.start_time_unix_nano, made.end_time_unix_nano = self.nanoseconds(begun), self.nanoseconds(ended)
        return _Writer(made)

    def root(self, name: str, kind: Any) -> _Writer:
        receipt, context = self.receipt, self.context
        return self.add(name, kind, context.span_id, context.parent_id, receipt.begun, receipt.ended)

    def begin_agent(self) -> None:
        """Adds the span of a run of an agent, if it is one; what follows hangs below it."""
        receipt = self.receipt
        if not receipt.agent:
            return
        id = self.context.step_id(len(receipt.steps) + 1)
        kind = Span.SPAN_KIND_INTERNAL
        span = self.add("invoke_agent", kind, id, self.above, receipt.agent_begun, receipt.ended)
        span.text(names.OPERATION, "invoke_agent")
        span.text(names.AGENT, id_of("agent", receipt.agent))
        self.above = id

    def step(self, number: int, step: GatewayStep) -> None:
        name = f"{step.kind} {step.name}".rstrip()
        id = self.context.step_id(number)
        span = self.add(name, Span.SPAN_KIND_INTERNAL, id, self.above, step.begun, step.ended)
        span.text(names.OPERATION, step.kind)
        span.fail(step.failure)
        if step.kind == "execute_tool":
            span.text(names.TOOL, step.name)
            span.text(names.TOOL_TYPE, "function")
            return
        span.text(names.STORE, self.receipt.headers.get("x-mnemogate-agent"))
        if step.kind == "search_memory":
            span.number(names.RECORDS, step.count, zero=True)
            span.number(names.RECALL_TOKENS, step.tokens, zero=True)
            span.flag(names.RECALL_LATE, step.is_late)
        else:
            span.flag(names.DURABLE, step.is_durable)


class _Writer:
    """Writes attributes of one span; what is empty has none."""

    __slots__ = ("made",)

    def __init__(self, made: Span) -> None:
        self.made = made

    def text(self, key: str, value: str | None) -> None:
        if value:
            _text(self.made.attributes, key, value)

    def texts(self, key: str, values: Sequence[str]) -> None:
        if values:
            attribute = self.made.attributes.add()
            attribute.key = key
            for value in values:
                attribute.value.array_value.values.add().string_value = value

    def number(self, key: str, value: int, *, zero: bool = False) -> None:
        if value or zero:
            attribute = self.made.attributes.add()
            attribute.key, attribute.value.int_value = key, value

    def real(self, key: str, value: float) -> None:
        attribute = self.made.attributes.add()
        attribute.key, attribute.value.double_value = key, value

    def flag(self, key: str, value: bool) -> None:
        attribute = self.made.attributes.add()
        attribute.key, attribute.value.bool_value = key, value

    def fail(self, failure: str) -> None:
        """Marks the span as failed. failure: of a closed list; "": it has not."""
        if failure:
            self.text(names.ERROR_TYPE, failure)
            self.made.status.code = Status.STATUS_CODE_ERROR


def _text(attributes: Any, key: str, value: str) -> None:
    attribute = attributes.add()
    attribute.key, attribute.value.string_value = key, value


def _failure_of_request(receipt: Receipt) -> str:
    """Returns the kind of a request's error; "": it has none, or its client is to blame."""
    if receipt.status == CLIENT_GONE or receipt.is_cut:
        return CANCELLED
    if receipt.status >= 400:
        return str(receipt.status) if receipt.status >= 500 else ""
    last = receipt.last_call
    return "" if last is None else error_type(last.failure)


def _one_of(value: str | None, known: frozenset[str]) -> str:
    if not value:
        return ""
    value = unquote(value)
    return value if value in known else OTHER


def _server(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _trace_bytes(id: int) -> bytes:
    return id.to_bytes(16, "big")


def _span_bytes(id: int) -> bytes:
    return id.to_bytes(8, "big")
