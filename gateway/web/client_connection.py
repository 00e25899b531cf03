"""A client's connection, as the routes see it. Both protocols of uvicorn put it into the state of each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope


class ClientConnection(Protocol):
    """A client's connection, which reports its loss."""

    # Is called when the client has left. The reply under way sets it.
    on_lost: Callable[[], object] | None

    @property
    def is_writing_paused(self) -> bool:
        """True if a write would wait for the client to read."""

    @property
    def is_refused(self) -> bool:
        """True if the process had few file descriptors left when the connection began: its requests are refused."""

    @property
    def has_whole_body(self) -> bool:
        """True if the body of the newest request has arrived."""

    def is_closing(self) -> bool:
        """Returns whether the client has left, or the connection is being closed."""

    def abort(self) -> None:
        """Ends the connection at once."""


def find_connection(scope: Scope) -> ClientConnection | None:
    """Returns the connection of a request; None: another server than the gateway's own has accepted it."""
    connection: ClientConnection | None = scope["state"].get("connection")
    return connection
