"""Who may ask: keys once there is one, this machine alone before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadRequest, NotAllowed, NotAuthenticated, Overloaded
from gateway.settings import UpstreamSettings
from gateway.web.auth import Caller, Guard
from storage.sql.store import Store
from tests.doubles.keys import BrokenKeys, NoKeys
from tests.doubles.upstream import StrictUpstream
from tests.rows import each_row
from tests.server import RunningGateway, serve, settings_for
from tests.stored import open_store

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def gateway(upstream: StrictUpstream, tmp_path: Path) -> Iterator[RunningGateway]:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    with serve(settings_for(upstream), open_here, admin_token="token") as running:
        yield running


def make_key(gateway: RunningGateway, project: str = "default") -> str:
    return gateway.call(gateway.app.services.store.keys.create(project, "test"))[1]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("GET", "/metrics"),
        ("GET", "/nope"),
        ("POST", "/admin/keys-list"),
    ],
)
def test_once_a_key_exists_every_route_demands_one(gateway: RunningGateway, method: str, path: str) -> None:
    make_key(gateway)
    for headers in (
        {},
        {"authorization": "Bearer mg-wrong"},
        {"authorization": "Basic mg-x"},
        {"x-mnemogate-key": ""},
    ):
        reply = gateway.ask(method, path, b"{}", headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")


def test_a_caller_with_the_providers_key_alone_learns_which_key_is_missing(gateway: RunningGateway) -> None:
    """An application that has worked without keys sends this one from then on."""
    make_key(gateway)
    said = []
    for key in ("sk-callers-own", "none", "mg-wrong"):
        said.append(gateway.post(HELLO, {"authorization": f"Bearer {key}"}).error["message"])
    assert ["demands a key of its own" in each for each in said] == [True, True, False]


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_health_never_demands_a_key(gateway: RunningGateway, path: str) -> None:
    make_key(gateway)
    assert gateway.ask("GET", path).status == 200


def test_a_key_opens_and_does_not_go_upstream(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    key = make_key(gateway, "blue")
    assert gateway.post(HELLO, {"authorization": f"Bearer {key}"}).status == 200
    assert key not in repr(upstream.last.headers)
    assert "authorization" not in upstream.last.headers
    assert gateway.last_line()["project"] == "blue"


def test_with_a_key_of_its_own_header_authorization_is_the_callers(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    key = make_key(gateway)
    headers = {"x-mnemogate-key": key, "authorization": "Bearer sk-callers"}
    assert gateway.post(HELLO, headers).status == 200
    assert upstream.last.headers["authorization"] == "Bearer sk-callers"
    assert key not in repr(upstream.last.headers)


def test_a_key_twice_goes_nowhere(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    key = make_key(gateway)
    assert gateway.post(HELLO, {"x-mnemogate-key": key, "authorization": f"Bearer {key}"}).status == 200
    assert key not in repr(upstream.last.headers)


def test_a_revoked_key_opens_nothing_from_then_on(gateway: RunningGateway) -> None:
    key = make_key(gateway)
    assert gateway.post(HELLO, {"authorization": f"Bearer {key}"}).status == 200
    gateway.call(gateway.app.services.store.keys.revoke("test"))
    assert gateway.post(HELLO, {"authorization": f"Bearer {key}"}).status == 401
    assert gateway.post(HELLO).status == 401  # the last key taken back does not open the doors


@each_row(
    ("headers", "status"),
    [
        ({"host": "localhost:8080"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "evil.example"}, 403),  # DNS rebinding
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "[::1].evil.example"}, 403),
        ({"host": "localhost:80.evil.example"}, 403),
        ({"host": "localhost", "origin": "http://localhost:3000"}, 200),
        ({"host": "localhost", "origin": "http://[::1]:3000"}, 200),
        ({"host": "localhost", "origin": "http://localhost:@evil.example"}, 403),
        ({"host": "localhost", "origin": "https://evil.example"}, 403),  # a page that posts blindly
        ({"host": "localhost", "origin": "null"}, 403),
    ],
)
def test_without_keys_only_this_machines_names_are_answered(
    gateway: RunningGateway, headers: dict[str, str], status: int
) -> None:
    assert gateway.post(HELLO, headers).status == status


def test_nothing_is_said_to_pages_of_other_origins(gateway: RunningGateway) -> None:
    reply = gateway.post(HELLO, {"origin": "http://localhost:3000"})
    assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_the_admin_route_wants_its_token(gateway: RunningGateway) -> None:
    assert gateway.ask("POST", "/admin/keys-list", b"{}", {"x-mnemogate-admin": "wrong"}).status == 401
    assert gateway.ask("POST", "/admin/keys-list", b"{}", {"x-mnemogate-admin": "token"}).json == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/admin/keys-revoke", b'{"key":"nobody"}', 400),
        ("/admin/keys-create", b"{}", 400),
        ("/admin/keys-create", b"[]", 400),
        ("/admin/no-such", b"{}", 404),
    ],
)
def test_admin_errors_are_answers(gateway: RunningGateway, path: str, body: bytes, status: int) -> None:
    assert gateway.ask("POST", path, body, {"x-mnemogate-admin": "token"}).status == status


async def test_a_store_that_cannot_answer_stops_others_but_not_this_machine() -> None:
    assert await Guard(BrokenKeys()).admit([(b"host", b"localhost")]) == Caller()
    guard = Guard(BrokenKeys(), serves_without_store=False)
    with pytest.raises(NotAuthenticated):
        await guard.admit([])
    with pytest.raises(Overloaded):
        await guard.admit([(b"authorization", b"Bearer mg-x")])


async def test_a_gateway_with_keys_demands_one_while_the_store_fails() -> None:
    class Failing(BrokenKeys):
        works = True

        async def has_any(self) -> bool:
            return self.works or await super().has_any()

    keys = Failing()
    guard = Guard(keys)
    assert await guard.demands_key()
    keys.works = False
    assert await guard.demands_key()


async def test_the_rights_to_read_metrics_are_remembered_while_the_store_fails() -> None:
    class Failing(BrokenKeys):
        works = False

        async def has_metrics_key(self) -> bool:
            return False if self.works else await super().has_metrics_key()

    keys = Failing()
    guard = Guard(keys, is_key_demanded=True)
    with pytest.raises(Overloaded):
        await guard.check_metrics(Caller())
    keys.works = True
    await guard.check_metrics(Caller())
    keys.works = False
    await guard.check_metrics(Caller())


@pytest.mark.parametrize("name", [b"authorization", b"x-mnemogate-key", b"host", b"origin"])
async def test_a_header_with_two_values_is_refused(name: bytes) -> None:
    guard = Guard(NoKeys())
    same = [(name, b"http://localhost" if name == b"origin" else b"localhost")] * 2
    assert isinstance(await guard.admit(same), Caller)
    with pytest.raises(BadRequest, match="sent twice"):
        await guard.admit([*same, (name, b"127.0.0.1")])


async def test_an_allowed_host_is_answered_without_keys() -> None:
    guard = Guard(NoKeys(), hosts=("Box.local",))
    assert await guard.admit([(b"host", b"box.local:8080")]) == Caller()
    with pytest.raises(NotAllowed):
        await guard.admit([(b"host", b"other.local")])


def test_an_upstream_with_its_own_key_never_sees_the_callers(upstream: StrictUpstream) -> None:
    own = UpstreamSettings("up", base_url=upstream.base_url, api_key="sk-own")
    with serve(settings_for(upstream, upstreams=(own,))) as gateway:
        gateway.post(HELLO, {"authorization": "Bearer sk-callers"})
    assert upstream.last.headers["authorization"] == "Bearer sk-own"
