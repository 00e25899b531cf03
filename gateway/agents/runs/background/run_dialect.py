"""The seam to the dialect in which runs without a client are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adapters.types import Json
from gateway.agents.runs.run import RunStart
from gateway.core.turn.client_view import ViewFactory
from gateway.errors import GatewayError
from gateway.run.event_log import EventDialect
from storage.run_records import Run


class RunDialect(EventDialect, Protocol):
    """A dialect in which runs without a client are shown."""

    def make_view(self, start: RunStart, options: Json) -> ViewFactory:
        """Returns the factory of the view of a run that begins, or is resumed. options: the dialect's options."""

    def make_first_event(self, uid: str) -> bytes:
        """Returns the first event of a run. uid: the run's uid."""

    def make_error_events(self, uid: str, error: GatewayError) -> bytes:
        """Returns the last events of a run that could not begin. uid: the run's uid."""

    def is_end(self, event: bytes) -> bool:
        """Returns whether an event is the last of its run."""

    async def make_missing_events(
        self, run: Run, options: Json, logged: Sequence[bytes], attempt: int
    ) -> bytes:
        """Returns the events that a run's log lacks: those of stored steps, and those of the end if the run has ended.

        options: the dialect's options.
        logged: the events that the log has.
        attempt: the number of the attempt, which is in the ids of messages that were shown in part.
        """
