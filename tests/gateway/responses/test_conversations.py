"""Conversations with items that the gateway itself has, as OpenAI's SDK uses them."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from gateway.core.conversation.wire_message import read_text
from gateway.core.request.side_requests import SideRequests
from gateway.dialects.responses import items as response_items
from gateway.dialects.responses.render import rebuild_response
from gateway.run.background.retention import Retention
from gateway.run.response_conversations import ResponseConversation, ResponseConversations
from gateway.run.stored_responses import ResponseOwner
from gateway.web.responses import conversation_requests
from storage.errors import StoreUnavailable
from storage.forget_commands import ForgetTarget
from storage.job_records import JobState
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.page.memories import memory_of
from tests.gateway.responses.response_client import WEATHER, both_ways, respond, serve_memory, shown, texts_of
from tests.gateway.sdk import World, agent
from tests.patience import PATIENCE_S, becomes

Json = dict[str, Any]


def items_of(world: World, id: str, **options: Any) -> list[Json]:
    page = world.sdk.conversations.items.list(id, **{"order": "asc", **options})
    return [item.model_dump(exclude_none=True) for item in page]


def asked(upstream: StrictUpstream) -> list[Any]:
    return [read_text(message) for message in upstream.last.messages]


@both_ways
@pytest.mark.parametrize("user", [None, "alice"])
def test_responses_of_a_conversation_follow_one_another(
    world: World, upstream: StrictUpstream, stream: bool, user: str | None
) -> None:
    upstream.queue(say("A nice name."), say("Miso."))
    named: Json = {} if user is None else {"user": user}
    conversation = world.sdk.conversations.create(metadata={"topic": "cats"})
    assert (conversation.object, conversation.metadata) == ("conversation", {"topic": "cats"})
    first = respond(
        world, input="My cat is called Miso.", conversation=conversation.id, stream=stream, **named
    )
    assert first.conversation.id == conversation.id
    assert shown(world.sdk.responses.retrieve(first.id)) == shown(first)
    respond(world, input="What is it called?", conversation={"id": conversation.id}, stream=stream, **named)
    assert asked(upstream) == ["My cat is called Miso.", "A nice name.", "What is it called?"]
    items = items_of(world, conversation.id)
    assert texts_of(items) == ["My cat is called Miso.", "A nice name.", "What is it called?", "Miso."]
    assert items[1] == first.output[0].model_dump(exclude_none=True)
    assert (
        world.sdk.conversations.items.retrieve(items[0]["id"], conversation_id=conversation.id).id
        == items[0]["id"]
    )
    assert world.sdk.conversations.retrieve(conversation.id).created_at == conversation.created_at


def test_its_first_items_and_later_ones_come_before_the_next_input(
    world: World, upstream: StrictUpstream
) -> None:
    begun: Any = [
        {"role": "user", "content": "My cat is called Miso."},
        {"role": "assistant", "content": "A nice name."},
    ]
    conversation = world.sdk.conversations.create(items=begun)
    assert texts_of(items_of(world, conversation.id)) == ["My cat is called Miso.", "A nice name."]
    respond(world, input="What is it called?", conversation=conversation.id, user="alice")
    assert asked(upstream) == ["My cat is called Miso.", "A nice name.", "What is it called?"]
    more: Any = [{"role": "user", "content": "She is grey."}]
    created = world.sdk.conversations.items.create(conversation.id, items=more)
    assert (created.object, texts_of([i.model_dump() for i in created.data])) == ("list", ["She is grey."])
    respond(world, input="Which colour?", conversation=conversation.id, user="alice")
    assert asked(upstream)[-2:] == ["She is grey.", "Which colour?"]
    texts = [
        *("My cat is called Miso.", "A nice name.", "What is it called?", "Ok."),
        *("She is grey.", "Which colour?", "Ok."),
    ]
    assert texts_of(items_of(world, conversation.id)) == texts
    assert texts_of(items_of(world, conversation.id, limit=2)) == texts  # in pages
    wrong: Any = [{"type": "of_tomorrow"}]
    with pytest.raises(openai.BadRequestError) as caught:
        world.sdk.conversations.items.create(conversation.id, items=wrong)
    assert caught.value.param == "items[0].type"


@pytest.mark.both
@pytest.mark.parametrize("background", [False, True])
def test_one_of_concurrent_responses_reads_the_waiting_items(
    world: World, upstream: StrictUpstream, background: bool
) -> None:
    conversation = world.sdk.conversations.create(items=[{"role": "user", "content": "My cat is Miso."}])

    def ask(words: str) -> None:
        options = {"conversation": conversation.id, "user": "alice", "background": background}
        response = respond(world, input=words, **options)
        becomes(lambda: world.sdk.responses.retrieve(response.id).status == "completed")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, ("One?", "Two?", "Three?", "Four?")))
    texts = texts_of(items_of(world, conversation.id))
    assert (texts[0], texts.count("My cat is Miso."), texts.count("Ok.")) == ("My cat is Miso.", 1, 4)


def test_responses_side_by_side_are_answered_as_they_came(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them has read its conversation first."""
    has_begun, gate, get = Gate(), Gate(), ResponseConversations.get

    async def get_late(*given: Any) -> ResponseConversation:
        if not has_begun.is_open:
            has_begun.open()
            await gate.wait()
        return await get(*given)

    conversation = world.sdk.conversations.create()
    request = {"conversation": conversation.id, "user": "alice"}
    monkeypatch.setattr(ResponseConversations, "get", get_late)
    counts = world.gateway.app.services.chat.keeper.queues._counts
    with ThreadPoolExecutor(2) as pool:
        pool.submit(respond, world, input="One?", **request)
        has_begun.wait_sync()
        second = pool.submit(respond, world, input="Two?", **request)
        becomes(lambda: second.done() or counts["", conversation.id] == 2)
        gate.open()
    assert asked(upstream) == ["One?", "Ok.", "Two?"]


