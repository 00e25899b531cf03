"""A decorator for values that nobody changes, of which each turn makes dozens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """A frozen dataclass to the type checker, and a plain one when it runs: making that takes a quarter of the time.

    It has no hash. What is a key somewhere is a frozen dataclass.
    """
    return dataclass(slots=True)(cls)
