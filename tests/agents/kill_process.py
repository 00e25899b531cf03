"""A gateway that kills itself (SIGKILL) right before or right after a transaction of the runs of its first agent.

The environment variable KILL is "before" or "after" and the name of a checkpoint. Empty: the gateway serves as usual.

    accepted    a run that goes on without its client is stored, with its request and its job
    begun       the first step is stored, with the user's message
    replied     the first reply is stored, before its tools run
    sent        the note of a call that leaves the gateway is stored, before the call
    answered    the result of this call is stored
    done        the step that begins with the results is stored
    ended       the last reply is stored, with the end of the run
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

# The row of the agent whose transactions count.
FIRST_AGENT_ROW = 1
_side, _, _checkpoint = os.environ["KILL"].partition(" ")
# first checkpoint of a method -> the number of its calls so far
_calls: Counter[str] = Counter()


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_due(*checkpoints: str) -> bool:
    """Counts a call of a method, and returns whether it is the transaction of the checkpoint in KILL.

    checkpoints: the checkpoint of the method's first call, of its second call, and so on.
    """
    call = _calls[checkpoints[0]]
    _calls[checkpoints[0]] += 1
    return call < len(checkpoints) and checkpoints[call] == _checkpoint


def _kill_around_write(method: Callable[..., Future[Any]], *checkpoints: str) -> Callable[..., Future[Any]]:
    """Wraps a method that returns the future of its write. checkpoints: as in `_is_due`."""

    @functools.wraps(method)
    def wrapper(self: StoredPaths, write: Any) -> Future[Any]:
        is_due = write.agent.id == FIRST_AGENT_ROW and _is_due(*checkpoints)
        if is_due and _side == "before":
            _kill_self()
        written = method(self, write)
        if is_due:
            written.add_done_callback(lambda _: _kill_self())
        return written

    return wrapper


def _kill_around_call(
    method: Callable[..., Awaitable[Any]], get_checkpoint: Callable[..., str]
) -> Callable[..., Any]:
    """Wraps a coroutine method. get_checkpoint: returns the checkpoint of a call by its arguments."""

    @functools.wraps(method)
    async def wrapper(self: StoreGroup, *args: Any) -> Any:
        is_due = _is_due(get_checkpoint(*args))
        if is_due and _side == "before":
            _kill_self()
        result = await method(self, *args)
        if is_due:
            _kill_self()
        return result

    return wrapper


def _checkpoint_of_text(agent_row: int, run_row: int, kind: str, *_: Any) -> str:
    return {"call": "sent", "result": "answered"}.get(kind, "") if agent_row == FIRST_AGENT_ROW else ""


def _checkpoint_of_acceptance(command: RunAccept) -> str:
    return "accepted" if command.run.agent_row == FIRST_AGENT_ROW else ""


if __name__ == "__main__":
    if _checkpoint:
        StoredPaths.open = _kill_around_write(StoredPaths.open, "begun", "done")  # type: ignore[method-assign]
        StoredPaths.finish = _kill_around_write(StoredPaths.finish, "replied", "ended")  # type: ignore[method-assign]
        RunTexts.add_text = _kill_around_call(RunTexts.add_text, _checkpoint_of_text)
        Runs.accept_run = _kill_around_call(Runs.accept_run, _checkpoint_of_acceptance)  # type: ignore[method-assign]
    raise SystemExit(run())
