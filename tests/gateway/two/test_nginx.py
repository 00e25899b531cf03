"""nginx with `deploy/nginx.postgres.conf` before two gateways, either of which may end."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
from websockets.sync.client import connect

from tests.gateway.process import command
from tests.gateway.two.deployment import CHAT, Deployment, Gateway, read_stream
from tests.gateway.two.simulated_users import PastTurn, make_messages
from tests.nginx import run_nginx
from tests.patience import PATIENCE_S
from tests.server import RawClient, RawReply, held_port


@contextmanager
def serve_behind_nginx(folder: Path, url: str) -> Iterator[tuple[Deployment, int]]:
    """Yields two gateways over a database, and the port of nginx before them."""
    with Deployment(folder, gateways=2, url=url) as deployment:
        ports = [find_port(gateway) for gateway in deployment.gateways]
        with run_nginx("nginx.postgres.conf", ports, folder) as port:
            yield deployment, port


def find_port(gateway: Gateway) -> int:
    assert gateway.process is not None
    return gateway.process.port


def chat(port: int, messages: list[dict[str, str]]) -> tuple[str, str]:
    """Sends a chat. Returns the text of the reply, and the gateway's report on its memory."""
    with RawClient(port) as client:
        body = {"model": "m", "user": "ann", "messages": messages, "stream": True}
        client.request("POST", CHAT, orjson.dumps(body), {"content-type": "application/json"})
        head = client.read_head()
        assert head.status == 200, head
        return read_stream(client)[0], head.headers["x-mnemogate-memory"]


def test_a_conversation_continues_while_one_of_the_gateways_runs(tmp_path: Path, url: str) -> None:
    with serve_behind_nginx(tmp_path, url) as (deployment, port), ExitStack() as stack:
        past: list[PastTurn] = []
        for number in range(12):
            if number == 4:
                known_port = find_port(deployment.gateways[0])
                deployment.gateways[0].kill()
                stack.enter_context(held_port(known_port))
            if number == 8:
                deployment.gateways[0].arguments += ("--port", str(known_port))
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
    with serve_behind_nginx(tmp_path, url) as (deployment, port), ExitStack() as stack:
        known_port = find_port(deployment.gateways[0])
        deployment.gateways[0].kill()
        deaf_socket = stack.enter_context(socket.socket())
        deaf_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deaf_socket.bind(("127.0.0.1", known_port))
        deaf_socket.listen(0)
        for _ in range(3):  # more than the queue of the socket has room for
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", known_port))
        past: list[PastTurn] = []
        for number in range(4):
            text = f"qgone{number}z is in the box"
            reply, memory = chat(port, make_messages(past, text))
            assert (reply, memory) == (f"Heard {text}.", "on")
            past.append(PastTurn(text, reply))


def test_an_operator_stays_signed_in(tmp_path: Path, url: str) -> None:
    with serve_behind_nginx(tmp_path, url) as (deployment, port):
        environ = deployment.database.environ
        creation = command("keys", "create", "--operator", where=tmp_path, environ=environ)
        (key,) = re.findall(r"mg-\S+", creation.stdout)

        def request(method: str, path: str, body: bytes | None, **headers: str) -> RawReply:
            with RawClient(port) as client:
                client.request(method, f"/ui/{path}", body, {"host": f"127.0.0.1:{port}", **headers})
                return client.read_reply()

        form = {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"}
        login = request("POST", "login", f"key={key}&next=".encode(), **form)
        assert login.status == 303, login.body
        cookie = login.headers["set-cookie"].partition(";")[0]
        assert {request("GET", "people", None, cookie=cookie).status for _ in range(8)} == {200}


def test_a_websocket_passes(tmp_path: Path, url: str) -> None:
    with serve_behind_nginx(tmp_path, url) as (_, port):
        address = f"ws://127.0.0.1:{port}/v1/responses"
        with connect(address, proxy=None, open_timeout=PATIENCE_S, close_timeout=PATIENCE_S) as websocket:
            websocket.send('{"type":"response.steer","input":"Faster!","previous_response_id":"resp_1"}')
            assert orjson.loads(websocket.recv(PATIENCE_S))["type"] == "response.steer.failed"
        assert chat(port, make_messages([], "Hello."))[1] == "on"
