"""What a client saw the end of is on disk, whenever the gateway is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.hashed_list import HashedList
from storage.sqlite.lock import find_lock_owner
from tests.doubles.upstream import Call, Reply, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.process import Process, serving
from tests.patience import PATIENCE_S, becomes
from tests.server import RawClient

CHAT = "/v1/chat/completions"
LIVES = (
    8,
    60,
    240,
    240,
    240,
)  # how many things the clients have seen at the most at a kill; `scripts/torture` has more
FREEZES = 11  # in each life
LATER_S = 0.004  # a moment is so much later than what a client saw, at most: about what a turn's write takes
SETTINGS = """
[[profiles]]
name = "helper"
model = "m"
memory_tools = true
[[profiles.blocks]]
label = "human"
limit = 100000
"""


class Watch:
    """Counts what clients see, for who waits until they have seen so much."""

    def __init__(self) -> None:
        self._count = 0
        self._failed = False
        self._changed = threading.Condition()

    def saw(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def fail(self) -> None:
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def wait_for(self, count: int) -> bool:
        """Returns when it is so much; False where a client has failed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._failed or self._count >= count, PATIENCE_S)
            return not self._failed


@dataclass
class Client:
    """Somebody who talks on, over the gateway's death. turns: (what was said, reply) whose end was seen."""

    name: str
    fields: dict[str, Any]
    headers: dict[str, str]
    append: bool = False
    turns: list[tuple[str, str]] = field(default_factory=list)
    conversations: list[str] = field(default_factory=list)

    def run(self, port: int, watch: Watch) -> None:
        """Until the gateway is gone."""
        try:
            with RawClient(port) as connection:
                while True:
                    self._turn(connection, watch)
        except (EOFError, ConnectionError):
            return

    def _turn(self, connection: RawClient, watch: Watch) -> None:
        text = f"{self.name} says number {len(self.turns)}"
        stream = len(self.turns) % 3 != 1
        said = [{"role": "user", "content": text}]
        if not self.append:
            past = [
                {"role": role, "content": content}
                for turn in self.turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
            said = [*past, *said]
        body = {"model": "m", "messages": said, "stream": stream, **self.fields}
        connection.request("POST", CHAT, json.dumps(body).encode(), self.headers)
        head = connection.read_head()
        assert head.status == 200, head
        assert head.headers["x-mnemogate-memory"] == "on"
        watch.saw()
        said = ""
        if stream:
            ended = False
            while chunk := connection.read_chunk():
                watch.saw()
                for event in chunk.split(b"\n\n"):
                    assert not event.startswith(b":"), event
                    ended = ended or event == b"data: [DONE]"
                    if event.startswith(b"data: {"):
                        for choice in json.loads(event[6:])["choices"]:
                            said += choice["delta"].get("content") or ""
                if ended:  # from here on the turn counts, whether or not the chunked body is closed
                    break
            self._saw(text, said, head.headers)
            assert connection.read_chunk() == b""
        else:
            assert "x-mnemogate-durable" not in head.headers
            whole = connection.read_exactly(int(head.headers["content-length"]))
            said = json.loads(whole)["choices"][0]["message"]["content"]
            self._saw(text, said, head.headers)
        watch.saw()

    def so_far(self) -> Client:
        count = len(self.turns)
        return replace(self, turns=self.turns[:count], conversations=self.conversations[:count])

    def _saw(self, text: str, said: str, headers: dict[str, str]) -> None:
        self.conversations.append(headers["x-mnemogate-conversation"])
        self.turns.append((text, said))


def make_clients() -> list[Client]:
    one_room = {"x-mnemogate-conversation": "room"}
    return [
        Client("ann", {"user": "ann"}, {}),
        Client("ann again", {"user": "ann"}, {}),
        Client("ann in a named chat", {"user": "ann"}, {"x-openwebui-chat-id": "c1"}),
        Client("bob", {"user": "bob"}, {}),
        Client("carl", {}, {"x-mnemogate-user": "carl"}),
        Client("nobody in a room", {}, one_room),
        Client("erna with an agent", {"user": "erna", "model": "agent/helper"}, {}),
        Client("dora", {"user": "dora"}, {**one_room, "x-mnemogate-history": "append"}, append=True),
    ]


def numbered(count: itertools.count[int]) -> Any:
    def script(request: UpstreamRequest) -> Reply:
        last = request.messages[-1]
        if last["role"] == "user" and "memory_insert" in request.tool_names:
            number = next(count)
            edits = [
                Call("memory_insert", {"label": "human", "new_string": f"Fact {number}.{i}"}) for i in (1, 2)
            ]
            return call_tools(*edits, Call("archival_memory_insert", {"content": f"Passage {number}"}))
        if last["role"] == "tool":
            asked = next(m["content"] for m in reversed(request.messages) if m["role"] == "user")
            return say(f"Answer {next(count)} to: {asked}")
        return say(f"Answer {next(count)} to: {last['content']}")

    return script


@pytest.mark.sqlite
def test_replies_that_clients_saw_finished_survive_sigkill(tmp_path: Path) -> None:
    """Killed, and frozen: a stopped process leaves the files as a killed one does, and can go on."""
    seed = int(os.environ.get("KILL_SEED") or random.randrange(1 << 32))
    print(f"KILL_SEED={seed}")  # shown when it fails; chooses the moments again, as far as threads let it
    dice = random.Random(seed)
    clients = make_clients()
    database, seen, points = tmp_path / "m.db", 0, 0
    verified: set[object] = set()
    with StrictUpstream(script=numbered(itertools.count())) as upstream:
        for most in LIVES:
            moments = sorted(dice.randint(1, most) for _ in range(FREEZES + 1))
            with serving(
                tmp_path,
                "--db",
                str(database),
                "--upstream",
                upstream.base_url,
                settings=SETTINGS,
                is_new=not database.exists(),  # the first makes its file itself
            ) as gateway:
                assert gateway.ask("GET", "/health/ready").json == {"status": "ok", "store": "ok"}
                frozen = talk_until(gateway, clients, moments, dice, database)
            assert find_lock_owner(database) is None
            check_file(database, clients)
            for file, state in frozen:
                check_file(file, state, verified)
                file.unlink()
            points += len(frozen) + 1
            before, seen = seen, sum(len(client.turns) for client in clients)
            assert seen >= before
    assert points == len(LIVES) * (FREEZES + 1)
    assert all(len(client.turns) >= 4 for client in clients)


def talk_until(
    gateway: Process, clients: list[Client], moments: list[int], dice: random.Random, database: Path
) -> list[tuple[Path, list[Client]]]:
    """Freezes it at each of these moments, and kills it at the last. What its files and its clients had then."""
    failures: list[BaseException] = []
    watch = Watch()

    def run(client: Client) -> None:
        try:
            client.run(gateway.port, watch)
        except BaseException as error:
            failures.append(error)
            watch.fail()

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    found = []
    try:
        for number, moment in enumerate(moments):
            if not watch.wait_for(moment):
                break
            time.sleep(dice.random() * LATER_S)  # into the middle of what follows
            if number < len(moments) - 1:
                with frozen(gateway):
                    copy = copied(database, number)
                    # After the copy: whatever they have read by now was sent before it.
                    found.append((copy, [client.so_far() for client in clients]))
    finally:
        gateway.kill()
        for thread in threads:
            thread.join(PATIENCE_S)
    if failures:
        raise failures[0]
    return found


@contextmanager
def frozen(gateway: Process) -> Iterator[None]:
    """No thread of it runs."""
    gateway.child.send_signal(signal.SIGSTOP)
    becomes(lambda: _is_frozen(gateway.child.pid))
    try:
        yield
    finally:
        gateway.child.send_signal(signal.SIGCONT)


def _is_frozen(process: int) -> bool:
    with suppress(FileNotFoundError):  # a thread has just ended
        threads = Path(f"/proc/{process}/task").glob("*/stat")
        return all(thread.read_text().rpartition(") ")[2].startswith("T") for thread in threads)
    return False


def copied(database: Path, number: int) -> Path:
    """The database with its log. Not the log's index, which a crash leaves to be made again."""
    copy = database.with_name(f"frozen-{number}.db")
    for side in ("", "-wal"):
        shutil.copyfile(f"{database}{side}", f"{copy}{side}")
    return copy


def check_file(database: Path, clients: list[Client], verified: set[object] | None = None) -> None:
    """verified: rows whose path was computed already, of an earlier state of the same file."""
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    try:
        assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]
        rows = {row["id"]: row for row in connection.execute("SELECT * FROM exchanges")}
        check_whole(connection, rows, set() if verified is None else verified)
        check_edits(connection, rows)
        check_kept(rows, clients)
        check_one_conversation_each(connection, clients)
    finally:
        connection.close()


