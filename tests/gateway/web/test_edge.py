"""The pass-through over real sockets: bytes untouched, limits enforced, errors in OpenAI's form, no client hangs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from msgspec.structs import replace

from gateway.settings import ModelSettings, UpstreamSettings
from tests.doubles.upstream import Gate, StrictUpstream, fail, raw, say
from tests.patience import becomes
from tests.rows import each_row
from tests.server import QUIET, RunningGateway, serve, settings_for

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def gateway(upstream: StrictUpstream) -> Iterator[RunningGateway]:
    with serve(settings_for(upstream)) as running:
        yield running


def test_a_request_and_its_whole_reply_pass_byte_for_byte(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    reply_body = b'{ "id": "x",  "unknown": [1.10, 1e400], "choices": [] }'
    upstream.queue(raw(reply_body, content_type="application/json"))
    body = b'{"messages":[{"role":"user","content":"caf\\u00e9 \xc3\xa9"}],  "model":"m", "top_p": 1.0}'
    reply = gateway.post(body)
    assert (reply.status, reply.body) == (200, reply_body)
    assert upstream.last.body == body


def test_a_stream_passes_byte_for_byte(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    pieces = (b": hi\n\n", b'data: {"choices":[],"x":1}\r\n\r', b"\ndata: [DO", b"NE]\n\n")
    upstream.queue(raw(*pieces))
    reply = gateway.post({**HELLO, "stream": True})
    assert reply.body == b"".join(pieces)
    assert reply.headers["content-type"].startswith("text/event-stream")


def test_text_is_not_held_back(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(raw(b"data: 1\n\n", b"data: 2\n\n", hold_after={1: gate}))
    with gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**HELLO, "stream": True}).encode())
        client.read_head()
        assert client.read_chunk() == b"data: 1\n\n"  # the second cannot have left yet
        gate.open()
        assert client.read_chunk() == b"data: 2\n\n"
        assert client.read_chunk() == b""


def test_a_proxy_before_the_gateway_is_told_to_let_a_stream_pass(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    """nginx gathers replies by default: a caller would have a short stream only when it has ended."""
    assert gateway.post({**HELLO, "stream": True}).headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in gateway.post(HELLO).headers
    upstream.queue(say("Hi", headers={"x-accel-buffering": "yes"}))
    theirs = gateway.post({**HELLO, "stream": True})
    assert theirs.headers["x-accel-buffering"] == "yes"  # what the upstream asks for stays


def test_an_upstream_error_is_the_clients_own(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    upstream.queue(fail(429, "Slow down", retry_after="7"))
    reply = gateway.post(HELLO)
    assert reply.status == 429
    assert reply.headers["retry-after"] == "7"
    assert reply.error["message"] == "Slow down"


def test_another_model_name_leaves_every_other_value_alone(upstream: StrictUpstream) -> None:
    settings = settings_for(upstream, models=(ModelSettings("quick", model='real "one"'),))
    body = (
        b'{"meta":{"model":"quick"},"x":["model","quick",{"model":1}] , "model" : "quick",'
        b'"messages":[{"role":"user","content":"\\"model\\":\\"quick\\""}]}'
    )
    with serve(settings) as gateway:
        gateway.post(body)
    assert list(upstream.last.json.items()) == list({**json.loads(body), "model": 'real "one"'}.items())


# --- headers ----------------------------------------------------------------------------------------------------


def test_no_gateway_header_and_no_credential_goes_upstream(upstream: StrictUpstream) -> None:
    settings = settings_for(
        upstream, upstreams=(UpstreamSettings("up", base_url=upstream.base_url, api_key="sk-own"),)
    )
    with serve(settings) as gateway:
        gateway.post(
            HELLO,
            {
                "authorization": "Bearer sk-callers",
                "cookie": "session=1",
                "connection": "x-hop",
                "x-hop": "1",
                "x-mnemogate-user": "alice",
                "x-forwarded-for": "10.0.0.1",
                "x-api-key": "mg-secret",
                "x-odd": "mg-secret",
                "openai-organization": "org-1",
            },
        )
    headers = upstream.last.headers
    assert headers["authorization"] == "Bearer sk-own"
    absent = (
        "cookie",
        "x-hop",
        "x-mnemogate-user",
        "x-forwarded-for",
        "x-api-key",
        "x-odd",
        "openai-organization",
    )
    assert [name for name in absent if name in headers] == []
    assert b"mg-secret" not in repr(headers).encode()


def test_an_upstream_without_a_key_gets_the_callers(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    gateway.post(HELLO, {"authorization": "Bearer sk-callers"})
    assert upstream.last.headers["authorization"] == "Bearer sk-callers"


def test_a_gateway_key_is_not_taken_for_the_callers_own(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    gateway.post(HELLO, {"authorization": "Bearer mg-left-over"})
    assert "authorization" not in upstream.last.headers


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-1", True), ("x" * 129, False), ("two words", False), ("\xff", False)],
)
def test_a_request_id_is_taken_over_or_made(gateway: RunningGateway, sent: str, kept: bool) -> None:
    reply = gateway.ask("GET", "/v1/models", headers={"x-request-id": sent})
    assert (reply.headers["x-request-id"] == sent) is kept
    assert reply.headers["x-mnemogate-request-id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"n": 0}, "integer_below_min_value"),
        ({"user": 5}, "invalid_type"),
        ({"user": "x" * 257}, "string_above_max_length"),
    ],
)
def test_a_value_that_the_gateway_refuses_has_openais_code(
    gateway: RunningGateway, upstream: StrictUpstream, field: dict[str, Any], code: str
) -> None:
    error = gateway.post({**HELLO, **field}).error
    assert (error["code"], error["param"]) == (code, next(iter(field)))
    assert upstream.requests == []


def test_a_compressed_body_is_refused_by_name(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream)) as gateway:
        reply = gateway.post(HELLO, {"content-encoding": "gzip"})
    assert (reply.status, reply.error["param"]) == (415, "content-encoding")
    assert not upstream.chats


def test_an_upstream_says_nothing_in_our_name(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    upstream.queue(replace(say("Hello"), headers={"x-mnemogate-adapted": "x", "x-mnemogate-memory": "read"}))
    headers = gateway.post(HELLO).headers
    assert "x-mnemogate-adapted" not in headers
    assert headers["x-mnemogate-memory"] != "read"


def test_the_upstreams_request_id_stays_what_it_was(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(say("Hi", headers={"x-request-id": "req_theirs", "set-cookie": "a=b"}))
    reply = gateway.post(HELLO, {"x-mnemogate-memory": "off"})
    assert reply.headers["x-request-id"] == "req_theirs"
    assert "set-cookie" not in reply.headers
    assert reply.headers["x-mnemogate-memory"] == "off"
    assert float(reply.headers["x-mnemogate-added-ms"]) >= 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_upstreams_header_that_is_not_ascii_goes_on_in_its_own_bytes(
    gateway: RunningGateway, upstream: StrictUpstream, stream: bool
) -> None:
    # Upstream and client of these tests write and read a byte as one character.
    sent = {"x-latin": "caf\xe9", "x-utf-8": "ü茶".encode().decode("latin-1")}
    upstream.queue(say("Hi", headers=sent))
    assert gateway.post({**HELLO, "stream": stream}).headers.items() >= sent.items()


@pytest.mark.parametrize("stream", [True, False])
def test_a_control_character_in_an_upstreams_header_becomes_a_blank(
    gateway: RunningGateway, upstream: StrictUpstream, stream: bool
) -> None:
    upstream.queue(say("Hi", headers={"x-odd": "a\x01b\x7f\tc"}))
    reply = gateway.post({**HELLO, "stream": stream})
    assert (reply.status, reply.headers["x-odd"]) == (200, "a b \tc")


@pytest.mark.parametrize(("status", "seen"), [(418, 418), (999, 500)])
def test_a_status_beyond_the_defined_ones_is_a_servers_fault(
    gateway: RunningGateway, upstream: StrictUpstream, status: int, seen: int
) -> None:
    """RFC 9110 15: what is not within 100 to 599 is to be taken for a 5xx."""
    upstream.queue(*[fail(status, "Request denied.")] * 2)
    reply = gateway.post(HELLO)
    assert (reply.status, reply.error["message"]) == (seen, "Request denied.")


def test_a_log_line_says_everything_but_what_was_said(gateway: RunningGateway) -> None:
    gateway.post({**HELLO, "messages": [{"role": "user", "content": "my secret"}]}, {"x-request-id": "r1"})
    line = gateway.last_line()
    assert (line["id"], line["method"], line["path"], line["status"]) == ("r1", "POST", CHAT, 200)
    assert (line["model"], line["stream"]) == ("m", False)
    assert line["in"] > 0
    assert line["out"] > 0
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO),
        ("/v1/messages", {**HELLO, "max_tokens": 5}),
        ("/v1/responses", {"model": "m", "input": "Hi"}),
        ("/v1/embeddings", {"model": "m", "input": "Hi"}),
        ("/v1/chat/completions", {"model": "m"}),
    ],
)
def test_a_log_line_has_the_bytes_of_the_body(gateway: RunningGateway, path: str, body: Any) -> None:
    data = json.dumps(body).encode()
    gateway.ask("POST", path, data, {"content-type": "application/json"})
    assert (gateway.last_line()["path"], gateway.last_line()["in"]) == (path, len(data))


def test_long_names_of_callers_do_not_fill_the_log(gateway: RunningGateway) -> None:
    gateway.post({**HELLO, "model": "m" * 1_000})
    assert len(json.dumps(gateway.last_line())) < 1000
    gateway.ask("GET", "/" + "p" * 10_000)
    assert len(json.dumps(gateway.last_line())) < 1000


def test_a_head_request_is_answered_at_once(gateway: RunningGateway) -> None:
    with gateway.connect() as client:
        for _ in range(2):
            client.request("HEAD", "/health")
            assert client.read_head().status == 200


# --- bad input --------------------------------------------------------------------------------------------------


@each_row(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"model":"m","messages":"\xff"}', None),  # invalid UTF-8
        (b'{"model":"a\x00b"}', None),  # a raw NUL byte
        (b"[" * 100_000, None),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":7,"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"","messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"%s","messages":[{"role":"user","content":"x"}]}' % (b"m" * 1_001), "model"),
        (b'{"model":"m","stream":"yes","messages":[{"role":"user","content":"x"}]}', "stream"),
    ],
)
def test_a_bad_body_is_a_400_in_openais_form(
    gateway: RunningGateway, upstream: StrictUpstream, body: bytes, param: str | None
) -> None:
    reply = gateway.post(body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert upstream.requests == []


def test_an_unknown_model_is_a_404(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream, models=(ModelSettings("quick", model="m"),))) as gateway:
        reply = gateway.post(HELLO)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/responses", "POST"),
        ("PATCH", "/v1/files/f", "DELETE, GET, HEAD, POST"),
        ("GET", "/v1/messages/count_tokens", "POST"),
        # Two routes have this path.
        ("PUT", "/v1/manage/keys", "GET, HEAD, POST"),
        ("DELETE", "/ui/login", "GET, HEAD, POST"),
    ],
)
def test_the_error_for_a_method_names_the_methods_of_the_path(
    gateway: RunningGateway, method: str, path: str, allowed: str
) -> None:
    reply = gateway.ask(method, path, headers={"anthropic-version": "2023-06-01"})
    assert (reply.status, reply.headers.get("allow")) == (405, allowed)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_url"),
        ("POST", "/v1/nope", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", CHAT + "/", 404, "unknown_url"),
    ],
)
def test_unknown_paths_and_methods(
    gateway: RunningGateway, method: str, path: str, status: int, code: str
) -> None:
    reply = gateway.ask(method, path, b"{}")
    assert (reply.status, reply.error["code"]) == (status, code)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-odd: a\x00b\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n",
    ],
)
def test_a_head_that_is_no_http_is_refused_and_the_next_caller_served(
    gateway: RunningGateway, head: bytes
) -> None:
    with gateway.connect() as client:
        client.send(head)
        assert client.read_head().status == 400
    assert gateway.post(HELLO).status == 200


def test_a_head_without_end_is_refused(gateway: RunningGateway) -> None:
    with gateway.connect() as client:
        client.send(b"GET /health HTTP/1.1\r\n")
        client.send(b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(64)))
        client.send(b"x-last: " + b"z" * 8192)
        assert client.read_reply().status == 400
        assert client.is_closed()


@pytest.mark.parametrize("value", ["\xff\xfe", "a" * 8000, "%00%0a", "☃".encode().decode("latin-1")])
def test_odd_header_values_do_no_harm(gateway: RunningGateway, upstream: StrictUpstream, value: str) -> None:
    assert gateway.post(HELLO, {"x-odd": value, "user-agent": value}).status == 200
    assert len(upstream.requests) == 1
    reply = gateway.post(HELLO, {"x-mnemogate-user": value})
    assert reply.status == 200 or (reply.status == 400 and reply.error["type"] == "invalid_request_error")


# --- limits -----------------------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused_before_it_is_read(upstream: StrictUpstream) -> None:
    with (
        serve(settings_for(upstream, server={"max_body_bytes": 2000})) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, headers={"content-length": "2001"})  # and not a byte of it
        reply = client.read_reply()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_a_client_that_waits_for_100_is_refused_without_its_body(upstream: StrictUpstream) -> None:
    with (
        serve(settings_for(upstream, server={"max_body_bytes": 2000})) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, headers={"content-length": "2001", "expect": "100-continue"})
        assert client.read_reply().status == 413
        assert client.is_closed()  # or its next request could be taken for this one's body


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/v1/nothing", {}, 404), (CHAT, {"host": "elsewhere.example"}, 403), ("/v1/models", {}, 405)],
)
def test_a_request_that_is_refused_before_its_body_is_read_is_disconnected(
    gateway: RunningGateway, path: str, headers: dict[str, str], status: int
) -> None:
    with gateway.connect() as client:
        client.request("POST", path, headers={"content-length": "9", "expect": "100-continue", **headers})
        reply = client.read_reply()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert client.is_closed()


def test_a_body_that_was_asked_for_and_is_refused_leaves_the_connection_open(gateway: RunningGateway) -> None:
    with gateway.connect() as client:
        for _ in range(2):
            client.request("POST", CHAT, headers={"content-length": "1", "expect": "100-continue"})
            client.read_until(b"100 Continue\r\n\r\n")
            client.send(b"{")
            assert client.read_reply().status == 400


def test_after_a_413_the_connection_goes_on(upstream: StrictUpstream) -> None:
    with (
        serve(settings_for(upstream, server={"max_body_bytes": 2000})) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, b" " * 300_000)
        assert client.read_reply().status == 413
        client.request("POST", CHAT, json.dumps(HELLO).encode())
        assert client.read_reply().status == 200


def test_a_chunked_body_over_the_limit_is_refused(upstream: StrictUpstream) -> None:
    with (
        serve(settings_for(upstream, server={"max_body_bytes": 2000})) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, headers={"transfer-encoding": "chunked"})
        for _ in range(5):
            client.send(b"%x\r\n%s\r\n" % (500, b" " * 500))
        assert client.read_reply().status == 413
    assert upstream.requests == []


def test_fields_after_a_chunked_body_are_no_headers(gateway: RunningGateway) -> None:
    """Else it could name a host, a user or a key that a proxy in front had not let through."""
    with gateway.connect() as client:
        client.request("POST", CHAT, headers={"transfer-encoding": "chunked"})
        body = json.dumps(HELLO).encode()
        client.send(b"%x\r\n%b\r\n0\r\n" % (len(body), body))
        client.send(b"host: elsewhere\r\nx-mnemogate-memory: nonsense\r\n" * 1_000 + b"\r\n")
        assert client.read_reply().status == 200
    # In one packet they are there before the request is looked at.
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % CHAT.encode()
    with gateway.connect() as client:
        client.send(head + b"%x\r\n%b\r\n0\r\nhost: elsewhere\r\n\r\n" % (len(body), body))
        assert client.read_reply().status == 200


def asks_for_http2(body: bytes, name: bytes = b"Upgrade") -> bytes:
    """The head of a request with this body. name: of the header, as it is written."""
    return (
        b"POST %b HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\nHost: localhost\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n%b: h2c\r\n\r\n"
    ) % (CHAT.encode(), len(body), name)


@pytest.mark.parametrize("name", [b"Upgrade", b"UPGRADE"])
@pytest.mark.parametrize("is_apart", [True, False])
def test_a_client_that_would_rather_speak_http2_is_answered(
    gateway: RunningGateway, is_apart: bool, name: bytes
) -> None:
    """Java's asks for it with its first request, body and all."""
    body = json.dumps(HELLO).encode()
    head = asks_for_http2(body, name)
    with gateway.connect() as client:
        for _ in range(2):
            for part in (head, body) if is_apart else (head + body,):
                client.send(part)
            assert client.read_reply().status == 200
        client.request("GET", "/v1/models", headers={"connection": "upgrade", "upgrade": "websocket"})
        assert client.read_reply().status == 200


