"""The protocol under the edge: what HTTP/1.1 allows a client on one connection."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.errors import GatewayError, SettingsError
from gateway.web.listening import bind, listen
from tests.doubles.upstream import Gate, StrictUpstream, raw
from tests.patience import PATIENCE_S, SHORT_S
from tests.server import QUIET, RunningGateway, serve, settings_for

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def post(body: bytes, *lines: str) -> bytes:
    head = [f"POST {CHAT} HTTP/1.1", "host: 127.0.0.1", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def sized(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return post(body, f"content-length: {len(body)}")


@pytest.fixture
def gateway(upstream: StrictUpstream) -> Iterator[RunningGateway]:
    with serve(settings_for(upstream)) as running:
        yield running


def test_requests_that_are_sent_ahead_are_answered_in_their_order(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    gate = Gate()
    for name in ("one", "two", "three"):
        held = {"hold_before_headers": gate} if name == "one" else {}
        upstream.queue(raw(json.dumps(name).encode(), content_type="application/json", **held))
    with gateway.connect() as client:
        client.send(sized(HELLO) * 3)
        upstream.request_gate(1).wait_sync()
        assert len(upstream.requests) == 1  # the next begins when the one before it is answered
        gate.open()
        assert [client.read_reply().json for _ in range(3)] == ["one", "two", "three"]


def test_a_body_that_waits_for_100_is_asked_for(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    body = json.dumps(HELLO).encode()
    with gateway.connect() as client:
        client.send(post(b"", f"content-length: {len(body)}", "expect: 100-continue"))
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.read_reply().status == 200


def test_a_trailer_is_no_header(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    body = json.dumps(HELLO).encode()
    chunks = b"%x\r\n%b\r\n0\r\nx-mnemogate-memory: nonsense\r\n\r\n" % (len(body), body)
    with gateway.connect() as client:
        client.send(post(chunks, "transfer-encoding: chunked"))
        assert client.read_reply().status == 200
        client.send(sized(HELLO))
        assert client.read_reply().status == 200


def test_a_head_that_began_after_another_request_is_bounded_as_well(
    upstream: StrictUpstream,
) -> None:
    with (
        # The first head has this time, too.
        serve(settings_for(upstream), limits=replace(QUIET, header_timeout_s=4 * SHORT_S)) as gateway,
        gateway.connect() as client,
    ):
        client.send(sized(HELLO) + b"POST / HT")
        assert client.read_reply().status == 200
        assert client.is_closed()


@pytest.mark.parametrize("size", [100, 300_000])
def test_a_body_that_comes_in_pieces_arrives_whole(
    gateway: RunningGateway, upstream: StrictUpstream, size: int
) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * size}]}).encode()
    with gateway.connect() as client:
        for at in range(0, len(body), 50_000):
            part = body[at : at + 50_000]
            client.send(part if at else post(part, f"content-length: {len(body)}"))
        assert client.read_reply().status == 200
    assert upstream.last.body == body


def test_an_address_of_another_machine_is_a_wrong_host() -> None:
    with pytest.raises(
        SettingsError, match=r"server\.host: 192\.0\.2\.1 is no address of this machine\. Name"
    ):  # RFC 5737
        bind("192.0.2.1", 0)


def test_an_address_family_that_the_system_lacks_is_a_wrong_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)  # a kernel without IPv6
    with pytest.raises(SettingsError, match=r"server\.host: ::1 is no address of this machine\. Name"):
        bind("::1", 0)


def test_only_one_of_two_servers_listens_at_an_address() -> None:
    """Both can take it as long as neither listens. The second one would say that it listens, and hear nobody."""
    with bind("127.0.0.1", 0) as one, bind("127.0.0.1", one.getsockname()[1]) as two:
        listen(one)
        with pytest.raises(
            GatewayError,
            match=r"server\.port: another program listens on port \d+ of 127\.0\.0\.1\. End that one, or",
        ):
            listen(two)


def test_connections_are_refused_before_the_last_file_descriptor_is_taken(
    upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.web.server.resource.getrlimit", lambda _: (4, 4))  # 0 to 3, which are taken
    with serve(settings_for(upstream), limits=replace(QUIET, header_timeout_s=2 * PATIENCE_S)) as gateway:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.web.uvicorn_protocol._REFUSED_HEAD_S", SHORT_S)
            with gateway.connect() as client:
                assert client.is_closed()  # it sends no request
        with gateway.connect() as client:
            client.send(sized(HELLO) * 2)
            reply = client.read_reply()
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert client.is_closed()
        handshake = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
        handshake["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        assert gateway.ask("GET", "/v1/responses", headers=handshake).status == 503
        assert gateway.ask("GET", "/health").status == 200
    assert upstream.requests == []
    assert any(message.startswith("Few file descriptors are left") for message in caplog.messages)
