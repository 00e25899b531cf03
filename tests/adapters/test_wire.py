"""Connections to upstreams over real sockets, with servers that say byte for byte what a test wants them to."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from adapters.body_pieces import Upload
from adapters.errors import (
    ProviderReplyBroken,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
    ReplyQuotaUsedUp,
)
from adapters.http_reply import HttpReply
from adapters.reply_quota import ReplyQuota
from adapters.timeouts import Timeouts
from adapters.transport import HttpTransport
from tests.doubles.upstream import Gate
from tests.patience import PATIENCE_S, SHORT_S, advance_loop, comes

HEADERS = {"Content-Type": "application/json"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Last(bytes):
    """An answer after which the server closes the connection."""


class Answering:
    """A server that answers each request with the next of its answers. opened: how many connections came."""

    def __init__(self, answers: tuple[bytes | list[bytes], ...]) -> None:
        self._answers = iter(answers)
        self.opened = 0
        self.heads: list[bytes] = []
        self.gone = asyncio.Event()
        self._talks: dict[asyncio.Future[None], asyncio.StreamWriter] = {}
        self.url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, StopIteration):
            is_open = True
            while is_open:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                size = re.search(rb"content-length: (\d+)", head, re.I)
                await reader.readexactly(int(size[1]) if size else 0)
                answer = next(self._answers)
                for piece in answer if isinstance(answer, list) else [answer]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                is_open = not isinstance(answer, Last)
        self.gone.set()
        writer.close()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._talks[asyncio.ensure_future(self.talk(reader, writer))] = writer

    async def end(self) -> None:
        for writer in self._talks.values():
            writer.transport.abort()
        await asyncio.gather(*self._talks)


@asynccontextmanager
async def answering(*answers: bytes | list[bytes]) -> AsyncGenerator[Answering]:
    said = Answering(answers)
    server = await asyncio.start_server(said.run, "127.0.0.1", 0)
    said.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        try:
            yield said
        finally:
            await said.end()


async def post(transport: HttpTransport, server: Answering, method: str = "POST") -> HttpReply:
    return await transport.send(method, server.url, HEADERS, None if method == "HEAD" else b"{}")


async def ask(transport: HttpTransport, server: Answering, method: str = "POST") -> tuple[int, bytes]:
    reply = await post(transport, server, method)
    return reply.status, await reply.read(1_000_000)


# How a response ends

CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1;a=b\r\nk\r\n0\r\nx-trailer: 1\r\n\r\n"
)
KEPT: dict[str, tuple[bytes, bytes]] = {
    "a length": (OK, b"ok"),
    "chunks, and a trailer": (CHUNKED, b"ok"),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "the length of what is not sent": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", b""),
    "HTTP/1.0 that says so": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
        b"ok",
    ),
    "interim responses": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n" + OK,
        b"ok",
    ),
    "line feeds alone": (OK.replace(b"\r\n", b"\n"), b"ok"),
}
DROPPED: dict[str, tuple[bytes, bytes]] = {
    "a second response": (OK + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", b"ok"),
    "connection: close": (OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"), b"ok"),
    "HTTP/1.0": (OK.replace(b"1.1", b"1.0"), b"ok"),
}


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("case", KEPT)
async def test_a_connection_is_reused_after_a_whole_response(
    transport: HttpTransport, case: str, in_bytes: bool
) -> None:
    """The same bytes cut anywhere give the same response."""
    answer, body = KEPT[case]
    async with answering([bytes((byte,)) for byte in answer] if in_bytes else answer, OK) as server:
        reply = await post(transport, server)
        assert {name for name, _ in reply.headers} == set()
        assert await reply.read(100) == body
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 1


@pytest.mark.parametrize("case", DROPPED)
async def test_a_connection_is_dropped_that_is_closed_or_said_too_much(
    transport: HttpTransport, case: str
) -> None:
    answer, body = DROPPED[case]
    async with answering(answer, OK) as server:
        assert (await ask(transport, server))[1] == body
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 2


async def test_bytes_between_requests_are_no_reply_to_the_next(transport: HttpTransport) -> None:
    async with answering([OK, OK.replace(b"ok", b"no")], OK) as server:
        assert await ask(transport, server) == (200, b"ok")
        await asyncio.sleep(SHORT_S)  # so that it is there
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 2


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_without_a_length_ends_with_its_connection(
    transport: HttpTransport, version: bytes
) -> None:
    async with answering(Last(b"HTTP/" + version + b" 200 OK\r\n\r\nall of it")) as server:
        assert await ask(transport, server) == (200, b"all of it")


@pytest.mark.parametrize("length", [0, 999])
async def test_a_reply_to_head_has_no_body_whatever_its_length_says(
    transport: HttpTransport, length: int
) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length, OK) as server:
        assert await ask(transport, server, "HEAD") == (200, b"")
        assert await ask(transport, server) == (200, b"ok")


REDIRECT = b"HTTP/1.1 307 Moved\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n"


async def test_a_redirect_is_not_followed(transport: HttpTransport) -> None:
    async with answering(REDIRECT % b"/files") as server:
        reply = await post(transport, server, "GET")
        assert (reply.status, dict(reply.headers)["location"]) == (307, "/files")
        await reply.aclose()


@pytest.mark.parametrize(
    ("location", "where"),
    [
        (b"https://api.example/v1/chat?key=secret", "to https://api.example,"),
        (b"/login", "to another path of its own,"),
        (b"http://[", "to an address that cannot be read,"),
        (b"", "to an address that it does not name,"),
    ],
)
async def test_a_redirected_post_reaches_no_client(
    transport: HttpTransport, location: bytes, where: str
) -> None:
    """A client would send its words past the gateway."""
    async with answering(REDIRECT % location) as server:
        with pytest.raises(ProviderUnreachable, match=where):
            await post(transport, server)
        assert len(server.heads) == 1


@pytest.mark.parametrize("cut", range(1, len(CHUNKED) - 1))
async def test_a_response_that_is_cut_is_no_whole_one(transport: HttpTransport, cut: int) -> None:
    async with answering(Last(CHUNKED[:cut])) as server:
        with pytest.raises((ProviderUnreachable, ProviderReplyBroken)):
            await ask(transport, server)


# What is no HTTP


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"x-a: 1\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 70_000 + b"\r\n\r\n",
        OK.replace(b"OK\r\n", b"OK\r\nx-a: a\0b\r\n"),
        OK.replace(b"OK\r\n", b"OK\r\ncontent-length: 3\r\n"),
    ],
    ids=["a head without end", "a head beyond measure", "a zero byte", "two lengths"],
)
async def test_a_head_that_cannot_be_read_is_unreachable(transport: HttpTransport, answer: bytes) -> None:
    async with answering(answer) as server:
        with pytest.raises(ProviderUnreachable, match="not in HTTP that can be read"):
            await ask(transport, server)


@pytest.mark.parametrize("rest", [b"zz\r\n", b"0\r\nx: " + b"a" * 70_000])
async def test_a_body_that_cannot_be_read_breaks(transport: HttpTransport, rest: bytes) -> None:
    """Within a second: aiohttp closes such a connection, and reports it to nobody who reads the body."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
    async with answering([head, rest]) as server, asyncio.timeout(PATIENCE_S):
        chunks = (await post(transport, server)).chunks()
        assert await anext(chunks) == b"ok"
        with pytest.raises(ProviderReplyBroken):
            await anext(chunks)


