"""Lifts the deadlines of tools and searches: on a busy machine, tests of other things would reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.agents.tools import argument_check, file_tools, mcp, webhook
from gateway.run.admin.forgetting import remaining_texts
from gateway.run.admin.mcp import mcp_tool_calls
from gateway.run.admin.words import word_counts, word_search
from gateway.run.memory import trial
from gateway.run.tools import searches
from storage.sql import people_search
from tests.patience import PATIENCE_S


def lift(put: Callable[[Any, str, float], None] = setattr) -> None:
    """Sets the deadlines to the time that a test waits.

    put: the function that replaces an attribute of a module, as `setattr` or `MonkeyPatch.setattr`.
    """
    for module, name in (
        (mcp_tool_calls, "SEARCH_MS"),
        (people_search, "_DEADLINE_MS"),
        (remaining_texts, "_SEARCH_DEADLINE_MS"),
        (searches, "SEARCH_MS"),
        (trial, "_DEADLINE_MS"),
        (word_counts, "SHORT_DEADLINE_MS"),
        (word_search, "SHORT_DEADLINE_MS"),
        (word_search, "_DEADLINE_MS"),
    ):
        put(module, name, PATIENCE_S * 1000)
    put(file_tools, "_GREP_S", PATIENCE_S)
    put(argument_check, "CHECK_S", PATIENCE_S)
    for module in (mcp, webhook):
        put(module, "TIMEOUT_S", PATIENCE_S)
