"""Keys and the command line against a real process: one owner of the file, one door, and what passes through it."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.routing import Route

from gateway.run.admin.command_line.serving import AdminFile
from gateway.settings import MemorySettings, UpstreamSettings
from gateway.web.admin import ADMIN_PREFIX
from storage.sql.store import Store
from storage.sqlite.lock import find_lock_owner
from tests.doubles.upstream import StrictUpstream
from tests.gateway.process import Process, command, serving
from tests.patience import PATIENCE_S
from tests.server import RunningGateway, serve, settings_for
from tests.stored import open_store, rows, url_of

CHAT = "/v1/chat/completions"
FACT = "My cat is called Miso and she hates thunderstorms."
SETTINGS = '[database]\npath = "m.db"\n'
OPEN = {"/", "/api/hello", "/health", "/health/ready", "/v1/health", "/v1/health/"}


def ask(gateway: Process | RunningGateway, text: str = "Hi", headers: dict[str, str] | None = None) -> int:
    body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": text}]}
    return gateway.ask("POST", CHAT, json.dumps(body).encode(), headers).status


# -- the command line, with and without a server


def test_memory_show_says_which_profile_has_a_memory_if_this_one_has_none(tmp_path: Path) -> None:
    profile = '[[profiles]]\nname = "helper"\nmodel = "m"\n'
    with serving(tmp_path, settings=SETTINGS + profile) as gateway:
        body = {"model": "agent/helper", "user": "alice", "messages": [{"role": "user", "content": FACT}]}
        assert gateway.ask("POST", CHAT, json.dumps(body).encode()).status == 200
        shown = command("memory", "show", "--user", "alice", where=tmp_path).stdout
        assert shown.splitlines() == [
            "Nothing is remembered for user:alice in project 'default', profile 'default'.",
            "Profile 'helper' has a memory: --profile helper",
        ]
        assert "--profile" not in command("memory", "show", "--user", "bob", where=tmp_path).stdout
        found = command("memory", "show", "--user", "alice", "--profile", "helper", where=tmp_path)
        assert "Miso" in found.stdout
        # What is exported of a person is one memory of several: a request for all must be refused.
        alone = command("memory", "export", "--user", "alice", "--profile", "helper", where=tmp_path)
        assert (alone.returncode, alone.stderr) == (0, "")
        assert ask(gateway) == 200
        one = command("memory", "export", "--user", "alice", where=tmp_path)
        assert one.stdout
        told = "This is one memory of several; the others have a profile of their own: --profile=helper\n"
        assert one.stderr == told


def test_the_first_key_can_come_from_the_environment(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, which listens to others from its first second and in which nobody can run a command first."""
    first, second = ("mg-" + text * 3 for text in ("0123456789abcdef", "abcdefghijklmnop"))
    arguments = ("--host", "0.0.0.0", "--upstream", upstream.base_url)
    for key, others in ((first, second), (first, second), (second, first)):
        monkeypatch.setenv("MNEMOGATE_KEY", key)
        with serving(tmp_path, *arguments, settings=SETTINGS) as gateway:
            assert ask(gateway) == 401
            assert ask(gateway, headers={"authorization": f"Bearer {others}"}) == 401
            assert ask(gateway, headers={"authorization": f"Bearer {key}"}) == 200
    listed = command("keys", "list", where=tmp_path).stdout.splitlines()
    assert [line.split("\t")[2:5] for line in listed] == [
        ["default", "server.key", "revoked"],
        ["default", "server.key", "active"],
    ]
    operator = "mg-" + "qrstuvwxyz012345" * 3
    monkeypatch.setenv("MNEMOGATE_OPERATOR_KEY", operator)
    shown = command("check-config", where=tmp_path).stdout
    assert second not in shown
    assert operator not in shown
    monkeypatch.setenv("MNEMOGATE_KEY", first)
    with serving(tmp_path, *arguments, settings=SETTINGS) as gateway:
        assert ask(gateway, headers={"authorization": f"Bearer {first}"}) == 401
        assert "was revoked or rotated, so it is not installed again" in gateway.log.read_text()
        bearer = {"authorization": f"Bearer {operator}"}
        assert gateway.ask("GET", "/v1/manage/usage", headers=bearer).status == 200
        assert ask(gateway, headers=bearer) == 403


