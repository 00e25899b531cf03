"""Checks raw settings against dataclasses: names, types, ranges, with errors that say where and what.

It knows nothing of any particular setting. A field's type says what its value must be, and `ranged` adds bounds.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gateway.errors import SettingsError

T = TypeVar("T")
# Of a number that is no count: seconds of thirty years. TOML has `inf`, which no timer takes.
_MOST = 1e9
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


def unknown_name(where: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that does not exist, with the nearest one that does."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known)) or 'none'}"
    return f"{where + ': ' if where else ''}unknown name {name!r}{hint}"


def build(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    """Makes `cls` of a table as TOML gives it. Raises: SettingsError."""
    hints = get_type_hints(cls)
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in raw.items():
        if key not in known:
            raise SettingsError(unknown_name(where, key, known))
        values[key] = _convert(value, hints[key], _join(where, key), known[key].metadata)
    for name, each in known.items():
        if name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise SettingsError(f"{where}: {name!r} is missing")
    return cls(**values)


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
            raise SettingsError(f"{where}: expected one of {', '.join(get_args(kind))}, saw {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"{where}: expected a list, saw {value!r}")
        inner = get_args(kind)[0]
        return tuple(_convert(each, inner, _item(where, each, i), {}) for i, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where}: expected a table, saw {value!r}")
        names, inner = get_args(kind)
        if get_origin(names) is Literal:
            for key in value:
                if key not in get_args(names):
                    raise SettingsError(unknown_name(where, key, get_args(names)))
        return {key: _convert(each, inner, _join(where, key), {}) for key, each in value.items()}
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise SettingsError(f"{where}: expected a table, saw {value!r}")
        return build(kind, value, where)  # type: ignore[arg-type]
    return _convert_plain(value, kind, where, metadata)


def _convert_plain(value: Any, kind: Any, where: str, metadata: Mapping[str, Any]) -> Any:
    """Converts a text, a number or a truth value. metadata: bounds, if the field has some. Raises: SettingsError."""
    if kind is float and type(value) in (int, float):
        if abs(value) > _MOST:
            raise SettingsError(f"{where}: expected a number up to {_MOST:.0f}, saw {value!r}")
        value = float(value)
    # isinstance would take true for a number.
    if type(value) is not kind:
        raise SettingsError(f"{where}: expected {_WORDS[kind]}, saw {value!r}")
    # Written with `not`, so that nan is out of every range.
    low, high = metadata.get("low"), metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise SettingsError(f"{where}: expected {bounds}, saw {value!r}")
    return value


def _option_for(value: Any, kind: Any) -> Any:
    """Returns the member of a union that a value is meant for: the list or the table if it is one, else the first."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    options = [each for each in get_args(kind) if each is not type(None)]
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
