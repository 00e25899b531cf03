"""The gateway's connection under any ASGI application: what it reads and in which order it answers."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.limits import Limits
from gateway.settings import ServerSettings
from gateway.web.health import Readiness
from gateway.web.listening import bind
from gateway.web.server import make_server
from gateway.web.slow_reader import SlowReaderWatch
from gateway.web.uvicorn_protocol import MAX_WAITING
from tests.patience import PATIENCE_S, SHORT_S, comes

GET = b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


def served(app: Any, talk: Talk, limits: Limits | None = None) -> Any:
    """Returns what one client's talk with a server of `app` comes to."""

    async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    async def run() -> Any:
        listener = bind("127.0.0.1", 0)
        started = asyncio.Event()
        server = make_server(with_lifespan, ServerSettings(), Readiness(lambda: "ok"), started.set, limits)
        serving = asyncio.create_task(server.serve([listener]))
        await started.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await talk(reader, writer)
        finally:
            writer.transport.abort()
            server.request_exit()
            await serving

    return asyncio.run(run())


async def answer(send: Any, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body, or with the path where there is none."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    body = body or scope["path"].encode()
    await answer(send, body, 200, (b"content-length", str(len(body)).encode()))


async def to_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    return await reader.read()


def says(data: bytes) -> Talk:
    """Sends this; returns all that comes until the server closes the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(data)
        return await reader.read()

    return talk


def test_bytes_after_a_request_that_are_no_http_are_refused_after_its_reply() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(SHORT_S)
        await echo(scope, receive, send)

    said = served(slow, says(GET % b"one" + GET % b"two" + b"nonsense\r\n\r\n"))
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert said.endswith(b"connection: close\r\n\r\n/two")


def test_a_body_that_is_no_http_is_a_400_where_nothing_is_answered_yet() -> None:
    post = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    assert b"HTTP/1.1 400 " in served(echo, says(post + b"nonsense\r\n"))


def test_a_body_that_is_no_http_ends_a_reply_that_has_begun() -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        begun = await reader.readuntil(b"begun\r\n")
        writer.write(b"nonsense\r\n")
        try:
            return begun + await reader.read()
        except ConnectionResetError:
            return begun

    assert served(early, talk).count(b"HTTP/1.1") == 1


def test_a_body_is_received_as_it_comes_and_the_connection_reads_no_further_until_then() -> None:
    """What nobody asks for waits with its sender."""
    sizes: list[int] = []
    asks = asyncio.Event()

    async def later(scope: Any, receive: Any, send: Any) -> None:
        await asks.wait()
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await answer(send, b"", 204)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        whole = 32 * 1024 * 1024
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % whole)
        writer.write(bytes(whole))
        await asyncio.sleep(SHORT_S)
        assert writer.transport.get_write_buffer_size() > 0
        asks.set()
        return await reader.readuntil(b"\r\n\r\n")

    assert served(later, talk).startswith(b"HTTP/1.1 204 No Content")
    assert sum(sizes) == 32 * 1024 * 1024
    assert len(sizes) > 10


def test_receiving_after_the_body_shows_that_the_client_has_gone() -> None:
    found: list[str] = []
    gone = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        both = await asyncio.gather(receive(), receive())
        found.extend(message["type"] for message in both)
        gone.set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET % b"")
        await asyncio.sleep(SHORT_S)
        writer.close()
        await gone.wait()

    served(waits, talk)
    assert found == ["http.disconnect"] * 2


def test_a_reply_that_is_not_read_is_waited_for() -> None:
    passed: list[int] = []

    async def much(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(64):
            await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": True})
            passed.append(number)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(GET % b"")
        await asyncio.sleep(SHORT_S)
        assert len(passed) < 32
        head = await reader.readuntil(b"\r\n\r\n")
        for _ in range(64):
            await reader.readexactly(int(await reader.readline(), 16) + 2)
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        return head

    assert b"transfer-encoding: chunked" in served(much, talk)


@pytest.mark.parametrize("begins", [False, True])
def test_a_fault_of_the_application_is_a_500_or_a_cut(begins: bool) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise LookupError("ours")

    said = served(fails, says(GET % b""))
    assert said.startswith(b"HTTP/1.1 200 " if begins else b"HTTP/1.1 500 ")
    assert not said.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("sent", [b"short", b"far too long"])
def test_a_body_of_another_length_than_the_head_says_is_cut(sent: bytes) -> None:
    async def wrong(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, sent, 200, (b"content-length", b"8"))

    assert served(wrong, says(GET % b"")).endswith((b"short", b"", b"\r\n\r\n"))


def test_a_reply_to_head_ends_with_its_head() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"never", 200, (b"content-length", b"5"))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
        writer.write((b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n") * 2)
        return [await reader.readuntil(b"\r\n\r\n") for _ in range(2)]

    first, second = served(bare, talk)
    assert first == second
    assert b"content-length: 5" in first


def test_a_body_is_asked_for_where_its_client_waits_for_that() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        head = b"POST / HTTP/1.1\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        writer.write(head)
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hello")
        return asked + await reader.read()

    said = served(echo, talk)
    assert said.startswith(b"HTTP/1.1 100 ")
    assert said.endswith(b"hello")


def test_few_requests_wait_and_are_answered_before_the_connection_ends() -> None:
    """Each that is read takes kilobytes, and a client without a key may send any number of them ahead."""
    seen: list[str] = []
    goes_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await goes_on.wait()
        await echo(scope, receive, send)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"".join(GET % b"%d" % number for number in range(10 * MAX_WAITING)))
        await comes(lambda: seen)
        goes_on.set()
        return await reader.read()

    said = served(slow, talk)
    assert said.count(b"HTTP/1.1 200 OK") == 1 + MAX_WAITING
    assert said.endswith(b"connection: close\r\n\r\n/%d" % MAX_WAITING)


def test_nothing_is_read_while_requests_wait() -> None:
    goes_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await goes_on.wait()
        await echo(scope, receive, send)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        post = b"POST /two HTTP/1.1\r\nhost: a\r\ncontent-length: 32000000\r\n\r\n"
        writer.write(GET % b"one" + post + bytes(32_000_000))
        await asyncio.sleep(SHORT_S)
        waiting = writer.transport.get_write_buffer_size()
        goes_on.set()
        await reader.readuntil(b"/one")
        await reader.readuntil(b"content-length: 32000000\r\n\r\n")
        return waiting

    assert served(slow, talk) > 10_000_000


def test_reading_goes_on_with_the_last_request_that_waits() -> None:
    is_reading = {}

    async def look(scope: Any, receive: Any, send: Any) -> None:
        is_reading[scope["path"]] = scope["state"]["connection"].transport.is_reading()
        await echo(scope, receive, send)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET % b"one" + GET % b"two" + GET % b"three")
        await reader.readuntil(b"/three")

    served(look, talk)
    assert is_reading == {"/one": False, "/two": False, "/three": True}


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"no", 413, (b"content-length", b"2"))


@pytest.mark.parametrize("reads_first", [True, False])
def test_a_client_that_is_still_sending_gets_the_reply_and_is_then_disconnected(reads_first: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST / HTTP/1.0\r\ncontent-length: 30000000\r\n\r\n")
        said = await reader.read() if reads_first else b""
        writer.write(bytes(30_000_000))
        await writer.drain()
        return said or await reader.read()

    assert served(refuse, talk).endswith(b"connection: close\r\n\r\nno")


@pytest.mark.parametrize("head", [b"connection: close", b"connection: keep-alive"])
def test_a_client_that_sends_a_body_after_its_reply_is_disconnected(head: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\n" + head + b"\r\ntransfer-encoding: chunked\r\n\r\n")
        await reader.readuntil(b"no")
        with pytest.raises(OSError):
            await drip(writer)

    served(refuse, talk, replace(Limits(), header_timeout_s=SHORT_S))


def test_http_1_0_is_answered_and_let_go() -> None:
    said = served(echo, says(b"GET /old HTTP/1.0\r\n\r\n"))
    assert said.endswith(b"connection: close\r\n\r\n/old")


def test_http_1_0_is_not_told_to_go_on() -> None:
    head = b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    said = served(echo, says(head + b"ok"))
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("ends_last", [True, False])
def test_http_1_0_gets_a_reply_without_a_length_in_no_chunks(ends_last: bool) -> None:
    """It has no chunks (RFC 9112 6.1), and takes them for a part of the body. Its reply ends with the connection."""

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"stream")]})
        pieces = [b"data: 1\n\n", b"data: 10\r\n0\r\n\r\n", b"", b"data: [DONE]\n\n"]
        for n, piece in enumerate(pieces, start=1):
            await send({"type": "http.response.body", "body": piece, "more_body": n < 4 or not ends_last})
        if not ends_last:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    said = served(stream, says(b"GET /old HTTP/1.0\r\n\r\n"))
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert b"x-kind: stream" in head
    assert body == b"data: 1\n\ndata: 10\r\n0\r\n\r\ndata: [DONE]\n\n"


def test_http_1_0_does_not_take_a_stream_that_breaks_for_whole() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 0\r\n\r\n", "more_body": True})
        raise RuntimeError

    with pytest.raises(ConnectionResetError):
        served(breaks, says(b"GET /old HTTP/1.0\r\n\r\n"))


def test_http_1_0_that_has_left_a_stream_which_breaks_is_not_reset() -> None:
    faults: list[dict[str, Any]] = []

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 0", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        raise RuntimeError

    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        writer.write(b"GET /old HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"data: 0")
        writer.transport.abort()
        await asyncio.sleep(SHORT_S)
        gc.collect()  # asyncio reports what a task has raised when the task is freed

    served(breaks, leaves)
    assert not faults


def test_a_client_that_sends_nothing_is_disconnected() -> None:
    """From the moment that a connection is there, and with the first piece of a head."""
    limits = replace(Limits(), header_timeout_s=SHORT_S)
    assert served(echo, to_end, limits) == b""
    assert served(echo, says(GET % b"one" + b"GET / HT"), limits).endswith(b"/one")


def test_a_body_in_pieces_is_not_bounded_as_a_head_is() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"1\r\nx")
        await asyncio.sleep(SHORT_S)
        writer.write(b"\r\n0")
        await asyncio.sleep(2 * SHORT_S)
        writer.write(b"\r\n\r\n")
        await asyncio.sleep(2 * SHORT_S)
        writer.write(b"GET /last HT")
        return await reader.read()

    limits = replace(Limits(), header_timeout_s=SHORT_S)
    said = served(echo, talk, limits)
    assert said.count(b"HTTP/1.1 20") == 1
    assert said.endswith(b"\r\n\r\nx")


def test_a_reply_takes_longer_than_a_head_may() -> None:
    """The head of the next request is there in part, and is waited for only from then on."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(4 * SHORT_S)
        await echo(scope, receive, send)

    limits = replace(Limits(), header_timeout_s=SHORT_S)
    assert served(slow, says(GET % b"one" + b"GET / HT"), limits).endswith(b"/one")


def test_a_head_during_a_running_reply_is_bounded_in_its_size() -> None:
    """Whoever is still sending it gets that reply and then the end."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await comes(lambda: scope["state"]["connection"]._drops_input)
        await echo(scope, receive, send)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(GET % b"one" + b"GET / HTTP/1.1\r\nx: " + b"x" * 1_000_000)
        said = await reader.read()
        writer.write(b"x" * 30_000_000)
        await writer.drain()
        return said

    said = served(slow, talk)
    assert said.count(b"HTTP/1.1") == 1
    assert said.endswith(b"/one")


def test_a_head_is_not_taken_for_as_long_as_what_comes_before_it() -> None:
    post = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        get = GET % b"two"
        writer.write(post + get[:9])
        await reader.readuntil(b"x" * 100_000)
        writer.write(get[9:])
        return await reader.readuntil(b"/two")

    assert b"HTTP/1.1 200 OK" in served(echo, talk)


@pytest.mark.parametrize("lines", [b"0\r\nx: ", b"1;x="])
def test_the_lines_of_a_chunked_body_are_bounded(lines: bytes) -> None:
    """The parser keeps a trailer until its end, which may never come."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n" + lines
        )
        for _ in range(9):
            writer.write(b"x" * 10_000)
            await asyncio.sleep(SHORT_S / 9)
        return await reader.read()

    assert served(echo, talk).endswith(b"too large.")


