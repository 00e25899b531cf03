"""The program within the sandbox: it lays limits on itself, runs a tool's function, and writes its result to a pipe.

Another interpreter gets it as text, so it imports nothing of ours and needs Python 3.8 alone. It says to the pipe that
it is there, and then the work comes on stdin as JSON: source, arguments, agent. Arguments of the program: the number of
the pipe, and the limits by name.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import resource
import sys
import traceback
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

TOOL = "<tool>"
READY = b"\n"


def main() -> None:
    pipe, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    os.set_inheritable(pipe, False)
    os.write(pipe, READY)
    try:
        answer = _answer(json.loads(sys.stdin.buffer.read()))
    except BaseException as error:
        with suppress(Exception):
            traceback.print_exc()
        answer = {"error": _words(error)}
    for stream in (sys.stdout, sys.stderr):
        # A tool may have closed it, or put something else in its place.
        with suppress(Exception):
            stream.flush()
    with os.fdopen(pipe, "wb") as out:
        # Half a character (a lone surrogate) has no form in UTF-8.
        out.write(json.dumps(answer, ensure_ascii=False).encode(errors="replace"))
    # Python would wait for threads that the tool has left behind.
    os._exit(0)


def _answer(work: Any) -> Any:
    """Returns what the function returned, and which blocks it has changed: label -> value."""
    given = work["agent"]
    blocks = {block["label"]: SimpleNamespace(**block) for block in given.get("blocks", ())}
    result = _text(_call(work, _agent(given, blocks)))
    changed = {}
    for block in given.get("blocks", ()):
        label, value = block["label"], blocks[block["label"]].value
        if not isinstance(value, str):
            raise TypeError(f"the value of the memory block {label!r} must be a string")
        if value != block["value"]:
            changed[label] = value
    return {"result": result, "blocks": changed} if changed else {"result": result}


def _call(work: Any, agent: SimpleNamespace) -> Any:
    tree = ast.parse(work["source"], TOOL)
    function = [each for each in tree.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))][-1]
    # A module of its own, which dataclasses look up by its name.
    module = sys.modules["tool"] = ModuleType("tool")
    exec(compile(tree, TOOL, "exec", dont_inherit=True), module.__dict__)
    arguments = work["arguments"]
    if "agent_state" in [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]:
        arguments["agent_state"] = agent
    result = getattr(module, function.name)(**arguments)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _agent(agent: Any, blocks: Any) -> SimpleNamespace:
    """Returns a copy of the agent: `agent_state.memory.get_block("human").value`. blocks: its blocks by label."""

    def update_block_value(label: str, value: str) -> None:
        blocks[label].value = value

    memory = SimpleNamespace(
        blocks=list(blocks.values()),
        get_block=lambda label: blocks[label],
        get_blocks=lambda: list(blocks.values()),
        list_block_labels=lambda: list(blocks),
        update_block_value=update_block_value,
    )
    return SimpleNamespace(id=agent.get("id"), name=agent.get("name"), memory=memory, blocks=memory.blocks)


def _text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _words(error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TOOL]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


if __name__ == "__main__":
    main()
