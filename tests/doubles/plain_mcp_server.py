"""An MCP server over its pipes, written by hand: it starts in a twentieth of the time that the package `mcp` takes.

For tests of what the gateway does with tools. How it speaks with a server, `mcp_server` tries, which is the package's.
With the argument `told` there is a tool `told`, which returns a variable; with `faulty` the tools `die`, `hang` and
`flood`, which do that; with `ring PATH` a tool `ring`, which notes each bell in that file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any


def add(a: int, b: int) -> str:
    return str(a + b)


def say_hello(name: str) -> str:
    return f"Hello {name}"


def told(name: str) -> str:
    """Returns a variable, backwards unless it is short: a secret that comes as it was sent is masked."""
    value = os.environ.get(name, "nothing")
    return value if len(value) < 8 else value[::-1]


def die() -> str:
    """Ends the server."""
    os._exit(1)


def hang() -> str:
    """Never answers."""
    threading.Event().wait()
    return ""


def flood() -> str:
    """Returns more than a client reads."""
    return "x" * 2_000_000


def ring(bell: str) -> str:
    """Rings a bell; the bell `long` until the client closes the pipe."""
    with open(sys.argv[2], "a") as bells:
        bells.write(f"{bell}\n")
    if bell == "long":
        sys.stdin.read()
    return f"{bell} rang"


def _tool(name: str, description: str, /, **parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return {"name": name, "description": description, "inputSchema": schema}


TOOLS: dict[str, tuple[dict[str, Any], Callable[..., str]]] = {
    "add": (_tool("add", "Adds two numbers.", a="integer", b="integer"), add),
    "say.hello": (_tool("say.hello", "Says hello.", name="string"), say_hello),
}
if "told" in sys.argv:
    TOOLS["told"] = (_tool("told", "Tells a variable.", name="string"), told)
if "ring" in sys.argv:
    TOOLS["ring"] = (_tool("ring", "Rings a bell.", bell="string"), ring)
if "faulty" in sys.argv:
    TOOLS |= {tool.__name__: (_tool(tool.__name__, str(tool.__doc__)), tool) for tool in (die, hang, flood)}


def _answer(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    match method:
        case "initialize":
            server = {"name": "plain", "version": "1"}
            result: dict[str, Any] = {
                "protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server,
            }  # fmt: skip
        case "tools/list":
            result = {"tools": [described for described, _ in TOOLS.values()]}
        case "tools/call":
            _, call = TOOLS[params["name"]]
            result = {"content": [{"type": "text", "text": call(**params["arguments"])}]}
        case _:
            return {"error": {"code": -32601, "message": f"Method not found: {method}"}}
    return {"result": result}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            answer = _answer(request["method"], request.get("params", {}))
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}), flush=True)
