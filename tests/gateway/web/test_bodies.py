"""Large bodies are served and stored; what is refused leaves nothing."""

from __future__ import annotations

import base64
import json
import pkgutil
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.conversation.canonical import MessageHasher
from tests.doubles.upstream import Gate, StrictUpstream
from tests.gateway.sdk import CHAT, World, remember
from tests.patience import PATIENCE_S

HELLO: dict[str, Any] = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "Hello"}]}
LONG = [{"role": "user", "content": "x" * 2_000_000}]
TABLES = (
    "agents",
    "conversations",
    "exchanges",
    "marks",
    "sections",
    "blocks",
    "block_ops",
    "passages",
    "keys",
)


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all requests that leave nothing."""
    with StrictUpstream() as upstream, remember(upstream, tmp_path_factory.mktemp("quiet")) as made:
        yield made


def stored(world: World) -> list[int]:
    return [world.query(f"SELECT count(*) FROM {table}")[0] for table in TABLES]


# -- large ones


def with_images(size: int) -> bytes:
    """A question about four images, in a body of about that many bytes."""
    image = base64.b64encode(random.Random(1).randbytes(size // 4 * 3 // 4)).decode()
    parts: list[Any] = [{"type": "text", "text": "Which of these shows my cat Miso?"}]
    for i in range(4):
        url = f"data:image/png;base64,{i}AAA{image}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return orjson.dumps({"model": "m", "user": "alice", "messages": [{"role": "user", "content": parts}]})


def test_twenty_megabytes_of_images_are_served_and_stored(world: World) -> None:
    body = with_images(20_000_000)
    assert len(body) > 20_000_000
    reply = world.gateway.post(body)
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on")
    assert "x-mnemogate-durable" not in reply.headers
    assert world.upstream.last.body == body
    ((kept, said),) = world.query("SELECT input, shown_reply FROM exchanges WHERE state = 'finished'")
    assert orjson.loads(kept) == orjson.loads(body)["messages"]
    assert orjson.loads(said)["content"] == "Ok."
    world.chat(user="alice").say("What did I ask about my cat Miso?")
    assert "Which of these" in world.upstream.last.body.decode()
    assert len(world.upstream.last.body) < 10_000  # its words are recalled, not its images


def test_twenty_megabytes_off_the_record_are_served_and_not_stored(world: World) -> None:
    body = with_images(20_000_000)
    reply = world.gateway.post(body, {"x-mnemogate-memory": "off"})
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "off")
    assert world.upstream.last.body == body
    assert world.query(
        "SELECT count(*) FROM exchanges WHERE input IS NOT NULL OR shown_reply IS NOT NULL"
    ) == [0]
    assert world.query("SELECT coalesce(sum(length(inputs) + length(media)), 0) FROM exchanges")[0] < 1000


def test_a_conversation_with_images_goes_on(world: World) -> None:
    """They are resent with each turn, as clients do."""
    first = orjson.loads(with_images(2_000_000))["messages"]
    messages = [*first, {"role": "assistant", "content": "Ok."}, {"role": "user", "content": "Are you sure?"}]
    assert world.post(first, user="alice").status == 200
    assert world.post(messages, user="alice").status == 200
    assert world.upstream.last.messages == messages
    assert world.query("SELECT depth FROM exchanges ORDER BY id") == [0, 1]
    assert world.query("SELECT length(input) > 1000000 FROM exchanges ORDER BY id") == [1, 0]


@pytest.mark.parametrize(
    ("path", "fields", "parser"),
    [
        (CHAT, {"messages": LONG}, "gateway.web.completions.parse"),
        ("/v1/messages", {"messages": LONG, "max_tokens": 9}, "gateway.web.messages.parse_body"),
        ("/v1/responses", {"input": LONG}, "gateway.web.responses.responses.read_native"),
        # An id of the gateway's own, which is read before it is looked for.
        (
            "/v1/responses",
            {"input": LONG, "previous_response_id": f"resp_{56 * '0'}"},
            "gateway.web.responses.response_call.parse",
        ),
        ("/v1/embeddings", {"input": LONG[0]["content"]}, "gateway.web.forwarding.read_request_body"),
        ("/v1/agents/", {"name": LONG[0]["content"]}, "gateway.agents.wire.struct_fields.read_body"),
        (f"/v1/conversations/conv_{32 * '0'}/items", {"items": LONG}, "gateway.web.body.read_object"),
    ],
    ids=["chat", "messages", "native", "responses", "embeddings", "agents", "conversations"],
)
def test_others_are_answered_while_a_large_body_is_parsed(
    quiet: World,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fields: dict[str, Any],
    parser: str,
) -> None:
    begun, gate = Gate(), Gate()
    parse = pkgutil.resolve_name(parser)

    def parse_when_open(body: bytes, *args: Any, **options: Any) -> Any:
        if len(body) > 1024 * 1024:
            begun.open()
            gate.wait_sync()
        return parse(body, *args, **options)

    monkeypatch.setattr(parser, parse_when_open)
    large_body = orjson.dumps({"model": "m", **fields})
    off = {"x-mnemogate-memory": "off"}
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(quiet.gateway.ask, "POST", path, large_body, off)
        begun.wait_sync()
        assert quiet.gateway.post(HELLO, off).status == 200
        assert not large.done()
        gate.open()
        assert large.result(PATIENCE_S).status < 500


@pytest.mark.parametrize("method", ["make_atoms", "digest_media"])
def test_others_are_answered_while_large_messages_are_hashed(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    begun, gate = Gate(), Gate()
    hash_message = getattr(MessageHasher, method)

    def hash_when_open(self: MessageHasher, message: Mapping[str, Any], *args: Any) -> Any:
        if isinstance(message["content"], list):
            begun.open()
            gate.wait_sync()
        return hash_message(self, message, *args)

    monkeypatch.setattr(MessageHasher, method, hash_when_open)
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(world.gateway.post, with_images(2_000_000))
        begun.wait_sync()
        assert world.gateway.post(HELLO).status == 200
        assert not large.done()
        gate.open()
        assert large.result(PATIENCE_S).status == 200


def test_over_the_limit_is_refused_unread_and_nothing_is_stored(world: World) -> None:
    limit = world.gateway.app.services.settings.server.max_body_bytes
    before = stored(world)
    with world.gateway.connect() as client:
        client.request("POST", CHAT, headers={"content-length": str(limit + 1)})  # and not a byte of it
        reply = client.read_reply()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert stored(world) == before
    assert world.upstream.requests == []


# -- invalid ones


def ten_thousand() -> bytes:
    pair = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    return json.dumps({**HELLO, "messages": [*pair * 5000, {"role": "user", "content": "Hi"}]}).encode()


def hello(**fields: Any) -> bytes:
    return json.dumps({**HELLO, **fields}).encode()


INVALID = [
    # name, body, parameter that the error names (None: none)
    ("ten thousand messages", ten_thousand(), "messages"),
    ("nothing", b"", None),
    ("no JSON", b'{"model": "m", "user": "alice", "messages": [{"role"', None),
    ("more after the end", hello() + b"}", None),
    ("not an object", b"[]", None),
    ("a number for a user", hello(user=5), "user"),
    ("a number that is none", b'{"model":"m","user":"alice","temperature":NaN,"messages":[]}', None),
    ("invalid UTF-8", hello().replace(b"Hello", b"Hel\xff\xfelo"), None),
    ("cut UTF-8", hello().replace(b"Hello", b"Hell\xe2\x98"), None),
    ("a raw NUL", hello().replace(b"Hello", b"Hel\x00lo"), None),
    ("half a surrogate", hello().replace(b"Hello", b"Hel\\ud800lo"), None),
    ("nested without end", b'{"a":' * 5000 + b"1" + b"}" * 5000, None),
    ("no messages", b'{"model":"m","user":"alice"}', "messages"),
    ("empty messages", hello(messages=[]), "messages"),
    ("messages of another type", hello(messages="Hello"), "messages"),
    ("a message of another type", hello(messages=["Hello"]), "messages[0]"),
    ("an unknown role", hello(messages=[{"role": "wizard", "content": "Hi"}]), "messages[0].role"),
    ("no role", hello(messages=[{"content": "Hi"}]), "messages[0].role"),
    ("content of another type", hello(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
    ("model of another type", hello(model=7), "model"),
    ("no model", json.dumps({"user": "alice", "messages": HELLO["messages"]}).encode(), "model"),
    ("stream of another type", hello(stream="yes"), "stream"),
    ("n of another type", hello(n="two"), "n"),
    ("tools of another type", hello(tools="all"), "tools"),
]


@pytest.mark.parametrize(("body", "param"), [each[1:] for each in INVALID], ids=[each[0] for each in INVALID])
def test_an_invalid_body_is_a_400_and_leaves_nothing(quiet: World, body: bytes, param: str | None) -> None:
    before, sent = stored(quiet), len(quiet.upstream.requests)
    reply = quiet.gateway.post(body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["message"]
    assert reply.error["param"] == param
    assert stored(quiet) == before
    assert len(quiet.upstream.requests) == sent


HEADERS = [
    # name, headers, parameter
    ("an unknown memory mode", {"x-mnemogate-memory": "perhaps"}, "x-mnemogate-memory"),
    ("an unknown history mode", {"x-mnemogate-history": "sometimes"}, "x-mnemogate-history"),
    ("a user of a megabyte's ambition", {"x-mnemogate-user": "a" * 8000}, "x-mnemogate-user"),
    ("a conversation as long", {"x-mnemogate-conversation": "c" * 8000}, "x-mnemogate-conversation"),
    ("an agent nobody has", {"x-mnemogate-agent": "nobody"}, "x-mnemogate-agent"),
    ("strict without anybody", {"x-mnemogate-memory": "strict", "no-user": "1"}, "x-mnemogate-memory"),
    ("a user that is no text", {"x-mnemogate-user": "\xff\xfe"}, "x-mnemogate-user"),
]


@pytest.mark.parametrize(
    ("headers", "param"), [each[1:] for each in HEADERS], ids=[each[0] for each in HEADERS]
)
def test_an_absurd_header_is_a_400_and_leaves_nothing(
    quiet: World, headers: dict[str, str], param: str
) -> None:
    before, sent = stored(quiet), len(quiet.upstream.requests)
    body = {name: value for name, value in HELLO.items() if name != "user" or "no-user" not in headers}
    reply = quiet.gateway.post(body, headers)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert stored(quiet) == before
    assert len(quiet.upstream.requests) == sent


def test_the_error_of_a_missing_agent_says_where_the_others_are(quiet: World) -> None:
    for fields, headers in (({"model": "agent/nobody"}, {}), ({}, {"x-mnemogate-agent": "nobody"})):
        reply = quiet.gateway.post({**HELLO, **fields}, headers)
        assert reply.status == (404 if fields else 400)
        assert "nobody" in reply.error["message"]
        assert "GET /v1/models lists" in reply.error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "tool", "tool_call_id": "x", "content": "Hi"}]},
        {"temperature": "hot"},
    ],
)
def test_an_upstreams_refusal_leaves_nothing(
    world: World, fields: dict[str, Any], database_kind: str
) -> None:
    """What passes us and is refused there was never said."""
    before = stored(world)
    reply = world.gateway.post({**HELLO, **fields})
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert len(world.upstream.requests) == 1
    if database_kind == "postgresql":
        before[0] = 1  # there an agent is made before the model is asked
    assert stored(world) == before


def test_after_all_that_it_serves(world: World) -> None:
    for _, body, _ in INVALID:
        world.gateway.post(body)
    assert world.gateway.post(HELLO).status == 200
    assert world.query("SELECT count(*) FROM exchanges") == [1]
