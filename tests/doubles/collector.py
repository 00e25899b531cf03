"""A strict OpenTelemetry collector on a loopback port. It decodes with the official classes and notes what is wrong.

    with StrictCollector() as collector:
        ... export to collector.url ...
        spans = collector.wait_for(3)

It answers with 200, or with the next of `answers`. It answers nothing before the gate `hold` is open. With a TLS
context it speaks HTTPS, at the host `localhost`.
"""

from __future__ import annotations

import gzip
import ssl
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.doubles.upstream import Gate
from tests.patience import becomes

KINDS = {
    Span.SPAN_KIND_SERVER: "SERVER",
    Span.SPAN_KIND_CLIENT: "CLIENT",
    Span.SPAN_KIND_INTERNAL: "INTERNAL",
}


@dataclass
class Answer:
    """The answer to one post."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    # The number of spans that the answer reports as rejected.
    rejected: int = 0


class StrictCollector:
    """A collector. Its `__exit__` fails if a request was wrong."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        # The accepted requests, the number of spans of each, and the headers of each.
        self.posts: list[ExportTraceServiceRequest] = []
        self.sizes: list[int] = []
        self.heads: list[dict[str, str]] = []
        # What was wrong with the accepted requests.
        self.faults: list[str] = []
        self.answers: deque[Answer] = deque()
        # A post with more spans is answered with 413.
        self.most_spans = 1 << 30
        self.hold: Gate | None = None
        self.request_count = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                collector._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._origin = f"http://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self._origin = f"https://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.open()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.faults, self.faults

    @property
    def url(self) -> str:
        return f"{self._origin}/v1/traces"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for post in [*self.posts]
            for of_resource in post.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def wait_for(self, count: int) -> list[Span]:
        """Returns all spans, once there are `count` of them."""
        return becomes(lambda: spans if len(spans := self.spans) >= count else None) or []

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.request_count += 1
        data = handler.rfile.read(int(handler.headers["content-length"]))
        if self.hold is not None:
            self.hold.wait_sync()
        if handler.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        request = ExportTraceServiceRequest.FromString(data)
        count = sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        answer = self.answers.popleft() if self.answers else Answer()
        if count > self.most_spans:
            answer = Answer(413)
        if answer.status == 200:
            self.faults += _faults(handler, request)
            self.heads.append({name.lower(): value for name, value in handler.headers.items()})
            self.sizes.append(count)
            self.posts.append(request)
        response = ExportTraceServiceResponse()
        if answer.rejected:
            response.partial_success.rejected_spans = answer.rejected
        body = response.SerializeToString() if answer.status == 200 else b""
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def _faults(handler: BaseHTTPRequestHandler, request: ExportTraceServiceRequest) -> list[str]:
    """Returns what OTLP or the conventions do not allow in a request."""
    faults = []
    if handler.path != "/v1/traces" or handler.headers["content-type"] != "application/x-protobuf":
        faults.append(f"posted to {handler.path} as {handler.headers['content-type']}")
    for of_resource in request.resource_spans:
        resource = attributes(of_resource.resource.attributes)
        if not {"service.name", "service.version", "service.instance.id"} <= resource.keys():
            faults.append(f"a resource with {[*resource]}")
        for of_scope in of_resource.scope_spans:
            if of_scope.scope.name != "mnemogate":
                faults.append(f"the scope {of_scope.scope.name!r}")
            for span in of_scope.spans:
                faults += [f"{span.name}: {fault}" for fault in _faults_of(span)]
    return faults


def _faults_of(span: Span) -> list[str]:
    checks = {
        "trace id": len(span.trace_id) == 16 and any(span.trace_id),
        "span id": len(span.span_id) == 8 and any(span.span_id),
        "parent": len(span.parent_span_id) in (0, 8),
        "name": bool(span.name),
        "kind": span.kind in KINDS,
        "times": 1_600_000_000 * 10**9 < span.start_time_unix_nano <= span.end_time_unix_nano,
        "attributes": len({each.key for each in span.attributes}) == len(span.attributes),
        "values": all(each.value.WhichOneof("value") is not None for each in span.attributes),
        "status message": not span.status.message,
        "status": (span.status.code == 2) == ("error.type" in attributes(span.attributes)),
    }
    return [name for name, is_right in checks.items() if not is_right]


def attributes(given: Any) -> dict[str, Any]:
    """Returns attributes by name, with their values as Python has them."""
    return {each.key: _value(each.value) for each in given}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")


@dataclass
class Node:
    """A span with its children, in the order of their start."""

    span: Span
    below: list[Node]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def has(self) -> dict[str, Any]:
        return attributes(self.span.attributes)

    @property
    def shape(self) -> Any:
        """The names of the tree: a name, or a name with the shapes of its children."""
        return (self.name, [each.shape for each in self.below]) if self.below else self.name

    def find(self, name: str) -> Node:
        return next(each for each in self.below if each.name == name)


def trees(spans: Sequence[Span]) -> list[Node]:
    """Returns the roots of spans: those with no parent among them."""
    ordered = sorted(spans, key=lambda span: span.start_time_unix_nano)
    nodes = {span.span_id: Node(span, []) for span in ordered}
    assert len(nodes) == len(spans), "two spans have one id"
    roots = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent_span_id)
        (roots if parent is None else parent.below).append(node)
    return roots
