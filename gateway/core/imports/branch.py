"""The branch of a tree of messages that was last: from a leaf to the root."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from gateway.core.imports.records import WrongForm

Node = TypeVar("Node")


def branch_to(leaf: str, parent_of: Callable[[str], str | None]) -> list[str]:
    """Returns the ids from the root to a node. Raises: WrongForm: the nodes form a circle."""
    path: list[str] = []
    seen: set[str] = set()
    at: str | None = leaf
    while at is not None:
        if at in seen:
            raise WrongForm("its messages follow each other in a circle")
        seen.add(at)
        path.append(at)
        at = parent_of(at)
    return path[::-1]


def newest_leaf(parents: Mapping[str, str | None], times: Mapping[str, float | None]) -> str:
    """Returns the leaf with the latest time; of equal ones the last. Raises: WrongForm: there is none."""
    inner: Collection[str | None] = set(parents.values())
    leaves: Iterable[str] = (id for id in parents if id not in inner)
    newest, latest = None, -1.0
    for id in leaves:
        at = times.get(id) or 0.0
        if at >= latest:
            newest, latest = id, at
    if newest is None:
        raise WrongForm("its messages follow each other in a circle")
    return newest
