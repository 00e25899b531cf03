"""A client of the Responses API over a WebSocket.

with open_socket(world.gateway) as socket:
    client = SocketClient(socket)
    response = client.ask(input="Hello.")
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.patience import PATIENCE_S
from tests.server import RunningGateway

Json = dict[str, Any]
# The types of the last events of a response.
END_TYPES = ("response.completed", "response.incomplete", "response.failed", "error")


def open_socket(
    gateway: RunningGateway, path: str = "/v1/responses", **headers: str
) -> AbstractContextManager[ClientConnection]:
    """Opens a WebSocket. headers: headers of the handshake, with underscores in their names."""
    return connect(
        f"ws://127.0.0.1:{gateway.port}{path}",
        additional_headers={name.replace("_", "-"): value for name, value in headers.items()},
        open_timeout=PATIENCE_S,
        close_timeout=PATIENCE_S,
        max_size=None,
        proxy=None,
    )


@dataclass
class SocketClient:
    """A client with one open WebSocket, which asks for alice."""

    socket: ClientConnection
    # Fields of each request.
    options: Json = field(default_factory=dict)

    def create(self, **options: Any) -> None:
        """Sends a request for a response. options: its fields."""
        self.send(type="response.create", **{"model": "m", "user": "alice", **self.options, **options})

    def send(self, **event: Any) -> None:
        self.socket.send(json.dumps(event))

    def receive(self) -> Json:
        """Returns the next event."""
        event: Json = json.loads(self.socket.recv(PATIENCE_S))
        return event

    def wait_for(self, *types: str) -> Json:
        """Returns the next event of one of these types, or the last event of a response if it comes before."""
        while (event := self.receive())["type"] not in (*types, *END_TYPES):
            pass
        return event

    def ask(self, **options: Any) -> Json:
        """Sends a request, and returns the response, or the event of an error."""
        self.create(**options)
        end = self.wait_for()
        response: Json = end.get("response") or end
        return response
