"""An HTTP proxy on this machine: it opens a tunnel for CONNECT, and forwards a request with an absolute URL."""

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
    """A proxy for which each host name is this machine.

    login: `user:password`; None: the proxy demands none.
    asked: the request lines of the requests to the proxy.
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
        request_line, *header_lines = (await reader.readuntil(b"\r\n\r\n")).decode()[:-4].split("\r\n")
        self.asked.append(request_line)
        method, target, _ = request_line.split(" ")
        login_header = "proxy-authorization: "
        sent_login = next(
            (line[len(login_header) :] for line in header_lines if line.lower().startswith(login_header)),
            None,
        )
        expected_login = self.login and "Basic " + base64.b64encode(self.login.encode()).decode()
        if sent_login != expected_login:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        assert url.port is not None
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", url.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            forwarded_lines = [line for line in header_lines if not line.lower().startswith(login_header)]
            # One request a connection: the proxy need not find where a request ends.
            target_writer.write(
                "\r\n".join(
                    [f"{method} {url.path} HTTP/1.1", *forwarded_lines, "Connection: close", "", ""]
                ).encode()
            )
        await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
    finally:
        # A client may be about to send its next request here. The close lets it open another connection.
        writer.close()


@asynccontextmanager
async def proxy(login: str | None = None) -> AsyncIterator[ProxyServer]:
    server = ProxyServer(login=login)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    await close_server(listener)
    await server.aclose()
