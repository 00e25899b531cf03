"""Words the mistakes in settings: where each is, what was seen and what would do.

`gateway.checked` finds mistakes of names, types and ranges, `check` those between settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin

from msgspec import Struct

from gateway.checked import (
    Fault,
    collect,
    collect_one,
    field_types,
    is_struct,
    member_for,
    members,
    metas,
    names,
    nearest,
    plain,
)
from gateway.errors import SettingsError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_TRUTH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
# The largest number in settings that is no count: seconds of thirty years. TOML has `inf`, which no timer takes.
MOST = 1e9


class Mistakes:
    """Gathers the mistakes of several values. `end` raises them all as one SettingsError."""

    def __init__(self) -> None:
        self._found: list[SettingsError] = []

    def add(self, error: SettingsError) -> None:
        self._found += error.mistakes

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except SettingsError as error:
            self.add(error)

    def end(self) -> None:
        if self._found:
            raise SettingsError.of(self._found)


def unknown_name(where: str, name: str, known: Iterable[str], homes: Iterable[str] = ()) -> str:
    """Returns the message for a name that does not exist.

    known: the names that exist there; the message has the nearest one.
    homes: the tables in which the name does exist.
    """
    hint = f"known are {', '.join(sorted(known)) or 'none'}"
    if close := nearest(name, known):
        hint = f"did you mean {close!r}?"
    elif homes:
        hint = f"it stands in {' and '.join(homes)}"
    return f"{where + ': ' if where else ''}unknown name {name!r}; {hint}"


def read_tables(
    raw: Mapping[str, Any], kind: type[Struct]
) -> tuple[dict[str, Any], list[SettingsError], set[str]]:
    """Converts a whole file as TOML gives it.

    Returns the values of the tables without mistakes, the mistakes, and the names of the tables that have some.
    """
    values, faults = collect(raw, kind)
    wrong = [SettingsError(_worded(fault, raw, kind)) for fault in faults]
    return values, wrong, {str(fault.path[0]) for fault in faults}


def convert_text(text: str, table: type[Struct], key: str, where: str) -> Any:
    """Converts a text of the environment to the type of the field `key`. Raises: SettingsError."""
    hint = field_types(table)[key]
    kind = plain(member_for(text, hint))
    value: Any = text
    if kind is bool:
        value = _TRUTH.get(text.strip().lower(), text)
    elif kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            value = text
    elif get_origin(kind) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    faults: list[Fault] = []
    made = collect_one(value, hint, (where,), faults)
    if faults:
        raise SettingsError.of([SettingsError(_worded(each, {where: value}, table)) for each in faults])
    return made


def _worded(fault: Fault, raw: Mapping[str, Any], kind: type[Struct]) -> str:
    """Returns the message for a fault. raw: the file. kind: what it should be."""
    if fault.kind in ("missing", "extra_forbidden"):
        where, name, (owner, *_) = _place(fault.path[:-1], raw), str(fault.path[-1]), fault.expected
        if fault.kind == "missing":
            return f"{where}: {name!r} is missing"
        is_table = is_struct(owner)
        homes = [home for home, known in _tables(kind, "", "") if known == name] if is_table else ()
        return unknown_name(where, name, names(owner), homes)
    where, value = _place(fault.path, raw), fault.value
    (expected, *_) = fault.expected
    inner = plain(expected)
    if get_origin(inner) is Literal:
        return f"{where}: expected one of {', '.join(get_args(inner))}, saw {_seen(value)}"
    if get_origin(inner) is tuple:
        table = ".".join(each for each in fault.path if isinstance(each, str))
        hint = f"; an entry begins with [[{table}]]" if isinstance(value, dict) else ""
        return f"{where}: expected a list, saw {_seen(value)}{hint}"
    if get_origin(inner) is dict or is_struct(inner):
        return f"{where}: expected a table, saw {_seen(value)}"
    return f"{where}: {_plain_words(value, inner, expected)}"


def _plain_words(value: Any, kind: Any, hint: Any) -> str:
    """Returns what is wrong with a text, a number or a truth value."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        return f"expected {_WORDS[kind]}, saw {_seen(value)}"
    if isinstance(value, str):
        is_empty = not value.strip()
        return "it is empty" if is_empty else "it has a line end or another control character in it"
    low = next((each.ge for each in metas(hint) if each.ge is not None), None)
    high = next((each.le for each in metas(hint) if each.le is not None), None)
    if high == MOST:
        if abs(value) > MOST:
            return f"expected a number up to {MOST:.0f}, saw {value!r}"
        high = None
    # `typing` takes `ge=0` and `ge=0.0` for the same, and gives all types the one that was seen first.
    low, high = low if low is None else kind(low), high if high is None else kind(high)
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    return f"expected {bounds}, saw {value!r}"


def _place(path: Iterable[str | int], raw: Any) -> str:
    """Returns where a value is. An item is named where it has a name: `profiles 'bob'`, else `profiles[0]`."""
    where = ""
    for step in path:
        raw = raw[step]
        if isinstance(step, str):
            where = f"{where}.{step}" if where else step
            continue
        named = raw if isinstance(raw, dict) else {}
        name = next(
            (named[key] for key in ("name", "alias", "label") if isinstance(named.get(key), str)), None
        )
        where += f"[{step}]" if name is None else f" {name!r}"
    return where


def _tables(kind: type[Struct], path: str, header: str) -> Iterator[tuple[str, str]]:
    """Yields the settings of a table and of those in it, each with the header of its table: ("[[models]]", "alias")."""
    for name, hint in field_types(kind).items():
        if header:
            yield header, name
        for option in members(hint):
            inner = get_args(option)[0] if get_origin(option) is tuple else option
            if is_struct(inner):
                under = f"{path}.{name}" if path else name
                yield from _tables(inner, under, f"[{under}]" if inner is option else f"[[{under}]]")


def _seen(value: Any) -> str:
    """Returns a wrong value as its error shows it. Of a list or a table only its type: it may hold a key."""
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
