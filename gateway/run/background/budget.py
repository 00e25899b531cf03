"""The daily budget: how many tokens a project's background calls may use in a day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.run.background.worker import Postponed
from storage.sql.spending import Spending

DAY_S = 86_400
# Is given a call's outcome (ok, failed, or refused: over the budget) and its tokens.
CountCall = Callable[[str, int], None]


@dataclass(eq=False)
class DailyBudget:
    """Holds background calls to a number of tokens for each project and day."""

    spending: Spending
    # Seconds since the epoch; days are UTC's.
    now: Callable[[], float]
    # 0 sets no bound.
    tokens: int
    count: CountCall

    async def check(self, project: str) -> None:
        """Lets a call begin. Raises: Postponed: until tomorrow, since the day's tokens are used up."""
        if not self.tokens:
            return
        spent = await self.spending.spent(project, self._today())
        if spent >= self.tokens:
            self.count("refused", 0)
            raise Postponed(
                f"project {project!r} has used {spent} of its {self.tokens} background tokens of today",
                DAY_S - self.now() % DAY_S,
            )

    async def spend(self, project: str, tokens: int) -> None:
        """Counts a call that was answered, and its tokens."""
        self.count("ok", tokens)
        if tokens:
            await self.spending.spend(project, self._today(), tokens)

    def _today(self) -> int:
        return int(self.now() // DAY_S)
