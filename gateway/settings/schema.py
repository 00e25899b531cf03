"""Checks raw settings against dataclasses: names, types, ranges, with errors that say where and what.

It knows nothing of any particular setting. A field's type says what its value must be, `ranged` adds bounds, and a
text that is no `prose` has neither line ends in it nor nothing.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gateway.errors import SettingsError

T = TypeVar("T")
# Of a number that is no count: seconds of thirty years. TOML has `inf`, which no timer takes.
_MOST = 1e9
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What a place has beside the names of its tables: an entry's name or number.
_PLACE = re.compile(r" '[^']*'|\[\d+\]")
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


def ranged(default: Any, low: float, high: float | None = None) -> Any:
    """Returns a dataclass field whose number must lie between low and high, both included."""
    return field(default=default, metadata={"low": low, "high": high})


def prose(default: Any = MISSING) -> Any:
    """Returns a dataclass field whose text may be empty, and have lines."""
    return field(default=default, metadata={"prose": True})


def unknown_name(where: str, name: str, known: Iterable[str], homes: Iterable[str] = ()) -> str:
    """Returns the message for a name that does not exist, with the nearest one that does. homes: where it does."""
    hint = f"known are {', '.join(sorted(known)) or 'none'}"
    if close := difflib.get_close_matches(name, list(known), n=1, cutoff=0.6):
        hint = f"did you mean {close[0]!r}?"
    elif homes:
        hint = f"it stands in {' and '.join(homes)}"
    return f"{where + ': ' if where else ''}unknown name {name!r}; {hint}"


def former_name(where: str, name: str, instead: str) -> str:
    """Returns the message for a name that an earlier version had. instead: what to do now."""
    return f"{where}: {name!r} is no setting any more: {instead}"


def build(
    cls: type[T], raw: Mapping[str, Any], former: Mapping[str, str]
) -> tuple[T, dict[str, SettingsError]]:
    """Makes `cls` of a whole file as TOML gives it, all of whose fields have defaults.

    former: settings of earlier versions, as table.name, with what to do instead. Returns also the mistakes, each by the
    table in which it is; such a table has its defaults.
    """
    values, wrong = {}, dict[str, SettingsError]()
    for key, value in raw.items():
        try:
            values[key] = _fields(cls, {key: value}, "")[key]
        except SettingsError as error:
            wrong[key] = SettingsError.of([_worded(cls, each, former) for each in error.mistakes])
    return cls(**values), wrong


def _worded(cls: type[Any], error: SettingsError, former: Mapping[str, str]) -> SettingsError:
    """Returns the error for a name that does not exist, with what to do; any other as it is."""
    if not isinstance(error, _UnknownKey):
        return error
    if instead := former.get(_join(_PLACE.sub("", error.where), error.key)):
        return SettingsError(former_name(error.where, error.key, instead))
    homes = [place for place, name in _places(cls, "", "") if name == error.key]
    return SettingsError(unknown_name(error.where, error.key, error.known, homes))


class _UnknownKey(SettingsError):
    def __init__(self, where: str, key: str, known: Iterable[str]) -> None:
        super().__init__(f"{where}: unknown name {key!r}")
        self.where, self.key, self.known = where, key, known


class Mistakes:
    """Gathers the mistakes of several values. Leaving it raises them all as one: SettingsError."""

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


def _places(cls: Any, path: str, place: str) -> Iterator[tuple[str, str]]:
    """Yields the settings of a table and of those in it, each with its table's head: ("[[models]]", "alias")."""
    for name, kind in get_type_hints(cls).items():
        if place:
            yield place, name
        for option in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
            inner = get_args(option)[0] if get_origin(option) is tuple else option
            if is_dataclass(inner):
                under = _join(path, name)
                yield from _places(inner, under, f"[{under}]" if inner is option else f"[[{under}]]")


