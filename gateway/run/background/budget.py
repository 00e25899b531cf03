"""The daily budget: how many tokens a project's background calls may use in a day."""

from __future__ import annotations

from collections.abc import Callable

from gateway.run.background.worker import Postponed
from storage.sql.spending import Spending

DAY_S = 86_400
# Is given a call's outcome (ok, failed, or refused: over the budget) and its tokens.
CountCall = Callable[[str, int], None]


class DailyBudget:
    """Holds background calls to a number of tokens for each project and day. tokens: 0 sets no bound.

    now: seconds since the epoch; days are UTC's.
    """

    def __init__(self, spending: Spending, now: Callable[[], float], tokens: int, count: CountCall) -> None:
        self._spending = spending
        self._now = now
        self._tokens = tokens
        self._count = count

    async def check(self, project: str) -> None:
        """Lets a call begin. Raises: Postponed: until tomorrow, since the day's tokens are used up."""
        if not self._tokens:
            return
        spent = await self._spending.spent(project, self._today())
        if spent >= self._tokens:
            self._count("refused", 0)
            raise Postponed(
                f"project {project!r} has used {spent} of its {self._tokens} background tokens of today",
                DAY_S - self._now() % DAY_S,
            )

    async def spend(self, project: str, tokens: int) -> None:
        """Counts a call that was answered, and its tokens."""
        self._count("ok", tokens)
        if tokens:
            await self._spending.spend(project, self._today(), tokens)

    def _today(self) -> int:
        return int(self._now() // DAY_S)
