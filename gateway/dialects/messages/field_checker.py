"""Checks a Messages request's fields by name: a field without a place in chat completions is refused or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from adapters.types import Json
from gateway.dialects.fields import QUOTED_CHARS, FieldPath
from gateway.dialects.messages.errors import make_untranslatable_error
from gateway.errors import BadRequest

# Fields of blocks and tools without an effect on the reply of a chat completion.
_INNER_FIELDS_WITHOUT_EFFECT: Final = frozenset(
    (
        "cache_control",
        "citations",
        "caller",
        "allowed_callers",
        "defer_loading",
        "eager_input_streaming",
        "input_examples",
    )
)


class FieldChecker:
    """Checks the fields of a request, and collects the fields that are left out.

    is_lenient: True to let all fields pass: the request goes upstream as it is, and the upstream judges it.
    """

    def __init__(self, *, is_lenient: bool) -> None:
        self.is_lenient = is_lenient
        # The names of the fields that are left out, in the order in which they came; the reply does not depend on these
        # fields. A lenient checker notes the parts without which no model of another dialect can answer.
        self.left_out: dict[str, None] = {}

    @contextmanager
    def reading(self, name: str, json: Json) -> Iterator[None]:
        """Leaves out a field that the `with` block refuses, if the checker is lenient: the upstream may take the field.

        name: the field of the request that the `with` block translates.
        json: the request.
        """
        try:
            yield
        except BadRequest:
            if not self.is_lenient:
                raise
            if name in json:
                self.left_out[name] = None

    def check(self, value: Json, known_fields: frozenset[str], path: FieldPath) -> None:
        """Refuses a field that is not known, unless it is null or without effect. path: the path to `value`.

        Raises: BadRequest.
        """
        if self.is_lenient or known_fields.issuperset(value):
            return
        for key, field_value in value.items():
            # A block that Anthropic's SDK has read from a reply has all fields, most of them null.
            if field_value is None:
                continue
            if key in _INNER_FIELDS_WITHOUT_EFFECT:
                self.left_out[key] = None
            elif key not in known_fields:
                raise make_untranslatable_error(f"{path}.{key[:QUOTED_CHARS]}")
