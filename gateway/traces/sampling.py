"""The standard samplers: which traces are recorded.

A ratio decides by the lower 64 bits of the trace's id, as SDKs do, so that all of one trace decide alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.core.trace_context import CallerTrace

_LOWER: Final = (1 << 64) - 1
_PARENT_PREFIX: Final = "parentbased_"
SAMPLERS: Final = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
# Returns whether a trace is recorded, by its caller's and its own id.
Samples = Callable[[CallerTrace | None, int], bool]


def make_sampler(name: str, ratio: float) -> Samples:
    """Returns what decides. name: one of `SAMPLERS`. ratio: the share of traces, from 0 to 1."""
    root = name.removeprefix(_PARENT_PREFIX)
    bound = {"always_on": 1 << 64, "always_off": 0}.get(root, round(ratio * (1 << 64)))
    if not name.startswith(_PARENT_PREFIX):
        return lambda caller, trace_id: trace_id & _LOWER < bound

    def samples(caller: CallerTrace | None, trace_id: int) -> bool:
        return trace_id & _LOWER < bound if caller is None else caller.is_sampled

    return samples
