"""Writes the fields of one span, as OTLP has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.traces import names

# The largest integer of protobuf. A client may name a higher bound of tokens.
_MAX_INT: Final = (1 << 63) - 1


class SpanWriter:
    """Writes the attributes of one span."""

    __slots__ = ("proto",)

    def __init__(self, span: Span) -> None:
        self.proto = span

    def add_text(self, key: str, value: str | None) -> None:
        """Adds a text unless it is empty or None."""
        if value:
            add_text_attribute(self.proto.attributes, key, value)

    def add_texts(self, key: str, values: Sequence[str]) -> None:
        """Adds a list of texts unless it is empty."""
        if values:
            attribute = self.proto.attributes.add()
            attribute.key = key
            for value in values:
                attribute.value.array_value.values.add().string_value = value

    def add_number(self, key: str, value: int, *, keeps_zero: bool = False) -> None:
        """Adds an integer. keeps_zero: True if 0 is a value, too; False: 0 is left out."""
        if value or keeps_zero:
            attribute = self.proto.attributes.add()
            attribute.key = key
            attribute.value.int_value = min(value, _MAX_INT)

    def add_real(self, key: str, value: float) -> None:
        """Adds a number that may have a fraction."""
        attribute = self.proto.attributes.add()
        attribute.key = key
        attribute.value.double_value = value

    def add_flag(self, key: str, value: bool) -> None:
        """Adds a boolean."""
        attribute = self.proto.attributes.add()
        attribute.key = key
        attribute.value.bool_value = value

    def fail(self, failure: str) -> None:
        """Marks the span as failed. failure: a word of a closed list; "": the span has not failed."""
        if failure:
            self.add_text(names.ERROR_TYPE, failure)
            self.proto.status.code = Status.STATUS_CODE_ERROR


def add_text_attribute(attributes: Any, key: str, value: str) -> None:
    """Adds an attribute to the attributes of a span or of an event."""
    attribute = attributes.add()
    attribute.key = key
    attribute.value.string_value = value


def encode_trace_id(trace_id: int) -> bytes:
    """Returns the id of a trace in the form of OTLP."""
    return trace_id.to_bytes(16, "big")


def encode_span_id(span_id: int) -> bytes:
    """Returns the id of a span in the form of OTLP."""
    return span_id.to_bytes(8, "big")
