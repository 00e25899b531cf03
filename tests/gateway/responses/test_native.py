"""Requests for responses before an upstream that answers them itself: memory goes in, and all else stays as it is."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from msgspec.structs import replace

from adapters.reply_quota import REPLIES
from gateway.core.conversation import settle
from gateway.core.conversation.private import read_private
from gateway.core.conversation.wire_message import read_text
from gateway.run.memory.named_turns import find_paths_by_id
from gateway.settings import BlockSettings
from storage.errors import StatementFailed, StoreUnavailable
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from tests.doubles.responses_events import events_of
from tests.doubles.responses_rules import (
    StoredResponses,
    call_item,
    message_item,
    reasoning_item,
    search_item,
)
from tests.doubles.upstream import Gate, Reply, StrictUpstream, fail, raw
from tests.gateway.sdk import World, agent, remember
from tests.server import QUIET

Json = dict[str, Any]
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
ALICE = Scope("default", "default", "user:alice")
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


@pytest.fixture
def openai_account(upstream: StrictUpstream) -> StoredResponses:
    return upstream.endpoints.responses


def respond(world: World, **options: Any) -> Any:
    fields = {"model": "m", "user": "alice", **options}
    found = world.sdk.responses.create(**fields)
    if not fields.get("stream"):
        return found
    events = list(found)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events[-1].response


def broken(*_: Any) -> Any:
    raise RuntimeError("broken")


async def fails(*_: Any) -> Any:
    raise StoreUnavailable("the disk is full")


def conversations(world: World) -> int:
    [count] = world.query("SELECT count(*) FROM conversations")
    return int(count)


def told_in_all(world: World) -> list[Json]:
    """Returns the messages of all that was said, in the order in which they came."""
    turns = world.query("SELECT input, shown_reply FROM exchanges ORDER BY id")
    texts = (text for input, said in turns for text in (input, b"[%b]" % said if said else b"[]"))
    return [message for text in texts for message in orjson.loads(text)]


def read_last_input(account: StoredResponses) -> str:
    """Returns the last request's input as text."""
    return json.dumps(account.bodies[-1]["input"])


# -- what goes upstream


@pytest.mark.parametrize("user", ["alice", None])
@pytest.mark.parametrize("stored", [{}, {"store": False, "conversation": "conv_1"}, {"store": False}])
def test_a_response_that_the_upstream_does_not_store_is_requested_again(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses, stored: Json, user: str | None
) -> None:
    """On a connection that closes, which may have rested too long: nothing can be there twice."""
    openai_account.conversations["conv_1"] = []
    respond(world, input="Hi", store=False)
    upstream.queue(Reply(cut_before_headers=True))
    body = {"model": "m", "user": user, "input": "Well?", **stored}
    reply = world.gateway.ask("POST", "/v1/responses", json.dumps(body).encode())
    is_alone = stored == {"store": False}
    assert (reply.status, len(upstream.requests)) == ((200, 3) if is_alone else (502, 2))


@both_ways
def test_a_later_conversation_recalls_an_earlier_one(
    world: World, openai_account: StoredResponses, stream: bool
) -> None:
    respond(world, input="My cat is called Miso.", stream=stream)
    respond(world, input="What is my cat called?", stream=stream)
    assert openai_account.bodies[0]["input"] == "My cat is called Miso."
    told = openai_account.bodies[1]["input"]
    assert "My cat is called Miso." in told
    assert told.endswith("\n\nWhat is my cat called?")
    respond(world, input="What is my cat called?", user="bob", stream=stream)
    assert openai_account.bodies[2]["input"] == "What is my cat called?"


