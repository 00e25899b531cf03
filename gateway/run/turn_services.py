"""The services that all turns of a process share: the writes that go on after them, metrics, and limits."""

from __future__ import annotations

from msgspec import Struct

from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.run.pending import PendingWrites
from gateway.settings import Settings
from storage.records import Scope


class TurnLimits(Struct, frozen=True):
    """The limits of a turn."""

    # The most seconds that the end of a reply waits for the commit.
    commit_wait_s: float
    # The most hidden tool rounds of a turn by an agent without tool rules.
    max_hidden_rounds: int
    # The most bytes of a stream of which the turn is stored: a larger chat completion ends with an error, and of a
    # larger native reply the beginning is stored.
    max_streamed_bytes: int
    # The silence after which a keep-alive comment is sent; 0: never.
    keep_alive_s: float = 0.0


def make_turn_limits(settings: Settings, limits: Limits) -> TurnLimits:
    """Returns the limits of the turns that clients ask for."""
    return TurnLimits(
        commit_wait_s=limits.commit_wait_s,
        max_hidden_rounds=settings.memory.max_tool_rounds,
        max_streamed_bytes=limits.streamed_bytes,
        keep_alive_s=settings.server.keep_alive_comment_s,
    )


class TurnServices(Struct):
    """The services that the turns of a process share. Runs of agents have copies, with other limits."""

    # The writes that go on after their turns.
    pending: PendingWrites
    # The metrics of the process.
    metrics: Metrics
    # The limits of each turn.
    limits: TurnLimits

    async def wait_written(self, scope: Scope) -> None:
        """Waits for the turns of a memory that are being written, at most as long as a reply waits for its commit."""
        await self.pending.wait_written(scope, self.limits.commit_wait_s)

    async def wait_project_written(self, project: str, *, only_unnamed: bool = False) -> None:
        """Waits for the turns of a project, as `PendingWrites.wait_project_written`, as long as `wait_written` does."""
        await self.pending.wait_project_written(project, self.limits.commit_wait_s, only_unnamed=only_unnamed)
