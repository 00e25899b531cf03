"""The Responses API over a WebSocket, with OpenAI's SDK and with messages as they are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from gateway.core.conversation.wire_message import read_text
from gateway.core.json_limits import MAX_VALUES
from gateway.dialects.responses.socket.client_events import CreateEvent, read_client_event
from gateway.dialects.responses.socket.unstored import UnstoredResponses
from gateway.run.memory.keeper import MemoryKeeper
from gateway.web.sockets import protocol
from storage.forget_commands import ForgetTarget
from storage.sql.statements import make_statement
from tests.doubles.keys import HeldKeys
from tests.doubles.responses_rules import StoredResponses, call_item, message_item, reasoning_item
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.page.memories import memory_of
from tests.gateway.responses.socket_client import END_TYPES, SocketClient, open_socket
from tests.gateway.sdk import World, agent, remember
from tests.patience import PATIENCE_S, becomes
from tests.rows import each_row
from tests.server import QUIET, chat_upstreams

Json = dict[str, Any]
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture(params=["natively", "by chat"])
def ways(request: pytest.FixtureRequest, upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    """A gateway whose upstream has the endpoint, and one whose has not."""
    parts = {"upstreams": chat_upstreams(upstream)} if request.param == "by chat" else {}
    with remember(upstream, tmp_path, **parts) as made:
        yield made


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


@pytest.fixture
def held_keys(world: World) -> HeldKeys:
    """The keys of a slow database: each handshake waits for them."""
    world.gateway.app.guard.keys = keys = HeldKeys()
    return keys


@pytest.fixture
def openai_account(upstream: StrictUpstream) -> StoredResponses:
    return upstream.endpoints.responses


@pytest.fixture
def client(world: World) -> Iterator[SocketClient]:
    with open_socket(world.gateway) as socket:
        yield SocketClient(socket)


def read_text_of(response: Json) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content") or ())


def list_stored_texts(world: World) -> list[str]:
    """Returns the texts of all stored messages, in their order."""
    world.settle()
    turns = world.query("SELECT input, shown_reply FROM exchanges ORDER BY id")
    return [
        read_text(each)
        for raw_input, reply in turns
        for each in (*orjson.loads(raw_input), orjson.loads(reply))
    ]


# -- memory


def test_a_client_is_not_shown_what_memory_put_into_its_instructions(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    with (
        remember(upstream, tmp_path, agent("ann", system="The password is swordfish.")) as world,
        open_socket(world.gateway, x_mnemogate_agent="ann") as socket,
    ):
        client = SocketClient(socket)
        client.create(input="Hi", instructions="Be brief.")
        events = [
            client.wait_for("response.created"),
            client.wait_for("response.in_progress"),
            client.wait_for(),
        ]
    assert "swordfish" in openai_account.bodies[-1]["instructions"]
    assert [event["response"]["instructions"] for event in events] == ["Be brief."] * 3


async def test_openais_sdk_is_remembered(ways: World, upstream: StrictUpstream) -> None:
    sdk = ways.async_client()
    for text in ("My cat is called Miso.", "What is my cat called?"):
        async with sdk.responses.connect() as connection:
            await connection.response.create(model="m", user="alice", input=text)
            kinds = []
            async for event in connection:
                kinds.append(event.type)
                if event.type in END_TYPES:
                    break
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
    assert b"Miso" in upstream.last.body


def test_a_request_over_a_socket_goes_upstream_as_over_http(
    world: World, upstream: StrictUpstream, client: SocketClient
) -> None:
    client.socket.send(
        b'{"type":"response.create","stream_id":"a","generate":true,"model":"m", "temperature":1.0,"stream":false,'
        b'"metadata":{"n":"caf\\u00e9"},"input":"Hi","prompt_cache_retention":"24h"}',
        text=True,
    )
    assert client.wait_for()["type"] == "response.completed"
    body = upstream.last.body
    assert b'"temperature":1.0' in body
    assert b'{"n":"caf\\u00e9"}' in body
    assert {"type", "stream_id", "generate"} & orjson.loads(body).keys() == set()
    assert orjson.loads(body)["stream"] is True


def test_the_headers_of_the_handshake_hold_for_each_request(world: World, upstream: StrictUpstream) -> None:
    beta = "responses_websockets=2026-02-06, evals=v1"
    with open_socket(
        world.gateway, "/v1/responses?model=other&x=1", x_mnemogate_user="bob", openai_beta=beta
    ) as socket:
        SocketClient(socket).send(type="response.create", input="My dog is Rex.")
        assert SocketClient(socket).wait_for()["response"]["model"] == "other"
    headers = dict(upstream.last.headers)
    assert headers["openai-beta"] == "evals=v1"
    assert not [name for name in headers if name.startswith("sec-websocket")]
    assert upstream.last.query == "x=1"
    assert list_stored_texts(world) == ["My dog is Rex.", "Ok."]


def test_livekits_base_url_is_opened_as_it_is(world: World) -> None:
    with open_socket(world.gateway, "/v1?model=m") as socket:
        assert read_text_of(SocketClient(socket).ask(input="Hi")) == "Ok."


# -- going on


def test_a_stored_response_is_gone_on_from_by_its_id(
    world: World, openai_account: StoredResponses, client: SocketClient
) -> None:
    first = client.ask(input="My cat is called Miso.")
    client.ask(input="And it is grey.", previous_response_id=first["id"])
    assert openai_account.bodies[-1]["previous_response_id"] == first["id"]
    assert list_stored_texts(world) == ["My cat is called Miso.", "Ok.", "And it is grey.", "Ok."]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_an_unstored_response_can_be_continued(
    world: World, openai_account: StoredResponses, client: SocketClient
) -> None:
    client.options = {"store": False, "tools": [WEATHER]}
    thinks = {
        key: value for key, value in reasoning_item("Look it up.").items() if key != "encrypted_content"
    }
    openai_account.outputs += [
        [thinks, call_item("weather", call_id="c1")],
        [message_item("It rains.")],
        [message_item("Take it.")],
    ]
    first = client.ask(input="How is the weather?")
    result = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
    second = client.ask(input=[result], previous_response_id=first["id"])
    third = client.ask(input="An umbrella?", previous_response_id=second["id"])
    assert read_text_of(third) == "Take it."
    kinds = [item.get("type", "message") for item in openai_account.bodies[-1]["input"]]
    assert kinds == ["message", "function_call", "function_call_output", "message", "message"]
    assert openai_account.bodies[-1]["previous_response_id"] is None
    assert list_stored_texts(world)[-3:] == ["It rains.", "An umbrella?", "Take it."]
    assert world.query("SELECT count(*) FROM conversations") == [1]
    # From one that is not the newest as well.
    fork = client.ask(input="Sandals?", previous_response_id=second["id"])
    assert fork["status"] == "completed"
    assert len(openai_account.bodies[-1]["input"]) == 5


@pytest.mark.parametrize(
    "failure",
    [fail(400, "No."), Reply(headers={"content-type": "text/event-stream"}, body=[])],
    ids=["refused", "without an end"],
)
def test_a_failed_turn_drops_the_unstored_response_that_it_went_on_from(
    upstream: StrictUpstream, client: SocketClient, failure: Reply
) -> None:
    client.options = {"store": False}
    first = client.ask(input="My cat is called Miso.")
    upstream.queue(failure)
    client.create(input="And?", previous_response_id=first["id"])
    assert client.receive()["type"] == "error"
    client.create(input="And now?", previous_response_id=first["id"])
    assert client.receive()["error"]["code"] == "previous_response_not_found"


def test_thoughts_that_can_be_sent_back_are(openai_account: StoredResponses, client: SocketClient) -> None:
    client.options = {"store": False, "include": ["reasoning.encrypted_content"]}
    openai_account.outputs.append([reasoning_item("Hm."), message_item("Yes.")])
    first = client.ask(input="Is it?")
    client.ask(input="Sure?", previous_response_id=first["id"])
    assert [item.get("type") for item in openai_account.bodies[-1]["input"]] == [
        None,
        "reasoning",
        "message",
        None,
    ]


def test_the_thoughts_of_a_reply_that_was_cut_before_its_words_are_not_sent_back(
    upstream: StrictUpstream, openai_account: StoredResponses, client: SocketClient
) -> None:
    """The API refuses reasoning that no item of its reply follows."""
    gate = Gate()
    upstream.endpoints.hold_events[9] = gate
    client.options = {"store": False, "include": ["reasoning.encrypted_content"]}
    openai_account.outputs.append([reasoning_item("Hm."), message_item("Yes.")])
    client.create(input="Is it?")
    client.wait_for("response.output_item.done")
    client.send(type="response.cancel")
    first = client.wait_for()["response"]
    assert [item["type"] for item in first["output"]] == ["reasoning"]
    upstream.endpoints.hold_events.clear()
    gate.open()
    assert read_text_of(client.ask(input="Sure?", previous_response_id=first["id"])) == "Ok."
    assert [read_text(item) for item in openai_account.bodies[-1]["input"]] == ["Is it?", "Sure?"]


def test_by_way_of_chat_completions_it_is_gone_on_from_too(upstream: StrictUpstream, tmp_path: Path) -> None:
    with (
        remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world,
        open_socket(world.gateway, x_mnemogate_memory="off") as socket,
    ):
        client = SocketClient(socket)
        first = client.ask(input="My cat is called Miso.")
        client.ask(input="What is it called?", previous_response_id=first["id"])
        assert [m["content"] for m in upstream.last.messages] == [
            "My cat is called Miso.",
            "Ok.",
            "What is it called?",
        ]


def test_an_unstored_response_after_a_stored_one_can_be_continued(
    openai_account: StoredResponses, client: SocketClient
) -> None:
    first = client.ask(input="One.")
    second = client.ask(input="Two.", previous_response_id=first["id"], store=False)
    client.ask(input="Three.", previous_response_id=second["id"], store=False)
    assert openai_account.bodies[-1]["previous_response_id"] == first["id"]
    assert len(openai_account.bodies[-1]["input"]) == 3
    assert [read_text(item) for item in openai_account.inputs[-1]] == ["One.", "Ok.", "Two.", "Ok.", "Three."]


@pytest.mark.parametrize("heard", ["O...", "Ok."], ids=["a part", "all"])
def test_what_was_heard_of_an_unstored_response_may_come_after_its_id(
    ways: World, upstream: StrictUpstream, openai_account: StoredResponses, heard: str
) -> None:
    with open_socket(ways.gateway) as socket:
        client = SocketClient(socket)
        first = client.ask(input="What is there to eat?", store=False)
        assert read_text_of(first) == "Ok."
        items = [{"role": "assistant", "content": heard}, {"role": "user", "content": "Stop."}]
        second = client.ask(input=items, previous_response_id=first["id"], store=False)
        client.ask(input="Thanks.", previous_response_id=second["id"], store=False)
    asked = openai_account.inputs[-1] if openai_account.inputs else upstream.last.messages
    texts = ["What is there to eat?", heard, "Stop.", "Ok.", "Thanks."]
    assert [read_text(each) for each in asked] == texts
    assert list_stored_texts(ways) == [*texts, "Ok."]


@pytest.mark.parametrize("first_is_stored", [True, False])
def test_what_was_heard_before_a_cancelled_stored_response_stays(
    upstream: StrictUpstream, tmp_path: Path, first_is_stored: bool
) -> None:
    gate = Gate()
    cut = say("Six seven eight.", tokens=["Six ", "seven ", "eight."], hold_after={2: gate})
    upstream.queue(say("One two three four."), cut)
    with (
        remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world,
        open_socket(world.gateway) as socket,
    ):
        client = SocketClient(socket)
        first = client.ask(input="Hi", store=first_is_stored)
        heard = [{"role": "assistant", "content": "One two"}, {"role": "user", "content": "Stop."}]
        client.create(input=heard, previous_response_id=first["id"])
        client.wait_for("response.output_text.delta")
        client.send(type="response.cancel")
        cancelled = client.wait_for()["response"]
        gate.open()
        client.ask(input="Go on.", previous_response_id=cancelled["id"])
        texts = [read_text(message).strip() for message in upstream.last.messages]
        assert texts == ["Hi", "One two", "Stop.", "Six", "Go on."]


def test_another_connection_does_not_know_what_is_not_stored(world: World, client: SocketClient) -> None:
    first = client.ask(input="One.", store=False)
    with open_socket(world.gateway) as socket:
        error = SocketClient(socket).ask(input="Two.", previous_response_id=first["id"], store=False)
    assert error["status"] == 400
    assert error["error"]["code"] == "previous_response_not_found"
    assert error["error"]["param"] == "previous_response_id"


def test_an_unstored_response_is_not_continued_for_another_user(
    ways: World, upstream: StrictUpstream
) -> None:
    """As with a response that the gateway stores. A request that names no user continues it."""
    with open_socket(ways.gateway) as socket:
        client = SocketClient(socket, {"store": False})
        first = client.ask(input="My cat is called Zqmiso.")["id"]
        request_count = len(upstream.requests)
        refused = client.ask(input="What did I say?", previous_response_id=first, user="bob")
        assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")
        assert [each for each in upstream.requests[request_count:] if b"Zqmiso" in each.body] == []
        second = client.ask(input="My dog is called Rex.")["id"]
        client.ask(input="What did I say?", previous_response_id=second, user=None)
        assert b"Rex" in upstream.last.body


def test_an_unstored_response_stays_its_users_if_a_request_without_a_user_continues_it(
    ways: World, upstream: StrictUpstream
) -> None:
    """Else a third request would bring one user's words into another user's memory."""
    with open_socket(ways.gateway) as socket:
        client = SocketClient(socket, {"store": False})
        first = client.ask(input="My cat is called Zqmiso.")["id"]
        second = client.ask(input="And it is grey.", previous_response_id=first, user=None)["id"]
        refused = client.ask(input="What did I say?", previous_response_id=second, user="bob")
        assert (refused["status"], refused["error"]["code"]) == (400, "previous_response_not_found")
        begun = client.ask(input="My dog is called Rex.", user=None)["id"]
        third = client.ask(input="And it is old.", previous_response_id=begun, user="bob")["id"]
        client.ask(input="What did I say?", previous_response_id=third, user="bob")
        assert b"Rex" in upstream.last.body


def test_an_unstored_response_is_not_continued_after_its_memory_was_forgotten(
    ways: World, upstream: StrictUpstream
) -> None:
    """The memory has a part in a turn off the record, too. Another user's conversation goes on."""

    def ask(text: str, previous_id: str | None = None, user: str = "alice") -> Json:
        return SocketClient(socket, {"store": False, "user": user}).ask(
            input=text, previous_response_id=previous_id
        )

    with open_socket(ways.gateway) as socket, open_socket(ways.gateway, x_mnemogate_memory="off") as off:
        first = ask("My cat is called Zqmiso.")["id"]
        second = ask("And it is grey.", first)["id"]
        bobs = ask("My dog is called Rex.", user="bob")["id"]
        unrecorded = SocketClient(off, {"store": False}).ask(input="My bird is called Zqkiwi.")["id"]
        ways.gateway.call(
            ways.store.forgetting.forget(memory_of(ways, "alice").id, ForgetTarget(is_all=True))
        )
        request_count = len(upstream.requests)
        for asks, id in ((socket, second), (socket, first), (off, unrecorded)):
            refused = SocketClient(asks, {"store": False}).ask(
                input="What did I say?", previous_response_id=id
            )
            assert refused["error"]["code"] == "previous_response_not_found"
        assert [each for each in upstream.requests[request_count:] if b"Zq" in each.body] == []
        ask("What did I say?", bobs, user="bob")
        assert b"Rex" in upstream.last.body


