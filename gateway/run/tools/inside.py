"""The program within the sandbox: it lays limits on itself, runs a tool's function, and writes its result to a pipe.

Another interpreter gets it as text, so it imports nothing of ours and needs Python 3.8 alone. The work comes on stdin
as JSON: source, arguments, agent. Arguments of the program: the number of the pipe, and the limits by name.
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
from types import ModuleType, SimpleNamespace
from typing import Any

TOOL = "<tool>"


def main() -> None:
    pipe, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    os.set_inheritable(pipe, False)
    try:
        answer = {"result": _text(_call(json.loads(sys.stdin.buffer.read())))}
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": _words(error)}
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(pipe, "wb") as out:
        # Half a character (a lone surrogate) has no form in UTF-8.
        out.write(json.dumps(answer, ensure_ascii=False).encode(errors="replace"))
    # Python would wait for threads that the tool has left behind.
    os._exit(0)


def _call(work: Any) -> Any:
    tree = ast.parse(work["source"], TOOL)
    function = [each for each in tree.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))][-1]
    # A module of its own, which dataclasses look up by its name.
    module = sys.modules["tool"] = ModuleType("tool")
    exec(compile(tree, TOOL, "exec", dont_inherit=True), module.__dict__)
    arguments = work["arguments"]
    if "agent_state" in [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]:
        arguments["agent_state"] = _agent(work["agent"])
    result = getattr(module, function.name)(**arguments)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _agent(agent: Any) -> SimpleNamespace:
    """Returns a copy of the agent, whose changes lead nowhere: `agent_state.memory.get_block("human").value`."""
    blocks = [SimpleNamespace(**block) for block in agent["blocks"]]
    by_label = {block.label: block for block in blocks}
    memory = SimpleNamespace(blocks=blocks, get_block=by_label.__getitem__)
    return SimpleNamespace(id=agent["id"], name=agent["name"], memory=memory, blocks=blocks)


def _text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _words(error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TOOL]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


if __name__ == "__main__":
    main()
