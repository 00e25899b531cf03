"""The metrics of the GenAI conventions: the times and tokens of calls of models, and the times of tools.

The receipts of requests and of work that have ended are counted.
"""

from __future__ import annotations

from typing import Final

from gateway.core.memory.builtin import BUILT_IN_TOOLS
from gateway.core.memory.memory_tools import MEMORY_TOOLS
from gateway.core.usage.gen_ai import (
    CANCELLED_FAILURE,
    OTHER,
    ModelNames,
    name_error_type,
    name_operation,
    name_provider,
)
from gateway.metrics import Metrics
from gateway.run.receipt import CLIENT_GONE, Receipt
from gateway.run.upstream_call import UpstreamCall
from gateway.settings import Settings

# The upper bounds of the histograms' buckets, as the conventions advise.
_DURATION_BOUNDS_S: Final = tuple(0.01 * 2**n for n in range(14))
_FIRST_CHUNK_BOUNDS_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
)  # fmt: skip
# The labels by OpenTelemetry's names, with underscores.
_LABELS: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type")
# The tools with names that are labels; all others are one label.
_GATEWAY_TOOLS: Final = frozenset((*MEMORY_TOOLS, *BUILT_IN_TOOLS))


def list_model_names(settings: Settings) -> set[str]:
    """Returns all names of models in the settings: aliases, and the names that upstreams know."""
    names: set[str | None] = {settings.background_model, settings.memory.embedder}
    for model in settings.models:
        names |= {model.alias, model.model, *(deployment.model for deployment in model.deployments)}
    names |= {profile.model for profile in settings.profiles}
    return {name for name in names if name}


def classify_call_failure(call: UpstreamCall, receipt: Receipt) -> str:
    """Returns the value of `error.type` for a call: one of a closed list, or "" if the call has not failed.

    A call that the client broke off gets `CANCELLED_FAILURE`.
    """
    has_failed = bool(call.failure) or call.status >= 400
    is_unfinished = call is receipt.last_call and call.counts is None and not has_failed
    if receipt.status == CLIENT_GONE and is_unfinished:
        return CANCELLED_FAILURE
    return name_error_type(call.failure, call.status)


class GenAIMetrics:
    """Counts what requests and work used, in metrics of the process."""

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        # The names of models as labels.
        self._models = ModelNames(list_model_names(settings))
        # The seconds of calls of models.
        self._durations = metrics.add_histogram(
            "gen_ai_client_inference_duration_seconds",
            "Time of calls of models.",
            _DURATION_BOUNDS_S,
            *_LABELS,
        )
        # The seconds until the first chunk of a stream.
        self._first_chunks = metrics.add_histogram(
            "gen_ai_client_inference_time_to_first_chunk_seconds",
            "Time to the first chunk of a stream.",
            _FIRST_CHUNK_BOUNDS_S,
            *_LABELS,
        )
        # The kinds of tokens, in the order of `TokenCounts`.
        kinds = ("input", "output", "cache_read_input", "cache_write_input", "reasoning_output")
        # The tokens of calls, by kind.
        self._tokens = [
            metrics.add_counter(
                f"gen_ai_client_inference_usage_{kind}_tokens", "Tokens as upstreams reported them.", *_LABELS
            )
            for kind in kinds
        ]
        # The seconds of the gateway's own tools.
        self._tools = metrics.add_histogram(
            "gen_ai_execute_tool_duration_seconds", "Time of tools.", _DURATION_BOUNDS_S, "gen_ai_tool_name"
        )

    def count(self, receipt: Receipt) -> None:
        """Counts the calls of a request that has ended, or of work that has no request."""
        for call in receipt.calls:
            if call.upstream and (operation := name_operation(call.path)):
                self._count_call(call, operation, classify_call_failure(call, receipt))
        for step in receipt.steps:
            if step.kind == "execute_tool":
                name = step.name if step.name in _GATEWAY_TOOLS else OTHER
                self._tools.observe(step.ended_at - step.started_at, (name,))

    def _count_call(self, call: UpstreamCall, operation: str, error: str) -> None:
        """Counts a call. error: the value of `error.type`; "": the call has not failed."""
        model = self._models.choose_label(call.model, call.status)
        labels = operation, name_provider(call.provider), model, error
        self._durations.observe((call.ended_at or call.started_at) - call.started_at, labels)
        if call.is_streamed and call.first_at:
            self._first_chunks.observe(call.first_at - call.started_at, labels)
        if call.counts is not None:
            for counter, tokens in zip(self._tokens, call.counts, strict=True):
                if tokens:
                    counter.inc(*labels, by=tokens)
