"""The agents to which the names in requests resolve, and a cache of them.

A name is resolved for every request of an agent. The cache is cleared with each change that this process makes; a
change by another process shows in the versions of the definitions, or when an entry has expired.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from msgspec import Struct

from gateway.core.agent import AgentSpec
from storage.records import Scope

# The most cached agents, some kilobytes each. Not measured: an agent that is not cached is read again.
_MAX_CACHED_AGENTS = 4096


class ResolvedAgent(Struct, frozen=True):
    """An agent that a request names."""

    # The configuration of the agent's turns.
    spec: AgentSpec
    # The scope of its memory.
    scope: Scope
    # The row and version of each definition of which the spec is made.
    source_versions: frozenset[tuple[int, int]] = frozenset()


@dataclass(slots=True)
class ResolvedAgentCache:
    """Caches the agents that were used last, by project and name."""

    # The seconds for which an entry is used, since processes over one database may miss each other's changes.
    max_age_s: float
    # The number of changes so far. An agent that was read before the last change is not cached.
    generation: int = 0
    # The time (monotonic) when each agent was read, and the agent. The agent that was used last is at the end.
    _entries: OrderedDict[tuple[str, str], tuple[float, ResolvedAgent]] = field(
        default_factory=OrderedDict, init=False
    )

    def clear(self) -> None:
        """Drops all agents, and the agents that are being read now."""
        self._entries.clear()
        self.generation += 1

    def get(self, project: str, name: str) -> ResolvedAgent | None:
        """Returns an agent; None if the agent is not cached, or has expired."""
        read_at, agent = self._entries.get((project, name), (0.0, None))
        if agent is None or time.monotonic() - read_at >= self.max_age_s:
            return None
        self._entries.move_to_end((project, name))
        return agent

    def add(self, project: str, name: str, agent: ResolvedAgent, generation: int) -> None:
        """Caches an agent. generation: the `generation` before the agent was read."""
        if generation == self.generation:
            self._entries[project, name] = time.monotonic(), agent
            if len(self._entries) > _MAX_CACHED_AGENTS:
                self._entries.popitem(last=False)