class Endless:
    """A server that answers a request and sends on, a piece at a time: 8 MiB, or as many pieces.

    pause_s: between the pieces.
    body: of a response whose head is `begin`; it waits for `body_due`.
    """

    def __init__(
        self, begin: bytes, piece: bytes, pieces: int | None = None, pause_s: float = 0.0, body: bytes = b""
    ) -> None:
        self._begin, self._piece, self._pause_s, self._body = begin, piece, pause_s, body
        self.body_due = asyncio.Event()
        self._left = 8 * 1024 * 1024 // len(piece) if pieces is None else pieces
        self._ended = asyncio.Event()
        self.hold = asyncio.Event()  # the pieces wait for it
        self.hold.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What nobody reads stays here, rather than in the system's buffers.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._begin)
        if self._body:
            await self.body_due.wait()
            writer.write(self._body)
        await self.hold.wait()
        with suppress(ConnectionError):
            while self._left:
                writer.write(self._piece)
                self._left -= 1
                await writer.drain()
                await asyncio.sleep(self._pause_s)  # the transport reads in the same loop
        writer.transport.abort()
        self._ended.set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        async with server, asyncio.timeout(PATIENCE_S):
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            await self._ended.wait()

    async def is_broken_off(self) -> bool:
        """Returns whether it could not send all, once it has ended."""
        await self._ended.wait()
        return self._left > 0


INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n"


@pytest.mark.parametrize("piece", [b"x-trailer: 1\r\n" * 1_000, b"x-trailer: 1" * 1_000], ids=["many", "one"])
async def test_trailers_are_bounded(transport: HttpTransport, piece: bytes) -> None:
    """The parser holds them until their end, which never comes here."""
    server = Endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", piece)
    async with server.serve() as url:
        with pytest.raises((ProviderReplyBroken, ProviderUnreachable)):
            await (await transport.send("GET", url, HEADERS)).read(100)
        assert await server.is_broken_off()


async def test_interim_responses_are_bounded_in_bytes(transport: HttpTransport) -> None:
    server = Endless(b"", INTERIM * 300)
    async with server.serve() as url:
        with pytest.raises(ProviderUnreachable, match="before a response"):
            await transport.send("GET", url, HEADERS)
        assert await server.is_broken_off()


async def test_interim_responses_give_no_response_more_time() -> None:
    transport = HttpTransport(Timeouts(first_byte_s=SHORT_S))
    server = Endless(b"", INTERIM, pieces=40, pause_s=SHORT_S / 4)
    async with server.serve() as url:
        with pytest.raises(ProviderTimeout):
            await transport.send("GET", url, HEADERS)
    await transport.aclose()


async def test_bytes_on_an_idle_connection_are_bounded(transport: HttpTransport) -> None:
    server = Endless(OK, INTERIM * 300)
    server.hold.clear()
    async with server.serve() as url:
        assert await (await transport.send("GET", url, HEADERS)).read(100) == b"ok"
        server.hold.set()
        assert await server.is_broken_off()


async def test_bytes_after_a_body_are_bounded(transport: HttpTransport) -> None:
    """Within a body nothing is counted; at its end the bound holds again."""
    server = Endless(OK.removesuffix(b"ok"), INTERIM * 300, body=b"ok")
    server.hold.clear()
    async with server.serve() as url:
        reply = await transport.send("GET", url, HEADERS)
        server.body_due.set()
        assert await reply.read(100) == b"ok"
        server.hold.set()
        assert await server.is_broken_off()


async def test_header_values_keep_their_bytes(transport: HttpTransport) -> None:
    async with answering(OK.replace(b"OK\r\n", b"OK\r\nx-a: \xe9 \r\nx-b: \xc3\xa9\r\n")) as server:
        headers = dict((await post(transport, server)).headers)
        assert headers["x-a"].encode("utf-8", "surrogateescape") == b"\xe9"
        assert headers["x-b"] == "é"


# Encoded content


def encoded(coding: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def bare_deflate(body: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packing.compress(body) + packing.flush()


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"words")),
        ("GZIP", gzip.compress(b"wo") + gzip.compress(b"") + gzip.compress(b"rds")),
        ("deflate", zlib.compress(b"words")),
        ("deflate", bare_deflate(b"words")),
        ("identity", b"words"),
    ],
    ids=["gzip", "members", "deflate", "bare deflate", "identity"],
)
async def test_encoded_content_is_decoded(
    transport: HttpTransport, coding: str, body: bytes, in_bytes: bool
) -> None:
    answer = encoded(coding, body)
    async with answering([bytes((byte,)) for byte in answer] if in_bytes else answer) as server:
        reply = await post(transport, server)
        assert (reply.headers, await reply.read(100)) == ((), b"words")


