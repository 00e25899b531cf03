"""Converts settings, and describes their mistakes: the setting, the value that was seen, and the allowed values.

`gateway.validation` finds faults of names, types and ranges. `check` finds contradictions between settings. A mistake
is the `SettingsError` for one fault or one contradiction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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


def describe_unknown_name(path: str, name: str, known: Iterable[str], tables: Iterable[str] = ()) -> str:
    """Returns the message for a name that does not exist.

    known: the names that exist there; the message suggests the nearest one.
    tables: the tables in which the name does exist.
    """
    hint = f"known are {', '.join(sorted(known)) or 'none'}"
    if close := validation.find_nearest_name(name, known):
        hint = f"did you mean {close!r}?"
    elif tables:
        hint = f"it belongs in {' and '.join(tables)}"
    return f"{path + ': ' if path else ''}unknown name {name!r}; {hint}"


class ReadTables(NamedTuple):
    """The tables of a settings file."""

    # The values of the tables without mistakes.
    values: dict[str, Any]
    mistakes: list[SettingsError]
    # The names of the tables with mistakes.
    bad_tables: set[str]


def read_tables(parsed: Mapping[str, Any], table_type: type[Struct]) -> ReadTables:
    """Converts the parsed TOML of a whole file."""
    values, faults = validation.convert_fields(parsed, table_type)
    mistakes = [SettingsError(_render_fault(fault, parsed, table_type)) for fault in faults]
    return ReadTables(values, mistakes, bad_tables={str(fault.path[0]) for fault in faults})


def convert_text(text: str, table: type[Struct], key: str, path: str) -> Any:
    """Converts a text of the environment to the type of the field `key`. Raises: SettingsError."""
    hint = validation.list_field_types(table)[key]
    target = validation.without_annotations(validation.choose_union_member(text, hint))
    value: Any = text
    if target is bool:
        value = _BOOLEANS.get(text.strip().lower(), text)
    elif target in (int, float):
        try:
            value = target(text)
        except ValueError:
            value = text
    elif get_origin(target) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    faults: list[validation.Fault] = []
    converted = validation.convert_collecting(value, hint, (path,), faults)
    if faults:
        raise SettingsError.join(
            [SettingsError(_render_fault(each, {path: value}, table)) for each in faults]
        )
    return converted


def _render_fault(fault: validation.Fault, root: Mapping[str, Any], root_type: type[Struct]) -> str:
    """Returns the message for a fault. root: the value in which the path begins, which should be of `root_type`."""
    expected = fault.expected[0]
    if fault.kind in ("missing", "extra_forbidden"):
        path = _describe_path(fault.path[:-1], root)
        name = str(fault.path[-1])
        if fault.kind == "missing":
            return f"{path}: {name!r} is missing"
        # Only the name of a table's entry may be a setting of another table.
        settings = _list_settings_in(root_type, "", "") if validation.is_struct(expected) else ()
        tables = [table for table, setting in settings if setting == name]
        return describe_unknown_name(path, name, validation.list_allowed_names(expected), tables)
    path = _describe_path(fault.path, root)
    value = fault.value
    inner = validation.without_annotations(expected)
    if get_origin(inner) is Literal:
        return f"{path}: expected one of {', '.join(get_args(inner))}, saw {_describe_value(value)}"
    if get_origin(inner) is tuple:
        table = ".".join(each for each in fault.path if isinstance(each, str))
        hint = f"; an entry begins with [[{table}]]" if isinstance(value, dict) else ""
        return f"{path}: expected a list, saw {_describe_value(value)}{hint}"
    if get_origin(inner) is dict or validation.is_struct(inner):
        return f"{path}: expected a table, saw {_describe_value(value)}"
    return f"{path}: {_render_scalar_fault(value, inner, expected)}"


def _render_scalar_fault(value: Any, target: Any, hint: Any) -> str:
    """Returns the mistake in a text, a number or a boolean: its type, an empty text, a character, its range.

    hint: the type as annotated, with the bounds.
    """
    if type(value) is not target and not (target is float and type(value) is int):
        return f"expected {_TYPE_WORDS[target]}, saw {_describe_value(value)}"
    if isinstance(value, str):
        is_empty = not value.strip()
        return "it is empty" if is_empty else "it has a line end or another control character in it"
    low = next((each.ge for each in validation.list_metas(hint) if each.ge is not None), None)
    high = next((each.le for each in validation.list_metas(hint) if each.le is not None), None)
    if high == MAX_NUMBER:
        if abs(value) > MAX_NUMBER:
            return f"expected a number up to {MAX_NUMBER:.0f}, saw {value!r}"
        high = None
    # `typing` caches `Meta(ge=0)` and `Meta(ge=0.0)` as one, so the bound may be of the other type.
    low = None if low is None else target(low)
    high = None if high is None else target(high)
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    return f"expected {bounds}, saw {value!r}"


def _describe_path(path: Iterable[str | int], raw: Any) -> str:
    """Returns where a value is, such as `profiles 'bob'.limit`, or `profiles[0].limit` if the profile has no name."""
    described = ""
    for step in path:
        raw = raw[step]
        if isinstance(step, str):
            described = f"{described}.{step}" if described else step
            continue
        named = raw if isinstance(raw, dict) else {}
        name = next(
            (named[key] for key in ("name", "alias", "label") if isinstance(named.get(key), str)), None
        )
        described += f"[{step}]" if name is None else f" {name!r}"
    return described


def _list_settings_in(table_type: type[Struct], path: str, header: str) -> Iterator[tuple[str, str]]:
    """Yields the settings of a table and of those in it, each with the header of its table: ("[[models]]", "alias")."""
    for name, hint in validation.list_field_types(table_type).items():
        if header:
            yield header, name
        for option in validation.list_union_members(hint):
            inner = get_args(option)[0] if get_origin(option) is tuple else option
            if validation.is_struct(inner):
                under = f"{path}.{name}" if path else name
                yield from _list_settings_in(
                    inner, under, f"[{under}]" if inner is option else f"[[{under}]]"
                )


def _describe_value(value: Any) -> str:
    """Returns a wrong value as its error shows it: of a list or a table only the type, since it may hold a key."""
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else repr(value)
