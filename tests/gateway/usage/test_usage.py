"""Usage as an operator reads it: sums that equal what the upstream counted, to the token."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import re
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from gateway.run.clock_jumps import ClockJumps
from gateway.run.usage import meter, part_writer, unwritten_counters
from gateway.settings import ModelSettings, PriceSettings, UpstreamSettings
from storage.run_records import TokenCounts
from storage.usage_records import (
    COUNTERS,
    FORGOTTEN_USER,
    SHOWN_COUNTERS,
    UsageKey,
    UsagePart,
    UsageQuery,
    UsageSum,
)
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, fail, say
from tests.gateway.sdk import Clock, World, agent, remember
from tests.rows import each_row
from tests.server import RawReply

TOKEN = {"x-mnemogate-admin": "the-owner"}
PRICES = (
    ModelSettings("m", "m", "up", price=PriceSettings(input=0.15, output=0.60, cached=0.075)),
    ModelSettings("flat", "flat", "up", price=1.0),
    ModelSettings("dear", "dear", "up", price=1e9),
    ModelSettings("free", "free", "up"),
)


@contextmanager
def counting(upstream: StrictUpstream, place: Path, **parts: Any) -> Iterator[World]:
    takes: Any = {"responses": "stored", "stream_usage": True}
    upstreams = (UpstreamSettings("up", base_url=upstream.base_url, takes=takes),)
    given = {"upstreams": upstreams, "models": PRICES, "admin_token": "the-owner", **parts}
    with remember(upstream, place, agent(), **given) as world:
        yield world


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with counting(upstream, tmp_path) as made:
        yield made


def ask(world: World, headers: Mapping[str, str] = TOKEN, **query: Any) -> RawReply:
    world.settle()
    world.gateway.app.services.accounting.meter._wrote_at = -meter.READ_S
    return world.gateway.ask("GET", f"/v1/manage/usage?{urlencode(query)}", headers=headers)


def rows(world: World, **query: Any) -> list[dict[str, Any]]:
    reply = ask(world, **query)
    assert reply.status == 200, reply.body
    found: list[dict[str, Any]] = reply.json["data"]
    return found


def total(world: World, **query: Any) -> dict[str, Any]:
    (found,) = rows(world, **query)
    return found


def usage(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def test_each_way_of_asking_is_counted_to_the_token(world: World) -> None:
    """Memory on and off, whole and streamed, a hidden round, and embeddings: the sums are the upstream's own."""
    for memory in ("on", "off"):
        for stream in (False, True):
            world.upstream.queue(say("Hello.", usage=usage(40, 3, cached=16, reasoning=1)))
            world.chat(user="alice", headers={"x-mnemogate-memory": memory}).say("Hi", stream=stream)
    arguments = {"label": "human", "new_string": "Has a cat."}
    world.upstream.queue(
        call_tools(Call("memory_insert", arguments), usage=usage(50, 5)),
        say("Noted.", usage=usage(60, 2)),
    )
    world.chat(user="alice").say("I have a cat.", model="agent/helper")
    world.sdk.embeddings.create(model="m", input=["a", "b"], user="alice")
    found = total(world, by="user,model")
    assert (found["user"], found["model"]) == ("alice", "m")
    assert (found["requests"], found["calls"], found["errors"], found["refused"]) == (6, 7, 0, 0)
    assert (found["input_tokens"], found["output_tokens"]) == (4 * 40 + 50 + 60 + 2, 4 * 3 + 5 + 2)
    assert (found["cached_tokens"], found["reasoning_tokens"]) == (4 * 16, 4)
    assert found["estimated_input_tokens"] == found["estimated_output_tokens"] == 0
    assert found["injected_tokens"] > 0
    fresh, cached, output = found["input_tokens"] - 64, 64, found["output_tokens"]
    assert found["cost"] == pytest.approx((fresh * 0.15 + cached * 0.075 + output * 0.60) / 1e6, abs=1e-8)


