"""An HTTP proxy on this machine: it tunnels what is asked for by CONNECT, and hands on what has a whole URL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.doubles.closing import close_server


@dataclass
class ProxyServer:
    """A proxy. asked: the first lines of what it was asked. login: `user:password`; None: it asks for none.

    Every name is this machine's.
    """

    port: int = 0
    login: str | None = None
    asked: list[str] = field(default_factory=list)
    _open: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = field(default_factory=list)

    @property
    def url(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"http://{login}127.0.0.1:{self.port}"

    async def aclose(self) -> None:
        for task, writer in self._open:
            writer.close()
            await task

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append((asyncio.create_task(self._serve(reader, writer)), writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode()[:-4].split("\r\n")
        self.asked.append(first)
        method, target, _ = first.split(" ")
        key = "proxy-authorization: "
        login = next((line[len(key) :] for line in lines if line.lower().startswith(key)), None)
        wanted = self.login and "Basic " + base64.b64encode(self.login.encode()).decode()
        if login != wanted:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        assert url.port is not None
        theirs, ours = await asyncio.open_connection("127.0.0.1", url.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            kept = [line for line in lines if not line.lower().startswith(key)]
            # One request a connection, so that nothing behind it has to be read.
            ours.write(
                "\r\n".join([f"{method} {url.path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode()
            )
        await asyncio.gather(_copy(reader, ours), _copy(theirs, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
    finally:
        # A client that sends its next request meanwhile learns that this connection is gone.
        writer.close()


@asynccontextmanager
async def proxy(login: str | None = None) -> AsyncIterator[ProxyServer]:
    made = ProxyServer(login=login)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    await close_server(listening)
    await made.aclose()
