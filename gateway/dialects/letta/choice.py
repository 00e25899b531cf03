"""The values that a field may have, where it is a choice: said when it is none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec


def choices(kind: type[msgspec.Struct], place: Sequence[str | int]) -> list[str]:
    """Returns what may stand at a place of a body, in the order in which it is declared; [] where that is no choice.

    place: keys and indices, from the body.
    """
    hints: list[Any] = [kind]
    for step in place:
        hints = [member for hint in hints for inner in _within(hint, step) for member in _members(inner)]
    found = [value for hint in hints if get_origin(hint) is Literal for value in get_args(hint)]
    return list(dict.fromkeys(map(str, found)))


def _within(hint: Any, step: str | int) -> Iterator[Any]:
    """Yields what is declared of a part of a value."""
    inner = get_args(hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        config = hint.__struct_config__
        if config.tag_field == step:
            yield Literal[config.tag]
        elif step in hint.__struct_fields__:
            yield get_type_hints(hint, include_extras=True)[str(step)]
    elif get_origin(hint) is list or get_origin(hint) is dict:
        yield inner[-1]


def _members(hint: Any) -> Iterator[Any]:
    """Yields the members of a union; of anything else, itself."""
    if get_origin(hint) is Annotated:
        yield from _members(hint.__origin__)
    elif get_origin(hint) in (Union, UnionType):
        for each in get_args(hint):
            yield from _members(each)
    else:
        yield hint
