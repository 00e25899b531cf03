"""The branch of a tree of messages that is imported: from the root to the newest leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.core.imports.records import WrongForm


def list_branch(leaf: str, parent_of: Callable[[str], str | None]) -> list[str]:
    """Returns the ids from the root to a node. parent_of: returns a node's parent. Raises: WrongForm: a circle."""
    path: list[str] = []
    seen: set[str] = set()
    node: str | None = leaf
    while node is not None:
        if node in seen:
            raise WrongForm("its messages follow each other in a circle")
        seen.add(node)
        path.append(node)
        node = parent_of(node)
    return path[::-1]


def get_newest_leaf(parents: Mapping[str, str | None], times: Mapping[str, float | None]) -> str:
    """Returns the leaf with the latest time. If several leaves have this time, it is the last of them.

    parents: the parent of each node by its id; None: the node is a root.
    times: the time of each node in seconds since the epoch; None: the node has no date.

    Raises: WrongForm: no node is a leaf.
    """
    inner = set(parents.values())
    leaves = [id for id in parents if id not in inner]
    if not leaves:
        raise WrongForm("its messages follow each other in a circle")
    # `max` returns the first of equal leaves.
    return max(reversed(leaves), key=lambda id: times.get(id) or float("-inf"))