def test_a_cancelled_first_response_is_not_continued_after_its_memory_was_forgotten(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses
) -> None:
    """Its memory is made by the write of what came, for which the socket does not wait."""
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    openai_account.outputs.append([message_item("Zanzibar lies in the ocean.")])
    with open_socket(world.gateway) as socket:
        client = SocketClient(socket, {"store": False, "user": "carol"})
        client.create(input="Is my Zqmiso there?")
        id = client.wait_for("response.created")["response"]["id"]
        while client.wait_for("response.output_text.delta")["delta"] != "lies ":
            pass
        client.send(type="response.cancel", response_id=id)
        assert client.receive()["response"]["status"] == "cancelled"
        upstream.last.gone.wait_sync()
        upstream.endpoints.hold_events.clear()
        gate.open()
        becomes(lambda: b"Zqmiso" in world.data())
        carol = memory_of(world, "carol").id
        world.gateway.call(world.store.forgetting.forget(carol, ForgetTarget(is_all=True)))
        request_count = len(upstream.requests)
        refused = client.ask(input="Go on.", previous_response_id=id)
        assert [each for each in upstream.requests[request_count:] if b"Zqmiso" in each.body] == []
        assert refused["error"]["code"] == "previous_response_not_found"
    assert b"Zqmiso" not in world.data()


