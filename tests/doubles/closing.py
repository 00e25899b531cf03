"""Closes a test's server without an open connection, which would fail a later test."""

from __future__ import annotations

import asyncio

# Iterations of the event loop that a new connection has until its protocol is called. asyncio of 3.11 needs four.
_ROUNDS = 8


async def close_server(server: asyncio.Server) -> None:
    """Stops accepting and closes the listening sockets; connections that are open stay.

    `Server.close` alone loses a connection that arrives in the same moment: asyncio has accepted it, has no protocol
    for it yet, and leaves its socket open.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)
    server.close()