def test_a_body_at_the_limit_is_served(upstream: StrictUpstream) -> None:
    body = json.dumps(HELLO).encode().ljust(2000)
    with serve(settings_for(upstream, server={"max_body_bytes": 2000})) as gateway:
        assert gateway.post(body).status == 200
    assert upstream.last.body == body


@pytest.mark.parametrize("size", [1_500_000, 100_000])
def test_large_bodies_in_flight_are_bounded_and_the_room_comes_back(
    upstream: StrictUpstream, size: int
) -> None:
    body = json.dumps({**HELLO, "messages": [{"role": "user", "content": "x" * size}]}).encode()
    gate = Gate()
    with (
        serve(settings_for(upstream), limits=replace(QUIET, bodies_in_flight_bytes=size * 4 // 3)) as gateway,
        gateway.connect() as first,
    ):
        upstream.queue(say("one", hold_before_headers=gate))
        first.request("POST", CHAT, body)
        upstream.request_gate(1).wait_sync()
        refused = gateway.post(body)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert gateway.post(HELLO).status == 200  # small ones go on
        gate.open()
        assert first.read_reply().status == 200
        gateway.flush_log()
        assert gateway.post(body).status == 200


def test_a_body_that_does_not_come_is_a_408(upstream: StrictUpstream) -> None:
    with (
        serve(settings_for(upstream), limits=replace(QUIET, body_timeout_s=0.1)) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, headers={"content-length": "100"})
        reply = client.read_reply()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert client.is_closed()


def test_a_head_that_does_not_come_ends_the_connection(upstream: StrictUpstream) -> None:
    with (
        serve(settings_for(upstream), limits=replace(QUIET, header_timeout_s=0.1)) as gateway,
        gateway.connect() as client,
    ):
        client.send(b"GET /health HTT")
        assert client.is_closed()


# --- clients that leave -------------------------------------------------------------------------------------------


def test_gone_in_the_middle_of_its_body(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    with gateway.connect() as client:
        client.request("POST", CHAT, b"{", {"content-length": "100"})
    assert gateway.post(HELLO).status == 200
    assert len(upstream.requests) == 1


def test_a_command_that_is_gone_in_the_middle_of_its_body_is_no_fault(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream), admin_token="token") as gateway:
        with gateway.connect() as client:
            headers = {"content-length": "100", "x-mnemogate-admin": "token"}
            client.request("POST", "/admin/keys-list", b"{", headers)
        (line,) = becomes(lambda: [*gateway.lines])
        assert (line["path"], line["status"]) == ("/admin/keys-list", 499)


@pytest.mark.parametrize("stream", [True, False])
def test_gone_before_the_first_byte_closes_the_upstream(
    gateway: RunningGateway, upstream: StrictUpstream, stream: bool
) -> None:
    upstream.queue(say("never", hold_before_headers=Gate()))
    with gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**HELLO, "stream": stream}).encode())
        upstream.request_gate(1).wait_sync()
    upstream.last.gone.wait_sync()
    assert gateway.last_line()["status"] == 499


