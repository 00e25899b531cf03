"""An MCP server over its pipes, written by hand: not all of its tools are as the protocol has them.

With an argument its list has no end: `bad` has tools that cannot be called on each page, `empty` has none. `failing`:
its list is an error. `refusing`: a call is an error of the code that follows. `parts`: a call returns the name of its
client, and parts that are no text. `other_script`: its tools have names of two Chinese characters. `descriptors`: a
call returns the files that it has open besides its three streams.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

_ANY = {"type": "object", "properties": {}}
TOOLS = [
    {"name": "plain", "description": "Says what it is given.", "inputSchema": _ANY},
    # What can be called all the same.
    {"name": "empty", "inputSchema": {}, "outputSchema": {}, "title": 7},
    {
        "name": "union",
        "inputSchema": {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}]},
    },
    {"name": "bare"},
    # What cannot.
    {"name": "array", "inputSchema": {"type": "array", "items": {"type": "string"}}},
    {"name": "text", "inputSchema": "a string"},
    {"name": "demands", "inputSchema": {"type": "object", "required": "a"}},
    {"name": "huge", "inputSchema": {**_ANY, "description": "x" * 70_000}},
    {"name": "endless", "inputSchema": {**_ANY, "maxProperties": float("inf")}},
    {"name": ["a", "list"], "inputSchema": _ANY},
    "no tool",
]


PARTS = [
    {"type": "image", "data": "AAAA", "mimeType": "image/png"},
    {"type": "resource_link", "uri": "file:///a.csv", "name": "a.csv", "description": "All sales."},
    {"type": "resource", "resource": {"uri": "file:///b.txt", "text": "Inner text."}},
    {"type": "resource", "resource": {"uri": "file:///c.pdf", "blob": "AAAA", "mimeType": "application/pdf"}},
    {"type": "hologram", "data": "AAAA"},
    {"type": ["text"], "text": "A type that is a list."},
]


def _open_files() -> list[str]:
    paths = []
    for number in range(256):
        with suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{number}"))
    return paths[3:]


def main() -> None:
    client = ""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        answer: dict[str, object] = {"jsonrpc": "2.0", "id": request["id"]}
        result: dict[str, object] = {"content": [{"type": "text", "text": str(request.get("params"))}]}
        if request["method"] == "initialize":
            client = request["params"]["clientInfo"]["name"]
            result = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "careless", "version": "1"},
            }
        elif request["method"] == "tools/call" and sys.argv[1:] == ["parts"]:
            result = {"content": [{"type": "text", "text": f"Hello {client}."}, *PARTS]}
        elif request["method"] == "tools/call" and sys.argv[1:] == ["descriptors"]:
            result = {"content": [{"type": "text", "text": json.dumps(_open_files())}]}
        elif request["method"] == "tools/call" and sys.argv[1:2] == ["refusing"]:
            error = {"code": int(sys.argv[2]), "message": "a must be a number"}
            print(json.dumps({**answer, "error": error}), flush=True)
            continue
        elif request["method"] == "tools/list" and sys.argv[1:] == ["other_script"]:
            result = {"tools": [{"name": f"查{chr(0x4E00 + n)}", "inputSchema": _ANY} for n in range(12)]}
        elif request["method"] == "tools/list" and sys.argv[1:] == ["failing"]:
            print(json.dumps({**answer, "error": {"code": -32603, "message": "no list"}}), flush=True)
            continue
        elif request["method"] == "tools/list":
            result = {"tools": TOOLS}
            if len(sys.argv) > 1:
                tools = [{"name": f"tool-{n}", "inputSchema": "a string"} for n in range(200)]
                result = {"tools": tools if sys.argv[1] == "bad" else [], "nextCursor": "more"}
        print(json.dumps({**answer, "result": result}), flush=True)


if __name__ == "__main__":
    main()