@pytest.mark.both
def test_an_item_that_is_added_after_a_response_was_accepted_waits_for_the_next_one(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, reserve = Gate(), ResponseConversations.reserve

    async def reserve_late(*given: Any) -> ResponseConversation:
        await gate.wait()
        return await reserve(*given)

    monkeypatch.setattr(ResponseConversations, "reserve", reserve_late)
    conversation = world.sdk.conversations.create(items=[{"role": "user", "content": "My cat is Miso."}])
    response = respond(world, input="Who?", conversation=conversation.id, background=True)
    world.sdk.conversations.items.create(conversation.id, items=[{"role": "user", "content": "She is grey."}])
    gate.open()
    becomes(lambda: world.sdk.responses.retrieve(response.id).status == "completed")
    assert texts_of(items_of(world, conversation.id)) == ["My cat is Miso.", "Who?", "Ok.", "She is grey."]


def test_items_that_repeat_stored_replies_wait_for_one_response(
    world: World, upstream: StrictUpstream
) -> None:
    """As an application adds them that does not know that its responses are in the conversation already."""
    conversation = world.sdk.conversations.create()
    respond(world, input="One.", conversation=conversation.id, user="alice")
    again: Any = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Ok."}]
    world.sdk.conversations.items.create(conversation.id, items=again)
    for words in ("Two.", "Three."):
        respond(world, input=words, conversation=conversation.id, user="alice")
    assert asked(upstream) == ["One.", "Ok.", "Two.", "Ok.", "Three."]
    texts = ["One.", "Ok.", "Two.", "Ok.", "Three.", "Ok."]
    assert texts_of(items_of(world, conversation.id)) == texts


def test_another_answer_to_a_stored_question_is_an_item_of_its_own(
    world: World, upstream: StrictUpstream
) -> None:
    """Rule 4 reads such an answer in a client's whole list as the stored reply in another form."""
    conversation = world.sdk.conversations.create()
    respond(world, input="One.", conversation=conversation.id, user="alice")
    items: Any = [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Something else."},
        {"role": "user", "content": "Two."},
    ]
    respond(world, input=items, conversation=conversation.id, user="alice")
    assert asked(upstream) == ["One.", "Ok.", "One.", "Something else.", "Two."]
    assert texts_of(items_of(world, conversation.id)) == [*asked(upstream), "Ok."]


@pytest.mark.both(options=[{"background": True}])
@pytest.mark.parametrize("options", [{}, {"stream": True}, {"background": True}])
def test_items_wait_again_where_the_upstream_refuses_the_request(
    world: World, upstream: StrictUpstream, options: Json
) -> None:
    conversation = world.sdk.conversations.create(items=[{"role": "user", "content": "My cat is Miso."}])
    request: Json = {"input": "Who?", "conversation": conversation.id, "user": "alice"}
    upstream.queue(fail(400, "temperature is too high"))
    if "background" in options:
        response = respond(world, **request, **options)
        becomes(lambda: world.sdk.responses.retrieve(response.id).status == "failed")
    else:
        with pytest.raises(openai.BadRequestError, match="too high"):
            respond(world, **request, **options)
    assert texts_of(items_of(world, conversation.id)) == ["My cat is Miso."]
    respond(world, **request)
    assert asked(upstream) == ["My cat is Miso.", "Who?"]
    assert texts_of(items_of(world, conversation.id)) == ["My cat is Miso.", "Who?", "Ok."]


@pytest.mark.both(is_deleted=[True])
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_later_attempt_asks_with_the_items_that_still_wait(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    """Those that another response has answered since, or that were deleted, are not in its turn."""
    errors, reserve = [StoreUnavailable("the disk is full")], ResponseConversations.reserve

    async def reserve_later(*given: Any) -> ResponseConversation:
        if errors:
            raise errors.pop()
        return await reserve(*given)

    conversation = world.sdk.conversations.create(items=[{"role": "user", "content": "My cat is Miso."}])
    monkeypatch.setattr(ResponseConversations, "reserve", reserve_later)
    response = respond(world, input="Who?", conversation=conversation.id, user="alice", background=True)
    becomes(lambda: world.gateway.call(world.store.jobs.count_by_state()).get(JobState.RETRYING))
    if is_deleted:
        (item,) = items_of(world, conversation.id)
        world.sdk.conversations.items.delete(item["id"], conversation_id=conversation.id)
    else:
        respond(world, input="Hi", conversation=conversation.id, user="alice")
    world.retry_job()
    becomes(lambda: world.sdk.responses.retrieve(response.id).status == "completed")
    before = [] if is_deleted else ["My cat is Miso.", "Hi", "Ok."]
    assert asked(upstream) == [*before, "Who?"]
    assert texts_of(items_of(world, conversation.id)) == [*before, "Who?", "Ok."]


def test_a_later_attempt_asks_with_the_items_of_the_earlier_one(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, remove = [StoreUnavailable("the disk is full")], ResponseConversations.remove_answered

    async def remove_and_fail(*given: Any) -> None:
        await remove(*given)
        if errors:
            raise errors.pop()

    conversation = world.sdk.conversations.create(items=[{"role": "user", "content": "My cat is Miso."}])
    monkeypatch.setattr(ResponseConversations, "remove_answered", remove_and_fail)
    response = respond(world, input="Who?", conversation=conversation.id, user="alice", background=True)
    world.retry_job()
    becomes(lambda: world.sdk.responses.retrieve(response.id).status == "completed")
    assert asked(upstream) == ["My cat is Miso.", "Who?"]
    assert texts_of(items_of(world, conversation.id)) == ["My cat is Miso.", "Who?", "Ok."]


def test_an_item_with_a_role_that_is_none_is_refused(world: World) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "role": ["user"]}
    body = orjson.dumps({"items": [{"role": "user", "content": "Hi"}, call]})
    reply = world.gateway.ask("POST", "/v1/conversations", body)
    assert (reply.status, reply.error["param"]) == (400, "items[1].role")


def test_an_item_that_waits_is_listed_with_all_its_fields(world: World) -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,aaaa"}
    items: Any = [
        {"role": "user", "content": [picture]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]},
    ]
    conversation = world.sdk.conversations.create(items=items)
    asked, reply = items_of(world, conversation.id)
    assert asked["content"] == [{**picture, "detail": "auto"}]
    assert reply["content"] == [{"type": "output_text", "text": "A cat.", "annotations": [], "logprobs": []}]


@pytest.mark.both
def test_a_bounded_number_of_items_waits_for_the_next_response(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation_requests, "MAX_WAITING_ITEMS", 3)
    items: Any = [{"role": "user", "content": f"Number {n}."} for n in range(3)]
    conversation = world.sdk.conversations.create(items=items)
    with pytest.raises(openai.BadRequestError, match="3 items wait") as caught:
        world.sdk.conversations.items.create(conversation.id, items=items[:1])
    assert caught.value.param == "items"
    respond(world, input="Which was the last?", conversation=conversation.id, user="alice")
    assert len(upstream.last.messages) == 4
    world.sdk.conversations.items.create(conversation.id, items=items)


def test_a_bounded_number_of_bytes_waits_for_the_next_response(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    items: Any = [{"role": "user", "content": "word " * 10_000}]
    with serve_memory(upstream, tmp_path, agent(), server={"max_body_bytes": 100_000}) as world:
        conversation = world.sdk.conversations.create(items=items)
        with pytest.raises(openai.APIStatusError, match="max_body_bytes") as caught:
            world.sdk.conversations.items.create(conversation.id, items=items)
        assert (caught.value.status_code, caught.value.param) == (413, "items")
        respond(world, input="Hi", conversation=conversation.id, user="alice")
        world.sdk.conversations.items.create(conversation.id, items=items)


@pytest.mark.both
def test_a_conversation_that_is_deleted_meanwhile_is_not_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations, id = world.gateway.app.services.chat.conversations, world.sdk.conversations.create().id
    found = world.gateway.call(conversations.get(ResponseOwner("default", None), id))

    async def get_late(*_: Any) -> ResponseConversation:
        return found

    world.sdk.conversations.delete(id)
    monkeypatch.setattr(conversations, "get", get_late)
    with pytest.raises(openai.NotFoundError):
        respond(world, input="Hi", conversation=id, user="alice")


@pytest.mark.both
def test_waiting_items_are_read_again_when_they_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request may have changed it since the conversation was found."""
    monkeypatch.setattr(conversation_requests, "MAX_WAITING_ITEMS", 2)
    items: Any = [{"role": "user", "content": "My cat is Miso."}]
    id = world.sdk.conversations.create(items=items).id
    conversations, first = world.gateway.app.services.chat.conversations, items_of(world, id)[0]["id"]
    found = world.gateway.call(conversations.get(ResponseOwner("default", None), id))

    async def get_late(*_: Any) -> ResponseConversation:
        return found

    world.sdk.conversations.items.create(id, items=items)
    with monkeypatch.context() as late:
        late.setattr(conversations, "get", get_late)
        with pytest.raises(openai.BadRequestError, match="2 items wait"):
            world.sdk.conversations.items.create(id, items=items)
    respond(world, input="What is it called?", conversation=id, user="alice")
    with monkeypatch.context() as late:
        late.setattr(conversations, "get", get_late)
        with pytest.raises(openai.NotFoundError):  # it is an item of the turn now
            world.sdk.conversations.items.delete(first, conversation_id=id)


def test_its_system_messages_are_read_by_each_response(world: World, upstream: StrictUpstream) -> None:
    brief: Json = {"role": "developer", "content": "Be brief."}
    conversation = world.sdk.conversations.create(items=[brief, {"role": "user", "content": "I am Ann."}])  # type: ignore[list-item]
    respond(world, input="One.", conversation=conversation.id, user="alice")
    respond(world, input="Two.", conversation=conversation.id, user="alice")
    assert asked(upstream) == ["Be brief.", "I am Ann.", "One.", "Ok.", "Two."]
    items = items_of(world, conversation.id)
    assert texts_of(items) == ["Be brief.", "I am Ann.", "One.", "Ok.", "Two.", "Ok."]
    world.sdk.conversations.items.delete(items[0]["id"], conversation_id=conversation.id)
    respond(world, input="Three.", conversation=conversation.id, user="alice")
    assert "Be brief." not in asked(upstream)


@pytest.mark.both
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_of_its_items_renders_the_turns_that_it_shows(
    world: World, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """To render all of a long conversation for each page takes time of the event loop."""
    rendered: list[str] = []

    def rebuild(tag: str, reply: Json, **options: Any) -> Json | None:
        rendered.append(tag)
        return rebuild_response(tag, reply, **options)

    monkeypatch.setattr(response_items, "rebuild_response", rebuild)
    conversation = world.sdk.conversations.create()
    made = [respond(world, input=f"{n}.", conversation=conversation.id, user="alice") for n in range(8)]
    if order == "desc":
        made.reverse()
    pages = world.sdk.conversations.items.list(conversation.id, limit=2, order=order)  # type: ignore[arg-type]
    for response, page in zip(made, pages.iter_pages(), strict=False):
        assert response.output[0].id in [item.id for item in page.data]
        assert len(set(rendered)) <= 3  # the turn of `after`, the page's, and the one that has more
        rendered.clear()
    world.sdk.conversations.items.retrieve(made[3].output[0].id, conversation_id=conversation.id)
    world.sdk.responses.input_items.list(made[3].id, limit=2)
    assert len(rendered) <= 3


def test_its_items_are_rendered_in_a_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id is looked for in the whole conversation, and all streams would wait."""
    in_a_loop: list[bool] = []

    def rebuild(tag: str, reply: Json, **options: Any) -> Json | None:
        in_a_loop.append(asyncio._get_running_loop() is not None)
        return rebuild_response(tag, reply, **options)

    monkeypatch.setattr(response_items, "rebuild_response", rebuild)
    conversation = world.sdk.conversations.create()
    respond(world, input="One.", conversation=conversation.id, user="alice")
    last = respond(world, input="Two.", conversation=conversation.id, user="alice")
    items_of(world, conversation.id)
    with pytest.raises(openai.NotFoundError):
        world.sdk.conversations.items.retrieve("msg_gone", conversation_id=conversation.id)
    with pytest.raises(openai.BadRequestError):
        world.sdk.responses.input_items.list(last.id, after="msg_gone")
    assert len(in_a_loop) == 5
    assert not any(in_a_loop)


def test_its_system_messages_are_of_no_turn(world: World, upstream: StrictUpstream) -> None:
    """So they are listed once, and gone once they are deleted."""
    brief: Json = {"role": "developer", "content": "Be brief."}
    conversation = world.sdk.conversations.create(items=[brief])  # type: ignore[list-item]
    own: Any = [{"role": "developer", "content": "In French."}, {"role": "user", "content": "One."}]
    respond(world, input=own, conversation=conversation.id, user="alice")
    last = respond(world, input="Two.", conversation=conversation.id, user="alice")

    def listed() -> list[str]:
        items = world.sdk.responses.input_items.list(last.id, order="asc")
        return texts_of([item.model_dump() for item in items])

    assert listed() == asked(upstream) == ["Be brief.", "One.", "Ok.", "Two."]
    first = items_of(world, conversation.id)[0]
    world.sdk.conversations.items.delete(first["id"], conversation_id=conversation.id)
    assert listed() == ["One.", "Ok.", "Two."]
    respond(world, input="Three.", previous_response_id=last.id, user="alice")
    assert asked(upstream) == ["In French.", "One.", "Ok.", "Two.", "Ok.", "Three."]


def test_its_summary_is_read_by_each_response(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(say("The cat is called Miso."))
    short = world.sdk.responses.compact(model="m", input="My cat is called Miso.")
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    conversation = world.sdk.conversations.create(items=items)
    for words in ("One.", "Two."):
        respond(world, input=words, conversation=conversation.id, user="alice")
        assert asked(upstream)[0].endswith("The cat is called Miso.")
    assert "compaction" in [item["type"] for item in items_of(world, conversation.id)]


def test_a_summary_that_cannot_be_read_is_refused(world: World) -> None:
    items: Any = [{"role": "user", "content": "Hi"}, {"type": "compaction", "encrypted_content": "gAAAA"}]
    with pytest.raises(openai.BadRequestError) as caught:
        world.sdk.conversations.create(items=items)
    assert (caught.value.code, caught.value.param) == (
        "invalid_encrypted_content",
        "items[1].encrypted_content",
    )


def test_an_item_whose_optional_fields_are_null_is_listed_with_their_defaults(world: World) -> None:
    item = {"type": None, "status": None, "role": "user", "content": "Hi"}
    reply = world.gateway.ask("POST", "/v1/conversations", orjson.dumps({"items": [item]}))
    (listed,) = items_of(world, reply.json["id"])
    assert (listed["type"], listed["status"]) == ("message", "completed")


def test_an_item_with_a_tool_that_cannot_be_offered_is_refused(world: World) -> None:
    """Else each response of the conversation would be, until the item is deleted."""
    found = {"type": "tool_search_output", "call_id": "1", "tools": [WEATHER, {"type": "of_tomorrow"}]}
    body = orjson.dumps({"items": [{"role": "user", "content": "Hi"}, found]})
    reply = world.gateway.ask("POST", "/v1/conversations", body)
    assert (reply.status, reply.error["param"]) == (400, "items[1].tools[1].type")


def test_the_tools_of_its_items_are_offered(world: World, upstream: StrictUpstream) -> None:
    items: Any = [
        {"role": "user", "content": "The weather?"},
        {"type": "tool_search_call", "call_id": "1", "execution": "client", "arguments": {"q": "weather"}},
        {"type": "tool_search_output", "call_id": "1", "execution": "client", "tools": [WEATHER]},
    ]
    conversation = world.sdk.conversations.create(items=items)
    respond(world, input="In Rome.", conversation=conversation.id, user="alice")
    offered = [tool["function"]["name"] for tool in upstream.last.json["tools"]]
    assert WEATHER["name"] in offered


@pytest.mark.both
def test_a_conversation_is_its_users(world: World) -> None:
    conversation = world.sdk.conversations.create()
    respond(world, input="My cat is called Miso.", conversation=conversation.id, user="alice")
    with pytest.raises(openai.NotFoundError):
        respond(world, input="What is it called?", conversation=conversation.id, user="bob")
    bob: Json = {"extra_headers": {"x-mnemogate-user": "bob"}}
    for ask in (
        world.sdk.conversations.retrieve,
        world.sdk.conversations.delete,
        world.sdk.conversations.items.list,
    ):
        with pytest.raises(openai.NotFoundError):
            ask(conversation.id, **bob)  # type: ignore[operator]
    # Who names nobody needs the id alone, and goes on in alice's memory.
    assert respond(world, input="And?", conversation=conversation.id).store is True
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_conversation_that_is_not_there_is_an_error(world: World, upstream: StrictUpstream) -> None:
    unknown = "conv_" + "0" * 32
    with pytest.raises(openai.NotFoundError):
        respond(world, input="Hi", conversation=unknown)
    with pytest.raises(openai.NotFoundError):
        world.sdk.conversations.retrieve(unknown)
    conversation = world.sdk.conversations.create()
    response = respond(world, input="Hi")
    with pytest.raises(openai.BadRequestError):
        respond(world, input="Hi", conversation=conversation.id, previous_response_id=response.id)
    # Any other name is the client's own.
    assert respond(world, input="Hi", conversation="mine", user="alice").conversation.id == "mine"


def test_the_error_for_a_method_names_the_methods_of_the_path(world: World) -> None:
    conversation = world.sdk.conversations.create().id
    response = respond(world, input="Hello.").id
    for method, path, allowed in (
        ("HEAD", f"conversations/{conversation}", "DELETE, GET, POST"),
        ("DELETE", f"conversations/{conversation}/items", "GET, POST"),
        ("POST", f"conversations/{conversation}/items/msg_1", "DELETE, GET"),
        ("POST", f"responses/{response}", "DELETE, GET"),
        ("DELETE", f"responses/{response}/input_items", "GET"),
        ("GET", f"responses/{response}/cancel", "POST"),
    ):
        with world.gateway.connect() as client:
            client.request(method, f"/v1/{path}", b"{}" if method == "POST" else None)
            head = client.read_head()
        assert (head.status, head.headers.get("allow")) == (405, allowed), (method, path)


def test_a_field_that_a_conversation_does_not_have_is_refused(world: World) -> None:
    """As OpenAI refuses it: left out, a misspelt field would have no effect."""
    sdk = world.sdk.conversations
    id, item = sdk.create().id, {"role": "user", "content": "Hi"}
    for create in (
        lambda: sdk.create(extra_body={"item": [item]}),
        lambda: sdk.update(id, metadata={}, extra_body={"item": [item]}),
        lambda: sdk.items.create(id, items=[item], extra_body={"item": [item]}),  # type: ignore[list-item]
    ):
        with pytest.raises(openai.BadRequestError, match="Unknown parameter: 'item'") as refusal:
            create()
        assert (refusal.value.code, refusal.value.param) == ("unknown_parameter", "item")
    assert items_of(world, id) == []


def test_metadata_is_changed_and_checked(world: World) -> None:
    conversation = world.sdk.conversations.create(metadata={"a": "b"})
    assert world.sdk.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    assert world.sdk.conversations.retrieve(conversation.id).metadata == {"c": "d"}
    unsaid = world.gateway.ask("POST", f"/v1/conversations/{conversation.id}", b"{}")
    assert (unsaid.status, unsaid.error["param"]) == (400, "metadata")
    assert world.sdk.conversations.retrieve(conversation.id).metadata == {"c": "d"}
    assert world.sdk.conversations.update(conversation.id, metadata=None).metadata == {}
    wrong: list[Any] = [{"a": 1}, {"k" * 65: "v"}, {"k": "v" * 513}, {f"k{n}": "v" for n in range(17)}]
    for each in wrong:
        with pytest.raises(openai.BadRequestError, match="metadata"):
            world.sdk.conversations.create(metadata=each)
        with pytest.raises(openai.BadRequestError, match="metadata"):
            respond(world, input="Hi", metadata=each)


@pytest.mark.both
def test_a_deleted_conversation_is_forgotten(world: World, upstream: StrictUpstream) -> None:
    for named in ({}, {"user": "alice"}):
        conversation = world.sdk.conversations.create()
        response = respond(world, input="My cat is called Miso.", conversation=conversation.id, **named)
        gone = world.sdk.conversations.delete(conversation.id)
        assert (gone.object, gone.deleted) == ("conversation.deleted", True)
        with pytest.raises(openai.NotFoundError):
            world.sdk.conversations.retrieve(conversation.id)
        with pytest.raises(openai.NotFoundError):
            world.sdk.responses.retrieve(response.id)
    respond(world, input="What is my cat called?", user="alice")
    assert "Miso" not in str(upstream.last.messages)


@pytest.mark.both
def test_a_conversation_without_a_response_goes_by_age(world: World) -> None:
    """By `responses.keep_days`, or by what its project retains where that is shorter."""
    item: Any = {"role": "user", "content": "My cat is called Zqmiso."}
    old = world.sdk.conversations.create(items=[item])
    changed = world.sdk.conversations.create()
    world.clock.sleep(8 * 86_400)
    world.sdk.conversations.items.create(changed.id, items=[item])
    for days, count in (({"other": 7.0}, 0), ({"default": 7.0}, 1), ({}, 0)):
        assert world.gateway.call(Retention(world.store, days, world.clock).forget_old()) == count
    with pytest.raises(openai.NotFoundError):
        world.sdk.conversations.retrieve(old.id)
    assert len(items_of(world, changed.id)) == 1
    world.clock.sleep(31 * 86_400)
    assert world.gateway.call(Retention(world.store, {}, world.clock).forget_old()) == 1
    assert b"Zqmiso" not in world.data()


def test_nothing_is_added_to_a_conversation_while_its_memory_is_paused(world: World) -> None:
    conversation, item = world.sdk.conversations.create().id, {"role": "user", "content": "Zqmore."}
    respond(world, input="Hi", conversation=conversation, user="alice")
    forgetting, memory = world.store.forgetting, memory_of(world, "alice")
    world.gateway.call(forgetting.pause(memory.id, world.clock()))
    with pytest.raises(openai.ConflictError, match="is paused"):
        world.sdk.conversations.items.create(conversation, items=[item])  # type: ignore[list-item]
    assert b"Zqmore" not in world.data()
    world.gateway.call(forgetting.pause(memory.id, None))
    world.sdk.conversations.items.create(conversation, items=[item])  # type: ignore[list-item]
    assert len(items_of(world, conversation)) == 3


@pytest.mark.both
@pytest.mark.parametrize("way", ["whole", "age"])
def test_waiting_items_are_forgotten_with_their_conversation(world: World, way: str) -> None:
    items: Any = [{"role": "developer", "content": "Zqbriefly."}]
    conversations = [world.sdk.conversations.create(items=items, metadata={"a": "b"}).id for _ in range(2)]
    for id in conversations:
        respond(world, input="Hi", conversation=id, user="alice")
        world.sdk.conversations.items.create(id, items=[{"role": "user", "content": "Zqmore."}])
    alice, first = memory_of(world, "alice"), conversations[0]
    if way == "whole":
        number = world.gateway.call(world.store.forget_targets.find_conversation(alice.id, first))
        world.gateway.call(world.store.forgetting.forget(alice.id, ForgetTarget(conversation_row=number)))
        assert len(items_of(world, conversations[1])) == 4
    else:
        retention = Retention(world.store, {"default": 30}, world.clock)
        world.clock.sleep(31 * 86_400)
        assert world.gateway.call(retention.forget_old()) == 1
        assert world.gateway.call(retention.forget_old()) == 0
        assert not [word for word in (b"Zqbriefly", b"Zqmore") if word in world.data()]
    assert items_of(world, first) == []
    assert world.sdk.conversations.retrieve(first).metadata == {"a": "b"}


@pytest.mark.both(user=["alice"])
@pytest.mark.parametrize("user", ["alice", None])
def test_a_response_of_a_conversation_that_is_deleted_meanwhile_is_forgotten(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, user: str | None
) -> None:
    """It has bound the conversation to its memory, and waits for its turn."""
    gate, bind = Gate(), ResponseConversations.bind
    bound = []

    async def bind_and_wait(*given: Any) -> None:
        await bind(*given)
        bound.append(given)
        await gate.wait()

    monkeypatch.setattr(ResponseConversations, "bind", bind_and_wait)
    conversation = world.sdk.conversations.create()
    with ThreadPoolExecutor(1) as pool:
        named = {} if user is None else {"user": user}
        late = pool.submit(
            respond, world, input="My cat is called Miso.", conversation=conversation.id, **named
        )
        becomes(lambda: bound)
        world.sdk.conversations.delete(conversation.id)
        gate.open()
        with pytest.raises(openai.NotFoundError):
            late.result(PATIENCE_S)
    assert not upstream.chats
    assert "Miso" not in str(world.query("SELECT input FROM exchanges"))


@pytest.mark.both
def test_an_item_is_deleted(world: World, upstream: StrictUpstream) -> None:
    conversation = world.sdk.conversations.create()
    respond(world, input="My cat is called Miso.", conversation=conversation.id, user="alice")
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}), text="Let me see."))
    respond(world, input="The weather?", conversation=conversation.id, user="alice", tools=[WEATHER])
    waiting: Any = [{"role": "user", "content": "Wait."}]
    added = world.sdk.conversations.items.create(conversation.id, items=waiting).data[0].id
    items = items_of(world, conversation.id)
    assert texts_of(items)[0] == "My cat is called Miso."
    with pytest.raises(openai.BadRequestError, match="2 items"):
        world.sdk.conversations.items.delete(items[-2]["id"], conversation_id=conversation.id)
    for id in (items[0]["id"], added):
        world.sdk.conversations.items.delete(id, conversation_id=conversation.id)
        with pytest.raises(openai.NotFoundError):
            world.sdk.conversations.items.retrieve(id, conversation_id=conversation.id)
    assert "Miso" not in str(items_of(world, conversation.id))


