"""The findings of a session with an MCP server that the `mcp` package hides from its caller."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.agents.tools.hosts import HostError


@dataclass(slots=True)
class SessionReport:
    """The findings of one session, noted while it goes on."""

    # Errors of the host. The package raises errors of its own for them.
    host_errors: list[HostError] = field(default_factory=list)
    # The names of tools that cannot be called. The package would refuse a whole list for one of them.
    uncallable: list[str] = field(default_factory=list)
