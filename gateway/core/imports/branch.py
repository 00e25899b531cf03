"""The branch of a tree of messages that is imported: from the root to the newest leaf."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.imports.records import WrongForm


def list_branch(leaf: str, parents: Mapping[str, str | None]) -> list[str]:
    """Returns the ids from the root to a node.

    parents: the parent of each node by its id; None: the node is a root.

    Raises: WrongForm: the nodes are a circle.
    """
    # An ordered set.
    path: dict[str, None] = {}
    node: str | None = leaf
    while node is not None:
        if node in path:
            raise WrongForm("its messages follow each other in a circle")
        path[node] = None
        node = parents[node]
    return [*reversed(path)]


def get_newest_leaf(parents: Mapping[str, str | None], times: Mapping[str, float | None]) -> str:
    """Returns the leaf with the latest time. If several leaves have this time, it is the last of them.

    parents: the parent of each node by its id; None: the node is a root.
    times: the time of each node in seconds since the epoch; None: the node has no date.

    Raises: WrongForm: no node is a leaf.
    """
    inner_nodes = set(parents.values())
    leaves = [node for node in parents if node not in inner_nodes]
    if not leaves:
        raise WrongForm("its messages follow each other in a circle")
    # `max` returns the first of equal leaves.
    return max(reversed(leaves), key=lambda leaf: times.get(leaf) or float("-inf"))
