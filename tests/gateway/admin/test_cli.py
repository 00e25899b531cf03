"""The command line: here, through the process that serves, and as that process."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import pty
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import tomllib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cli import main
from gateway.cli_commands import Commands
from gateway.errors import GatewayError
from gateway.log import RepeatHandler
from gateway.operation_client import START_POLL_S, START_S, OperationClient
from gateway.run.admin.command_line import serving
from gateway.run.admin.command_line.outcome_text import describe_forget_result
from gateway.run.admin.command_line.printed import show_block
from gateway.run.admin.command_line.progress import Progress
from gateway.run.admin.command_line.record_lists import KEYS, make_usage_list
from gateway.run.admin.command_line.serving import AdminFile, ServingProcess
from gateway.run.admin.imports.import_performer import ImportPerformer
from gateway.run.admin.imports.import_reading import Survey
from gateway.settings import DatabaseSettings, Settings
from gateway.settings.load import load_settings
from storage.commands import LearnedFact
from storage.job_records import NO_AGENT
from storage.reader_commands import LearnedChanges
from storage.records import Scope
from storage.sql.store import Store
from storage.sqlite import mount
from storage.sqlite.lock import Lock
from storage.sqlite.migration import get_latest_version, load_migrations, migrate
from tests.doubles.upstream import Gate, StrictUpstream, raw, say
from tests.gateway.forked import ForkedProcess
from tests.gateway.process import make_database_variable
from tests.patience import PATIENCE_S, becomes
from tests.server import RawClient, RunningGateway, held_port, serve, settings_for
from tests.stored import open_store, url_of, write_learned

# A name that a shell and an option have to be distinguished from.
OHARA = "-o'hara"
ROOT = Path(__file__).parents[3]
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
Out = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name, value in make_database_variable(tmp_path, []).items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "mnemogate.db"
    # `serve` logs to the stderr of its test, which is closed in the next one.
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, RepeatHandler)]


@pytest.fixture
def full_disk() -> Iterator[int]:
    """The descriptor of a file that has no room."""
    with Path("/dev/full").open("w") as full:
        yield full.fileno()


@contextmanager
def owner(
    upstream: StrictUpstream, database: Path, settings: Settings | None = None
) -> Iterator[RunningGateway]:
    """A gateway that owns the database, as `serve` leaves it for the command line to find."""

    async def open_here() -> Store:
        return await open_store(database)

    admin = AdminFile(str(database))
    with serve(settings or settings_for(upstream), open_here, admin_token=admin.token) as running:
        admin.write(running.url)
        yield running
    admin.remove()


@pytest.mark.parametrize("command", [["worker"], ["serve", "--no-work"]])
@pytest.mark.sqlite
def test_what_a_file_cannot_share_is_refused(command: list[str], capsys: Out) -> None:
    assert main(command) == 2
    assert "database.url: " in capsys.readouterr().err


@pytest.mark.parametrize("place", ["h:abc/db", "h/db?port=--5"])
def test_the_start_names_the_setting_with_a_port_that_is_no_number(
    place: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://{place}"
    monkeypatch.setenv("MNEMOGATE_DATABASE_URL", url)
    assert main(["serve"]) == 2
    assert f"database.url: {url}: a port is a number from 1 to 65535" in capsys.readouterr().err


def test_a_url_is_shown_without_its_password(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOGATE_DATABASE_URL", "postgresql://ann:hush@127.0.0.1:1/memory")
    main(["check-config"])
    said = capsys.readouterr()
    assert "ann:***@127.0.0.1:1/memory" in said.out
    assert "hush" not in said.out + said.err


@pytest.mark.sqlite
def test_migrate_makes_the_schema(database: Path, capsys: Out) -> None:
    assert main(["migrate"]) == 0
    assert f"{database} has the schema" in capsys.readouterr().err
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] > 0


def test_keys_are_made_listed_and_revoked_without_a_server(capsys: Out) -> None:
    assert main(["keys", "create", "--project", "blue", "--name", "ann"]) == 0
    secret = capsys.readouterr().out.strip()
    assert re.fullmatch(r"mg-[\w-]{40,}", secret)
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "blue\tann\tactive" in listed
    assert secret not in listed
    assert main(["keys", "revoke", "--yes", "ann"]) == 0
    assert main(["keys", "list"]) == 0
    assert "blue\tann\trevoked" in capsys.readouterr().out


@pytest.mark.sqlite
def test_the_first_key_says_which_database_was_made_for_it(database: Path, capsys: Out) -> None:
    """In a wrong directory that is not the gateway's."""
    assert main(["keys", "create"]) == 0
    assert f"{database} is new" in capsys.readouterr().err
    assert main(["keys", "create"]) == 0
    assert str(database) not in capsys.readouterr().err


@pytest.mark.sqlite
def test_a_command_waits_for_a_gateway_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has locked its database, and not said yet where it answers."""
    database = str(tmp_path / "m.db")
    lock, admin = Lock(database), AdminFile(database)
    lock.acquire()
    waits = []

    def write_at_the_second_look(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            admin.write("http://127.0.0.1:9")

    monkeypatch.setattr("gateway.operation_client.time.sleep", write_at_the_second_look)
    process = Commands(db=database).client.find_process()
    assert process == ServingProcess("http://127.0.0.1:9", admin.token)
    admin.remove()
    lock.release()
    assert (Commands(db=database).client.find_process(), len(waits)) == (None, 2)


@pytest.mark.sqlite
@pytest.mark.parametrize("command", [["keys", "list"], ["import", "list.txt", "--user", "ann"]])
def test_a_command_waits_for_another_one_that_was_faster(
    command: list[str], database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has locked the database after this one has looked who owns it."""
    Path("list.txt").write_text("Ann likes tea.\n")
    assert main(["keys", "create"]) == 0
    lock, find, waits = Lock(database), OperationClient.find_process, list[float]()

    def find_and_be_forestalled(client: OperationClient, *until: float) -> ServingProcess | None:
        found = find(client, *until)
        if not waits:
            lock.acquire()
        return found

    def end_while_it_waits(seconds: float) -> None:
        if seconds == START_POLL_S:  # and not the lock's own pause
            waits.append(seconds)
            lock.release()

    monkeypatch.setattr(OperationClient, "find_process", find_and_be_forestalled)
    monkeypatch.setattr("gateway.operation_client.time.sleep", end_while_it_waits)
    assert (main(command), len(waits)) == (0, 1)


