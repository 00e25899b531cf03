"""Links that open a memory to its person: how an application makes them, and when they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway.core.json_limits import MAX_VALUES
from gateway.errors import NotAllowed, UnknownId
from gateway.run.admin.access.link_operations import LINK_PATH, RIGHTS, LinkOperations
from gateway.run.admin.memory.editor import LINK, Editor
from gateway.run.admin.memory.memory_edits import MemoryEdits
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S
from tests.rows import each_row


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        for user in ("alice", "bob"):
            reply = made.post([{"role": "user", "content": "Hello."}], {"x-mnemogate-user": user})
            assert reply.status == 200
        made.settle()
        yield made


def ask(world: World, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{world.gateway.url}/v1/memory/links", json=body, headers=headers, timeout=PATIENCE_S)


def links(world: World) -> LinkOperations:
    return LinkOperations(
        world.store, world.clock, world.gateway.app.services.settings.choose_default_profile
    )


def token_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    url = str(reply.json()["url"])
    host = str(reply.request.url).removesuffix("/v1/memory/links")
    assert url.startswith(host + LINK_PATH)
    return url.removeprefix(host + LINK_PATH)


@pytest.mark.both
def test_a_link_opens_the_memory_of_one_person_for_a_time(world: World) -> None:
    reply = ask(world, {"user": "alice", "ttl_s": 60})
    body = reply.json()
    assert body["rights"] == list(RIGHTS)
    assert body["expires_at"] == pytest.approx(world.clock.now + 60, abs=1)
    opened = world.gateway.call(links(world).open(token_of(reply)))
    assert opened.scope.subject == "user:alice"
    world.clock.sleep(61)
    with pytest.raises(UnknownId):
        world.gateway.call(links(world).open(token_of(reply)))


def test_a_link_has_its_rights_and_no_others(world: World) -> None:
    reply = ask(world, {"user": "alice", "rights": ["pause", "see"]})
    assert reply.json()["rights"] == ["see", "pause"]
    operations, token = links(world), token_of(reply)
    link = world.gateway.call(operations.open(token, "pause"))
    for right in ("correct", "forget", "export"):
        with pytest.raises(NotAllowed):
            world.gateway.call(operations.open(token, right))
    editor = Editor(LINK, link.scope.project, "person")
    edits = MemoryEdits(world.store, world.clock)
    world.gateway.call(edits.pause(editor, link.memory_uid, is_paused=True))
    assert world.gateway.call(operations.open(token)).paused_at is not None


@each_row(
    ("body", "param"),
    [
        ({}, "user"),
        ({"user": ""}, "user"),
        ({"user": 7}, "user"),
        ({"user": "alice", "ttl": 60}, "ttl"),
        ({"user": "alice", "ttl_s": 59}, "ttl_s"),
        ({"user": "alice", "ttl_s": 86_401}, "ttl_s"),
        ({"user": "alice", "rights": ["see", "undo"]}, "rights.1"),
        ([], None),
    ],
)
def test_the_error_of_a_request_names_the_fault(world: World, body: Any, param: str | None) -> None:
    reply = ask(world, body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_an_unknown_right_or_profile_is_named_with_what_there_is(world: World) -> None:
    """The error did not say which rights there are, and blamed the user for a mistyped profile."""
    message = ask(world, {"user": "alice", "rights": ["read"]}).json()["error"]["message"]
    assert message.endswith("It is one of: see, correct, forget, export, pause.")
    message = ask(world, {"user": "alice", "profile": "other"}).json()["error"]["message"]
    assert message == "Nothing is remembered of this user yet in the profile other."


def test_a_user_is_named_as_in_requests(world: World) -> None:
    for name, status in ((" alice\t", 200), ("\t", 400), ("alice\x00", 400), ("a" * 10_000, 400), ("%", 404)):
        assert ask(world, {"user": name}).status_code == status, name


def test_a_link_is_under_the_host_that_was_asked(world: World) -> None:
    for host in (f"localhost:{world.gateway.port}", "localhost"):
        assert ask(world, {"user": "alice"}, host=host).json()["url"].startswith(f"http://{host}/ui/me/")
    assert ask(world, {"user": "alice"}, host="evil.example").status_code == 403


def test_a_body_that_cannot_be_read_is_refused(world: World) -> None:
    many = b'{"user":"alice","x":[%b0]}' % (b"0," * MAX_VALUES)
    for body, status in ((b"{", 400), (many, 413)):
        reply = httpx.post(f"{world.gateway.url}/v1/memory/links", content=body, timeout=PATIENCE_S)
        assert reply.status_code == status


def test_a_user_without_a_memory_gets_no_link(world: World) -> None:
    assert ask(world, {"user": "carol"}).status_code == 404
    assert ask(world, {"user": "alice", "profile": "other"}).status_code == 404


@pytest.mark.both
def test_a_link_is_of_its_keys_project_and_ends_with_its_key(world: World) -> None:
    keyless = token_of(ask(world, {"user": "alice"}))

    async def make(project: str) -> str:
        return (await world.store.keys.create(project, f"key of {project}"))[1]

    own, theirs = world.gateway.call(make("default")), world.gateway.call(make("other"))
    assert ask(world, {"user": "alice"}).status_code == 401
    assert ask(world, {"user": "alice"}, authorization=f"Bearer {theirs}").status_code == 404
    token = token_of(ask(world, {"user": "alice"}, authorization=f"Bearer {own}"))
    operations = links(world)
    assert world.gateway.call(operations.open(token)).scope.subject == "user:alice"
    with pytest.raises(UnknownId):
        world.gateway.call(operations.open(keyless))

    async def revoke() -> None:
        await world.store.keys.revoke("key of default")

    world.gateway.call(revoke())
    with pytest.raises(UnknownId):
        world.gateway.call(operations.open(token))


def test_a_link_ends_with_the_secret_that_made_it(world: World) -> None:
    """A key is given another secret where somebody may have read the present one, and made links with it."""
    keys, operations = world.store.keys, links(world)

    def made_with(secret: str) -> tuple[str, float]:
        reply = ask(world, {"user": "alice"}, authorization=f"Bearer {secret}")
        return token_of(reply), reply.json()["expires_at"]

    def opens(token: str) -> bool:
        try:
            return bool(world.gateway.call(operations.open(token)))
        except UnknownId:
            return False

    key, old = world.gateway.call(keys.create("default", "app", expires=world.clock.now + 600))
    before, end = made_with(old)
    assert end == pytest.approx(world.clock.now + 600, abs=1)
    _, new = world.gateway.call(keys.rotate(key.id, 100))
    late, end = made_with(old)
    assert end == pytest.approx(world.clock.now + 100, abs=1)
    after, _ = made_with(new)
    assert [opens(each) for each in (before, late, after)] == [True, True, True]
    world.clock.sleep(101)
    assert [opens(each) for each in (before, late, after)] == [False, False, True]
    world.gateway.call(keys.change(key.id, lambda key: replace(key, expires=world.clock.now + 10)))
    assert opens(after)
    world.clock.sleep(11)
    assert not opens(after)


def test_a_key_that_is_bound_or_an_operators_makes_no_link(world: World) -> None:
    create = world.store.keys.create
    for secret in (
        world.gateway.call(create("default", "bound", user="alice"))[1],
        world.gateway.call(create("", "operator", None, "operator"))[1],
    ):
        assert ask(world, {"user": "alice"}, authorization=f"Bearer {secret}").status_code == 403


@pytest.mark.both
def test_a_link_ends_when_its_key_is_bound_to_another_user(world: World) -> None:
    keys, operations = world.store.keys, links(world)
    key, secret = world.gateway.call(keys.create("default", "app"))
    alices, bobs = (
        token_of(ask(world, {"user": user}, authorization=f"Bearer {secret}")) for user in ("alice", "bob")
    )
    world.gateway.call(keys.change(key.id, lambda key: replace(key, user="bob")))
    with pytest.raises(UnknownId):
        world.gateway.call(operations.open(alices))
    assert world.gateway.call(operations.open(bobs)).scope.subject == "user:bob"


@pytest.mark.both
def test_a_forgotten_persons_link_ends(world: World) -> None:
    token = token_of(ask(world, {"user": "alice"}))
    bobs = token_of(ask(world, {"user": "bob"}))
    link = world.gateway.call(links(world).open(token))

    async def forget() -> None:
        agent = await world.store.agents.find(link.scope)
        assert agent is not None
        await world.store.forgetting.wipe(agent.id)

    world.gateway.call(forget())
    with pytest.raises(UnknownId):
        world.gateway.call(links(world).open(token))
    assert world.gateway.call(links(world).open(bobs)).scope.subject == "user:bob"
    assert token.encode() not in world.data()


def test_making_a_link_is_noted(world: World) -> None:
    ask(world, {"user": "alice"})

    async def read() -> list[tuple[str, str, str]]:
        return [(e.actor, e.action, e.what) for e in await world.store.audit.list_page(before=1 << 40)]

    assert world.gateway.call(read()) == [("link", "link_create", "")]
    key = world.gateway.call(make_key(world))
    ask(world, {"user": "alice"}, authorization=f"Bearer {key}")
    assert world.gateway.call(read())[0] == ("my app", "link_create", "")


async def make_key(world: World) -> str:
    return (await world.store.keys.create("default", "my app"))[1]
