"""The fields of a chat completion in which local servers (vLLM, llama.cpp) take a schema or a grammar of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GRAMMAR_FIELDS = frozenset(
    [
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "grammar",
        "json_schema",
    ]
)


def has_grammar(body: Mapping[str, Any]) -> bool:
    """Returns whether a request sets the form of its answer by a schema or a grammar."""
    return not _GRAMMAR_FIELDS.isdisjoint(body) and any(body.get(key) for key in _GRAMMAR_FIELDS)