def check_whole(connection: sqlite3.Connection, rows: dict[int, sqlite3.Row], verified: set[object]) -> None:
    """Nothing is half a turn."""
    agents = {row["id"]: row for row in connection.execute("SELECT * FROM agents")}
    conversations = {row["id"]: row for row in connection.execute("SELECT * FROM conversations")}
    for row in rows.values():
        assert conversations[row["conversation"]]["agent"] == row["agent"]
        parent = rows[row["parent"]] if row["parent"] is not None else None
        assert row["depth"] == (0 if parent is None else parent["depth"] + 1)
        assert parent is None or parent["conversation"] == row["conversation"]
        assert row["input"] is not None
        assert row["span"] == len(orjson.loads(row["input"])) + 1
        if row["state"] == "finished":
            assert row["ended"] is not None
            assert row["reply"]
            same = (row["id"], row["path"], row["input"], row["shown_reply"])
            if same not in verified:
                hasher = MessageHasher(agents[row["agent"]]["secret"])
                assert row["path"] == path_of(hasher, row, rows)
                verified.add(same)
        else:
            assert row["state"] in ("open", "cancelled")  # append mode writes what was said first
            assert row["shown_reply"] is None
    for agent in agents.values():
        numbers = [(r["seq"], r["span"]) for r in rows.values() if r["agent"] == agent["id"]]
        sql = "SELECT seq, 1 FROM passages WHERE agent = ?"  # these take numbers of the same order
        numbers += [tuple(found) for found in connection.execute(sql, (agent["id"],))]
        numbers.sort()
        assert agent["next_seq"] == 1 + sum(span for _, span in numbers)
        assert [seq for seq, _ in numbers] == [
            1 + sum(span for _, span in numbers[:i]) for i in range(len(numbers))
        ]
    for conversation in conversations:
        assert any(row["conversation"] == conversation for row in rows.values())