def test_tokens_that_memory_leaves_out_of_prompts_are_counted(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """By each call, also where nobody asks for a key or a model."""
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=1_000)
    talk = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " + "word " * 100} for n in range(21)
    ]
    with counting(upstream, tmp_path, upstreams=(small,)) as world:
        arguments = {"label": "human", "new_string": "Has a cat."}
        upstream.queue(call_tools(Call("memory_insert", arguments)), say("Noted."))
        reply = world.post(talk, user="alice", model="agent/helper")
        assert reply.status == 200, reply.body
        evicted = int(reply.headers["x-mnemogate-evicted-tokens"])
        assert evicted > 1_000
        for by in ("user", "user,model"):
            found = total(world, by=by)
            assert (found["calls"], found["evicted_tokens"]) == (2, 2 * evicted)


def test_a_model_without_a_price_is_counted_apart(world: World) -> None:
    for model in ("free", "flat"):
        world.upstream.queue(say("Hello.", usage=usage(1000, 500)))
        world.chat(user="bob").say("Hi", model=model)
    free, flat = sorted(rows(world, by="model"), key=lambda each: each["cost"])
    assert (free["cost"], free["unpriced_tokens"]) == (0, 1500)
    assert (flat["cost"], flat["unpriced_tokens"]) == (0.0015, 0)


@pytest.mark.both
def test_impossibly_many_tokens_fit_into_the_table(world: World) -> None:
    for _ in range(3):
        world.upstream.queue(say("Hello.", usage=usage(2**40, 2**40)))
        world.chat(user="bob").say("Hi", model="dear")
    found = total(world)
    assert (found["input_tokens"], found["cost"]) == (3 * 2**40, 3 * 2**50 / 1e9)


def test_a_request_that_an_upstream_refuses_costs_nothing(world: World) -> None:
    world.upstream.queue(fail(400), say("Hi.", usage=usage(9, 1)))
    assert world.post([{"role": "user", "content": "Hi"}], user="alice").status == 400
    assert world.post([{"role": "user", "content": "Hi"}], user="alice").status == 200
    found = total(world)
    assert (found["requests"], found["errors"], found["calls"], found["input_tokens"]) == (2, 1, 1, 9)


@pytest.mark.both
def test_a_page_goes_on_where_the_one_before_ended(world: World) -> None:
    for user in ("alice", "bob", "carol"):
        world.upstream.queue(say("Hi.", usage=usage(10, 1)))
        world.chat(user=user).say("Hi")
    first = ask(world, by="user", limit=2).json
    assert [each["user"] for each in first["data"]] == ["alice", "bob"]
    assert first["has_more"]
    rest = ask(world, by="user", limit=2, after=first["next"]).json
    assert ([each["user"] for each in rest["data"]], rest["has_more"], rest["next"]) == (
        ["carol"],
        False,
        None,
    )
    assert [each["user"] for each in rows(world, by="user", user="bob")] == ["bob"]


@pytest.mark.both(by=[("user", "model"), ("day", "user"), ("day",)])
@pytest.mark.parametrize("by", [("user",), ("user", "model"), ("day", "user"), ("model",), ("day",)])
def test_the_pages_of_many_days_are_the_whole(world: World, by: tuple[str, ...]) -> None:
    """Of a long query no more is added up than a page shows."""
    draw, usage = random.Random(len(by)), world.store.usage
    keys = {
        UsageKey(day, "default", f"u{draw.randrange(9)}", 0, "up", f"m{draw.randrange(3)}")
        for day in range(1, 13)
        for _ in range(day % 7)  # some days have none
    }
    written = [(key, [draw.randrange(9) for _ in COUNTERS]) for key in sorted(keys)]

    async def add() -> None:
        await usage.add(UsagePart("a test", 1, 0.0, written))

    async def read(after: tuple[str | int, ...] | None) -> list[UsageSum]:
        return await usage.load_sums(UsageQuery(by, 0, 13, (), after, limit))

    world.gateway.call(add())
    whole: dict[tuple[Any, ...], list[int]] = {}
    for key, counters in written:
        found = whole.setdefault(tuple(getattr(key, name) for name in by), [0] * len(COUNTERS))
        found[:] = map(sum, zip(found, counters, strict=True))
    for limit in (1, 4, 100):
        pages: list[UsageSum] = []
        while page := world.gateway.call(read(pages[-1].group if pages else None)):
            assert len(page) <= limit
            pages += page
        assert {each.group: list(each.counters) for each in pages} == whole
        assert [each.group for each in pages] == sorted(whole)


