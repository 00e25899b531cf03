"""The messages of an MCP server, without the parts for which the `mcp` package would refuse a whole message."""

from __future__ import annotations

from typing import Any, Self

from gateway.agents.tools.mcp_report import SessionReport
from gateway.core.lenient import as_text

# The types of parts of a result that the package knows.
_BLOCK_TYPES = frozenset(("text", "image", "audio", "resource", "resource_link"))


class LenientStream:
    """A stream of a server's messages, without the parts for which the package would refuse a whole message.

    Tools that cannot be called are left out of their list, and reported. A part of a result with an unknown type
    becomes a text that names the type.
    """

    def __init__(self, stream: Any, report: SessionReport) -> None:
        self._stream = stream
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(*error)
        return ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._stream.__anext__()
        result = getattr(getattr(message, "message", None), "result", None)
        if isinstance(result, dict) and isinstance(result.get("tools"), list):
            tools = [tool for tool in result["tools"] if isinstance(tool, dict)]
            result["tools"] = [listed for tool in tools if (listed := self._read_tool(tool)) is not None]
        if isinstance(result, dict) and isinstance(result.get("content"), list):
            result["content"] = [*map(_read_block, result["content"])]
        return message

    def _read_tool(self, tool: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the fields of a tool that the gateway reads; None if the tool cannot be called."""
        name, schema = tool.get("name"), tool.get("inputSchema", {})
        if not isinstance(name, str):
            return None
        # A schema without a type may allow any arguments, or be a list of alternatives.
        schema = {"type": "object", **schema} if isinstance(schema, dict) else {}
        if not _takes_arguments(schema):
            self._report.uncallable.append(name)
            return None
        return {"name": name, "description": as_text(tool.get("description")), "inputSchema": schema}


def _read_block(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    kind = str(block.get("type"))  # a server may send anything
    return block if kind in _BLOCK_TYPES else {"type": "text", "text": f"[{kind}]"}


def _takes_arguments(schema: dict[str, Any]) -> bool:
    """Returns whether a schema describes arguments by name."""
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    return (
        schema.get("type") == "object"
        and isinstance(properties, dict)
        and all(isinstance(property_, dict | bool) for property_ in properties.values())
        and isinstance(required, list)
        and all(isinstance(name, str) for name in required)
    )
