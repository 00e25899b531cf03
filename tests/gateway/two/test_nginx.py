"""`deploy/nginx.postgres.conf` before two gateways, of which either may go away."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.gateway.process import ROOT
from tests.gateway.two.people import messages_of
from tests.gateway.two.world import CHAT, World, _streamed
from tests.server import RawClient


@contextmanager
def nginx_before(world: World, folder: Path) -> Iterator[int]:
    """Yields the port of a server with the file of `deploy/`, whose gateways are the world's."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    text = (ROOT / "deploy/nginx.postgres.conf").read_text("utf-8")
    for number, gateway in enumerate(world.gateways, 1):
        assert gateway.process is not None
        text = text.replace(f"gateway{number}:8080", f"127.0.0.1:{gateway.process.port}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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
            until = time.monotonic() + 10
            while True:
                try:
                    RawClient(port).socket.close()
                    break
                except OSError:
                    assert time.monotonic() < until
                    time.sleep(0.02)
            yield port
        finally:
            running.terminate()


# nginx asks a gateway that did not answer again when its clock of whole seconds has gone beyond `fail_timeout`: 1 s.
AGAIN_S = 2.1


def say(port: int, messages: list[dict[str, str]]) -> tuple[str, str]:
    """Returns what was said, and what became of memory."""
    with RawClient(port) as client:
        body = {"model": "m", "user": "ann", "messages": messages, "stream": True}
        client.request("POST", CHAT, orjson.dumps(body), {"content-type": "application/json"})
        head = client.read_head()
        assert head.status == 200, head
        return _streamed(client)[0], head.headers["x-mnemogate-memory"]


def test_a_conversation_goes_on_whichever_gateway_is_there(tmp_path: Path, url: str) -> None:
    with World(tmp_path, gateways=2, url=url) as world, nginx_before(world, tmp_path) as port:
        past: list[tuple[str, str]] = []
        for number in range(12):
            if number == 4:
                world.gateways[0].kill()
            if number == 8:
                _start_again(world, 0)
                time.sleep(AGAIN_S)
                world.gateways[1].kill()
            text = f"qngx{number}z is in the box"
            said, memory = say(port, messages_of(past, text))
            assert (said, memory) == (f"Heard {text}.", "on")
            past.append((text, said))
        for path in ("/metrics", "/admin/users"):
            with RawClient(port) as client:
                client.request("GET", path)
                assert client.read_head().status == 404


def _start_again(world: World, number: int) -> None:
    """Starts a gateway at the port that nginx knows."""
    text = (world.folder / "nginx.conf").read_text()
    known = re.findall(r"server 127\.0\.0\.1:(\d+) ", text)[number]
    gateway = world.gateways[number]
    gateway.arguments = (*gateway.arguments, "--port", known)
    gateway.start()
