"""The transport against a real server: bytes unchanged, every wait bounded, a closed reply closes the connection."""

from __future__ import annotations

import asyncio
import errno
import gzip
import resource
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from adapters.address_cache import AddressCache
from adapters.body_pieces import Upload
from adapters.errors import (
    NoDescriptor,
    ProviderReplyBroken,
    ProviderTimeout,
    ProviderTooLarge,
    ProviderUnreachable,
    UnfinishedEvent,
)
from adapters.http_reply import HttpReply
from adapters.sse import MAX_EVENT_BYTES
from adapters.timeouts import Timeouts
from adapters.transport import HttpTransport
from tests.adapters.test_sse import DONES
from tests.doubles.upstream import Gate, Reply, StrictUpstream, fail, full_backlog, raw, say
from tests.patience import PATIENCE_S, SHORT_S, advance_loop, comes
from tests.server import held_port

SHORT = Timeouts(first_byte_s=SHORT_S, between_chunks_s=SHORT_S)
HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


def chat(**more: Any) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **more})


async def post(
    transport: HttpTransport,
    upstream: StrictUpstream,
    body: bytes,
    *,
    streams: bool = False,
    sends_once: bool = False,
) -> HttpReply:
    url = f"{upstream.base_url}/chat/completions"
    return await transport.send("POST", url, HEADERS, body, wants_stream=streams, sends_once=sends_once)


