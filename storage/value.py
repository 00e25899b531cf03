"""A decorator for values that nobody changes, of which each turn makes dozens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """A frozen dataclass to the type checker, and a plain one when it runs: making that takes a quarter of the time.

    It has no hash. What is a key somewhere is a frozen dataclass.
    """
    return dataclass(slots=True)(cls)


def changed(value: T, **values: object) -> T:
    """Returns a frozen value with other values of some fields: `dataclasses.replace` at a third of its price."""
    kind: Callable[..., T] = type(value)
    read, places = _layout(kind)
    found = list(read(value))
    for name, other in values.items():
        found[places[name]] = other
    return kind(*found)


def filled(value: T, **values: object) -> T:
    """Returns the same frozen value with other values of some fields, for the only one who still has it."""
    for name, other in values.items():
        setattr(value, name, other)
    return value


@cache
def _layout(kind: Callable[..., object]) -> tuple[Callable[[Any], tuple[Any, ...]], Mapping[str, int]]:
    """Returns what reads all fields of a value at once, and the places of the fields."""
    names = [each.name for each in fields(kind) if each.init]  # type: ignore[arg-type]
    return attrgetter(*names), {name: place for place, name in enumerate(names)}
