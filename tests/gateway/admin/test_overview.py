"""The overview, requests and the audit, as operations and on the command line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadRequest, UnknownId
from gateway.operations import ServingParts, make_operations, make_request_operations
from gateway.run.admin.audit_operations import AuditFilter, AuditOperations
from gateway.run.admin.overview_operation import WELL, NewestMemories, OverviewOperation, OverviewRecord
from gateway.run.admin.recall_retention import RecallRetention
from gateway.run.admin.records.memory_records import MemoryRecord
from gateway.run.admin.records.request_records import RequestRecord
from gateway.run.admin.requests import request_lists
from gateway.run.admin.requests.request_operations import RequestOperations
from gateway.run.receipt import Receipt
from gateway.run.request_log import LoggedRequest, RequestLog
from storage.errors import StoreError, StoreFailed, StoreTimeout
from storage.job_records import NO_AGENT
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, agent, remember
from tests.patience import becomes


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def ask(world: World, text: str, **headers: str) -> dict[str, str]:
    reply = world.post([{"role": "user", "content": text}], headers)
    assert reply.status == 200
    world.settle()
    return dict(reply.headers)


async def no_memories(project: str | None, limit: int) -> Sequence[MemoryRecord]:
    return ()


def requests_of(world: World) -> RequestOperations:
    app = world.gateway.app
    return make_request_operations(app.services.settings, world.store, app.services.requests)


def overview(
    world: World, project: str | None = None, newest_memories: NewestMemories = no_memories, **upstreams: bool
) -> OverviewRecord:
    app = world.gateway.app
    resting = (lambda: upstreams) if upstreams else app.services.chat.failover.find_passed_over
    operation = OverviewOperation(
        world.store, app.services.requests, requests_of(world), newest_memories, resting, "1"
    )
    return world.gateway.call(operation.show(project))


@pytest.mark.both
def test_a_gateway_that_works_is_well(world: World) -> None:
    ask(world, "Hello.", **{"x-mnemogate-user": "alice"})
    ask(world, "Hello.", **{"x-mnemogate-user": "alice", "x-mnemogate-memory": "off"})
    found = overview(world)
    assert (found.state, found.sentence, found.problems) == ("well", WELL, ())
    assert (found.requests.last_hour, found.requests.failed, found.requests.in_flight) == (2, 0, 0)
    assert (found.memory.on, found.memory.off, found.memory.none) == (1, 1, 0)
    assert found.added_ms.p99 is not None
    assert found.added_ms.p50 is not None
    assert 0 < found.added_ms.p50 <= found.added_ms.p99
    assert [(each.name, each.state) for each in found.upstreams] == [("up", "well")]
    assert [each.mode for each in found.replies] == ["off", "on"]
    assert overview(world, "other").requests.last_hour == 0
    assert overview(world, "other").replies == ()


@pytest.mark.both
def test_what_is_wrong_comes_first_and_worst_first(world: World) -> None:
    ask(world, "Hello.")

    async def fail() -> None:
        jobs = world.store.jobs
        await jobs.enqueue("nothing", NO_AGENT, "key")
        job = await jobs.leases.claim(["nothing"], lease_s=60, tries=3)
        assert job is not None
        await jobs.fail(job, "It cannot be done.", None)

    world.gateway.call(fail())
    found = overview(world)
    assert found.state == "degraded"
    assert [(each.text, each.href) for each in found.problems] == [
        ("1 job has failed.", "work"),
        ("1 request named nobody: nothing is remembered of it.", "requests?only=none"),
    ]
    assert found.sentence == "1 job has failed. 1 request named nobody: nothing is remembered of it."
    assert found.jobs.failed == 1
    # A job without a memory is no project's.
    assert overview(world, "default").jobs.failed == 0


def test_an_upstream_that_rests_is_named_and_none_left_is_down(world: World) -> None:
    one = overview(world, openai=False, azure=True)
    assert (one.state, one.sentence) == (
        "degraded",
        "The upstream azure rests after it has failed: others answer.",
    )
    both = overview(world, openai=True, azure=True)
    assert (both.state, both.sentence) == (
        "down",
        "No upstream answers: each one rests after it has failed.",
    )


@pytest.mark.parametrize(
    ("error", "state", "sentence"),
    [
        (StoreTimeout("slow"), "degraded", "Not all of this could be read in time: open it again."),
        (StoreFailed("broken"), "down", "The database cannot be used: replies go on without memory."),
    ],
)
def test_a_database_that_is_slow_is_not_down(
    world: World, error: StoreError, state: str, sentence: str
) -> None:
    ask(world, "Hello.", **{"x-mnemogate-user": "alice"})

    async def fail(project: str | None, limit: int) -> Sequence[MemoryRecord]:
        raise error

    found = overview(world, newest_memories=fail)
    assert (found.state, found.sentence) == (state, sentence)
    assert [each.mode for each in found.replies] == ["on"]


def test_a_request_that_ends_late_hides_none_that_began_after_it(world: World) -> None:
    log = RequestLog(world.clock)
    late, *others = receipts = [Receipt(f"request-{n}") for n in range(3)]
    for receipt in receipts:
        log.begin(receipt, "default", "model", is_streamed=True)
    for receipt in (*others, late):
        log.end(receipt, 200)
    operations = RequestOperations(world.store, RecallRetention(world.clock, 7.0), log)
    found, after = [], None
    for _ in receipts:
        page = world.gateway.call(operations.lists.read_page(after=after, limit=1))
        found += [each.id for each in page.items]
        after = page.next
    assert (found, after) == (["request-2", "request-1", "request-0"], None)


def test_a_page_of_requests_makes_no_more_of_them_than_it_shows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2,000 it took the event loop 10 ms, on the overview and with each look of a list that is followed."""
    log, made = RequestLog(world.clock), list[str]()
    for n in range(200):
        log.begin(receipt := Receipt(f"request-{n}"), "default", "model", is_streamed=True)
        log.end(receipt, 200)
    make = request_lists.make_logged_record

    def count(each: LoggedRequest) -> RequestRecord:
        made.append(each.id)
        return make(each)

    monkeypatch.setattr(request_lists, "make_logged_record", count)
    operations = RequestOperations(world.store, RecallRetention(world.clock, 7.0), log)
    page = world.gateway.call(operations.lists.read_page(limit=10))
    assert [each.id for each in page.items] == [f"request-{n}" for n in range(199, 189, -1)]
    assert len(made) == 11
    page = world.gateway.call(operations.lists.read_page(after=page.next, limit=10))
    assert [each.id for each in page.items] == [f"request-{n}" for n in range(189, 179, -1)]


