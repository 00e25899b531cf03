"""A row never grows within its page, so that its neighbours never move and leave no copies of what they say."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from storage.database import Connection
from storage.records import Agent, EvictedPart, Exchange, ExchangeState
from storage.sql import exchanges
from storage.sql.store import Store
from storage.sqlite.padding import compute_room, count_padding, measure_record

PAGE = 4096


def exchange(chance: random.Random, mark: int) -> Exchange:
    """Of any size; its content is one word over and over."""

    def text(most: int) -> bytes | None:
        return b'"' + b"word%06d " % mark * chance.randrange(most) + b'"' if chance.random() < 0.9 else None

    return Exchange(
        id=0,
        conversation_row=1,
        parent=chance.choice((None, 3, 70_000)),
        depth=chance.randrange(300),
        offset=chance.randrange(40_000),
        inputs=tuple((chance.randbytes(12),) for _ in range(chance.choice((1, 1, 1, 2, 40)))),
        media=(b"",),
        reply=chance.choice((None, (chance.randbytes(12),))),
        path_hash=chance.randbytes(16),
        reply_key=chance.choice((None, chance.randbytes(12))),
        begun=chance.choice((1.0, 1.76e9, 1.5)),
        touched=1.76e9,
        ended=chance.choice((None, 2.0, 1.76e9 + 0.25)),
        state=chance.choice(list(ExchangeState)),
        continued=chance.random() < 0.5,
        size=chance.randrange(70_000),
        evicted=chance.choice([None, EvictedPart(3, 40, 9_000, 8_192)]),
        merged=chance.choice(("", "carried", "idle")),
        input=text(chance.choice((4, 40, 300, 900))),
        shown_reply=text(chance.choice((4, 40, 300))),
        notes={0: "a note " * chance.randrange(80)} if chance.random() < 0.5 else {},
    )


def varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(9):
        byte = page[at]
        at, value = at + 1, value << 7 | byte & 0x7F
        if not byte & 0x80:
            break
    return value, at


def cells(path: Path) -> Iterator[tuple[int, int, int]]:
    """(page, row id, length of the record) of every row of every table in the file."""
    data = path.read_bytes()
    for number in range(1, len(data) // PAGE):
        page = data[number * PAGE : (number + 1) * PAGE]
        if page[0] != 13 or b"CREATE " in page:  # the leaf of a table, but not of the schema
            continue
        for i in range(int.from_bytes(page[3:5], "big")):
            at = int.from_bytes(page[8 + 2 * i : 10 + 2 * i], "big")
            length, at = varint(page, at)
            yield number, varint(page, at)[0], length


def told(path: Path) -> set[int]:
    """Returns the numbers of the exchanges whose words are somewhere in the file."""
    return {int(n) for n in re.findall(rb"(?:secret|quietly)(\d{4})", path.read_bytes())}


async def test_rows_stay_where_they_are_whatever_they_become(store: Store, agent: Agent, path: Path) -> None:
    chance = random.Random(7)
    count = 300

    async def insert(connection: Connection) -> list[int]:
        return [
            (await exchanges.add_exchange(connection, agent.id, exchange(chance, i)))[0] for i in range(count)
        ]

    ids = await store.database.write(insert)
    await store.database.writer.checkpoint()
    large = {page for page, _, length in cells(path) if length > 500}
    before = {row: page for page, row, _ in cells(path) if page in large}
    assert set(ids) <= before.keys()

    for step in range(4):

        async def update(connection: Connection, step: int = step) -> None:
            for i in chance.sample(ids, count // 2):
                made = replace(exchange(chance, i), id=i)
                if step % 2:
                    await exchanges.update_exchange(connection, agent.id, made, is_whole=True)
                else:
                    await exchanges.update_exchange(connection, agent.id, made)

        await store.database.write(update)
        await store.database.writer.checkpoint()
        now = {row: page for page, row, _ in cells(path) if row in before and page in large}
        assert now == before


async def test_a_short_row_is_exactly_as_long_after_as_before(store: Store, agent: Agent, path: Path) -> None:
    chance = random.Random(3)
    made = [
        replace(exchange(chance, i), input=b"x" * (500 + 40 * i), shown_reply=None, notes={})
        for i in range(50)
    ]

    async def insert(connection: Connection) -> None:
        for e in made:
            await exchanges.add_exchange(connection, agent.id, e)

    await store.database.write(insert)
    await store.database.writer.checkpoint()
    before = sorted((row, length) for _, row, length in cells(path) if length > 500)
    assert len(before) == 50

    async def update(connection: Connection) -> None:
        for row, _ in before:
            await exchanges.update_exchange(
                connection,
                agent.id,
                replace(
                    exchange(chance, row), id=row, input=b"y" * 40, shown_reply=None, notes={}, inputs=()
                ),
                is_whole=True,
            )

    await store.database.write(update)
    await store.database.writer.checkpoint()
    assert sorted((row, length) for _, row, length in cells(path) if length > 500) == before


@pytest.mark.parametrize("size", [1, 100, 480, 481, 482, 483, 539, 540, 541, 600, 4000, 4015, 4016, 9000])
def test_a_short_row_is_padded_to_its_room(size: int) -> None:
    room = compute_room(size)
    if size < room:
        pad = bytes(count_padding(size, room))
        assert room - 1 <= size - 1 + measure_record([pad]) <= room or measure_record([pad]) in (58, 59)


def test_the_examples_of_the_documentation_hold() -> None:
    assert count_padding(600, 700) == 98
    assert count_padding(900, 700) == 3536


async def test_python_and_sql_agree(store: Store, agent: Agent) -> None:
    chance = random.Random(5)

    async def write(connection: Connection) -> list[tuple[int, int]]:
        found = []
        for length in range(0, 400, 7):
            made = replace(exchange(chance, 1), input=b"x" * length, shown_reply=None, notes={}, inputs=())
            id, _, _ = await exchanges.add_exchange(connection, agent.id, made)
            read = "SELECT length(pad) FROM exchanges WHERE id = ?"
            before = await connection.fetch_value(read, (id,))
            await exchanges.update_exchange(connection, agent.id, replace(made, id=id))
            found.append((before, await connection.fetch_value(read, (id,))))
        return found

    found = await store.database.write(write)
    assert [after for _, after in found] == [before for before, _ in found]
    assert len({before for before, _ in found}) > 20


def test_sizes_are_sqlites() -> None:
    assert (
        measure_record([None, 0, 1, True, 2, -128, 128, 40_000, 2**31, 2**47, 1.5])
        == 5 + 2 + 2 + 3 + 4 + 7 + 9 + 9 - 1
    )
    assert measure_record(["", b"x" * 57, b"x" * 58, "é"]) == 1 + 58 + 60 + 3
    assert measure_record([False, None, 1.0, -3.0, -129, 2**15 - 1, -(2**47) - 1]) == 3 + 2 + 3 + 3 + 9
    assert measure_record([b"x" * 8185, b"x" * 8186, "x" * 1_048_570]) == 8187 + 8189 + 1_048_574


@pytest.mark.parametrize("seed", [0, 2])
async def test_a_row_that_went_to_overflow_pages_never_comes_back_whole(
    store: Store, agent: Agent, path: Path, seed: int
) -> None:
    """A step is written before its reply; where that is long, the next step may lie where the row was longer."""
    chance = random.Random(seed)

    def opened(i: int) -> Exchange:
        e = replace(
            exchange(random.Random(i), i), shown_reply=None, notes={}, evicted=None, inputs=((b"a" * 12,),)
        )
        return replace(
            e, state=ExchangeState.OPEN, input=b"secret%04d " % i * random.Random(i).randrange(1, 200)
        )

    async def write(connection: Connection, i: int) -> int:
        id, _, _ = await exchanges.add_exchange(connection, agent.id, opened(i))
        said = b"quietly%04d " % i * chance.randrange(1, 400)
        e = replace(opened(i), id=id, state=ExchangeState.FINISHED, shown_reply=said)
        await exchanges.update_exchange(connection, agent.id, e)
        return id

    ids = [await store.database.write(lambda c, i=i: write(c, i)) for i in range(200)]  # type: ignore[misc]
    order = [*range(200)]
    chance.shuffle(order)
    for at in range(0, 200, 20):

        async def forget(connection: Connection, some: list[int] = order[at : at + 20]) -> None:
            for i in some:
                gone = replace(opened(i), id=ids[i], input=None, state=ExchangeState.FORGOTTEN)
                await exchanges.update_exchange(connection, agent.id, gone, is_whole=True)

        await store.database.write(forget)
        await store.database.writer.checkpoint()
        assert told(path) <= set(order[at + 20 :])
