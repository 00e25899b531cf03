"""The server is away, slow, read-only, out of connections: each error has its name, and what works comes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from msgspec.structs import replace

from storage.database import Connection, Operation
from storage.errors import (
    ServerRefused,
    StatementFailed,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreLocked,
    StoreReadOnly,
    StoreTimeout,
    StoreUnavailable,
)
from storage.job_records import Job
from storage.postgres.connection import PostgresTarget, RawConnection, connect
from storage.postgres.inspection import inspect
from storage.postgres.postgres_limits import PostgresLimits
from storage.postgres.sqlstates import translate_error
from storage.postgres.url import split_by_host
from storage.sql.store import Store
from tests.gateway.two.proxy import Proxy
from tests.patience import PATIENCE_S, SHORT_S, comes
from tests.rows import each_row
from tests.storage.conftest import OpenStore, PostgresServer
from tests.stored import ALICE, PATIENT, rows

pytestmark = pytest.mark.usefixtures("own_sessions")

ROOT = Path(__file__).parents[3]
# An outage and its end are soon noticed. A test that reads after an outage gives the read more time.
QUICK = replace(PATIENT, retry_first_s=0.02, retry_max_s=0.05, read_timeout_s=SHORT_S, check_timeout_s=0.2)


async def ask(connection: Connection) -> int:
    return int(await connection.fetch_value("SELECT 1"))


async def wait(connection: Connection) -> None:
    await connection.fetch_value("SELECT pg_sleep(1000)")


async def test_a_write_that_is_cancelled_before_it_starts_ends_with_an_error(
    open_store: OpenStore, proxy: Proxy
) -> None:
    store: Store = await open_store(path=proxy.url)
    write = store.database.write(ask)
    await store.database.close(timeout_s=0)
    with pytest.raises(StoreClosed):
        write.result()


async def test_a_server_that_is_lost_is_named_refused_at_once_and_comes_back(
    open_store: OpenStore, proxy: Proxy
) -> None:
    store: Store = await open_store(path=proxy.url, limits=replace(QUICK, read_timeout_s=PATIENCE_S))
    heard: list[bool] = []
    store.database.add_recovery_listener(lambda: heard.append(True))
    proxy.refuse()
    with pytest.raises(StoreUnavailable):
        await store.keys.list()
    await comes(lambda: not store.health.ok)
    with pytest.raises(StoreFailed):
        await store.database.write(ask)
    assert (store.health.status, bool(store.health.error)) == ("broken", True)
    proxy.allow()
    await comes(lambda: store.health.ok)
    assert heard == [True]
    assert await store.keys.list() == ()


@pytest.mark.parametrize("kind", ["listens", "is behind a pooler"])
async def test_a_server_that_is_lost_is_noticed_without_a_request(
    open_store: OpenStore, proxy: Proxy, kind: str
) -> None:
    # The listener hears of it at once; the check comes to it where notifications do not arrive.
    limits = replace(QUICK, health_check_interval_s=3600.0 if kind == "listens" else 0.02)
    store: Store = await open_store(path=proxy.url, limits=limits, is_pooled=kind != "listens")
    failed: list[str] = []
    heard: list[str | None] = []
    store.database.add_failure_listener(lambda fault: failed.append(fault.status))
    store.database.add_listener("any", heard.append)
    store.database.start()
    await comes(lambda: bool(heard))
    proxy.refuse()
    await comes(lambda: not store.health.ok)
    assert (store.health.status, failed) == ("broken", ["broken"])
    proxy.allow()
    await comes(lambda: store.health.ok)


async def test_a_server_that_answers_no_more_is_noticed_without_a_request(
    open_store: OpenStore, proxy: Proxy
) -> None:
    store: Store = await open_store(path=proxy.url, limits=replace(QUICK, health_check_interval_s=0.02))
    store.database.start()
    proxy.stall()
    await comes(lambda: not store.health.ok)
    proxy.flow()
    await comes(lambda: store.health.ok)


@pytest.mark.parametrize("table", ["agents", "conversations", "exchanges", "sections", "blocks", "recalls"])
async def test_a_table_that_a_turn_cannot_read_is_noticed_without_a_request(
    open_store: OpenStore, database: PostgresServer, table: str
) -> None:
    store: Store = await open_store(limits=replace(QUICK, health_check_interval_s=0.02))
    store.database.start()
    admin = await asyncpg.connect(database.url)
    try:
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            await comes(lambda: store.health.status == "slow")
        await comes(lambda: store.health.ok)
    finally:
        await admin.close()


@pytest.mark.parametrize("table", ["exchanges", "recalls"])
async def test_a_table_that_is_gone_is_noticed_without_a_request(
    open_store: OpenStore, database: PostgresServer, table: str
) -> None:
    """Until it is back, as when a backup is restored into the database."""
    store: Store = await open_store(limits=replace(QUICK, health_check_interval_s=0.02))
    recoveries: list[str] = []
    store.database.add_recovery_listener(lambda: recoveries.append(store.health.status))
    store.database.start()
    admin = await asyncpg.connect(database.url)
    try:
        await admin.execute(f"ALTER TABLE {table} RENAME TO gone")
        await comes(lambda: store.health.status == "broken")
        assert f'"{table}" does not exist' in (store.health.error or "")
        # A later attempt to connect finds that another table is gone as well.
        await admin.execute("ALTER TABLE agents RENAME TO also_gone")
        await comes(lambda: '"agents" does not exist' in (store.health.error or ""))
        assert not recoveries
    finally:
        await admin.execute("ALTER TABLE IF EXISTS also_gone RENAME TO agents")
        await admin.execute(f"ALTER TABLE gone RENAME TO {table}")
        await admin.close()
    await comes(lambda: store.health.ok)


async def test_a_store_opens_without_a_table_and_works_once_it_is_back(
    open_store: OpenStore, database: PostgresServer
) -> None:
    await (await open_store()).close()
    admin = await asyncpg.connect(database.url)
    try:
        await admin.execute("ALTER TABLE recalls RENAME TO gone")
        store: Store = await open_store(limits=QUICK)
        assert store.health.status == "broken"
        assert '"recalls" does not exist' in (store.health.error or "")
    finally:
        await admin.execute("ALTER TABLE gone RENAME TO recalls")
        await admin.close()
    await comes(lambda: store.health.ok)


async def test_a_store_opens_while_a_table_is_locked_also_through_a_pooler(
    open_store: OpenStore, database: PostgresServer
) -> None:
    await (await open_store()).close()
    admin = await asyncpg.connect(database.url)
    try:
        async with admin.transaction():
            await admin.execute("LOCK TABLE recalls IN ACCESS EXCLUSIVE MODE")
            store: Store = await open_store(limits=QUICK, is_pooled=True)
            assert store.health.status == "locked"
    finally:
        await admin.close()
    await comes(lambda: store.health.ok)


async def test_an_inspection_finds_a_table_that_is_gone(
    open_store: OpenStore, database: PostgresServer
) -> None:
    await open_store()
    admin = await asyncpg.connect(database.url)
    try:
        await admin.execute("ALTER TABLE recalls RENAME TO gone")
        with pytest.raises(StatementFailed, match='"recalls" does not exist'):
            await inspect(PostgresTarget(database.url), PostgresTarget(database.url))
    finally:
        await admin.execute("ALTER TABLE gone RENAME TO recalls")
        await admin.close()


async def test_an_inspection_through_a_pooler_names_a_lock(
    open_store: OpenStore, database: PostgresServer
) -> None:
    await open_store()
    admin = await asyncpg.connect(database.url)
    target = PostgresTarget(database.url, is_pooled=True)
    try:
        async with admin.transaction():
            await admin.execute("LOCK TABLE recalls IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreLocked, match="lock timeout"):
                async with asyncio.timeout(PATIENCE_S):
                    await inspect(target, target)
    finally:
        await admin.close()


async def test_a_primary_that_becomes_a_replica_is_noticed_without_a_request(
    open_store: OpenStore, database: PostgresServer
) -> None:
    store: Store = await open_store(limits=replace(QUICK, size=1, health_check_interval_s=0.02))
    store.database.start()
    name = database.url.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(database.url)
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        await rows(
            store, "SET default_transaction_read_only = on"
        )  # the one that is open does not know it yet
        await comes(lambda: store.health.status == "readonly")
    finally:
        await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await admin.close()
    await comes(lambda: store.health.ok)


async def test_a_server_that_is_away_at_the_start_is_opened_when_it_comes(
    open_store: OpenStore, proxy: Proxy
) -> None:
    proxy.refuse()
    store: Store = await open_store(path=proxy.url, limits=QUICK)
    assert store.health.status == "broken"
    proxy.allow()
    await comes(lambda: store.health.ok)
    await store.keys.create("shop", "laptop")


async def test_a_job_whose_claim_had_no_answer_is_claimed_again_at_once(
    open_store: OpenStore, proxy: Proxy
) -> None:
    store = await open_store(path=proxy.url)
    id = await store.jobs.enqueue("learn", 0, "k")
    proxy.cut_at("COMMIT", after_reply=True, within="UPDATE jobs")
    with pytest.raises(StoreFailed):
        await claim(store)
    await comes(lambda: store.health.is_up)
    assert await store.jobs.leases.find_due_in(["learn"]) == 0.0
    job = await claim(store)
    assert job is not None
    # The claim without an answer does not count.
    assert (job.id, job.tries) == (id, 1)


async def test_a_claim_that_came_to_nothing_ends_no_claim_of_another_process(
    open_store: OpenStore, proxy: Proxy
) -> None:
    store, other = await open_store(path=proxy.url), await open_store()
    await store.jobs.enqueue("learn", 0, "k")
    proxy.cut_at("COMMIT", after_reply=False, within="UPDATE jobs")
    with pytest.raises(StoreFailed):
        await claim(store)
    async with asyncio.timeout(PATIENCE_S):
        # Until the server has seen that the connection is cut.
        while (job := await claim(other)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert job.attempt == 1  # as the claim that came to nothing
    await comes(lambda: store.health.is_up)
    assert await claim(store) is None
    assert await other.jobs.leases.is_held(job)
    assert await other.jobs.leases.find_due_in(["learn"]) > 10.0
    assert await store.jobs.leases.find_due_in(["learn"]) > 10.0


async def claim(store: Store) -> Job | None:
    return await store.jobs.leases.claim(["learn"], lease_s=60.0, tries=3)


async def test_connections_that_the_server_ends_are_reopened(
    open_store: OpenStore, database: PostgresServer
) -> None:
    store: Store = await open_store(limits=replace(QUICK, read_timeout_s=PATIENCE_S))
    admin = await asyncpg.connect(database.url)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = $1"
    await admin.fetch(end, database.url.partition("?")[0].rpartition("/")[2])
    await admin.close()
    with contextlib.suppress(StoreUnavailable):
        await store.keys.list()  # whoever asks first may meet it
    await comes(lambda: store.health.ok)
    await store.keys.create("shop", "laptop")
    assert len(await store.keys.list()) == 1


async def test_a_turn_is_written_although_its_connection_is_ended_twice(open_store: OpenStore) -> None:
    """A turn that was answered already would be lost. Any other write is tried twice."""
    store: Store = await open_store()

    def ended(times: int) -> Operation[int]:
        tries = itertools.count(1)

        async def work(connection: Connection) -> int:
            number = next(tries)
            if number <= times:
                await connection.fetch_value("SELECT pg_terminate_backend(pg_backend_pid())")
            return number

        return work

    assert await store.database.write(ended(2), is_repeatable=True) == 3
    assert await store.database.write(ended(1)) == 2
    with pytest.raises(StoreFailed):
        await store.database.write(ended(2))


async def test_a_read_past_its_deadline_is_too_slow_and_its_connection_is_used_again(
    open_store: OpenStore,
) -> None:
    store: Store = await open_store(limits=replace(PATIENT, size=2))
    for _ in range(5):  # more than there are connections
        with pytest.raises(StoreTimeout):
            await store.database.read(wait, deadline_ms=20)
    assert await store.database.read(ask, deadline_ms=5_000) == 1
    assert store.health.ok


async def test_a_read_that_is_repeated_with_other_texts_gets_no_second_deadline(
    open_store: OpenStore,
) -> None:
    """PostgreSQL refuses U+0000 in a text."""
    store: Store = await open_store(limits=PATIENT)

    async def read_late(connection: Connection) -> object:
        try:
            return await connection.fetch_value("SELECT $1::text", ("a\0b",))
        finally:
            await asyncio.sleep(0.5)  # the deadline

    with pytest.raises(StoreTimeout):
        await store.database.read(read_late, deadline_ms=500)
    assert store.health.ok


async def test_a_network_that_swallows_everything_is_noticed(open_store: OpenStore, proxy: Proxy) -> None:
    store: Store = await open_store(path=proxy.url, limits=QUICK)
    proxy.stall()
    with pytest.raises(StoreUnavailable):
        await store.keys.list()
    await comes(lambda: not store.health.ok)
    proxy.flow()
    await comes(lambda: store.health.ok)
    assert await store.database.long_read(ask) == 1


async def test_a_write_that_has_no_answer_finds_that_the_server_gives_none(
    open_store: OpenStore, proxy: Proxy
) -> None:
    """Else the next write gets its connection, and waits as long: nothing is stored until the network gives up."""
    store: Store = await open_store(path=proxy.url, limits=replace(QUICK, write_timeout_s=0.3))
    proxy.stall()
    with pytest.raises(StoreTimeout):
        await store.database.write_one("SELECT 1", ())
    assert store.health.status == "broken"
    proxy.flow()
    await comes(lambda: store.health.ok)
    assert await store.database.write(ask) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere systems have other names for it, or nothing")
async def test_a_connection_ends_soon_after_the_machine_at_its_other_end(proxy: Proxy) -> None:
    """What was sent is not confirmed, or a probe of a silent connection is not."""
    raw: Any = await connect(PostgresTarget(proxy.url))
    try:
        found = raw._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
        assert [found.getsockopt(socket.IPPROTO_TCP, each) for each in options] == [5000, 5, 1]
    finally:
        raw.terminate()


async def test_connections_that_do_not_answer_hold_up_the_end_together(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would take longer than a service manager waits."""
    store: Store = await open_store(limits=replace(PATIENT, size=2))
    met, closing = asyncio.Barrier(2), asyncio.Barrier(2)

    async def meet(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        await met.wait()

    async def close(raw: Any, *, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await closing.wait()
        except TimeoutError:
            pytest.fail("the other one is not being closed")

    await asyncio.gather(store.database.write(meet), store.database.write(meet))
    monkeypatch.setattr(asyncpg.Connection, "close", close)
    await store.close()


async def test_reads_wait_a_moment_for_a_connection_and_writes_as_long_as_it_takes(
    open_store: OpenStore,
) -> None:
    store: Store = await open_store(limits=PostgresLimits(size=2, acquire_timeout_s=0.05))
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        held.set()
        await go_on.wait()

    holding = [store.database.write(hold) for _ in range(2)]
    await held.wait()
    write = store.database.write(ask)
    # As past a deadline: what can do without the read does without it.
    for deadline_ms in (None, 20):
        with pytest.raises(StoreTimeout):
            await store.database.read(ask, deadline_ms=deadline_ms)
    go_on.set()
    assert await write == 1
    await asyncio.gather(*holding)


async def test_a_store_is_slow_while_a_turn_waits_for_a_connection_and_not_while_one_write_takes_long(
    open_store: OpenStore,
) -> None:
    store: Store = await open_store(limits=replace(PATIENT, size=2, bulk_connections=1, slow_wait_s=0.0))
    held, go_on = asyncio.Barrier(3), asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        await held.wait()
        await go_on.wait()

    writes = [store.database.write(hold)]
    await comes(lambda: held.n_waiting == 1)
    assert store.health.status == "ok"
    writes.append(store.database.bulk_write(hold))
    waiting_bulk = store.database.bulk_write(ask)
    await held.wait()
    assert store.health.status == "ok"
    waiting = store.database.write(ask)
    await comes(lambda: store.health.status == "slow")
    go_on.set()
    await asyncio.gather(*writes, waiting, waiting_bulk)
    assert store.health.status == "ok"


async def test_a_freed_connection_is_used_while_the_server_refuses_new_ones(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task that would hand it on has one then: a write would wait for ever, and all after it."""
    store: Store = await open_store(limits=PostgresLimits(size=2))
    asked, refuse, held, go_on = (asyncio.Event() for _ in range(4))

    async def full(place: PostgresTarget) -> RawConnection:
        asked.set()
        await refuse.wait()
        raise StoreBusy(f"{place.name}: sorry, too many clients already")

    async def hold(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        held.set()
        await go_on.wait()

    monkeypatch.setattr("storage.postgres.database_server.connect", full)
    first = store.database.write(hold)
    await held.wait()
    second = store.database.write(ask)
    await asked.wait()
    go_on.set()
    await first
    refuse.set()
    async with asyncio.timeout(PATIENCE_S):
        assert await second == 1
    assert await store.database.read(ask) == 1


async def test_bulk_leaves_connections_to_turns(open_store: OpenStore) -> None:
    store: Store = await open_store(limits=replace(PATIENT, size=3, bulk_connections=2))
    go_on = asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        await go_on.wait()

    holding = [store.database.bulk_write(hold) for _ in range(5)]
    for _ in range(3):
        assert await store.database.read(ask) == 1
        assert await store.database.write(ask) == 1
    go_on.set()
    await asyncio.gather(*holding)


async def test_long_reads_leave_connections_to_turns(open_store: OpenStore) -> None:
    """Else some exports at a time take the memory of everybody's turns."""
    store: Store = await open_store(
        limits=replace(PATIENT, size=4, bulk_connections=1, acquire_timeout_s=0.1)
    )
    go_on = asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.fetch_value("SELECT 1")
        await go_on.wait()

    holding = [asyncio.ensure_future(store.database.long_read(hold)) for _ in range(6)]
    try:
        for _ in range(3):
            assert await store.database.read(ask) == 1
            assert await store.database.write(ask) == 1
            assert await store.database.long_read(ask, deadline_ms=PATIENCE_S * 1000) == 1
    finally:
        go_on.set()
        await asyncio.gather(*holding, return_exceptions=True)


async def test_more_bytes_than_may_wait_are_refused(open_store: OpenStore) -> None:
    store: Store = await open_store(limits=replace(PATIENT, queue_bytes=10_000))
    first = store.database.write(ask, size_bytes=20_000)  # nothing stands before it
    with pytest.raises(StoreBusy):
        store.database.write(ask, size_bytes=1)
    assert await first == 1
    assert await store.drain(PATIENCE_S)
    assert await store.database.write(ask, size_bytes=1) == 1


async def test_a_primary_that_becomes_a_replica_is_read_only_until_it_is_primary_again(
    open_store: OpenStore, database: PostgresServer, proxy: Proxy
) -> None:
    store: Store = await open_store(limits=QUICK, listen_url=proxy.url)
    store.database.start()
    await comes(lambda: proxy.connection_count == 1)
    name = database.url.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(database.url)
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        # Those that are open do not know it yet.
        await rows(store, "SET default_transaction_read_only = on")
        with pytest.raises(StoreReadOnly):
            await store.keys.create("shop", "laptop")
        await comes(lambda: store.health.status == "readonly")
    finally:
        await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await admin.close()
    await comes(lambda: store.health.ok)
    await store.keys.create("shop", "laptop")
    # Another server may be the primary now, and the old one would go on hearing itself.
    await comes(lambda: proxy.connection_count >= 2)


async def test_a_write_that_is_wrong_in_itself_leaves_nothing_and_stops_no_other(
    open_store: OpenStore,
) -> None:
    store: Store = await open_store(limits=replace(PATIENT, size=2))

    async def fail(connection: Connection) -> None:
        await connection.run("INSERT INTO probe (id, filler) VALUES (7, '')")
        await connection.fetch_value("SELECT nothing")

    for _ in range(3):
        with pytest.raises(StatementFailed):
            await store.database.write(fail)
    assert store.health.ok
    assert await rows(store, "SELECT count(*) FROM probe") == [(0,)]


async def test_a_refused_login_is_reported_without_the_password(database: PostgresServer) -> None:
    there, _, options = database.url.partition("?")
    url = there.replace("postgres:@", "postgres:secret@").rpartition("/")[0] + f"/no_such_database?{options}"
    with pytest.raises(ServerRefused, match="no_such_database") as refused:
        await database.open(path=url)
    assert "secret" not in refused.value.message


async def test_two_that_meet_in_a_circle_are_both_written(open_store: OpenStore) -> None:
    store: Store = await open_store()
    await rows(store, "INSERT INTO probe (id, filler) VALUES (1, ''), (2, '')")
    meeting = asyncio.Barrier(2)
    rounds = [0, 0]

    def crossing(first: int, second: int) -> Callable[[Connection], object]:
        async def write(connection: Connection) -> None:
            rounds[first - 1] += 1
            await connection.run("UPDATE probe SET filler = $1 WHERE id = $2", (b"x", first))
            if rounds[first - 1] == 1:
                await meeting.wait()
            await connection.run("UPDATE probe SET filler = $1 WHERE id = $2", (b"y", second))

        return write

    await asyncio.gather(*(store.database.write(crossing(*each)) for each in ((1, 2), (2, 1))))  # type: ignore[arg-type]
    assert max(rounds) > 1  # more often where an attempt of the one met the next of the other


@each_row(
    ("state", "expected"),
    [
        ("25006", "StoreReadOnly"), ("53100", "StoreFull"), ("53200", "StoreFull"), ("53300", "StoreBusy"),
        ("57014", "StoreTimeout"),
        ("55P03", "StoreLocked"), ("40001", "WriteConflict"), ("40P01", "WriteConflict"), ("23505", "WriteConflict"),
        ("XX001", "StoreCorrupt"), ("XX002", "StoreCorrupt"), ("42601", "StatementFailed"),
        ("22021", "StatementFailed"),
        ("57P01", "StoreFailed"), ("57P03", "StoreFailed"), ("08006", "StoreFailed"), ("28P01", "ServerRefused"),
        ("3D000", "ServerRefused"), ("42501", "ServerRefused"), ("58030", "StoreFailed"),
    ],
)  # fmt: skip
def test_each_sqlstate_has_its_error(state: str, expected: str) -> None:
    error = asyncpg.PostgresError("no")
    error.sqlstate = state
    assert type(translate_error(error)).__name__ == expected


@pytest.mark.parametrize(
    "error",
    [
        # as it is raised where the server ends the connection within a statement
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        asyncpg.InterfaceError("cannot perform operation: connection is closed"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_end_of_a_connection_has_the_same_words_whoever_meets_it(error: Exception) -> None:
    answer = translate_error(error, "db")
    assert (type(answer), answer.message) == (StoreFailed, "db: PostgreSQL closed the connection")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known."),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "certificate verify failed."),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused."),
        (OSError("Multiple exceptions"), "Multiple exceptions."),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_why_a_server_does_not_answer_is_said_in_the_system_s_words(
    monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(asyncpg, "connect", refuse)
    with pytest.raises(StoreFailed) as caught:
        await connect(PostgresTarget("postgresql://db.example/x"))
    assert f"does not answer: {says} Start" in caught.value.message


@pytest.mark.parametrize(
    ("statement", "values", "says"),
    [
        ("INSERT INTO said VALUES ($1, NULL)", ["xyzzy"], "violates not-null"),
        ("INSERT INTO said VALUES ($1, 1), ($1, 2)", ["xyzzy"], "violates unique"),
        ("SELECT ($1::text)::int", ["xyzzy"], "InvalidTextRepresentation"),
        ("SELECT $1::int", ["xyzzy"], "DataError"),
        ("SELECT $1::text", ["xyzzy \ud800"], "DataError"),
    ],
)
async def test_an_error_quotes_nothing_of_a_row(
    database: PostgresServer, statement: str, values: list[str], says: str
) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute("CREATE TEMP TABLE said (text text UNIQUE, at int NOT NULL)")
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute(statement, *values)
    finally:
        await connection.close()
    error = translate_error(caught.value)
    assert says in error.message
    assert "xyzzy" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("encoding", "is_taken"), [("UTF8", True), ("SQL_ASCII", True), ("LATIN1", False), ("EUC_JP", False)]
)
async def test_a_database_that_cannot_keep_every_text_is_refused(
    open_store: OpenStore, postgres: str, encoding: str, is_taken: bool
) -> None:
    name = f"mnemogate_{os.getpid()}_{encoding.lower()}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    url = urlunsplit(urlsplit(postgres)._replace(path=f"/{name}"))
    try:
        if is_taken:
            store = await open_store(path=url)
            await store.agents.find_or_create(ALICE._replace(subject="user:ж☂"), (), (), 1.0)
            found = await store.forget_targets.list_memories("default", None, "user:ж☂")
            assert len(found) == 1
            await store.close()
        else:
            with pytest.raises(ServerRefused, match=f"has the encoding {encoding}.*--encoding UTF8"):
                await open_store(path=url)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.mark.parametrize(("major", "is_taken"), [(b"13", False), (b"14", True)])
async def test_a_server_that_is_too_old_is_refused(
    open_store: OpenStore, proxy: Proxy, major: bytes, is_taken: bool
) -> None:
    proxy.replacement = (rb"(?<=server_version\0)\d\d", major)
    if is_taken:
        assert (await open_store(path=proxy.url)).health.ok
        return
    with pytest.raises(ServerRefused, match="is PostgreSQL 13; 14 or newer is needed"):
        await open_store(path=proxy.url)


async def test_names_of_prepared_statements_are_of_one_process(database: PostgresServer) -> None:
    """Else a session that a pooler hands on would run what another gateway has prepared under that name."""
    code = (
        "import asyncio, sys; from storage.postgres.connection import PostgresTarget, connect\n"
        "async def main():\n"
        "    raw = await connect(PostgresTarget(sys.argv[1]))\n"
        "    await raw.fetch('SELECT 1')\n"
        "    print(*[name for (name,) in await raw.fetch('SELECT name FROM pg_prepared_statements')])\n"
        "asyncio.run(main())"
    )
    ran = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, database.url, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        for _ in range(2)
    ]
    names = [(await each.communicate())[0].split() for each in ran]
    assert names[0]
    assert names[1]
    assert set(names[0]).isdisjoint(names[1])


def test_a_pooler_that_loses_statements_is_named_with_its_setting() -> None:
    error = asyncpg.InvalidSQLStatementNameError('prepared statement "__asyncpg_1__" does not exist')
    assert "database.pooled = true" in translate_error(error).message


@pytest.mark.parametrize("met", [4, 5])
async def test_a_write_that_meets_others_in_a_circle_is_tried_again_some_times(
    open_store: OpenStore, met: int
) -> None:
    store: Store = await open_store()
    tried: list[int] = []

    async def write(connection: Connection) -> int:
        tried.append(1)
        if len(tried) <= met:
            await connection.run("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")
        return await ask(connection)

    if met < 5:
        assert await store.database.write(write) == 1
    else:
        with pytest.raises(StoreError):
            await store.database.write(write)
    assert len(tried) == 5
    assert store.health.ok


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:99999/db",
        "127.0.0.1:-1",
        "a:1,[::1]:0,b:2/db",
        "/db?host=a&port=65536&user=ann",
        "a:abc/db",
        "a:1,[::1]:x/db",
        "a/db?port=abc",
        "/db?host=a,b:--5",
        "/db?host=a&port=--5",
        "/db?host=a&port=²",
    ],
)
async def test_a_port_that_cannot_be_is_said_so(url: str) -> None:
    with pytest.raises(ServerRefused, match="a port is a number from 1 to 65535"):
        await connect(PostgresTarget(f"postgresql://ann:1@{url}"))


@pytest.mark.parametrize("more", ["/db?application_name=a:70000", "/a:70000", "?password=h@h:70000"])
async def test_a_text_that_only_looks_like_a_port_is_none(more: str) -> None:
    with pytest.raises(StoreFailed):
        await connect(PostgresTarget(f"postgresql://ann@127.0.0.1:1{more}"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann@ours:hush@127.0.0.1/db",
        "postgresql://ann:hush/h@127.0.0.1/db",
        "postgresql://ann:a,hush/h@127.0.0.1/db",
        "postgresql://ann:hu@hush@127.0.0.1/db",
        "postgresql://ann:1?hush@127.0.0.1/db",
        "postgresql://ann:1/hush@127.0.0.1/db",
        "postgresql://ann:1#hush@127.0.0.1/db",
    ],
)
async def test_a_url_that_cannot_be_read_keeps_its_password(url: str) -> None:
    with pytest.raises(ServerRefused, match=r"the URL cannot be read; .*%40 for @") as refused:
        await connect(PostgresTarget(url))
    assert "hush" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("//h/db", ["//h/db"]),
        ("//ann:a%2Cb@h:1,[::1]:2/db?x=a@b", ["//ann:a%2Cb@h:1/db?x=a@b", "//ann:a%2Cb@[::1]:2/db?x=a@b"]),
        ("//%2Fa,%2Fb", ["//%2Fa", "//%2Fb"]),
        # Sockets are named like this. asyncpg goes by `host` only where no host stands before the path.
        ("//ann@/db?host=/a,/b", ["//ann@/db?host=%2Fa&port=", "//ann@/db?host=%2Fb&port="]),
        ("///db?host=g,h&port=1,2", ["///db?host=g&port=1", "///db?host=h&port=2"]),
        ("///db?host=g,h&port=1&x=y+z", ["///db?x=y+z&host=g&port=1", "///db?x=y+z&host=h&port=1"]),
        ("//g/db?host=h,i", ["//g/db?host=h,i"]),
        # No port stands after the colon of a directory.
        ("///db?host=/a:b,/c", ["///db?host=%2Fa%3Ab&port=", "///db?host=%2Fc&port="]),
        ("//h:/db?port=05432", ["//h:/db?port=05432"]),
    ],
)
def test_each_host_has_a_url(url: str, urls: list[str]) -> None:
    assert split_by_host(f"postgresql:{url}") == [f"postgresql:{each}" for each in urls]


