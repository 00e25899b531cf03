"""Calls a rule of gateway.core until the contents that it needs are loaded: the core reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gateway.core.conversation.tree import Tree
from storage.commands import MAX_RULE_CALLS, MissingContents
from storage.errors import StatementFailed
from storage.records import Agent
from storage.sql.turns import Turns

T = TypeVar("T")


async def retry_with_contents(turns: Turns, agent: Agent, tree: Tree, rule: Callable[[], T]) -> T:
    """Returns the result of a rule. When it raises `MissingContents`, the contents are loaded and it is called again.

    Raises: StoreError.
    """
    # `_decide_turn` in storage/sql/turns.py does the same inside the writing transaction.
    for _ in range(MAX_RULE_CALLS):
        try:
            return rule()
        except MissingContents as missing:
            tree.contents.add(await turns.load_contents(agent, missing.ids))
    raise StatementFailed(f"the rules of conversations asked {MAX_RULE_CALLS} times for more contents")