@each_row(
    ("query", "param"),
    [
        ({"by": "hour"}, "by"),
        ({"by": "day,day"}, "by"),
        ({"colour": "red"}, "colour"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-02-01", "to": "2026-01-01"}, "from"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"key": "one"}, "key"),
        ({"after": "x"}, "after"),
        ({"after": urlsafe_b64encode(b"[9223372036854775808]").decode()}, "after"),
        ({"format": "xml"}, "format"),
    ],
)
def test_the_error_names_unknown_parameters(world: World, query: dict[str, str], param: str) -> None:
    reply = ask(world, **query)
    assert (reply.status, reply.error["param"]) == (400, param)


def test_the_last_thirty_days_are_shown_where_none_are_named(world: World) -> None:
    page = ask(world, by="user").json
    first, last = (datetime.fromisoformat(page[name]).date() for name in ("from", "to"))
    assert last == datetime.fromtimestamp(world.clock.now, UTC).date()
    assert (last - first).days == 29


def test_the_first_days_of_the_calendar_have_none_before(world: World) -> None:
    page = ask(world, to="0001-01-05").json
    assert (page["from"], page["to"], page["data"]) == ("0001-01-01", "0001-01-05", [])


def test_other_keys_do_not_open_usage(world: World) -> None:
    assert ask(world, {}).status == 401
    assert ask(world, {"x-mnemogate-admin": "guessed"}).status == 401
    make = world.store.keys.create
    _, plain = world.gateway.call(make("default", "app"))
    bearer = {"authorization": f"Bearer {plain}"}
    reply = ask(world, bearer)
    assert (reply.status, reply.error["type"]) == (403, "permission_error")
    _, operator = world.gateway.call(make("default", "op", None, "operator-read"))
    assert ask(world, {"authorization": f"Bearer {operator}"}).status == 200
    world.post([{"role": "user", "content": "Hi"}], bearer, user="alice")
    _, other = world.gateway.call(make("elsewhere", "op", None, "operator"))
    assert ask(world, {"authorization": f"Bearer {other}"}).json["data"] == []
    assert ask(world, {"authorization": f"Bearer {other}"}, project="default").json["data"] == []


def test_csv_has_the_same_and_no_formula(world: World) -> None:
    world.upstream.queue(say("Hi.", usage=usage(10, 1)))
    world.chat(user="=1+1").say("Hi")
    reply = ask(world, by="day,user", format="csv")
    assert reply.headers["content-type"].startswith("text/csv")
    head, row = csv.reader(StringIO(reply.body.decode()))
    assert head == ["day", "user", *SHOWN_COUNTERS]
    today = datetime.fromtimestamp(world.clock.now, UTC).date().isoformat()
    assert row[:3] == [today, "'=1+1", "1"]


def test_a_page_of_csv_names_the_next_one(world: World) -> None:
    for user in ("ann & bob", "bob", "carol"):
        world.chat(user=user).say("Hi")
    first = ask(world, by="user", format="csv", limit=2)
    assert [row[0] for row in csv.reader(StringIO(first.body.decode()))] == ["user", "ann & bob", "bob"]
    match = re.fullmatch(r'<\?(.*)>; rel="next"', first.headers["link"])
    assert match is not None
    last = ask(world, **dict(parse_qsl(match[1])))
    assert [row[0] for row in csv.reader(StringIO(last.body.decode()))] == ["user", "carol"]
    assert "link" not in last.headers


def test_a_key_and_its_project_are_columns(world: World) -> None:
    key, plain = world.gateway.call(world.store.keys.create("shop", "app"))
    world.upstream.queue(say("Hi.", usage=usage(10, 1)))
    assert world.post([{"role": "user", "content": "Hi"}], {"authorization": f"Bearer {plain}"}).status == 200
    found = total(world, by="project,key,upstream")
    assert (found["project"], found["key"], found["upstream"]) == ("shop", key.id, "up")


@pytest.mark.both
def test_a_stop_writes_all(upstream: StrictUpstream, tmp_path: Path) -> None:
    clock = Clock()
    with counting(upstream, tmp_path, clock=clock) as world:
        world.upstream.queue(say("Hi.", usage=usage(10, 1)))
        world.chat(user="alice").say("Hi")
    with counting(upstream, tmp_path, clock=clock) as world:
        assert total(world)["input_tokens"] == 10


@pytest.mark.both
def test_a_forgotten_user_leaves_the_sums(world: World) -> None:
    for user in ("alice", "bob"):
        world.upstream.queue(*(say("Hi.", usage=usage(10, 1)) for _ in range(2)))
        world.chat(user=user).say("Hi")
        assert total(world, by="user", user=user)["requests"] == 1
        world.chat(user=user).say("Hi again")  # is in memory alone
    body = json.dumps({"project": "default", "user": "alice"}).encode()
    world.settle()
    assert world.gateway.ask("POST", "/admin/memory-forget", body, TOKEN).json["done"]
    assert {each["user"]: each["requests"] for each in rows(world, by="user")} == {
        FORGOTTEN_USER: 2,
        "bob": 2,
    }
    assert world.query("SELECT count(*) FROM usage WHERE \"user\" = 'alice'") == [0]


@pytest.mark.both
def test_users_are_folded_when_they_are_old(world: World) -> None:
    world.upstream.queue(say("Hi.", usage=usage(10, 1)))
    world.chat(user="alice").say("Hi")
    day = total(world, by="day,user")["day"]
    accounts = world.gateway.app.services.accounting.meter
    accounts.clock_jumps = ClockJumps(world.clock, steady_now=world.clock)  # these days pass
    world.clock.sleep(63 * 86_400)
    world.gateway.call(accounts._anonymize_old())
    found = total(world, by="day,user", **{"from": day, "to": day})
    assert (found["user"], found["input_tokens"]) == (FORGOTTEN_USER, 10)


def test_a_clock_that_jumps_ahead_takes_no_users_out_of_usage_for_a_day(world: World) -> None:
    world.chat(user="alice").say("Hi")
    assert total(world, by="user")["user"] == "alice"
    accounts, steady = world.gateway.app.services.accounting.meter, Clock()
    accounts.clock_jumps = ClockJumps(world.clock, steady_now=steady)
    users = 'SELECT DISTINCT "user" FROM usage'
    world.clock.sleep(365 * 86_400)
    world.gateway.call(accounts._anonymize_old())
    assert world.query(users) == ["alice"]
    steady.sleep(86_400)
    world.gateway.call(accounts._anonymize_old())
    assert world.query(users) == [FORGOTTEN_USER]


@pytest.mark.both
def test_a_write_that_fails_is_tried_again(world: World) -> None:
    app = world.gateway.app
    world.upstream.queue(say("Hi.", usage=usage(10, 1)))
    world.chat(user="alice").say("Hi")
    add = app.services.accounting.meter._usage.add

    def fails(rows: Any) -> Any:
        raise meter.StoreError("no")

    app.services.accounting.meter._usage.add = fails  # type: ignore[method-assign]
    world.settle()
    with pytest.raises(meter.StoreError):
        world.gateway.call(app.services.accounting.meter.write())
    app.services.accounting.meter._usage.add = add  # type: ignore[method-assign]
    assert total(world)["input_tokens"] == 10


def test_beyond_its_bound_new_keys_have_no_user(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwritten_counters, "MAX_KEYS", 2)
    for user in ("a", "b", "c", "d"):
        world.chat(user=user).say("Hi")
    assert {each["user"]: each["requests"] for each in rows(world, by="user")} == {"a": 1, "b": 1, "": 2}


@pytest.mark.both
def test_a_user_who_is_forgotten_during_a_write_goes_with_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = world.gateway.app.services.accounting.meter
    world.chat(user="alice").say("Hi")
    world.settle()
    add = counter._usage.add

    async def forget_meanwhile(rows: Any) -> None:
        await add(rows)
        counter.writer.forget("default", "alice")

    def fails(project: str, user: str) -> Any:
        raise meter.StoreError("no")

    with monkeypatch.context() as patches:
        patches.setattr(counter._usage, "add", forget_meanwhile)
        patches.setattr(counter._usage, "anonymize_user", fails)
        with pytest.raises(meter.StoreError):
            world.gateway.call(counter.write())
    world.gateway.call(counter.write())
    assert world.query('SELECT "user", requests FROM usage') == [(FORGOTTEN_USER, 1)]


async def lose_answer(add: Callable[[UsagePart], Awaitable[None]], part: UsagePart) -> None:
    """Adds a part, as when the answer of the database is lost."""
    await add(part)
    raise meter.StoreError("no answer")


def test_a_user_who_is_forgotten_before_a_lost_write_is_repeated_is_counted_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counters are in the table, and nobody knows. What is counted since then is another part."""
    counter = world.gateway.app.services.accounting.meter
    world.chat(user="alice").say("Hi")
    world.settle()
    with monkeypatch.context() as patches:
        patches.setattr(counter._usage, "add", partial(lose_answer, counter._usage.add))
        with pytest.raises(meter.StoreError):
            world.gateway.call(counter.write())
    world.chat(user="alice").say("Hi")
    world.settle()
    world.gateway.call(counter._usage.forget_user("default", "alice"))
    world.gateway.call(counter.write())
    assert world.query('SELECT "user", requests FROM usage') == [(FORGOTTEN_USER, 2)]


def test_a_part_that_may_be_written_already_counts_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = world.gateway.app.services.accounting.meter

    async def tokens_after_a_lost_write() -> int:
        counter.background.add("default", 0, "up", "m", TokenCounts(10, 5))
        with monkeypatch.context() as patches:
            patches.setattr(counter._usage, "add", partial(lose_answer, counter._usage.add))
            with pytest.raises(meter.StoreError):
                await counter.write()
        return await counter.count_background_tokens("default")

    assert world.gateway.call(tokens_after_a_lost_write()) == 15


@pytest.mark.parametrize("is_written", [False, True])
def test_a_write_that_is_cancelled_is_counted_once(
    world: World, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """As by a stop: what it had begun may fail, or end on disk."""
    counter = world.gateway.app.services.accounting.meter
    add = counter._usage.add

    async def cancel_and_write() -> None:
        begun = asyncio.Event()

        async def hang(part: UsagePart) -> None:
            if is_written:
                await add(part)
            begun.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patches:
            patches.setattr(counter._usage, "add", hang)
            writing = asyncio.create_task(counter.write())
            await begun.wait()
            writing.cancel()
            await asyncio.wait([writing])
        await counter.write()

    world.chat(user="alice").say("Hi")
    world.settle()
    world.gateway.call(cancel_and_write())
    assert world.query("SELECT requests FROM usage") == [1]


@pytest.mark.both
def test_background_tokens_are_known_while_they_are_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = world.gateway.app.services.accounting.meter
    add, writes, goes_on = counter._usage.add, Gate(), Gate()

    async def held(rows: Any) -> None:
        writes.open()
        await goes_on.wait()
        await add(rows)

    async def tokens_meanwhile() -> tuple[int, int]:
        for model in ("a", "b"):
            counter.background.add("default", 0, "up", model, TokenCounts(10, 5))
        write = asyncio.create_task(counter.write())
        await writes.wait()
        task = asyncio.create_task(counter.count_background_tokens("default"))
        await asyncio.sleep(0)
        goes_on.open()
        meanwhile = await task
        await write
        return meanwhile, await counter.count_background_tokens("default")

    monkeypatch.setattr(counter._usage, "add", held)
    monkeypatch.setattr(part_writer, "ROWS_AT_ONCE", 1)
    assert world.gateway.call(tokens_meanwhile()) == (30, 30)


@pytest.mark.both
def test_a_read_waits_for_one_part_of_a_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = world.gateway.app.services.accounting.meter
    for user in ("alice", "bob"):
        world.chat(user=user).say("Hi")
    world.settle()
    add, done = counter._usage.add, list[str]()

    async def noted(rows: Any) -> None:
        await add(rows)
        done.append("write")

    async def read() -> None:
        async with counter.writer.pause():
            done.append("read")

    async def read_meanwhile() -> None:
        write = asyncio.create_task(counter.write())
        await asyncio.sleep(0)  # the first part is being written
        await asyncio.gather(write, read())

    monkeypatch.setattr(counter._usage, "add", noted)
    monkeypatch.setattr(part_writer, "ROWS_AT_ONCE", 1)
    world.gateway.call(read_meanwhile())
    assert done == ["write", "read", "write"]
    assert world.query('SELECT "user", requests FROM usage ORDER BY "user"') == [("alice", 1), ("bob", 1)]
