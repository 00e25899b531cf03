"""Nobody reads another's memory, by whatever id, header or field; and no credential of the gateway's goes upstream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import BlockSettings, ProjectSettings
from storage.records import Scope
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply

SECRET = "xyzzy"
FACT = f"The password of my safe is {SECRET}."
QUESTION = "What is the password of my safe?"
KEY = "x-mnemogate-key"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    blocks = (BlockSettings("human"), BlockSettings("rules", value="House rules.", shared=True))
    profiles = (agent("helper", blocks=blocks), agent("other", blocks=blocks))
    projects = {"two": ProjectSettings()}
    with remember(upstream, tmp_path, *profiles, projects=projects) as made:
        yield made


def say_secret(world: World, user: str = "alice", headers: dict[str, str] | None = None) -> RawReply:
    """Alice has a secret in a message, in a block, in archival memory and in a named conversation."""
    chat = world.chat(
        user=user, model="agent/helper", headers={"x-mnemogate-conversation": "c-alice", **(headers or {})}
    )
    world.upstream.queue(
        call_tools(
            Call("memory_insert", {"label": "human", "new_string": f"Safe: {SECRET}"}),
            Call("archival_memory_insert", {"content": f"Password of the safe: {SECRET}"}),
            text=None,
        ),
        say("Noted."),
    )
    chat.say(FACT)
    chat.say("Thank you.")
    world.upstream.queue(say("Noted."))
    reply = world.post(
        [*chat.messages, {"role": "user", "content": "Go on."}],
        headers,
        user=user,
        model="agent/helper",
    )
    assert reply.status == 200
    assert SECRET in world.upstream.last.body.decode()
    world.chat(user=user).say(FACT)  # and in the default agent
    world.settle()
    return reply


def assert_not_sent(world: World, since: int) -> None:
    for request in world.upstream.requests[since:]:
        assert SECRET not in request.body.decode()
        assert SECRET not in str(request.headers)


def probes(receipt: RawReply) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Every id of Alice's conversation, in every place where an id is read; the asker is Bob, or nobody."""
    ids = [
        "c-alice",
        receipt.headers["x-mnemogate-conversation"],
        receipt.headers["x-mnemogate-agent"],
        "1",
        "alice",
    ]
    headers = [
        "x-mnemogate-conversation",
        "x-openwebui-chat-id",
        "x-claude-code-session-id",
        "x-session-id",
        "x-livekit-room-id",
        "x-session-affinity",
        "x-livekit-session-id",
    ]
    found: list[tuple[dict[str, str], dict[str, Any]]] = []
    for each in ids:
        for who in ({"user": "bob"}, {}):
            found += [({name: each}, dict(who)) for name in headers]
            found += [
                ({}, {**who, "metadata": {"conversation_id": each, "agent_id": each}, "store": True}),
                ({}, {**who, "prompt_cache_key": each}),
                ({}, {**who, "call": {"id": each}}),
            ]
    return found


@pytest.mark.both(history=[None])
@pytest.mark.parametrize("history", [None, "append"])
def test_no_id_of_a_conversation_opens_it_to_another(world: World, history: str | None) -> None:
    receipt = say_secret(world)
    since = len(world.upstream.requests)
    for (headers, body), model in itertools.product(probes(receipt), ("m", "agent/helper")):
        if history is not None:
            headers = {**headers, "x-mnemogate-history": history}
        reply = world.post([{"role": "user", "content": QUESTION}], headers, model=model, **body)
        assert reply.status == 200 or (history and reply.error["param"] == "x-mnemogate-history")
        assert SECRET not in str(reply.headers)
        assert SECRET not in reply.body.decode()
    assert len(world.upstream.requests) > since + 20
    assert_not_sent(world, since)


@pytest.mark.both
def test_a_model_of_another_user_finds_nothing_with_its_tools(world: World) -> None:
    receipt = say_secret(world)
    since = len(world.upstream.requests)
    calls = [
        Call("conversation_search", {"query": "password safe xyzzy"}),
        Call("archival_memory_search", {"query": "password safe xyzzy"}),
        Call(
            "conversation_search",
            {
                "query": "password",
                "user": "alice",
                "agent": receipt.headers["x-mnemogate-agent"],
                "conversation": "c-alice",
            },
        ),
        Call("memory_replace", {"label": "human", "old_string": "Safe", "new_string": "Mine"}),
    ]
    for user, model in (("bob", "agent/helper"), ("alice", "agent/other"), ("alic", "agent/helper")):
        world.upstream.queue(call_tools(*calls, text=None), say("Nothing."))
        world.chat(user=user, model=model).say("Look for it.")
        contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
        assert contents[:3] == ["Nothing was found."] * 3
        assert contents[3].startswith("Error")
    for request in world.upstream.requests[since:]:
        messages = [m for m in request.messages if not m.get("tool_calls")]
        assert SECRET not in json.dumps(messages)


@pytest.mark.both
def test_the_same_opening_word_for_word_shares_nothing(world: World) -> None:
    for user in ("alice", "bob", None):
        who: dict[str, Any] = {"user": user} if user else {}
        chat = world.chat(**who)
        chat.say("Hello, I have a question about my safe.")
        chat.say(FACT if user == "alice" else "Never mind.")
    since = len(world.upstream.requests)
    for asker in ({"user": "bob"}, {}):
        chat = world.chat(None, None, **asker)
        chat.messages = [
            {"role": "user", "content": "Hello, I have a question about my safe."},
            {"role": "assistant", "content": "Ok."},
        ]
        chat.say(QUESTION)
    assert_not_sent(world, since)


