"""The notes of an exchange are stored deflated, and come back byte for byte."""

from __future__ import annotations

import orjson
import pytest
from msgspec.structs import replace

from storage.database import Connection
from storage.records import Exchange
from storage.sql.exchange_rows import pack_notes, unpack_notes
from storage.sql.exchanges import update_exchange
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.inflated import with_inflated
from tests.storage.conftest import Holds
from tests.stored import Speaker, rows

LINES = "".join(f"[11-{n:02} Tue]\nuser: My {n}th cat is called Miso, and she is grey.\n" for n in range(30))


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {0: ""},  # nothing was found
        {0: "<memory>\nuser: Hi\n</memory>\n"},
        {0: LINES, 3: LINES[5:], 12: ""},
        {0: "\u65e5\u672c\u8a9e \U0001f408\u200d\u2b1b \x00\x1b[0m\u2028" * 40},
        {0: "x"},  # begins as what is deflated does, within its JSON
    ],
)
def test_notes_come_back_as_they_were(notes: dict[int, str]) -> None:
    packed = pack_notes(notes)
    assert unpack_notes(packed) == notes
    assert packed == pack_notes(dict(notes))  # an update writes the same bytes


def test_a_long_note_takes_half_of_its_size_and_a_short_one_no_more_than_before() -> None:
    long, short = {0: LINES}, {0: "user: Hi"}
    assert len(pack_notes(long) or b"") < len(LINES) / 2
    assert pack_notes(short) == orjson.dumps(short, option=orjson.OPT_NON_STR_KEYS)


@pytest.mark.parametrize("damage", [b"x\x9c", b"x\xff" * 40, (pack_notes({0: LINES}) or b"")[:-5]])
def test_damaged_notes_are_an_error_and_not_other_notes(damage: bytes) -> None:
    with pytest.raises(ValueError, match="notes of an exchange are damaged"):
        unpack_notes(damage)


async def test_a_database_gives_notes_back_and_those_of_older_versions(store: Store, holds: Holds) -> None:
    alice = Speaker(store)
    await alice.say([user("One.")], assistant("Two."), "c1")
    ((id,),) = await rows(store, "SELECT id FROM exchanges")

    async def load() -> Exchange:
        found = await store.turns.find_exchange(alice.agent, id)
        assert found is not None
        return found

    async def write(e: Exchange) -> None:
        async def update(connection: Connection) -> None:
            await connection.lock(alice.agent.id)
            await update_exchange(connection, alice.agent.id, e)

        await store.database.write(update)

    await write(replace(await load(), notes={0: LINES}))
    assert (await load()).notes == {0: LINES}
    ((size,),) = await rows(store, "SELECT length(notes) FROM exchanges")
    assert size < len(LINES) / 2
    assert holds(b"29th cat")  # what looks for forgotten words sees into what is deflated
    whole = orjson.dumps({"0": LINES})
    await rows(store, "UPDATE exchanges SET notes = ? WHERE id = ? RETURNING id", (whole, id))
    assert (await load()).notes == {0: LINES}
    await write(replace(await load(), notes={0: ""}))
    assert await store.database.sweep(1000)
    assert not holds(b"29th cat")


def test_a_search_of_bytes_reads_notes_whose_end_is_cut_off() -> None:
    deflated = pack_notes({0: LINES}) or b""
    assert b"1th cat" in with_inflated(b"before" + deflated[:200])
    assert b"29th cat" in with_inflated(b"x\x9c" + deflated + b"after")
