"""The endpoints that are passed through: streams, limits, and clients that leave."""

from __future__ import annotations

import gc
import gzip
import json
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from openai.types.responses import ResponseErrorEvent

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic
from tests.doubles.upstream import Gate, StrictUpstream, fail, raw
from tests.gateway.upstream.forms import FORM, JSON, form
from tests.patience import PATIENCE_S, SHORT_S
from tests.server import QUIET, RawReply, RunningGateway, serve, settings_for


@pytest.fixture
def gateway(upstream: StrictUpstream) -> Iterator[RunningGateway]:
    with serve(settings_for(upstream)) as running:
        yield running


def test_a_reply_leaves_while_it_comes(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.queue(raw(b"first", b"second", content_type="audio/mpeg", hold_after={1: gate}))
    body = json.dumps({"model": "m", "input": "Hi", "voice": "v"}).encode()
    with gateway.connect() as client:
        client.request("POST", "/v1/audio/speech", body, JSON)
        client.read_head()
        assert client.read_chunk() == b"first"
        gate.open()
        assert client.read_chunk() == b"second"
        assert client.read_chunk() == b""


@pytest.mark.parametrize(
    ("method", "kind"), [("GET", "audio/mpeg"), ("HEAD", "audio/mpeg"), ("HEAD", "application/json")]
)
def test_a_reply_that_leaves_while_it_comes_has_its_length(
    gateway: RunningGateway, upstream: StrictUpstream, method: str, kind: str
) -> None:
    body = bytes(range(256)) * 1000
    upstream.queue(raw(body, content_type=kind))
    with gateway.connect() as client:
        client.request(method, "/v1/audio/voices/v")
        head = client.read_head()
        assert (head.headers["content-length"], "transfer-encoding" in head.headers) == ("256000", False)
        if method == "GET":
            assert client.read_exactly(256_000) == body
        client.request("GET", "/health")
        assert client.read_reply().status == 200


def test_a_part_of_a_file_is_asked_for_and_given(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    part = {"content-range": "bytes 5-6/7"}
    upstream.queue(raw(b"67", content_type="audio/mpeg", status=206, headers=part))
    reply = gateway.ask("GET", "/v1/audio/voices/v", None, {"range": "bytes=5-", "if-range": '"v1"'})
    assert (upstream.last.headers["range"], upstream.last.headers["if-range"]) == ("bytes=5-", '"v1"')
    assert (reply.status, reply.body, reply.headers["content-length"]) == (206, b"67", "2")
    assert reply.headers.items() >= part.items()


@pytest.mark.parametrize("packed", [True, False])
def test_a_length_that_is_not_that_of_what_arrives_is_not_said(
    gateway: RunningGateway, upstream: StrictUpstream, packed: bool
) -> None:
    encoding = {"content-encoding": "gzip"} if packed else {}
    pieces = [gzip.compress(b"Hello")] if packed else [b"Hel", b"lo"]
    upstream.queue(raw(*pieces, content_type="audio/mpeg", headers=encoding))
    reply = gateway.ask("GET", "/v1/audio/voices/v")
    assert (reply.body, "content-length" in reply.headers) == (b"Hello", False)


def test_a_reply_that_breaks_is_shorter_than_its_length(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"x" * 1000, content_type="audio/mpeg", cut_after=0))
    with gateway.connect() as client:
        client.request("GET", "/v1/audio/voices/v")
        assert client.read_head().headers["content-length"] == "1000"
        assert client.read_exactly(500) == b"x" * 500
        assert client.is_closed()


def test_a_client_that_leaves_in_an_upload_ends_the_upstreams_request(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    with gateway.connect() as client:
        there = upstream.byte_gate(10_000)
        client.request("POST", "/v1/files", None, {**FORM, "content-length": "1000000"})
        client.send(form(("*file", b"x" * 20_000), end=False))
        there.wait_sync()
    upstream.broken_off.wait_sync()
    assert gateway.last_line()["status"] == 499


def test_an_upstream_that_takes_nothing_of_an_upload_is_a_504() -> None:
    """Whether the client is still there cannot be seen then: what it sent before it left is in between."""
    with StrictUpstream(stall_bodies=True) as upstream:
        slow = UpstreamSettings("up", base_url=upstream.base_url, idle_timeout_s=SHORT_S)
        with serve(settings_for(upstream, upstreams=(slow,))) as gateway, gateway.connect() as client:
            client.request("POST", "/v1/files", None, {**FORM, "content-length": "100000000"})
            reply: list[RawReply] = []
            reader = threading.Thread(target=lambda: reply.append(client.read_reply()))
            reader.start()
            while reader.is_alive():
                if select.select([], [client.socket], [], 0.05)[1]:
                    client.socket.send(b"x" * 65536)
            assert (reply[0].status, reply[0].error["code"]) == (504, "upstream_timeout")


def test_an_answer_that_comes_before_the_upload_is_through_is_handed_on(upstream: StrictUpstream) -> None:
    answer = b'{"error":{"message":"Incorrect API key provided.","type":"x","param":null,"code":"invalid_api_key"}}'
    head = b"HTTP/1.1 401 No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)

    def refuse(listener: socket.socket) -> None:
        with listener.accept()[0] as taken:
            taken.recv(100)
            taken.sendall(head + answer)
            while taken.recv(65536):  # until the gateway lets go
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        hasty = threading.Thread(target=refuse, args=(listener,))
        hasty.start()
        first = UpstreamSettings("up", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        with serve(settings_for(upstream, upstreams=(first,))) as gateway, gateway.connect() as client:
            client.request("POST", "/v1/files", None, {**FORM, "content-length": "1000000"})
            client.send(b"x" * 100_000)
            reply = client.read_reply()
            assert (reply.status, reply.body) == (401, answer)
            hasty.join(PATIENCE_S)
            assert not hasty.is_alive()
            client.send(b"x" * 900_000)  # the connection goes on
            client.request("GET", "/health")
            assert client.read_reply().status == 200


def test_a_client_that_leaves_before_the_reply_ends_the_upstreams_request(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"never", hold_before_headers=Gate()))
    with gateway.connect() as client:
        client.request("POST", "/v1/embeddings", b'{"model":"m","input":"x"}', JSON)
        upstream.request_gate(1).wait_sync()
    upstream.last.gone.wait_sync()


def test_a_client_that_leaves_in_the_reply_ends_the_upstreams_request(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b"some", b"never", content_type="audio/mpeg", hold_after={1: Gate()}))
    with gateway.connect() as client:
        client.request("POST", "/v1/audio/speech", b'{"model":"m","input":"x","voice":"v"}', JSON)
        client.read_until(b"some")
    upstream.last.gone.wait_sync()


@pytest.mark.parametrize("announced", [True, False])
def test_more_than_the_limit_is_a_413(upstream: StrictUpstream, announced: bool) -> None:
    body = form(("purpose", b"batch"), ("*file", b"x" * 100_000))
    with serve(settings_for(upstream, server={"max_upload_bytes": 50_000})) as gateway:
        with gateway.connect() as client:
            if announced:
                client.request("POST", "/v1/files", body, FORM)
            else:
                client.request("POST", "/v1/files", None, {**FORM, "transfer-encoding": "chunked"})
                client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            reply = client.read_reply()
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")
            assert "server.max_upload_bytes" in reply.error["message"]
        assert upstream.requests == []
        assert gateway.ask("GET", "/v1/files").status == 200


def test_an_upload_may_be_larger_than_a_chat_and_json_may_not(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream, server={"max_body_bytes": 2048})) as gateway:
        body = form(("purpose", b"batch"), ("*file", b"x" * 100_000))
        assert gateway.ask("POST", "/v1/files", body, FORM).status == 200
        wide = json.dumps({"model": "m", "input": "x" * 4000}).encode()
        assert gateway.ask("POST", "/v1/embeddings", wide, JSON).status == 413


