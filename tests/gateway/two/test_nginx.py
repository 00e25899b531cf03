"""`deploy/nginx.postgres.conf` before two gateways, of which either may go away."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
import pytest
from websockets.sync.client import connect

from tests.gateway.process import ROOT, command
from tests.gateway.two.people import messages_of
from tests.gateway.two.world import CHAT, World, _streamed
from tests.patience import PATIENCE_S
from tests.server import RawClient, RawReply, held_port


@contextmanager
def nginx_before(world: World, folder: Path, port: int) -> Iterator[None]:
    """Serves at a port with the file of `deploy/`, whose gateways are the world's."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    text = (ROOT / "deploy/nginx.postgres.conf").read_text("utf-8")
    for number, gateway in enumerate(world.gateways, 1):
        assert gateway.process is not None
        text = text.replace(f"gateway{number}:8080", f"127.0.0.1:{gateway.process.port}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    places = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}} "
        f"http {{ access_log off; {places} {text} }}"
    )
    with subprocess.Popen([nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as running:
        try:
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    RawClient(port).socket.close()
                    break
                except OSError:
                    assert time.monotonic() < until
                    time.sleep(0.02)
            yield
        finally:
            running.terminate()


def say(port: int, messages: list[dict[str, str]]) -> tuple[str, str]:
    """Returns what was said, and what became of memory."""
    with RawClient(port) as client:
        body = {"model": "m", "user": "ann", "messages": messages, "stream": True}
        client.request("POST", CHAT, orjson.dumps(body), {"content-type": "application/json"})
        head = client.read_head()
        assert head.status == 200, head
        return _streamed(client)[0], head.headers["x-mnemogate-memory"]


def test_a_conversation_goes_on_whichever_gateway_is_there(tmp_path: Path, url: str) -> None:
    with (
        World(tmp_path, gateways=2, url=url) as world,
        held_port() as port,
        nginx_before(world, tmp_path, port),
        ExitStack() as stack,
    ):
        past: list[tuple[str, str]] = []
        for number in range(12):
            if number == 4:
                assert world.gateways[0].process is not None
                known = world.gateways[0].process.port
                world.gateways[0].kill()
                stack.enter_context(held_port(known))
            if number == 8:
                world.gateways[0].arguments += ("--port", str(known))
                world.gateways[0].start()
                world.gateways[1].kill()
            text = f"qngx{number}z is in the box"
            said, memory = say(port, messages_of(past, text))
            assert (said, memory) == (f"Heard {text}.", "on")
            past.append((text, said))
        for path in ("/metrics", "/admin/users"):
            with RawClient(port) as client:
                client.request("GET", path)
                assert client.read_head().status == 404


def test_a_gateway_whose_machine_is_gone_loses_no_request(tmp_path: Path, url: str) -> None:
    """Nothing refuses the connection: it is not answered, as at the address of a container that was stopped."""
    with (
        World(tmp_path, gateways=2, url=url) as world,
        held_port() as port,
        nginx_before(world, tmp_path, port),
        ExitStack() as stack,
    ):
        assert world.gateways[0].process is not None
        known = world.gateways[0].process.port
        world.gateways[0].kill()
        gone = stack.enter_context(socket.socket())
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        gone.bind(("127.0.0.1", known))
        gone.listen(0)
        for _ in range(3):  # more than wait to be accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", known))
        past: list[tuple[str, str]] = []
        for number in range(4):
            text = f"qgone{number}z is in the box"
            said, memory = say(port, messages_of(past, text))
            assert (said, memory) == (f"Heard {text}.", "on")
            past.append((text, said))


def test_an_operator_stays_signed_in(tmp_path: Path, url: str) -> None:
    with (
        World(tmp_path, gateways=2, url=url) as world,
        held_port() as port,
        nginx_before(world, tmp_path, port),
    ):
        environ = world.place.environ
        made = command("keys", "create", "--operator", where=tmp_path, environ=environ)
        (key,) = re.findall(r"mg-\S+", made.stdout)

        def ask(method: str, path: str, body: bytes | None, **headers: str) -> RawReply:
            with RawClient(port) as client:
                client.request(method, f"/ui/{path}", body, {"host": f"127.0.0.1:{port}", **headers})
                return client.read_reply()

        form = {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"}
        signed_in = ask("POST", "login", f"key={key}&next=".encode(), **form)
        assert signed_in.status == 303, signed_in.body
        cookie = signed_in.headers["set-cookie"].partition(";")[0]
        assert {ask("GET", "people", None, cookie=cookie).status for _ in range(8)} == {200}


def test_a_websocket_passes(tmp_path: Path, url: str) -> None:
    with (
        World(tmp_path, gateways=2, url=url) as world,
        held_port() as port,
        nginx_before(world, tmp_path, port),
    ):
        with connect(f"ws://127.0.0.1:{port}/v1/responses", proxy=None) as socket:
            socket.send('{"type":"response.steer","input":"Faster!","previous_response_id":"resp_1"}')
            assert orjson.loads(socket.recv(PATIENCE_S))["type"] == "response.steer.failed"
        assert say(port, messages_of([], "Hello."))[1] == "on"
