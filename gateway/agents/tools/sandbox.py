"""Tools that are written in Python, each call in a sandbox of its own. The sandbox needs bubblewrap.

The code has no network, no processes but its own, no files but the interpreter's (to read) and a small /tmp, no
variables, no keys and no rights. System calls that reach around these bounds are refused.

Limits of the kernel bound the processor time and memory of each process, and the number of processes. The gateway
bounds the memory of all processes together, the time and the output. The memory of pipes and sockets is not counted, so
the kernel ends calls first when the machine runs out of memory.

Before the first call a probe tries to get out of the sandbox. If the probe gets out, or cannot run, no tool written in
Python runs.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from adapters.types import Json
from gateway.agents.tools import sandbox_program
from gateway.agents.tools.bubblewrap import NOBODY, TMP_BYTES, build_command, find_prefixes, open_filter
from gateway.agents.tools.process_memory import can_measure_memory, measure_memory
from gateway.agents.tools.sandbox_probe import PROBE
from gateway.agents.tools.syscall_filter import make_filter
from gateway.core import exact_json
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer

# The most bytes of stdout, stderr and the result of a call together.
OUTPUT_BYTES = 256 * 1024
_MB = 1024 * 1024
# The limits of one process. Chosen between two bounds: the standard library's larger modules load, and four calls at
# these limits leave room for the gateway. No further measurement.
_LIMITS = {"AS": 256 * _MB, "FSIZE": TMP_BYTES, "NOFILE": 64, "NPROC": 16, "SIGPENDING": 256, "CORE": 0}
# The most bytes of all processes of one call together, with their files in /tmp. The limits above hold for one process
# each, so the sum is measured at intervals, and a quick call may exceed it for a moment.
_CALL_BYTES = 384 * _MB
_WATCH_EVERY_S = 0.05
_MAX_CALLS_AT_ONCE = 4
# The most characters of stdout, and of stderr, which are stored and not shown to a model.
_STORED_CHARS = 10_000
_READ_BYTES = 64 * 1024
# The seconds between a failed probe and the next: the machine may have been too busy for it, or be repaired meanwhile.
# Not measured.
_PROBE_AGAIN_S = 60.0
# The seconds for the probe, and for the end of a killed process.
_START_S = 10.0
_MISSING_PROGRAM = (
    "Tools written in Python run in a sandbox, which needs bubblewrap: install the package `bubblewrap` on the "
    "gateway's machine. Or make it a webhook."
)
_UNKNOWN_KERNEL = (
    "its kernel does not list what a process has started, or its processor's system calls are not known"
)
_UNUSABLE_SANDBOX = (
    "Tools written in Python run in a sandbox, which cannot be used on the gateway's machine: {why}. It needs "
    "bubblewrap 0.8, user namespaces, and an interpreter that user 65534 can read (the setting tools.python)."
)


class Sandbox:
    """Runs functions of tools."""

    def __init__(self, python: str | None, timeout_s: float) -> None:
        """Makes a sandbox, which no probe has tried yet.

        python: the path of another environment's interpreter; None: the gateway's own interpreter, without its
            packages.
        timeout_s: the seconds that a call may take.
        """
        self._python = python or str(getattr(sys, "_base_executable", sys.executable))
        self._timeout_s = timeout_s
        self._program = Path(sandbox_program.__file__).read_text("utf-8")
        self._slots = asyncio.Semaphore(_MAX_CALLS_AT_ONCE)
        self._lock = asyncio.Lock()
        self._command: Sequence[str] = ()
        self._refusal: str | None = None
        # The time of the next probe, by the clock of the loop.
        self._probe_due_s = 0.0

    async def explain_refusal(self) -> str | None:
        """Returns the reason why no Python tool can run here; None if Python tools can. The first call probes."""
        async with self._lock:
            if (now := asyncio.get_running_loop().time()) >= self._probe_due_s:
                self._refusal = await self._probe()
                self._probe_due_s = math.inf if self._refusal is None else now + _PROBE_AGAIN_S
            return self._refusal

    async def run(self, source: str, call: ForeignCall) -> ToolAnswer:
        """Calls the last function of the source. Returns the function's result as text, with its stdout and stderr."""
        refusal = await self.explain_refusal()
        if refusal is not None:
            return ToolAnswer.failed(f"Error: {call.tool} cannot be run. {refusal}")
        work = {"source": source, "arguments": call.arguments, "agent": _make_agent_state(call)}
        async with self._slots:
            outcome = await self._perform(work, self._timeout_s)
        answer, output = outcome.answer, (outcome.stdout, outcome.stderr)
        if outcome.failure:
            return ToolAnswer(f"Error: {call.tool} {outcome.failure}.", "error", *output)
        if answer.error is not None:
            return ToolAnswer(f"Error: {answer.error}", "error", *output)
        values = answer.blocks
        changed_blocks = (
            (block, values[block.label].replace("\0", "")) for block in call.blocks if block.label in values
        )
        return ToolAnswer(answer.result, "success", *output, tuple(changed_blocks))

    # -- the first call

    async def _probe(self) -> str | None:
        """Returns the reason why the sandbox cannot be used; None if it holds."""
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            return _MISSING_PROGRAM
        if make_filter() is None or not can_measure_memory():
            return _UNUSABLE_SANDBOX.format(why=_UNKNOWN_KERNEL)
        try:
            self._command = build_command(bwrap, self._python, await find_prefixes(self._python))
        except (OSError, TimeoutError, ValueError) as error:
            return _UNUSABLE_SANDBOX.format(why=f"{self._python} cannot be used ({error})")
        outcome = await self._try_to_get_out()
        result = outcome.answer.result
        if result == "[]":
            return None
        lines = outcome.stderr.strip().splitlines()
        reason = outcome.failure or outcome.answer.error or f"a probe got out of it: {result}"
        return _UNUSABLE_SANDBOX.format(why=f"{reason}{': ' + lines[-1] if lines else ''}")

    async def _try_to_get_out(self) -> _CallOutcome:
        """Runs the probe, with a file, a port and a socket outside that it must not reach."""
        with tempfile.TemporaryDirectory() as folder:
            # Any user may read the folder, so that nothing but the sandbox keeps the probe from reading it.
            os.chmod(folder, 0o755)
            os.close(os.open(f"{folder}/secret", os.O_CREAT | os.O_WRONLY, 0o644))
            servers = [
                await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0),
                # The socket has no file, so that nothing but the sandbox's own network keeps the probe from connecting.
                await asyncio.start_unix_server(lambda _, writer: writer.close(), f"\0{folder}"),
            ]
            try:
                port = servers[0].sockets[0].getsockname()[1]
                arguments = {"port": port, "folder": folder, "uid": NOBODY}
                return await self._perform({"source": PROBE, "arguments": arguments, "agent": {}}, _START_S)
            finally:
                for server in servers:
                    server.close()

    # -- one call

    async def _perform(self, work: Json, timeout_s: float) -> _CallOutcome:
        """Runs a function in a sandbox of its own. Returns the outcome of the call."""
        try:
            process, receive = await self._start(timeout_s)
        except OSError as error:
            return _CallOutcome(failure=f"could not be started ({error.strerror})")
        output = _Output()
        failure = ""
        try:
            with _open_reader(receive) as result:
                async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                    assert process.stdin is not None
                    assert process.stdout is not None
                    assert process.stderr is not None
                    tasks.create_task(output.read(process.stdout, "stdout"))
                    tasks.create_task(output.read(process.stderr, "stderr"))
                    # Once the program is ready, the sandbox is set up, and the kernel ends it with the gateway. If the
                    # program had the work earlier, it would do the work even if the gateway were killed meanwhile.
                    await result.read(len(sandbox_program.READY))
                    watch = tasks.create_task(_watch_memory(process.pid))
                    tasks.create_task(_watch_to_end(process, watch))
                    tasks.create_task(_send(process.stdin, exact_json.dumps(work)))
                    tasks.create_task(output.read(result, "result"))
        except* TimeoutError:
            failure = f"took longer than {timeout_s:.0f} s"
        except* _OverLimit as group:
            failure = str(group.exceptions[0])
        except* PermissionError:
            failure = "cannot be watched: the system hides its processes from the gateway"
        finally:
            # When the first process of a call ends, the kernel ends the others.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(_drain(process))
        return output.make_outcome(process.returncode or 0, failure)

    async def _start(self, timeout_s: float) -> tuple[asyncio.subprocess.Process, int]:
        """Starts the program of a call. Returns the process, and the pipe with its result. Raises: OSError.

        The caller closes the pipe.
        """
        limits = json.dumps({**_LIMITS, "CPU": int(timeout_s) + 1})
        descriptors: list[int] = []
        try:
            descriptors += os.pipe()
            descriptors.append(open_filter())
            receive, send, filter_ = descriptors
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--seccomp", str(filter_), "--", self._python, "-I", "-B", "-c", self._program),
                *(str(send), limits),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                pass_fds=(send, filter_),
                start_new_session=True,
                env={},
            )
            descriptors.remove(receive)
            return process, receive
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _make_agent_state(call: ForeignCall) -> Json:
    """Returns the JSON of the agent for the code in the sandbox."""
    blocks = [
        {"label": block.label, "value": block.value, "description": block.description, "limit": block.limit}
        for block in call.blocks
    ]
    return {"id": call.agent, "name": call.agent_name, "blocks": blocks}


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The answer of the program in the sandbox, which the tool's code can write as well. Other JSON is refused."""

    # The result of the function, as text.
    result: str = ""
    # The error of the code; None: the function has returned.
    error: str | None = None
    # The new values of the blocks that the code has changed, by label.
    blocks: dict[str, str] = {}