@pytest.mark.sqlite
def test_a_command_waits_ten_seconds_at_most_and_says_so(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    """As for a gateway that drains: it has the database, and answers no command any more."""
    assert main(["keys", "create"]) == 0
    lock, admin, now = Lock(database), AdminFile(str(database)), 0.0
    lock.acquire()
    admin.write("http://127.0.0.1:9")  # nobody listens on the discard port

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr("gateway.operation_client.time", clock)
    monkeypatch.setattr("storage.sqlite.lock.time", SimpleNamespace(sleep=lambda seconds: None))
    assert main(["keys", "list"]) == 1
    said = capsys.readouterr().err
    assert said.count("waiting up to 10 s") == 1
    assert f"process {os.getpid()}" in said
    admin.remove()
    assert START_S <= now < START_S + 2 * START_POLL_S


@pytest.mark.sqlite
@pytest.mark.parametrize("ends", ["job", "gateway"])
def test_a_summary_is_waited_for_as_long_as_a_gateway_serves(
    ends: str, upstream: StrictUpstream, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owner(upstream, database) as gateway:
        jobs = gateway.app.services.store.jobs
        job, now = gateway.call(jobs.enqueue("compact", NO_AGENT, "1", due=4e9)), 0.0

        def sleep(seconds: float) -> None:
            nonlocal now
            now += 1_000 * seconds
            if now > 5_000 and ends == "job":
                gateway.call(jobs.cancel(job))
            elif now > 5_000:
                monkeypatch.setattr(OperationClient, "find_process", lambda _: None)

        clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
        monkeypatch.setattr("gateway.cli_commands.time", clock)
        assert Commands()._wait_for_job(job, Progress("Summarising")) == (ends == "job")
        assert now > 5_000


@pytest.mark.sqlite
def test_a_key_is_bounded_and_rotated(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = ["--expires", "90d", "--models", "gpt-4o*, small", "--user", "alice"]
    assert main(["keys", "create", *bounds]) == 0
    first = capsys.readouterr().out.split()[0]
    assert main(["keys", "list", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)
    assert (key["models"], key["user"]) == (["gpt-4o*", "small"], "alice")
    assert key["expires"] - key["created"] == pytest.approx(90 * 86_400, abs=60)
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert ("\tactive\t" in listed, "\texpires 20" in listed) == (True, True)
    state = next(column for column in KEYS.columns if column.heading == "state")
    assert state.cell({**key, "expires": key["created"] - 1}) == "expired"
    assert main(["keys", "rotate", str(key["id"]), "--overlap", "0s"]) == 0
    assert capsys.readouterr().out.strip() not in ("", first)
    assert main(["keys", "rotate", "99"]) == 1
    assert main(["keys", "create", "--expires", "1s"]) == 0
    monkeypatch.setattr("time.time", lambda: key["created"] + 3600.0)
    capsys.readouterr()
    assert main(["keys", "rotate", "2"]) == 1  # its new secret would open nothing
    assert "The key 2 has expired" in capsys.readouterr().err
    for wrong in (["create", "--expires", "soon"], ["rotate", "1", "--overlap", "1y"]):
        with pytest.raises(SystemExit):
            main(["keys", *wrong])


def test_limits_are_set_from_the_command_line(capsys: Out) -> None:
    assert main(["keys", "create"]) == 0
    assert main(["limits", "add", "--unit", "requests", "--per", "day", "--most", "50", "--user", "*"]) == 0
    capsys.readouterr()
    assert main(["limits", "list", "--json"]) == 0
    limit = json.loads(capsys.readouterr().out)
    assert (limit["unit"], limit["per"], limit["most"], limit["user"]) == ("requests", "day", 50, "*")
    assert main(["limits", "remove", str(limit["id"])]) == 0
    assert main(["limits"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["usage", "--by", "user", "--key", "1", "--csv"]) == 0
    assert capsys.readouterr().out.startswith("user,requests,")
    shown = make_usage_list(["day", "key"], {3: "prod"})
    row = {"day": "2026-11-24", "key": 3, "cost": 0.0}
    assert [column.cell(row) for column in shown.columns[:2]] == ["2026-11-24", "3 prod"]
    assert shown.columns[1].cell({**row, "key": 0}) == "-"


def test_a_limit_of_a_project_that_nothing_names_is_said_so(capsys: Out) -> None:
    """Its name may be misspelt, and a customer that was to be stopped goes on."""
    Path("mnemogate.toml").write_text("[projects.beta]\n")
    assert main(["keys", "create", "--project", "acme"]) == 0
    stop = ["limits", "add", "--unit", "requests", "--per", "month", "--most", "0"]
    for project, is_told in (("acme", False), ("beta", False), ("default", False), ("acmee", True)):
        capsys.readouterr()
        assert main([*stop, "--project", project]) == 0
        shown = capsys.readouterr()
        assert shown.out.split("\t")[1] == project
        assert ("no key and no setting names 'acmee'" in shown.err) == is_told


@pytest.mark.parametrize("group", ["imports", "limits", "jobs", "batches"])
def test_options_without_an_action_are_those_of_the_list(group: str, capsys: Out) -> None:
    assert main(["migrate"]) == 0
    for options in ([], ["--json"], ["--db", "mnemogate.db", "--json"]):
        assert main([group, *options]) == 0
    capsys.readouterr()
    for wrong in (["--jsn"], ["--db"], ["nonsense"], ["--db", "mnemogate.db", "nonsense"]):
        with pytest.raises(SystemExit) as ended:
            main([group, *wrong])
        assert ended.value.code == 2
    assert "Did you mean --json?" in capsys.readouterr().err


def test_keys_go_through_the_process_that_serves(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    with owner(upstream, database) as gateway:
        assert gateway.post(HELLO).status == 200
        assert main(["keys", "create", "--name", "ann"]) == 0
        headers = {"authorization": f"Bearer {capsys.readouterr().out.strip()}"}
        assert gateway.post(HELLO).status == 401  # from now on
        assert gateway.post(HELLO, headers).status == 200
        assert main(["keys", "revoke", "--yes", "ann"]) == 0
        assert gateway.post(HELLO, headers).status == 401


@pytest.mark.sqlite
def test_a_gateway_that_does_not_know_a_command_is_of_another_version(
    upstream: StrictUpstream, database: Path
) -> None:
    with owner(upstream, database), pytest.raises(GatewayError, match="have different versions"):
        Commands().perform("keys-lend", {})


@pytest.mark.sqlite
def test_an_admin_file_left_by_a_killed_server_does_no_harm(database: Path, capsys: Out) -> None:
    admin = AdminFile(str(database))
    admin.write("http://127.0.0.1:9")  # nobody listens on the discard port
    assert main(["migrate"]) == 0
    assert main(["keys", "list"]) == 0
    admin.remove()
    assert "no keys" in capsys.readouterr().err


@pytest.mark.sqlite
def test_all_users_of_a_profile_are_no_agents_and_all_that_a_project_has_is(
    upstream: StrictUpstream, database: Path
) -> None:
    with owner(upstream, database) as gateway:
        json_type = {"content-type": "application/json"}
        made = gateway.ask("POST", "/v1/agents/", b'{"name": "ann", "model": "up/m"}', json_type)
        assert made.status == 200
        assert gateway.post({**HELLO, "user": "alice"}).status == 200
        assert main(["memory", "forget", "--yes", "--all-users", "--profile", "default"]) == 0
        assert [each["name"] for each in gateway.ask("GET", "/v1/agents/").json] == ["ann"]
        assert main(["memory", "forget", "--yes", "--all-users"]) == 0
        assert gateway.ask("GET", "/v1/agents/").json == []


@pytest.mark.sqlite
def test_a_server_that_does_not_answer_is_said_so(
    upstream: StrictUpstream, database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the file is in use, as if the operator had to stop it."""
    monkeypatch.setattr(serving, "ANSWER_S", 0.1)
    with owner(upstream, database), socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        AdminFile(str(database)).write(address)
        assert main(["keys", "list"]) == 1
        said = capsys.readouterr().err
    assert f"The gateway at {address} has not answered" in said
    assert "in use" not in said


@pytest.mark.sqlite
def test_a_large_file_is_looked_through_for_longer_than_another_answer_takes(
    upstream: StrictUpstream, database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = ImportPerformer.survey

    async def survey_slowly(self: ImportPerformer, *given: Any) -> Survey:
        await asyncio.sleep(0.3)
        monkeypatch.setattr(serving, "ANSWER_S", PATIENCE_S)
        return await survey(self, *given)

    monkeypatch.setattr(ImportPerformer, "survey", survey_slowly)
    (database.parent / "facts.md").write_text("- I like tea.\n")
    with owner(upstream, database):
        monkeypatch.setattr(serving, "ANSWER_S", 0.1)
        assert main(["import", "facts.md", "--user", "ann"]) == 0, capsys.readouterr().err


@pytest.mark.sqlite
def test_the_admin_file_is_for_the_owner_alone(database: Path) -> None:
    admin = AdminFile(str(database))
    admin.write("http://127.0.0.1:1")
    assert admin.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.sqlite
def test_a_command_of_roots_writes_through_no_link_of_the_databases_owner(
    database: Path, capsys: Out
) -> None:
    assert main(["keys", "create", "--name", "ann"]) == 0
    if os.geteuid() == 0:
        os.chown(database, 65534, 65534)
    secret = database.parent / "secret"
    secret.touch(mode=0o600)
    lock = Path(f"{database}.lock")
    lock.unlink()
    lock.symlink_to(secret)
    assert main(["keys", "list"]) == 1
    assert f"{lock} is a link" in capsys.readouterr().err
    found = secret.stat()
    assert (secret.read_bytes(), found.st_uid, found.st_mode & 0o777) == (b"", os.geteuid(), 0o600)


def test_an_admin_file_that_cannot_be_removed_ends_no_gateway_with_an_error(database: Path) -> None:
    """As in a folder that has become read-only meanwhile."""
    admin = AdminFile(str(database))
    admin.write("http://127.0.0.1:1")
    admin.path.unlink()
    admin.path.mkdir()  # no account can unlink it
    admin.remove()
    assert admin.path.exists()


def test_keys_list_says_what_a_key_may_do(capsys: Out) -> None:
    assert main(["keys", "create", "--name", "evaluation", "--memory", "off"]) == 0
    assert main(["keys", "create", "--name", "prometheus", "--metrics"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    listed = [line.split("\t")[3:] for line in capsys.readouterr().out.splitlines()]
    assert [(*each[:2], *each[4:]) for each in listed] == [
        ("evaluation", "active", "memory off"),
        ("prometheus", "active", "metrics only"),
    ]


@pytest.mark.parametrize("is_served", [False, True], ids=["here", "served"])
def test_keys_list_shows_when_a_key_was_made_and_last_used(
    upstream: StrictUpstream, database: Path, capsys: Out, *, is_served: bool
) -> None:
    assert main(["keys", "create", "--name", "ann"]) == 0
    ann = {"authorization": f"Bearer {capsys.readouterr().out.strip()}"}
    assert main(["keys", "create", "--name", "bob"]) == 0
    with owner(upstream, database) as gateway:
        before = datetime.now(UTC)
        assert gateway.post(HELLO, ann).status == 200
        assert gateway.call(gateway.app.services.store.drain(PATIENCE_S))
        after = datetime.now(UTC)
    capsys.readouterr()
    with owner(upstream, database) if is_served else nullcontext():
        assert main(["keys", "list"]) == 0
    (_, *ann_times), (_, *bob_times) = (line.split("\t")[4:] for line in capsys.readouterr().out.splitlines())
    minutes = [each.strftime("%Y-%m-%d %H:%M") for each in (before, after)]
    assert ann_times[1] in [f"last used {minute}" for minute in minutes]
    assert bob_times[1] == "never used"
    assert all(re.fullmatch(r"made \d{4}-\d\d-\d\d \d\d:\d\d", times[0]) for times in (ann_times, bob_times))


def test_a_name_makes_no_line_or_field_of_its_own_in_a_list(capsys: Out) -> None:
    assert main(["keys", "create", "--name", "x\n4\tmg-AbCd…\tdefault\tprod\tactive"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[3:5] == [r"x\n4\tmg-AbCd…\tdefault\tprod\tactive", "active"]


def test_keys_list_shows_the_models_and_the_user_of_a_key(capsys: Out) -> None:
    assert main(["keys", "create", "--models", "gpt-4o*,m", "--user", "alice"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    assert capsys.readouterr().out.rstrip("\n").split("\t")[-2:] == ["models gpt-4o*,m", "user alice"]


def test_a_key_that_does_not_exist_is_said_so(capsys: Out) -> None:
    assert main(["migrate"]) == 0
    assert main(["keys", "revoke", "--yes", "nobody"]) == 1
    assert "nobody" in capsys.readouterr().err


def test_check_config_hides_what_is_secret(database: Path, capsys: Out) -> None:
    Path("mnemogate.toml").write_text(
        '[[upstreams]]\nname = "a"\nbase_url = "http://x/v1"\napi_key = "sk-1"\nheaders = {a = "sk-2"}\n'
        '[[upstreams]]\nname = "b"\nbase_url = "http://x/v1"\napi_key = ["sk-3", "sk-4"]\n'
        'proxy = "http://me:sk-9@proxy:3128"\n'
        '[[upstreams]]\nname = "d"\nbase_url = "http://x/v1"\nproxy = "http://sk-b@proxy:3128"\n'
        '[memory]\nopenwebui_jwt_secret = "sk-7"\n'
        f'[tools]\nwebhook_secret = "whsec_{"sk8/" * 8}"\nsecrets_key = "{"ska/" * 10}AAA="\n'
        '[[tools.headers]]\nname = "calendar"\nhost = "x"\nheader = "x-key"\nvalue = "sk-c"\n'
    )
    assert main(["check-config"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["upstreams"][0]["base_url"] == "http://x/v1"
    assert [each["proxy"] for each in json.loads(shown)["upstreams"][1:]] == ["http://***@proxy:3128"] * 2
    assert json.loads(shown)["tools"]["headers"] == [
        {"name": "calendar", "host": "x", "header": "x-key", "value": "(set)"}
    ]
    assert "sk-" not in shown
    assert "sk8" not in shown
    assert "ska/" not in shown
    address = "https://me:sk-5@x:1/v1?version=1&key=sk-6"
    Path("mnemogate.toml").write_text(f'[[upstreams]]\nname = "c"\nbase_url = "{address}"')
    assert main(["check-config"]) == 2
    assert "sk-" not in capsys.readouterr().err


def test_check_config_says_what_an_upgrade_will_do(
    database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MNEMOGATE_DATABASE_URL", raising=False)
    known = load_migrations()
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        migrate(connection, str(database), known[:1])
        capsys.readouterr()
        assert main(["check-config"]) == 0
        assert (
            f"schema version 20, which a start brings to {get_latest_version(known)};"
            in capsys.readouterr().err
        )
        assert connection.execute("PRAGMA user_version").fetchone() == (20,)
    assert main(["migrate"]) == 0
    capsys.readouterr()
    assert main(["check-config"]) == 0
    assert "schema" not in capsys.readouterr().err


def test_check_config_finds_a_fallback_that_no_upstream_serves(database: Path, capsys: Out) -> None:
    Path("mnemogate.toml").write_text(
        '[[upstreams]]\nname = "a"\nbase_url = "http://x/v1"\n'
        '[[models]]\nalias = "quick"\nmodel = "m"\nfallbacks = ["slow"]'
    )
    assert main(["check-config"]) == 2
    assert "models 'quick': fallbacks: unknown name 'slow'; known are quick" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check-config", "--config", "nope.toml"], "The settings file nope.toml does not exist."),
        (["serve", "--host", "0.0.0.0", "--port", "0"], "mnemogate keys create"),
        (["check-config", "--config", "open.toml"], "mnemogate keys create"),
        (["check-config", "--config", "nowhere.toml"], "cannot be found"),
        (["check-config", "--config", "open.toml"], f"the settings file is {os.sep}"),
        (["check-config", "--config", "pattern.toml"], "unterminated character set, here: a >>> [b"),
        (["serve", "--host", "no.such.host.invalid", "--port", "0"], "Name an address of this machine"),
        (["serve", "--host", "127.0.0..1", "--port", "0"], "it is no valid name"),
        (["serve", "--upstream", "nonsense"], "--upstream must be an http(s) URL, saw 'nonsense'"),
        (["serve", "--upstream", "http://x:99999"], "--upstream must be an http(s) URL"),
        (
            ["serve", "--upstream", "http://me:pw@x/v1"],
            "--upstream: an upstream's address has neither a user",
        ),
        (["serve", "--upstream", "http://x/v1?api=1"], "has neither a user, nor a query"),
        (
            ["serve", "--upstream", "http://x/v1#a"],
            "nor a query, nor a fragment",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_to_do(
    arguments: list[str], says: str, capsys: Out
) -> None:
    Path("open.toml").write_text('[server]\nhost = "0.0.0.0"')
    Path("nowhere.toml").write_text('[server]\nhost = "no.such.host.invalid"')
    Path("pattern.toml").write_text('[[memory.side_requests]]\nname = "x"\npattern = "a[b"')
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "variable", "says"),
    [
        (["serve", "--port", "70000"], None, "server.port"),
        (["serve", "--upstream", "nonsense"], None, "--upstream must be"),
        (["check-config"], "MNEMOGATE_UPSTREAM=nonsense", "MNEMOGATE_UPSTREAM must be an http(s) URL"),
        (["check-config"], "OPENAI_BASE_URL=nonsense", "OPENAI_BASE_URL must be an http(s) URL"),
        (["check-config"], "ANTHROPIC_BASE_URL=x", "ANTHROPIC_BASE_URL must be an http(s) URL, saw 'x'"),
        (["check-config"], "MNEMOGATE_PORT=nonsense", "MNEMOGATE_PORT"),
        (["check-config"], "MNEMOGATE_PROT=1", "MNEMOGATE_PORT"),
        (["check-config"], "MNEMOGATE_UPSTREAM_KEY=x", "MNEMOGATE_UPSTREAM_KEY"),
    ],
)
def test_a_flag_or_a_variable_that_is_wrong_is_named_and_no_file(
    arguments: list[str], variable: str | None, says: str, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mnemogate.toml").write_text("[memory]\n")
    if variable is not None:
        monkeypatch.setenv(*variable.split("=", 1))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "mnemogate.toml" not in error


def edit(database: Path, statement: str) -> None:
    assert main(["migrate"]) == 0
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(statement)


@pytest.mark.sqlite
def test_check_config_refuses_the_database_that_serve_refuses(database: Path, capsys: Out) -> None:
    for statement, says in (
        ("PRAGMA user_version = 99", "was written by a newer Mnemogate"),
        ("PRAGMA application_id = 7", "not one of Mnemogate"),
    ):
        edit(database, statement)
        for arguments in (["check-config"], ["serve", "--port", "0"]):
            assert main(arguments) == 2
            error = capsys.readouterr().err
            assert f"database.path: {database}" in error
            assert says in error
        database.unlink()


@pytest.mark.sqlite
@pytest.mark.parametrize(("kind", "is_told"), [("nfs4", True), ("ext4", False)])
def test_check_config_names_a_network_file_system(
    database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, kind: str, is_told: bool
) -> None:
    device = os.stat(database.parent).st_dev
    mounts = database.parent / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"36 22 {os.major(device)}:{os.minor(device)} / /data\\040here rw - {kind} server:/data rw,vers=4.2\n"
    )
    monkeypatch.setattr(mount, "MOUNTS", mounts)
    assert main(["check-config"]) == 0
    told = f"{database} lies on a network file system (nfs4)"
    assert (told in capsys.readouterr().err) == is_told


@pytest.mark.sqlite
def test_check_config_says_what_would_cost_the_memory(database: Path, capsys: Out) -> None:
    edit(database, "SELECT 1")
    database.chmod(0o644)
    capsys.readouterr()
    assert main(["check-config"]) == 0
    assert (
        capsys.readouterr().err == f"mnemogate: other accounts may read {database}; `chmod 600` closes it\n"
    )
    database.write_bytes(b"not a database, whatever it is " * 300)
    assert main(["check-config"]) == 0
    assert "nothing would be remembered" in capsys.readouterr().err
    assert main(["check-config", "--db", "nowhere/m.db"]) == 0
    assert "nowhere does not exist. Make it, or name another file with --db." in capsys.readouterr().err
    assert not Path("nowhere").exists()


@pytest.mark.sqlite
def test_check_config_fails_for_a_warning_where_it_is_strict(database: Path, capsys: Out) -> None:
    """A script asks before a restart; that a start will bring the schema up is no warning."""
    strict = ["check-config", "--strict"]
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        migrate(connection, str(database), load_migrations()[:1])
    database.chmod(0o600)
    assert main(strict) == 0
    assert "which a start brings to" in capsys.readouterr().err
    database.chmod(0o644)
    assert main(strict) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["server"]
    assert "other accounts may read" in shown.err
    assert main([*strict, "--db", "nowhere/m.db"]) == 1
    assert "nothing would be remembered" in capsys.readouterr().err
    Path("mnemogate.toml").write_text("[server]\nport = 70000")
    assert main(strict) == 2


@pytest.mark.sqlite
def test_check_config_asks_the_database_for_keys_and_makes_none(
    database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mnemogate.toml").write_text('[server]\nhost = "0.0.0.0"')
    assert main(["check-config"]) == 2
    assert not list(database.parent.glob("mnemogate.db*"))
    assert main(["keys", "create"]) == 0
    Path(f"{database}.keyed").unlink()  # as in a copy that was brought back
    assert main(["check-config"]) == 0
    database.unlink()
    assert main(["check-config"]) == 2
    monkeypatch.setenv("MNEMOGATE_KEY", "mg-0123456789abcdefghijklmnopqrstuv")
    assert main(["check-config"]) == 0
    # Where nobody knows whether there are keys, the gateway waits for its database and lets nobody in.
    monkeypatch.delenv("MNEMOGATE_KEY")
    assert main(["check-config", "--db", "nowhere/m.db"]) == 0


def test_a_block_that_is_empty_again_says_so(capsys: Out) -> None:
    show_block({"label": "human", "version": 3, "value": "", "waiting": 0})
    assert capsys.readouterr() == ("\n", "human (version 3, 0 characters)\n")


def test_commands_that_forget_more_read_the_files_that_were_named() -> None:
    wanted = {"config": None, "db": "a b.db", "project": "default", "user": "ann", "message": 1}
    told = describe_forget_result(wanted, 1, {"messages": 1, "kept": 1, "conversation": "c"})
    assert "mnemogate memory forget '--db=a b.db' --user=ann --exchange 1" in told
    assert "mnemogate memory show '--db=a b.db' --user=ann --query WORDS" in told


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "see `mnemogate -h`"),
        (["memory"], "undo,add,correct,mute,why"),
        (["keys"], "create,rotate,list,revoke"),
    ],
)
def test_a_group_without_a_command_lists_its_commands(given: list[str], named: str, capsys: Out) -> None:
    try:
        code = main(given)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert named in err


def test_the_version_is_a_flag_too(capsys: Out) -> None:
    assert main(["version"]) == 0
    said = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    "command", [["serve"], ["version"], ["memory", "show"], ["jobs"], ["jobs", "list"]], ids=" ".join
)
def test_a_misspelt_option_shows_the_usage_of_its_command(command: list[str], capsys: Out) -> None:
    """Of a group alone that of its default action, which takes the options."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--usr=alice"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    usage = "jobs list" if command == ["jobs"] else " ".join(command)
    assert said.startswith(f"usage: mnemogate {usage} [-h]")
    assert said.endswith("unrecognized arguments: --usr=alice\n")


def test_an_option_without_its_value_shows_the_usage_of_its_command(capsys: Out) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["memory", "show", "--user"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: mnemogate memory show [-h]")
    assert said.endswith("mnemogate memory show: error: Option '--user' requires an argument.\n")


def test_version_says_the_name_and_the_number(capsys: Out) -> None:
    assert main(["version"]) == 0
    assert re.match(r"mnemogate \d+\.\d+", capsys.readouterr().out)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """What is written into it has no reader, as `mnemogate memory show | head` has none in the end."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.sqlite
def test_a_command_whose_last_lines_are_not_read_ends_quietly(tmp_path: Path, closed_pipe: int) -> None:
    log = tmp_path / "log"
    with ForkedProcess("gateway", ["check-config"], tmp_path, os.environ, log, {1: closed_pipe}) as child:
        assert child.wait(PATIENCE_S) == 141
    assert log.read_text() == ""


@pytest.mark.sqlite
def test_a_command_that_is_read_no_further_ends_quietly(closed_pipe: int) -> None:
    """Where each line is written at once."""
    asked = [sys.executable, "-u", "-m", "gateway", "check-config"]
    done = subprocess.run(asked, stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_memory_show_asks_for_a_user(capsys: Out) -> None:
    assert main(["migrate"]) == 0  # there is a database
    assert main(["memory", "show"]) == 1
    assert "Say whose memory: --user, --conversation or --agent." in capsys.readouterr().err


def test_check_config_names_all_mistakes_and_not_the_first_alone(
    capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mnemogate.toml").write_text(
        '[server]\nprot = 1\nport = 99999\nallowed_host = []\n[memory]\nidle_s = "soon"\nrecal_tokens = 5\n'
        '[tools]\nhosts = ["a b", "c d"]\nmcp_stdio_env = ["1"]\n[nonsense]\n'
        '[[upstreams]]\nname = "a"\nbase_url = "nourl"\n[[upstreams]]\nname = "a#"\nbase_url = "http://x"\n'
        '[[models]]\nalias = "m"\nupstream = "b"\nfallbacks = ["m"]\n[[models]]\nmodel = "x"\n'
    )
    monkeypatch.setenv("MNEMOGATE_PROT", "1")
    assert main(["check-config"]) == 2
    lines = capsys.readouterr().err.splitlines()
    file = Path("mnemogate.toml").absolute()
    host = "expected a host such as api.example.org, *.example.org or http://localhost:9000, saw"
    first, last = (
        "batch, database, memory, models, profiles, projects",
        "responses, server, tools, traces, ui, upstreams, usage",
    )
    tables = f"{first}, {last}"
    assert sorted(line.removeprefix("mnemogate: ") for line in lines[:-1]) == sorted(
        [
            f"{file}: server: unknown name 'prot'; did you mean 'port'?",
            f"{file}: server.port: expected between 0 and 65535, saw 99999",
            f"{file}: server: unknown name 'allowed_host'; did you mean 'allowed_hosts'?",
            f"{file}: memory.idle_s: expected a number, saw 'soon'",
            f"{file}: memory: unknown name 'recal_tokens'; did you mean 'recall_tokens'?",
            f"{file}: unknown name 'nonsense'; known are {tables}",
            f"{file}: models 'm': 'model' is missing",
            f"{file}: models[1]: 'alias' is missing",
            "environment: unknown name 'MNEMOGATE_PROT'; did you mean 'MNEMOGATE_PORT'?",
            f"{file}: upstreams 'a': base_url must be an http(s) URL, saw 'nourl'",
            f"{file}: upstreams 'a#': '#' is for the numbers of its keys",
            f"{file}: tools.hosts: {host} 'a b'",
            f"{file}: tools.hosts: {host} 'c d'",
            f"{file}: tools.mcp_stdio_env: expected the name of a variable, saw '1'",
        ]
    )
    assert lines[-1].startswith(f"mnemogate: the settings file is {file}")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as made:
        migrate(made, str(path))
        made.execute("PRAGMA user_version = 99")


def make_others(path: Path) -> None:
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE words (word)")


NO_DATABASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing directory": (
        lambda path: path.parent.rmdir(),
        "The directory {folder} does not exist. Make it, or name",
    ),
    "directory": (
        Path.mkdir,
        "{path} is a directory, not a regular file. Move it away, or name another file",
    ),
    "pipe": (
        os.mkfifo,
        "{path} is a pipe, not a regular file. Move it away, or name another file with --db.",
    ),
    "text": (lambda path: path.write_text("Hello."), "{path} is not a database. Name another file with --db"),
    "newer": (make_newer, "{path} has schema version 99, this program knows versions up to"),
    "another program's": (
        make_others,
        "{path} is a database, but not one of Mnemogate. Name another file with --db.",
    ),
}


@pytest.mark.sqlite
@pytest.mark.parametrize("name", NO_DATABASES)
def test_what_is_no_database_is_named_in_a_line_with_what_to_do(
    name: str, tmp_path: Path, capsys: Out
) -> None:
    make, says = NO_DATABASES[name]
    path = tmp_path / "folder" / "m.db"
    path.parent.mkdir()
    make(path)
    assert main(["keys", "create", "--db", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"mnemogate: {says.format(path=path, folder=path.parent)}")
    assert (said.err.count("\n"), said.out) == (1, "")


@pytest.mark.parametrize("is_served", [False, True], ids=["here", "served"])
def test_what_cannot_be_read_or_written_is_said_in_a_line(
    upstream: StrictUpstream, database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, *, is_served: bool
) -> None:
    Path("bad.jsonl").write_bytes(b"\xff\n")
    Path("endless.jsonl").write_bytes(b" " * 1001)
    Path("accents.jsonl").write_text("\n" + "\u00e9" * 501, encoding="utf-8")
    monkeypatch.setattr("gateway.run.admin.command_line.streams.MAX_LINE_BYTES", 1000)
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": "alice"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
    with owner(upstream, database) if is_served else nullcontext():
        for arguments, says in [
            (("import", "endless.jsonl"), "This is no export: line 1 has more than 1,000 bytes."),
            (("import", "accents.jsonl"), "This is no export: line 2 has more than 1,000 bytes."),
            (("import", "nope.jsonl"), "nope.jsonl: No such file"),
            (("import", "."), ".: Is a directory"),
            (("import", "bad.jsonl"), "bad.jsonl: 'utf-8' codec can't decode"),
            (("export", "nope/alice.jsonl"), "nope/alice.jsonl: No such file"),
            (("show", "--query", "caf\udce9"), "What was given is not UTF-8"),  # of a Latin-1 terminal
        ]:
            assert main(["memory", arguments[0], "--user", "alice", *arguments[1:]]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"mnemogate: {says}")
            assert said.count("\n") == 1


def test_what_the_terminal_has_no_sign_for_is_shown_and_exported(
    upstream: StrictUpstream, database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Latin-1 terminal gets what it can show; an export is UTF-8 wherever it goes."""
    with owner(upstream, database) as gateway:
        asked = {"model": "m", "user": "eve", "messages": [{"role": "user", "content": "caf\u00e9 \u65e5"}]}
        assert gateway.post(asked).status == 200
        gateway.call(gateway.app.services.idle.wait())

    def ask(*arguments: str, given: bytes = b"") -> bytes:
        stdout = io.TextIOWrapper(io.BytesIO(), "latin-1")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "latin-1"))
            patch.setattr(sys, "stdout", stdout)
            assert main(["memory", *arguments]) == 0
            stdout.flush()
        reported = f"Imported: 1 user (ann), from standard input ({len(given) - len(BOM_UTF8)} bytes).\n"
        assert capsys.readouterr().err == (reported if given else "")
        return stdout.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert b"user: caf\xe9 \\u65e5\n" in ask("show", "--user", "eve")
    exported = ask("export", "--user", "eve")
    assert "caf\u00e9 \u65e5".encode() in exported
    ask("import", "--user", "ann", given=BOM_UTF8 + exported)  # as editors of Windows begin a file
    assert main(["memory", "show", "--user", "ann"]) == 0
    assert "user: caf\u00e9 \u65e5\n" in capsys.readouterr().out


def test_text_of_a_memory_cannot_control_the_terminal(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    said = "\x1b]0;mine\x07 \x9b2J \u202edlog \N{ZERO WIDTH JOINER} caf\u00e9"
    with owner(upstream, database) as gateway:
        asked = {"model": "m", "user": "eve", "messages": [{"role": "user", "content": said}]}
        assert gateway.post(asked).status == 200
        gateway.call(gateway.app.services.idle.wait())
    assert main(["memory", "show", "--user", "eve", "--query", "dlog"]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b]0;mine\\x07 \\x9b2J \\u202edlog \N{ZERO WIDTH JOINER} caf\u00e9\n" in shown
    assert not set("\x1b\x07\x9b\u202e") & set(shown)


@pytest.mark.parametrize(
    "command",
    [
        *("memory show --user a", "memory forget --yes --user a", "memory export --user a", "jobs"),
        *("keys list", "keys revoke --yes ann"),
    ],
)
@pytest.mark.sqlite
def test_a_command_in_the_wrong_directory_finds_no_database_and_makes_none(
    command: str, database: Path, capsys: Out
) -> None:
    assert main(command.split()) == 1
    assert f"no database at {database}" in capsys.readouterr().err
    assert not list(database.parent.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "--db {} keys list",
        "keys --db {} list",
        "keys list --db {}",
        "--db {} jobs",
        "jobs --db {} list",  # the action's own default took its place
        "jobs --db {} cancel --yes 1",
        "batches --db {} list",
        "memory --db {} show --user ann",
        "--db {} memory forget --yes --user ann",
        "jobs --db not/this list --db {}",
    ],
)
@pytest.mark.sqlite
def test_a_file_may_be_named_before_a_command_after_it_and_after_its_action(
    command: str, tmp_path: Path, capsys: Out
) -> None:
    there = tmp_path / "elsewhere" / "it.db"
    assert main(command.format(there).split()) == 1
    assert f"no database at {there}" in capsys.readouterr().err


def test_settings_may_be_named_before_a_command(tmp_path: Path, capsys: Out) -> None:
    for command in (["--config", "no.toml", "check-config"], ["jobs", "--config", "no.toml", "list"]):
        assert main(command) == 2
        assert "no.toml" in capsys.readouterr().err


def test_commands_need_no_secret_but_the_databases(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's shell has none of the variables that the service has."""
    Path("mnemogate.toml").write_text(
        '[[upstreams]]\nname = "a"\nbase_url = "http://127.0.0.1:9/v1"\napi_key = ["env:ONE", "env:TWO"]\n'
        '[memory]\nopenwebui_jwt_secret = "env:THREE"\n'
        '[tools]\nwebhook_secret = "env:FOUR"\n'
        '[[tools.headers]]\nname = "b"\nhost = "example.org"\nheader = "x-key"\nvalue = "env:FIVE"\n'
    )
    for arguments in (
        "keys create",
        "keys list",
        "users",
        "memory forget --all-users --yes",
        "jobs",
        "migrate",
    ):
        assert main(arguments.split()) == 0
    capsys.readouterr()
    for arguments in ("check-config", "serve --port 0", "worker"):
        assert main(arguments.split()) == 2
        assert "api_key names ONE, which is not set" in capsys.readouterr().err
    Path("mnemogate.toml").write_text('[database]\nurl = "env:SIX"\n')
    monkeypatch.delenv("MNEMOGATE_DATABASE_URL", raising=False)
    assert main(["keys", "list"]) == 2
    assert "database.url names SIX, which is not set" in capsys.readouterr().err


@pytest.mark.parametrize("is_served", [False, True], ids=["here", "served"])
def test_who_and_which_profile_are_left_out_as_requests_leave_them_out(
    upstream: StrictUpstream, database: Path, capsys: Out, *, is_served: bool
) -> None:
    Path("mnemogate.toml").write_text(
        f'[[upstreams]]\nname = "a"\nbase_url = "{upstream.base_url}"\n[memory]\nsingle_user = true\n'
        '[[profiles]]\nname = "friend"\nblocks = [{label = "human"}]\n[projects.default]\nprofile = "friend"'
    )
    with owner(upstream, database, load_settings()) as gateway:
        assert gateway.post(HELLO).status == 200
        gateway.call(gateway.app.services.idle.wait())
    with owner(upstream, database, load_settings()) if is_served else nullcontext():
        assert main(["memory", "show"]) == 0
        assert "user:owner  (project default, profile friend" in capsys.readouterr().out
        assert main(["memory", "export", "kept.jsonl"]) == 0
        assert Path("kept.jsonl").stat().st_mode & 0o777 == 0o600
        assert main(["memory", "undo", "--block", "human"]) == 1  # it has but one version
        assert "no block" not in capsys.readouterr().err
        for contradicting in (["--user", "owner"], ["--message", "1"]):
            assert main(["memory", "forget", "--yes", "--all-users", *contradicting]) == 1
        assert main(["memory", "forget"]) == 1
        assert main(["memory", "forget", "--yes", "--message", "1"]) == 0
        assert "Forgotten: 1 message, with what was learned from it." in capsys.readouterr().err
        assert main(["memory", "forget", "--yes", "--user", "owner"]) == 0
        Path("kept.jsonl").write_bytes(BOM_UTF8 + Path("kept.jsonl").read_bytes())
        assert main(["memory", "import", "kept.jsonl"]) == 0
        assert main(["memory", "show", "--user", "owner", "--profile", "friend"]) == 0
        assert "user: Hello" in capsys.readouterr().out


@pytest.mark.parametrize("is_served", [False, True], ids=["here", "served"])
def test_an_export_replaces_no_file_unasked_and_reports_what_it_did(
    upstream: StrictUpstream, database: Path, capsys: Out, *, is_served: bool
) -> None:
    with owner(upstream, database) as gateway:
        for text in ("Hello", "How are you?"):
            asked = {"model": "m", "user": "ann", "messages": [{"role": "user", "content": text}]}
            assert gateway.post(asked).status == 200
        gateway.call(gateway.app.services.idle.wait())
    export = ["memory", "export", "--user", "ann", "ann.jsonl"]
    with owner(upstream, database) if is_served else nullcontext():
        assert main(export) == 0
        file = Path("ann.jsonl")
        written = file.read_bytes()
        said = f"Exported: 1 user (ann), 4 messages, to ann.jsonl ({len(written):,} bytes).\n"
        assert capsys.readouterr().err == said
        assert main(["memory", "import", "--user", "bob", "ann.jsonl"]) == 0
        said = f"Imported: 1 user (bob), from ann.jsonl ({len(written):,} bytes).\n"
        assert capsys.readouterr().err == said
        assert main([*export[:-1], "-"]) == 0
        assert capsys.readouterr().out.encode() == written
        assert not Path("-").exists()
        file.write_text("mine")
        assert main(export) == 1
        there = "mnemogate: ann.jsonl is there already. Name another file, or add --force to replace it.\n"
        assert capsys.readouterr().err == there
        assert file.read_text() == "mine"
        file.chmod(0o644)
        assert main([*export, "--force"]) == 0
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (written, 0o600)


def test_an_export_goes_through_no_link_and_into_nothing_but_a_file(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": "ann"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
    other = Path("other")
    other.write_text("of another")
    Path("link").symlink_to(other)
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    Path("folder").mkdir()
    export = ["memory", "export", "--user", "ann"]
    for name in ("link", "dangling"):
        assert main([*export, name]) == 1
        assert main([*export, name, "--force"]) == 0
        assert not Path(name).is_symlink()
        assert Path(name).read_text().startswith('{"memory"')
    assert other.read_text() == "of another"
    assert not Path("nowhere").exists()
    capsys.readouterr()
    for name in ("pipe", "folder"):
        assert main([*export, name, "--force"]) == 1
        assert (
            capsys.readouterr().err == f"mnemogate: {name} is there, and is not a file. Name another one.\n"
        )


def test_an_export_that_breaks_off_leaves_what_was_there(
    upstream: StrictUpstream, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": "ann"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
    Path("ann.jsonl").write_text("before")
    before = sorted(os.listdir())
    with monkeypatch.context() as cut:
        cut.setattr("gateway.run.admin.command_line.streams.os.fsync", full)
        assert main(["memory", "export", "--user", "ann", "ann.jsonl", "--force"]) == 1
    assert capsys.readouterr().err == "mnemogate: ann.jsonl: No space left on device\n"
    assert Path("ann.jsonl").read_text() == "before"
    assert sorted(os.listdir()) == before


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_blanks_around_a_name_are_as_little_of_it_as_in_requests(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": " ann\t"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
        assert main(["memory", "forget", "--yes", "--user", " ann\t"]) == 0
        assert "Forgotten: 1 memory." in capsys.readouterr().err
        assert main(["memory", "forget", "--yes", "--user", " "]) == 1


@pytest.mark.sqlite
def test_memory_forget_says_that_the_log_has_it_while_the_file_is_read(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": "ann"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
        with closing(sqlite3.connect(database, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM exchanges").fetchone()
            assert main(["memory", "forget", "--yes", "--user", "ann"]) == 0
            assert "The log of the file still has it" in capsys.readouterr().err
        assert gateway.post({**HELLO, "user": "ann"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
        assert main(["memory", "forget", "--yes", "--user", "ann"]) == 0
        assert capsys.readouterr().err == "Forgotten: 1 memory.\n"


async def interrupted(*_: object) -> bool:
    raise KeyboardInterrupt


def test_memory_forget_says_what_it_did_and_what_may_still_quote_it(
    upstream: StrictUpstream, database: Path, capsys: Out
) -> None:
    def talk(gateway: RunningGateway, user: str) -> None:
        said: list[dict[str, str]] = []
        for text in ("My cat is Miso.", "She is grey."):
            upstream.queue(say(f"Noted: {text}"))
            said.append({"role": "user", "content": text})
            assert gateway.post({"model": "m", "user": user, "messages": said}).status == 200
            said.append({"role": "assistant", "content": f"Noted: {text}"})

    def forget(*arguments: str) -> tuple[str, list[list[str]]]:
        """The first line of what it says, and the commands that it names."""
        assert main(["memory", "forget", "--yes", *arguments]) == 0
        report = capsys.readouterr().err.strip()
        lines = [line.partition(": mnemogate memory ")[2] for line in report.splitlines()[1:]]
        named = [shlex.split(line)[1:] for line in lines if line.startswith("forget ")]
        if named:
            assert shlex.split(lines[-1]) == ["show", f"--user={OHARA}", "--query", "WORDS"]
        return report.splitlines()[0], named

    def shown() -> list[str]:
        assert main(["memory", "show", f"--user={OHARA}"]) == 0
        return re.findall(r"(?:user|assistant): (.*)", capsys.readouterr().out)

    with owner(upstream, database) as gateway:
        talk(gateway, OHARA)
        report, (both, all_of_it) = forget(f"--user={OHARA}", "--message", "1")
        one = "Forgotten: 1 message, with what was learned from it. What may quote it was kept:"
        assert report == one
        assert shown() == ["Noted: My cat is Miso.", "She is grey.", "Noted: She is grey."]
        assert both == [f"--user={OHARA}", "--exchange", "1"]
        report, (again,) = forget(*both)
        assert (report, again) == (one, all_of_it)
        assert shown() == ["She is grey.", "Noted: She is grey."]
        assert forget(*all_of_it) == ("Forgotten: 2 messages, with what was learned from them.", [])
        assert shown() == []
        assert forget(*all_of_it) == ("There was nothing to forget.", [])
        assert forget(f"--user={OHARA}", "--message", "1") == ("There was nothing to forget.", [])
        for user in ("bob", OHARA):
            talk(gateway, user)
        assert forget("--user", "bob") == ("Forgotten: 1 memory.", [])
        assert len(shown()) == 4
        # The name may be misspelt, and who has asked for it must not take it for done.
        assert main(["memory", "forget", "--yes", "--user", "bob"]) == 1
        nothing = "Nothing is remembered for user:bob in project 'default', any profile.\n"
        assert capsys.readouterr().err == f"mnemogate: {nothing}"


def test_memory_forget_names_the_facts_that_go_and_keeps_one(
    upstream: StrictUpstream, database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names them on a terminal alone: the log of a script has no words of a person."""
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": "ann"}).status == 200
        gateway.call(gateway.app.services.idle.wait())
        gateway.call(learn_of_ann(gateway.app.services.store))
        forget = ["memory", "forget", "--user", "ann", "--message", "1"]
        with pytest.raises(SystemExit):
            main(forget)
        assert "cat" not in capsys.readouterr().err
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit):
            main(forget)
        going = "1 fact would go with it. --keep N keeps one that is true:\n  3  Ann has a cat.\n"
        assert capsys.readouterr().err.startswith(going)
        assert main([*forget, "--keep", "3", "--yes"]) == 0
        report = capsys.readouterr().err
        assert "  3 (stays)  Ann has a cat.\n" in report
        assert "1 fact stayed, on no message." in report
        assert main(["memory", "show", "--user", "ann"]) == 0
        assert "Ann has a cat." in capsys.readouterr().out


async def learn_of_ann(store: Store) -> None:
    agent = await store.agents.find(Scope("default", "default", "user:ann"))
    assert agent is not None
    (row,) = await store.memory_pages.list_newest_exchanges(agent.id, limit=1)
    fact = LearnedFact("Ann has a cat.", "", "cat", 1.0, row, [row])
    await write_learned(store, agent, LearnedChanges(facts=[fact]))


def test_a_forgetting_that_was_cut_off_ends_where_it_is_asked_for_again(
    upstream: StrictUpstream, database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun is found under no name any more, and is still in the file."""
    with owner(upstream, database) as gateway:
        for user in ("ann", "bob"):
            said = {
                "model": "m",
                "user": user,
                "messages": [{"role": "user", "content": f"I am Zq{user}xx."}],
            }
            assert gateway.post(said).status == 200
    with monkeypatch.context() as cut:
        cut.setattr("storage.sql.forget.Forgetting.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(["memory", "forget", "--yes", "--user", "ann"])
    assert b"Zqannxx" in database.read_bytes()
    assert main(["memory", "forget", "--yes", "--user", "ann"]) == 0
    assert capsys.readouterr().err == "There was nothing to forget but what was begun before; it is gone.\n"
    assert b"Zqannxx" not in database.read_bytes()
    assert b"Zqbobxx" in database.read_bytes()


IRREVOCABLE = [
    ("memory forget --all-users", "all that the project 'default' has, its users and its agents"),
    ("memory forget --all-users --profile a", "all that is remembered of all users in the profile 'a'"),
    ("memory forget --user ann --project b", "all that is remembered of the user 'ann' in the project 'b'"),
    ("memory forget --user ann --message 3", "the message 3 of the user 'ann'"),
    ("memory forget --user ann --exchange 3", "the message 3 of the user 'ann', with its question or answer"),
    ("memory forget --agent agent-1 --in 7f", "the conversation '7f' of the agent 'agent-1'"),
    ("keys revoke ann", "the key 'ann'"),
    ("jobs cancel 1", "the job 1"),
    ("batches cancel b1", "the batch 'b1'"),
]


@pytest.mark.parametrize(("command", "what"), IRREVOCABLE)
def test_what_cannot_be_undone_is_not_done_unasked(
    upstream: StrictUpstream, database: Path, command: str, what: str, capsys: Out
) -> None:
    """As in a script, or with its input taken away: `memory forget --all-users </dev/null` erased everything."""
    with owner(upstream, database) as gateway:
        assert gateway.post({**HELLO, "user": "ann"}).status == 200
        assert main(["keys", "create", "--name", "ann"]) == 0
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert what in said
        assert "It cannot be undone, and there is no terminal to ask on: add --yes." in said
        assert main(["memory", "show", "--user", "ann"]) == 0
        assert "user: Hello" in capsys.readouterr().out
        assert main(["keys", "list"]) == 0
        assert "active" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_on_a_terminal_the_operator_is_asked(database: Path, answer: str, code: int, capsys: Out) -> None:
    """The terminal's end of input (^D) is a no."""
    assert main(["keys", "create", "--name", "ann"]) == 0
    ours, theirs = pty.openpty()
    streams = {0: theirs, 2: theirs}
    asked = ["keys", "revoke", "ann"]
    with ForkedProcess("gateway", asked, Path.cwd(), os.environ, Path(os.devnull), streams) as child:
        os.close(theirs)
        seen = b""
        while not seen.endswith(b"[y/N] "):
            seen += os.read(ours, 4096)
        os.write(ours, answer.encode())
        assert child.wait(PATIENCE_S) == code
    os.close(ours)
    assert b"This revokes the key 'ann' for good" in seen
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    assert capsys.readouterr().out.split("\t")[4] == ("revoked" if code == 0 else "active")


# --- as a process -----------------------------------------------------------------------------------------------

SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["mnemogate"]
# As installers write it.
INSTALLED = "import sys; from {} import {} as main; sys.exit(main())".format(*SCRIPT.split(":"))


@pytest.mark.parametrize("entry", [("-m", "gateway"), ("-c", INSTALLED)])
@pytest.mark.parametrize(("handler", "code"), [(signal.SIG_DFL, 130), (signal.SIG_IGN, 7)])
def test_an_interrupt_while_modules_are_loaded_ends_a_command_quietly(
    tmp_path: Path, entry: tuple[str, str], handler: signal.Handlers, code: int
) -> None:
    """Unless it is ignored from the start, as shells have it in the background of a script."""
    (tmp_path / "orjson.py").write_text("print('loading', flush=True)\ninput()\nraise SystemExit(7)\n")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    before = signal.signal(signal.SIGINT, handler)
    try:
        child = subprocess.Popen(
            [sys.executable, *entry, "keys", "list"], env=environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loading\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate("\n", PATIENCE_S)
        assert (child.returncode, said) == (code, "")


def test_an_interrupt_as_a_gateway_starts_ends_it_quietly(database: Path) -> None:
    interrupted = """
import os, signal, sys
from gateway import __main__, serve
made = serve.Gateway

def make(*given, **named):
    os.kill(os.getpid(), signal.SIGINT)
    return made(*given, **named)

serve.Gateway = make
sys.exit(__main__.main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", interrupted, "serve", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert not Path(f"{database}-wal").exists()


@contextmanager
def process(*arguments: str) -> Iterator[tuple[ForkedProcess, str, int]]:
    """Runs `mnemogate serve` in a forked process, with the log `serve.log`. Yields the process, its output and port."""
    log = Path.cwd() / "serve.log"
    with ForkedProcess("gateway", ["serve", "--port", "0", *arguments], Path.cwd(), os.environ, log) as child:
        try:
            said = ""
            while "print(" not in said:  # the last line of the example
                line = child.stdout.readline()
                assert line, log.read_text()
                said += line
            found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", said)
            assert found is not None, said
            yield child, said, int(found[1])
        finally:
            child.kill()


def test_serve_says_where_it_is_and_its_example_works_when_pasted(database: Path) -> None:
    with process() as (_, said, _port):
        assert f"Database: {DatabaseSettings(str(database), url_of(database)).shown}\n" in said
        assert "Background model: none; memory.background_model" in said
        assert 'to model="agent/default" with a `user`, and it uses its memory tools.\n' in said
        example = said[said.index("from openai") :]
        assert len(example.splitlines()) == 5
        pasted = subprocess.run(
            [sys.executable, "-c", example], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert pasted.returncode == 0, pasted.stderr
        assert pasted.stdout.strip()


def test_serve_names_the_user_of_requests_without_one(database: Path) -> None:
    with process("--single-user") as (_, said, _port):
        assert "Memory: everybody's is that of the user 'owner'\n" in said
        assert 'to model="agent/default" and it uses its memory tools.\n' in said
        assert "alice" not in said


def test_a_key_for_a_project_that_nothing_names_says_so(database: Path, capsys: Out) -> None:
    Path("mnemogate.toml").write_text("[projects.red]\nretention_days = 3")
    for project, is_new in (("red", False), ("rde", True), ("rde", False), ("default", False)):
        assert main(["keys", "create", "--project", project]) == 0
        assert (f"no other key and no setting names '{project}'" in capsys.readouterr().err) == is_new


def test_the_first_key_says_that_requests_need_one_now(database: Path, capsys: Out) -> None:
    said = []
    for command in (["create"], ["create"], ["revoke", "--yes", "1"], ["revoke", "--yes", "2"], ["create"]):
        assert main(["keys", *command]) == 0
        said.append("every request needs one" in capsys.readouterr().err)
    assert said == [True, False, False, False, False]


def test_an_error_names_the_variables_whose_values_may_be_wrong(
    database: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mnemogate.toml").touch()
    monkeypatch.setenv("MNEMOGATE_DATABASE_URL", "mysql://u:hush@h/n")
    assert main(["check-config"]) == 2
    said = capsys.readouterr().err
    assert "mnemogate.toml; set besides it: MNEMOGATE_DATABASE_URL\n" in said
    assert "hush" not in said


@pytest.mark.sqlite
def test_serve_says_that_its_database_cannot_be_used(tmp_path: Path) -> None:
    with process("--db", str(tmp_path / "no" / "x.db")) as (_, said, _port):
        assert re.search(r"^Database: \S+x\.db cannot be used .* nothing is remembered$", said, re.M)


def serves_and_ends(child: ForkedProcess | subprocess.Popen[bytes], port: int) -> bool:
    """Waits until a process serves, and returns whether it ends in order."""
    try:
        becomes(lambda: child.poll() is not None or is_ready(port))
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        return child.wait(PATIENCE_S) == 0
    finally:
        child.kill()


@pytest.mark.sqlite
def test_serve_goes_on_where_a_full_disk_takes_nothing(full_disk: int) -> None:
    with held_port() as port:
        streams = {1: full_disk, 2: full_disk}
        serve = ["serve", "--port", str(port)]
        with ForkedProcess("gateway", serve, Path.cwd(), os.environ, Path(os.devnull), streams) as child:
            assert serves_and_ends(child, port)


@pytest.mark.sqlite
def test_serve_goes_on_where_nothing_can_be_printed() -> None:
    serve = [sys.executable, "-m", "gateway", "serve", "--port"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    with held_port() as port, subprocess.Popen([*shell, *serve, str(port)], env=environ) as child:
        assert serves_and_ends(child, port)


@pytest.mark.sqlite
def test_a_command_says_that_its_output_has_no_room(tmp_path: Path, full_disk: int) -> None:
    log = tmp_path / "log"
    with ForkedProcess("gateway", ["check-config"], tmp_path, os.environ, log, {1: full_disk}) as child:
        assert child.wait(PATIENCE_S) == 1
    assert log.read_text() == "mnemogate: what it says cannot be written: No space left on device\n"


def is_ready(port: int) -> bool:
    """Says whether a gateway takes requests there."""
    try:
        with RawClient(port) as client:
            client.request("GET", "/health/ready")
            return bool(client.read_reply().status == 200)
    except OSError:
        return False


def test_sigterm_lets_a_stream_end_and_leaves_in_order(upstream: StrictUpstream, database: Path) -> None:
    gate = Gate()
    upstream.queue(raw(b"data: 1\n\n", b"data: [DONE]\n\n", hold_after={1: gate}))
    with process("--upstream", upstream.base_url) as (child, _, port), RawClient(port) as client:
        client.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}).encode())
        client.read_until(b"data: 1\n\n\r\n")
        child.send_signal(signal.SIGTERM)
        gate.open()
        assert b"[DONE]" in client.read_until(b"0\r\n\r\n")
        assert child.wait(PATIENCE_S) == 0
        lines = [json.loads(line) for line in Path("serve.log").read_text().splitlines()]
        assert [line["status"] for line in lines if "status" in line] == [200]
    assert not Path(str(database) + ".admin").exists()


@pytest.mark.sqlite
def test_a_second_server_on_the_same_database_is_refused_by_name(capsys: Out) -> None:
    with process() as (child, _, port):
        # Not 2, after which systemd would not start it again: a command may have the file, and soon end.
        assert main(["serve", "--port", "0"]) == 1
        said = capsys.readouterr().err
        assert f"process {child.pid}" in said
        assert f"127.0.0.1:{port}" in said
        with RawClient(port) as client:
            client.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "user": "alice"}).encode())
            reply = client.read_reply()
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on")


@pytest.mark.sqlite
def test_a_start_that_the_settings_forbid_leaves_the_database_closed(database: Path, capsys: Out) -> None:
    Path("mnemogate.toml").write_text(
        "[memory]\nembedder = 'claude/vec'\n[[upstreams]]\nname = 'claude'\nkind = 'anthropic'\n"
    )
    assert main(["serve", "--port", "0"]) == 2
    assert "memory.embedder" in capsys.readouterr().err
    assert not Path(f"{database}-wal").exists()


def test_a_killed_server_leaves_nothing_that_stops_the_next(database: Path) -> None:
    with process() as (child, _, _port):
        child.kill()
        child.wait(PATIENCE_S)
    with process() as (_, _, port), RawClient(port) as client:
        client.request("GET", "/health/ready")
        assert client.read_reply().json == {"status": "ok", "store": "ok"}
