"""Sends spans to a collector: OTLP over HTTP, with the standard library's client, in a thread of its own.

A request to a busy collector is sent again for a minute at most. Spans that the collector refuses are dropped and
counted. No wait outlasts the gateway. (opentelemetry.io/docs/specs/otlp, OTLP/HTTP)
"""

from __future__ import annotations

import gzip
import http.client
import logging
import random
import time
from collections.abc import Callable, MutableSequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from adapters.reply_headers import read_retry_after
from gateway.metrics import Counter
from gateway.traces.otlp import OtlpSettings

_log = logging.getLogger("mnemogate")
# The statuses after which a request may be sent again, by the specification.
_BUSY_STATUSES: Final = frozenset((429, 502, 503, 504))
# The pause after the first failure; each later one is twice as long. Not measured: it bounds the requests to a
# collector that is down.
_FIRST_PAUSE_S: Final = 1.0
# The time after which a request is given up. Not measured: meanwhile receipts wait in a bounded queue.
_GIVE_UP_AFTER_S: Final = 60.0
# The most bytes of a response that are read. A response has only the number of rejected spans.
_RESPONSE_BYTES: Final = 64 * 1024


class _Refusal(Exception):
    """The collector has not taken the spans."""

    def __init__(self, status: int, retry_after_s: float | None = None) -> None:
        # The status of the response; 0: there was no response.
        self.status = status
        # The pause that the collector asks for; None: it asks for none.
        self.retry_after_s = retry_after_s

    @property
    def is_final(self) -> bool:
        """True if the collector would refuse the same spans again."""
        return self.status != 0 and self.status not in _BUSY_STATUSES


class Exporter:
    """Posts requests, one at a time."""

    def __init__(
        self,
        otlp: OtlpSettings,
        exported: Counter,
        dropped: Counter,
        pause: Callable[[float], object],
    ) -> None:
        """Makes the exporter; it connects with the first request.

        otlp: the collector's address and headers.
        exported: the counter of the spans that the collector has taken.
        dropped: the counter of the other spans, by reason.
        pause: the function that waits for a number of seconds, or less if the gateway stops.
        """
        self._otlp = otlp
        self._url = urlsplit(otlp.endpoint)
        self._exported = exported
        self._dropped = dropped
        self._pause = pause
        # The open connection; None: no connection is open.
        self._connection: http.client.HTTPConnection | None = None
        # True if the last spans were not sent.
        self._has_failed = False
        # The time, by `time.monotonic`, at which the last request has to end; None: the gateway is not stopping.
        self.ends_at: float | None = None

    def send(self, request: ExportTraceServiceRequest) -> None:
        """Sends spans, and drops what cannot be sent."""
        count = len(_get_spans(request))
        try:
            rejected_count = min(count, self._send_patiently(request))
        except _Refusal as refusal:
            if refusal.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and count > 1:
                self._send_halves(request)
                return
            self._dropped.inc("refused" if refusal.is_final else "unreachable", by=count)
            self._report(refusal.status)
            return
        if rejected_count:
            self._dropped.inc("refused", by=rejected_count)
        self._exported.inc(by=count - rejected_count)
        if self._has_failed:
            self._has_failed = False
            _log.info("Traces are exported again.")

    def close(self) -> None:
        """Closes the connection. The next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send_halves(self, request: ExportTraceServiceRequest) -> None:
        """Sends spans that are too many for one request in two."""
        middle = len(_get_spans(request)) // 2
        for other_half in (slice(middle, None), slice(0, middle)):
            half = ExportTraceServiceRequest()
            half.CopyFrom(request)
            del _get_spans(half)[other_half]
            self.send(half)

    def _send_patiently(self, request: ExportTraceServiceRequest) -> int:
        """Sends a request until the collector takes it. Returns how many spans were rejected.

        Raises: _Refusal: the collector refuses the request, or has been busy or unreachable for too long.
        """
        data = request.SerializeToString()
        if self._otlp.is_compressed:
            data = gzip.compress(data, compresslevel=1)
        gives_up_at = time.monotonic() + _GIVE_UP_AFTER_S
        next_pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._post_spans(data)
            except _Refusal as refusal:
                if refusal.is_final:
                    raise
                self._report(refusal.status)
                # The pause is random in part, so that several gateways do not send at once. `Retry-After: 0` does not
                # shorten it.
                pause_s = max(next_pause_s * random.uniform(0.8, 1.2), refusal.retry_after_s or 0.0)
                if time.monotonic() + pause_s > (gives_up_at if self.ends_at is None else self.ends_at):
                    raise
                self._pause(pause_s)
                next_pause_s *= 2

    def _post_spans(self, data: bytes) -> int:
        """Sends a request once. Returns how many spans were rejected. Raises: _Refusal."""
        headers = {
            "content-type": "application/x-protobuf",
            "user-agent": "mnemogate",
            **dict(self._otlp.headers),
        }
        if self._otlp.is_compressed:
            headers["content-encoding"] = "gzip"
        target = self._url.path + (f"?{self._url.query}" if self._url.query else "")
        is_new = self._connection is None
        try:
            connection = self._connect()
            connection.request("POST", target or "/", data, headers)
            response = connection.getresponse()
            body = response.read(_RESPONSE_BYTES)
            if response.will_close or not response.isclosed():
                self.close()
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            # A UnicodeError: the host is no valid name.
            self.close()
            if not is_new and isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                return self._post_spans(data)  # the collector had closed the idle connection
            raise _Refusal(0) from error
        if not 200 <= response.status < 300:
            fields = [(name.lower(), value) for name, value in response.getheaders()]
            raise _Refusal(response.status, read_retry_after(fields, time.time()))
        return _read_rejected(body)

    def _connect(self) -> http.client.HTTPConnection:
        """Returns the open connection, or a new one."""
        timeout_s = self._otlp.timeout_s
        if self.ends_at is not None:
            timeout_s = max(0.01, min(timeout_s, self.ends_at - time.monotonic()))
        if self._connection is None:
            host = self._url.hostname or ""
            port = self._url.port
            tls = self._otlp.tls
            self._connection = (
                http.client.HTTPConnection(host, port, timeout=timeout_s)
                if tls is None
                else http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls)
            )
            self._connection.connect()
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        return self._connection

    def _report(self, status: int) -> None:
        """Logs that spans do not arrive, once until they arrive again."""
        if self._has_failed:
            return
        self._has_failed = True
        why = f"answers {status}" if status else "cannot be reached"
        _log.warning("Traces are not exported: the collector at %s %s.", self._url.hostname, why)


def _get_spans(request: ExportTraceServiceRequest) -> MutableSequence[Span]:
    """Returns the spans of a request, which are all of one scope."""
    return request.resource_spans[0].scope_spans[0].spans


def _read_rejected(body: bytes) -> int:
    """Returns the number of rejected spans in a response."""
    try:
        return max(0, ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)
    except DecodeError:
        return 0  # some collectors answer with text