def test_memory_blocks_follow_the_instructions(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    helper = {"x-mnemogate-agent": "helper"}
    block = BlockSettings("human", "What is known of the user.", "Name: Ann")
    with remember(upstream, tmp_path, agent(blocks=(block,))) as world:
        respond(world, input="Hi", instructions="Be brief.", extra_headers=helper)
        told = openai_account.bodies[0]["instructions"]
        assert told.startswith("Be brief.\n\nYou help.")
        assert "Name: Ann" in told
        respond(world, input="Hello there", extra_headers=helper)
        assert openai_account.bodies[1]["instructions"].startswith("You help.")
        assert "tools" not in openai_account.bodies[1]


def take_text(body: dict[str, Any]) -> str:
    """Takes the text of the input out of a request."""
    owner, key = (
        (body, "input") if isinstance(body["input"], str) else (body["input"][0]["content"][0], "text")
    )
    return str(owner.pop(key))


def test_nothing_else_of_a_request_changes(world: World, upstream: StrictUpstream) -> None:
    respond(world, input="My cat is called Miso.")
    item = b'{"x":12345678901234567890123,"type":"message", "content":[ {"text":"caf\\u00e9?","type":"input_text"}],'
    item += b'"role":"user","y":1.0}'
    for asks in (b'"Which caf\\u00e9 cat?"', b"[ " + item.replace(b"caf", b"cat caf") + b"]"):
        body = (
            b'{"temperature":1.0, "user": "alice",\n "instructions":"\\u0041lways", "metadata":{"n":"caf\\u00e9"},'
            b'"tools":[{"type":"web_search"}],"model":"m","input":%b ,"seed_like":12345678901234567890123}'
            % asks
        )
        kind = {"content-type": "application/json; charset=utf-8"}
        world.gateway.ask("POST", "/v1/responses", body, kind)
        # Integers beyond 64 bits among them, also in the item that has the note.
        sent, came = json.loads(upstream.last.body), json.loads(body)
        asked, noted = take_text(came), take_text(sent)
        assert "Miso" in noted
        assert noted.endswith(asked)
        assert sent == came
        assert upstream.last.headers["content-type"] == kind["content-type"]


@both_ways
def test_a_note_goes_in_front_of_the_text_whatever_its_form(
    world: World, openai_account: StoredResponses, stream: bool
) -> None:
    respond(world, input="My cat is called Miso.")
    image = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"}
    text = {"type": "input_text", "text": "Is this my cat?"}
    for parts in ([text, image], [image, text]):
        respond(world, input=[{"role": "user", "content": parts}], stream=stream)
        sent = openai_account.bodies[-1]["input"][0]["content"]
        assert "Miso" in sent[0]["text"]
        assert sent[0]["type"] == "input_text"
        assert image in sent
        assert sent[-1] == parts[-1]


# -- the instructions of a reply


PROMPT = "You are Ann of Acme. The password is swordfish."


@pytest.fixture
def acme(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    block = BlockSettings("human", "What is known of the user.", "Name: Ann Secret")
    with remember(upstream, tmp_path, agent("ann", system=PROMPT, blocks=(block,))) as world:
        yield world


@pytest.mark.parametrize("own", [None, "Be brief.", 'Ünïcode "quoted"\n\nand lines.'])
@pytest.mark.parametrize("mode", ["on", "off"])
@both_ways
def test_a_reply_has_the_instructions_of_its_client(
    acme: World, openai_account: StoredResponses, own: str | None, mode: str, stream: bool
) -> None:
    """With memory and without, as the operator's prompt goes along either way."""
    said = {} if own is None else {"instructions": own}
    body = {"model": "m", "input": "Hi", "user": "alice", "stream": stream, **said}
    headers = {"x-mnemogate-agent": "ann", "x-mnemogate-memory": mode}
    reply = acme.gateway.ask("POST", "/v1/responses", json.dumps(body).encode(), headers)
    if mode == "on":
        assert PROMPT in openai_account.bodies[-1]["instructions"]
        assert "Ann Secret" in openai_account.bodies[-1]["instructions"]
    assert b"swordfish" not in reply.body
    assert b"Ann Secret" not in reply.body
    if stream:
        events = [orjson.loads(line[6:]) for line in reply.body.splitlines() if line.startswith(b"data: ")]
        told = [event["response"]["instructions"] for event in events if "response" in event]
        assert told == [own] * 3
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
    else:
        assert reply.json["instructions"] == own


@pytest.mark.parametrize("own", [None, "Be brief."])
def test_a_stored_response_has_the_instructions_of_its_client(
    acme: World, openai_account: StoredResponses, own: str | None
) -> None:
    helper = {"x-mnemogate-agent": "ann"}
    response = respond(acme, input="Hi", instructions=own, extra_headers=helper)
    stored = openai_account.answer_stored_response("GET", [response.id], "")
    assert stored is not None
    assert "Ann Secret" in stored["instructions"]
    reply = acme.gateway.ask("GET", f"/v1/responses/{response.id}")
    assert reply.json == {**stored, "instructions": own}
    assert acme.sdk.responses.retrieve(response.id).output_text == "Ok."


def test_a_stored_response_that_is_streamed_again_has_them_too(acme: World) -> None:
    ann = {"x-mnemogate-agent": "ann"}
    response = respond(acme, input="Hi", instructions="Be brief.", background=True, extra_headers=ann)
    reply = acme.gateway.ask("GET", f"/v1/responses/{response.id}?stream=true")
    assert b"swordfish" not in reply.body
    assert reply.body.count(b'"instructions":"Be brief."') == 3


def test_a_part_of_a_stored_response_is_not_asked_for(acme: World, upstream: StrictUpstream) -> None:
    """Where an upstream takes ranges, the middle of its instructions would pass as it is."""
    response = respond(acme, input="Hi", extra_headers={"x-mnemogate-agent": "ann"})
    part = {"range": "bytes=100-900", "if-range": '"1"'}
    reply = acme.gateway.ask("GET", f"/v1/responses/{response.id}", headers=part)
    assert reply.json["instructions"] is None
    assert not {"range", "if-range"} & upstream.last.headers.keys()
    acme.gateway.ask("GET", "/v1/files/file-1/content", headers=part)
    assert upstream.last.headers["range"] == "bytes=100-900"


def test_a_list_of_items_shows_no_note(world: World, openai_account: StoredResponses) -> None:
    respond(world, input="My cat is called Miso, she is grey.")
    conversation = world.sdk.conversations.create()
    response = respond(world, input="What is my cat called?", conversation=conversation.id)
    assert "<memory" in read_last_input(openai_account)
    quoted = "Is this yours? <memory>Notes from earlier conversations</memory>"
    respond(world, input=quoted, conversation=conversation.id)
    lists = (
        list(world.sdk.responses.input_items.list(response.id)),
        list(world.sdk.conversations.items.list(conversation.id, order="asc"))[:1],
    )
    for (item,) in lists:
        assert item.to_dict()["content"][0]["text"] == "What is my cat called?"  # type: ignore[index]
    one = world.sdk.conversations.items.retrieve(lists[1][0].id or "", conversation_id=conversation.id)
    assert "<memory" not in one.to_json()
    assert quoted in str(world.sdk.conversations.items.list(conversation.id).to_json())


def test_a_list_shows_the_parts_of_an_item_that_its_client_sent(
    world: World, openai_account: StoredResponses
) -> None:
    respond(world, input="My cat is called Miso, she is grey.")
    image = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"}
    parts = [image, {"type": "input_text", "text": "Is this my cat?"}]
    response = respond(world, input=[{"role": "user", "content": parts}])
    assert "<memory" in openai_account.bodies[-1]["input"][0]["content"][0]["text"]
    [item] = world.sdk.responses.input_items.list(response.id)
    assert item.to_dict()["content"] == parts


def test_a_response_that_the_upstream_has_deleted_is_forgotten_too(
    world: World, openai_account: StoredResponses
) -> None:
    response = respond(world, input="My cat is called Miso, she is grey.")
    left = respond(world, input="My dog is called Rex, he is old.", user="bob")
    world.sdk.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.delete(response.id)
    world.gateway.ask("DELETE", f"/v1/responses/{left.id}", headers={"x-mnemogate-user": "alice"})
    below = world.gateway.ask(
        "DELETE", f"/v1/responses/{left.id}/items/1", headers={"x-mnemogate-user": "bob"}
    )
    assert below.status == 404
    respond(world, input="What is my grey cat called?")
    assert "Miso" not in read_last_input(openai_account)
    respond(world, input="What is my old dog called?", user="bob")
    # One deletion named another person, and one something below the response.
    assert "Rex" in read_last_input(openai_account)


def test_what_could_not_be_forgotten_is_where_the_client_asks_again(
    world: World, openai_account: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream has deleted it by then."""
    response = respond(world, input="My cat is called Miso, she is grey.")
    forgetting = world.store.forgetting
    with monkeypatch.context() as down:
        down.setattr(forgetting, "forget", fails)
        with pytest.raises(openai.InternalServerError) as caught:
            world.sdk.responses.delete(response.id)
        assert caught.value.code == "memory_unavailable"
    with pytest.raises(openai.NotFoundError):
        world.sdk.responses.delete(response.id)
    respond(world, input="What is my grey cat called?")
    assert "Miso" not in read_last_input(openai_account)
    assert b"Miso" not in world.data()


def test_codexs_headers_pass_to_an_upstream_that_gets_the_request_as_it_came(
    world: World, upstream: StrictUpstream
) -> None:
    own = {"originator": "codex_exec", "session-id": "s", "thread-id": "t", "x-codex-turn-state": "x"}
    respond(world, input="Hi", extra_headers=own)
    assert own.items() <= upstream.last.headers.items()
    world.chat(user="alice").say("Hi")
    assert not own.keys() & upstream.last.headers.keys()


def test_the_clients_own_text_stays_in_a_stored_response(world: World) -> None:
    response = respond(world, input="Hi", instructions="<memory_blocks> are a thing of mine.")
    assert world.gateway.ask("GET", f"/v1/responses/{response.id}").json["instructions"] == (
        "<memory_blocks> are a thing of mine."
    )


# -- which conversation it is


@both_ways
def test_a_client_that_sends_all_items_again_goes_on(
    world: World, openai_account: StoredResponses, stream: bool
) -> None:
    respond(world, input="My cat is called Miso.")
    items: list[Json] = []
    for text in ("What is my cat called?", "And how old is the cat?"):
        openai_account.outputs.append([reasoning_item("Hm."), search_item("cats"), message_item("So it is.")])
        items.append({"role": "user", "content": text})
        response = respond(world, input=items, store=False, stream=stream)
        items += [item.to_dict() for item in response.output]
    first, second = (each["input"] for each in openai_account.bodies[1:])
    assert second[: len(first)] == first  # the note stands where it stood
    assert second[1:4] == items[1:4]
    assert conversations(world) == 2


@both_ways
def test_a_client_that_names_the_previous_response_goes_on(
    world: World, openai_account: StoredResponses, stream: bool
) -> None:
    respond(world, input="My cat is called Miso.")
    previous = None
    for text in ("What is my cat called?", "And my dog?", "The dog is Rex."):
        previous = respond(world, input=text, previous_response_id=previous, stream=stream).id
    assert conversations(world) == 2
    assert read_last_input(openai_account).count("Miso") == 0  # it stands above, where the upstream has it
    assert json.dumps(openai_account.inputs[-1]).count("is called Miso") == 1


def test_what_is_read_while_the_memory_cannot_be_is_cached_for_nobody(
    world: World, openai_account: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that all memories had then would lead from one person's request to another's conversation."""
    first = respond(world, input="My cat is called Miso.")
    earlier = world.gateway.app.services.native_chat._earlier_replies
    earlier.clear()
    with monkeypatch.context() as broken_store:
        broken_store.setattr(world.store.agents, "find_or_draft", fails)
        respond(world, input="What is my cat called?", previous_response_id=first.id)
    assert len(earlier) == 0
    respond(world, input="What is my cat called?", previous_response_id=first.id)
    assert len(earlier) == 2


def test_ids_are_known_after_a_restart(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    openai_account.outputs.append([reasoning_item("Hm."), message_item("A nice name.")])
    with remember(upstream, tmp_path) as world:
        first = respond(world, input="My cat is called Miso.")
    with remember(upstream, tmp_path) as world:
        second = respond(world, input="What is my cat called?", previous_response_id=first.id)
        named = [{"type": "item_reference", "id": item.id} for item in first.output]
        mine = {"role": "user", "content": "My cat is called Miso."}
        respond(world, input=[mine, *named, {"role": "user", "content": "Miso, isn't it?"}])
        assert "My cat is called" not in openai_account.bodies[1]["input"]  # it stands above
        assert conversations(world) == 1
    with remember(upstream, tmp_path) as world:
        respond(world, input="And who is it?", previous_response_id=second.id)
        assert conversations(world) == 1
        assert len(openai_account.inputs[-1]) == 6


@both_ways
def test_equal_replies_are_known_by_each_of_their_ids(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path, stream: bool
) -> None:
    """They are one exchange. The first conversation goes on, and a deletion of the first is one of what was said."""
    with remember(upstream, tmp_path) as world:
        first, second = (respond(world, input="I like Zqtulips.", stream=stream) for _ in range(2))
        assert world.query("SELECT count(*) FROM exchanges") == [1]
    with remember(upstream, tmp_path) as world:
        for made in (first, second):
            respond(world, input=f"And of {made.id}?", previous_response_id=made.id)
        assert conversations(world) == 1
        world.sdk.responses.delete(first.id)
        assert b"Zqtulips" not in world.data()


def test_only_the_newest_ids_of_equal_replies_are_stored(
    world: World, openai_account: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor asks the same for years."""
    monkeypatch.setattr(settle, "MAX_IDS", 4)
    made = [respond(world, input="Are you there?").id for _ in range(4)]
    (reply,) = world.query("SELECT shown_reply FROM exchanges")
    ids = read_private(orjson.loads(reply))["ids"]
    assert [id for id in made if id in ids] == made[-2:]
    assert len(ids) == 4


def test_an_unknown_id_begins_a_conversation(world: World, openai_account: StoredResponses) -> None:
    off = {"x-mnemogate-memory": "off"}
    previous = respond(world, input="My dog is called Rex.", extra_headers=off).id
    respond(world, input="My cat is called Miso.")
    assert respond(world, input="What is my cat called?", previous_response_id=previous).output_text == "Ok."
    assert "Miso" in read_last_input(openai_account)
    assert conversations(world) == 2


def test_ids_are_known_for_their_user_alone(world: World, openai_account: StoredResponses) -> None:
    previous = respond(world, input="My cat is called Miso.").id
    world.gateway.app.services.native_chat._earlier_replies.clear()
    respond(world, input="And?", previous_response_id=previous, user="bob")
    world.settle()
    respond(world, input="What is my cat called?", user="bob")
    assert "Miso" not in read_last_input(openai_account)


def test_a_conversation_of_the_upstreams_is_one_here(world: World, openai_account: StoredResponses) -> None:
    openai_account.conversations["conv_1"] = []
    for text in ("My cat is called Miso.", "What is my cat called?", "What is my cat called?"):
        respond(world, input=text, conversation={"id": "conv_1"})
        assert openai_account.bodies[-1]["input"] == text  # all of it stands above
    assert conversations(world) == 1
    respond(world, input="What is my cat called?")
    assert "Miso" in read_last_input(openai_account)


def test_a_compacted_item_of_the_upstream_is_not_remembered(
    world: World, openai_account: StoredResponses
) -> None:
    first = respond(world, input="My cat is called Miso.")
    short = world.sdk.responses.compact(model="m", previous_response_id=first.id)
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    assert [item["type"] for item in items] == ["message", "compaction"]
    respond(world, input=[*items, {"role": "user", "content": "Hello."}])
    assert openai_account.bodies[-1]["input"][1] == items[1]
    assert items[1]["encrypted_content"] not in str(told_in_all(world))
    with pytest.raises(openai.BadRequestError) as caught:
        respond(world, input=[{**items[1], "encrypted_content": "x"}, {"role": "user", "content": "Hello."}])
    assert caught.value.code == "invalid_encrypted_content"


def test_what_the_upstream_keeps_is_there(world: World) -> None:
    response = respond(world, input="My cat is called Miso.")
    assert world.sdk.responses.retrieve(response.id).output_text == "Ok."
    [item] = world.sdk.responses.input_items.list(response.id)
    assert item.type == "message"
    conversation = world.sdk.conversations.create()
    assert list(world.sdk.conversations.items.list(conversation.id)) == []
    world.sdk.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        world.sdk.responses.retrieve(response.id)


def test_replies_that_are_named_by_their_items_are_known(
    world: World, openai_account: StoredResponses
) -> None:
    openai_account.outputs.append([reasoning_item("Hm."), message_item("Hello Ann.")])
    response = respond(world, input="I am Ann.")
    items: list[Json] = [{"role": "user", "content": "I am Ann."}]
    items += [{"type": "item_reference", "id": item.id} for item in response.output]
    items.append({"role": "user", "content": "My cat is called Miso."})
    respond(world, input=items)
    assert conversations(world) == 1
    items[1] = {"type": "item_reference", "id": "msg_of_another_gateway"}
    with pytest.raises(openai.NotFoundError, match="not found"):
        respond(world, input=items)


@both_ways
def test_calls_and_their_results_are_stored(
    world: World, openai_account: StoredResponses, stream: bool
) -> None:
    openai_account.outputs.append([message_item("Let me see."), call_item("weather", '{"city": "Rome"}')])
    items: list[Json] = [{"role": "user", "content": "Is it raining in Rome?"}]
    response = respond(world, input=items, tools=[WEATHER], stream=stream)
    items += [item.to_dict() for item in response.output]
    items.append({"type": "function_call_output", "call_id": "call_1", "output": "Sun all day."})
    openai_account.outputs.append([message_item("The sun shines in Rome.")])
    respond(world, input=items, tools=[WEATHER], stream=stream)
    assert conversations(world) == 1
    respond(world, input="What was the weather in Rome?")
    assert "The sun shines in Rome." in read_last_input(openai_account)


APPROVAL = {"type": "mcp_approval_request", "name": "n", "arguments": "{}", "server_label": "s"}
APPROVED = {"type": "mcp_approval_response", "approval_request_id": "mcp_2_0", "approve": True}


@both_ways
@pytest.mark.parametrize("is_chain", [False, True], ids=["all items", "by id"])
def test_an_item_without_words_is_a_part_of_its_conversation(
    world: World, openai_account: StoredResponses, stream: bool, is_chain: bool
) -> None:
    respond(world, input="My cat is called Miso.")
    items: list[Json] = []
    previous = None
    asks: list[Json] = [{"role": "user", "content": "Feed my cat."}, APPROVED]
    asks.append({"role": "user", "content": "And what is my cat called?"})
    for item, answer in zip(
        asks, (APPROVAL, message_item("Tofu it is."), message_item("Miso.")), strict=True
    ):
        openai_account.outputs.append([answer])
        items = [item] if is_chain else [*items, item]
        response = respond(world, input=items, previous_response_id=previous, stream=stream)
        items += [each.to_dict() for each in response.output]
        previous = response.id if is_chain else None
    assert conversations(world) == 2
    assert json.dumps(openai_account.inputs[-1]).count("is called Miso") == 1
    assert b"Tofu it is." in world.data()


def test_references_that_the_users_memory_does_not_know_pass(
    world: World, openai_account: StoredResponses
) -> None:
    response = respond(world, input="My cat is called Miso.", user="bob")
    for options in (
        {"input": [{"id": response.output[0].id}]},
        {"input": [{"type": "item_reference", "id": response.output[0].id}], "instructions": "Go on."},
        {"input": [], "previous_response_id": response.id},
    ):
        raw = world.sdk.responses.with_raw_response.create(model="m", user="alice", **options)
        assert raw.headers["x-mnemogate-memory"] == "unavailable"
        with pytest.raises(openai.InternalServerError):
            respond(world, **options, extra_headers={"x-mnemogate-memory": "strict"})
    items = [{"role": "user", "content": "I am Ann."}, {"id": respond(world, input="I am Ann.").output[0].id}]
    respond(world, input=[*items, {"role": "user", "content": "And?"}])
    assert len(world.query("SELECT id FROM conversations WHERE agent = 2")) == 1


ASKED: Json = {"role": "user", "content": "Is it raining in Rome?"}
CALL: Json = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
RESULT: Json = {"type": "function_call_output", "call_id": "call_1", "output": "Sun all day."}
INTRODUCED: Json = {"role": "user", "content": "My cat is called Miso."}
OK: Json = {"role": "assistant", "content": "Ok."}


@pytest.mark.parametrize(
    ("question", "results"),
    [
        ([ASKED], [RESULT]),
        ([ASKED], [ASKED, RESULT]),  # Semantic Kernel
        ([ASKED], [ASKED, CALL, RESULT]),  # Strands
        ([OK, ASKED], [CALL, RESULT]),  # LiveKit
        ([INTRODUCED, OK, ASKED], [INTRODUCED, OK, ASKED, CALL, RESULT]),  # LlamaIndex
    ],
    ids=["new", "question", "question and call", "reply", "everything"],
)
def test_messages_before_an_id_count_once_however_often_they_are_sent(
    world: World, openai_account: StoredResponses, question: list[Json], results: list[Json]
) -> None:
    previous = respond(world, input=[INTRODUCED]).id
    openai_account.outputs.append([call_item("weather")])
    previous = respond(world, input=question, previous_response_id=previous, tools=[WEATHER]).id
    previous = respond(world, input=results, previous_response_id=previous, tools=[WEATHER]).id
    respond(world, input="Thanks.", previous_response_id=previous)
    assert openai_account.bodies[2]["input"] == results  # it goes upstream as it is
    texts = [read_text(message) for message in told_in_all(world)]
    assert texts == [
        INTRODUCED["content"],
        "Ok.",
        ASKED["content"],
        "",
        "Sun all day.",
        "Ok.",
        "Thanks.",
        "Ok.",
    ]
    assert conversations(world) == 1


def test_the_heard_part_of_a_reply_may_come_after_its_id(
    world: World, openai_account: StoredResponses
) -> None:
    """LiveKit names the response of which its caller heard the beginning, and says the beginning after it."""
    openai_account.outputs.append([message_item("We have soup, and there is bread.")])
    previous = respond(world, input="What is there to eat?").id
    items = [
        {"role": "assistant", "content": "We have soup"},
        {"role": "user", "content": "Stop, I take it."},
    ]
    previous = respond(world, input=items, previous_response_id=previous).id
    respond(world, input=[OK, {"role": "user", "content": "Thanks."}], previous_response_id=previous)
    texts = [read_text(message) for message in told_in_all(world)]
    assert texts == ["What is there to eat?", "We have soup", "Stop, I take it.", "Ok.", "Thanks.", "Ok."]
    assert conversations(world) == 1


# -- what is written


def test_a_reply_that_is_cut_is_stored_as_far_as_it_came(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses
) -> None:
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    openai_account.outputs.append([message_item("Zanzibar lies in the ocean.")])
    with world.sdk.responses.create(
        model="m", user="alice", input="Where is Zanzibar?", stream=True
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta" and event.delta == "lies ":
                break
    upstream.endpoints.hold_events.clear()
    assert upstream.last.gone.wait_sync() is None
    gate.open()
    world.settle()
    assert b"Zanzibar lies" in world.data()
    assert b"ocean" not in world.data()


@pytest.mark.parametrize("user", ["alice", None])
@pytest.mark.parametrize(("code", "breaks"), [("server_error", 1), ("invalid_prompt", 0)])
def test_a_response_that_fails_by_its_provider_counts_as_a_break_of_its_endpoint(
    world: World, upstream: StrictUpstream, code: str, breaks: int, user: str | None
) -> None:
    error = {"code": code, "message": "No more."}
    failed = {"id": "resp_1", "object": "response", "status": "failed", "output": [], "error": error}
    upstream.queue(raw(*events_of(failed), content_type="text/event-stream"))
    told = respond(world, input="Hi", stream=True, user=user)
    assert (told.status, told.error.message) == ("failed", "No more.")
    world.settle()
    (endpoint,) = world.gateway.app.services.chat.failover.endpoints["up"]
    assert endpoint.health.break_count == breaks


def test_a_stream_that_is_too_long_to_be_remembered_passes(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    text = "The story of Miso. " + "And then it slept. " * 300
    with remember(upstream, tmp_path, limits=replace(QUIET, streamed_bytes=4000)) as world:
        openai_account.outputs.append([message_item(text)])
        assert respond(world, input="Tell me a story.", stream=True).output_text == text
        respond(world, input="And what was the story of Miso?")
        assert "slept" not in read_last_input(openai_account)


def test_a_stream_for_which_all_replies_leave_no_room_passes(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REPLIES, "left_bytes", 0)
    text = "The story of Miso. " + ("word" * 100 + " ") * 3_000 + "And then it slept."
    with remember(upstream, tmp_path) as world:
        openai_account.outputs.append([message_item(text)])
        assert respond(world, input="Tell me a story.", stream=True).output_text == text
        respond(world, input="And what was the story of Miso?")
        assert "slept" not in read_last_input(openai_account)
    assert REPLIES.left_bytes == 0


def test_a_response_that_is_not_stored_is_not_known_by_its_id(world: World) -> None:
    earlier = world.gateway.app.services.native_chat._earlier_replies
    respond(world, input="Hi", store=False)
    assert len(earlier) == 0
    respond(world, input="Hi")
    assert len(earlier) == 1


def test_nothing_is_stored_of_what_the_upstream_refused(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses
) -> None:
    with pytest.raises(openai.BadRequestError, match="Unknown parameter: 'wrong'"):
        respond(world, input="My cat is called Miso.", extra_body={"wrong": 1})
    upstream.queue(fail(500))
    with pytest.raises(openai.InternalServerError):
        respond(world, input="My cat is called Miso.")
    respond(world, input="What is my cat called?")
    assert read_last_input(openai_account) == '"What is my cat called?"'


def test_reading_alone_keeps_nothing(world: World, openai_account: StoredResponses) -> None:
    respond(world, input="My cat is called Miso.")
    read = {"x-mnemogate-memory": "read"}
    respond(world, input="My cat eats Tofu. What is it called?", extra_headers=read)
    assert "Miso" in read_last_input(openai_account)
    respond(world, input="What does my cat eat?")
    assert "Tofu" not in read_last_input(openai_account)


def test_a_forgotten_response_is_not_known_by_its_id(world: World, openai_account: StoredResponses) -> None:
    previous = respond(world, input="My cat is called Miso.").id
    [conversation] = world.query("SELECT id FROM conversations")

    async def forget() -> None:
        agent = await world.store.agents.find(ALICE)
        assert agent is not None
        await world.store.forgetting.forget(agent.id, ForgetTarget(conversation_row=conversation))
        await world.store.forgetting.sweep()

    world.gateway.call(forget())
    respond(world, input="And?", previous_response_id=previous)
    assert b"Miso" not in world.data()


@pytest.mark.parametrize("target", [ForgetTarget(is_all=True), ForgetTarget(before=2e9)])
def test_a_response_that_was_forgotten_while_it_streamed_is_not_known_by_its_id(
    world: World, upstream: StrictUpstream, target: ForgetTarget
) -> None:
    respond(world, input="Hello there.")
    gate = Gate()
    upstream.endpoints.hold_events[6] = gate
    stream = world.sdk.responses.create(model="m", user="alice", input="My cat is called Miso.", stream=True)
    previous = next(iter(stream)).response.id

    async def forget() -> None:
        agent = await world.store.agents.find(ALICE)
        assert agent is not None
        await world.store.forgetting.forget(agent.id, target)

    world.gateway.call(forget())
    upstream.endpoints.hold_events.clear()
    gate.open()
    assert [event.type for event in stream][-1] == "response.completed"
    respond(world, input="And?", previous_response_id=previous)
    assert b"Miso" not in world.data()


# -- where memory has no part


@pytest.mark.parametrize(
    "options",
    [
        {"user": None},
        {"extra_headers": {"x-mnemogate-memory": "off"}},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"role": "user", "content": 7}]},
        {"instructions": 7},
    ],
    ids=["nobody", "off", "prompt", "not a content", "not instructions"],
)
def test_without_memory_not_a_byte_changes(world: World, upstream: StrictUpstream, options: Json) -> None:
    respond(world, input="My cat is called Miso.")
    headers = options.pop("extra_headers", {})
    body = orjson.dumps({"model": "m", "user": "alice", "input": "What is my cat called?", **options})
    reply = world.gateway.ask("POST", "/v1/responses", body, headers)
    assert upstream.last.body == body
    stands = "none" if options.get("user", "") is None else "off"
    assert reply.headers["x-mnemogate-memory"] == stands


STREAM = [
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n',
    b"event: response.output_text.delta\ndata: "
    b'{"type":"response.output_text.delta","output_index":0,"delta":"Zanzibar"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_1","output":'
    b'[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"Zanzibar"}]}]}}\n\n',
]
ODD = b'data: {"type":[]}\n\ndata: 7\n\ndata: {"type":"response.output_text.delta","output_index":[]}\n\n'

# An event of a type that the gateway does not know.
LATER_EVENT = b'event: response.later.delta\ndata: {"type":"response.later.delta","delta":"Hm"}\n\n'


@pytest.mark.parametrize(
    ("pieces", "is_kept"),
    [
        (STREAM, True),
        ([piece.replace(b"\n", b"\r\n") for piece in STREAM], True),
        ([piece.replace(b"\n", b"\r") for piece in STREAM], True),
        ([piece[piece.index(b"data:") :] for piece in STREAM], True),  # no names
        ([b"event: message\n" + piece[piece.index(b"data:") :] for piece in STREAM], True),
        ([b": hello\n\n", b"id: 7\nretry: 3\n" + STREAM[0], *STREAM[1:], b"data: [DONE]\n\n"], True),
        ([*STREAM[:2], ODD, STREAM[2]], True),
        ([*STREAM[:2], LATER_EVENT, STREAM[2]], True),
        ([*STREAM, *STREAM], True),
        (STREAM[:2], True),
        ([*STREAM[:2], STREAM[2][:40]], True),  # cut within an event
        ([*STREAM[:2], STREAM[2][:-1]], True),
        ([b'data: {"type":"error","message":"It broke."}\n\n'] * 2, False),
        ([STREAM[0], b'data: {"type":"error","message":"It broke."}\n\n'], False),
        ([], False),
    ],
)
def test_a_stream_passes_byte_by_byte_whatever_it_is(
    world: World, upstream: StrictUpstream, pieces: list[bytes], is_kept: bool
) -> None:
    found = []
    for mode, user in (("off", None), ("on", "alice")):
        body = orjson.dumps({"model": "m", "user": user, "input": "Where?", "stream": True})
        upstream.queue(Reply(headers={"content-type": "text/event-stream"}, body=pieces))
        reply = world.gateway.ask("POST", "/v1/responses", body, {"x-mnemogate-memory": mode})
        assert reply.headers["x-mnemogate-memory"] == mode
        found.append((reply.status, reply.body))
    (status, relayed), with_memory = found
    # An event without its blank line gets it, since the gateway may add another one.
    missing = b"\n" if pieces[-1:] == [STREAM[2][:-1]] else b""
    assert with_memory == (status, relayed + missing)
    assert (b"Zanzibar" in world.data()) == is_kept


@pytest.mark.parametrize(("most_in_an_event", "most"), [(2000, 9000), (9000, 4000)])
def test_a_reply_that_is_too_large_to_be_read_passes(
    upstream: StrictUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most_in_an_event: int,
    most: int,
) -> None:
    monkeypatch.setattr("adapters.sse.MAX_EVENT_BYTES", most_in_an_event)
    large = [*STREAM[:2], b'data: {"type":"an.image","data":"%b"}\n\n' % (b"A" * 5000), STREAM[2]]
    body = orjson.dumps({"model": "m", "user": "alice", "input": "Where?", "stream": True})
    with remember(upstream, tmp_path, limits=replace(QUIET, streamed_bytes=most)) as world:
        upstream.queue(Reply(headers={"content-type": "text/event-stream"}, body=large))
        assert world.gateway.ask("POST", "/v1/responses", body).body == b"".join(large)
        assert b"Zanzibar" in world.data()  # as far as it was read


def test_a_response_in_the_background_is_a_turn_once_it_is_seen_to_have_ended(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses
) -> None:
    respond(world, input="My cat is called Miso.")
    openai_account.outputs.append([message_item("She is Miso, and she is red.")])
    openai_account.is_busy = True
    fields = {"input": "What is my cat called?", "background": True, "instructions": "Be brief."}
    response = respond(world, **fields)
    assert (response.status, response.instructions) == ("queued", "Be brief.")
    sent = openai_account.bodies[-1]["input"]
    assert "My cat is called Miso." in sent
    world.settle()
    for _ in range(2):
        assert world.sdk.responses.retrieve(response.id).status == "in_progress"
    assert [read_text(each) for each in told_in_all(world)][2:] == ["What is my cat called?"]
    openai_account.is_busy = False
    for _ in range(2):  # the first one that sees it writes it, before its answer leaves
        assert world.sdk.responses.retrieve(response.id).output_text == "She is Miso, and she is red."
        rows = world.query("SELECT shown_reply FROM exchanges WHERE active = 1 ORDER BY id")
        assert [read_text(orjson.loads(row)) for row in rows] == ["Ok.", "She is Miso, and she is red."]
    assert conversations(world) == 2
    assert world.query("SELECT count(*) FROM run_texts WHERE agent <> 0") == [0]
    # It is gone on from by its id, and recalled, as any other.
    respond(world, input="And what is its colour?", previous_response_id=response.id)
    assert conversations(world) == 2
    world.pass_time(1000)
    respond(world, input="Which colour has Miso, the cat?")
    assert "she is red" in openai_account.bodies[-1]["input"]


def test_a_background_response_that_could_not_be_written_is_written_by_the_next_get(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = respond(world, input="My cat is called Miso.", background=True)
    world.settle()

    async def fail(*_: object, **named: object) -> None:
        raise StatementFailed("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("storage.sql.turns._commit_turn", fail)
        world.sdk.responses.retrieve(response.id)
    assert world.query("SELECT count(*) FROM exchanges WHERE active = 1") == [0]
    world.sdk.responses.retrieve(response.id)
    assert [read_text(each) for each in told_in_all(world)][-2:] == ["My cat is called Miso.", "Ok."]


@pytest.mark.parametrize(
    "step", ["storage.sql.turns._commit_turn", "storage.sql.responses.find_or_create_run"]
)
def test_a_background_response_whose_id_could_not_be_written_is_written_at_its_end(
    world: World,
    upstream: StrictUpstream,
    openai_account: StoredResponses,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    perform, errors = pkgutil.resolve_name(step), [StoreUnavailable("the disk is full")]

    async def fail_once(*arguments: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return await perform(*arguments, **named)

    monkeypatch.setattr(step, fail_once)
    openai_account.outputs.append([message_item("She is red.")])
    gate = upstream.endpoints.hold_events[6] = Gate()
    fields: Any = {"model": "m", "user": "alice", "input": "My cat is called Miso.", "background": True}
    for event in world.sdk.responses.create(**fields, stream=True):
        if event.type == "response.created":
            assert not errors
            gate.open()
    rows = world.query("SELECT shown_reply FROM exchanges WHERE active = 1")
    assert [read_text(orjson.loads(row)) for row in rows] == ["She is red."]


def test_a_background_response_may_have_as_many_messages_as_any_request(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    many = [{"role": "user", "content": f"Cat {n} is called Miso."} for n in range(5_001)]
    with remember(upstream, tmp_path, server={"max_messages": 6_000}) as world:
        response = respond(world, input=many, background=True)
        world.settle()
        world.sdk.responses.retrieve(response.id)
        assert world.query("SELECT count(*) FROM exchanges WHERE active = 1") == [1]


def test_a_background_response_is_seen_to_end_in_a_stream_and_by_another_process(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path) as world:
        response = respond(world, input="My cat is called Miso.", background=True)
        world.settle()
    with remember(upstream, tmp_path) as world:
        events = events_of(
            {**openai_account.answer_stored_response("GET", [response.id], ""), "status": "completed"}
        )  # type: ignore[dict-item]
        upstream.queue(raw(*events))
        world.gateway.ask("GET", f"/v1/responses/{response.id}?stream=true", b"", {})
        assert [read_text(each) for each in told_in_all(world)][-2:] == ["My cat is called Miso.", "Ok."]
        assert world.query("SELECT count(*) FROM exchanges WHERE active = 1") == [1]


def test_a_background_response_whose_history_could_not_be_read_is_written_by_the_next_get(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remember(upstream, tmp_path) as world:
        first = respond(world, input="My cat is called Miso.")
        response = respond(world, input="And Bo.", previous_response_id=first.id, background=True)
        world.settle()

    async def fail(*_: object) -> None:
        raise StoreUnavailable("the disk is slow")

    with remember(upstream, tmp_path) as world:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.run.native_chat.find_paths_by_id", fail)
            assert world.sdk.responses.retrieve(response.id).status == "completed"
        assert world.query("SELECT count(*) FROM exchanges WHERE active = 1") == [1]
        world.sdk.responses.retrieve(response.id)
        assert world.query("SELECT count(*) FROM exchanges WHERE active = 1") == [2]
        assert conversations(world) == 1


def test_a_client_that_leaves_the_stream_of_a_background_response_is_not_the_end_of_it(
    world: World, upstream: StrictUpstream, openai_account: StoredResponses
) -> None:
    openai_account.outputs.append([message_item("The treasure lies here.")])
    upstream.endpoints.hold_events[7] = Gate()
    body = {"model": "m", "user": "alice", "input": "Where?", "background": True, "stream": True}
    with world.gateway.connect() as connection:
        connection.request("POST", "/v1/responses", orjson.dumps(body), {})
        connection.read_until(b"lies")
    upstream.last.gone.wait_sync()
    upstream.endpoints.hold_events.clear()
    world.settle()
    assert [read_text(each) for each in told_in_all(world)] == ["Where?"]
    assert world.sdk.responses.retrieve("resp_1").status == "completed"
    assert [read_text(each) for each in told_in_all(world)][-1] == "The treasure lies here."


@pytest.mark.parametrize("how", ["cancelled", "deleted", "forgotten", "off", "read"])
def test_a_background_response_that_is_nobodys_turn_leaves_nothing(
    world: World, openai_account: StoredResponses, how: str
) -> None:
    openai_account.is_busy = how != "off"
    headers = {"x-mnemogate-memory": how} if how in ("off", "read") else {}
    response = respond(world, input="My tulips are purple.", background=True, extra_headers=headers)
    world.settle()
    if how == "cancelled":
        assert world.sdk.responses.cancel(response.id).status == "cancelled"
    elif how == "deleted":
        world.sdk.responses.delete(response.id)
        assert b"tulips" not in world.data()
    elif how == "forgotten":
        found = world.gateway.call(world.store.agents.find(ALICE))
        assert found is not None
        world.gateway.call(world.store.forgetting.forget(found.id, ForgetTarget(is_all=True)))
    openai_account.is_busy = False
    if how != "deleted":
        world.sdk.responses.retrieve(response.id)
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE shown_reply IS NOT NULL") == [0]
    if how != "cancelled":
        assert b"tulips" not in world.data()


def test_a_deleted_background_response_takes_its_turn_along(
    world: World, openai_account: StoredResponses
) -> None:
    response = respond(world, input="My tulips are purple.", background=True)
    world.sdk.responses.retrieve(response.id)
    world.sdk.responses.delete(response.id)
    assert b"tulips" not in world.data()


def test_the_deletion_of_a_background_response_can_be_asked_for_again(
    world: World, openai_account: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai_account.is_busy = True
    response = respond(world, input="My tulips are purple.", background=True)
    world.settle()
    with monkeypatch.context() as patch:
        patch.setattr(world.store.forgetting, "begin", fails)
        with pytest.raises(openai.InternalServerError):
            world.sdk.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):  # the upstream has deleted it already
        world.sdk.responses.delete(response.id)
    assert b"tulips" not in world.data()


def test_a_store_that_fails_takes_memory_away_and_not_the_answer(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.gateway.app.services.chat.keeper, "begin", broken)
    raw = world.sdk.responses.with_raw_response.create(model="m", user="alice", input="Hi")
    assert raw.headers["x-mnemogate-memory"] == "unavailable"
    assert raw.parse().output_text == "Ok."
    with pytest.raises(openai.InternalServerError):
        respond(world, input="Hi", extra_headers={"x-mnemogate-memory": "strict"})


def test_a_profile_has_its_prompt_without_memory_too(
    upstream: StrictUpstream,
    openai_account: StoredResponses,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        helper = {"x-mnemogate-agent": "helper"}
        respond(world, input="Hi", extra_headers={**helper, "x-mnemogate-memory": "off"})
        monkeypatch.setattr(world.gateway.app.services.chat.keeper, "begin", broken)
        respond(world, input="Hi", extra_headers=helper)
    assert [each["instructions"] for each in openai_account.bodies] == ["You help.", "You help."]


def test_append_mode_cannot_be_asked_for(world: World) -> None:
    append = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "one"}
    with pytest.raises(openai.BadRequestError, match="does not prepend history"):
        respond(world, input="Hi", extra_headers=append)


def test_messages_off_the_record_in_a_later_list_are_not_stored(
    world: World, openai_account: StoredResponses
) -> None:
    off = {"x-mnemogate-memory": "off"}
    items: list[Json] = [{"role": "user", "content": "My cat is called Miso."}]
    response = respond(world, input=items, extra_headers=off)
    items += [item.to_dict() for item in response.output]
    items.append({"role": "user", "content": "What does it eat?"})
    respond(world, input=items)
    assert b"Miso" not in world.data()
    respond(world, input="And?", previous_response_id=respond(world, input="Tofu.", extra_headers=off).id)
    assert b"Tofu" not in world.data()


def test_a_side_request_is_named_as_in_a_chat_completion(world: World) -> None:
    title = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
    title += "### Chat History:\n<chat_history>\nUSER: My cat is Miso.\n</chat_history>"
    found = []
    for path, said_so in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": title}]}),
        ("/v1/responses", {"input": title}),
    ):
        reply = world.gateway.ask("POST", path, orjson.dumps({"model": "m", "user": "alice", **said_so}), {})
        found.append([reply.headers.get(f"x-mnemogate-{name}") for name in ("memory", "side-request")])
    assert found[0] == found[1]
    assert found[0][1] is not None
    assert b"Miso" not in world.data()


@both_ways
@pytest.mark.parametrize("choice", [None, "auto"])
def test_a_models_task_for_a_sub_agent_is_not_remembered_as_the_users(
    world: World, openai_account: StoredResponses, stream: bool, choice: str | None
) -> None:
    task = "Find the best boats for two sailors."
    openai_account.outputs.append([call_item("ask_researcher", json.dumps({"task": task}))])
    chosen = {} if choice is None else {"tool_choice": choice}
    tools = [{**WEATHER, "name": "ask_researcher"}]
    respond(world, input="Research boats for me please.", tools=tools, stream=stream, **chosen)
    body = {"model": "m", "user": "alice", "input": task, "stream": stream}
    reply = world.gateway.ask("POST", "/v1/responses", orjson.dumps(body), {})
    assert reply.headers["x-mnemogate-side-request"] == "sub-agent"
    assert [message["content"] for message in told_in_all(world) if message["role"] == "user"] == [
        "Research boats for me please."
    ]


def test_what_a_demanded_call_has_is_no_task_of_a_sub_agent(
    world: World, openai_account: StoredResponses
) -> None:
    """It is an answer for a program, such as a question that a person then asks."""
    words = "Where are the best boats for two sailors?"
    openai_account.outputs.append([call_item("rewrite", json.dumps({"question": words}))])
    tools = [{**WEATHER, "name": "rewrite"}]
    respond(world, input="Where are boats?", tools=tools, tool_choice="required")
    body = {"model": "m", "user": "alice", "input": words}
    reply = world.gateway.ask("POST", "/v1/responses", orjson.dumps(body), {})
    assert "x-mnemogate-side-request" not in reply.headers


def test_requests_side_by_side_in_one_conversation_do_not_wait(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    openai_account.conversations["conv_1"] = []
    gate = Gate()
    limits = replace(QUIET, commit_wait_s=0.05)
    with remember(upstream, tmp_path, limits=limits) as world, ThreadPoolExecutor() as threads:
        upstream.queue(replace(fail(409), hold_before_headers=gate))
        body = orjson.dumps({"model": "m", "user": "alice", "input": "Hi", "conversation": "conv_1"})
        first = threads.submit(world.gateway.ask, "POST", "/v1/responses", body)
        upstream.request_gate(1).wait_sync()
        reply = world.gateway.ask("POST", "/v1/responses", body)
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "unavailable")
        gate.open()
        assert first.result().status == 409
        reply = world.gateway.ask("POST", "/v1/responses", body)
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on")


def test_a_profile_in_append_mode_goes_on_by_an_id(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path
) -> None:
    headers = {"x-mnemogate-agent": "helper", "x-mnemogate-conversation": "one"}
    with remember(upstream, tmp_path, agent(history="append")) as world:
        previous = respond(world, input="Hi", extra_headers={"x-mnemogate-agent": "helper"}).id
        respond(world, input="And?", previous_response_id=previous, extra_headers=headers)
        with pytest.raises(openai.BadRequestError, match="does not prepend history"):
            respond(world, input="And?", extra_headers=headers)


class CountedIds(frozenset[str]):
    """Ids that count how often they are gone through."""

    rounds = 0

    def __iter__(self) -> Iterator[str]:
        self.rounds += 1
        return super().__iter__()


def test_an_id_that_an_upstream_repeats_names_its_newest_reply(
    world: World, upstream: StrictUpstream
) -> None:
    for text in ("One", "Two", "Three"):
        body = {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "output": [message_item(f"{text}.")],
        }
        upstream.queue(raw(orjson.dumps(body), content_type="application/json"))
        respond(world, input=f"Number {text}.")
    world.settle()
    ids = CountedIds(["resp_1", "resp_2", "resp_3"])
    found = world.gateway.call(find_paths_by_id(world.store, ALICE, ids))
    assert [read_text(message) for message in found.pop("resp_1")] == ["Number Three.", "Three."]
    assert not found
    assert ids.rounds <= 1  # a request may name thousands


# -- profiles and agents


def test_a_profile_has_its_prompt_whatever_becomes_of_memory(
    upstream: StrictUpstream, openai_account: StoredResponses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remember(upstream, tmp_path, agent(system="Never give prices.")) as world:
        helper = {"x-mnemogate-agent": "helper"}
        off = {**helper, "x-mnemogate-memory": "off"}
        for headers, user in ((helper, "alice"), (helper, None), (off, "alice"), (off, None)):
            respond(world, input="Hi", user=user, extra_headers=headers)
            assert "Never give prices." in openai_account.bodies[-1]["instructions"]
        monkeypatch.setattr(world.gateway.app.services.chat.keeper, "begin", broken)
        respond(world, input="Hi", extra_headers=helper)
        assert "Never give prices." in openai_account.bodies[-1]["instructions"]


@pytest.mark.agents
def test_an_agent_that_a_header_names_answers(world: World, upstream: StrictUpstream) -> None:
    block = {"label": "human", "value": "Name: Ann"}
    body = orjson.dumps({"name": "gardener", "model": "m", "memory_blocks": [block]})
    assert world.gateway.ask("POST", "/v1/agents/", body).status == 200
    respond(world, input="Hi", extra_headers={"x-mnemogate-agent": "gardener"})
    assert upstream.last.path == "/v1/chat/completions"
    assert b"Name: Ann" in upstream.last.body
    with pytest.raises(openai.BadRequestError, match="no agent 'gardner'"):
        respond(world, input="Hi", extra_headers={"x-mnemogate-agent": "gardner"})


def test_memory_tools_of_earlier_chat_completions_are_not_named(
    upstream: StrictUpstream, tmp_path: Path, openai_account: StoredResponses
) -> None:
    headers = {"x-mnemogate-agent": "helper"}
    with remember(upstream, tmp_path, agent()) as world:
        chat = world.chat(user="alice", headers=headers)
        chat.say("Hi")
        assert "memory_insert" in upstream.last.messages[0]["content"]
        items = [*chat.messages, {"role": "user", "content": "And?"}]
        respond(world, input=items, store=False, extra_headers=headers)
        assert conversations(world) == 1
    instructions = openai_account.bodies[-1]["instructions"]
    assert instructions.startswith("You help.\n\n<memory_blocks>")
    assert "memory_insert" not in instructions


# -- at the edges


@pytest.mark.parametrize("kept", [2, 4, 6])
def test_a_message_that_a_client_leaves_out_of_its_list_is_recalled(
    world: World, openai_account: StoredResponses, kept: int
) -> None:
    items: list[Json] = []
    for text in ("My cat is called Miso.", "I live in Rome.", "I work as a baker.", "I play the flute."):
        openai_account.outputs.append([message_item(f"Good: {text[:12]}")])
        items.append({"role": "user", "content": text})
        items += [item.to_dict() for item in respond(world, input=items, store=False).output]
    asks = {"role": "user", "content": "What is my cat called?"}
    respond(world, input=[*items[-kept:], asks], store=False)
    assert "My cat is called Miso." in read_last_input(openai_account)
    assert conversations(world) == 1


def test_more_than_the_process_keeps_is_read_from_the_store(
    world: World, openai_account: StoredResponses
) -> None:
    world.gateway.app.services.native_chat._earlier_replies._limit_bytes = 20_000
    items: list[Json] = []
    for n in range(12):
        items.append({"role": "user", "content": f"Chapter {n} of Miso. " + f"w{n} " * 1500})
        openai_account.outputs.append([message_item(f"Reply number {n}.")])
        response = respond(world, input=items)
        items.append({"type": "item_reference", "id": response.output[0].id})
    respond(world, input=[*items, {"role": "user", "content": "And the end?"}])
    [size] = world.query("SELECT length(input) FROM exchanges ORDER BY seq DESC LIMIT 1")
    assert size < 100
    respond(world, input="What did I say?", previous_response_id=response.id)
    assert conversations(world) == 1


def test_an_odd_item_takes_no_other_one_along(world: World, upstream: StrictUpstream) -> None:
    for n, odd in enumerate(
        (
            {"type": "function_call", "id": "f", "call_id": "c1", "name": "w", "arguments": None},
            {"type": "message", "role": "assistant", "content": None},
            7,
        )
    ):
        output = orjson.dumps({"id": "r", "error": None, "output": [message_item(f"It is island {n}."), odd]})
        upstream.queue(raw(output, content_type="application/json"))
        body = orjson.dumps({"model": "m", "user": "alice", "input": f"Where is {n}?"})
        assert world.gateway.ask("POST", "/v1/responses", body).body == output
        assert b"It is island %d." % n in world.data()


def test_a_wish_for_another_history_is_judged_as_it_is(world: World, openai_account: StoredResponses) -> None:
    openai_account.conversations["conv_1"] = []
    with pytest.raises(openai.BadRequestError, match="'client'; expected append"):
        respond(world, input="Hi", conversation="conv_1", extra_headers={"x-mnemogate-history": "client"})
    respond(world, input="Hi", conversation="conv_1", extra_headers={"x-mnemogate-history": ""})
