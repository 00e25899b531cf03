"""W3C's trace context: the trace that a caller's headers name, and the header for an upstream.

Pure: ids come in. (w3.org/TR/trace-context)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

# The headers of W3C Trace Context.
TRACEPARENT: Final = "traceparent"
_TRACESTATE: Final = "tracestate"
# Version 00 has four fields, a higher version may have more, and `ff` is no version.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})((?:-.*)?)"
)
# The bit of `traceparent` by which a caller has its trace sampled.
_SAMPLED_FLAG: Final = 0x01
# The most characters of `tracestate` that go on. The specification asks for at least so many.
_STATE_CHARS: Final = 512


class CallerTrace(NamedTuple):
    """The trace to which a caller's request belongs."""

    # The id of the trace.
    trace_id: int
    # The id of the caller's span.
    span_id: int
    # True: the caller records the trace.
    is_sampled: bool
    # The caller's `tracestate`; "": none, or too long.
    state: str


class TraceContext(Struct, frozen=True):
    """The trace of a request that is sampled."""

    # The id of the trace.
    trace_id: int
    # The id of the request's own span. The spans below it have the next numbers as ids.
    span_id: int
    # The id of the caller's span; 0: the trace begins here.
    parent_id: int = 0
    # The caller's `tracestate`, which goes on as it came.
    state: str = ""

    @property
    def trace_hex(self) -> str:
        return f"{self.trace_id:032x}"

    def make_call_id(self, call_number: int) -> int:
        """Returns the id of the span of a call. call_number: the number of the call in its request, from 1."""
        return self.span_id + call_number

    def make_step_id(self, step_number: int) -> int:
        """Returns the id of the span of a step. step_number: the number of the step in its request, from 1."""
        return self.span_id - step_number

    def make_own_headers(self) -> list[tuple[bytes, bytes]]:
        """Returns the headers of a request below the request's own span, in the form of ASGI."""
        return [(name.encode(), value.encode("latin-1")) for name, value in self.make_headers(0)]

    def make_headers(self, call_number: int) -> tuple[tuple[str, str], ...]:
        """Returns the headers for the upstream of a call.

        call_number: the number of the call, as in `make_call_id`; 0: the request's own span is the parent.
        """
        traceparent = f"00-{self.trace_id:032x}-{self.make_call_id(call_number):016x}-01"
        if not self.state:
            return ((TRACEPARENT, traceparent),)
        return ((TRACEPARENT, traceparent), (_TRACESTATE, self.state))


def find_caller_trace(headers: Sequence[tuple[bytes, bytes]]) -> CallerTrace | None:
    """Returns the trace that a request names; None: no valid trace. headers: the headers in the form of ASGI."""
    traceparent: bytes | None = None
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            if traceparent is not None:
                # Several are invalid.
                return None
            traceparent = value
        elif name == b"tracestate":
            states.append(value)
    if traceparent is None:
        return None
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or (match[1] == b"00" and match[5]):
        return None
    state = b",".join(states).decode("latin-1")
    return CallerTrace(
        int(match[2], 16),
        int(match[3], 16),
        bool(int(match[4], 16) & _SAMPLED_FLAG),
        state if len(state) <= _STATE_CHARS else "",
    )


def without_trace(headers: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Returns a copy of headers without the headers of a trace."""
    return tuple(each for each in headers if each[0] not in (TRACEPARENT, _TRACESTATE))
