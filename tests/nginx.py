"""nginx with a file of `deploy/`, before gateways of a test.

with run_nginx("nginx.postgres.conf", [gateway.port], tmp_path) as port:
    httpx.get(f"http://127.0.0.1:{port}/v1/models")
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import becomes
from tests.server import RawClient, held_port

DEPLOY = Path(__file__).parent.parent / "deploy"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def run_nginx(name: str, gateway_ports: Sequence[int], folder: Path) -> Iterator[int]:
    """Runs nginx without TLS, and yields its port. Skips the test where nginx is not installed.

    name: the name of the file in `deploy/`.
    gateway_ports: the ports of the gateways in the file's order; the last is also the port of those that follow.
    folder: the folder for access.log, error.log and nginx's own files.
    """
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    text = (DEPLOY / name).read_text("utf-8")

    def make_address(match: re.Match[str]) -> str:
        number = int(match[1] or 1)
        return f"server 127.0.0.1:{gateway_ports[min(number, len(gateway_ports)) - 1]}"

    text = re.sub(r"server (?:gateway(\d)|127\.0\.0\.1):8080", make_address, text)
    text = re.sub(r"ssl_certificate.*", "", text)
    with held_port() as port:
        text = re.sub(r"listen [^;]*;", f"listen 127.0.0.1:{port};", text)
        paths = " ".join(f"{each}_temp_path {folder}/{each};" for each in _TEMPORARY)
        config = folder / "nginx.conf"
        config.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}} "
            f"http {{ access_log {folder}/access.log; {paths} {text} }}"
        )
        with subprocess.Popen([nginx, "-p", str(folder), "-c", str(config)]) as process:

            def accepts() -> bool:
                assert process.poll() is None, (folder / "error.log").read_text("utf-8")
                try:
                    RawClient(port).socket.close()
                except OSError:
                    return False
                return True

            try:
                becomes(accepts)
                yield port
            finally:
                process.terminate()