def test_a_body_in_tiny_pieces_has_no_trailers() -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    said = served(echo, says(head + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\nGET / HTTP/1.0\r\n\r\n"))
    assert said.count(b"x") == 100_000
    assert said.endswith(b"\r\n\r\n/")


OFFER = b"%b HTTP/1.1\r\nConnection: Upgrade\r\nHost: a\r\nUPGRADE: h2c\r\n%b\r\n"


@pytest.mark.parametrize("most_bytes", [1, 7, 1_000_000])
def test_a_client_that_offers_another_protocol_is_answered_in_http_1(most_bytes: int) -> None:
    """Also after another request, and wherever the head is cut."""
    data = b"".join(
        (
            OFFER % (b"GET /one", b""),
            OFFER % (b"POST /", b"Content-Length: 5\r\n"),
            b"hello",
            OFFER % (b"POST /", b"Transfer-Encoding: chunked\r\n"),
            b"5\r\nthere\r\n0\r\nX: y\r\n\r\n",
            b"GET /last HTTP/1.0\r\n\r\n",
        )
    )

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        for at in range(0, len(data), most_bytes):
            writer.write(data[at : at + most_bytes])
            await asyncio.sleep(0)  # so that each is sent by itself
        return await reader.read()

    said = served(echo, talk)
    assert [reply.rpartition(b"\r\n\r\n")[2] for reply in said.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"/one",
        b"hello",
        b"there",
        b"/last",
    ]


def test_an_offer_makes_no_request_of_what_is_none() -> None:
    head = OFFER % (b"POST /", b"Transfer-Encoding: chunked-not\r\n")
    assert b"HTTP/1.1 400 " in served(echo, says(head + b"5\r\nhello\r\n0\r\n\r\n"))


def test_there_are_no_tunnels() -> None:
    said = served(echo, says(b"CONNECT /elsewhere HTTP/1.1\r\nhost: a\r\n\r\n" + GET % b"through"))
    assert said.count(b"HTTP/1.1") == 1
    assert said.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_stops_reading_just_before_the_end_is_dropped() -> None:
    """What is left is so little that the connection might be written to again, but it is being closed."""

    aborted = asyncio.Event()

    class Closing(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return 100

        def is_closing(self) -> bool:
            return True

        def abort(self) -> None:
            aborted.set()

    async def run() -> None:
        watches = SlowReaderWatch()
        watches.loop, watches.transport, watches.send_timeout_s = asyncio.get_running_loop(), Closing(), 0.0
        watches.pause_writing()
        watches.resume_writing()
        await asyncio.wait_for(aborted.wait(), PATIENCE_S)

    asyncio.run(run())


@pytest.mark.parametrize(
    "behind", [b"", GET % b"two", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"]
)
def test_the_memory_of_a_connection_is_freed_with_it(behind: bytes) -> None:
    """Without a search for cycles, which comes seldom."""
    held: list[weakref.ref[Any]] = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        is_lost = asyncio.Event()
        scope["state"]["connection"].on_lost = is_lost.set
        held.append(weakref.ref(scope["state"]["connection"]))
        await receive()
        await is_lost.wait()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET % b"one" + behind)
        await comes(lambda: held)
        gc.disable()
        writer.transport.abort()
        await comes(lambda: held[0]() is None)

    try:
        served(waits, talk)
    finally:
        gc.enable()


def test_parts_of_a_request_are_passed_as_asgi_has_them() -> None:
    seen: list[Any] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await answer(send, b"", 204)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /a%20b?c=%20 HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nX-two: 2\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(GET % b"second")
        await reader.readuntil(b"\r\n\r\n")

    served(note, talk)
    first, second = seen
    assert (first["method"], first["path"], first["raw_path"], first["query_string"]) == (
        "GET",
        "/a b",
        b"/a%20b",
        b"c=%20",
    )
    assert first["headers"] == [(b"host", b"a"), (b"x-two", b"1"), (b"x-two", b"2")]
    assert (first["http_version"], first["scheme"], first["client"][0]) == ("1.1", "http", "127.0.0.1")
    assert (second["path"], second["query_string"], second["headers"]) == ("/second", b"", [(b"host", b"a")])
    assert first["state"] is not second["state"]
