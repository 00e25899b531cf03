"""A PgBouncer in transaction mode before a PostgreSQL, with fewer sessions than there are connections to it.

with Pooler(binary, url) as pooler:
    ... serve over pooler.url ...
    pooler.kill()
    pooler.start()
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.patience import PATIENCE_S
from tests.server import held_port

# Each transaction may come to another session than the one before it.
SESSIONS = 3


def find_binaries() -> list[str]:
    """The PgBouncers that are here: what is installed, and those that MNEMOGATE_TEST_PGBOUNCER names, by colons."""
    named = os.environ.get("MNEMOGATE_TEST_PGBOUNCER", "").split(":")
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return [*filter(None, named), *([found] if found else [])]


def version_of(binary: str) -> tuple[int, int]:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor, *_ = said.split()[1].split(".")
    return int(major), int(minor)


class Pooler:
    """A pooler on a port of its own. url: of its database, as a client gives it.

    prepared: how many prepared statements it carries, from version 1.21 on.
    """

    def __init__(self, binary: str, url: str, *, prepared: int = 0) -> None:
        # Not below pytest's folder, which is its user's alone: PgBouncer does not run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="pgb", dir="/tmp"))
        self._folder.chmod(0o777)
        user = ("-u", "embedded_postgres") if os.geteuid() == 0 else ()
        self._command = [binary, "-q", *user, str(self._folder / "ini")]
        self._life = ExitStack()
        self._port = self._life.enter_context(held_port())
        target = urlsplit(url)
        name, given = target.path.lstrip("/"), parse_qs(target.query)
        user_name = unquote(target.username or "postgres")
        server = {
            "host": given.get("host", [target.hostname or "127.0.0.1"])[0],
            "port": given.get("port", [str(target.port or 5432)])[0],
            "user": user_name,
            "password": unquote(target.password or ""),
        }
        words = " ".join(f"{key}='{value}'" for key, value in server.items() if value)
        extra = f"max_prepared_statements = {prepared}\n" if prepared else ""
        (self._folder / "ini").write_text(
            f"[databases]\n{name} = {words}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self._port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {SESSIONS}\n"
            f"max_client_conn = 100\nlogfile = {self._folder}/log\n{extra}"
        )
        self.url = f"postgresql://{user_name}@127.0.0.1:{self._port}/{name}"
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        self._child = subprocess.Popen(self._command, cwd=self._folder)
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1.0).close()
                return
            except OSError:
                assert self._child.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.01)

    def kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait(PATIENCE_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._life.close()
        shutil.rmtree(self._folder, ignore_errors=True)
