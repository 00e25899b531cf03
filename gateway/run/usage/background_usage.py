"""The tokens of calls that are made for memories and not for requests, until they are counters of their users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from gateway.core.dates import DAY_S
from gateway.run.usage.unwritten_counters import (
    BACKGROUND_INPUT,
    BACKGROUND_OUTPUT,
    QUESTIONS,
    UnwrittenCounters,
)
from storage.records import Agent
from storage.run_records import TokenCounts
from storage.sql.usage import Usage
from storage.usage_records import UsageKey

# The beginning of the subject of a person's memory.
_USER: Final = "user:"
_NO_TOKENS: Final = TokenCounts()


class _BackgroundKey(NamedTuple):
    """The key of the tokens that background calls used."""

    # The number of the day since the epoch.
    day: int
    # The project; "": the call is a question to a memory, and the memory's project is looked up.
    project: str
    # The row of the memory; 0: the call is for no memory.
    agent_row: int
    # The name of the upstream.
    upstream: str
    # The model that was asked.
    model: str


class _WrittenTokens(NamedTuple):
    """The tokens of one day that are in the table."""

    # The number of the day since the epoch.
    day: int
    # The tokens.
    tokens: int


class BackgroundUsage:
    """The tokens that the process's background calls used."""

    def __init__(
        self,
        usage: Usage,
        counters: UnwrittenCounters,
        load_memory: Callable[[int], Awaitable[Agent | None]],
        now: Callable[[], float],
    ) -> None:
        """Begins without tokens.

        usage: the table of usage.
        counters: the counters to which `attribute` adds the tokens.
        load_memory: returns a memory by its row.
        now: returns the seconds since the epoch.
        """
        self._usage = usage
        self._counters = counters
        self._load_memory = load_memory
        self._now = now
        # The tokens that are not attributed yet. The users of their memories are looked up when they are written.
        self._tokens: dict[_BackgroundKey, TokenCounts] = {}
        # The tokens that are in the table, by project.
        self._written_tokens: dict[str, _WrittenTokens] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, project: str, agent_row: int, upstream: str, model: str, counts: TokenCounts) -> None:
        """Adds a call.

        project: the project; "": a question to a memory, which no budget limits, and the memory's project is looked up.
        agent_row: the row of the memory for which the call was made; 0: no memory.
        """
        key = _BackgroundKey(self._today, project, agent_row, upstream, model)
        self._tokens[key] = counts.plus(self._tokens.get(key, _NO_TOKENS))

    async def count(self, project: str) -> int:
        """Returns the tokens that a project's calls used today, without questions. Raises: StoreError.

        Writes have to be held back meanwhile: while one is under way, its counts are neither in memory nor in the
        table.
        """
        today = self._today
        written_tokens = self._written_tokens.get(project)
        if written_tokens is None or written_tokens.day != today:
            written_tokens = _WrittenTokens(today, await self._usage.count_background_tokens(project, today))
            self._written_tokens[project] = written_tokens
        unwritten_tokens = sum(
            counts.prompt + counts.completion
            for key, counts in self._tokens.items()
            if (key.day, key.project) == (today, project)
        )
        # Tokens that are attributed to users, and not written yet.
        for row in self._counters.select(today, today, {"project": project}):
            unwritten_tokens += row[BACKGROUND_INPUT] + row[BACKGROUND_OUTPUT] - row[QUESTIONS]
        return written_tokens.tokens + unwritten_tokens

    def drop_written(self) -> None:
        """Drops the cached sums of the table, which a write changes."""
        self._written_tokens.clear()

    async def attribute(self) -> None:
        """Moves the tokens to the counters of the users whose memories they were used for. Raises: StoreError."""
        for agent_row in {key.agent_row for key in self._tokens}:
            agent = await self._load_memory(agent_row) if agent_row else None
            scope = None if agent is None else agent.scope
            user = scope.subject.removeprefix(_USER) if scope is not None and scope.is_person else ""
            for key in [key for key in self._tokens if key.agent_row == agent_row]:
                counts = self._tokens.pop(key)
                project = key.project or ("" if scope is None else scope.project)
                usage_key = UsageKey(
                    day=key.day, project=project, user=user, key=0, upstream=key.upstream, model=key.model
                )
                counters = self._counters.get_or_create(usage_key)
                counters[BACKGROUND_INPUT] += counts.prompt
                counters[BACKGROUND_OUTPUT] += counts.completion
                if not key.project:
                    counters[QUESTIONS] += counts.prompt + counts.completion

    @property
    def _today(self) -> int:
        return int(self._now() // DAY_S)