def test_gone_in_the_middle_of_a_stream_closes_the_upstream(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"data: 1\n\n", b"data: 2\n\n", hold_after={1: Gate()}))
    with gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**HELLO, "stream": True}).encode())
        client.read_until(b"data: 1\n\n")
    upstream.last.gone.wait_sync()
    line = gateway.last_line()
    assert (line["status"], line["memory"]) == (499, "none")  # as the reply's head said


def test_gone_in_the_middle_of_a_whole_reply_closes_the_upstream(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"{", b"}", content_type="application/json", hold_after={1: Gate()}))
    with gateway.connect() as client:
        client.request("POST", CHAT, json.dumps(HELLO).encode())
        upstream.request_gate(1).wait_sync()
    upstream.last.gone.wait_sync()


def test_a_client_that_does_not_read_is_let_go(upstream: StrictUpstream) -> None:
    flood = b"data: " + b"x" * 100_000 + b"\n\n"
    upstream.queue(raw(*[flood] * 300, hold_after={300: Gate()}))
    with (
        serve(settings_for(upstream), limits=replace(QUIET, send_timeout_s=0.2)) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, json.dumps({**HELLO, "stream": True}).encode())
        upstream.request_gate(1).wait_sync()
        upstream.last.gone.wait_sync()
        assert gateway.last_line()["status"] == 499


