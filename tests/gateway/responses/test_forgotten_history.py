"""A memory that is forgotten as a whole after a request has read its history, and before its turn is planned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import force_setattr

from storage.forget_commands import ForgetTarget
from storage.records import Agent
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.page.memories import memory_of
from tests.gateway.responses.response_client import begin, polled, respond, serve_memory
from tests.gateway.responses.socket_client import SocketClient, open_socket
from tests.gateway.responses.test_socket import ways
from tests.gateway.sdk import World
from tests.patience import becomes

__all__ = ["ways"]


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with serve_memory(upstream, tmp_path) as made:
        yield made


# The words that are forgotten. Random bytes of a database have shorter ones now and then.
WORDS = (b"Zqmiso", b"Zqnice", b"Zqrex")


class Forgetting:
    """Forgets Alice's memory when the next turn is about to be planned."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = world
        self._memory: Agent | None = memory_of(world)
        self._asked = len(world.upstream.requests)
        self._hook(monkeypatch)

    def _hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chat_memory = self._world.gateway.app.services.chat.memory
        begin = chat_memory.begin

        async def forget_and_begin(*arguments: Any, **options: Any) -> Any:
            await self._forget()
            return await begin(*arguments, **options)

        monkeypatch.setattr(chat_memory, "begin", forget_and_begin)

    async def _forget(self) -> None:
        if self._memory is not None:
            memory, self._memory = self._memory, None
            await self._world.store.forgetting.forget(memory.id, ForgetTarget(is_all=True))

    def is_whole(self) -> bool:
        """Returns whether it took place, and brought nothing of the old words back."""
        asked = self._world.upstream.requests[self._asked :]
        places = (self._world.data(), *(each.body for each in asked))
        return self._memory is None and not [word for word in WORDS for place in places if word in place]


class ForgettingAfterLook(Forgetting):
    """Forgets Alice's memory when a socket has just seen that it is there."""

    def _hook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sockets = self._world.gateway.app._sockets
        has_memory = sockets.has_memory

        async def look_and_forget(agent_row: int) -> bool:
            is_there = await has_memory(agent_row)
            await self._forget()
            return is_there

        force_setattr(sockets, "has_memory", look_and_forget)


@pytest.mark.parametrize("user", [None, "alice"])
@pytest.mark.parametrize("memory", ["on", "strict"])
def test_a_stored_response_is_not_continued(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, user: str | None, memory: str
) -> None:
    upstream.queue(say("Zqnice."))
    first = respond(world, input="My cat is called Zqmiso.", user="alice")
    forgetting = Forgetting(world, monkeypatch)
    options: dict[str, Any] = {} if user is None else {"user": user}
    with pytest.raises(openai.BadRequestError) as refused:
        respond(
            world,
            input="And now?",
            previous_response_id=first.id,
            extra_headers={"x-mnemogate-memory": memory},
            **options,
        )
    assert refused.value.code == "previous_response_not_found"
    assert forgetting.is_whole()
    respond(world, input="Hello.", user="alice")
    assert forgetting.is_whole()


