"""The daily budget: the tokens that a project's background calls may use in a day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.core.dates import DAY_S
from gateway.run.background.job_context import JobPostponed
from gateway.run.usage.meter import Meter
from storage.run_records import TokenCounts

# `refused`: the call would have been over the budget, and was not made.
CallOutcome = Literal["ok", "failed", "refused"]
# Counts a call, given its outcome and its tokens.
CountCall = Callable[[CallOutcome, int], None]


@dataclass(eq=False)
class DailyBudget:
    """Limits background calls to a number of tokens for each project and day, by the counts of the meter."""

    # The meter, which counts the tokens of the calls.
    meter: Meter
    # Returns the seconds since the epoch; days are UTC's.
    now: Callable[[], float]
    # The most tokens of a project in a day; 0: no limit.
    daily_tokens: int
    # Counts each call in the metrics.
    count_call: CountCall

    async def check(self, project: str) -> None:
        """Checks that a call may begin. Raises: JobPostponed: until tomorrow, since the day's tokens are used up."""
        if not self.daily_tokens:
            return
        used_tokens = await self.meter.count_background_tokens(project)
        if used_tokens >= self.daily_tokens:
            self.count_call("refused", 0)
            raise JobPostponed(
                f"project {project!r} has used {used_tokens} of its {self.daily_tokens} background tokens of today",
                DAY_S - self.now() % DAY_S,
            )

    def spend(
        self,
        project: str,
        agent_row: int,
        upstream: str,
        model: str,
        counts: TokenCounts,
        *,
        outcome: CallOutcome = "ok",
    ) -> None:
        """Counts a call that was answered, and its tokens. agent_row: the row of the memory of the call."""
        tokens = counts.prompt + counts.completion
        self.count_call(outcome, tokens)
        if tokens:
            self.meter.background.add(project, agent_row, upstream, model, counts)