@pytest.mark.parametrize("head", [{}, {"connection": "close"}])
def test_a_client_that_does_not_read_a_whole_reply_is_let_go(
    upstream: StrictUpstream, head: dict[str, str]
) -> None:
    """The reply was written, and lay in memory as long as the client liked."""
    upstream.queue(raw(b'"%s"' % (b"x" * 30_000_000), content_type="application/json"))
    with (
        serve(settings_for(upstream), limits=replace(QUIET, send_timeout_s=0.2)) as gateway,
        gateway.connect() as client,
    ):
        client.request("POST", CHAT, json.dumps(HELLO).encode(), head)
        upstream.request_gate(1).wait_sync()
        becomes(lambda: not gateway.server.server_state.connections)


def test_a_connection_serves_one_request_after_the_other(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    with gateway.connect() as client:
        for _ in range(3):
            client.request("POST", CHAT, json.dumps(HELLO).encode())
            assert client.read_reply().status == 200


def test_an_idle_connection_is_kept_longer_than_any_load_balancer_keeps_its_own(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    """They close after 60 to 120 seconds; whoever closes first loses a request now and then."""

    async def closing_at() -> list[float]:
        connections: Any = gateway.server.server_state.connections
        return [each.timeout_keep_alive_task.when() for each in connections]

    async def time() -> float:
        return asyncio.get_running_loop().time()

    with gateway.connect() as client:
        for stream in (False, True):
            before = gateway.call(time())
            client.request("POST", CHAT, json.dumps({**HELLO, "stream": stream}).encode())
            reply = client.read_reply()
            assert (reply.status, reply.headers.get("connection", "keep-alive")) == (200, "keep-alive")
            gateway.flush_log()
            (at,) = gateway.call(closing_at())
            assert at >= before + 130
        assert client.socket.getpeername()[1] == gateway.port  # one and the same


# --- upstreams that fail --------------------------------------------------------------------------------------------


def test_an_upstream_cut_in_its_stream_ends_in_an_error_event(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    word = b'data: {"choices":[{"index":0,"delta":{"content":"One"}}]}'
    upstream.queue(raw(word + b"\n\n", b"data: 2\n\n", cut_after=1))
    reply = gateway.post({**HELLO, "stream": True})
    events = reply.body.split(b"\n\n")
    assert events[0] == word
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "upstream_broke"
    assert events[-1] == b""
    assert b"[DONE]" not in reply.body


def test_an_upstream_cut_in_its_whole_reply_is_a_502(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"{", b"}", content_type="application/json", cut_after=1))
    reply = gateway.post(HELLO)
    assert (reply.status, reply.error["code"]) == (502, "upstream_broke")


def test_an_upstream_that_hangs_up_is_a_502(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    upstream.queue(say("x", cut_before_headers=True), say("x", cut_before_headers=True))
    reply = gateway.post({**HELLO, "stream": True})
    assert (reply.status, reply.error["type"]) == (502, "upstream_error")


def test_an_upstream_that_says_nothing_is_a_504(upstream: StrictUpstream) -> None:
    slow = UpstreamSettings("up", base_url=upstream.base_url, first_byte_timeout_s=0.1)
    upstream.queue(say("never", hold_before_headers=Gate()))
    with serve(settings_for(upstream, upstreams=(slow,))) as gateway:
        reply = gateway.post(HELLO)
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_running_stream_ends_in_order_when_the_gateway_is_told_to_stop(upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(raw(b"data: 1\n\n", b"data: [DONE]\n\n", hold_after={1: gate}))
    with serve(settings_for(upstream)) as gateway, gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**HELLO, "stream": True}).encode())
        client.read_until(b"data: 1\n\n\r\n")
        gateway.loop.call_soon_threadsafe(gateway.server.request_exit)
        gate.open()
        assert client.read_until(b"0\r\n\r\n").endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_stream_that_does_not_end_gets_an_error(upstream: StrictUpstream) -> None:
    upstream.queue(raw(b"data: 1\n\n", b"data: 2\n\n", hold_after={1: Gate()}))
    with serve(settings_for(upstream, server={"shutdown_s": 0})) as gateway, gateway.connect() as client:
        client.request("POST", CHAT, json.dumps({**HELLO, "stream": True}).encode())
        client.read_until(b"data: 1\n\n\r\n")
        gateway.loop.call_soon_threadsafe(gateway.server.request_exit)
        assert b"shutting down" in client.read_until(b"0\r\n\r\n")
    upstream.last.gone.wait_sync()


def test_a_reply_says_when_it_was_made(
    gateway: RunningGateway, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream's own date is not handed on (RFC 9110 6.6.1). No timer keeps it: an idle gateway does nothing."""
    for at, date in ((1e9, "Sun, 09 Sep 2001 01:46:40 GMT"), (1e9 + 1.5, "Sun, 09 Sep 2001 01:46:41 GMT")):
        monkeypatch.setattr("gateway.web.server.time.time", lambda at=at: at)
        upstream.queue(raw(b"{}", content_type="application/json"))
        assert gateway.post(HELLO).headers["date"] == date


def test_an_idle_server_is_not_woken_to_look_for_its_end(
    upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[int] = []

    async def on_tick(server: uvicorn.Server, counter: int) -> bool:
        ticks.append(counter)
        return server.should_exit

    monkeypatch.setattr("uvicorn.Server.on_tick", on_tick)
    with serve(settings_for(upstream)) as gateway:
        upstream.queue(raw(b"{}", content_type="application/json"))
        assert gateway.post(HELLO).status == 200
    assert not ticks
