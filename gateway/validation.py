"""Converts parsed JSON or TOML to values of a type, or finds the mistakes, each with its path.

A type defines what is allowed: mostly a `msgspec.Struct` with fields that are annotated with `msgspec.Meta`. A `Fault`
has msgspec's message, which is not for users: settings, operations and each dialect have messages of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")
Path = tuple[str | int, ...]

# The end of one of msgspec's messages, such as "Expected `str`, got `int` - at `$.blocks[0].label`".
_AT_PATH = re.compile(r" - at `(?:key in )?\$(.*)`$")
# A step of the path in such an end.
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
# The first name that a message quotes.
_NAME = re.compile(r"`([^`]+)`")


class Fault(Struct, frozen=True):
    """A mistake in a request or in settings."""

    # The keys and indices that lead to the value, or to the name that is missing or unknown.
    path: Path
    # A sentence in msgspec's words.
    message: str
    # "missing", "extra_forbidden" (an unknown name), "type_error" (a wrong type or out of bounds), "enum" (none of the
    # choices) or another name of pydantic's, since clients of the agents API know those.
    kind: str = "value_error"
    # The value at the path. If a name is missing: the object that lacks it.
    value: Any = None
    # The types that are declared at the path. If a name is missing or unknown: the types of its object.
    expected: tuple[Any, ...] = ()
    # If a name is unknown: the known name that is most like it, if there is one.
    nearest: str | None = None


class InvalidValue(ValueError):
    """A value is not allowed by its type. fault: the first mistake in it."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


def convert(
    value: Any, value_type: type[T], path: Path = (), *, strict: bool = True, str_keys: bool = False
) -> T:
    """Converts parsed JSON or TOML to a value of a type.

    path: the keys and indexes that lead to the value, for the error.
    strict: True if text is refused in place of a number or a boolean.
    str_keys: True if keys of the value are text, as in JSON, also where the type has numbers.

    Raises: InvalidValue, for the first mistake.
    """
    try:
        return msgspec.convert(value, value_type, strict=strict, str_keys=str_keys)
    except msgspec.ValidationError as error:
        raise InvalidValue(str(error), make_fault(error, value, value_type, path)) from error


def make_fault(error: msgspec.ValidationError, value: Any, value_type: Any, path: Path) -> Fault:
    """Returns the fault that msgspec found in a value. path: the keys and indexes that lead to the value."""
    message = str(error)
    steps: list[str | int] = []
    if location := _AT_PATH.search(message):
        message = message[: location.start()]
        steps = [
            key or (int(index) if index.isdigit() else index) for key, index in _STEP.findall(location[1])
        ]
    for step in steps:
        value = _find_child(value, step)
    fault_path = (*path, *steps)
    expected = _list_types_at(value_type, steps)
    shown_message = message.replace("`", "'")
    name = _NAME.search(message)
    if name and message.startswith("Object missing required field"):
        return Fault((*fault_path, name[1]), shown_message, kind="missing", value=value, expected=expected)
    if name and message.startswith("Object contains unknown field"):
        return _make_unknown_name_fault(
            (*fault_path, name[1]), shown_message, _find_child(value, name[1]), expected
        )
    kind = "value_error"
    if message.startswith("Expected"):
        kind = "type_error"
    elif message.startswith("Invalid") and list_literal_values(expected):
        kind = "enum"
    return Fault(fault_path, shown_message, kind=kind, value=value, expected=expected)


def _make_unknown_name_fault(path: Path, message: str, value: Any, expected: tuple[Any, ...]) -> Fault:
    """Returns the fault of an unknown name. expected: the types of the object that has the name."""
    names = [name for hint in expected for name in list_allowed_names(hint)]
    return Fault(
        path,
        message,
        kind="extra_forbidden",
        value=value,
        expected=expected,
        nearest=find_nearest_name(str(path[-1]), names),
    )


def find_nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is most like an unknown one, or None if no known name is like it."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)


def convert_fields(raw: Mapping[str, Any], struct_type: type[Struct]) -> tuple[dict[str, Any], list[Fault]]:
    """Converts the fields of an object, and finds all mistakes. (`convert` finds only the first.)

    Returns the values of the fields that have no mistake, by name, and the faults in their order.
    """
    faults: list[Fault] = []
    return _collect_fields(raw, struct_type, (), faults), faults


def convert_collecting(value: Any, hint: Any, path: Path, faults: list[Fault]) -> Any:
    """Converts a value, and adds its mistakes to the faults. Do not use the result if a fault was added."""
    hint = choose_union_member(value, hint)
    value_type = without_annotations(hint)
    origin = get_origin(value_type)
    type_args = get_args(value_type)
    if is_struct(value_type) and isinstance(value, dict):
        fault_count = len(faults)
        values = _collect_fields(value, value_type, path, faults)
        return value_type(**values) if len(faults) == fault_count else None
    if origin in (list, tuple) and isinstance(value, list):
        item_type = type_args[0]
        return origin(
            convert_collecting(item, item_type, (*path, index), faults) for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, dict):
        entries: dict[str, Any] = {}
        known_keys = list_allowed_names(value_type)
        for key, item in value.items():
            if known_keys and key not in known_keys:
                faults.append(
                    _make_unknown_name_fault((*path, key), f"Unknown name '{key}'", item, (value_type,))
                )
            else:
                entries[key] = convert_collecting(item, type_args[1], (*path, key), faults)
        return entries
    try:
        return convert(value, hint, path)
    except InvalidValue as error:
        faults.append(error.fault)
        return None