def check_edits(connection: sqlite3.Connection, rows: dict[int, sqlite3.Row]) -> None:
    """Memory edits are there with their turn, and in the blocks once when it was confirmed."""
    made: dict[int, list[sqlite3.Row]] = {}
    for op in connection.execute("SELECT * FROM block_ops ORDER BY id"):
        made.setdefault(op["exchange"], []).append(op)
    for row in rows.values():
        ops = made.pop(row["id"], [])
        assert bool(row["edits"]) == bool(ops)
        assert [op["op"] for op in ops] in ([], ["insert", "insert", "archival_insert"])
        assert {op["state"] for op in ops} <= {"merged" if row["merged"] else "pending"}
        if ops:
            assert row["full"] is not None
    assert made == {}
    merged = {
        row["id"]: [op["arguments"] for op in connection.execute(
            "SELECT arguments FROM block_ops WHERE exchange = ? ORDER BY id", (row["id"],))]
        for row in rows.values() if row["merged"]
    }  # fmt: skip
    facts = [json.loads(ops[i])["new_string"] for ops in merged.values() for i in (0, 1) if ops]
    passages = [json.loads(ops[2])["content"] for ops in merged.values() if ops]
    for block in connection.execute(
        "SELECT b.version, h.version AS known, h.value, b.agent FROM blocks b JOIN block_history h ON h.id = b.current"
    ):
        assert block["version"] == block["known"]
        assert sorted(block["value"].split("\n")) == sorted(facts or [""])
    assert sorted(row[0] for row in connection.execute("SELECT text FROM passages")) == sorted(passages)


def path_of(hasher: MessageHasher, row: sqlite3.Row, rows: dict[int, sqlite3.Row]) -> bytes:
    """The hash of the path, computed from what the rows say."""
    messages: list[Any] = []
    at: sqlite3.Row | None = row
    while at is not None:
        said = [] if at["shown_reply"] is None else [orjson.loads(at["shown_reply"])]
        messages = [*orjson.loads(at["input"]), *said, *messages]
        at = rows[at["parent"]] if at["parent"] is not None else None
    listing = HashedList(hasher, messages)
    return hasher.hash_path(listing.list_atoms(len(listing)))


def check_kept(rows: dict[int, sqlite3.Row], clients: list[Client]) -> None:
    """Each turn whose end was seen is there, after the one before it."""
    kept = {
        orjson.loads(row["shown_reply"])["content"]: row
        for row in rows.values()
        if row["shown_reply"] is not None
    }
    for client in clients:
        before: sqlite3.Row | None = None
        for text, reply in client.turns:
            row = kept.get(reply)
            assert row is not None, f"{reply!r} was seen and is not there"
            assert row["state"] == "finished"
            assert row["active"]
            assert orjson.loads(row["input"])[-1] == {"role": "user", "content": text}
            at = row["parent"]
            while at is not None and rows[at]["state"] != "finished":  # sends that were cut, in append mode
                at = rows[at]["parent"]
            if before is None:
                assert at is None or client.append
            elif not client.append:
                assert at == before["id"]
            before = row


def check_one_conversation_each(connection: sqlite3.Connection, clients: list[Client]) -> None:
    """After the death of the gateway a conversation goes on where it was."""
    stored = {row["uid"] for row in connection.execute("SELECT uid FROM conversations")}
    for client in clients:
        assert len(set(client.conversations)) <= 1, client.name
        assert stored.issuperset(client.conversations)
