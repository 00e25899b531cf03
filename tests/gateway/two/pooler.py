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
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.patience import PATIENCE_S, becomes
from tests.server import held_port

# The sessions of the pool: few, so that a transaction often gets another session than the one before it.
SESSIONS = 3


def find_binaries() -> list[str]:
    """Returns the PgBouncers in MNEMOGATE_TEST_PGBOUNCER (paths, separated by colons), and the installed one."""
    configured = os.environ.get("MNEMOGATE_TEST_PGBOUNCER", "").split(":")
    installed = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return [*filter(None, configured), *([installed] if installed else [])]


def read_version(binary: str) -> tuple[int, int]:
    """Returns the major and the minor version of a PgBouncer."""
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor, *_ = output.split()[1].split(".")
    return int(major), int(minor)


class Pooler:
    """A PgBouncer on a port of its own. `url` is the URL of the database by way of it."""

    def __init__(self, binary: str, url: str, *, prepared: int = 0) -> None:
        """Writes the configuration. `start` runs the process.

        binary: the path of PgBouncer.
        url: the URL of the server's database.
        prepared: `max_prepared_statements`, which versions from 1.21 on have. 0: none.
        """
        # Not below pytest's folder, which is its user's alone: PgBouncer does not run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="pgb", dir="/tmp"))
        self._folder.chmod(0o777)
        user = ("-u", "embedded_postgres") if os.geteuid() == 0 else ()
        self._command = [binary, "-q", *user, str(self._folder / "ini")]
        self._stack = ExitStack()
        self._port = self._stack.enter_context(held_port())
        parts = urlsplit(url)
        name = parts.path.lstrip("/")
        query = parse_qs(parts.query)
        user_name = unquote(parts.username or "postgres")
        server = {
            "host": query.get("host", [parts.hostname or "127.0.0.1"])[0],
            "port": query.get("port", [str(parts.port or 5432)])[0],
            "user": user_name,
            "password": unquote(parts.password or ""),
        }
        target = " ".join(f"{key}='{value}'" for key, value in server.items() if value)
        extra = f"max_prepared_statements = {prepared}\n" if prepared else ""
        (self._folder / "ini").write_text(
            f"[databases]\n{name} = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self._port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {SESSIONS}\n"
            f"max_client_conn = 100\nlogfile = {self._folder}/log\n{extra}"
        )
        self.url = f"postgresql://{user_name}@127.0.0.1:{self._port}/{name}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Runs the process, and waits until it listens."""
        process = self._process = subprocess.Popen(self._command, cwd=self._folder)

        def is_listening() -> bool:
            assert process.poll() is None, (self._folder / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self._port), 1.0).close()
            except OSError:
                return False
            return True

        becomes(is_listening)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(PATIENCE_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)
