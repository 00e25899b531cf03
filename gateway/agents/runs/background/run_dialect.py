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
    """A dialect in which runs without a client are shown. options: of the dialect, as JSON."""

    def make_view(self, start: RunStart, options: Json) -> ViewFactory:
        """Returns the factory of the view of a run that begins, or is taken up."""

    def make_first_event(self, uid: str) -> bytes:
        """Returns the first event of a run. uid: its public id."""

    def make_error_events(self, uid: str, error: GatewayError) -> bytes:
        """Returns the last events of a run that could not begin. uid: its public id."""

    def is_end(self, event: bytes) -> bool:
        """Returns whether an event is the last of its run."""

    async def make_missing_events(
        self, run: Run, options: Json, logged: Sequence[bytes], attempt: int
    ) -> bytes:
        """Returns the events of a run's stored steps that these events lack, and its end if it has ended.

        attempt: names messages that were shown in part.
        """
