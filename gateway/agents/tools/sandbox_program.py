"""The program within the sandbox: it lays limits on itself, runs a tool's function, and writes its result to a pipe.

Another interpreter gets the program as text, so it imports the standard library alone and needs Python 3.8. It reports
to the pipe that it has started, and then the work comes on stdin as JSON: source, arguments, agent. Arguments of the
program: the number of the pipe, and the limits by name.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import json
import os
import resource
import sys
import traceback
import typing
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

TOOL = "<tool>"
READY = b"\n"
# While 60 processes of four calls compute, a chat takes 129 ms in the median: 114 with 19, 326 with 10, 481 with
# its caller's priority (all in one control group, as in a container or a unit).
_NICE = 15
# The modules that a source may name without an import, besides all names of `typing`, as on Letta's server.
_MODULES = ("base64", "hashlib", "pickle", "struct", "sys")


def main() -> None:
    """Sets the limits of the process, reads the work, runs the function, writes its answer to the pipe, and exits."""
    pipe, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    # No other descriptor should be open: the code could get out of the sandbox by one.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    os.nice(_NICE)
    os.set_inheritable(pipe, False)
    os.write(pipe, READY)
    try:
        answer = _make_answer(json.loads(sys.stdin.buffer.read()))
    except BaseException as error:
        with suppress(Exception):
            traceback.print_exc()
        answer = {"error": _render_error(error)}
    for stream in (sys.stdout, sys.stderr):
        # The tool may have closed or replaced the stream.
        with suppress(Exception):
            stream.flush()
    with os.fdopen(pipe, "wb") as out:
        # Half a character (a lone surrogate) has no form in UTF-8.
        out.write(json.dumps(answer, ensure_ascii=False).encode(errors="replace"))
    # Python would wait for threads that the tool has left running.
    os._exit(0)


def _make_answer(work: Any) -> Any:
    """Returns the result of the function, and the blocks that it has changed: label -> value."""
    agent = work["agent"]
    blocks = {block["label"]: SimpleNamespace(**block) for block in agent.get("blocks", ())}
    result = _render_text(_perform_call(work, _make_agent(agent, blocks)))
    changed = {}
    for block in agent.get("blocks", ()):
        label, value = block["label"], blocks[block["label"]].value
        if not isinstance(value, str):
            raise TypeError(f"the value of the memory block {label!r} must be a string")
        if value != block["value"]:
            changed[label] = value
    return {"result": result, "blocks": changed} if changed else {"result": result}


def _perform_call(work: Any, agent: SimpleNamespace) -> Any:
    """Runs the source, and returns the result of its last function. agent: the agent as the source sees it."""
    tree = ast.parse(work["source"], TOOL)
    function = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))][-1]
    # A registered module, since dataclasses look their module up by name.
    module = sys.modules["tool"] = ModuleType("tool")
    module.__dict__.update({name: getattr(typing, name) for name in typing.__all__})
    for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}.intersection(_MODULES):
        module.__dict__[name] = __import__(name)
    arguments = _prepare_arguments(function, work["arguments"], agent)
    exec(compile(tree, TOOL, "exec", dont_inherit=True), module.__dict__)
    result = getattr(module, function.name)(**arguments)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _prepare_arguments(function: Any, arguments: Any, agent: SimpleNamespace) -> Any:
    """Returns the arguments of a function. Removes annotations with classes, since the source may lack the classes."""
    injected = {"agent_state": agent, "self": None}
    for parameter in (*function.args.args, *function.args.kwonlyargs):
        if parameter.arg in injected:
            arguments[parameter.arg] = injected[parameter.arg]
        elif _has_class(parameter.annotation):
            parameter.annotation = None
            if parameter.arg in arguments:
                arguments[parameter.arg] = _make_fields(arguments[parameter.arg])
    if _has_class(function.returns):
        function.returns = None
    return arguments


def _has_class(annotation: Any) -> bool:
    """Returns whether a type has a name that is neither built in nor of `typing`."""
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name) and not hasattr(builtins, node.id) and not hasattr(typing, node.id):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            with suppress(SyntaxError, ValueError):
                if _has_class(ast.parse(node.value, mode="eval")):
                    return True
    return False


class _Fields(dict):  # type: ignore[type-arg]
    """An object of a class that the source may lack. Its fields are attributes, as a model's, and keys, as a dict's."""

    def __getattribute__(self, name: str) -> Any:
        return self[name] if name in self else super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def model_dump(self, **_: Any) -> Any:
        return self


def _make_fields(value: Any) -> Any:
    if isinstance(value, list):
        return [*map(_make_fields, value)]
    if isinstance(value, dict):
        return _Fields({key: _make_fields(item) for key, item in value.items()})
    return value


def _make_agent(agent: Any, blocks: Any) -> SimpleNamespace:
    """Returns the agent as the tool's code gets it, with `agent_state.memory.get_block("human").value`.

    blocks: the agent's blocks by label.
    """

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


def _render_text(result: Any) -> str:
    if isinstance(result, str):
        return result
    try:
        return json.dumps(_make_plain(result), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        # Keys that JSON does not have, or a list that contains itself.
        return str(result)


def _make_plain(value: Any) -> Any:
    """Returns a result with plain dicts in place of objects, as JSON needs them."""
    if isinstance(value, (list, tuple)):
        return [*map(_make_plain, value)]
    return {name: _make_plain(item) for name, item in dict.items(value)} if isinstance(value, dict) else value


def _render_error(error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TOOL]
    suffix = f" (line {lines[-1]})" if lines else ""
    text = "<exception str() failed>"  # the text of `traceback`
    with suppress(BaseException):  # the tool may have written the error's `__str__`
        text = str(error)
    return f"{type(error).__name__}: {text}{suffix}"


if __name__ == "__main__":
    main()
