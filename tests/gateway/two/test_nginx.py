"""nginx with `deploy/nginx.postgres.conf` before two gateways, either of which may end."""

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
from tests.gateway.two.deployment import CHAT, Deployment, read_stream
from tests.gateway.two.simulated_users import PastTurn, make_messages
from tests.patience import PATIENCE_S
from tests.server import RawClient, RawReply, held_port


@contextmanager
def run_nginx(deployment: Deployment, folder: Path, port: int) -> Iterator[None]:
    """Runs nginx at a port with the file of `deploy/`, before the gateways of a deployment."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    text = (ROOT / "deploy/nginx.postgres.conf").read_text("utf-8")
    for number, gateway in enumerate(deployment.gateways, 1):
        assert gateway.process is not None
        text = text.replace(f"gateway{number}:8080", f"127.0.0.1:{gateway.process.port}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    temp_paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}} "
        f"http {{ access_log off; {temp_paths} {text} }}"
    )
    with subprocess.Popen([nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as process:
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
            process.terminate()


def chat(port: int, messages: list[dict[str, str]]) -> tuple[str, str]:
    """Sends a chat. Returns the text of the reply, and the gateway's report on its memory."""
    with RawClient(port) as client:
        body = {"model": "m", "user": "ann", "messages": messages, "stream": True}
        client.request("POST", CHAT, orjson.dumps(body), {"content-type": "application/json"})
        head = client.read_head()
        assert head.status == 200, head
        return read_stream(client)[0], head.headers["x-mnemogate-memory"]


def test_a_conversation_continues_while_one_of_the_gateways_runs(tmp_path: Path, url: str) -> None:
    with (
        Deployment(tmp_path, gateways=2, url=url) as deployment,
        held_port() as port,
        run_nginx(deployment, tmp_path, port),
        ExitStack() as stack,
    ):
        past: list[PastTurn] = []
        for number in range(12):
            if number == 4:
                assert deployment.gateways[0].process is not None
                known = deployment.gateways[0].process.port
                deployment.gateways[0].kill()
                stack.enter_context(held_port(known))
            if number == 8:
                deployment.gateways[0].arguments += ("--port", str(known))
                deployment.gateways[0].start()
                deployment.gateways[1].kill()
            text = f"qngx{number}z is in the box"
            reply, memory = chat(port, make_messages(past, text))
            assert (reply, memory) == (f"Heard {text}.", "on")
            past.append(PastTurn(text, reply))
        for path in ("/metrics", "/admin/users"):
            with RawClient(port) as client:
                client.request("GET", path)
                assert client.read_head().status == 404


def test_a_gateway_whose_machine_is_gone_loses_no_request(tmp_path: Path, url: str) -> None:
    """Nothing refuses the connection: it is not answered, as at the address of a container that was stopped."""
    with (
        Deployment(tmp_path, gateways=2, url=url) as deployment,
        held_port() as port,
        run_nginx(deployment, tmp_path, port),
        ExitStack() as stack,
    ):
        assert deployment.gateways[0].process is not None
        known = deployment.gateways[0].process.port
        deployment.gateways[0].kill()
        gone = stack.enter_context(socket.socket())
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        gone.bind(("127.0.0.1", known))
        gone.listen(0)
        for _ in range(3):  # more than wait to be accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", known))
        past: list[PastTurn] = []
        for number in range(4):
            text = f"qgone{number}z is in the box"
            reply, memory = chat(port, make_messages(past, text))
            assert (reply, memory) == (f"Heard {text}.", "on")
            past.append(PastTurn(text, reply))


def test_an_operator_stays_signed_in(tmp_path: Path, url: str) -> None:
    with (
        Deployment(tmp_path, gateways=2, url=url) as deployment,
        held_port() as port,
        run_nginx(deployment, tmp_path, port),
    ):
        environ = deployment.database.environ
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
        Deployment(tmp_path, gateways=2, url=url) as deployment,
        held_port() as port,
        run_nginx(deployment, tmp_path, port),
    ):
        with connect(f"ws://127.0.0.1:{port}/v1/responses", proxy=None) as socket:
            socket.send('{"type":"response.steer","input":"Faster!","previous_response_id":"resp_1"}')
            assert orjson.loads(socket.recv(PATIENCE_S))["type"] == "response.steer.failed"
        assert chat(port, make_messages([], "Hello."))[1] == "on"