@pytest.mark.both
def test_requests_of_a_memory_are_those_of_the_process_and_older_ones(world: World) -> None:
    noted = [ask(world, f"Hello {n}.", **{"x-mnemogate-user": "alice"}) for n in range(3)]
    silent = ask(world, "Hello.", **{"x-mnemogate-user": "alice", "x-mnemogate-memory": "read"})
    ask(world, "Hello.", **{"x-mnemogate-user": "bob"})
    uid = noted[0]["x-mnemogate-agent"]
    ids = [each["x-mnemogate-request-id"] for each in (silent, *reversed(noted))]
    operations = requests_of(world)

    def pages(operations: RequestOperations, limit: int) -> list[str]:
        found, after = [], None
        while True:
            page = world.gateway.call(operations.lists.read_page(memory=uid, after=after, limit=limit))
            assert len(page.items) <= limit
            found += [each.id for each in page.items]
            if page.next is None:
                return found
            after = page.next

    for limit in (1, 2, 3, 50):
        assert pages(operations, limit) == ids
    # A process that came later has what is noted.
    later = RequestOperations(world.store, RecallRetention(world.clock, 7.0))
    for limit in (1, 2, 50):
        assert pages(later, limit) == ids[1:]
    # A recall may be written long after its exchange: at the end of a stream, or of an agent's run.
    statement = "UPDATE recalls SET at = at + 60 WHERE exchange = (SELECT min(exchange) FROM recalls)"

    async def delay() -> None:
        await world.store.database.write(lambda c: c.run(statement))

    world.gateway.call(delay())
    for limit in (1, 2, 50):
        assert sorted(pages(later, limit)) == sorted(ids[1:])
    with pytest.raises(UnknownId):
        world.gateway.call(operations.lists.read_page(memory=uid, project="other"))
    with pytest.raises(UnknownId):
        world.gateway.call(operations.lists.read_page(memory="agent-none"))
    for after in ("", "1", "x.y", "1.-1", "٣.1", "9" * 40 + ".1"):
        with pytest.raises(BadRequest):
            world.gateway.call(operations.lists.read_page(after=after))


