"""Child processes for work on untrusted input, which decides how much time and memory the work takes.

A pattern or a schema of a few hundred bytes can take hours and gigabytes, even in a library that blocks all threads
meanwhile. The kernel limits a child process, which is killed when its time is over. A child process is no sandbox: only
code of the gateway runs in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from gateway.agents.tools.child import READY
from gateway.core import exact_json

_log = logging.getLogger("mnemogate")
# The most child processes at a time. Not measured: any value from the number of processors to twice that behaves alike.
MAX_CHILDREN_AT_ONCE = 4
# The most seconds to start a child, with the wait for a slot. Starting takes 0.03 s on an idle machine.
START_S = 10.0
# The address space of a child. An interpreter with a library takes 60 MB.
MEMORY_BYTES = 320 * 1024 * 1024
_ANSWER_BYTES = 2 * 1024 * 1024
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from gateway.agents.tools.child import main
main()
"""


class ChildLimitExceeded(Exception):
    """The work exceeded its time or memory, or no child process was free for it in time."""


class Children:
    """Starts child processes, at most `MAX_CHILDREN_AT_ONCE` at a time. The gateway has one object of this class."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_CHILDREN_AT_ONCE)

    @asynccontextmanager
    async def start(self, function: str, limit_s: float) -> AsyncIterator[Child]:
        """Starts a child process that ends with the block.

        function: the name of the function that answers, as `module:name`. It takes JSON and returns JSON.
        limit_s: the seconds that all questions together may take.

        Raises: ChildLimitExceeded.
        """
        try:
            async with asyncio.timeout(START_S):
                await self._slots.acquire()
        except TimeoutError:
            raise ChildLimitExceeded("all child processes are busy") from None
        try:
            process = await _start_process(function, limit_s)
            try:
                yield await _wait_until_ready(process, function, limit_s)
            finally:
                await asyncio.shield(_end_process(process))
        finally:
            self._slots.release()

    async def ask(self, function: str, question: Any, limit_s: float) -> Any:
        """Returns the answer to one question. Raises: ChildLimitExceeded."""
        async with self.start(function, limit_s) as child:
            return await child.ask(question)


@dataclass(slots=True)
class Child:
    """A running child process."""

    # The process, with pipes for questions and answers.
    process: Process
    # The name of the function that answers, for the log.
    function: str
    # The seconds that are left for all further questions.
    remaining_s: float

    async def ask(self, question: Any) -> Any:
        """Returns the answer to a question. Both are JSON.

        Raises: ChildLimitExceeded, after which no question is answered.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None  # the process was started with pipes
        assert stdout is not None
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            async with asyncio.timeout(self.remaining_s):
                # A child that has ended is noticed by its missing answer.
                with suppress(BrokenPipeError, ConnectionResetError):
                    stdin.write(exact_json.dumps(question) + b"\n")
                    await stdin.drain()
                return exact_json.loads((await stdout.readuntil(b"\n")).decode())
        except TimeoutError:
            raise ChildLimitExceeded("it takes too long") from None
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            # The limit of memory ends a process before its time is over, as an exhausted stack does.
            _log.warning(
                "A child process of the gateway (%s) ended before its answer, most likely for want of memory. Only "
                "the call that it worked for has failed.",
                self.function,
            )
            raise ChildLimitExceeded("it takes too much memory") from error
        finally:
            self.remaining_s -= loop.time() - began_at


async def _start_process(function: str, limit_s: float) -> Process:
    """Starts a child process with limits of memory and processor time. The parameters are as in `Children.start`."""
    limits = {"AS": MEMORY_BYTES, "CPU": int(limit_s) + 2, "CORE": 0}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-B", "-c", _PROGRAM),
        *(json.dumps(sys.path), function, json.dumps(limits)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env={},
        limit=_ANSWER_BYTES,
    )


async def _wait_until_ready(process: Process, function: str, limit_s: float) -> Child:
    """Returns a child once its program is ready. Raises: ChildLimitExceeded if that takes too long."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            ready = await process.stdout.read(len(READY))
    except TimeoutError:
        raise ChildLimitExceeded("the machine is too busy to begin") from None
    if ready != READY:
        raise RuntimeError(f"a child process for {function} did not start")
    return Child(process, function, limit_s)


async def _end_process(process: Process) -> None:
    """Kills a process, and waits for its end."""
    with suppress(ProcessLookupError):
        process.kill()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    # asyncio reports the end of a process only once its pipes are read to their end.
    while await process.stdout.read(_ANSWER_BYTES):
        pass
    await process.wait()