@pytest.mark.parametrize("coding", ["x-gzip", "gzip, br"])
async def test_content_that_cannot_be_decoded_goes_on_with_its_encoding(
    transport: HttpTransport, coding: str
) -> None:
    async with answering(encoded(coding, b"???")) as server:
        reply = await post(transport, server)
        assert (reply.headers, await reply.read(100)) == ((("content-encoding", coding),), b"???")


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        encoded("gzip", b"no gzip at all"),
        encoded("deflate", zlib.compress(b"words")[:-5]),
    ],
)
async def test_content_that_cannot_be_decoded_to_its_end_breaks_its_reply(
    transport: HttpTransport, answer: bytes, in_bytes: bool
) -> None:
    async with answering([bytes((byte,)) for byte in answer] if in_bytes else answer) as server:
        with pytest.raises((ProviderReplyBroken, ProviderUnreachable)):
            await ask(transport, server)


async def test_content_is_inflated_no_further_than_it_is_read(transport: HttpTransport) -> None:
    size = 64 << 20
    packing = zlib.compressobj()
    packed = b"".join(packing.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packing.flush()
    async with answering(encoded("deflate", packed), OK) as server:
        reply = await post(transport, server)
        sizes = [len(chunk) async for chunk in reply.chunks()]
        assert sum(sizes) == size
        assert max(sizes) <= 1 << 20
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 1


async def test_a_bomb_in_small_chunks_is_inflated_no_further_either(transport: HttpTransport) -> None:
    size = 32 << 20
    packed = zlib.compress(bytes(size), 9)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece)
        for at in range(0, len(packed), 64)
        if (piece := packed[at : at + 64])
    )
    async with answering([head, body + b"0\r\n\r\n"], OK) as server:
        reply = await post(transport, server)
        sizes = [len(chunk) async for chunk in reply.chunks()]
        assert sum(sizes) == size
        assert max(sizes) <= 1 << 20
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 1


# How much is held


LARGE = 200_000


def large(size: int = LARGE) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (size, b"x" * size)


async def test_whole_replies_have_one_quota_over_all() -> None:
    """Each may be as large as one may, but not all at the same time; small ones pass meanwhile."""
    quota = ReplyQuota(300_000)
    one, other = HttpTransport(replies=quota), HttpTransport(replies=quota)
    try:
        async with answering(*[large()] * 2, OK, large()) as server:
            first, second = await post(one, server), await post(other, server)
            assert len(await first.read(1_000_000)) == LARGE
            with pytest.raises(ReplyQuotaUsedUp, match="all replies under way are larger than 300000 bytes"):
                await second.read(1_000_000)
            assert await ask(other, server) == (200, b"ok")
            await first.aclose()
            assert quota.left_bytes == quota.limit_bytes
            third = await post(other, server)
            assert len(await third.read(1_000_000)) == LARGE
            await third.aclose()
            assert quota.left_bytes == quota.limit_bytes
    finally:
        await one.aclose()
        await other.aclose()


@pytest.mark.parametrize("answer", [large()[:-1], large(400_000)], ids=["it breaks", "it is too large"])
async def test_a_reply_that_cannot_be_read_gives_its_quota_back(answer: bytes) -> None:
    quota = ReplyQuota(1_000_000)
    transport = HttpTransport(replies=quota)
    async with answering(Last(answer)) as server:
        reply = await post(transport, server)
        with pytest.raises((ProviderReplyBroken, ProviderTooLarge)):
            await reply.read(300_000)
        await reply.aclose()
    assert quota.left_bytes == quota.limit_bytes
    await transport.aclose()


async def test_a_reader_that_waits_does_not_fill_the_memory(transport: HttpTransport) -> None:
    """What is not read stays with the upstream; read on, all of it comes, and the connection is reused."""
    size = 30_000_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    async with answering(answer, OK) as server:
        reply = await post(transport, server)
        for _ in range(200):
            await asyncio.sleep(0)
        first = await anext(reply.chunks())
        assert len(first) < size / 10
        assert len(first) + len(await reply.read(size)) == size
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 1


MUCH = 2 << 20
BLOWN_UP: dict[str, bytes] = {
    "an extension of a chunk": CHUNKED.replace(b"1;a=b", b"1;" + b"a" * MUCH),
    "members of gzip without content": encoded("gzip", gzip.compress(b"") * 1000 + gzip.compress(b"ok")),
}