def test_a_reply_of_the_client_may_follow_a_response_without_items(
    client: SocketClient, openai_account: StoredResponses
) -> None:
    empty = client.ask(input=[], generate=False)
    items = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}]
    assert client.ask(input=items, previous_response_id=empty["id"], store=False)["status"] == "completed"
    assert openai_account.bodies[-1]["input"] == items


@pytest.mark.parametrize("user", [3, "a\nb"])
def test_a_user_that_cannot_be_read_is_an_error(client: SocketClient, user: object) -> None:
    wrong = client.ask(input="Hi", user=user)
    assert (wrong["type"], wrong["status"], wrong["error"]["param"]) == ("error", 400, "user")
    assert client.ask(input="Hi")["status"] == "completed"


def test_a_response_may_be_prepared_without_a_model(
    upstream: StrictUpstream, openai_account: StoredResponses, client: SocketClient
) -> None:
    client.create(
        input=[{"role": "user", "content": "My cat is Miso."}], generate=False, instructions="Be brief."
    )
    begun, done = client.receive(), client.receive()
    assert (begun["type"], done["type"]) == ("response.created", "response.completed")
    assert done["response"]["output"] == []
    assert done["response"]["instructions"] == "Be brief."
    assert not upstream.requests
    client.ask(input="What is it called?", previous_response_id=done["response"]["id"])
    assert [item["content"] for item in openai_account.bodies[-1]["input"]] == [
        "My cat is Miso.",
        "What is it called?",
    ]


# -- a voice agent