def test_an_upload_that_does_not_come_is_a_408(upstream: StrictUpstream) -> None:
    limits = replace(QUIET, body_timeout_s=0.1)
    with serve(settings_for(upstream), limits=limits) as gateway, gateway.connect() as client:
        client.request("POST", "/v1/files", None, {**FORM, "content-length": "100"})
        client.send(b"--XX\r\n")
        assert client.read_head().status == 408


# One request for each family of endpoints, in each form that there is.
Row = tuple[str, str, bytes | None, dict[str, str]]
ASKED: list[Row] = [
    ("POST", "/v1/embeddings", b'{"model":"m","input":"x"}', JSON),
    ("POST", "/v1/completions", b'{"model":"m","prompt":"x","stream":true}', JSON),
    ("POST", "/v1/moderations", b'{"model":"m","input":"x"}', JSON),
    ("POST", "/v1/rerank", b'{"model":"m","query":"q","documents":["a"]}', JSON),
    ("POST", "/v1/images/generations", b'{"model":"m","prompt":"x"}', JSON),
    ("POST", "/v1/images/edits", form(("model", b"m"), ("*image", b"x")), FORM),
    ("POST", "/v1/audio/speech", b'{"model":"m","input":"x","voice":"v"}', JSON),
    ("POST", "/v1/audio/transcriptions", form(("model", b"m"), ("*file", b"x")), FORM),
    ("GET", "/v1/files", None, {}),
    ("POST", "/v1/files", form(("purpose", b"batch"), ("*file", b"x")), FORM),
    ("POST", "/v1/uploads", b'{"bytes":1,"filename":"f","mime_type":"t","purpose":"batch"}', JSON),
    (
        "POST",
        "/v1/batches",
        b'{"input_file_id":"f","endpoint":"/v1/embeddings","completion_window":"24h"}',
        JSON,
    ),
    ("POST", "/v1/responses", b'{"model":"m","input":"x","stream":true}', JSON),
    ("GET", "/v1/batches/batch_1", None, {}),
]


