"""What must be in the database after a storm of requests, and what must not."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.run.admin.transfer_operations import TransferOperations
from storage.sql.store import Store
from tests.gateway.two.people import Person
from tests.gateway.two.world import WORD, Place
from tests.inflated import with_inflated
from tests.postgres import EmptyDatabase


@dataclass(frozen=True)
class ExportedMemory:
    """A person's memory as it is exported."""

    # By number.
    exchanges: dict[int, dict[str, Any]]
    block: str

    def saying(self, text: str) -> list[dict[str, Any]]:
        """Returns the finished exchanges whose last message is this."""
        return [
            e
            for e in self.exchanges.values()
            if e["state"] == "finished" and e["input"] and _text(e["input"][-1]) == text
        ]

    def describe(self, exchange: dict[str, Any]) -> str:
        """Returns what an exchange is and what is around it, for a failure."""
        near = [e for e in self.exchanges.values() if abs(e["seq"] - exchange["seq"]) < 6]
        left = ("redactions", "full", "notes", "size", "head", "model", "has_reply", "key")
        return "\n".join(
            str({name: v for name, v in e.items() if name not in left}) for e in [exchange, *near]
        )

    def path(self, exchange: dict[str, Any]) -> list[str]:
        """Returns what the user said before that exchange, oldest first."""
        found: list[str] = []
        at = exchange
        while True:
            inputs = at["input"] if at is not exchange else at["input"][:-1]
            found[:0] = [_text(m) for m in inputs or [] if m["role"] == "user"]
            if at["parent"] is None:
                return found
            at = self.exchanges[at["parent"]]


def _text(message: dict[str, Any]) -> str:
    return str(message["content"])


async def export_memory(store: Store, person: Person, profile: str = "default") -> ExportedMemory:
    operations = TransferOperations(store)
    exchanges: dict[int, dict[str, Any]] = {}
    block = ""
    wanted: dict[str, Any] = {"project": "default", "profile": profile, "user": person.user}
    at = None
    while True:
        page = await operations.export({**wanted, "from": at})
        for line in map(orjson.loads, page["lines"]):
            if "exchange" in line:
                exchanges[line["exchange"]["seq"]] = line["exchange"]
            elif "version" in line:
                block = line["version"]["value"]
        at = page["next"]
        if at is None:
            return ExportedMemory(exchanges, block)


def check(memory: ExportedMemory, person: Person, forgotten: frozenset[str]) -> None:
    """Checks that each finished turn stands once, whole, after those before it, and that nobody else's is there."""
    exported = orjson.dumps([*memory.exchanges.values(), memory.block]).decode()
    words = {found[0] for found in WORD.finditer(exported)}
    strangers = {word for word in words if not word.startswith(person.mark)}
    assert not strangers, f"{person.mark} has what others said: {strangers}"
    assert words.isdisjoint(forgotten), f"{person.mark} still has {words & forgotten}"
    carried = {text for turn in person.turns.values() for text in turn.before}
    for turn in person.turns.values():
        found = memory.saying(turn.text)
        assert len(found) == 1, f"{turn.text!r} is there {len(found)} times"
        (exchange,) = found
        assert exchange["shown_reply"] is not None, turn.text
        assert _text(exchange["shown_reply"]) == turn.reply, f"{turn.text!r}: {exchange['shown_reply']}"
        must_stand = turn.must_stand or turn.text in carried
        assert not must_stand or not exchange["superseded"], (
            f"{turn.text!r} does not stand: {memory.describe(exchange)}"
        )
        path = memory.path(exchange)
        on_path = [text for text in path if text in set(turn.before)]
        assert on_path == list(turn.before), f"before {turn.text!r} there is {path}, not {turn.before}"
    check_edits(memory, person)


def check_edits(memory: ExportedMemory, person: Person) -> None:
    """Checks that what the model noted in turns that went on is in the block, once.

    A turn whose reply said that it was not stored may have left its note or not.
    """
    noted = Counter(memory.block.split("\n"))
    carried = {text for turn in person.turns.values() for text in turn.before if " note " in text}
    for text in carried:
        word = WORD.search(text)
        assert word is not None
        least = int(word[0] in person.turns)
        assert least <= noted[word[0]] <= 1, f"{word[0]} is noted {noted[word[0]]} times"


def check_files(place: Place, forgotten: frozenset[str]) -> None:
    """Checks that no table has a word that was forgotten."""
    if place.url is None:
        with closing(sqlite3.connect(place.file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = with_inflated(place.file.read_bytes())
    else:
        data = EmptyDatabase(place.url).content()
    assert WORD.search(data.decode("latin-1"))
    left = {found[0] for found in WORD.finditer(data.decode("latin-1"))} & forgotten
    assert not left, f"the tables still have {left}"