def test_a_reply_that_is_cancelled_is_remembered_as_far_as_it_came(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses, client: SocketClient
) -> None:
    """Pipecat cancels by the id, reads on until the response has an end, and asks on the same connection."""
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    openai_account.outputs.append([message_item("Zanzibar lies in the ocean.")])
    client.create(input="Where is Zanzibar?", store=False)
    id = client.wait_for("response.created")["response"]["id"]
    while client.wait_for("response.output_text.delta")["delta"] != "lies ":
        pass
    client.send(type="response.cancel", response_id=id)
    end = client.receive()
    assert end["type"] == "response.incomplete"
    assert (end["response"]["id"], end["response"]["status"]) == (id, "cancelled")
    assert read_text_of(end["response"]) == "Zanzibar lies "
    assert [item["status"] for item in end["response"]["output"]] == ["incomplete"]
    upstream.last.gone.wait_sync()
    upstream.endpoints.hold_events.clear()
    gate.open()
    items = [
        {"role": "user", "content": "Where is Zanzibar?"},
        {"role": "assistant", "content": "Zanzibar lies"},
        {"role": "user", "content": "Stop."},
    ]
    assert read_text_of(client.ask(input=items, store=False)) == "Ok."
    assert list_stored_texts(world) == ["Where is Zanzibar?", "Zanzibar lies", "Stop.", "Ok."]
    # It can be continued by its id as well.
    assert client.ask(input="Go on.", previous_response_id=id, store=False)["status"] == "completed"
    cut = {"id": id, "output": openai_account.bodies[-1]["input"][1:2]}
    assert (read_text_of(cut), len(openai_account.bodies[-1]["input"])) == ("Zanzibar lies ", 3)


