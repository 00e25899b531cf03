"""The event loop of a gateway: uvloop's, with another way to start programs.

uvloop starts a program by a fork, which copies the page tables of the process, and nothing is answered meanwhile.
`subprocess` lets the program begin in the memory of this process (vfork), whatever its size, and closes all files in it
but those that are passed.
"""

from __future__ import annotations

import asyncio
import errno
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import IO, Any, TypeVar, cast

import uvloop

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a coroutine on a new loop to its end, as `asyncio.run` does."""
    return uvloop.run(main, loop_factory=EventLoop)


class EventLoop(uvloop.Loop):
    """uvloop's loop. Its programs start as those of asyncio's own loops do."""

    async def subprocess_exec(  # type: ignore[override]  # its stub has a protocol in place of the transport
        self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any
    ) -> tuple[asyncio.SubprocessTransport, Any]:
        """Starts a program. kwargs: the keyword arguments of `subprocess.Popen`. Raises: OSError."""
        process = subprocess.Popen(args, bufsize=0, **kwargs)  # noqa: ASYNC220  # it waits for the start alone
        protocol = protocol_factory()
        transport = _ProcessTransport(self, process, protocol)
        connecting = self.create_task(transport.connect())
        try:
            # A pipe that is given up while it is connected would be closed twice, and the second time its number may
            # belong to another file.
            await asyncio.shield(connecting)
        except BaseException:
            connecting.add_done_callback(lambda _: transport.close())
            raise
        return transport, protocol


class _ProcessTransport(asyncio.SubprocessTransport):
    """A started program and its pipes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: subprocess.Popen[bytes],
        protocol: asyncio.SubprocessProtocol,
    ) -> None:
        super().__init__({"subprocess": process})
        self._loop = loop
        self._process = process
        self._protocol = protocol
        # The pipes by the numbers of the program's files.
        self._pipes: dict[int, asyncio.BaseTransport] = {}
        self._open_pipes: set[int] = set()
        # The exit code of the program, once it has ended.
        self._ended: asyncio.Future[int] = loop.create_future()
        # The reports of events before the protocol had this transport; None: the protocol has the transport.
        self._early_reports: list[Callable[[], None]] | None = []

    async def connect(self) -> None:
        """Connects the pipes and then the protocol, and begins to wait for the end of the program. Raises: OSError."""
        process = self._process
        try:
            threading.Thread(target=self._wait_for_end, name="process", daemon=True).start()
        except RuntimeError as error:
            # `with` closes the pipes, and waits for the end of the program.
            with process:
                process.kill()
            raise OSError(errno.EAGAIN, "No thread can be started to wait for the program.") from error
        for number, file in enumerate((process.stdin, process.stdout, process.stderr)):
            if file is not None:
                await self._connect_pipe(number, file)
        self._protocol.connection_made(self)
        early_reports = self._early_reports or []
        self._early_reports = None
        for report in early_reports:
            report()

    async def _connect_pipe(self, number: int, file: IO[bytes]) -> None:
        connect = self._loop.connect_read_pipe if number else self._loop.connect_write_pipe
        self._open_pipes.add(number)
        pipe, _ = await connect(lambda: _PipeProtocol(self, self._protocol, number), file)
        self._pipes[number] = cast(
            "asyncio.BaseTransport", pipe if number else _InputPipe(cast("asyncio.WriteTransport", pipe))
        )

    def _wait_for_end(self) -> None:
        self._process.wait()
        # A loop that was closed before has no protocols any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.report, self._report_end)

    def _report_end(self) -> None:
        self._ended.set_result(self._process.returncode)
        self._protocol.process_exited()
        self._finish()

    def lose_pipe(self, number: int, error: Exception | None) -> None:
        """Reports that a pipe has closed."""
        self._open_pipes.discard(number)
        self._protocol.pipe_connection_lost(number, error)
        self._finish()

    def _finish(self) -> None:
        if self._ended.done() and not self._open_pipes:
            self._protocol.connection_lost(None)

    def report(self, report: Callable[[], None]) -> None:
        """Reports an event to the protocol, once it has this transport."""
        if self._early_reports is None:
            report()
        else:
            self._early_reports.append(report)

    # -- asyncio's interface of a transport

    async def _wait(self) -> int:
        # `asyncio.subprocess.Process.wait` calls it.
        return await asyncio.shield(self._ended)

    def get_pid(self) -> int:
        return self._process.pid

    def get_returncode(self) -> int | None:
        return self._process.returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self._pipes.get(fd)

    def send_signal(self, signal: int) -> None:
        self._process.send_signal(signal)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def is_closing(self) -> bool:
        return all(pipe.is_closing() for pipe in self._pipes.values())

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        self._process.kill()


class _InputPipe:
    """The standard input of a program. It drops data that is written after it has closed, as asyncio's pipes do.

    uvloop's raises a RuntimeError, which no writer expects: a program may end at any time, and then the drain fails.
    """

    def __init__(self, pipe: asyncio.WriteTransport) -> None:
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def write(self, data: bytes) -> None:
        if not self._pipe.is_closing():
            self._pipe.write(data)

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.write(b"".join(parts))


class _PipeProtocol(asyncio.Protocol):
    """One end of a pipe of a program."""

    def __init__(self, process: _ProcessTransport, protocol: asyncio.SubprocessProtocol, number: int) -> None:
        self._process = process
        self._protocol = protocol
        self._number = number

    def data_received(self, data: bytes) -> None:
        self._process.report(lambda: self._protocol.pipe_data_received(self._number, data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._process.report(lambda: self._process.lose_pipe(self._number, exc))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
