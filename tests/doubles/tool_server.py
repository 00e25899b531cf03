"""A server for webhooks and remote tools. It records all requests byte for byte, and has one reply to all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread

from tests.doubles.closing import close_server
from tests.doubles.upstream import Gate
from tests.patience import PATIENCE_S

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class ToolServer:
    """A server, with the heads and bodies of the requests that it has received."""

    port: int
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    # The server answers when it is open.
    gate: Gate | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(
    reply: bytes | asyncio.Event, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ToolServer]:
    server = ToolServer(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = next(
            (int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0
        )
        server.heads.append(head)
        server.bodies.append(await reader.readexactly(size))
        if isinstance(reply, asyncio.Event):
            await reply.wait()
        else:
            if server.gate is not None:
                await server.gate.wait()
            writer.write(reply)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, host, port, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        if isinstance(reply, asyncio.Event):
            reply.set()
        await close_server(listening)
        await listening.wait_closed()


@contextmanager
def served(reply: bytes) -> Iterator[ToolServer]:
    """The same for a test without a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    serve = serving(reply)
    try:
        yield asyncio.run_coroutine_threadsafe(serve.__aenter__(), loop).result(PATIENCE_S)
    finally:
        asyncio.run_coroutine_threadsafe(serve.__aexit__(None, None, None), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def replying(status: str, body: bytes) -> bytes:
    """Returns a reply with this status line and body."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
