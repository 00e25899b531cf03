"""A gateway starts programs without a copy of itself, and speaks with them as asyncio does."""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import event_loop
from tests.patience import comes

_PAGES = 4096
# The longest that a pipe holds is 64 kB, so both sides have to wait for each other.
_BYTES = 1_000_000


def count_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def list_programs() -> set[str]:
    """Returns the ids of the processes that the main thread has started."""
    return set(Path("/proc/self/task", str(os.getpid()), "children").read_text().split())


def make_check_of_nothing_left() -> Callable[[], bool]:
    """Returns a function that returns whether each open file and each program was there before.

    What an earlier test has left may end meanwhile.
    """
    file_count, programs = count_open_files(), list_programs()
    return lambda: count_open_files() <= file_count and list_programs() <= programs


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="counts the faults of small pages")
def test_a_start_copies_no_memory_of_the_gateway() -> None:
    """A fork copies the page tables while nothing is answered; each page that is written then is a fault."""
    memory = mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)

    def write_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for page in range(_PAGES):
            memory[page * mmap.PAGESIZE] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    async def main() -> int:
        assert write_pages() >= _PAGES
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=DEVNULL)
        faults = write_pages()
        await process.communicate(b"")
        return faults

    assert event_loop.run(main()) < _PAGES // 2


def test_a_program_takes_and_gives_more_than_its_pipes_hold() -> None:
    async def main() -> None:
        program = (
            "import sys; data = sys.stdin.buffer.read(); sys.stdout.write('a'); sys.stderr.buffer.write(data)"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert await process.communicate(b"x" * _BYTES) == (b"a", b"x" * _BYTES)
        assert await process.wait() == process.returncode == 0

    event_loop.run(main())


def test_what_a_program_has_written_is_read_after_its_end() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", "echo last; exit 3", stdout=PIPE)
        assert process.stdout is not None
        assert await process.wait() == 3
        assert await process.stdout.read() == b"last\n"
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("no-such-program")

    event_loop.run(main())


def test_the_end_of_a_program_that_reads_nothing_breaks_its_pipe() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "600", stdin=PIPE)
        assert process.stdin is not None
        process.stdin.write(b"x" * _BYTES)
        written = asyncio.create_task(process.stdin.drain())
        await asyncio.sleep(0)
        process.kill()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await written
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await process.stdin.wait_closed()

    event_loop.run(main())


def test_what_is_written_to_a_program_that_has_ended_fails_the_drain() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
        assert process.stdin is not None
        await process.wait()

        async def write_without_end(stdin: asyncio.StreamWriter) -> None:
            while True:
                stdin.write(b"x")
                await stdin.drain()

        for _ in range(2):
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await write_without_end(process.stdin)
        process.stdin.writelines([b"x"])
        assert await process.communicate(b"x") == (None, None)

    event_loop.run(main())


def test_a_program_is_killed_and_ends_once() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "600")
        waiting = [asyncio.create_task(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        process.kill()
        assert await asyncio.gather(*waiting[1:]) == [-signal.SIGKILL] * 2
        process.kill()  # of a process that has ended, and whose number may be another's

    event_loop.run(main())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_start_that_is_given_up_leaves_no_program_and_no_file() -> None:
    async def main() -> None:
        # With its first pipe the loop opens a file of its own.
        await (await asyncio.create_subprocess_exec("true", stdout=PIPE)).communicate()
        is_nothing_left = make_check_of_nothing_left()
        for steps in range(8):
            start = asyncio.create_task(
                asyncio.create_subprocess_exec("sleep", "600", stdin=PIPE, stdout=PIPE, stderr=PIPE)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            if start.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await start
            else:
                process = start.result()
                process.kill()
                await process.communicate()
        await comes(is_nothing_left)

    event_loop.run(main())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_start_without_a_thread_to_wait_for_the_program_is_an_os_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the system has no more threads. The program is killed, and leaves no file open."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        is_nothing_left = make_check_of_nothing_left()
        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(BlockingIOError):
            await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        monkeypatch.undo()
        assert is_nothing_left()

    event_loop.run(main())
