"""An MCP server over pipes, as the gateway and the client know it, and settings that allow its program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gateway.core.definition import McpServerDefinition
from gateway.settings import ToolSettings
from tests.doubles import plain_mcp_server

PLAIN = McpServerDefinition(command=(sys.executable, str(Path(plain_mcp_server.__file__))))
ALLOWED = ToolSettings(mcp_stdio=(" ".join(PLAIN.command),))
CONFIG: Any = {"mcp_server_type": "stdio", "command": PLAIN.command[0], "args": list(PLAIN.command[1:])}
