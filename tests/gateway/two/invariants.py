"""The invariants of a user's stored memory after faults: what must be in the database, and what must not."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.run.admin.transfer.transfer_operations import TransferOperations
from storage.sql.store import Store
from tests.gateway.two.deployment import WORD, Database
from tests.gateway.two.simulated_users import FinishedTurn, SimulatedUser
from tests.inflated import with_inflated
from tests.postgres import EmptyDatabase

# Fields of an exchange that a failure does not print.
_UNPRINTED_FIELDS = ("redactions", "full", "notes", "size", "head", "model", "has_reply", "key")


@dataclass(frozen=True)
class ExportedMemory:
    """A user's memory as the command `export` writes it."""

    # exchange number -> exchange
    exchanges: dict[int, dict[str, Any]]
    # The text of the user's block, empty without one.
    block: str

    def find_finished(self, text: str) -> list[dict[str, Any]]:
        """Returns the finished exchanges whose last message has this text."""
        return [
            exchange
            for exchange in self.exchanges.values()
            if exchange["state"] == "finished" and exchange["input"] and _text(exchange["input"][-1]) == text
        ]

    def describe(self, exchange: dict[str, Any]) -> str:
        """Returns an exchange and those with a near number, one a line, for the message of a failure."""
        near = [each for each in self.exchanges.values() if abs(each["seq"] - exchange["seq"]) < 6]
        return "\n".join(
            str({name: value for name, value in each.items() if name not in _UNPRINTED_FIELDS})
            for each in [exchange, *near]
        )

    def list_earlier_texts(self, exchange: dict[str, Any]) -> list[str]:
        """Returns the user's messages on the path before the last message of an exchange, oldest first."""
        messages = list(exchange["input"][:-1])
        parent = exchange["parent"]
        while parent is not None:
            messages = [*(self.exchanges[parent]["input"] or []), *messages]
            parent = self.exchanges[parent]["parent"]
        return [_text(message) for message in messages if message["role"] == "user"]


def _text(message: dict[str, Any]) -> str:
    return str(message["content"])


async def export_memory(store: Store, user: str, profile: str) -> ExportedMemory:
    operations = TransferOperations(store)
    exchanges: dict[int, dict[str, Any]] = {}
    block = ""
    query: dict[str, Any] = {"project": "default", "profile": profile, "user": user}
    next_page = None
    while True:
        page = await operations.export({**query, "from": next_page})
        for line in map(orjson.loads, page["lines"]):
            if "exchange" in line:
                exchanges[line["exchange"]["seq"]] = line["exchange"]
            elif "version" in line:
                block = line["version"]["value"]
        next_page = page["next"]
        if next_page is None:
            return ExportedMemory(exchanges, block)


def check_memory(memory: ExportedMemory, user: SimulatedUser, forgotten_words: frozenset[str]) -> None:
    """Checks that a memory has each finished turn of its user once, and no word of others or of forgotten turns."""
    exported = orjson.dumps([*memory.exchanges.values(), memory.block]).decode()
    words = {found[0] for found in WORD.finditer(exported)}
    others = {word for word in words if not word.startswith(user.mark)}
    assert not others, f"{user.mark} has words of others: {others}"
    assert words.isdisjoint(forgotten_words), f"{user.mark} still has {words & forgotten_words}"
    continued = {text for turn in user.turns.values() for text in turn.before}
    for turn in user.turns.values():
        check_turn(memory, turn, must_be_active=turn.must_be_active or turn.text in continued)
    check_noted_words(memory, user)


def check_turn(memory: ExportedMemory, turn: FinishedTurn, *, must_be_active: bool) -> None:
    """Checks that a turn is stored once, with its reply, after the turns that were finished before it."""
    found = memory.find_finished(turn.text)
    assert len(found) == 1, f"{turn.text!r} is stored {len(found)} times"
    (exchange,) = found
    assert exchange["shown_reply"] is not None, turn.text
    assert _text(exchange["shown_reply"]) == turn.reply, f"{turn.text!r}: {exchange['shown_reply']}"
    if must_be_active:
        assert not exchange["superseded"], f"{turn.text!r} is superseded: {memory.describe(exchange)}"
    earlier = memory.list_earlier_texts(exchange)
    on_path = [text for text in earlier if text in turn.before]
    assert on_path == list(turn.before), f"before {turn.text!r} there is {earlier}, not {turn.before}"


def check_noted_words(memory: ExportedMemory, user: SimulatedUser) -> None:
    """Checks that the words which the model noted in continued turns are in the block, once.

    The note of a turn that the gateway reported as not stored may be there or not.
    """
    noted = Counter(memory.block.split("\n"))
    continued = {text for turn in user.turns.values() for text in turn.before if " note " in text}
    for text in continued:
        word = WORD.search(text)
        assert word is not None
        least = int(word[0] in user.turns)
        assert least <= noted[word[0]] <= 1, f"{word[0]} is noted {noted[word[0]]} times"


def check_files(database: Database, forgotten_words: frozenset[str]) -> None:
    """Checks that the bytes of a database have no forgotten word."""
    if database.url is None:
        with closing(sqlite3.connect(database.file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = with_inflated(database.file.read_bytes())
    else:
        content = EmptyDatabase(database.url).content()
    words = {found[0] for found in WORD.finditer(content.decode("latin-1"))}
    assert words, "the database has no words at all"
    assert words.isdisjoint(forgotten_words), f"the database still has {words & forgotten_words}"
