"""Measures how large the database gets: kB a turn, by table, for three kinds of chats of one user each.

- long: one conversation in which each turn has 150 words;
- chats: conversations of two friends in short turns, of which each may begin with a note of earlier ones;
- questions: conversations of one short question each about what was said in chats, so that nearly each has a note.

Each is played through a gateway as a client plays it, with whole lists. Then the gateway rests until all is indexed, is
stopped, and its file is read page by page. `--json` prints the figures as they are.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import load

from scripts.bench_long import Client
from scripts.talk import vocabulary as v
from scripts.talk.dialogue import USER, make_dialogue
from tests.doubles.upstream import Reply, Seen, StrictUpstream, say

SETTINGS = """\
[[upstreams]]
name = "up"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "none"
"""
_pick = random.Random(1).choice
SENTENCES = [
    f"In {_pick(v.MONTHS)} I saw {_pick(v.ANIMALS)} near {_pick(v.PLACES)} and thought of {_pick(v.CITIES)}."
    for _ in range(400)
]
CONTENTS = ("input", "shown_reply", '"full"', "notes", "inputs", "path", "pad")
PATIENCE_S = 60.0
# A memory that rests so long was indexed. (gateway/run/background/indexing.py)
RESTS_S = 8.0
MIN_BYTES = 10  # a turn, of what is worth a line

Conversation = list[tuple[str, str]]  # what was said and what was answered


def long_conversation(turns: int) -> Iterator[Conversation]:
    words = " ".join(SENTENCES).split()

    def text(n: int) -> str:
        at = n * 75 % (len(words) - 75)
        return f"({n}) " + " ".join(words[at : at + 74])

    yield [(text(2 * n), text(2 * n + 1)) for n in range(turns)]


def chats(turns: int) -> Iterator[Conversation]:
    remaining = turns
    for number in range(turns):
        for _, session in make_dialogue(f"size-{number}", 0, SENTENCES).sessions:
            turns_of_session = iter(session)
            pairs: Conversation = []
            for asked in turns_of_session:
                answered = next(turns_of_session, None)
                if asked.role == USER and answered is not None:
                    pairs.append((asked.text, answered.text))
            if pairs[:remaining]:
                yield pairs[:remaining]
            remaining -= len(pairs)
            if remaining <= 0:
                return


def questions(turns: int) -> Iterator[Conversation]:
    asked = [question.text for question in make_dialogue("size-0", 0, SENTENCES).questions]
    for number in range(turns):
        yield [(asked[number % len(asked)], "I am not sure. What do you think yourself?")]


def play(port: int, user: str, conversations: Iterator[Conversation], answers: list[str]) -> tuple[int, int]:
    """Plays conversations. Returns the number of turns and the bytes of their texts."""
    client = Client(port, user)
    turns = size = 0
    for conversation in conversations:
        messages: list[dict[str, Any]] = []
        for asked, answered in conversation:
            answers[:] = [answered]
            messages.append({"role": "user", "content": asked})
            reply, _ = client.post(messages)
            messages.append(reply)
            turns, size = turns + 1, size + len(asked.encode()) + len(answered.encode())
    return turns, size


def wait_indexed(database: Path) -> None:
    """Waits until indexing has ended. The newest messages are left, which gather first. Raises: SystemExit: timeout."""
    end = time.monotonic() + PATIENCE_S
    before = -1
    while True:
        with closing(read(database)) as reader:
            (indexed,) = reader.execute("SELECT coalesce(sum(indexed_seq), 0) FROM agents").fetchone()
        if indexed == before:
            return
        if time.monotonic() > end:
            raise SystemExit("The index is not complete.")
        before = indexed
        time.sleep(RESTS_S)


def read(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)


def measure(database: Path) -> tuple[int, dict[str, int], dict[str, int]]:
    """Returns the bytes of the database, of each table with its indexes, and of the contents of `exchanges`."""
    with closing(read(database)) as reader:
        tables = dict(
            reader.execute(
                "SELECT coalesce(m.tbl_name, s.name), sum(s.pgsize) FROM dbstat s"
                " LEFT JOIN sqlite_master m ON m.name = s.name GROUP BY 1 ORDER BY 2 DESC"
            ).fetchall()
        )
        sums = ", ".join(f"coalesce(sum(length(CAST({column} AS BLOB))), 0)" for column in CONTENTS)
        row = reader.execute(f"SELECT {sums} FROM exchanges").fetchone()
    return sum(tables.values()), tables, dict(zip(CONTENTS, row, strict=True))


def run(chats_kind: str, turns: int, folder: Path) -> dict[str, Any]:
    """Plays one kind of chats. Returns its figures, each a turn; an empty database is not counted."""
    answers = ["Ok."]

    def answer(_: Seen) -> Reply:
        return say(answers[0])

    folder.mkdir()
    database = folder / "mnemogate.db"
    with (
        StrictUpstream(script=answer) as upstream,
        load.serve_gateway(folder, SETTINGS.format(port=upstream.port)) as gateway,
    ):
        if chats_kind == "questions":  # what they are about is not counted
            play(gateway.port, "ann", chats(turns), answers)
            wait_indexed(database)
        before, pages_before, columns_before = measure(database)
        count, words = play(gateway.port, "ann", KINDS[chats_kind](turns), answers)
        wait_indexed(database)
        size, pages, columns = measure(database)
    return {
        "kind": chats_kind,
        "turns": count,
        "words": words / count,
        "database": (size - before) / count,
        "tables": {name: (bytes - pages_before.get(name, 0)) / count for name, bytes in pages.items()},
        "exchanges": {name: (bytes - columns_before[name]) / count for name, bytes in columns.items()},
    }


KINDS: dict[str, Callable[[int], Iterator[Conversation]]] = {
    "long": long_conversation,
    "chats": chats,
    "questions": questions,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench size", description=__doc__)
    parser.add_argument("--turns", type=int, default=1000, help="of each kind (1000)")
    parser.add_argument(
        "--kind", action="append", choices=KINDS, help="only this; may be given several times"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mnemogate-bench-") as name:
        for kind in options.kind or KINDS:
            sizes = run(kind, options.turns, Path(name) / kind)
            if options.json:
                print(json.dumps(sizes), flush=True)
                continue
            title = f"{kind}: {sizes['turns']:,} turns of {sizes['words']:,.0f} bytes of words"
            print(f"{title}: {sizes['database'] / 1000:.2f} kB a turn", flush=True)
            for group in ("tables", "exchanges"):
                listed = {name: bytes for name, bytes in sizes[group].items() if bytes >= MIN_BYTES}
                print(f"  {group}: " + ", ".join(f"{name} {bytes:,.0f}" for name, bytes in listed.items()))


if __name__ == "__main__":
    main()
