"""Converts settings, and describes their mistakes: the setting, the value that was seen, and the allowed values.

`gateway.validation` finds faults of names, types and ranges. `check` finds contradictions between settings. A mistake
is the `SettingsError` for one fault or one contradiction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time
from typing import Any, Literal, NamedTuple, get_args, get_origin

from msgspec import Struct

from gateway import validation
from gateway.errors import SettingsError

_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
# The upper bound of durations and prices: seconds of thirty years. TOML has `inf`, which no timer takes.
MAX_NUMBER = 1e9


class Mistakes:
    """Collects the mistakes of several values. `raise_if_any` raises them all as one SettingsError."""

    def __init__(self) -> None:
        self._errors: list[SettingsError] = []

    def add(self, error: SettingsError) -> None:
        """Adds an error, or all the errors that it stands for."""
        self._errors += error.mistakes

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Catches and adds a SettingsError that is raised inside."""
        try:
            yield
        except SettingsError as error:
            self.add(error)

    def raise_if_any(self) -> None:
        """Raises: SettingsError, for all mistakes that were added."""
        if self._errors:
            raise SettingsError.join(self._errors)


def describe_unknown_name(path: str, name: str, known: Collection[str], tables: Collection[str] = ()) -> str:
    """Returns the message for a name that does not exist.

    known: the names that exist there; the message suggests the nearest one.
    tables: the tables in which the name does exist.
    """
    advice = f"known are {', '.join(sorted(known)) or 'none'}"
    if nearest_name := validation.find_nearest_name(name, known):
        advice = f"did you mean {nearest_name!r}?"
    elif tables:
        advice = f"it belongs in {' and '.join(tables)}"
    return f"{path + ': ' if path else ''}unknown name {name!r}; {advice}"


class ReadTables(NamedTuple):
    """The tables of a settings file."""

    # The values of the tables without mistakes.
    values: dict[str, Any]
    # The mistakes of all tables.
    mistakes: list[SettingsError]
    # The names of the tables with mistakes.
    bad_tables: set[str]


def read_tables(parsed: Mapping[str, Any], table_type: type[Struct]) -> ReadTables:
    """Converts the parsed TOML of a whole file."""
    values, faults = validation.convert_fields(parsed, table_type)
    mistakes = [SettingsError(_render_fault(fault, parsed, table_type)) for fault in faults]
    return ReadTables(values, mistakes, bad_tables={str(fault.path[0]) for fault in faults})


def convert_text(text: str, table: type[Struct], key: str, path: str) -> Any:
    """Converts a text of the environment to the type of a field.

    table: the type of the field's table.
    key: the name of the field.
    path: the name of the variable or of the setting, for errors.

    Raises: SettingsError.
    """
    field_type = validation.list_field_types(table)[key]
    value_type = validation.without_annotations(validation.choose_union_member(text, field_type))
    value: Any = text
    if value_type is bool:
        value = _BOOLEANS.get(text.strip().lower(), text)
    elif value_type in (int, float):
        try:
            value = value_type(text)
        except ValueError:
            value = text
    elif get_origin(value_type) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    faults: list[validation.Fault] = []
    converted = validation.convert_collecting(value, field_type, (path,), faults)
    if faults:
        raise SettingsError.join(
            [SettingsError(_render_fault(each, {path: value}, table)) for each in faults]
        )
    return converted


def _render_fault(fault: validation.Fault, root: Mapping[str, Any], table_type: type[Struct]) -> str:
    """Returns the message for a fault.

    root: the value in which the path of the fault begins.
    table_type: the type whose settings are searched for a name that is unknown in its own table.
    """
    expected = fault.expected[0]
    if fault.kind in ("missing", "extra_forbidden"):
        path = _describe_path(fault.path[:-1], root)
        name = str(fault.path[-1])
        if fault.kind == "missing":
            return f"{path}: {name!r} is missing"
        # Only the name of a table's entry may be a setting of another table.
        settings = _list_settings_in(table_type, "", "") if validation.is_struct(expected) else ()
        tables = [table for table, setting in settings if setting == name]
        return describe_unknown_name(path, name, validation.list_allowed_names(expected), tables)
    path = _describe_path(fault.path, root)
    value = fault.value
    value_type = validation.without_annotations(expected)
    if get_origin(value_type) is Literal:
        return f"{path}: expected one of {', '.join(get_args(value_type))}, saw {_describe_value(value)}"
    if get_origin(value_type) is tuple:
        table = ".".join(each for each in fault.path if isinstance(each, str))
        advice = f"; an entry begins with [[{table}]]" if isinstance(value, dict) else ""
        return f"{path}: expected a list, saw {_describe_value(value)}{advice}"
    if get_origin(value_type) is dict or validation.is_struct(value_type):
        return f"{path}: expected a table, saw {_describe_value(value)}"
    return f"{path}: {_render_scalar_fault(value, value_type, expected)}"


def _render_scalar_fault(value: Any, value_type: Any, annotated_type: Any) -> str:
    """Returns the mistake in a text, a number or a boolean: its type, an empty text, a character, its range.

    annotated_type: the same type with its bounds.
    """
    if type(value) is not value_type and not (value_type is float and type(value) is int):
        return f"expected {_TYPE_WORDS[value_type]}, saw {_describe_value(value)}"
    if isinstance(value, str):
        is_empty = not value.strip()
        return "it is empty" if is_empty else "it has a line end or another control character in it"
    low = next((meta.ge for meta in validation.list_metas(annotated_type) if meta.ge is not None), None)
    high = next((meta.le for meta in validation.list_metas(annotated_type) if meta.le is not None), None)
    if high == MAX_NUMBER:
        if value > MAX_NUMBER or (low is None and value < -MAX_NUMBER):
            return f"expected a number up to {MAX_NUMBER:.0f}, saw {value!r}"
        high = None
    # `typing` caches `Meta(ge=0)` and `Meta(ge=0.0)` as one, so the bound may be of the other type.
    low = None if low is None else value_type(low)
    high = None if high is None else value_type(high)
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    return f"expected {bounds}, saw {value!r}"


def _describe_path(path: Iterable[str | int], raw: Any) -> str:
    """Returns where a value is, such as `profiles 'bob'.limit`, or `profiles[0].limit` if the profile has no name.

    raw: the value in which the path begins.
    """
    described = ""
    for step in path:
        raw = raw[step]
        if isinstance(step, str):
            described = f"{described}.{step}" if described else step
            continue
        entry = raw if isinstance(raw, dict) else {}
        names = (entry.get(key) for key in ("name", "alias", "label"))
        name = next((name for name in names if isinstance(name, str)), None)
        described += f"[{step}]" if name is None else f" {name!r}"
    return described


def _list_settings_in(table_type: type[Struct], path: str, header: str) -> Iterator[tuple[str, str]]:
    """Yields the settings of a table and of those in it, each with the header of its table: ("[[models]]", "alias")."""
    for name, field_type in validation.list_field_types(table_type).items():
        if header:
            yield header, name
        for option in validation.list_union_members(field_type):
            entry_type = get_args(option)[0] if get_origin(option) is tuple else option
            if validation.is_struct(entry_type):
                inner_path = f"{path}.{name}" if path else name
                inner_header = f"[{inner_path}]" if entry_type is option else f"[[{inner_path}]]"
                yield from _list_settings_in(entry_type, inner_path, inner_header)


def _describe_value(value: Any) -> str:
    """Returns a wrong value as its error shows it: as TOML has it, and of a list or a table only the type.

    A list or a table may hold a key.
    """
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date | time) else repr(value)
