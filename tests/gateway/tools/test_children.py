"""Work whose cost nobody knows is done in a process of its own, within bounds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gateway import event_loop
from gateway.agents.tools import children as module
from gateway.agents.tools.children import ChildLimitExceeded, Children
from tests.patience import PATIENCE_S, SHORT_S, comes

WORK = "tests.gateway.tools.child_work"
Runs = Callable[[Coroutine[Any, Any, None]], None]
both_loops = pytest.mark.parametrize("run", [asyncio.run, event_loop.run], ids=["asyncio", "gateway"])


@both_loops
def test_a_child_answers_successive_questions(run: Runs) -> None:
    async def main() -> None:
        async with Children().start(f"{WORK}:double", PATIENCE_S) as child:
            assert await child.ask("ü") == ["ü", "ü"]
            assert await child.ask({"a": [1.5, None]}) == [{"a": [1.5, None]}] * 2

    run(main())


@both_loops
def test_a_child_that_exceeds_its_bounds_ends(run: Runs) -> None:
    async def main() -> None:
        children = Children()
        for function, question, why in (
            ("take", module.MEMORY_BYTES, "too much memory"),
            ("crash", None, "too much memory"),
            ("much", module._ANSWER_BYTES, "too much memory"),
        ):
            with pytest.raises(ChildLimitExceeded, match=why):
                await children.ask(f"{WORK}:{function}", question, PATIENCE_S)
        assert await children.ask(f"{WORK}:take", module.MEMORY_BYTES // 4, PATIENCE_S)
        with pytest.raises(ChildLimitExceeded, match="too long"):
            await children.ask(f"{WORK}:never", None, SHORT_S)

    run(main())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@both_loops
def test_a_child_gets_no_variable_and_no_file(
    run: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MARKER", "secret")
    left = os.open(tmp_path / "left", os.O_CREAT)
    os.set_inheritable(left, True)

    async def main() -> None:
        seen = await Children().ask(f"{WORK}:look", None, PATIENCE_S)
        assert "MARKER" not in seen["variables"]
        assert set(seen["files"]) <= {"pipe", "socket", "/dev/null"}
        assert seen["pid"] != os.getpid()

    try:
        run(main())
    finally:
        os.close(left)


@both_loops
def test_a_child_that_is_given_up_ends(run: Runs) -> None:
    async def main() -> None:
        children = Children()
        for _ in range(module.MAX_CHILDREN_AT_ONCE + 1):
            async with children.start(f"{WORK}:never", PATIENCE_S) as child:
                pid = child.process.pid
                task = asyncio.create_task(child.ask(None))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await comes(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]

    run(main())


async def test_no_more_run_at_once_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHILDREN_AT_ONCE", 1)
    children = Children()
    async with children.start(f"{WORK}:double", PATIENCE_S):
        monkeypatch.setattr(module, "START_S", 0.01)
        with pytest.raises(ChildLimitExceeded, match="busy"):
            await children.ask(f"{WORK}:double", 1, PATIENCE_S)
        monkeypatch.undo()
        waiting = asyncio.create_task(children.ask(f"{WORK}:double", 1, PATIENCE_S))
        await asyncio.sleep(0)
    assert await waiting == [1, 1]


async def test_work_that_is_not_there_is_an_error_of_another_kind() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        await Children().ask(f"{WORK}:nothing", 1, PATIENCE_S)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes some of the limits alone")
def test_nothing_is_done_where_its_bounds_cannot_be_set() -> None:
    limits = json.dumps({"NOFILE": 1 << 40})  # more than any kernel takes
    command = [sys.executable, "-I", "-c", module._PROGRAM, json.dumps(sys.path), f"{WORK}:double", limits]
    ended = subprocess.run(command, input=b"1\n", capture_output=True)
    assert ended.returncode != 0
    assert ended.stdout == b""