@pytest.mark.sqlite
def test_a_damaged_database_does_not_open_the_door(upstream: StrictUpstream, tmp_path: Path) -> None:
    made = command("keys", "create", "--db", "m.db", where=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "m.db").write_bytes(b"\xff" * 8192)
    with serving(tmp_path, "--upstream", upstream.base_url, settings=SETTINGS) as gateway:
        assert ask(gateway) == 401
        assert ask(gateway, headers={"authorization": f"Bearer {made.stdout.strip()}"}) == 503
    assert not upstream.chats


def test_every_command_works_through_the_owner_and_without_one(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serving(tmp_path, "--upstream", upstream.base_url, settings=SETTINGS) as gateway:
        assert ask(gateway, FACT) == 200
        shown = command(
            "memory", "show", "--user", "alice", "--query", "What is my cat called?", where=tmp_path
        )
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count("Miso") >= 2  # among the recent messages, and as what would be recalled
        unknown = command("memory", "show", "--user", "bob", where=tmp_path)
        assert "Miso" not in unknown.stdout
        made = command("keys", "create", "--name", "ann", where=tmp_path)
        assert made.returncode == 0, made.stderr
        key = {"authorization": f"Bearer {made.stdout.strip()}"}
        assert [ask(gateway), ask(gateway, headers=key)] == [401, 200]
        # The command line has its own door: it still works, though it has no key.
        listed = command("keys", "list", where=tmp_path)
        assert "ann\tactive" in listed.stdout
        gateway.kill()

    if url_of(tmp_path / "m.db") is None:
        assert find_lock_owner(tmp_path / "m.db") is None
        assert (tmp_path / "m.db.admin").exists()  # left over: nobody answers there any more
    assert "ann\tactive" in command("keys", "list", where=tmp_path).stdout
    shown = command("memory", "show", "--user", "alice", where=tmp_path)
    assert "Miso" in shown.stdout
    other = command("keys", "create", "--name", "bert", where=tmp_path)
    assert re.fullmatch(r"mg-[\w-]{40,}", other.stdout.strip())
    assert command("keys", "revoke", "--yes", "ann", where=tmp_path).returncode == 0

    with serving(tmp_path, "--upstream", upstream.base_url, settings=SETTINGS) as gateway:
        bert = {"x-mnemogate-key": other.stdout.strip()}
        assert [ask(gateway), ask(gateway, headers=key), ask(gateway, headers=bert)] == [401, 401, 200]
        assert command("keys", "revoke", "--yes", "bert", where=tmp_path).returncode == 0
        assert ask(gateway, headers=bert) == 401
        assert command("keys", "revoke", "--yes", "bert", where=tmp_path).returncode == 1


@pytest.mark.sqlite
def test_a_second_server_is_refused_by_name_and_after_a_kill_the_next_one_starts(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with serving(tmp_path, "--upstream", upstream.base_url, settings=SETTINGS) as gateway:
        (tmp_path / "other-name.db").symlink_to("m.db")
        for name in ("m.db", "./m.db", "other-name.db"):
            refused = command("serve", "--port", "0", "--db", name, where=tmp_path)
            assert refused.returncode == 1
            assert f"process {gateway.child.pid}" in refused.stderr
            assert f"127.0.0.1:{gateway.port}" in refused.stderr
            assert refused.stdout == ""
        assert ask(gateway) == 200  # the first has not noticed
        assert command("keys", "list", where=tmp_path).returncode == 0
        gateway.kill()
    with serving(tmp_path, "--upstream", upstream.base_url, settings=SETTINGS) as gateway:
        assert gateway.ask("GET", "/health/ready").json == {"status": "ok", "store": "ok"}
        assert ask(gateway) == 200


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    (tmp_path / "mnemogate.toml").write_text(SETTINGS)
    refused = command("serve", "--port", "0", "--host", "0.0.0.0", where=tmp_path)
    assert refused.returncode == 2
    assert "mnemogate keys create" in refused.stderr


# -- the door


@pytest.fixture
def gateway(upstream: StrictUpstream, tmp_path: Path) -> Iterator[RunningGateway]:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    # No deadline of a busy machine's shall decide what a test finds.
    settings = settings_for(upstream, memory=MemorySettings(recall_deadline_ms=50_000))
    with serve(settings, open_here, admin_token="token") as running:
        yield running


def make_key(gateway: RunningGateway, project: str = "default") -> str:
    return gateway.call(gateway.app.services.store.keys.create(project, "test"))[1]


def routes_of(gateway: RunningGateway) -> list[tuple[str, str]]:
    """Every route there is, from the application itself, so that a new one is asked for its key too."""
    found = []
    for route in gateway.app._router.routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{[^}]*\}", "keys-list", route.path)
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


def test_once_a_key_exists_every_route_but_health_demands_one(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    routes = routes_of(gateway)
    assert {CHAT, "/v1/models", "/metrics", *OPEN} <= {path for _, path in routes}
    key = make_key(gateway)
    wrong: list[dict[str, str]] = [
        {"authorization": "Bearer mg-wrong"},
        {"authorization": "Bearer sk-callers-own"},
        {"authorization": f"Basic {key}"},
        {"authorization": key},
        {"x-api-key": key[:-1]},
        {"x-mnemogate-key": key[:-1]},
        {"x-mnemogate-key": "", "authorization": f"Bearer {key}"},
    ]
    for number, (method, path) in enumerate(routes):
        with gateway.connect() as client:
            # Each route without a key, and with one that is wrong in one of the ways.
            for headers in ({}, wrong[number % len(wrong)]):
                client.request(method, path, b"{}" if method == "POST" else None, headers)
                status = (client.read_head() if method == "HEAD" else client.read_reply()).status
                assert status == (200 if path in OPEN else 401), (method, path, headers)
    assert upstream.requests == []
    for number, (method, path) in enumerate(routes):
        if not path.startswith(ADMIN_PREFIX):
            header = ("x-mnemogate-key", "x-api-key")[number % 2]
            with gateway.connect() as client:
                client.request(method, path, b"{}" if method == "POST" else None, {header: key})
                assert client.read_head().status != 401, (method, path, header)


def test_a_key_has_a_memory_mode_of_its_own(gateway: RunningGateway) -> None:
    """Programs and evaluations want no memory and cannot all set a header; a header that is set counts more."""
    made = {
        mode: gateway.call(gateway.app.services.store.keys.create("default", "k", mode))[1]
        for mode in ("off", "read", "on")
    }
    made["on "] = make_key(gateway)
    for number, (mode, key) in enumerate(made.items()):
        # Words of its own, since what was asked off the record stays so when it is asked again.
        body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": f"{FACT} {number}"}]}
        headers = {"authorization": f"Bearer {key}"}
        assert gateway.post(body, headers).headers["x-mnemogate-memory"] == mode.strip()
        asked = gateway.post(body, {**headers, "x-mnemogate-memory": "read"})
        assert asked.headers["x-mnemogate-memory"] == "read"


def test_a_key_for_metrics_opens_nothing_else(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    key = gateway.call(gateway.app.services.store.keys.create("default", "prometheus", None, "metrics"))[1]
    headers = {"authorization": f"Bearer {key}"}
    assert gateway.ask("GET", "/metrics", None, headers).status == 200
    assert ask(gateway, headers=headers) == 403
    for method, path in routes_of(gateway):
        if path not in {*OPEN, "/metrics"} and not path.startswith(ADMIN_PREFIX):
            with gateway.connect() as client:
                client.request(method, path, b"{}" if method == "POST" else None, headers)
                assert client.read_head().status == 403, path
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("metrics_keys", "before", "after"),
    [
        ("auto", 200, 403),  # once there is a key for it, others do not open it
        ("any", 200, 200),
        ("metrics", 403, 403),
    ],
)
def test_the_settings_name_the_keys_that_open_metrics(
    upstream: StrictUpstream, tmp_path: Path, metrics_keys: Any, before: int, after: int
) -> None:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    settings = settings_for(upstream)
    settings = replace(settings, server=replace(settings.server, metrics_keys=metrics_keys))
    with serve(settings, open_here) as gateway:

        def scrape(key: str) -> int:
            return gateway.ask("GET", "/metrics", None, {"authorization": f"Bearer {key}"}).status

        assert gateway.ask("GET", "/metrics").status == 200  # without keys this machine reads it
        application = make_key(gateway)
        assert gateway.ask("GET", "/metrics").status == 401
        assert scrape(application) == before
        own, plain = gateway.call(
            gateway.app.services.store.keys.create("default", "prometheus", None, "metrics")
        )
        assert (scrape(application), scrape(plain)) == (after, 200)
        gateway.call(gateway.app.services.store.keys.revoke(str(own.id)))
        assert (scrape(application), scrape(plain)) == (after, 401)


def test_what_is_not_admitted_leaves_no_trace(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    make_key(gateway)
    assert ask(gateway, FACT) == 401
    assert ask(gateway, FACT, {"authorization": "Bearer mg-wrong"}) == 401

    assert gateway.call(rows(gateway.app.services.store, "SELECT count(*) FROM agents")) == [(0,)]
    assert upstream.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_the_callers_own_credential_goes_on_and_the_gateways_key_never(
    gateway: RunningGateway, upstream: StrictUpstream, stream: bool
) -> None:
    key = make_key(gateway)
    body: dict[str, Any] = {"model": "m", "user": "alice", "stream": stream}
    body["messages"] = [{"role": "user", "content": "Hi"}]
    own = "Bearer sk-callers-own"
    ways: list[tuple[dict[str, str], str | None]] = [
        ({"x-mnemogate-key": key, "authorization": own}, own),
        ({"x-mnemogate-key": key}, None),
        ({"authorization": f"Bearer {key}"}, None),
        ({"x-mnemogate-key": key, "authorization": f"Bearer {key}"}, None),
        ({"x-mnemogate-key": key, "authorization": own, "x-odd": key, "cookie": f"key={key}"}, own),
    ]
    for headers, credential in ways:
        assert gateway.post(body, headers).status == 200
        seen = upstream.last
        assert seen.headers.get("authorization") == credential
        assert key not in repr(seen.headers)
        assert key.encode() not in seen.body


def test_an_upstream_with_a_key_is_called_with_that_one(upstream: StrictUpstream, tmp_path: Path) -> None:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    own = UpstreamSettings("up", base_url=upstream.base_url, api_key="sk-of-the-gateway")
    with serve(settings_for(upstream, upstreams=(own,)), open_here) as gateway:
        key = make_key(gateway)
        headers = {"x-mnemogate-key": key, "authorization": "Bearer sk-callers-own"}
        assert ask(gateway, headers=headers) == 200
    assert upstream.last.headers["authorization"] == "Bearer sk-of-the-gateway"
    assert "sk-callers-own" not in repr(upstream.last.headers)


def test_keys_of_two_projects_are_two_memories(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    blue, red = ({"x-mnemogate-key": make_key(gateway, project)} for project in ("blue", "red"))
    assert ask(gateway, FACT, blue) == 200
    assert ask(gateway, "What is the name of my cat?", red) == 200
    assert "Miso" not in upstream.last.body.decode()
    assert ask(gateway, "What is the name of my cat?", blue) == 200
    assert "Miso" in upstream.last.body.decode()


# -- when the store or the owner is not what it should be


def test_a_known_key_opens_while_the_store_is_down_and_an_unknown_one_waits(
    gateway: RunningGateway, upstream: StrictUpstream
) -> None:
    key = {"x-mnemogate-key": make_key(gateway)}
    assert ask(gateway, headers=key) == 200
    gateway.call(gateway.app.services.store.close())
    assert ask(gateway, headers=key) == 200
    assert ask(gateway, headers={"x-mnemogate-key": "mg-never-seen"}) == 503
    assert ask(gateway, headers={"authorization": "Bearer sk-callers-own"}) == 401
    assert ask(gateway) == 401
    assert len(upstream.requests) == 2


@pytest.mark.sqlite
def test_the_command_line_says_what_is_wrong_with_the_store(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serving(tmp_path, "--upstream", upstream.base_url, settings=SETTINGS):
        other = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        failed = command("keys", "create", where=tmp_path)
        other.execute("ROLLBACK")
        other.close()
        assert failed.returncode == 1
        assert "locked" in failed.stderr
        assert failed.stdout == ""


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n{}"]
)
def test_another_server_on_the_port_of_a_killed_one_does_no_harm(tmp_path: Path, answer: bytes) -> None:
    (tmp_path / "mnemogate.toml").write_text(SETTINGS)
    with socket.create_server(("127.0.0.1", 0)) as other:

        def speak() -> None:
            with suppress(OSError), other.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # or what is unread would be answered with a reset
                    pass

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        admin = AdminFile(str(tmp_path / "m.db"))
        admin.write(f"http://127.0.0.1:{other.getsockname()[1]}")
        made = command("keys", "create", where=tmp_path)
        assert made.returncode == 0, made.stderr
        assert made.stdout.startswith("mg-")
        other.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)