def _build(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    return cls(**_fields(cls, raw, where, is_whole=True))


def _fields(cls: type[Any], raw: Mapping[str, Any], where: str, *, is_whole: bool = False) -> dict[str, Any]:
    """Converts the values of a table. is_whole: names that have no default must be there. Raises: SettingsError."""
    hints, mistakes = get_type_hints(cls), Mistakes()
    known = {each.name: each for each in fields(cls)}
    values = {}
    for key, value in raw.items():
        with mistakes.noted():
            if key not in known:
                raise _UnknownKey(where, key, known)
            values[key] = _convert(value, hints[key], _join(where, key), known[key].metadata)
    for name, each in known.items():
        if is_whole and name not in raw and each.default is MISSING and each.default_factory is MISSING:
            mistakes.add(SettingsError(f"{where}: {name!r} is missing"))
    mistakes.end()
    return values


def convert_text(text: str, cls: type[Any], key: str, where: str) -> Any:
    """Converts a text of the environment to what the field `key` of `cls` holds. Raises: SettingsError."""
    kind = get_type_hints(cls)[key]
    metadata = next(each.metadata for each in fields(cls) if each.name == key)
    plain = _option_for(text, kind)
    value: Any = text
    if plain is bool:
        value = _TRUTH.get(text.strip().lower(), text)
    elif plain in (int, float):
        try:
            value = plain(text)
        except ValueError:
            value = text
    elif get_origin(plain) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    return _convert(value, kind, where, metadata)


def _convert(value: Any, kind: Any, where: str, metadata: Mapping[str, Any]) -> Any:
    kind = _option_for(value, kind)
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise SettingsError(f"{where}: expected one of {', '.join(get_args(kind))}, saw {_seen(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            hint = f"; an entry begins with [[{_PLACE.sub('', where)}]]" if isinstance(value, dict) else ""
            raise SettingsError(f"{where}: expected a list, saw {_seen(value)}{hint}")
        inner, mistakes, found = get_args(kind)[0], Mistakes(), []
        for i, each in enumerate(value):
            with mistakes.noted():
                found.append(_convert(each, inner, _item(where, each, i), {}))
        mistakes.end()
        return tuple(found)
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where}: expected a table, saw {_seen(value)}")
        (names, inner), mistakes, entries = get_args(kind), Mistakes(), {}
        for key, each in value.items():
            with mistakes.noted():
                if get_origin(names) is Literal and key not in get_args(names):
                    raise SettingsError(unknown_name(where, key, get_args(names)))
                entries[key] = _convert(each, inner, _join(where, key), {})
        mistakes.end()
        return entries
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise SettingsError(f"{where}: expected a table, saw {_seen(value)}")
        return _build(kind, value, where)  # type: ignore[arg-type]
    return _convert_plain(value, kind, where, metadata)


def _convert_plain(value: Any, kind: Any, where: str, metadata: Mapping[str, Any]) -> Any:
    """Converts a text, a number or a truth value. metadata: what `ranged` or `prose` noted. Raises: SettingsError."""
    if kind is float and type(value) in (int, float):
        if abs(value) > _MOST:
            raise SettingsError(f"{where}: expected a number up to {_MOST:.0f}, saw {value!r}")
        value = float(value)
    # isinstance would take true for a number.
    if type(value) is not kind:
        raise SettingsError(f"{where}: expected {_WORDS[kind]}, saw {_seen(value)}")
    if kind is str and not metadata.get("prose"):
        if not value.strip():
            raise SettingsError(f"{where}: it is empty")
        if _CONTROL.search(value):
            raise SettingsError(f"{where}: it has a line end or another control character in it")
    # Written with `not`, so that nan is out of every range.
    low, high = metadata.get("low"), metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise SettingsError(f"{where}: expected {bounds}, saw {value!r}")
    return value


def _seen(value: Any) -> str:
    """Returns a wrong value as its error tells it: a list or a table may have a key in it, which is told to nobody."""
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def _option_for(value: Any, kind: Any) -> Any:
    """Returns the member of a union that a value is meant for: the list, the table or the words if it is such.

    Of anything else it is the first.
    """
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    options = [each for each in get_args(kind) if each is not type(None)]
    words = [each for each in options if get_origin(each) is Literal]
    if words and isinstance(value, str):
        return words[0]
    lists = [each for each in options if get_origin(each) is tuple]
    if lists and isinstance(value, list):
        return lists[0]
    tables = [each for each in options if is_dataclass(each)]
    return tables[0] if tables and isinstance(value, dict) else options[0]


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _item(where: str, value: Any, index: int) -> str:
    """Returns the item's place by its name where it has one: `profiles 'bob'` reads better than `profiles[0]`."""
    if isinstance(value, dict):
        for key in ("name", "alias", "label"):
            if isinstance(value.get(key), str):
                return f"{where} {value[key]!r}"
    return f"{where}[{index}]"