def test_a_cancelled_reply_by_way_of_chat_completions_shows_what_came_as_well(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    call = Call("weather", {"city": "Bern"})
    cut = say("Three four five.", tokens=["Three ", "four ", "five."], hold_after={3: gate})
    upstream.queue(call_tools(call, text="One two. "), cut)
    with (
        remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world,
        open_socket(world.gateway) as socket,
    ):
        client = SocketClient(socket)
        first = client.ask(input="Hi", tools=[WEATHER])
        assert [item["type"] for item in first["output"]] == ["message", "function_call"]
        client.create(input="Go on.")
        while client.wait_for("response.output_text.delta")["delta"] != "four ":
            pass
        client.send(type="response.cancel")
        end = client.wait_for()["response"]
        gate.open()
        assert (end["status"], read_text_of(end)) == ("cancelled", "Three four ")
        body = world.gateway.ask("GET", f"/v1/responses/{end['id']}").json
        assert read_text_of(body).strip() == "Three four"


def test_a_response_that_is_cancelled_before_its_words_can_be_continued(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    upstream.queue(say("Hi."), say("Three four.", hold_after={1: gate}))
    with (
        remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world,
        open_socket(world.gateway) as socket,
    ):
        client = SocketClient(socket)
        first = client.ask(input="Hello.")
        client.create(input="Count.", previous_response_id=first["id"])
        client.wait_for("response.created")
        client.send(type="response.cancel")
        cancelled = client.wait_for()["response"]
        gate.open()
        assert (cancelled["output"], cancelled["store"]) == ([], False)
        client.ask(input="Go on.", previous_response_id=cancelled["id"])
        assert [m["content"] for m in upstream.last.messages] == ["Hello.", "Hi.", "Count.", "Go on."]


def test_a_response_is_cancelled_before_it_has_begun(client: SocketClient, upstream: StrictUpstream) -> None:
    """Both messages may come in one packet, and the one is read before anything became of the other."""
    protocol = client.socket.protocol
    asked = {"type": "response.create", "stream_id": "a", "model": "m", "input": "Hi"}
    with client.socket.protocol_mutex:
        protocol.send_text(orjson.dumps(asked))
        protocol.send_text(b'{"type":"response.cancel","stream_id":"a"}')
        client.socket.socket.sendall(b"".join(protocol.data_to_send()))
    end = client.receive()
    assert end["type"] == "response.incomplete"
    assert (end["stream_id"], end["response"]["status"]) == ("a", "cancelled")
    assert not upstream.requests
    assert read_text_of(client.ask(input="Hello")) == "Ok."


def test_a_cancel_that_names_the_response_before_means_the_one_that_has_not_begun(
    world: World, upstream: StrictUpstream, client: SocketClient
) -> None:
    """Pipecat keeps the id of a response that is over until the next one begins."""
    id = client.ask(input="Hi")["id"]
    for calls in (2, 3):
        gate = Gate()
        upstream.queue(Reply(hold_before_headers=gate, body=[b"data: %b\n\n" % BEGUN]))
        client.create(input="Where is Zanzibar?")
        upstream.request_gate(calls).wait_sync()
        client.send(type="response.cancel", response_id=id)
        end = client.receive()
        assert (end["type"], end["response"]["status"]) == ("response.incomplete", "cancelled")
        gate.open()
    # One that goes on has an id of its own, and the one before it is over.
    gate = Gate()
    upstream.endpoints.hold_events[3] = gate
    client.create(input="Hello")
    client.wait_for("response.created")
    client.send(type="response.cancel", response_id=id)
    gate.open()
    assert client.wait_for()["type"] == "response.completed"


def test_a_cancel_that_names_the_response_before_means_one_of_its_own_stream(
    upstream: StrictUpstream, client: SocketClient
) -> None:
    id = client.ask(input="Hi", stream_id="a")["id"]
    client.ask(input="Hi", stream_id="b")
    gate = Gate()
    upstream.queue(Reply(hold_before_headers=gate, body=[b"data: %b\n\n" % BEGUN]))
    client.create(input="Where is Zanzibar?", stream_id="a")
    upstream.request_gate(3).wait_sync()
    client.send(type="response.cancel", response_id=id)
    client.send(type="response.steer")
    end = client.wait_for("response.steer.failed")  # the cancel has been read
    gate.open()
    if end["type"] == "response.steer.failed":
        end = client.wait_for()
    assert (end["type"], end["stream_id"]) == ("response.incomplete", "a")
    assert end["response"]["status"] == "cancelled"


@pytest.mark.parametrize("names_last", [False, True])
def test_a_second_cancel_means_the_response_after_the_cancelled_one(
    world: World,
    upstream: StrictUpstream,
    client: SocketClient,
    monkeypatch: pytest.MonkeyPatch,
    *,
    names_last: bool,
) -> None:
    """The first one is still reading memory, and has no id yet."""
    cancel = {"type": "response.cancel"}
    if names_last:
        cancel["response_id"] = client.ask(input="Hi")["id"]
    begun, goes_on, begin = Gate(), Gate(), MemoryKeeper.begin

    async def begin_later(*given: Any, **options: Any) -> Any:
        begun.open()
        await goes_on.wait()
        return await begin(*given, **options)

    monkeypatch.setattr(MemoryKeeper, "begin", begin_later)
    calls = len(upstream.requests)
    client.create(input="Where is")
    begun.wait_sync()
    client.send(**cancel)
    client.create(input="Where is Zanzibar?")
    client.send(**cancel)
    client.send(type="response.steer")
    client.wait_for("response.steer.failed")  # all that was sent before has been read
    goes_on.open()
    ends = [client.wait_for(), client.wait_for()]
    assert [end["response"]["status"] for end in ends] == ["cancelled", "cancelled"]
    assert len(upstream.requests) == calls
    assert read_text_of(client.ask(input="Hello")) == "Ok."


def test_a_cancel_while_the_last_event_waits_for_its_client_is_an_end_too(
    world: World, upstream: StrictUpstream
) -> None:
    """The client reads nothing, so that the first event fills the connection and the next one waits."""
    first = {"type": "response.created", "response": {"id": "resp_1", "metadata": {"a": "x" * 8_000_000}}}
    last = {"type": "response.completed", "response": {"id": "resp_1", "output": [message_item("Ok.")]}}
    upstream.queue(raw(*(b"data: %b\n\n" % orjson.dumps(each) for each in (first, last))))
    replies = make_statement("a test's", "SELECT count(*) FROM exchanges WHERE shown_reply IS NOT NULL")
    with world.gateway.connect() as http:
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        http.send(text_frame(b'{"type":"response.create","model":"m","user":"alice","input":"Hi"}'))
        # The turn is stored before its last event leaves.
        becomes(
            lambda: world.gateway.call(world.store.database.read(lambda c: c.fetch_rows(replies, ())))[0][0]
        )
        http.send(text_frame(b'{"type":"response.cancel"}'))
        http.read_until(b'"type":"response.incomplete"')


def test_a_cancel_that_comes_too_late_says_nothing(client: SocketClient) -> None:
    id = client.ask(input="Hi")["id"]
    client.send(type="response.cancel", response_id=id)
    client.send(type="response.cancel")
    client.create(input="Hello")
    assert client.receive()["type"] == "response.created"


def test_a_client_that_closes_has_heard_what_came(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses
) -> None:
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    openai_account.outputs.append([message_item("Zanzibar lies in the ocean.")])
    with open_socket(world.gateway) as socket:
        client = SocketClient(socket)
        client.create(input="Where is Zanzibar?")
        client.create(input="This one waits, and nobody will hear it.")
        while client.wait_for("response.output_text.delta")["delta"] != "lies ":
            pass
    upstream.last.gone.wait_sync()
    gate.open()
    world.settle()
    assert b"Zanzibar lies" in world.data()
    assert b"ocean" not in world.data()
    assert len(upstream.requests) == 1


# -- several at once


def test_responses_of_one_stream_id_come_in_order_and_others_in_parallel(
    upstream: StrictUpstream, client: SocketClient
) -> None:
    gate = Gate()
    upstream.endpoints.hold_events[3] = gate
    client.create(input="One", stream_id="a")
    while (event := client.receive())["type"] != "response.output_item.added":
        assert event["stream_id"] == "a"
    upstream.endpoints.hold_events.clear()
    client.create(input="Two", stream_id="a")
    client.create(input="Three", stream_id="b")
    while (event := client.receive())["type"] != "response.completed":
        assert event["stream_id"] == "b"
    gate.open()
    ends = []
    while len(ends) < 2:
        event = client.receive()
        assert event["stream_id"] == "a"
        if event["type"] == "response.completed":
            ends.append(event["response"]["id"])
    assert len(set(ends)) == 2


def test_a_flood_of_requests_is_refused(upstream: StrictUpstream, client: SocketClient) -> None:
    gate = Gate()
    upstream.endpoints.hold_events[3] = gate
    for n in range(33):
        client.create(input="Hi", stream_id=str(n // 2))
    while (event := client.receive())["type"] != "error":
        pass
    assert event["status"] == 503
    assert event["stream_id"] == "16"
    gate.open()


# -- errors


@each_row(
    ("message", "param", "about"),
    [
        ("{", None, "parse"),
        ("[]", None, "parse"),
        (b'{"type":"\xff"}', None, "parse"),
        ("{}", "type", "Missing"),
        ('{"type":1}', "type", "Invalid type"),
        ('{"type":"session.update"}', "type", "session.update"),
        ('{"type":"response.create","input":"Hi","background":true}', "background", "background"),
        ('{"type":"response.create","input":"Hi","generate":"no"}', "generate", "generate"),
        ('{"type":"response.create","input":"Hi","stream_id":7}', "stream_id", "stream_id"),
        ('{"type":"response.create","input":"Hi","stream_id":"%s"}' % ("x" * 300), "stream_id", "stream_id"),
        (
            '{"type":"response.create","input":"Hi","previous_response_id":7}',
            "previous_response_id",
            "previous",
        ),
        ('{"type":"response.create","input":"Hi","previous_response_id":1e999}', None, "parse"),
        ('{"type":"response.create","input":{"role":"user"}}', "input", "array"),
        ('{"type":"response.create","model":"m","input":[{"type":"x"}]}', None, "x"),
        ('{"type":"response.create","model":"m","input":"Hi","temprature":1}', None, "temprature"),
    ],
)
def test_a_message_that_is_wrong_gets_an_error_and_the_next_an_answer(
    client: SocketClient, message: str | bytes, param: str | None, about: str
) -> None:
    client.socket.send(message, text=True)
    event = client.receive()
    assert event["type"] == "error"
    assert event["status"] == 400
    assert event["error"]["type"] == "invalid_request_error"
    assert param is None or event["error"]["param"] == param
    assert about in event["error"]["message"]
    assert read_text_of(client.ask(input="Hi")) == "Ok."


@pytest.mark.parametrize("input", ["[%s{}]", '{"role":[%s{}]}'])
def test_a_message_with_very_many_values_is_refused_before_they_are_read(
    client: SocketClient, input: str
) -> None:
    many = input % ("{}," * MAX_VALUES)
    client.socket.send(f'{{"type":"response.create","generate":false,"store":false,"input":{many}}}')
    event = client.receive()
    assert (event["type"], event["status"], event["error"]["code"]) == ("error", 413, "request_too_large")
    assert read_text_of(client.ask(input="Hi")) == "Ok."


DEEP = "[" * 300 + "]" * 300  # more than orjson writes


def test_values_go_back_as_they_were_written(client: SocketClient) -> None:
    client.socket.send(f'{{"type":"response.create","generate":false,"top_p":1e999,"tools":{DEEP}}}')
    for _ in ("created", "completed"):
        assert f'"tools":{DEEP}' in str(client.socket.recv(PATIENCE_S))
    client.socket.send(f'{{"type":"response.steer","input":{DEEP}}}')
    assert DEEP in str(client.socket.recv(PATIENCE_S))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f'{{"error":{{"message":"It broke.","why":{DEEP}}}}}', "It broke."),
        ('{"error":"It broke."}', "It broke."),
        ('{"error":7}', "The reply has the status 500."),
        ("It broke.", "The reply has the status 500."),
        ("", "The reply has the status 500."),
    ],
)
def test_whatever_an_upstreams_error_says_is_reported(
    client: SocketClient, upstream: StrictUpstream, body: str, message: str
) -> None:
    upstream.queue(Reply(status=500, headers={"content-type": "application/json"}, body=[body.encode()]))
    event = client.ask(input="Hi")
    assert event["status"] == 500
    assert event["error"]["type"]
    assert event["error"]["message"] == message


def test_an_upstreams_error_is_reported_with_its_status(ways: World, upstream: StrictUpstream) -> None:
    upstream.queue(fail(429, retry_after="7"))
    with open_socket(ways.gateway) as socket:
        event = SocketClient(socket).ask(input="Hi")
    assert event["status"] == 429
    assert event["error"]["headers"]["retry-after"] == "7"


BEGUN = b'{"type":"response.created","response":{"id":"resp_1","output":[]}}'
DONE = b'{"type":"response.completed","response":{"id":"resp_1","output":[]}}'


@pytest.mark.parametrize(
    ("pieces", "kinds"),
    [
        (
            [b"event: message\ndata: %b\n\n" % BEGUN, b": hi\n\ndata: %b\n\ndata: [DONE]\n\n" % DONE],
            ["created", "completed"],
        ),
        ([b"data: %b\n\n" % BEGUN, b"data: %b\n\n" % DONE, b"data: %b\n\n" % DONE], ["created", "completed"]),
        ([b"data: %b\n\n" % BEGUN, b"data: %b" % DONE[:30]], ["created", "error"]),
        ([b"data: %b\n\n" % BEGUN], ["created", "error"]),
        ([], ["error"]),
        ([b'data: {"type":"error","code":"c","message":"It broke.","param":null}\n\n'], ["error"]),
        (
            [b'data: {"type":"error","error":{"type":"server_error","code":"c","message":"It broke."}}\n\n'],
            ["error"],
        ),
        ([b"data: 7\n\ndata: {\n\ndata: \xff\n\n", b"data: %b\n\n" % DONE], ["", "", "", "completed"]),
        (
            [b'data: {"x":%b1%b}\n\n' % (b"[" * 5000, b"]" * 5000), b"data: %b\n\n" % DONE],
            ["", "completed"],
        ),
    ],
)
def test_whatever_an_upstream_streams_the_next_request_is_not_affected(
    client: SocketClient, upstream: StrictUpstream, pieces: list[bytes], kinds: list[str]
) -> None:
    upstream.queue(Reply(headers={"content-type": "text/event-stream"}, body=pieces))
    client.create(input="Hi")
    for kind in kinds:
        told = client.socket.recv(PATIENCE_S)
        assert kind in str(told)
        if kind == "error":
            error = json.loads(told)["error"]
            assert error["message"]
            assert error["type"]
    assert read_text_of(client.ask(input="Hi")) == "Ok."


def test_an_upstream_that_does_not_stream_is_an_error(client: SocketClient, upstream: StrictUpstream) -> None:
    upstream.queue(Reply(headers={"content-type": "application/json"}, body=[b'{"id":"resp_1"}']))
    assert client.ask(input="Hi")["status"] == 502


def test_a_steered_response_is_not(client: SocketClient) -> None:
    client.send(type="response.steer", previous_response_id="resp_1", input="Faster!")
    event = client.receive()
    assert event["type"] == "response.steer.failed"
    assert event["error"]["code"] == "steering_not_supported"
    assert event["steer"] == {"previous_response_id": "resp_1", "input": "Faster!"}


# -- the connection


def test_a_handshake_needs_a_key_and_so_does_each_response(world: World) -> None:
    keys = world.store.keys
    _, key = world.gateway.call(keys.create("default", "test"))
    with pytest.raises(InvalidStatus) as refused, open_socket(world.gateway):
        pass
    assert refused.value.response.status_code == 401
    assert orjson.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
    with open_socket(world.gateway, authorization=f"Bearer {key}") as socket:
        assert read_text_of(SocketClient(socket).ask(input="Hi")) == "Ok."
        world.gateway.call(keys.revoke("test"))
        assert SocketClient(socket).ask(input="Hi")["status"] == 401


def test_a_web_page_from_elsewhere_opens_none(world: World) -> None:
    with pytest.raises(InvalidStatus) as refused, open_socket(world.gateway, origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    assert b"web pages" in refused.value.response.body


def test_a_path_without_sockets_is_a_request(world: World) -> None:
    with pytest.raises(InvalidStatus) as refused, open_socket(world.gateway, "/v1/realtime"):
        pass
    assert refused.value.response.status_code == 404
    assert world.gateway.ask("GET", "/v1/responses").status == 405
    assert world.gateway.ask("GET", "/v1").status == 404


def test_a_post_that_offers_a_websocket_is_answered(world: World) -> None:
    offers = {"connection": "upgrade", "upgrade": "websocket", "content-type": "application/json"}
    body = b'{"model":"m","input":"Hi"}'
    with world.gateway.connect() as http:
        for _ in range(2):
            http.request("POST", "/v1/responses", body, offers)
            assert http.read_reply().status == 200


HANDSHAKE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses?model=m", "/v1"])
def test_a_handshake_may_come_in_pieces(world: World, path: str) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
    whole = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}\r\n".encode()
    for cut in (5, 20, 30, whole.index(b"upgrade: "), whole.index(b"upgrade: ") + 3, len(whole) - 3):
        with world.gateway.connect() as http:
            http.send(whole[:cut])
            world.gateway.ask("GET", "/health")  # by then the first piece has been read
            http.send(whole[cut:])
            assert http.read_head().status == 101, cut


def test_frames_after_a_malformed_one_are_ignored(world: World) -> None:
    """Responses under way hear of it a moment later, and may have something to say meanwhile."""
    with world.gateway.connect() as http:
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        (connection,) = world.gateway.server.server_state.connections

        async def speak() -> None:
            connection.data_received(b"\xf1\x80\0\0\0\0")
            await connection.send({"type": "websocket.send", "text": "Hi"})

        with pytest.raises(OSError):
            world.gateway.call(speak())


def text_frame(data: bytes) -> bytes:
    """Returns a message as a client sends it. data: of fewer than 126 bytes."""
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-length": "5"}, b"hello"),
        ({"transfer-encoding": "chunked"}, b"0\r\n\r\n"),
        ({"authorization": f"Bearer {'x' * 9000}"}, b""),
        ({f"x-{n}": "1" for n in range(200)}, b""),
        ({"sec-websocket-key": "short"}, b""),
        ({"sec-websocket-version": "8"}, b""),
    ],
)
def test_a_request_that_is_no_handshake_is_refused(
    world: World, headers: dict[str, str], body: bytes
) -> None:
    with world.gateway.connect() as http:
        http.request("GET", "/v1/responses", headers={**HANDSHAKE, **headers})
        http.send(body)
        assert http.read_reply().status == 400
        assert http.is_closed()