@pytest.mark.both
def test_the_results_that_a_reply_answers_are_deleted_with_it(world: World, upstream: StrictUpstream) -> None:
    """They are no message, and no list of a memory would show them; the call before them stays."""
    conversation = world.sdk.conversations.create()
    asked_with: Any = {"conversation": conversation.id, "user": "alice", "tools": [WEATHER]}
    upstream.queue(call_tools(Call("weather", {"city": "Rome"})), say("Sunny."))
    respond(world, input="The weather?", **asked_with)
    call_id = items_of(world, conversation.id)[-1]["call_id"]
    result: Any = {"type": "function_call_output", "call_id": call_id, "output": "31 degrees"}
    respond(world, input=[result], **asked_with)
    items = items_of(world, conversation.id)
    types = ["message", "function_call", "function_call_output", "message"]
    assert [each["type"] for each in items] == types
    world.sdk.conversations.items.delete(items[-1]["id"], conversation_id=conversation.id)
    assert [each["type"] for each in items_of(world, conversation.id)] == types[:2]
    assert "31 degrees" not in str(world.query("SELECT input FROM exchanges"))


@pytest.mark.both
def test_later_responses_read_nothing_of_a_turn_with_a_deleted_item(
    world: World, upstream: StrictUpstream
) -> None:
    conversation = world.sdk.conversations.create()
    for text in ("My cat is called Miso.", "She is grey."):
        respond(world, input=text, conversation=conversation.id, user="alice")
    first = items_of(world, conversation.id)[0]["id"]
    world.sdk.conversations.items.delete(first, conversation_id=conversation.id)
    assert texts_of(items_of(world, conversation.id)) == ["Ok.", "She is grey.", "Ok."]
    respond(world, input="Which colour?", conversation=conversation.id, user="alice")
    assert asked(upstream) == ["She is grey.", "Ok.", "Which colour?"]


