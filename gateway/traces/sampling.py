"""The standard samplers: which traces are recorded.

A ratio is compared with the lower 64 bits of the trace's id, as SDKs do it, so that every program decides alike about a
trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.core.trace_context import CallerTrace

# The part of a trace's id by which `traceidratio` decides, as OpenTelemetry's SDKs do.
_LOWER_BITS: Final = (1 << 64) - 1
_PARENT_PREFIX: Final = "parentbased_"
SAMPLERS: Final = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
# Returns whether a trace is recorded, given the caller's trace (None: there is none) and the trace's id.
Sampler = Callable[[CallerTrace | None, int], bool]


def make_sampler(name: str, ratio: float) -> Sampler:
    """Returns the sampler of a name. name: one of `SAMPLERS`. ratio: the share of traces, from 0 to 1."""
    root = name.removeprefix(_PARENT_PREFIX)
    bound = {"always_on": 1 << 64, "always_off": 0}.get(root, round(ratio * (1 << 64)))
    if not name.startswith(_PARENT_PREFIX):
        return lambda caller, trace_id: trace_id & _LOWER_BITS < bound

    def follow_caller(caller: CallerTrace | None, trace_id: int) -> bool:
        return trace_id & _LOWER_BITS < bound if caller is None else caller.is_sampled

    return follow_caller