@pytest.mark.parametrize("case", BLOWN_UP)
async def test_much_that_is_no_content_is_read_all_the_same(transport: HttpTransport, case: str) -> None:
    """Nobody can take it, so nothing would let the connection be read again."""
    async with answering(BLOWN_UP[case], OK) as server, asyncio.timeout(PATIENCE_S):
        assert await ask(transport, server) == (200, b"ok")
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 1


async def test_a_full_buffer_stops_the_clock(transport: HttpTransport) -> None:
    """Our own slowness is no silence of the upstream."""
    transport.timeouts = Timeouts(between_chunks_s=SHORT_S)
    size = 30_000_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    async with answering(answer) as server:
        reply = await post(transport, server)
        await asyncio.sleep(2 * SHORT_S)
        assert len(await reply.read(size)) == size


# Which connection


async def test_a_reply_that_is_whole_keeps_its_connection_before_it_is_read(
    transport: HttpTransport,
) -> None:
    async with answering(OK, OK.replace(b"ok", b"no")) as server:
        first = await post(transport, server)
        second = await post(transport, server)
        assert (await first.read(10), await second.read(10)) == (b"ok", b"no")
        await first.aclose()
        assert server.opened == 1


async def test_requests_at_the_same_time_have_connections_of_their_own(transport: HttpTransport) -> None:
    async with answering(*[OK] * 20) as server:
        async with asyncio.timeout(PATIENCE_S):
            assert await asyncio.gather(*(ask(transport, server) for _ in range(10))) == [(200, b"ok")] * 10
        await asyncio.gather(*(ask(transport, server) for _ in range(10)))
        assert 1 < server.opened < 20


async def test_a_request_that_got_half_an_answer_is_not_sent_again(transport: HttpTransport) -> None:
    async with answering(OK, Last(b"HTTP/1.1 200 OK\r\nx-a"), OK) as server:
        await ask(transport, server)
        with pytest.raises(ProviderUnreachable):
            await ask(transport, server)
        assert len(server.heads) == 2


async def test_whoever_is_cancelled_when_the_answer_is_there_harms_no_other_request(
    transport: HttpTransport,
) -> None:
    """Its connection may be somebody else's by then."""
    async with answering(*[OK] * 90) as server:
        await ask(transport, server)
        for passes in range(30):
            first = asyncio.create_task(ask(transport, server))
            for _ in range(passes):
                await asyncio.sleep(0)
            first.cancel()
            assert await ask(transport, server) == (200, b"ok")
            await asyncio.gather(first, return_exceptions=True)


async def test_an_answer_before_the_body_is_taken_costs_the_connection(transport: HttpTransport) -> None:
    """What is left of the body would stand before the next request."""
    opened: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, asyncio.timeout(PATIENCE_S):
        for body in (bytes(30_000_000), None):
            reply = await transport.send("POST", url, HEADERS, body)
            assert await reply.read(10) == b"ok"
            await reply.aclose()
        assert len(opened) == 2
        await transport.aclose()
        for writer in opened:
            writer.transport.abort()


async def test_closing_closes_busy_connections_too(transport: HttpTransport) -> None:
    async with answering([]) as server:
        asking = asyncio.create_task(ask(transport, server))
        await comes(lambda: server.heads)
        await transport.aclose()
        with pytest.raises(ProviderUnreachable):
            await asking
        async with asyncio.timeout(PATIENCE_S):
            await server.gone.wait()


