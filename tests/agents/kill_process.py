"""A gateway that kills itself (SIGKILL) right before or right after a transaction of its first agent's runs.

KILL: "before replied", "after sent" ...: the row of the table in which what is on disk when is said. "": never.

    accepted    a run that goes on without its client, with its request and its job
    begun       the step with what came in
    replied     the first reply, before its tools run
    sent        the note of a call that leaves the gateway; the call is made after it
    answered    what came of it
    done        the results, with the step that takes them in
    ended       the last reply, with the end of the run
"""

from __future__ import annotations

import functools
import os
import signal
from asyncio import Future
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from storage.run_commands import RunAccept
from storage.sql.agents_api.run_texts import RunTexts
from storage.sql.agents_api.runs import Runs
from storage.sql.group import StoreGroup
from storage.sql.stored_paths import StoredPaths
from tests.gateway.patient import run

FIRST = 1  # the row of the agent whose runs count
_side, _, _row = os.environ["KILL"].partition(" ")
_count: Counter[str] = Counter()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_due(*rows: str) -> bool:
    """Returns whether this is the transaction. rows: what its first, its second ... is."""
    n = _count[rows[0]]
    _count[rows[0]] += 1
    return n < len(rows) and rows[n] == _row


def _watched(method: Callable[..., Future[Any]], *rows: str) -> Callable[..., Future[Any]]:
    @functools.wraps(method)
    def watched(self: StoredPaths, write: Any) -> Future[Any]:
        is_due = write.agent.id == FIRST and _is_due(*rows)
        if is_due and _side == "before":
            _die()
        written = method(self, write)
        if is_due:
            written.add_done_callback(lambda _: _die())
        return written

    return watched


def _awaited(method: Callable[..., Awaitable[Any]], row_of: Callable[..., str]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def awaited(self: StoreGroup, *args: Any) -> Any:
        is_due = _is_due(row_of(*args))
        if is_due and _side == "before":
            _die()
        result = await method(self, *args)
        if is_due:
            _die()
        return result

    return awaited


def _row_of_text(agent_row: int, run_row: int, kind: str, *_: Any) -> str:
    return {"call": "sent", "result": "answered"}.get(kind, "") if agent_row == FIRST else ""


def _row_of_acceptance(command: RunAccept) -> str:
    return "accepted" if command.run.agent_row == FIRST else ""


if __name__ == "__main__":
    if _row:
        StoredPaths.open = _watched(StoredPaths.open, "begun", "done")  # type: ignore[method-assign]
        StoredPaths.finish = _watched(StoredPaths.finish, "replied", "ended")  # type: ignore[method-assign]
        RunTexts.add_text = _awaited(RunTexts.add_text, _row_of_text)  # type: ignore[method-assign]
        Runs.accept_run = _awaited(Runs.accept_run, _row_of_acceptance)  # type: ignore[method-assign]
    raise SystemExit(run())