class _CallOutcome(Struct, frozen=True):
    """The outcome of a call that has ended."""

    # The answer of the program; the default if there is none.
    answer: _Answer = msgspec.field(default_factory=_Answer)
    # The beginning of the program's standard output, as long as it is stored.
    stdout: str = ""
    # The beginning of the program's error output, as long as it is stored.
    stderr: str = ""
    # The reason why there is no answer; "": there is an answer.
    failure: str = ""


class _OverLimit(Exception):
    """The code has exceeded a limit. The message names the limit."""


@dataclass(slots=True)
class _Output:
    """The output of a call so far."""

    # The bytes of `stdout`, `stderr` and `result`, by these names.
    parts: dict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    # The bytes that the three may still have together.
    bytes_left: int = OUTPUT_BYTES

    async def read(self, stream: asyncio.StreamReader, name: str) -> None:
        while chunk := await stream.read(_READ_BYTES):
            self.bytes_left -= len(chunk)
            if self.bytes_left < 0:
                raise _OverLimit(f"printed more than {OUTPUT_BYTES:,} bytes")
            self.parts[name] += chunk

    def make_outcome(self, exit_status: int, failure: str) -> _CallOutcome:
        """Returns the outcome of the call.

        exit_status: the exit status of the program.
        failure: the reason why the call was ended early; "": the program ended by itself.
        """
        answer = _Answer()
        if not failure:
            try:
                answer = msgspec.json.decode(self.parts["result"], type=_Answer)
            except (msgspec.DecodeError, UnicodeDecodeError):
                # A process that a signal has ended has a status of 128 and more; the kernel kills with 9 a process that
                # takes too much memory.
                failure = f"ended without a result (exit status {exit_status})"
        return _CallOutcome(answer, self._read_text("stdout"), self._read_text("stderr"), failure)

    def _read_text(self, name: str) -> str:
        return self.parts[name].decode("utf-8", "replace")[:_STORED_CHARS]


