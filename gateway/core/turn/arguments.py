"""Checks a call's arguments by the tool's JSON schema, and repairs values that a model wrote as text.

A check may take any time; `argument_cost.estimate_cost` bounds it beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.core import exact_json
from gateway.core.json_limits import is_too_deep
from gateway.core.turn.argument_error import render_error
from gateway.core.turn.schema_validator import compile_schema, repair_schema

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator


class RepairedArguments(NamedTuple):
    """A call's arguments as the model meant them."""

    # The repaired arguments.
    arguments: dict[str, Any]
    # The first fault that remains, such as "`a.b[2]` must be an integer, and is 'x'"; None: no fault remains.
    error: str | None


def are_valid(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Returns whether arguments fit a schema as they are; `repair_arguments` may make others fit."""
    try:
        return compile_schema(schema).is_valid(arguments)
    except ValueError:
        return False


def repair_arguments(schema: Mapping[str, Any], arguments: dict[str, Any]) -> RepairedArguments:
    """Returns the arguments as the model meant them.

    Small models write a number, a list or true as a text ("4"). As in Letta's server, such an argument is parsed if the
    text does not fit the schema and its value does. A text within an argument's list or object stays a text.
    """
    # This is checked before the schema is compiled: `estimate_cost` is 0 for such arguments, whatever the schema costs.
    if is_too_deep(arguments):
        return RepairedArguments(
            arguments, "the arguments have too many lists and objects within one another"
        )
    repaired_schema = repair_schema(schema)
    if repaired_schema is None:
        return RepairedArguments(arguments, None)
    validator = repaired_schema.validator
    if validator.is_valid(arguments):
        return RepairedArguments(arguments, None)
    parsed_arguments = _parse_json_texts(validator, arguments)
    error = _find_first_error(validator, parsed_arguments)
    message = None if error is None else render_error(error, repaired_schema.schema)
    return RepairedArguments(parsed_arguments, message)


def answer_repair(question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `repair_arguments`, for another process. question: {"schema", "arguments"}."""
    return repair_arguments(question["schema"], question["arguments"])._asdict()


def _parse_json_texts(validator: Validator, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments. A text that does not fit the schema is replaced by the JSON value in it, if that fits."""
    parsed: dict[str, Any] = {}
    for name, text in arguments.items():
        if isinstance(text, str):
            with suppress(ValueError):
                value = exact_json.loads(text)
                if not is_too_deep(value):
                    parsed[name] = value
    wrong_texts = _find_wrong_names(validator, {name: arguments[name] for name in parsed})
    candidates = {name: parsed[name] for name in wrong_texts}
    wrong_values = _find_wrong_names(validator, candidates)
    return {**arguments, **{name: value for name, value in candidates.items() if name not in wrong_values}}


def _find_wrong_names(validator: Validator, arguments: dict[str, Any]) -> set[str]:
    """Returns the names of the arguments that do not fit by themselves."""
    paths = (error.instance_path for error in validator.iter_errors(arguments)) if arguments else ()
    return {str(path[0]) for path in paths if path and path[0] in arguments}


def _find_first_error(validator: Validator, arguments: dict[str, Any]) -> ValidationError | None:
    """Returns the first fault of arguments, or None if they are valid."""
    try:
        validator.validate(arguments)
    except ValueError as error:
        return error  # type: ignore[return-value]  # the library's, of which a ValueError is the base
    return None
