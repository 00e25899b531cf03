"""Bounds the cost of checking a call's arguments by the tool's JSON schema, before the check.

Neither arguments nor schema are trusted, and nested alternatives can take any time. An expensive check runs in another
process (gateway.agents.tools.argument_check).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf
from typing import Any, Final

from gateway.core import exact_json
from gateway.core.json_limits import is_too_deep
from gateway.core.turn.schema_validator import resolve_pointer

_MAX_SCHEMA_BYTES = 32 * 1024  # the estimate of a larger schema takes more than 30 ms
# The cost of compiling a pattern, in bytes of a schema.
_PATTERN_COST_BYTES = 4096
_MIN_ARGUMENT_BYTES = 64  # counted for any arguments, since the schema is compiled even for none
# The most levels of a schema with its references written out.
_MAX_EXPANDED_LEVELS = 64
# Keywords with a cost that does not follow from the size of the schema, or that decide what a reference leads to.
_UNBOUNDED_KEYWORDS: Final = (
    b'"$id"', b'"$anchor"', b'"$dynamicAnchor"', b'"$dynamicRef"', b'"$recursiveRef"', b'"unevaluated', b'"multipleOf"',
)  # fmt: skip
# The library compares numbers exactly, so 5e-324 and 1e308 take a hundred times as long as others.
_LARGE_EXPONENT: Final = re.compile(rb"[0-9]e[+-]?[0-9]{2}")
# Keywords that forbid nothing, unless they are names of properties.
_ANNOTATIONS: Final = frozenset(("title", "description", "$comment", "default", "examples"))


def estimate_cost(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> float:
    """Returns an upper bound of the work of a check: bytes of the schema times bytes of the arguments.

    The schema is counted with its references written out, and without annotations. The bound is infinite if none is
    known, and 0 if `repair_arguments` refuses the arguments by their depth alone.
    """
    if is_too_deep(arguments):
        return 0
    schema_json = exact_json.dumps(schema)
    arguments_json = exact_json.dumps(arguments)
    if (
        len(schema_json) > _MAX_SCHEMA_BYTES
        or any(word in schema_json for word in _UNBOUNDED_KEYWORDS)
        or _has_large_exponent(schema_json)
        or _has_large_exponent(arguments_json)
    ):
        return inf
    pattern_count = schema_json.count(b'"pattern')  # and patternProperties
    size = _Expansion(schema).size + _PATTERN_COST_BYTES * pattern_count
    return size * (len(arguments_json) + _MIN_ARGUMENT_BYTES)


def _has_large_exponent(data: bytes) -> bool:
    """Returns whether JSON has a number with a large exponent."""
    if _LARGE_EXPONENT.search(data) is None:
        return False
    # The match may be within a text, as ids have such letters.
    outside = data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return _LARGE_EXPONENT.search(b'"'.join(outside)) is not None


class _Expansion:
    """The size in bytes of a schema with each reference replaced by its target; infinite if it has no end."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        # The sizes of schemas by their references.
        self._sizes: dict[str, float] = {}
        # The size of the schema with its references resolved.
        self.size = self._measure(root, 0)

    def _measure(self, part: Any, level: int) -> float:
        """Returns the size of a part of the schema. level: the depth of the part in the expanded schema."""
        if level > _MAX_EXPANDED_LEVELS:
            return inf
        if isinstance(part, str):
            return _measure_json(part) + 1
        if isinstance(part, list):
            return 2 + sum(self._measure(each, level + 1) for each in part)
        if not isinstance(part, dict):
            # A short number or word costs more than its bytes.
            return max(8, _measure_json(part) + 1)
        size = 2 + sum(
            _measure_json(key) + 2 + self._measure(value, level + 1)
            for key, value in part.items()
            if key not in _ANNOTATIONS or isinstance(value, dict | bool)
        )
        reference = part.get("$ref")
        return size + (self._measure_target(reference, level + 1) if isinstance(reference, str) else 0)

    def _measure_target(self, reference: str, level: int) -> float:
        """Returns the size of the schema to which a reference leads. level: the depth of the reference."""
        if reference not in self._sizes:
            self._sizes[reference] = inf  # until it is measured, for references that lead to themselves
            target = resolve_pointer(self._root, reference)
            self._sizes[reference] = inf if target is None else self._measure(target, level)
        return self._sizes[reference]


def _measure_json(value: Any) -> int:
    return len(exact_json.dumps(value))