async def _watch_memory(pid: int) -> None:
    """Measures the memory of a call until it is cancelled. Raises: _OverLimit."""
    while measure_memory(pid, "/tmp", TMP_BYTES) <= _CALL_BYTES:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(_WATCH_EVERY_S)
    raise _OverLimit(f"took more than {_CALL_BYTES // _MB} MB of memory in all")


async def _watch_to_end(process: asyncio.subprocess.Process, watch: asyncio.Task[None]) -> None:
    """Ends the watch of the memory with the process."""
    await process.wait()
    watch.cancel()


async def _send(stream: asyncio.StreamWriter, data: bytes) -> None:
    """Sends the work, and closes the stream."""
    # Code that has ended reads nothing, nor does a sandbox that could not be set up.
    with suppress(BrokenPipeError, ConnectionResetError):
        if not stream.is_closing():
            stream.write(data)
            await stream.drain()
    stream.close()


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Waits for the end of a process that was killed, with its pipes read to their end, which closes them."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(_READ_BYTES):
                    pass
            await process.wait()


@contextmanager
def _open_reader(descriptor: int) -> Iterator[asyncio.StreamReader]:
    """Reads a pipe, and closes it.

    Not by a transport of the loop: uvloop's closes the pipe if the wait for it is cancelled, and then the file object
    of the pipe closes the same number once more, which may belong to another file by then.
    """
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()

    def read() -> None:
        with suppress(BlockingIOError):
            if data := os.read(descriptor, _READ_BYTES):
                reader.feed_data(data)
            else:
                loop.remove_reader(descriptor)
                reader.feed_eof()

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, read)
    try:
        yield reader
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
