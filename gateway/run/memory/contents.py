"""Asking the rules of gateway.core, which read nothing themselves, with the contents that they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gateway.core.conversation.tree import Tree
from storage.commands import MAX_RULE_CALLS, Missing
from storage.errors import StatementFailed
from storage.records import Agent
from storage.sql.turns import Turns

T = TypeVar("T")


async def with_contents(turns: Turns, agent: Agent, tree: Tree, rules: Callable[[], T]) -> T:
    """Returns what the rules answer. Contents that they find missing in the tree are read, and they are asked again.

    Raises: StoreError.
    """
    for _ in range(MAX_RULE_CALLS):
        try:
            return rules()
        except Missing as missing:
            tree.take_contents(await turns.load_contents(agent, missing.ids))
    raise StatementFailed(f"the rules of conversations asked {MAX_RULE_CALLS} times for more contents")