def test_a_named_item_is_not_put_back(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.queue(say("Zqnice."))
    first = respond(world, input="My cat is called Miso.", user="alice")
    forgetting = Forgetting(world, monkeypatch)
    item = {"type": "item_reference", "id": first.output[0].id}
    with pytest.raises(openai.BadRequestError):
        respond(world, input=[item, {"role": "user", "content": "And now?"}], user="alice")
    assert forgetting.is_whole()


def test_a_conversation_is_not_continued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = world.sdk.conversations.create()
    respond(world, input="My cat is called Zqmiso.", conversation=conversation.id, user="alice")
    waiting: Any = {"type": "message", "role": "user", "content": "Zqrex is my dog."}
    world.sdk.conversations.items.create(conversation.id, items=[waiting])
    forgetting = Forgetting(world, monkeypatch)
    with pytest.raises(openai.NotFoundError):
        respond(world, input="And now?", conversation=conversation.id, user="alice")
    assert forgetting.is_whole()


@pytest.mark.parametrize("by_name", [False, True])
def test_a_response_in_the_background_is_not_made(
    world: World, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    conversation = world.sdk.conversations.create() if by_name else None
    names: dict[str, Any] = {} if conversation is None else {"conversation": conversation.id}
    first = respond(world, input="My cat is called Zqmiso.", user="alice", **names)
    names = names or {"previous_response_id": first.id}
    forgetting = Forgetting(world, monkeypatch)
    response = begin(world, input="Zqrex is my dog.", user="alice", **names)
    with pytest.raises(openai.NotFoundError):
        polled(world, response.id)
    becomes(lambda: world.query("SELECT count(*) FROM jobs") == [0])
    assert forgetting.is_whole()


def test_an_unstored_response_of_a_socket_is_not_continued(
    ways: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_socket(ways.gateway) as socket:
        client = SocketClient(socket, {"store": False})
        first = client.ask(input="My cat is called Zqmiso.")["id"]
        forgetting = Forgetting(ways, monkeypatch)
        refused = client.ask(input="And now?", previous_response_id=first)
        assert refused["error"]["code"] == "previous_response_not_found"
        assert forgetting.is_whole()
        assert client.ask(input="Hello.")["status"] == "completed"
        assert forgetting.is_whole()


@pytest.mark.both(user=["alice"], memory=["off"])
@pytest.mark.parametrize("user", [None, "alice"])
@pytest.mark.parametrize("memory", ["on", "off"])
def test_an_unstored_response_is_not_continued_without_a_memory_either(
    ways: World, monkeypatch: pytest.MonkeyPatch, user: str | None, memory: str
) -> None:
    with open_socket(ways.gateway, x_mnemogate_memory=memory) as socket:
        client = SocketClient(socket, {"store": False})
        first = client.ask(input="My cat is called Zqmiso.")["id"]
        forgetting = ForgettingAfterLook(ways, monkeypatch)
        refused = client.ask(input="And now?", previous_response_id=first, user=user)
        assert refused["error"]["code"] == "previous_response_not_found"
        assert forgetting.is_whole()


def forget_as_elsewhere(world: World) -> None:
    """Forgets Alice's memory, of which this gateway has not heard yet."""
    memory = memory_of(world)
    world.gateway.call(world.store.forgetting.forget(memory.id, ForgetTarget(is_all=True)))
    world.store.agents.cache(memory)


@pytest.mark.both
def test_a_conversation_is_bound_to_no_memory_that_is_gone(world: World) -> None:
    """Else it would be lost, and nothing would ever erase its items."""
    respond(world, input="Hello.", user="alice")
    conversation = world.sdk.conversations.create()
    forget_as_elsewhere(world)
    for text in ("My cat is called Miso.", "And now?"):
        respond(world, input=text, user="alice", conversation=conversation.id)
    assert [m["content"] for m in world.upstream.last.messages] == [
        "My cat is called Miso.",
        "Ok.",
        "And now?",
    ]
    assert len(world.sdk.conversations.items.list(conversation.id).data) == 4


@pytest.mark.both
def test_a_response_in_the_background_is_accepted_for_no_memory_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would ever erase its request."""
    respond(world, input="Hello.", user="alice")
    chat, memory = world.gateway.app.services.chat, memory_of(world)
    admit = chat.admit_background

    async def admit_and_forget(*arguments: Any) -> Any:
        admitted = await admit(*arguments)
        await world.store.forgetting.forget(memory.id, ForgetTarget(is_all=True))
        return admitted

    with monkeypatch.context() as patch:
        patch.setattr(chat, "admit_background", admit_and_forget)
        with pytest.raises(openai.ConflictError):
            begin(world, input="My cat is called Miso.", user="alice")
    assert polled(world, begin(world, input="And now?", user="alice").id).status == "completed"
    assert b"Miso" not in world.data()