@pytest.mark.parametrize("deleted", [2, 5], ids=["the question", "the answer"])
def test_a_result_goes_with_its_call_after_a_deletion(
    world: World, upstream: StrictUpstream, deleted: int
) -> None:
    conversation = world.sdk.conversations.create()
    asked_with: Any = {"conversation": conversation.id, "user": "alice", "tools": [WEATHER]}
    respond(world, input="Hello.", **asked_with)
    upstream.queue(call_tools(Call("weather", {"city": "Rome"})))
    respond(world, input="The weather?", **asked_with)
    call_id = items_of(world, conversation.id)[-1]["call_id"]
    result: Any = {"type": "function_call_output", "call_id": call_id, "output": "Sunny"}
    if deleted == 5:  # then the call waits for its result again
        respond(world, input=[result], **asked_with)
    item = items_of(world, conversation.id)[deleted]
    world.sdk.conversations.items.delete(item["id"], conversation_id=conversation.id)
    respond(world, input=[result], **asked_with)
    roles = [message["role"] for message in upstream.last.messages]
    assert roles == ["user", "assistant", *(["user"] if deleted == 5 else []), "assistant", "tool"]
    types = [each["type"] for each in items_of(world, conversation.id)]
    assert types[-3:] == ["function_call", "function_call_output", "message"]