@pytest.mark.parametrize(
    ("url", "ports", "urls"),
    [
        ("//g,h/db", "1,2", ["//g:1/db", "//h:2/db"]),
        ("//g,h:3/db?x=y", "1", ["//g:1/db?x=y", "//h:3/db?x=y"]),
        ("///db", "1,2", ["///db?host=a&port=1", "///db?host=b&port=2"]),
        ("///db?host=g,h", "", ["///db?host=g&port=", "///db?host=h&port="]),
        ("//h/db", "1", ["//h/db"]),
    ],
)
def test_the_environment_supplies_the_parts_that_a_url_leaves_out(
    url: str, ports: str, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "a,b")
    monkeypatch.setenv("PGPORT", ports)
    assert split_by_host(f"postgresql:{url}") == [f"postgresql:{each}" for each in urls]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("h,/db", "one of its 2 hosts has no name"),  # it would be the local server
        ("/db?host=g,,h", "one of its 3 hosts has no name"),
        ("/db?host=g,h,i&port=1,2", "it names 3 hosts and 2 ports"),
    ],
)
def test_hosts_that_cannot_be_distinguished_are_reported(url: str, said: str) -> None:
    with pytest.raises(ServerRefused, match=said):
        PostgresTarget(f"postgresql://{url}")


@pytest.mark.parametrize("are_options", [False, True])
async def test_a_host_that_does_not_answer_is_skipped_and_then_tried_last(
    proxy: Proxy, database: PostgresServer, are_options: bool
) -> None:
    with Proxy(database.url) as other:
        proxy.stall()  # as a machine that has vanished
        hosts = f"127.0.0.1:{proxy.port},127.0.0.1:{other.port}"
        url = proxy.url.replace(f"127.0.0.1:{proxy.port}", "" if are_options else hosts)
        place = PostgresTarget(f"{url}?host={hosts}" if are_options else url, connect_s=1.5)
        for _ in range(3):
            (await connect(place)).terminate()
        assert (proxy.connection_count, other.connection_count) == (1, 3)
        other.refuse()
        with pytest.raises(
            StoreFailed, match=rf"{other.port}\b.*; .*{proxy.port}\b.*no connection within 1.5 s"
        ):
            await connect(place)
        proxy.flow()
        (await connect(place)).terminate()


async def test_the_writable_one_of_several_hosts_is_used(proxy: Proxy, database: PostgresServer) -> None:
    with Proxy(database.url) as standby:
        standby.replacement = (rb"in_hot_standby\0off\0", b"in_hot_standby\0on\0\0")
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{proxy.port}"
        place = PostgresTarget(proxy.url.replace(f"127.0.0.1:{proxy.port}", hosts))
        (await connect(place)).terminate()
        assert (standby.connection_count, proxy.connection_count) == (1, 1)
