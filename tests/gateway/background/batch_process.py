"""A gateway that kills itself (SIGKILL) right after the n-th thing that a batch's job has done. KILL_AT: n; 0: never.

The things are each step that is journaled, each commit, and each batch that a provider has made, which is not journaled
then. So what follows on any of them is done by the next process.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from adapters.batch.anthropic import AnthropicBatches
from adapters.batch.local import LocalBatches
from adapters.batch.openai import OpenAIBatches
from storage.sql.jobs import Jobs
from tests.gateway.patient import run

Method = Callable[..., Awaitable[Any]]
_left = int(os.environ["KILL_AT"])


def _count(method: Method) -> Method:
    @functools.wraps(method)
    async def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _left
        result = await method(self, *args, **kwargs)
        is_batch = not isinstance(self, Jobs) or args[0].kind == "batch"
        _left -= is_batch
        if is_batch and _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


if __name__ == "__main__":
    for owner in (OpenAIBatches, AnthropicBatches, LocalBatches):
        owner.submit = _count(owner.submit)  # type: ignore[method-assign]
    Jobs.journal = _count(Jobs.journal)  # type: ignore[method-assign]
    Jobs.commit = _count(Jobs.commit)  # type: ignore[method-assign]
    raise SystemExit(run())
