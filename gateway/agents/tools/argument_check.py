"""Validates the arguments of a call: in this process if the check is surely quick, otherwise in a child process."""

from __future__ import annotations

from typing import Any, NamedTuple

from adapters.types import Json
from gateway.agents.tools.children import ChildLimitExceeded, Children
from gateway.core.turn import arguments as checks
from gateway.core.turn.argument_cost import estimate_cost

# The largest `estimate_cost` at which this process compares arguments with their schema, and the largest at which it
# repairs them with a message for each fault. Measured: a unit takes up to 3 ns to compare and up to 400 ns to repair,
# since errors have copies of the faulty values. So either takes at most 20 ms; usual arguments take 0.05 ms.
_MAX_COMPARE_COST = 4_000_000
_MAX_REPAIR_COST = 50_000
# The most seconds of a check in a child process.
CHECK_S = 2.0


class ValidatedArguments(NamedTuple):
    """The arguments of a call after their check."""

    # The arguments, repaired if their meaning is plain.
    arguments: Json
    # The result of the call, which is not made; None: the arguments fit the schema.
    error: str | None


async def validate_arguments(
    children: Children, tool: str, schema: Json, arguments: Json
) -> ValidatedArguments:
    """Returns the arguments of a call, or the error with which the call fails.

    schema: the schema of the tool's parameters.
    """
    cost = estimate_cost(schema, arguments)
    if cost <= _MAX_REPAIR_COST:
        repaired, fault = checks.repair_arguments(schema, arguments)
    elif cost <= _MAX_COMPARE_COST and checks.are_valid(schema, arguments):
        return ValidatedArguments(arguments, None)
    else:
        repaired, fault = await _repair_in_child(children, schema, arguments)
    error = None if fault is None else f"Error: {fault} in the call of {tool}. Nothing was done."
    return ValidatedArguments(repaired, error)


async def _repair_in_child(children: Children, schema: Json, arguments: Json) -> tuple[Json, str | None]:
    """Returns the repaired arguments and their fault, as a child process finds them; None: there is no fault."""
    question: dict[str, Any] = {"schema": schema, "arguments": arguments}
    try:
        answer = await children.ask("gateway.core.turn.arguments:answer_repair", question, CHECK_S)
    except ChildLimitExceeded as error:
        return arguments, f"the arguments cannot be checked by the tool's schema ({error})"
    return answer["arguments"], answer["error"]