async def test_an_answer_before_the_request_is_read(
    transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is full may refuse a connection before it reads from it."""
    connect = aiohttp.TCPConnector.connect

    async def connect_late(*args: Any, **named: Any) -> Any:
        opened = await connect(*args, **named)
        assert opened.protocol is not None
        await comes(lambda: opened.protocol._tail)
        return opened

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_late)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"200 OK", b"503 Full"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        reply = await transport.send("POST", url, HEADERS, b"{}")
        assert (reply.status, await reply.read(10)) == (503, b"ok")
        await transport.aclose()


# The head of a request


async def test_a_head_has_the_length_of_its_body_and_nothing_unasked(transport: HttpTransport) -> None:
    ways: list[tuple[str, bytes | None, bytes]] = [
        ("POST", b"{}", b"POST / HTTP/1.1\r\nHost: %b\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n"),
        ("POST", None, b"POST / HTTP/1.1\r\nHost: %b\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n"),
        ("GET", None, b"GET / HTTP/1.1\r\nHost: %b\r\nX-A: 1\r\n\r\n"),
    ]
    async with answering(*[OK] * len(ways)) as server:
        host = server.url.split("/")[2].encode()
        for method, body, head in ways:
            await (await transport.send(method, server.url, {"X-A": "1"}, body)).read(10)
            assert server.heads[-1] == head % host


# Uploads


async def test_an_answer_before_the_end_of_an_upload_is_read_and_its_connection_dropped(
    transport: HttpTransport,
) -> None:
    never = Gate()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"some"
        await never.wait()

    refused = b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno"
    async with answering(refused, OK) as server:
        reply = await transport.send("POST", server.url, HEADERS, Upload(pieces(), None))
        assert (reply.status, await reply.read(100)) == (413, b"no")
        assert await ask(transport, server) == (200, b"ok")
        assert server.opened == 2


async def test_an_upload_that_is_given_up_stops_asking_for_pieces(transport: HttpTransport) -> None:
    left = Gate()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"some"
            await asyncio.sleep(PATIENCE_S)
        finally:
            left.open()

    async with answering([]) as server:
        sending = asyncio.create_task(transport.send("POST", server.url, HEADERS, Upload(pieces(), 100)))
        await comes(lambda: server.heads)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await left.wait()


async def test_an_upload_is_waited_for_as_long_as_the_upstream_takes_of_it(transport: HttpTransport) -> None:
    transport.timeouts = Timeouts(first_byte_s=PATIENCE_S, between_chunks_s=PATIENCE_S)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            advance_loop(PATIENCE_S / 2)
            yield b"a"
            await asyncio.sleep(0)  # the loop calls the timers that are due

    async with answering(OK) as server:
        reply = await transport.send("POST", server.url, HEADERS, Upload(pieces(), 4))
        assert await reply.read(10) == b"ok"


async def test_silence_after_an_upload_is_a_timeout_of_the_first_byte(transport: HttpTransport) -> None:
    transport.timeouts = Timeouts(first_byte_s=SHORT_S, between_chunks_s=PATIENCE_S)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"

    async with answering([]) as server:
        with pytest.raises(ProviderTimeout) as caught:
            await transport.send("POST", server.url, HEADERS, Upload(pieces(), 1))
        assert caught.value.phase == "first byte"


async def test_an_upload_gives_no_time_to_a_response_that_has_begun(transport: HttpTransport) -> None:
    transport.timeouts = Timeouts(first_byte_s=PATIENCE_S, between_chunks_s=SHORT_S)
    begun, ended = Gate(), Gate()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        await begun.wait()
        ended.open()

    async with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nso", []) as server:
        reply = await transport.send("POST", server.url, HEADERS, Upload(pieces(), None))
        chunks = reply.chunks()
        assert await anext(chunks) == b"so"
        reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        begun.open()
        await ended.wait()
        with pytest.raises(ProviderTimeout) as caught:
            async with asyncio.timeout(PATIENCE_S / 2):
                await reading
        assert caught.value.phase == "between chunks"
        await reply.aclose()


async def test_pieces_are_asked_for_as_they_are_taken(transport: HttpTransport) -> None:
    asked = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked
        while asked < 1000:
            asked += 1
            yield bytes(100_000)
            await asyncio.sleep(0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        await comes(lambda: asked == 1000 or is_over)
        writer.transport.abort()

    is_over = False
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        sending = asyncio.create_task(transport.send("POST", url, HEADERS, Upload(pieces(), None)))
        await comes(lambda: asked)
        for _ in range(3000):
            await asyncio.sleep(0)
        assert asked < 500
        is_over = True
        with pytest.raises(ProviderUnreachable):
            await sending