async def test_a_stream_arrives_event_by_event_while_it_is_made(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    """The second event is held back until the first was read: nothing waits for more."""
    gate = Gate()
    upstream.queue(raw(b"data: 1\n\n", b"data: 2\n\n", hold_after={1: gate}))
    reply = await post(transport, upstream, chat(stream=True))
    events = reply.events()
    assert [event.data for event in await anext(events)] == [b"1"]
    gate.open()
    assert [event.data for event in await anext(events)] == [b"2"]
    assert [batch async for batch in events] == []
    await reply.aclose()


async def test_comments_in_front_of_the_first_event_are_passed_over_and_returned(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    body = b": waiting\n\n", b": still\n\n", b"data: 1\n\n"
    upstream.queue(raw(*body))
    reply = await post(transport, upstream, chat(stream=True))
    found = await reply.peek()
    assert found is not None
    assert found.data == b"1"
    assert b"".join([data async for data in reply.chunks()]) == b"".join(body)
    await reply.aclose()


async def test_a_comment_with_silence_after_it_is_passed_over_for_a_while_only(
    transport: HttpTransport, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who waits for the head hears anything meanwhile."""
    monkeypatch.setattr("adapters.first_event.HELD_S", 0.01)
    gate = Gate()
    body = b": waiting\n\n", b"data: 1\n\n"
    upstream.queue(raw(*body, hold_after={1: gate}))
    reply = await post(transport, upstream, chat(stream=True))
    found = await reply.peek()
    assert (found and found.raw) == body[0]
    gate.open()
    assert b"".join([data async for data in reply.chunks()]) == b"".join(body)
    await reply.aclose()


async def test_a_large_first_event_is_not_waited_for(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    """What is looked for is an error, and all that is read meanwhile is held twice."""
    gate = Gate()
    body = b"data: ", b"x" * 1_200_000, b"\n\n"
    upstream.queue(raw(*body, hold_after={2: gate}))
    reply = await post(transport, upstream, chat(stream=True))
    assert await reply.peek() is None
    gate.open()
    assert b"".join([data async for data in reply.chunks()]) == b"".join(body)
    await reply.aclose()


@pytest.mark.parametrize("rest", [b'data: {"a":1}', b': wait\n\ndata: {"a":1}\n', b'{"a": 1}'])
async def test_a_first_event_may_be_completed_by_the_end_of_its_stream(
    transport: HttpTransport, upstream: StrictUpstream, rest: bytes
) -> None:
    upstream.queue(raw(rest[:7], rest[7:]))
    reply = await post(transport, upstream, chat(stream=True))
    found = await reply.peek()
    assert (found and found.data) == b'{"a":1}'
    assert [event.data for batch in [each async for each in reply.events()] for event in batch][-1:] == [
        b'{"a":1}'
    ]
    await reply.aclose()


@pytest.mark.parametrize("body", [b"", b"\n\n", b": wait\n\n", b"data: {"])
async def test_a_stream_that_ends_before_its_first_event_breaks(
    transport: HttpTransport, upstream: StrictUpstream, body: bytes
) -> None:
    upstream.queue(raw(body))
    reply = await post(transport, upstream, chat(stream=True))
    with pytest.raises(ProviderReplyBroken):
        await reply.peek()
    await reply.aclose()


@pytest.mark.parametrize("nothing", [b": wait\n\n", b"\n\n\n\n"])
async def test_comments_without_an_end_before_the_first_event_are_an_error(
    transport: HttpTransport, upstream: StrictUpstream, nothing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.first_event.HELD_S", PATIENCE_S)
    upstream.queue(raw(*[nothing * 1000] * 100, hold_after={100: Gate()}))
    reply = await post(transport, upstream, chat(stream=True))
    with pytest.raises(ProviderTooLarge, match="between two events"):
        await reply.peek()
    await reply.aclose()


async def test_blank_lines_without_an_end_are_no_stream(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    blank = b"\r\n" * 1000
    upstream.queue(raw(*[blank] * 100, b"data: 1\n\n", content_type="text/plain", hold_after={100: Gate()}))
    reply = await post(transport, upstream, chat(stream=True), streams=True)
    assert not reply.is_stream
    await reply.aclose()


async def test_connections_are_kept_alive_and_reused(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    for stream in (True, False, True):
        reply = await post(transport, upstream, chat(stream=stream))
        assert reply.status == 200
        assert await reply.read(100_000)
        await reply.aclose()
    assert upstream.opened == 1


async def test_only_our_own_headers_are_sent(transport: HttpTransport, upstream: StrictUpstream) -> None:
    await (await post(transport, upstream, chat())).aclose()
    assert set(upstream.last.headers) == {"host", "content-type", "content-length", "accept-encoding"}


async def test_a_host_that_is_named_stands_in_place_of_the_addresss_own(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    url = f"{upstream.base_url}/chat/completions"
    reply = await transport.send("POST", url, {**HEADERS, "Host": "models.example"}, chat())
    assert upstream.last.headers["host"] == "models.example"
    await reply.aclose()


@pytest.mark.parametrize("value", ["a\r\nx-ours: 1", "a\nb", "a\rb", "a\0b"])
async def test_a_header_that_would_be_two_is_not_sent(
    transport: HttpTransport, upstream: StrictUpstream, value: str
) -> None:
    with pytest.raises(ProviderUnreachable):
        await transport.send(
            "POST", f"{upstream.base_url}/chat/completions", {**HEADERS, "x-a": value}, chat()
        )
    assert not upstream.requests


async def test_only_end_to_end_headers_of_a_reply_are_returned(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    sent = {
        "X-Request-Id": "r1",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "Alt-Svc": "h3",
        "Retry-After": "2",
    }
    upstream.queue(Reply(headers=sent))
    reply = await post(transport, upstream, chat())
    names = dict(reply.headers)
    assert (names["x-request-id"], names["retry-after"]) == ("r1", "2")
    assert names.keys().isdisjoint({"connection", "x-hop", "alt-svc", "content-length", "transfer-encoding"})
    await reply.aclose()


async def test_a_body_compressed_against_our_wish_is_decoded_and_says_so(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    packed = gzip.compress(b"data: hello\n\n")
    upstream.queue(raw(packed, headers={"content-encoding": "gzip"}))
    reply = await post(transport, upstream, chat(stream=True))
    assert "content-encoding" not in dict(reply.headers)
    assert [event.data async for batch in reply.events() for event in batch] == [b"hello"]


async def test_an_unknown_encoding_passes_with_its_header(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"???", headers={"content-encoding": "x-secret"}))
    reply = await post(transport, upstream, chat())
    assert dict(reply.headers)["content-encoding"] == "x-secret"
    assert await reply.read(100) == b"???"


async def test_twenty_megabytes_pass_in_both_directions(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    image = "data:image/png;base64," + "A" * 20_000_000
    content = [{"type": "image_url", "image_url": {"url": image}}]
    body = chat(messages=[{"role": "user", "content": content}])
    upstream.queue(say("B" * 20_000_000))
    reply = await post(transport, upstream, body)
    assert upstream.last.body == body
    assert len(await reply.read(30_000_000)) > 20_000_000
    assert upstream.open_connections == 1


@pytest.mark.parametrize("way", ["chunks", "events", "read"])
async def test_short_events_without_an_end_leave_time_for_other_work(
    transport: HttpTransport, upstream: StrictUpstream, way: str
) -> None:
    """Each takes as long as a long one, and a read may bring a hundred thousand."""
    event = b"data:\n\n"
    upstream.queue(raw(event * 100_000))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    reply = await post(transport, upstream, chat(stream=True))
    task = asyncio.create_task(other())
    begun, most, found = turns, 0, b""
    if way == "read":
        found = await reply.read(1024 * 1024)
    elif way == "chunks":
        async for chunk in reply.chunks():
            most, found = max(most, chunk.count(b"\n\n")), found + chunk
    else:
        async for events in reply.events():
            most, found = max(most, len(events)), found + b"".join(each.raw for each in events)
    turns -= begun
    task.cancel()
    await reply.aclose()
    assert found == event * 100_000
    assert most < 3000
    assert turns > 20


async def test_an_error_status_is_a_reply(transport: HttpTransport, upstream: StrictUpstream) -> None:
    upstream.queue(fail(429, "Slow down.", retry_after="7"))
    reply = await post(transport, upstream, chat())
    assert (reply.status, dict(reply.headers)["retry-after"]) == (429, "7")
    assert orjson.loads(await reply.read(10_000))["error"]["message"] == "Slow down."


async def test_cookies_are_not_stored(transport: HttpTransport, upstream: StrictUpstream) -> None:
    upstream.queue(Reply(headers={"set-cookie": "a=b; Path=/"}))
    for _ in range(2):
        await (await post(transport, upstream, chat())).aclose()
    assert "cookie" not in upstream.last.headers


# The client is gone


async def test_closing_in_the_middle_of_a_stream_closes_the_connection_at_once(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(say("a b c", hold_after={2: Gate()}))
    reply = await post(transport, upstream, chat(stream=True))
    await anext(reply.chunks())
    await reply.aclose()
    await reply.aclose()
    await upstream.last.gone.wait()
    assert not upstream.last.finished


async def test_closing_before_the_body_of_a_whole_reply_closes_the_connection(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"{}", hold_after={0: Gate()}, content_type="application/json"))
    reply = await post(transport, upstream, chat())
    await reply.aclose()
    await upstream.last.gone.wait()


async def test_cancelling_before_the_first_byte_closes_the_connection(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(say("late", hold_before_headers=Gate()))
    sending = asyncio.create_task(post(transport, upstream, chat()))
    await upstream.request_gate(1).wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await upstream.last.gone.wait()


async def test_cancelling_a_read_leaves_the_reply_closable(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(say("a b c", hold_after={1: Gate()}))
    reply = await post(transport, upstream, chat(stream=True))
    reading = asyncio.create_task(reply.read(1000))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await reply.aclose()
    await upstream.last.gone.wait()


async def test_a_finished_reply_keeps_its_connection_when_closed(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    reply = await post(transport, upstream, chat(stream=True))
    assert [batch async for batch in reply.events()]
    await reply.aclose()
    await upstream.last.settled.wait()
    assert upstream.last.finished
    assert upstream.open_connections == 1


# The upstream is slow


async def test_no_response_in_time_is_a_timeout_of_the_first_byte(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    transport.timeouts = Timeouts(first_byte_s=2 * PATIENCE_S)
    upstream.queue(say("late", hold_before_headers=Gate()))
    sending = asyncio.create_task(post(transport, upstream, chat()))
    await comes(lambda: upstream.requests)
    advance_loop(2 * PATIENCE_S)
    with pytest.raises(ProviderTimeout) as caught:
        await sending
    assert caught.value.phase == "first byte"
    await upstream.last.gone.wait()


async def test_an_upstream_that_does_not_take_the_body_is_a_timeout_too(transport: HttpTransport) -> None:
    transport.timeouts = SHORT
    with StrictUpstream(stall_bodies=True) as upstream, pytest.raises(ProviderTimeout) as caught:
        await post(transport, upstream, b"x" * 20_000_000)
    assert caught.value.phase == "first byte"


@pytest.mark.parametrize("way", ["chunks", "events", "read"])
async def test_silence_within_the_reply_is_a_timeout_between_chunks(
    transport: HttpTransport, upstream: StrictUpstream, way: str
) -> None:
    transport.timeouts = Timeouts(between_chunks_s=SHORT_S)
    upstream.queue(say("a b c", hold_after={2: Gate()}))
    reply = await post(transport, upstream, chat(stream=True))
    with pytest.raises(ProviderTimeout) as caught:
        await drain(reply, way)
    assert caught.value.phase == "between chunks"
    await reply.aclose()
    await upstream.last.gone.wait()


async def test_a_reply_that_trickles_is_bound_by_its_total(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    transport.timeouts = Timeouts(total_s=2 * PATIENCE_S)
    upstream.queue(say("One two three", hold_after={2: Gate()}))
    reply = await post(transport, upstream, chat(stream=True))
    advance_loop(2 * PATIENCE_S)
    with pytest.raises(ProviderTimeout) as caught:
        async for _ in reply.chunks():
            pass
    assert caught.value.phase == "total"
    await reply.aclose()


async def test_the_total_bounds_the_wait_for_the_headers_too(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    transport.timeouts = Timeouts(total_s=SHORT_S)
    upstream.queue(say("Too late.", hold_before_headers=Gate()))
    with pytest.raises(ProviderTimeout) as caught:
        await post(transport, upstream, chat())
    assert caught.value.phase == "first byte"


async def test_a_total_that_is_not_reached_changes_nothing(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    transport.timeouts = Timeouts(total_s=PATIENCE_S)
    reply = await post(transport, upstream, chat(stream=True))
    assert b"".join([chunk async for chunk in reply.chunks()]).endswith(b"data: [DONE]\n\n")
    await reply.aclose()


async def test_an_error_knows_whether_the_request_was_sent(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(Reply(cut_before_headers=True))
    with pytest.raises(ProviderUnreachable) as lost:
        await post(transport, upstream, chat())
    upstream.stop()
    with pytest.raises(ProviderUnreachable) as refused:
        await post(transport, upstream, chat())
    assert (lost.value.was_sent, refused.value.was_sent) == (True, False)


async def test_the_wait_for_the_first_byte_is_not_bound_by_the_one_between_chunks(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    transport.timeouts = Timeouts(between_chunks_s=0.001)
    gate = Gate()
    upstream.queue(say("late", hold_before_headers=gate))
    sending = asyncio.create_task(post(transport, upstream, chat()))
    await upstream.request_gate(1).wait()
    await asyncio.wait({sending}, timeout=0.02)  # twenty times as long; nothing must happen
    assert not sending.done()
    gate.open()
    reply = await sending
    assert reply.status == 200
    await reply.aclose()


async def test_no_connection_in_time_is_a_timeout_of_the_connection(transport: HttpTransport) -> None:
    transport.timeouts = Timeouts(connect_s=0.05)
    with full_backlog() as port, pytest.raises(ProviderTimeout) as caught:
        await transport.send("POST", f"http://127.0.0.1:{port}/", HEADERS, b"{}")
    assert caught.value.phase == "connect"


# The upstream breaks


async def test_a_port_at_which_nothing_listens_is_unreachable(transport: HttpTransport) -> None:
    with held_port() as port, pytest.raises(ProviderUnreachable):
        await transport.send("POST", f"http://127.0.0.1:{port}/", HEADERS, b"{}")


async def test_the_address_of_a_host_is_looked_up_again_if_nothing_listens_there(
    transport: HttpTransport, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is made again has another address."""
    addresses = ["127.0.0.2", "127.0.0.1"]

    async def resolve(self: object, host: str, port: int = 0, family: int = 0) -> list[Any]:
        address = {"hostname": host, "host": addresses.pop(0), "port": port}
        return [{**address, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
    url = upstream.base_url.replace("127.0.0.1", "up.example") + "/chat/completions"
    with pytest.raises(ProviderUnreachable):
        await transport.send("POST", url, HEADERS, chat())
    reply = await transport.send("POST", url, HEADERS, chat())
    assert reply.status == 200
    await reply.aclose()


async def test_requests_that_wait_for_one_lookup_share_what_it_finds(
    transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that gets no connection takes the addresses from none of the others."""
    gate, looked_up = Gate(), list[str]()

    async def resolve(self: object, host: str, port: int = 0, family: int = 0) -> list[Any]:
        looked_up.append(host)
        await gate.wait()
        address = {"hostname": host, "host": "127.0.0.1", "port": port}
        return [{**address, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    def fail_at_once(address: object) -> socket.socket:
        raise OSError(errno.ENOBUFS, "No buffer space")

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
    monkeypatch.setattr("adapters.bounded_connector._make_socket", fail_at_once)
    sends = [
        asyncio.create_task(transport.send("POST", "http://up.example:1/", HEADERS, chat())) for _ in range(4)
    ]
    await comes(lambda: looked_up)
    gate.open()
    errors = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(error) for error in errors] == [ProviderUnreachable] * 4
    assert looked_up == ["up.example"]


async def test_a_lookup_for_which_no_descriptor_is_left_is_not_the_upstreams_fault(
    transport: HttpTransport,
) -> None:
    """The system's resolver then reports that the name is not known."""
    await AddressCache().resolve("localhost")  # which loads what a lookup needs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(NoDescriptor):
            await transport.send("POST", "http://localhost:1/", HEADERS, chat())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_connection_is_probed_while_its_model_thinks(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"data: 1\n\n", b"data: 2\n\n", hold_after={1: Gate()}))
    reply = await post(transport, upstream, chat(stream=True), streams=True)
    connection = reply._response.connection
    assert connection is not None
    assert connection.transport is not None
    used: socket.socket = connection.transport.get_extra_info("socket")
    assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if hasattr(socket, "TCP_KEEPIDLE"):
        assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    await reply.aclose()


async def test_a_new_connection_lost_before_the_answer_is_unreachable_and_not_tried_again(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(Reply(cut_before_headers=True))
    with pytest.raises(ProviderUnreachable):
        await post(transport, upstream, chat())
    assert len(upstream.requests) == 1


async def test_an_idle_connection_closed_while_sending_fails_no_request(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    await (await post(transport, upstream, chat())).read(10_000)
    upstream.queue(Reply(cut_before_headers=True), say("Here."))
    reply = await post(transport, upstream, chat())
    assert b"Here." in await reply.read(10_000)
    assert [request.connection for request in upstream.requests] == [1, 1, 2]


async def test_a_request_that_is_sent_once_takes_no_connection_that_was_idle(
    transport: HttpTransport, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost with one that the upstream closes at that moment. Others keep their connection."""
    for idle_s in (1.0, 0.0):
        monkeypatch.setattr("adapters.transport._KEEP_ALIVE_ONCE_S", idle_s)
        for sends_once in (False, True, True, False):
            await (await post(transport, upstream, chat(), sends_once=sends_once)).read(10_000)
    assert [request.connection for request in upstream.requests] == [1, 2, 2, 1, 1, 3, 4, 1]


async def test_a_connection_closed_while_idle_is_replaced(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    await (await post(transport, upstream, chat())).read(10_000)
    upstream.drop_connections()
    reply = await post(transport, upstream, chat())
    assert await reply.read(10_000)
    assert upstream.opened == 2


@pytest.mark.parametrize("way", ["chunks", "events", "read"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_lost_within_the_reply_breaks_it(
    transport: HttpTransport, upstream: StrictUpstream, way: str, stream: bool
) -> None:
    upstream.queue(say("a b c", cut_after=3))
    reply = await post(transport, upstream, chat(stream=stream))
    with pytest.raises(ProviderReplyBroken):
        await drain(reply, way)
    await reply.aclose()


async def test_a_stream_that_ends_inside_an_event_is_broken(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"data: 1\n\n", b'data: {"half'))
    reply = await post(transport, upstream, chat(stream=True))
    with pytest.raises(UnfinishedEvent):
        await drain(reply, "events")


@pytest.mark.parametrize("end", DONES)
async def test_a_done_without_its_blank_line_is_whole(
    transport: HttpTransport, upstream: StrictUpstream, end: bytes
) -> None:
    upstream.queue(raw(b"data: 1\n\n", end))
    reply = await post(transport, upstream, chat(stream=True))
    events = [event for batch in [b async for b in reply.events()] for event in batch]
    assert [(event.raw, event.data) for event in events] == [(b"data: 1\n\n", b"1"), (end, b"[DONE]")]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH, and secret words\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: secret\r\nConnection: upgrade\r\n\r\nsecret words",
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_server_that_speaks_no_http_is_unreachable(
    transport: HttpTransport, in_pieces: bool, answer: bytes
) -> None:
    body = b" " * 600_000 if in_pieces else b"{}"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(body))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ProviderUnreachable, match=r"answered, but not in HTTP") as raised:
            await transport.send("POST", f"http://127.0.0.1:{port}/", HEADERS, body)
    assert "secret" not in str(raised.value)


async def test_a_reply_larger_than_the_limit_is_refused(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(say("x" * 100_000))
    reply = await post(transport, upstream, chat())
    with pytest.raises(ProviderTooLarge):
        await reply.read(1000)


async def test_an_event_larger_than_the_limit_is_refused(
    transport: HttpTransport, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"data: " + b"x" * MAX_EVENT_BYTES, hold_after={1: Gate()}))
    reply = await post(transport, upstream, chat(stream=True))
    with pytest.raises(ProviderTooLarge):
        await drain(reply, "events")
    await reply.aclose()


async def drain(reply: HttpReply, way: str) -> None:
    async def chunks() -> None:
        async for _ in reply.chunks():
            pass

    async def events() -> None:
        async for _ in reply.events():
            pass

    async def read() -> None:
        await reply.read(1_000_000)

    ways: dict[str, Callable[[], Any]] = {"chunks": chunks, "events": events, "read": read}
    async with asyncio.timeout(PATIENCE_S):
        await ways[way]()


# --- uploads ------------------------------------------------------------------------------------------------------


async def upload(
    transport: HttpTransport,
    upstream: StrictUpstream,
    pieces: AsyncIterator[bytes],
    size: int | None,
) -> HttpReply:
    return await transport.send(
        "POST", f"{upstream.base_url}/chat/completions", HEADERS, Upload(pieces, size)
    )


@pytest.mark.parametrize("announced", [True, False])
async def test_an_upload_arrives_whole(
    transport: HttpTransport, upstream: StrictUpstream, announced: bool
) -> None:
    body = chat(user="x" * 100_000)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 9_973):
            yield body[at : at + 9_973]

    reply = await upload(transport, upstream, pieces(), len(body) if announced else None)
    assert (reply.status, upstream.last.body) == (200, body)
    assert upstream.last.headers.get("content-length") == (str(len(body)) if announced else None)
    await reply.read(10_000)
    await reply.aclose()


async def test_an_upload_that_fails_is_broken_off(transport: HttpTransport, upstream: StrictUpstream) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"some"
        raise ValueError("the caller left")

    with pytest.raises(ProviderUnreachable):
        await upload(transport, upstream, pieces(), 100)
    await upstream.broken_off.wait()
    assert upstream.requests == []


async def test_a_begun_upload_is_not_sent_twice(transport: HttpTransport, upstream: StrictUpstream) -> None:
    """A plain body would be, on a reused connection that turns out to be closed."""
    await (await post(transport, upstream, chat())).read(10_000)
    upstream.queue(say("lost", cut_before_headers=True))
    begun = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal begun
        begun += 1
        yield chat()

    with pytest.raises(ProviderUnreachable):
        await upload(transport, upstream, pieces(), len(chat()))
    assert (begun, len(upstream.requests)) == (1, 2)


async def test_an_upstream_that_takes_no_more_is_left_with_its_connection(transport: HttpTransport) -> None:
    transport.timeouts = SHORT

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    with StrictUpstream(stall_bodies=True) as stalled:
        with pytest.raises(ProviderTimeout, match="took no more of the upload"):
            await upload(transport, stalled, pieces(), None)
        await transport.aclose()  # would wait for what was not taken
