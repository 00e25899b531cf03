"""The error for a fault that a check of a body or a query has found."""

from __future__ import annotations

from gateway.errors import BadRequest
from gateway.validation import Fault, list_literal_values


def make_fault_error(fault: Fault) -> BadRequest:
    """Returns the error for a fault in a body or a query. It names the field."""
    name = ".".join(map(str, fault.path)) or None
    if fault.kind == "extra_forbidden":
        hint = f" Did you mean {fault.nearest}?" if fault.nearest else ""
        return BadRequest(f"Unknown field: {name}.{hint}", param=name)
    if fault.kind == "missing":
        return BadRequest(f"The field {name} is missing.", param=name)
    choices = ", ".join(list_literal_values(fault.expected)) if fault.kind == "enum" else ""
    hint = f" It is one of: {choices}." if choices else ""
    return BadRequest(f"{name or 'The body'}: {fault.message}.{hint}", param=name)
