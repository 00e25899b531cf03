"""Runs the searches of one tool call at once, so that a search that fails or is late delays no other one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Generic, NamedTuple, TypeVar

from gateway.run.tools.toolbox import ToolAnswer
from storage.errors import StoreError
from storage.fusion import interleave

_log = logging.getLogger("mnemogate")
T = TypeVar("T", bound=object)

# The time that searches may take: the model and its user wait for them. `INCOMPLETE` names it. Not measured: with less
# time more searches are incomplete, with more a user hears nothing for longer.
SEARCH_MS = 1000.0
# The line of a result without the searches that were late.
INCOMPLETE = "(Not everything answered within a second. Asking again may find more.)"


class CombinedHits(NamedTuple, Generic[T]):
    """The hits of several searches."""

    # The best hit of each search, then the second best, and so on.
    hits: list[T]
    # True: a search failed or was too late.
    is_incomplete: bool


async def search_all(searches: Sequence[Awaitable[Sequence[T]]]) -> CombinedHits[T]:
    """Runs all searches at once, for `SEARCH_MS` at most."""
    if not searches:
        return CombinedHits([], is_incomplete=False)
    tasks = [asyncio.ensure_future(each) for each in searches]
    try:
        await asyncio.wait(tasks, timeout=SEARCH_MS / 1000)
    finally:
        late_tasks = [task for task in tasks if not task.done()]
        for task in late_tasks:
            task.cancel()
        await asyncio.gather(*late_tasks, return_exceptions=True)
    results: list[Sequence[T]] = []
    has_failed = bool(late_tasks)
    for task in tasks:
        try:
            results.append([] if task.cancelled() else task.result())
        except StoreError as error:
            _log.warning("A search of a tool failed: %s", error.message)
            has_failed = True
    return CombinedHits(interleave(results), has_failed)


def make_answer(lines: Sequence[str], failure: str, *, is_incomplete: bool) -> ToolAnswer:
    """Returns the answer of a tool that searches.

    lines: the line of each hit.
    failure: the answer if there is no hit and a search failed or was late.
    is_incomplete: True: a search failed or was late.
    """
    if not is_incomplete:
        return ToolAnswer("\n".join(lines) or "Nothing was found.")
    return ToolAnswer("\n".join([*lines, INCOMPLETE])) if lines else ToolAnswer.failed(failure)