@pytest.mark.both
def test_requests_are_listed_while_the_database_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = ask(world, "Hello.", **{"x-mnemogate-user": "alice"})["x-mnemogate-agent"]
    nobodys = ask(world, "Hello.")["x-mnemogate-request-id"]
    log = world.gateway.app.services.requests
    log.note_forgetting()

    def ask_again() -> str | None:
        id = ask(world, "Hello again.", **{"x-mnemogate-user": "alice"})["x-mnemogate-request-id"]
        asked = log.find(id)
        # A connection that begins to listen meanwhile counts as a forgetting as well.
        return None if asked is None or log.is_before_forgetting(asked) else id

    later = becomes(ask_again)

    async def fail(uids: Collection[str]) -> Any:
        assert uids == {uid}
        raise StoreFailed("broken")

    with monkeypatch.context() as down:
        down.setattr(world.store.overview, "load_scopes", fail)
        found = world.gateway.call(requests_of(world).lists.read_page())
        # Whether the memory of the first one was forgotten after it cannot be known.
        assert [each.id for each in found.items] == [later, nobodys]
        assert [each.id for each in overview(world).replies] == [later, nobodys]
    assert len(world.gateway.call(requests_of(world).lists.read_page()).items) >= 3


@pytest.mark.both
def test_a_request_with_a_long_id_of_its_client_is_listed_once(world: World) -> None:
    ids = [f"{n}" * 100 for n in range(2)]
    for id in ids:
        reply = ask(world, "Hello.", **{"x-mnemogate-user": "alice", "x-request-id": id})
    found = world.gateway.call(requests_of(world).lists.read_page(memory=reply["x-mnemogate-agent"]))
    assert [each.id for each in found.items] == ids[::-1]


@pytest.mark.both
def test_the_audit_is_listed_by_pages_and_within_a_project(world: World) -> None:
    uid = ask(world, "Hello.", **{"x-mnemogate-user": "alice"})["x-mnemogate-agent"]

    async def note() -> None:
        audit = world.store.audit
        now = world.clock()  # the retention of the gateway's start deletes older ones
        await audit.add(now, "code", "login")
        await audit.add(now, "ops", "edit", uid, "block human, version 8")
        await audit.add(now, "ops", "forget", "agent-gone", "everything")

    world.gateway.call(note())
    operations = AuditOperations(world.store, world.clock, 90.0)
    first = world.gateway.call(operations.list(limit=2))
    assert [each.action for each in first.items] == ["forget", "edit"]
    rest = world.gateway.call(operations.list(after=first.next, limit=2))
    assert ([each.who for each in rest.items], rest.next) == (["code"], None)
    own = world.gateway.call(operations.list(project="default"))
    assert [(each.memory, each.what) for each in own.items] == [(uid, "block human, version 8")]
    gone = world.gateway.call(operations.list(AuditFilter("agent-gone")))
    assert [each.action for each in gone.items] == ["forget"]
    with pytest.raises(UnknownId):
        world.gateway.call(operations.list(AuditFilter(uid), project="other"))
    with pytest.raises(BadRequest):
        world.gateway.call(operations.list(after="x"))


def test_the_command_line_asks_for_the_same(world: World) -> None:
    reply = ask(world, "Hello.", **{"x-mnemogate-user": "alice"})
    app = world.gateway.app
    services = app.services
    parts = ServingParts(services.requests, services.sign_in, services.accounting.meter, services.imports)
    operations = make_operations(services.settings, world.store, serving=parts)

    def perform(name: str, **arguments: Any) -> Any:
        return json.loads(json.dumps(world.gateway.call(operations.perform(name, arguments))))

    (line,) = perform("requests", memory=reply["x-mnemogate-agent"])["lines"]
    assert (line["id"], line["name"]) == (reply["x-mnemogate-request-id"], "alice")
    world.gateway.call(note_login(world))
    assert [line["action"] for line in perform("audit")["lines"]] == ["login"]


async def note_login(world: World) -> None:
    await world.store.audit.add(world.clock(), "code", "login")
