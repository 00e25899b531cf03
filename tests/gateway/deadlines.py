"""Deadlines of tools, which no busy machine shall reach while a test asks for something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.agents.tools import mcp, webhook
from gateway.run.tools import searches
from tests.patience import PATIENCE_S


def lift(put: Callable[[Any, str, float], None] = setattr) -> None:
    """Lets tools take as long as a test waits, but for patterns that never end. put: sets a name of a module."""
    put(searches, "SEARCH_MS", PATIENCE_S * 1000)
    for module in (mcp, webhook):
        put(module, "TIMEOUT_S", PATIENCE_S)