@pytest.mark.parametrize("deleted", [[], [1], [1, 1]], ids=["none", "question", "turn"])
def test_a_late_result_goes_with_the_call_of_an_older_turn_without_its_question(
    world: World, upstream: StrictUpstream, deleted: list[int]
) -> None:
    """deleted: the indices of the items of the turn between that are deleted, one after the other."""
    conversation = world.sdk.conversations.create()
    asked_with: Any = {"conversation": conversation.id, "user": "alice", "tools": [WEATHER]}

    def delete(index: int) -> None:
        item = items_of(world, conversation.id)[index]
        world.sdk.conversations.items.delete(item["id"], conversation_id=conversation.id)

    upstream.queue(call_tools(Call("weather", {"city": "Rome"})))
    respond(world, input="The weather?", **asked_with)
    delete(0)
    call_id = items_of(world, conversation.id)[0]["call_id"]
    respond(world, input="Hello.", **asked_with)
    for index in deleted:
        delete(index)
    respond(
        world,
        input=[{"type": "function_call_output", "call_id": call_id, "output": "Sunny"}],
        **asked_with,
    )
    last = upstream.last.messages[-1]
    assert (last["role"], last["tool_call_id"], last["content"]) == ("tool", call_id, "Sunny")
    assert items_of(world, conversation.id)[-2]["output"] == "Sunny"


