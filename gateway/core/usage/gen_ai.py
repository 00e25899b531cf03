"""Calls of upstreams by the names of the GenAI conventions, for metrics and traces alike.

Every value is a number or from a closed list. A name that a client chose is used only if an upstream has accepted it.
(opentelemetry.io/docs/specs/semconv/gen-ai)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from gateway.masks import mask_keys

# The label of all names that have no label of their own.
OTHER: Final = "other"
# The failure of a call that its client broke off.
CANCELLED_FAILURE: Final = "cancelled"
# The names of operations in the conventions, by the paths of calls.
_OPERATIONS: Final = {
    "/chat/completions": "chat",
    "/messages": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
# The names of providers in the conventions, by the kinds of upstreams, where the two differ.
_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
# The reasons why a call brought no whole reply, by the names of failover.
_FAILURES: Final = frozenset(("broke", "timeout", "unreachable", CANCELLED_FAILURE))
# A status as a failure.
_STATUS: Final = re.compile(r"[1-5]\d\d")
# The finish reasons of the three dialects.
FINISH_REASONS: Final = frozenset(
    (
        *("stop", "length", "tool_calls", "content_filter", "function_call"),
        *("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal"),
        "model_context_window_exceeded",
        *("completed", "incomplete", "failed", "cancelled", "max_output_tokens"),
    )
)
# The most characters of a model's name. Clients can make up names; real names are shorter. Not measured.
MODEL_CHARS: Final = 128
# The most names that the settings do not have, since each name is a series of the metrics. Not measured.
_MAX_LABELS: Final = 200


def name_operation(path: str) -> str:
    """Returns the name of a call's operation; "": it has no name. path: the path below the upstream's base URL."""
    return _OPERATIONS.get(path) or _OPERATIONS.get(path.partition("?")[0], "")


def name_provider(kind: str) -> str:
    """Returns the provider's name. kind: the kind of the upstream in the settings."""
    return _PROVIDERS.get(kind, kind)


@lru_cache(maxsize=256)
def name_error_type(failure: str, status: int = 0) -> str:
    """Returns the kind of an error, from a closed list; "": no error.

    failure: the receipt's name of the failure, or a status as text; "": no failure.
    status: the status of the response; 0: no response.
    """
    if failure:
        return failure if failure in _FAILURES or _STATUS.fullmatch(failure) else OTHER
    return str(status) if status >= 400 else ""


class ModelNames:
    """The names of models that metrics and spans may show."""

    def __init__(self, configured: Iterable[str]) -> None:
        """Begins with the configured names as labels. configured: the names of models in the settings."""
        # The names of models in the settings.
        self._configured = frozenset(configured)
        # The names that are labels so far.
        self._labels = {name[:MODEL_CHARS] for name in self._configured}
        # The most labels.
        self._max_labels = len(self._labels) + _MAX_LABELS

    def choose_name(self, model: str, status: int) -> str:
        """Returns a model's name if the settings have it or an upstream has accepted it, else `other`.

        status: the status of the upstream's response; 0: no response came.
        """
        if model in self._configured:
            return model[:MODEL_CHARS]
        if not model or not 0 < status < 400:
            return OTHER
        name = model[:MODEL_CHARS]
        raw_name = name.encode(errors="replace")
        return name if mask_keys(raw_name) == raw_name else OTHER

    def choose_label(self, model: str, status: int) -> str:
        """Returns the model's name as a label: `other` once there are too many names that the settings do not have."""
        if model in self._labels:
            return model
        name = self.choose_name(model, status)
        if name not in self._labels:
            if len(self._labels) >= self._max_labels:
                return OTHER
            self._labels.add(name)
        return name
