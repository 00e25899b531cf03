"""Agents as the names in requests resolve to them, and a cache of these.

A name is resolved for every request of an agent. The cache is cleared with each change that this process makes; a
change by another process is seen by the versions of the definitions, or when an entry has expired.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from msgspec import Struct

from gateway.core.agent import AgentSpec
from storage.records import Scope

# The most agents, some kilobytes each. Not measured: an agent beyond these is read again.
_MAX_CACHED_AGENTS = 4096


class ResolvedAgent(Struct, frozen=True):
    """An agent that a request names."""

    spec: AgentSpec
    # The scope of its memory.
    scope: Scope
    # The row and version of each definition that the spec was made of.
    made_of: frozenset[tuple[int, int]] = frozenset()


@dataclass(slots=True)
class ResolvedAgentCache:
    """Caches the agents that were used last, by project and name."""

    # How long an entry is used: processes over one database may miss each other's changes.
    max_age_s: float
    # Rises with each change: an agent that was read before the last one is not cached.
    generation: int = 0
    # When each was read (monotonic), and the agent, the one that was used last at the end.
    _entries: OrderedDict[tuple[str, str], tuple[float, ResolvedAgent]] = field(
        default_factory=OrderedDict, init=False
    )

    def clear(self) -> None:
        """Drops all agents, and those that are being read now."""
        self._entries.clear()
        self.generation += 1

    def get(self, project: str, name: str) -> ResolvedAgent | None:
        """Returns an agent; None if it is not cached, or has expired."""
        read_at, agent = self._entries.get((project, name), (0.0, None))
        if agent is None or time.monotonic() - read_at >= self.max_age_s:
            return None
        self._entries.move_to_end((project, name))
        return agent

    def add(self, project: str, name: str, agent: ResolvedAgent, generation: int) -> None:
        """Caches an agent. generation: as it was before the agent was read."""
        if generation == self.generation:
            self._entries[project, name] = time.monotonic(), agent
            if len(self._entries) > _MAX_CACHED_AGENTS:
                self._entries.popitem(last=False)