def asking(rows: Sequence[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("method", "path", "body", "headers"), rows, ids=[" ".join(row[:2]) for row in rows]
    )


every_endpoint = asking(ASKED)


@every_endpoint
def test_an_error_of_the_upstream_is_the_clients_own(
    gateway: RunningGateway,
    upstream: StrictUpstream,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
) -> None:
    for status, code in ((429, "rate_limit_exceeded"), (400, "bad_thing"), (503, "full")):
        fault = fail(status, "Slow down", code=code, retry_after="7")
        upstream.queue(fault)
        reply = gateway.ask(method, path, body, headers)
        assert (reply.status, reply.headers["retry-after"]) == (status, "7")
        assert [reply.body] == list(fault.body or ())
        assert reply.headers["x-mnemogate-upstream"] == "up"
    counted = gateway.ask("GET", "/metrics").body.decode()
    for kind, label in (("tries", "outcome"), ("errors", "kind")):
        assert f"mnemogate_upstream_{kind}_total{{{_labels(label, '429')}}} 1.0" in counted


def _labels(label: str, value: str) -> str:
    return ",".join(sorted((f'{label}="{value}"', 'upstream="up"')))


@every_endpoint
def test_an_unreachable_upstream_is_named_and_counted(
    gateway: RunningGateway,
    upstream: StrictUpstream,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
) -> None:
    upstream.stop()
    reply = gateway.ask(method, path, body, headers)
    assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
    assert reply.headers["x-mnemogate-upstream"] == "up"
    counted = gateway.ask("GET", "/metrics").body.decode()
    tries = 1.0 if headers == FORM else 2.0  # nothing had arrived; but a form is read once
    assert f"mnemogate_upstream_tries_total{{{_labels('outcome', 'unreachable')}}} {tries}" in counted


@asking([row for row in ASKED if row[:2] != ("POST", "/v1/responses")])  # which the gateway answers itself
def test_a_route_that_claude_lacks_is_a_404_that_names_the_model(
    method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    with StrictAnthropic() as claude:
        only = (UpstreamSettings("claude", "anthropic", claude.base_url),)
        with serve(settings_for(claude, upstreams=only)) as gateway:
            reply = gateway.ask(method, path, body, headers)
            assert gateway.ask("GET", "/health").status == 200
        assert claude.requests == []
    assert (reply.status, reply.error["code"]) == (404, "unsupported_endpoint")
    assert path in reply.error["message"]
    assert "'claude'" in reply.error["message"]
    names_a_model = body is not None and (b'"model"' in body)
    assert (reply.error["param"] == "model", "'m'" in reply.error["message"]) == (names_a_model,) * 2
    assert reply.error["type"] == "invalid_request_error"


@every_endpoint
def test_a_request_without_a_model_does_not_go_to_claude(
    upstream: StrictUpstream, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    with StrictAnthropic() as claude:
        both = (
            UpstreamSettings("claude", "anthropic", claude.base_url, models=("claude-*",)),
            UpstreamSettings("up", base_url=upstream.base_url),
        )
        with serve(settings_for(claude, upstreams=both)) as gateway:
            reply = gateway.ask(method, path, body, headers)
            assert (reply.status, reply.headers["x-mnemogate-upstream"]) == (200, "up")
        assert (len(upstream.requests), claude.requests) == (1, [])


def test_json_cut_in_its_middle_is_a_status_and_an_unreachable_upstream_too(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(b'{"data": [1, 2, 3]}', content_type="application/json", cut_after=0))
    assert gateway.ask("POST", "/v1/embeddings", b'{"model":"m","input":"x"}', JSON).status == 502
    upstream.stop()
    reply = gateway.ask("POST", "/v1/files", form(("purpose", b"batch"), ("*file", b"x")), FORM)
    assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_an_error_status_whose_body_breaks_is_one_error(
    gateway: RunningGateway, upstream: StrictUpstream, path: str, question: dict[str, Any]
) -> None:
    upstream.queue(raw(b": wait\n\n", b"data: ", status=404, cut_after=1))
    gateway.ask("POST", path, json.dumps({"model": "m", "stream": True, **question}).encode(), JSON)
    counted = gateway.ask("GET", "/metrics").body.decode().splitlines()
    errors = [line for line in counted if line.startswith("mnemogate_upstream_errors_total{")]
    assert errors == [f"mnemogate_upstream_errors_total{{{_labels('kind', '404')}}} 1.0"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [({"cut_after": 2}, "upstream_broke"), ({"hold_after": {2: Gate()}}, "upstream_timeout")],
    ids=["cut", "stalled"],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_a_stream_that_breaks_ends_with_an_error_that_can_be_read(
    upstream: StrictUpstream, path: str, fault: Any, code: str
) -> None:
    """The beginning of an event is not handed on: the error after it would be a part of it."""
    first, half = b'data: {"n": 1}\n\n', b'data: {"n'
    upstream.queue(raw(first, half, b'": 2}\n\n', **fault))
    impatient = UpstreamSettings(
        "up", base_url=upstream.base_url, idle_timeout_s=SHORT_S, takes={"responses": "stored"}
    )
    body = {"model": "m", ("input" if path == "/v1/responses" else "prompt"): "x", "stream": True}
    with serve(settings_for(upstream, upstreams=(impatient,))) as gateway:
        reply = gateway.ask("POST", path, json.dumps(body).encode(), JSON)
        counted = gateway.ask("GET", "/metrics").body.decode()
    begun, error, end = reply.body.split(b"\n\n")
    assert (begun + b"\n\n", end) == (first, b"")
    name, _, data = error.rpartition(b"data: ")
    event = json.loads(data)
    assert event["error"]["code"] == code
    if path == "/v1/responses":  # its clients distinguish events by their types
        assert name == b"event: error\n"
        assert ResponseErrorEvent.model_validate(event).code == code
    kind = {"upstream_broke": "broke", "upstream_timeout": "timeout"}[code]
    assert f"mnemogate_upstream_errors_total{{{_labels('kind', kind)}}} 1.0" in counted


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_silence_in_a_stream_is_filled_with_comments(upstream: StrictUpstream, path: str) -> None:
    """Between events: the half of one that is there waits for the other."""
    pieces = [b'data: {"n": 1}\n\nda', b'ta: {"n": 2}\n\n']
    gate = Gate()
    upstream.queue(raw(*pieces, hold_after={1: gate}))
    given = {"input" if path == "/v1/responses" else "prompt": "x"}
    body = json.dumps({"model": "m", "stream": True, **given}).encode()
    settings = settings_for(upstream, server={"keep_alive_comment_s": 0.01})
    with serve(settings) as gateway, gateway.connect() as client:
        client.request("POST", path, body, JSON)
        client.read_head()
        got = b""
        while piece := client.read_chunk():
            got += piece
            if b": keep-alive\n\n" in got:
                gate.open()
    assert [event for event in got.split(b"\n\n") if event != b": keep-alive"] == b"".join(pieces).split(
        b"\n\n"
    )


def test_a_stream_that_is_read_again_may_have_no_event(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    """The events of a stored response after its last one."""
    upstream.queue(raw(b""))
    reply = gateway.ask("GET", "/v1/audio/voices/v?starting_after=9")
    assert (reply.status, reply.body, len(upstream.requests)) == (200, b"", 1)


def test_a_stream_is_handed_on_to_its_last_byte(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    pieces = [b'data: {"n": 1}\n\nda', b'ta: {"n": 2}', b"\n\ndata: [DONE]"]
    upstream.queue(raw(*pieces))
    reply = gateway.ask("POST", "/v1/completions", b'{"model":"m","prompt":"x","stream":true}', JSON)
    assert reply.body == b"".join(pieces)


def test_a_body_that_is_neither_json_nor_a_form_passes(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    kind = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    gateway.ask("POST", "/v1/images/odd", b"\x1f\x8b\x00raw", kind)
    request = upstream.last
    assert (request.body, request.headers["content-type"], request.headers["content-encoding"]) == (
        b"\x1f\x8b\x00raw",
        "application/x-ndjson",
        "gzip",
    )


class Lost:
    """The connection of a client that has left before it was answered."""

    is_writing_paused, has_whole_body, is_refused = True, True, False
    on_lost = None

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None: ...


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_nothing_is_begun_for_a_client_that_has_left(
    gateway: RunningGateway, upstream: StrictUpstream, path: str
) -> None:
    """A call that was made ready and is thrown away would warn in the log that it was never awaited."""
    body = b'{"model":"m","input":"x","messages":[{"role":"user","content":"Hi"}]}'

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}

    async def ask() -> None:
        await gateway.app({**scope, "state": {"connection": Lost()}}, receive, send)

    gateway.call(ask())
    gc.collect()
    assert [request.path for request in upstream.requests if request.path == path] == []
