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

    # How long the end of a reply waits for the commit.
    commit_wait_s: float
    # How many hidden tool rounds a turn without rules may have.
    max_rounds: int
    # The size of a stream of which the turn is remembered.
    streamed_bytes: int
    # The silence after which a keep-alive comment is sent; 0: never.
    keep_alive_s: float = 0.0


def make_turn_limits(settings: Settings, limits: Limits) -> TurnLimits:
    return TurnLimits(
        commit_wait_s=limits.commit_wait_s,
        max_rounds=settings.memory.max_tool_rounds,
        streamed_bytes=limits.streamed_bytes,
        keep_alive_s=settings.server.keep_alive_comment_s,
    )


class TurnServices(Struct):
    """The services that the turns of a process share. Runs of agents have copies, with other limits."""

    # The writes that go on after their turns.
    pending: PendingWrites
    metrics: Metrics
    limits: TurnLimits

    async def wait_written(self, scope: Scope) -> None:
        """Waits for the turns of a memory that are being written, at most as long as a reply waits for its commit."""
        await self.pending.wait_written(scope, self.limits.commit_wait_s)

    async def wait_project_written(self, project: str) -> None:
        """Waits for the turns of a project."""
        await self.pending.wait_project_written(project, self.limits.commit_wait_s)

    async def wait_unnamed_written(self, project: str) -> None:
        """Waits for the turns of a project in which no user is named."""
        await self.pending.wait_unnamed_written(project, self.limits.commit_wait_s)
