"""The services of the process that make responses in the background."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from gateway.run.chat import Chat
from gateway.run.receipts import Receipts
from gateway.run.responses.response_runs import ResponseRuns, ResponsesDialect
from gateway.run.usage.limiter import Limiter
from storage.sql.store import Store


class ResponseServices(Struct, frozen=True):
    """The services of the process that make responses."""

    # The store of the responses.
    store: Store
    # Answers the request.
    chat: Chat
    # Reads requests and renders responses.
    dialect: ResponsesDialect
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Gets the receipts of attempts.
    receipts: Receipts
    # The limits that bound the requests.
    limiter: Limiter
    # Reads the runs of responses.
    runs: ResponseRuns
