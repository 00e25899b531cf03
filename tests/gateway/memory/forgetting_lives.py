"""Random lives: users talk in all ways at once, on and off the record, while parts of their memories are forgotten.

`python -m tests.gateway.memory.forgetting_lives 0 100` lives the lives of these seeds (`scripts/torture forgetting`).
After each life the database is read. No word that was off the record or forgotten is in it, no word that was reported
as stored is missing, and no user has a word of another one. No request brings a word upstream that is another user's,
was off the record, or was forgotten before the request was sent, unless its own client sent it.

A user's whole memory leaves nothing by which a list would be recognised, so clients begin new chats after that.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from storage.database import Connection
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.sql.statements import make_statement
from tests.doubles.upstream import Gate, Reply, StrictUpstream, UpstreamRequest, fail, say
from tests.gateway.responses.test_responses import by_chat
from tests.gateway.responses.test_socket import Talk, open_socket
from tests.gateway.sdk import CHAT, Clock, World, remember
from tests.inflated import with_inflated
from tests.postgres import EmptyDatabase, empty_database, server
from tests.server import RawReply

Json = dict[str, Any]
# A word of a question (q) or of its reply (r), with the letter of its user and a number of its own.
WORD = re.compile(r"\b[qr]([a-d])\d+z\b")
USERS = "abcd"
# The kinds of clients that continue by the id of the last response.
CHAINS = ("chain", "socket")
# Of each life: times that the gateways are started, and steps of each client between two starts.
STARTS = 2
STEPS = 7
_TEXTS = make_statement(
    "lives",
    "SELECT e.seq, e.input, e.shown_reply, e.conversation, a.subject FROM exchanges e "
    "JOIN agents a ON a.id = e.agent",
)


def words_in(data: str | bytes) -> set[str]:
    text = data if isinstance(data, str) else data.decode("latin-1")
    return {found[0] for found in WORD.finditer(text)}


class Broken(AssertionError):
    """A life has shown faults."""

    def __init__(self, faults: Sequence[str], log: Sequence[str]) -> None:
        super().__init__("\n".join(faults[:10]))
        self.log = log


@dataclass
class Ledger:
    """What is known of each word."""

    # Off the record.
    off: set[str] = field(default_factory=set)
    # Stored, as their replies have reported.
    stored: set[str] = field(default_factory=set)
    # Stored or off the record, since requests off and on the record had them at once.
    unsure: set[str] = field(default_factory=set)
    # Forgotten.
    gone: set[str] = field(default_factory=set)
    # By the word of a question: the words that its client sent, and those that were gone by then.
    sent: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)
    # How often something larger than a message was forgotten of a user, begun and ended.
    forgettings: Counter[str] = field(default_factory=Counter)
    # The same for anything.
    changes: Counter[str] = field(default_factory=Counter)
    # Forgettings of a user that are under way.
    under_way: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    # What the clients did, for a life with faults.
    log: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def excuse(self, words: set[str]) -> None:
        """Notes words of which nothing can be said: they may be stored or not."""
        with self.lock:
            self.stored -= words

    def see(self, request: UpstreamRequest) -> None:
        """Looks at what goes upstream."""
        asked = words_in(str(request.messages[-1]["content"]))
        word = next((each for each in asked if each in self.sent), None)
        if word is None:
            self.faults.append(f"an unknown request goes upstream: {request.body!r}")
            return
        own, gone = self.sent[word]
        added = words_in(request.body) - own - {word}
        for what, found in (
            ("another user's", {each for each in added if each[1] != word[1]}),
            ("off the record", added & self.off),
            ("forgotten", added & gone),
        ):
            if found:
                self.faults.append(f"with {word} goes upstream what is {what}: {sorted(found)}")


@dataclass
class Life:
    """The gateways of one life, and what all clients share."""

    seed: int
    worlds: list[World]
    ledger: Ledger
    upstream: StrictUpstream
    # The words that each user has used.
    numbers: Counter[str] = field(default_factory=Counter)
    # The words of questions to which the upstream answers with an error.
    failing: set[str] = field(default_factory=set)
    # The words of questions of which the upstream holds the reply until their client has left.
    held: dict[str, Gate] = field(default_factory=dict)

    def new_word(self, user: str) -> str:
        with self.ledger.lock:
            self.numbers[user] += 1
            return f"q{user}{self.numbers[user]}z"

    def answer(self, request: UpstreamRequest) -> Reply:
        self.ledger.see(request)
        word = next(iter(words_in(str(request.messages[-1]["content"]))), "qa0z")
        if word in self.failing:
            return fail(500)
        reply = reply_of(word)
        if word in self.held:
            return say(reply, hold_after={3: self.held[word]})
        return say(reply)


def reply_of(word: str) -> str:
    return f"What I say about r{word[1:]} is long enough to be found again, with r{word[1:]} at its end."


def question_of(word: str) -> str:
    return f"I want to tell you {word} now."


@dataclass
class Client:
    """A client of one user, with one chat at a time."""

    life: Life
    user: str
    # "chat" and "messages" send lists, the others new messages. "chain", "socket" and "conversation" are of the
    # Responses API.
    kind: str
    # The conversation that it names.
    key: str | None
    dice: random.Random
    # Its list.
    messages: list[Json] = field(default_factory=list)
    # The id of the last response, and the ledger's `changes` by then; -1: something was forgotten meanwhile.
    last: tuple[str, int] | None = None
    # The ledger's `forgettings` when its chat began.
    forgettings: int = 0
    # A forgetting was under way when its conversation was made, which may go with it.
    may_lose_key: bool = False

    @property
    def ledger(self) -> Ledger:
        return self.life.ledger

    def live(self) -> None:
        for _ in range(STEPS):
            self.step()

    def step(self) -> None:
        if self.dice.random() < 0.12:
            self.forget()
            return
        with self.ledger.lock:
            forgettings = self.ledger.forgettings[self.user]
        if forgettings != self.forgettings:
            # Its chat is gone: the application begins another one.
            self.forgettings = forgettings
            self.messages, self.last = [], None
            if self.kind == "conversation":
                self.key = None
            elif self.key is not None:
                self.key = f"{self.key.partition('-')[0]}-{self.life.new_word(self.user)[1:]}"
        mode = self.dice.choices(("on", "off", "read"), (70, 18, 12))[0]
        fate = self.dice.choices(("whole", "left", "failed"), (80, 12, 8))[0]
        self.change()
        word = self.life.new_word(self.user)
        if self.kind in ("chat", "messages") and self.messages and self.dice.random() < 0.15:
            word = self.ask_again() or word
        self.ask(word, mode, fate)

    def change(self) -> None:
        """Changes the client's list, as clients do."""
        if self.kind not in ("chat", "messages") or not self.messages:
            return
        chance, messages = self.dice.random(), self.messages
        if chance < 0.15 and messages[-1]["role"] == "assistant":
            cut = self.dice.choice((24, 48))
            messages[-1] = {"role": "assistant", "content": messages[-1]["content"][:cut]}
        elif chance < 0.25 and len(messages) > 4:
            del messages[:2]
        elif chance < 0.35:
            at = 2 * self.dice.randrange(len(messages) // 2 + 1)
            self.ledger.excuse(words_in(str(messages[at:])))
            del messages[at:]

    def ask_again(self) -> str | None:
        """Takes the last question out of the list, and returns its word."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            return None
        word = words_in(str(self.messages.pop()["content"])).pop()
        words = {word, f"r{word[1:]}"}
        self.ledger.excuse(words)
        if all(each["role"] == "user" for each in self.messages):
            # Without a reply before it, it may be a new question (docs/conversations.md, "What no rule can decide").
            with self.ledger.lock:
                self.ledger.off -= words
        return word

    def ask(self, word: str, mode: str, fate: str) -> None:
        ledger, words = self.ledger, {word, f"r{word[1:]}"}
        question = {"role": "user", "content": question_of(word)}
        with ledger.lock:
            if mode != "on" and not words & (ledger.stored | ledger.gone) and word not in ledger.sent:
                ledger.off |= words
            own = words_in(str(self.messages)) if self.kind in ("chat", "messages") else set[str]()
            ledger.sent[word] = own | words, set(ledger.gone)
            forgettings, changes = ledger.forgettings[self.user], ledger.changes[self.user]
            is_quiet = not ledger.under_way[self.user]
        if fate != "whole" and len(self.life.worlds) > 1:
            # Another gateway may answer the next list before this one has written the turn (docs/postgres.md).
            with ledger.lock:
                ledger.unsure |= words & ledger.off
                ledger.off -= words
        if fate == "failed":
            self.life.failing.add(word)
        world = self.dice.choice(self.life.worlds)
        if self.kind == "conversation" and self.key is None:
            self.may_lose_key = bool(ledger.under_way[self.user])
            self.key = world.sdk.conversations.create().id
        path, body = self.request(question)
        headers = self.headers(mode)
        ledger.log.append(f"{self.user} {self.kind} {self.key} {mode} {fate} {sorted(own)} {word}")
        if fate == "left":
            self.leave(world, path, body, headers, word)
            self.messages.append(question)
            return
        reply = self.send(world, path, body, headers)
        self.life.failing.discard(word)
        shown = {name: reply.headers.get(name) for name in ("x-mnemogate-memory", "x-mnemogate-durable")}
        ledger.log.append(f"{word}: {reply.status} {shown}")
        if self.kind == "conversation" and reply.status == 404:
            self.key = None
            if ledger.forgettings[self.user] == self.forgettings and not self.may_lose_key:
                ledger.faults.append(f"the conversation of {word} is lost: {reply.body!r}")
            return
        if self.kind in CHAINS and reply.status == 400 and b"previous_response_not_found" in reply.body:
            with ledger.lock:
                if self.last is not None and self.last[1] == ledger.changes[self.user] == changes:
                    ledger.faults.append(f"the response before {word} is lost: {reply.body!r}")
            self.last = None
            return
        if fate == "failed" or reply.status == 503:
            self.messages.append(question)
            return
        if reply.status != 200:
            ledger.faults.append(f"{word}: {reply.status} {reply.body!r}")
            return
        self.messages += [question, {"role": "assistant", "content": reply_of(word)}]
        is_stored = reply.headers["x-mnemogate-memory"] == "on" and "x-mnemogate-durable" not in reply.headers
        with ledger.lock:
            is_quiet = is_quiet and ledger.changes[self.user] == changes
            is_certain = self.kind != "socket" or is_quiet
            if is_stored and is_certain and ledger.forgettings[self.user] == forgettings:
                ledger.stored |= words - ledger.gone - ledger.off - ledger.unsure
            if self.kind in CHAINS and is_stored:
                self.last = reply.json["id"], changes if is_quiet else -1

    def request(self, question: Json) -> tuple[str, Json]:
        user = f"user-{self.user}"
        match self.kind:
            case "append":
                return CHAT, {"model": "m", "user": user, "messages": [question]}
            case "messages":
                body = {"model": "m", "max_tokens": 99, "metadata": {"user_id": user}}
                return "/v1/messages", {**body, "messages": [*self.messages, question]}
            case "conversation":
                named = {"model": "m", "user": user, "conversation": self.key}
                return "/v1/responses", {**named, "input": question["content"]}
            case "chain" | "socket":
                previous = {} if self.last is None else {"previous_response_id": self.last[0]}
                return "/v1/responses", {"model": "m", "user": user, "input": question["content"], **previous}
        return CHAT, {"model": "m", "user": user, "messages": [*self.messages, question]}

    def headers(self, mode: str) -> dict[str, str]:
        headers = {"content-type": "application/json", "x-mnemogate-memory": mode}
        if self.key is not None and self.kind != "conversation":
            headers["x-mnemogate-conversation"] = self.key
        if self.kind == "append":
            headers["x-mnemogate-history"] = "append"
        return headers

    def send(self, world: World, path: str, body: Json, headers: dict[str, str]) -> RawReply:
        data = json.dumps(body).encode()
        if self.kind != "socket":
            return world.gateway.ask("POST", path, data, headers)
        with open_socket(world.gateway, x_mnemogate_memory=headers["x-mnemogate-memory"]) as socket:
            response = Talk(socket).ask(**body)
        # Its events report no more of memory than this: a turn that a forgetting refuses changes `Ledger.changes`.
        shown = {"x-mnemogate-memory": headers["x-mnemogate-memory"]}
        status = 200 if response.get("status") == "completed" else response.get("status")
        return RawReply(status if isinstance(status, int) else 500, shown, orjson.dumps(response))

    def leave(self, world: World, path: str, body: Json, headers: dict[str, str], word: str) -> None:
        """Asks for a stream, and leaves while it comes."""
        gate = self.life.held[word] = Gate()
        with world.gateway.connect() as client:
            client.request("POST", path, json.dumps({**body, "stream": True}).encode(), headers)
            if client.read_head().status == 200:
                client.read_until(b"What")
        gate.open()
        del self.life.held[word]

    # -- forgetting

    def forget(self) -> None:
        """Forgets a text wherever it is, several, a conversation, or all of the user."""
        how = self.dice.choices(("texts", "conversation", "all"), (6, 2, 1))[0]
        world, ledger = self.dice.choice(self.life.worlds), self.ledger
        scope = Scope("default", "default", f"user:user-{self.user}")
        agent = world.gateway.call(world.store.agents.find_current(scope))
        rows = [row for row in read_texts(world) if row.subject == scope.subject]
        texts = [text for row in rows for text in row.texts if text.word is not None]
        if agent is None or not texts:
            return
        chosen = self.dice.sample(texts, min(len(texts), self.dice.choice((1, 1, 3))))
        words = {text.word for text in chosen}
        if how == "texts":
            gone = {word for word in words if word is not None}
            target = ForgetTarget(messages=[text.seq for text in texts if text.word in gone])
        elif how == "conversation":
            row = self.dice.choice(rows)
            gone = {t.word for r in rows if r.conversation == row.conversation for t in r.texts if t.word}
            elsewhere = {
                t.word for r in rows if r.conversation != row.conversation for t in r.texts if t.word
            }
            gone -= elsewhere
            target = ForgetTarget(conversation_row=row.conversation)
        else:
            gone = {text.word for text in texts if text.word is not None}
            target = ForgetTarget(is_all=True)
        with ledger.lock:
            ledger.under_way[self.user] += 1
            self.note_forgetting(how, gone)
        ledger.log.append(f"{self.user} forgets {how} {sorted(gone)} {target.messages}")
        world.gateway.call(world.store.forgetting.forget(agent.id, target))
        with ledger.lock:
            ledger.under_way[self.user] -= 1
            self.note_forgetting(how, gone)
            if how == "texts":
                ledger.gone |= gone

    def note_forgetting(self, how: str, gone: set[str]) -> None:
        """Notes the beginning or the end of a forgetting: nothing is certain of what was said meanwhile."""
        ledger = self.ledger
        ledger.changes[self.user] += 1
        ledger.stored -= gone
        if how != "texts":
            ledger.forgettings[self.user] += 1
            ledger.stored -= {word for word in ledger.stored if word[1] == self.user}
        if how == "all":
            # The tombstones are gone as well (docs/decisions.md).
            ledger.off -= {word for word in ledger.off if word[1] == self.user}


@dataclass(frozen=True)
class Text:
    seq: int
    word: str | None


@dataclass(frozen=True)
class Row:
    subject: str
    conversation: int
    texts: list[Text]


def read_texts(world: World) -> list[Row]:
    """Returns the exchanges of all memories that have texts."""

    async def read(connection: Connection) -> list[Any]:
        return await connection.fetch_rows(_TEXTS)

    found = []
    for seq, input, reply, conversation, subject in world.gateway.call(world.store.database.read(read)):
        inputs = orjson.loads(input or b"[]")
        texts = [*inputs, *([orjson.loads(reply)] if reply else [])]
        numbered = [
            Text(seq + n, next(iter(words_in(str(each["content"]))), None)) for n, each in enumerate(texts)
        ]
        found.append(Row(subject, conversation, numbered))
    return found


def live(seed: int, folder: Path, url: str | None, *, is_concurrent: bool) -> None:
    """Lives a life, and checks it. Raises: Broken."""
    dice, ledger, clock = random.Random(seed), Ledger(), Clock()
    places: list[Path | str] = [folder] if url is None else [url, url]
    with StrictUpstream() as upstream:
        life = Life(seed, [], ledger, upstream)
        upstream.script = life.answer
        clients = [
            Client(life, user, kind, key, random.Random(f"{seed} {user} {n}"))
            for user in USERS[: dice.choice((2, 3))]
            for n, (kind, key) in enumerate(dice.sample(KINDS, 3))
        ]
        for _ in range(STARTS):
            with ExitStack() as stack:
                life.worlds = [
                    stack.enter_context(remember(upstream, place, clock=clock, upstreams=by_chat(upstream)))
                    for place in places
                ]
                if is_concurrent:
                    with ThreadPoolExecutor() as threads:
                        for lived in [threads.submit(client.live) for client in clients]:
                            lived.result()
                else:
                    for _ in range(STEPS * len(clients)):
                        dice.choice(clients).step()
                        for world in life.worlds:
                            world.settle()
                for world in life.worlds:
                    world.settle()
                rows = read_texts(life.worlds[0])
        check(ledger, rows, EmptyDatabase(url).content() if url else file_content(folder / "memory.db"))


KINDS: Sequence[tuple[str, str | None]] = (
    ("chat", None), ("chat", "k1"), ("append", "k2"), ("append", "k3"), ("messages", None), ("messages", "k4"),
    ("chain", None), ("socket", None), ("conversation", None),
)  # fmt: skip


def file_content(file: Path) -> bytes:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return with_inflated(file.read_bytes())


def check(ledger: Ledger, rows: Sequence[Row], content: bytes) -> None:
    """Raises: Broken."""
    present = words_in(content)
    faults = [*ledger.faults]
    for what, words in (
        ("off the record and stored", ledger.off & present),
        ("forgotten and stored", ledger.gone & present),
        ("reported as stored and missing", ledger.stored - present),
        (
            "in another user's memory",
            {
                t.word
                for row in rows
                for t in row.texts
                if t.word and not row.subject.endswith(f"-{t.word[1]}")
            },
        ),
    ):
        if words:
            faults.append(f"{what}: {sorted(words)}")
    if faults:
        raise Broken(faults, ledger.log)


@contextmanager
def _postgres(is_wanted: bool) -> Iterator[str | None]:
    if not is_wanted:
        yield None
        return
    with server("autovacuum = off") as (url, _):
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture forgetting", description=__doc__)
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("last", type=int, nargs="?", default=20)
    parser.add_argument("--postgres", action="store_true", help="two gateways over one PostgreSQL")
    parser.add_argument("--in-turn", action="store_true", help="one request after the other")
    parser.add_argument("--log", action="store_true", help="print what the clients of a life with faults did")
    options = parser.parse_args()
    # Turns that a forgetting refuses, and clients that leave, are part of these lives.
    for name in ("mnemogate", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    broken = 0
    with _postgres(options.postgres) as url:
        for seed in range(options.first, options.last):
            with tempfile.TemporaryDirectory() as folder:
                database = None if url is None else empty_database(url).url
                try:
                    live(seed, Path(folder), database, is_concurrent=not options.in_turn)
                except Broken as fault:
                    broken += 1
                    print(f"seed {seed}:\n{fault}", flush=True)
                    if options.log:
                        print("\n".join(fault.log))
            if not (seed + 1) % 10:
                print(f"{seed + 1 - options.first} lives, {broken} with faults", flush=True)
    print(f"{options.last - options.first} lives, {broken} with faults")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