def test_a_result_of_a_deleted_call_is_not_that_of_an_older_call_with_its_id(
    world: World, upstream: StrictUpstream
) -> None:
    """Servers of open models number the calls of each reply from 0."""
    conversation = world.sdk.conversations.create()
    asked_with: Any = {"conversation": conversation.id, "user": "alice", "tools": [WEATHER]}
    result: Any = {"type": "function_call_output", "call_id": "call_0", "output": "Sunny"}
    upstream.queue(call_tools(Call("weather", {"city": "Rome"}, id="call_0")), say("It is sunny."))
    respond(world, input="The weather?", **asked_with)
    respond(world, input=[result], **asked_with)
    upstream.queue(call_tools(Call("weather", {"city": "Oslo"}, id="call_0")))
    respond(world, input="And in Oslo?", **asked_with)
    for item in items_of(world, conversation.id)[4:]:
        world.sdk.conversations.items.delete(item["id"], conversation_id=conversation.id)
    items = items_of(world, conversation.id)
    assert [each["type"] for each in items] == ["message", "function_call", "function_call_output", "message"]
    respond(world, input=[result], **asked_with)
    assert items_of(world, conversation.id) == items


def test_a_result_of_a_deleted_call_is_not_stored_with_that_of_an_older_call(
    world: World, upstream: StrictUpstream
) -> None:
    conversation = world.sdk.conversations.create()
    asked_with: Any = {"conversation": conversation.id, "user": "alice", "tools": [WEATHER]}
    call_ids = []
    for city in ("Rome", "Oslo"):
        upstream.queue(call_tools(Call("weather", {"city": city})))
        respond(world, input=f"The weather in {city}?", **asked_with)
        call_ids.append(items_of(world, conversation.id)[-1]["call_id"])
    for item in items_of(world, conversation.id)[2:]:
        world.sdk.conversations.items.delete(item["id"], conversation_id=conversation.id)
    results: Any = [
        {"type": "function_call_output", "call_id": call_id, "output": f"{degrees} degrees"}
        for call_id, degrees in zip(call_ids, (31, 12), strict=True)
    ]
    with pytest.raises(openai.BadRequestError, match=call_ids[1]):
        respond(world, input=results, **asked_with)
    assert "12 degrees" not in str(world.query("SELECT input FROM exchanges"))
    respond(world, input=results[:1], **asked_with)
    assert items_of(world, conversation.id)[-2]["output"] == "31 degrees"


