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
from typing import Any, NamedTuple

from scripts import load
from scripts.bench_long import Client
from scripts.talk import vocabulary as v
from scripts.talk.dialogue import USER, make_dialogue
from tests.doubles.upstream import Reply, StrictUpstream, UpstreamRequest, say

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
# The columns of `exchanges` with contents.
CONTENTS = ("input", "shown_reply", '"full"', "notes", "inputs", "path", "pad")
# The longest wait for the index.
PATIENCE_S = 60.0
# After so long a rest a memory is indexed (gateway/run/background/indexing.py).
RESTS_S = 8.0
# Tables and columns with fewer bytes a turn are not printed.
MIN_BYTES = 10

# Its turns: the user's message and the reply.
Conversation = list[tuple[str, str]]


class Played(NamedTuple):
    """The number of turns that were played, and the bytes of their texts."""

    turns: int
    text_bytes: int


class DatabaseSize(NamedTuple):
    """The bytes of a database."""

    total: int
    # Of each table with its indexes.
    tables: dict[str, int]
    # Of each of the `CONTENTS`.
    contents: dict[str, int]


def long_conversation(turns: int) -> Iterator[Conversation]:
    words = " ".join(SENTENCES).split()

    def text(n: int) -> str:
        start = n * 75 % (len(words) - 75)
        return f"({n}) " + " ".join(words[start : start + 74])

    yield [(text(2 * n), text(2 * n + 1)) for n in range(turns)]


def chats(turns: int) -> Iterator[Conversation]:
    """Yields generated conversations until they have a number of turns."""
    remaining = turns
    for number in range(turns):
        for _, session in make_dialogue(f"size-{number}", 0, SENTENCES).sessions:
            turns_of_session = iter(session)
            pairs: Conversation = []
            for message in turns_of_session:
                reply = next(turns_of_session, None)
                if message.role == USER and reply is not None:
                    pairs.append((message.text, reply.text))
            if pairs[:remaining]:
                yield pairs[:remaining]
            remaining -= len(pairs)
            if remaining <= 0:
                return


def questions(turns: int) -> Iterator[Conversation]:
    texts = [question.text for question in make_dialogue("size-0", 0, SENTENCES).questions]
    for number in range(turns):
        yield [(texts[number % len(texts)], "I am not sure. What do you think yourself?")]


def play(port: int, user: str, conversations: Iterator[Conversation], answers: list[str]) -> Played:
    """Plays conversations. answers: gets the reply that the upstream gives next."""
    client = Client(port, user)
    turns = text_bytes = 0
    for conversation in conversations:
        messages: list[dict[str, Any]] = []
        for text, answer in conversation:
            answers[:] = [answer]
            messages.append({"role": "user", "content": text})
            reply, _ = client.post(messages)
            messages.append(reply)
            turns += 1
            text_bytes += len(text.encode()) + len(answer.encode())
    return Played(turns, text_bytes)


def wait_indexed(database: Path) -> None:
    """Waits until indexing has paused; the newest messages are indexed later. Raises: SystemExit: timeout."""
    deadline = time.monotonic() + PATIENCE_S
    indexed_before = -1
    while True:
        with closing(open_read_only(database)) as reader:
            (indexed,) = reader.execute("SELECT coalesce(sum(indexed_seq), 0) FROM agents").fetchone()
        if indexed == indexed_before:
            return
        if time.monotonic() > deadline:
            raise SystemExit("The index is not complete.")
        indexed_before = indexed
        time.sleep(RESTS_S)


def open_read_only(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)


def measure(database: Path) -> DatabaseSize:
    with closing(open_read_only(database)) as reader:
        tables = dict(
            reader.execute(
                "SELECT coalesce(m.tbl_name, s.name), sum(s.pgsize) FROM dbstat s"
                " LEFT JOIN sqlite_master m ON m.name = s.name GROUP BY 1 ORDER BY 2 DESC"
            ).fetchall()
        )
        sums = ", ".join(f"coalesce(sum(length(CAST({column} AS BLOB))), 0)" for column in CONTENTS)
        row = reader.execute(f"SELECT {sums} FROM exchanges").fetchone()
    return DatabaseSize(sum(tables.values()), tables, dict(zip(CONTENTS, row, strict=True)))


def run(chats_kind: str, turns: int, folder: Path) -> dict[str, Any]:
    """Plays one kind of chats. Returns its figures, each for a turn, without what the database had before."""
    answers = ["Ok."]

    def answer(_: UpstreamRequest) -> Reply:
        return say(answers[0])

    folder.mkdir()
    database = folder / "mnemogate.db"
    with (
        StrictUpstream(script=answer) as upstream,
        load.serve_gateway(folder, SETTINGS.format(port=upstream.port)) as gateway,
    ):
        if chats_kind == "questions":  # the chats that they are about
            play(gateway.port, "ann", chats(turns), answers)
            wait_indexed(database)
        before = measure(database)
        played = play(gateway.port, "ann", KINDS[chats_kind](turns), answers)
        wait_indexed(database)
        after = measure(database)
    return {
        "kind": chats_kind,
        "turns": played.turns,
        "words": played.text_bytes / played.turns,
        "database": (after.total - before.total) / played.turns,
        "tables": {
            name: (size - before.tables.get(name, 0)) / played.turns for name, size in after.tables.items()
        },
        "exchanges": {
            name: (size - before.contents[name]) / played.turns for name, size in after.contents.items()
        },
    }


KINDS: dict[str, Callable[[int], Iterator[Conversation]]] = {
    "long": long_conversation,
    "chats": chats,
    "questions": questions,
}


def main() -> None:
    """Prints the bytes on disk of a turn, for each kind of conversation."""
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
                listed = {name: size for name, size in sizes[group].items() if size >= MIN_BYTES}
                print(f"  {group}: " + ", ".join(f"{name} {size:,.0f}" for name, size in listed.items()))


if __name__ == "__main__":
    main()