@pytest.mark.both
def test_an_agent_by_its_id_is_not_to_be_had_from_outside(world: World) -> None:
    receipt = say_secret(world)
    since = len(world.upstream.requests)
    uid = receipt.headers["x-mnemogate-agent"]
    hello = [{"role": "user", "content": QUESTION}]
    by_model = world.post(hello, user="bob", model=f"agent/{uid}")
    by_header = world.post(hello, {"x-mnemogate-agent": uid}, user="bob")
    assert by_model.status == 404
    assert by_header.status == 400
    by_both = world.post(hello, {"x-mnemogate-agent": "other"}, user="bob", model="agent/helper")
    assert by_both.status == 400
    assert len(world.upstream.requests) == since


@pytest.mark.both
def test_profiles_of_one_user_are_apart(world: World) -> None:
    say_secret(world)
    since = len(world.upstream.requests)
    for headers, model in (({}, "agent/other"), ({"x-mnemogate-agent": "other"}, "m")):
        world.post([{"role": "user", "content": QUESTION}], headers, user="alice", model=model)
        world.post(
            [{"role": "user", "content": QUESTION}],
            {**headers, "x-mnemogate-conversation": "c-alice"},
            user="alice",
            model=model,
        )
    assert len(world.upstream.requests) == since + 4
    assert_not_sent(world, since)


@pytest.mark.both
def test_a_user_whose_name_looks_like_a_scope_gets_a_memory_of_its_own(world: World) -> None:
    say_secret(world)
    since = len(world.upstream.requests)
    for user in (
        "user:alice",
        "Alice",
        "alice ",
        "conversation:c-alice",
        "alice\u200b",
        "%",
        "_lice",
        "alice'--",
    ):
        if user.strip() == "alice":
            continue  # white space around an id is not part of it
        reply = world.post([{"role": "user", "content": QUESTION}], user=user)
        assert reply.status == 200, user
    assert_not_sent(world, since)


# -- projects and credentials


def key_of(world: World, project: str) -> str:
    return world.gateway.call(world.store.keys.create(project, f"of {project}"))[1]


@pytest.mark.both
def test_projects_are_apart(world: World) -> None:
    one, two = key_of(world, "default"), key_of(world, "two")
    receipt = say_secret_with_key(world, one)
    since = len(world.upstream.requests)
    for (headers, body), model in itertools.product(probes(receipt)[::3], ("m", "agent/helper")):
        reply = world.post(
            [{"role": "user", "content": QUESTION}],
            {"authorization": f"Bearer {two}", **headers},
            model=model,
            **{**body, "user": "alice"},
        )
        assert reply.status == 200
    assert_not_sent(world, since)
    hello = {"authorization": f"Bearer {two}", "x-mnemogate-project": "default"}
    assert world.post([{"role": "user", "content": QUESTION}], hello, user="alice").status == 400
    assert_not_sent(world, since)
    again = {"authorization": f"Bearer {one}"}
    world.post([{"role": "user", "content": QUESTION}], again, user="alice")
    assert SECRET in world.upstream.last.body.decode()


def say_secret_with_key(world: World, key: str) -> RawReply:
    world.sdk.close()
    world.sdk = world.client(key)
    return say_secret(world, headers={KEY: key})


def test_without_a_key_nothing_is_answered_once_there_is_one(world: World) -> None:
    key = key_of(world, "default")
    since = len(world.upstream.requests)
    for headers in (
        {},
        {"authorization": "Bearer sk-app"},
        {"authorization": f"Bearer {key}x"},
        {KEY: "mg-nope"},
    ):
        reply = world.post([{"role": "user", "content": QUESTION}], headers, user="alice")
        assert reply.status == 401
    assert len(world.upstream.requests) == since


@pytest.mark.parametrize("place", ["authorization", KEY, "both"])
def test_no_gateway_credential_reaches_the_upstream(world: World, place: str) -> None:
    key = key_of(world, "default")
    headers = {
        "authorization": {"authorization": f"Bearer {key}"},
        KEY: {KEY: key},
        "both": {KEY: key, "authorization": "Bearer sk-provider"},
    }[place]
    headers |= {"cookie": f"session={key}", "x-mnemogate-user": "alice", "x-forwarded-for": "10.0.0.1"}
    insert = Call("memory_insert", {"label": "human", "new_string": "x"})
    for model, stream in itertools.product(("m", "agent/helper"), (False, True)):
        if model != "m":
            world.upstream.queue(call_tools(insert, text=None), say("Noted."))
        reply = world.post([{"role": "user", "content": "Hi"}], headers, model=model, stream=stream)
        assert reply.status == 200
    assert len(world.upstream.requests) == 6
    for request in world.upstream.requests:
        assert key not in str(request.headers)
        assert key not in request.body.decode()
        assert not [
            name for name in request.headers if name.startswith(("x-mnemogate", "cookie", "x-forwarded"))
        ]
        expected = "Bearer sk-provider" if place == "both" else None
        assert request.headers.get("authorization") == expected


@pytest.mark.both
def test_every_stored_row_belongs_to_one_scope(world: World) -> None:
    say_secret(world)
    world.chat(user="bob", model="agent/helper").say(QUESTION)
    world.settle()

    async def agents() -> list[int | None]:
        scopes = [Scope("default", p, f"user:{u}") for p in ("default", "helper") for u in ("alice", "bob")]
        found = [await world.store.agents.find(scope) for scope in scopes]
        return [agent.id if agent else None for agent in found]

    alice_default, bob_default, alice_helper, bob_helper = world.gateway.call(agents())
    assert bob_default is None
    rows = world.query('SELECT agent, input, shown_reply, "full" FROM exchanges')
    assert {row[0] for row in rows if SECRET in str(row)} == {alice_default, alice_helper}
    assert bob_helper in {row[0] for row in rows}
