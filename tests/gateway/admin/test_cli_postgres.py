"""The command line over PostgreSQL, which it opens itself: nobody owns a server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from storage.postgres.migration import get_latest_version, load_migrations
from tests.gateway.forked import ForkedProcess
from tests.patience import PATIENCE_S, becomes
from tests.postgres import empty_database, query
from tests.server import Listener

Out = pytest.CaptureFixture[str]
NOWHERE = "postgresql://ann:hush@127.0.0.1:1/memory"


@pytest.fixture(autouse=True)
def url(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    found = empty_database(postgres).url
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNEMOGATE_DATABASE_URL", found)
    yield found
    assert list(tmp_path.iterdir()) == [], "no file is made"


def test_keys_are_made_listed_and_revoked(capsys: Out) -> None:
    assert main(["keys", "create", "--name", "ann"]) == 0
    assert main(["keys", "list"]) == 0
    assert "default\tann\tactive" in capsys.readouterr().out
    assert main(["keys", "revoke", "--yes", "ann"]) == 0
    assert main(["keys", "list"]) == 0
    assert "default\tann\trevoked" in capsys.readouterr().out


def test_requests_names_the_pages_that_have_those_of_postgresql(capsys: Out) -> None:
    assert main(["migrate"]) == 0
    assert main(["requests"]) == 0
    assert "Over PostgreSQL the page of each gateway shows its own." in capsys.readouterr().err


def test_check_config_shows_the_server_and_whether_notifications_arrive(capsys: Out) -> None:
    assert main(["check-config"]) == 0
    said = capsys.readouterr()
    assert "PostgreSQL 1" in said.err
    assert f"schema version {get_latest_version(load_migrations())}" in said.err
    assert "notifications between gateways arrive" in said.err
    assert json.loads(said.out)["database"]["url"].startswith("postgresql://")


def test_check_config_says_that_nothing_can_be_written(
    url: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOGATE_DATABASE_URL", f"{url}&default_transaction_read_only=on")
    assert main(["check-config"]) == 0
    said = capsys.readouterr().err
    assert "nothing would be remembered: " in said
    assert "is read-only: a replica, or default_transaction_read_only is on" in said


@pytest.mark.parametrize(
    ("setup", "says"),
    [
        ("CREATE TABLE theirs.agents (id BIGINT)", "has tables that are not ours"),
        (
            "CREATE TABLE theirs.schema_versions AS SELECT 99::BIGINT AS version, 99::BIGINT AS oldest",
            "written by a newer Mnemogate",
        ),
        (
            "DO $$ BEGIN CREATE ROLE poor LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            "permission denied",
        ),
        ("SELECT 1", None),
    ],
)
def test_check_config_refuses_a_schema_that_the_start_would_refuse(
    url: str, capsys: Out, monkeypatch: pytest.MonkeyPatch, setup: str, says: str | None
) -> None:
    query(url, "CREATE SCHEMA theirs")
    try:
        query(url, setup)
        query(url, "GRANT USAGE ON SCHEMA theirs TO PUBLIC")
        there = f"{url}&search_path=theirs"
        is_poor = says == "permission denied"
        monkeypatch.setenv(
            "MNEMOGATE_DATABASE_URL", there.replace("postgres:@", "poor:@") if is_poor else there
        )
        for command in (["check-config"], ["serve", "--port", "0"]) if says else (["check-config"],):
            assert main(command) == (2 if says else 0)
            assert (says or "no tables yet") in capsys.readouterr().err
        made = query(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'theirs'")
        assert made[0][0] <= 1
    finally:
        query(url, "DROP SCHEMA theirs CASCADE")


def test_a_server_that_is_down_is_said_and_its_password_is_not(
    capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOGATE_DATABASE_URL", NOWHERE)
    assert main(["check-config"]) == 0
    assert "nothing would be remembered" in (said := capsys.readouterr()).err
    assert main(["migrate"]) == 1
    assert main(["keys", "list"]) == 1
    after = capsys.readouterr()
    assert "hush" not in said.out + said.err + after.out + after.err
    assert "ann:***@127.0.0.1:1" in after.err


def run_without(module: str, *commands: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Runs commands in a process that cannot import a module: what is imported here stays what it is.

    The process returns how many of them failed.
    """
    code = (
        f"import sys; sys.modules[{module!r}] = None; from gateway.cli import main;"
        f"sys.exit(sum(main(command) != 0 for command in {commands!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)


def test_an_internal_error_is_not_reported_as_a_missing_driver() -> None:
    ran = run_without("storage.postgres.postgres_maintenance", ("migrate",))
    assert ran.returncode == 1
    assert "ModuleNotFoundError: import of storage.postgres.postgres_maintenance" in ran.stderr
    assert "pip install" not in ran.stderr


def test_a_missing_driver_is_named() -> None:
    commands = (("check-config",), ("serve", "--port", "0"), ("migrate",))
    ran = run_without("asyncpg", *commands)
    assert ran.returncode == len(commands)
    assert ran.stderr.count("pip install -e '.[postgres]'") == len(commands)


def test_migrate_says_that_the_schema_is_there(capsys: Out) -> None:
    assert main(["migrate"]) == 0
    assert "has the schema of this version" in capsys.readouterr().err


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_works_until_it_is_stopped(end: signal.Signals) -> None:
    with ForkedProcess("gateway", ["worker"], Path.cwd(), os.environ, Path(os.devnull)) as worker:
        assert worker.stdout.readline().startswith("Mnemogate works on postgresql://")
        worker.send_signal(end)
        assert worker.wait(PATIENCE_S) == 0


def test_a_worker_with_a_port_shows_its_health_and_metrics_and_nothing_else() -> None:
    with ForkedProcess(
        "gateway", ["worker", "--port", "0"], Path.cwd(), os.environ, Path(os.devnull)
    ) as worker:
        assert worker.stdout.readline().startswith("Mnemogate works on postgresql://")
        found = re.search(r"http://127\.0\.0\.1:(\d+)/health", worker.stdout.readline())
        assert found is not None
        listener = Listener()
        listener.port = int(found[1])
        assert listener.ask("GET", "/health").status == 200
        ready = listener.ask("GET", "/health/ready")
        assert (ready.status, ready.json) == (200, {"status": "ok", "store": "ok"})
        scraped = listener.ask("GET", "/metrics").body.decode()
        assert "mnemogate_store_up 1.0" in scraped
        assert "mnemogate_jobs" in scraped
        for path in ("/", "/v1/models", "/v1/agents/", "/ui", "/admin/users", "/v1/manage/usage"):
            assert listener.ask("GET", path).status == 404, path
        assert main(["keys", "create", "--metrics"]) == 0
        becomes(lambda: listener.ask("GET", "/metrics").status == 401)  # it is notified of the first key
        assert listener.ask("GET", "/health").status == 200
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0


def test_a_worker_without_keys_is_not_opened_to_others(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOGATE_HOST", "0.0.0.0")
    assert main(["worker", "--port", "0"]) == 2
    assert "it has no keys" in capsys.readouterr().err