def test_the_calls_after_a_deleted_question_get_their_results(world: World, upstream: StrictUpstream) -> None:
    conversation = world.sdk.conversations.create()
    asked_with: Any = {"conversation": conversation.id, "user": "alice", "tools": [WEATHER]}
    upstream.queue(
        call_tools(Call("weather", {"city": "Rome"})), call_tools(Call("weather", {"city": "Oslo"}))
    )
    respond(world, input="Where is it warm?", **asked_with)
    question = items_of(world, conversation.id)[0]
    world.sdk.conversations.items.delete(question["id"], conversation_id=conversation.id)
    for output in ("31 degrees", "12 degrees"):
        call_id = items_of(world, conversation.id)[-1]["call_id"]
        respond(
            world,
            input=[{"type": "function_call_output", "call_id": call_id, "output": output}],
            **asked_with,
        )
    assert [message["role"] for message in upstream.last.messages] == ["assistant", "tool"] * 2
    types = [each["type"] for each in items_of(world, conversation.id)]
    assert types == ["function_call", "function_call_output"] * 2 + ["message"]


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(
            [("user", "Wish."), ("assistant", "Granted."), ("user", "Again.")], id="a turn with its reply"
        ),
        pytest.param([("user", "Wish."), ("assistant", "Granted.")], id="a turn, and no question"),
        pytest.param([("assistant", "Granted.")], id="the reply alone"),
        pytest.param([("assistant", "Denied.")], id="another reply"),
    ],
)
@pytest.mark.parametrize("deleted", [[0], [1], [0, 1]], ids=["question", "reply", "both"])
def test_items_that_repeat_a_deleted_item_are_new(
    world: World, upstream: StrictUpstream, again: list[tuple[str, str]], deleted: list[int]
) -> None:
    """They join the conversation at its end, and their response is stored."""
    conversation = world.sdk.conversations.create()
    upstream.queue(say("Granted."), say("Fine."))
    respond(world, input="Wish.", conversation=conversation.id)
    items = items_of(world, conversation.id)
    for index in deleted:
        world.sdk.conversations.items.delete(items[index]["id"], conversation_id=conversation.id)
    before = texts_of(items_of(world, conversation.id))
    added: Any = [{"role": role, "content": text} for role, text in again]
    assert respond(world, input=added, conversation=conversation.id).store
    assert texts_of(items_of(world, conversation.id)) == [*before, *(text for _, text in again), "Fine."]