def _collect_fields(
    raw: Mapping[str, Any], struct_type: Any, path: Path, faults: list[Fault]
) -> dict[str, Any]:
    """Returns the values of the fields that have no mistake, and adds the mistakes of the others to `faults`."""
    hints = list_field_types(struct_type)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        fault_count = len(faults)
        if name not in hints:
            faults.append(
                _make_unknown_name_fault((*path, name), f"Unknown name '{name}'", value, (struct_type,))
            )
            continue
        converted = convert_collecting(value, hints[name], (*path, name), faults)
        if len(faults) == fault_count:
            values[name] = converted
    for field in msgspec.structs.fields(struct_type):
        if field.required and field.name not in raw:
            faults.append(
                Fault(
                    (*path, field.name), "Field required", kind="missing", value=raw, expected=(struct_type,)
                )
            )
    return values


# -- types


def is_struct(hint: Any) -> TypeGuard[type[Struct]]:
    """Returns whether a type is a struct."""
    return isinstance(hint, type) and issubclass(hint, Struct)


@cache
def list_field_types(struct_type: type[Struct]) -> dict[str, Any]:
    """Returns the types of a struct's fields by name, with their annotations."""
    hints = get_type_hints(struct_type, include_extras=True)
    return {name: hints[name] for name in struct_type.__struct_fields__}


def list_allowed_names(hint: Any) -> tuple[str, ...]:
    """Returns the names that an object of this type may have, or () if it may have any name."""
    hint = without_annotations(hint)
    if is_struct(hint):
        return hint.__struct_encode_fields__
    keys = get_args(hint)[:1] if get_origin(hint) is dict else ()
    return get_args(keys[0]) if keys and get_origin(keys[0]) is Literal else ()


def list_metas(hint: Any) -> Iterator[Meta]:
    """Yields the annotations of a type and of the members of its union."""
    if get_origin(hint) is Annotated:
        yield from (meta for meta in hint.__metadata__ if isinstance(meta, Meta))
        yield from list_metas(hint.__origin__)
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from list_metas(part)


def without_annotations(hint: Any) -> Any:
    """Returns a type without its annotations."""
    return without_annotations(hint.__origin__) if get_origin(hint) is Annotated else hint


def list_union_members(hint: Any) -> Iterator[Any]:
    """Yields the members of a union, or a type that is no union itself."""
    if get_origin(without_annotations(hint)) in (Union, UnionType):
        for member in get_args(without_annotations(hint)):
            yield from list_union_members(member)
    else:
        yield hint


def choose_union_member(value: Any, hint: Any) -> Any:
    """Returns the first member of a union that fits a value's JSON type, or the first member if none fits."""
    if get_origin(without_annotations(hint)) not in (Union, UnionType):
        return hint
    options = [member for member in list_union_members(hint) if member is not type(None)]
    by_type: dict[Any, Any] = {str: Literal, list: tuple, dict: dict}
    origin = by_type.get(type(value))
    for member in options:
        if get_origin(without_annotations(member)) is origin or (origin is dict and is_struct(member)):
            return member
    return options[0]


def _list_types_at(value_type: Any, path: Iterable[str | int]) -> tuple[Any, ...]:
    """Returns the types that are declared at a path within a type, the members of unions one by one."""
    hints = [*list_union_members(value_type)]
    for step in path:
        inner_hints = [inner for hint in hints for inner in _list_types_within(hint, step)]
        hints = [member for inner in inner_hints for member in list_union_members(inner)]
    return tuple(hints)


def _list_types_within(hint: Any, step: str | int) -> Iterator[Any]:
    """Yields the type that is declared one step within a type, if there is one."""
    hint = without_annotations(hint)
    if is_struct(hint):
        config = hint.__struct_config__
        if config.tag_field == step:
            yield Literal[config.tag]
        elif step in hint.__struct_fields__:
            yield list_field_types(hint)[str(step)]
    elif get_origin(hint) is tuple:
        yield get_args(hint)[0]
    elif get_origin(hint) in (list, dict):
        yield get_args(hint)[-1]


def list_literal_values(hints: Iterable[Any]) -> list[str]:
    """Returns the values of the literals among types, in their order."""
    literals = [hint for hint in map(without_annotations, hints) if get_origin(hint) is Literal]
    return list(dict.fromkeys(str(value) for hint in literals for value in get_args(hint)))


def _find_child(value: Any, key: str | int) -> Any:
    """Returns the value at a key or index, or None if there is none."""
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        return None