def test_a_handshake_after_a_request_under_way_opens_nothing(world: World, upstream: StrictUpstream) -> None:
    gate = Gate()
    upstream.endpoints.hold_events[3] = gate
    with world.gateway.connect() as http:
        http.request("POST", "/v1/responses", b'{"model":"m","input":"Hi","stream":true}')
        assert http.read_head().status == 200
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        gate.open()
        while http.read_chunk():
            pass
        assert http.read_reply().status == 405


def test_a_handshake_after_a_reply_that_is_not_read_opens_nothing(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(Reply(headers={"content-type": "application/json"}, body=[b'"%b"' % (b"x" * 12_000_000)]))
    with world.gateway.connect() as http:
        body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
        http.request("POST", "/v1/chat/completions", body)
        upstream.request_gate(1).wait_sync()
        world.gateway.last_line()  # by then the reply was written
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        world.gateway.ask("GET", "/health")  # by then the handshake has been read
        assert http.read_reply().status == 200
        assert http.read_reply().status == 405


def test_a_gateway_that_ends_answers_first(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    with (
        remember(upstream, tmp_path) as world,
        open_socket(world.gateway) as busy,
        open_socket(world.gateway) as idle,
    ):
        client = SocketClient(busy)
        client.create(input="Hi")
        client.wait_for("response.output_text.delta")
        world.gateway.loop.call_soon_threadsafe(world.gateway.server.request_exit)
        assert closed_with(idle) == 1012
        client.create(input="One more?", stream_id="b")
        assert client.wait_for()["status"] == 503
        gate.open()
        assert read_text_of(client.wait_for()["response"]) == "Ok."
        assert closed_with(busy) == 1012


def test_a_client_that_does_not_read_is_let_go(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Of several events in one piece the first may fill the connection, so that the next waits for its client."""
    flood = b"data: %b\n\n" % BEGUN + b"".join(
        b'data: {"delta":"%b"}\n\n' % (b"x" * 40_000) for _ in range(3)
    )
    upstream.queue(
        Reply(headers={"content-type": "text/event-stream"}, body=[flood] * 100, hold_after={100: Gate()})
    )
    with (
        remember(upstream, tmp_path, limits=replace(QUIET, send_timeout_s=0.2)) as world,
        world.gateway.connect() as http,
    ):
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        http.send(text_frame(b'{"type":"response.create","model":"m","input":"Hi"}'))
        upstream.request_gate(1).wait_sync()
        upstream.last.gone.wait_sync()
        wait_until_disconnected(world)


def test_a_client_that_writes_and_does_not_read_is_let_go(upstream: StrictUpstream, tmp_path: Path) -> None:
    with (
        remember(upstream, tmp_path, limits=replace(QUIET, send_timeout_s=0.2)) as world,
        world.gateway.connect() as http,
    ):
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        with suppress(ConnectionError):
            http.send(text_frame(b"{}") * 100_000)
        wait_until_disconnected(world)


def test_a_client_that_leaves_its_last_messages_unread_is_let_go(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_SHORT_FRAMES", 1_000_000)
    with (
        remember(upstream, tmp_path, limits=replace(QUIET, send_timeout_s=0.2)) as world,
        world.gateway.connect() as http,
    ):
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        (connection,) = world.gateway.server.server_state.connections
        while not connection.transport.get_write_buffer_size():
            http.send(text_frame(b"{}") * 50)
            world.gateway.call(asyncio.sleep(0))
        http.send(b"\x88\x80\0\0\0\0")
        wait_until_disconnected(world)


@pytest.mark.parametrize("frames", [b"\xff" * 4, b"\x89\x80\0\0\0\0" * 2_000], ids=["malformed", "too many"])
def test_bad_frames_before_the_handshake_is_answered_end_the_connection(
    world: World, held_keys: HeldKeys, caplog: pytest.LogCaptureFixture, frames: bytes
) -> None:
    with world.gateway.connect() as http:
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        held_keys.has_request.wait_sync()
        http.send(frames)
        wait_until_disconnected(world)
        held_keys.answer.open()
    assert "Traceback" not in caplog.text


SHORT = {
    "pings": b"\x89\x80\0\0\0\0",
    "pongs": b"\x8a\x80\0\0\0\0",
    "parts": b"\0\x80\0\0\0\0",
    "texts": text_frame(b""),
}


@pytest.mark.parametrize("frame", SHORT.values(), ids=SHORT)
def test_short_frames_without_an_end_are_refused(world: World, frame: bytes) -> None:
    """Each takes time whatever it has, and 256 kB of them, which are read at once, would take a second."""
    with open_socket(world.gateway) as socket:
        socket.send("{}")  # so that parts have a beginning
        begun = b"\x01\x80\0\0\0\0" if frame.startswith(b"\0") else b""
        with suppress(ConnectionError):
            socket.socket.sendall(begun + frame * 40_000)
        with pytest.raises(ConnectionClosed) as closed:
            all(socket.recv(PATIENCE_S) for _ in range(100_000))  # errors of the messages before
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert world.gateway.ask("GET", "/health").status == 200


def test_a_large_message_in_frames_of_4_kb_is_taken(world: World) -> None:
    with open_socket(world.gateway) as socket:
        message = json.dumps({"type": "response.create", "model": "m", "input": "x" * 6_000_000})
        socket.send(message[at : at + 4096] for at in range(0, len(message), 4096))
        assert SocketClient(socket).wait_for()["type"] == "response.completed"


def test_pings_of_a_client_that_does_not_read_do_not_fill_the_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_SHORT_FRAMES", 1_000_000)
    with world.gateway.connect() as http:
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        (connection,) = world.gateway.server.server_state.connections
        ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
        for _ in range(80):  # 10 MB, of which the two systems hold some 5
            http.send(ping * 1000)
        assert connection.transport.get_write_buffer_size() < 2_000_000


def closed_with(socket: ClientConnection) -> int | None:
    """Returns the code with which the gateway closes the connection, which it does next."""
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(PATIENCE_S)
    return closed.value.rcvd and closed.value.rcvd.code


def test_a_response_that_the_end_cuts_is_reported_as_incomplete(
    upstream: StrictUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.endpoints.hold_events[6] = Gate()
    with (
        remember(upstream, tmp_path, server={"shutdown_s": 0}) as world,
        open_socket(world.gateway) as socket,
    ):
        client = SocketClient(socket)
        client.create(input="Hi")
        client.create(input="This one waits, and nobody will hear it.")
        client.wait_for("response.output_text.delta")
        world.gateway.loop.call_soon_threadsafe(world.gateway.server.request_exit)
        end = client.wait_for()
        assert end["type"] == "error"
        assert "shutting down" in end["error"]["message"]
        assert closed_with(socket) == 1012
        upstream.last.gone.wait_sync()
    assert len(upstream.requests) == 1
    assert "Traceback" not in caplog.text


def test_a_handshake_under_way_while_the_gateway_ends_is_answered(
    world: World, held_keys: HeldKeys, caplog: pytest.LogCaptureFixture
) -> None:
    server = world.gateway.server
    with world.gateway.connect() as http:
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        held_keys.has_request.wait_sync()
        world.gateway.loop.call_soon_threadsafe(server.request_exit)
        while server.servers and server.servers[0].sockets:
            world.gateway.call(asyncio.sleep(0))
        held_keys.answer.open()
        assert http.read_head().status == 101
        assert http.read_until((1012).to_bytes(2, "big"))
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("is_fragment", [False, True])
@pytest.mark.parametrize(
    ("limits", "code"),
    [({"body_timeout_s": -60.0}, 1008), ({"bodies_in_flight_bytes": 200_000}, 1013)],
    ids=["late", "too much"],
)
def test_a_large_message_on_its_way_is_bounded(
    upstream: StrictUpstream, tmp_path: Path, limits: Json, code: int, is_fragment: bool
) -> None:
    """As a body is: what has come of it would else be held for as long as its client liked."""
    size = 300_000 if is_fragment else 30_000_000
    head = bytes((1, 0xFF)) + size.to_bytes(8, "big") + bytes(4)
    with (
        remember(upstream, tmp_path, limits=replace(QUIET, **limits)) as world,
        world.gateway.connect() as http,
    ):
        http.request("GET", "/v1/responses", headers=HANDSHAKE)
        http.read_head()
        http.send(head + b" " * 300_000)
        assert http.read_until(code.to_bytes(2, "big"))
        wait_until_disconnected(world)
        assert world.gateway.app._sockets.bodies.left_bytes == limits.get(
            "bodies_in_flight_bytes", QUIET.bodies_in_flight_bytes
        )


def test_a_large_message_gives_back_what_it_took(world: World, client: SocketClient) -> None:
    for _ in range(2):
        assert read_text_of(client.ask(input="x" * 1_000_000)) == "Ok."
    assert world.gateway.app._sockets.bodies.left_bytes == QUIET.bodies_in_flight_bytes


def test_a_fault_gives_back_what_the_responses_after_it_took(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies, gate = world.gateway.app._sockets.bodies, Gate()
    upstream.endpoints.hold_events[3] = gate
    with open_socket(world.gateway) as socket:
        client = SocketClient(socket)
        for _ in range(3):
            client.create(input="x" * 1_000_000)
        becomes(lambda: QUIET.bodies_in_flight_bytes - bodies.left_bytes > 3_000_000)

        def fails(*_: object) -> None:
            raise ValueError("a fault")

        monkeypatch.setattr(UnstoredResponses, "translate", fails)
        gate.open()
        client.wait_for()
        with pytest.raises(ConnectionClosed):
            client.receive()
    wait_until_disconnected(world)
    assert bodies.left_bytes == QUIET.bodies_in_flight_bytes


def wait_until_disconnected(world: World) -> None:
    """Waits until no connection is left."""
    becomes(lambda: not world.gateway.server.server_state.connections)


# -- what a connection keeps


def create_event(**fields: Any) -> CreateEvent:
    event = read_client_event(orjson.dumps({"type": "response.create", **fields}))
    assert isinstance(event, CreateEvent)
    return event


def test_the_responses_that_a_connection_caches_are_bounded() -> None:
    unstored = UnstoredResponses(limit_bytes=1000)

    def go_on(n: int, text: str, previous: str | None = None) -> bytes:
        fields = {} if previous is None else {"previous_response_id": previous}
        body, pending = unstored.translate(create_event(input=text, store=False, **fields), None)
        unstored.cache(pending, orjson.dumps({"id": f"r{n}", "output": []}))
        return body

    go_on(0, "a" * 300)
    go_on(1, "b" * 300)
    assert b"aaa" in go_on(2, "c", "r0")
    go_on(3, "d" * 300)
    assert b"aaa" not in go_on(4, "e", "r0")  # the oldest went
    assert b'"r0"' in go_on(4, "e", "r0")
    go_on(5, "f" * 2000)
    assert b"fff" not in go_on(6, "g", "r5")
    # Each item is an object, however short it is.
    _, pending = unstored.translate(create_event(input=[0] * 100, store=False), None)
    unstored.cache(pending, orjson.dumps({"id": "many", "output": []}))
    assert b'"many"' in go_on(6, "h", "many")
    for n in range(7, 107):
        go_on(n, "h")
    assert len(unstored._by_id) <= 64
    assert unstored._bytes == sum(each.size for each in unstored._by_id.values())