@pytest.mark.both
def test_an_item_has_the_same_id_after_the_turn_before_it_is_deleted(world: World) -> None:
    conversation = world.sdk.conversations.create()
    for text in ("My cat is called Miso.", "She is grey."):
        respond(world, input=text, conversation=conversation.id, user="alice")
    items = items_of(world, conversation.id)
    for item in items:
        world.sdk.conversations.items.delete(item["id"], conversation_id=conversation.id)
        assert items_of(world, conversation.id) == items[items.index(item) + 1 :]


def test_an_item_is_named_by_its_id(world: World, upstream: StrictUpstream) -> None:
    conversation = world.sdk.conversations.create()
    respond(world, input="My cat is called Miso.", conversation=conversation.id, user="alice")
    question = items_of(world, conversation.id)[0]["id"]
    respond(world, input=[{"type": "item_reference", "id": question}], user="alice")
    assert upstream.last.messages[-1]["role"] == "user"
    assert upstream.last.messages[-1]["content"].endswith("My cat is called Miso.")


def test_no_rules_hold_a_system_prompt_when_something_is_forgotten(world: World) -> None:
    conversation = world.sdk.conversations.create(extra_headers={"x-mnemogate-user": "alice"})
    respond(world, instructions="Like cats.", input="Hello.", conversation=conversation.id, user="alice")
    assert "Like cats." in prompts_in_rules()
    memory = memory_of(world, "alice")
    world.gateway.call(world.store.forgetting.forget(memory.id, ForgetTarget()))
    assert "Like cats." not in prompts_in_rules()


def prompts_in_rules() -> set[str]:
    return {each._last_prompt for each in gc.get_objects() if isinstance(each, SideRequests)}
