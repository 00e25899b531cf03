"""Random users who chat in many ways, on and off the record, while parts of their memories are forgotten.

`python -m tests.gateway.memory.random_forgetting 0 100` runs the simulations of these seeds (`scripts/torture
forgetting`). Each question and each reply has a marker word of its own, for which a simulation searches:

- The database has no word that was off the record or forgotten.
- The database has each word that a reply reported as stored.
- The memory of a user has no word of another user.
- No request goes upstream with a word of another user, or with a word that was off the record or had been forgotten
  when the client sent the request. Words that the client itself sends are allowed.

After a conversation or a whole memory is forgotten, the clients of the user begin new chats: the gateway has nothing
left by which it would recognise the messages of the old ones.
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
from typing import Any, Literal, NamedTuple

import orjson

from storage.database import Connection
from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.sql.statements import make_statement
from tests.doubles.upstream import Gate, Reply, StrictUpstream, UpstreamRequest, fail, say
from tests.gateway.responses.socket_client import SocketClient, open_socket
from tests.gateway.sdk import CHAT, Clock, World, remember
from tests.inflated import with_inflated
from tests.postgres import EmptyDatabase, empty_database, server
from tests.server import RawReply, chat_upstreams

Json = dict[str, Any]
# How a request ends: with its whole reply, by a client that leaves during the stream, or with an upstream's error.
Ending = Literal["complete", "left", "failed"]
# What is forgotten: some messages, a conversation, or the whole memory.
Extent = Literal["messages", "conversation", "memory"]
# The marker word of a question (q) or of its reply (r): the letter of the user, and a number.
WORD = re.compile(r"\b[qr]([a-d])\d+z\b")
USERS = "abcd"
# The kinds of clients, each with the name of its conversation (None: it sends no name).
CLIENTS: Sequence[tuple[str, str | None]] = (
    ("chat", None), ("chat", "k1"), ("append", "k2"), ("append", "k3"), ("messages", None), ("messages", "k4"),
    ("chain", None), ("socket", None), ("conversation", None),
)  # fmt: skip
# The kinds that send all their messages with each request.
LISTS = ("chat", "messages")
# The kinds that continue by the id of the last response.
CHAINS = ("chain", "socket")
# How often a simulation starts its gateways, and how many steps each client takes between two starts.
STARTS = 2
STEPS = 7
_EXCHANGES = make_statement(
    "random_forgetting",
    "SELECT e.seq, e.input, e.shown_reply, e.conversation, a.subject FROM exchanges e "
    "JOIN agents a ON a.id = e.agent",
)


def find_words(data: str | bytes) -> set[str]:
    text = data if isinstance(data, str) else data.decode("latin-1")
    return {match[0] for match in WORD.finditer(text)}


def make_question(word: str) -> str:
    return f"I want to tell you {word} now."


def reply_word(word: str) -> str:
    """Returns the word of the reply to a question with this word."""
    return f"r{word[1:]}"


def make_reply(word: str) -> str:
    """Returns the reply to the question with this word."""
    word = reply_word(word)
    return f"What I say about {word} is long enough to be found again, with {word} at its end."


class FaultsFound(AssertionError):
    """A simulation has shown faults."""

    def __init__(self, faults: Sequence[str], log: Sequence[str]) -> None:
        super().__init__("\n".join(faults[:10]))
        self.log = log


class SentWords(NamedTuple):
    """The words that may or may not go upstream with a client's request."""

    # Words of the messages that the client sends, and the word of the reply.
    own: set[str]
    # Words that were forgotten when the client sent the request.
    forgotten: set[str]


class ForgetCounts(NamedTuple):
    """How often texts of a user were forgotten up to some moment. A forgetting counts at its begin and at its end."""

    # Forgettings of conversations and of the whole memory.
    chats: int
    # Forgettings of all extents.
    all: int


@dataclass
class Ledger:
    """What is known of each marker word. Its sets and counters are changed under the lock."""

    off_record: set[str] = field(default_factory=set)
    # Words that a reply reported as stored.
    stored: set[str] = field(default_factory=set)
    # Words that may be stored or off the record, because requests of both kinds had them at the same time.
    undecided: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    # word of a question -> the words of its request
    sent: dict[str, SentWords] = field(default_factory=dict)
    # user -> the fields of `ForgetCounts`
    chat_forgettings: Counter[str] = field(default_factory=Counter)
    forgettings: Counter[str] = field(default_factory=Counter)
    # user -> the forgettings that are running
    running_forgettings: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    # What the clients did, which is printed if there are faults.
    log: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def count_forgettings(self, user: str) -> ForgetCounts:
        return ForgetCounts(self.chat_forgettings[user], self.forgettings[user])

    def allow_missing(self, words: set[str]) -> None:
        """Removes words from those that must be stored."""
        with self.lock:
            self.stored -= words

    def note_forgetting(self, user: str, extent: Extent, words: set[str]) -> None:
        """Notes that a forgetting begins or ends. What the user sends meanwhile may be stored or not."""
        with self.lock:
            self.forgettings[user] += 1
            self.stored -= words
            if extent != "messages":
                self.chat_forgettings[user] += 1
                self.stored -= {word for word in self.stored if word[1] == user}
            if extent == "memory":
                # The tombstones are forgotten too (docs/decisions.md).
                self.off_record -= {word for word in self.off_record if word[1] == user}

    def check_upstream_request(self, request: UpstreamRequest) -> None:
        """Notes a fault for each word that the request may not have."""
        question_words = find_words(str(request.messages[-1]["content"]))
        word = next((each for each in question_words if each in self.sent), None)
        if word is None:
            self.faults.append(f"an unknown request goes upstream: {request.body!r}")
            return
        sent = self.sent[word]
        added = find_words(request.body) - sent.own
        for description, words in (
            ("another user's", {each for each in added if each[1] != word[1]}),
            ("off the record", added & self.off_record),
            ("forgotten", added & sent.forgotten),
        ):
            if words:
                self.faults.append(
                    f"the request with {word} has words that are {description}: {sorted(words)}"
                )


@dataclass
class Simulation:
    """What the clients of a simulation share."""

    # The gateways, which use one database.
    worlds: list[World]
    ledger: Ledger
    upstream: StrictUpstream
    # user -> how many words the user has used
    word_counts: Counter[str] = field(default_factory=Counter)
    # The words of questions to which the upstream answers with an error.
    failing: set[str] = field(default_factory=set)
    # word of a question -> the gate at which the upstream holds its reply until the client has left
    held: dict[str, Gate] = field(default_factory=dict)

    def make_word(self, user: str) -> str:
        """Returns a new word for a question."""
        with self.ledger.lock:
            self.word_counts[user] += 1
            return f"q{user}{self.word_counts[user]}z"

    def answer(self, request: UpstreamRequest) -> Reply:
        """Returns the upstream's reply to a request, after checking the words of the request."""
        self.ledger.check_upstream_request(request)
        word = next(iter(find_words(str(request.messages[-1]["content"]))), "qa0z")
        if word in self.failing:
            return fail(500)
        reply = make_reply(word)
        if word in self.held:
            return say(reply, hold_after={3: self.held[word]})
        return say(reply)


@dataclass(frozen=True)
class Question:
    """A question that a client sends, and what was known when it was sent."""

    # Its marker word.
    word: str
    ending: Ending
    # How often texts of the user had been forgotten.
    forgettings: ForgetCounts
    # Whether a forgetting of the user was running.
    is_during_forgetting: bool

    @property
    def words(self) -> set[str]:
        """The words of the question and of its reply."""
        return {self.word, reply_word(self.word)}

    @property
    def message(self) -> Json:
        return {"role": "user", "content": make_question(self.word)}


class LastResponse(NamedTuple):
    """The response that a client continues by its id."""

    id: str
    # `ForgetCounts.all` when it was made; None: texts of the user were forgotten meanwhile.
    forgettings: int | None


@dataclass
class Client:
    """A client of one user, with one chat at a time."""

    simulation: Simulation
    user: str
    # A kind of `CLIENTS`. "chat" and "messages" send lists, the others new messages. "chain", "socket" and
    # "conversation" use the Responses API.
    kind: str
    # The name or id of the conversation; None: the client sends none, or has not created one yet.
    conversation: str | None
    dice: random.Random
    # The messages of its chat.
    messages: list[Json] = field(default_factory=list)
    last_response: LastResponse | None = None
    # `ForgetCounts.chats` when its chat began.
    chat_forgettings: int = 0
    # Whether a forgetting was running when its conversation was created, which may remove the conversation.
    may_lose_conversation: bool = False

    @property
    def ledger(self) -> Ledger:
        return self.simulation.ledger

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()

    def step(self) -> None:
        """Forgets something, or asks a question."""
        if self.dice.random() < 0.12:
            self.forget()
            return
        with self.ledger.lock:
            chat_forgettings = self.ledger.chat_forgettings[self.user]
        if chat_forgettings != self.chat_forgettings:
            self.chat_forgettings = chat_forgettings
            self.begin_chat()
        memory_mode = self.dice.choices(("on", "off", "read"), (70, 18, 12))[0]
        ending: Ending = self.dice.choices(("complete", "left", "failed"), (80, 12, 8))[0]
        self.edit_messages()
        word = self.simulation.make_word(self.user)
        if self.kind in LISTS and self.messages and self.dice.random() < 0.15:
            word = self.remove_last_question() or word
        self.ask(word, memory_mode, ending)

    def begin_chat(self) -> None:
        self.messages, self.last_response = [], None
        if self.kind == "conversation":
            self.conversation = None
        elif self.conversation is not None:
            name = self.conversation.partition("-")[0]
            self.conversation = f"{name}-{self.simulation.make_word(self.user)[1:]}"

    def edit_messages(self) -> None:
        """Changes the client's list as clients do: cuts the last reply, drops the oldest turn, or goes back."""
        if self.kind not in LISTS or not self.messages:
            return
        chance, messages = self.dice.random(), self.messages
        if chance < 0.15 and messages[-1]["role"] == "assistant":
            length = self.dice.choice((24, 48))
            messages[-1] = {"role": "assistant", "content": messages[-1]["content"][:length]}
        elif chance < 0.25 and len(messages) > 4:
            del messages[:2]
        elif chance < 0.35:
            new_length = 2 * self.dice.randrange(len(messages) // 2 + 1)
            self.ledger.allow_missing(find_words(str(messages[new_length:])))
            del messages[new_length:]

    def remove_last_question(self) -> str | None:
        """Removes the last question and its reply from the list, and returns the word; None: there is no question."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            return None
        word = find_words(str(self.messages.pop()["content"])).pop()
        words = {word, reply_word(word)}
        self.ledger.allow_missing(words)
        if all(each["role"] == "user" for each in self.messages):
            # Without a reply before it, it may be a new question (docs/conversations.md, "What no rule can decide").
            with self.ledger.lock:
                self.ledger.off_record -= words
        return word

    # -- requests

    def ask(self, word: str, memory_mode: str, ending: Ending) -> None:
        """Sends a question, and notes which words must be stored then."""
        question = self.note_question(word, memory_mode, ending)
        if ending == "failed":
            self.simulation.failing.add(word)
        world = self.dice.choice(self.simulation.worlds)
        if self.kind == "conversation" and self.conversation is None:
            self.may_lose_conversation = bool(self.ledger.running_forgettings[self.user])
            self.conversation = world.sdk.conversations.create().id
        path, body = self.make_request(question)
        headers = self.make_headers(memory_mode)
        if ending == "left":
            self.send_and_leave(world, path, body, headers, word)
            self.messages.append(question.message)
            return
        reply = self.send(world, path, body, headers)
        self.simulation.failing.discard(word)
        names = ("x-mnemogate-memory", "x-mnemogate-durable")
        self.ledger.log.append(
            f"{word}: {reply.status} { {name: reply.headers.get(name) for name in names} }"
        )
        self.note_reply(question, reply)

    def note_question(self, word: str, memory_mode: str, ending: Ending) -> Question:
        """Notes the words of a request that is about to be sent."""
        ledger = self.ledger
        with ledger.lock:
            forgettings = ledger.count_forgettings(self.user)
            is_during_forgetting = bool(ledger.running_forgettings[self.user])
            question = Question(word, ending, forgettings, is_during_forgetting)
            words = question.words
            if (
                memory_mode != "on"
                and not words & (ledger.stored | ledger.forgotten)
                and word not in ledger.sent
            ):
                ledger.off_record |= words
            own = find_words(str(self.messages)) if self.kind in LISTS else set[str]()
            ledger.sent[word] = SentWords(own | words, set(ledger.forgotten))
            if ending != "complete" and len(self.simulation.worlds) > 1:
                # Another gateway may answer the next list before this one has written the turn (docs/postgres.md).
                ledger.undecided |= words & ledger.off_record
                ledger.off_record -= words
        ledger.log.append(
            f"{self.user} {self.kind} {self.conversation} {memory_mode} {ending} {sorted(own)} {word}"
        )
        return question

    def note_reply(self, question: Question, reply: RawReply) -> None:
        """Notes a reply, and adds its turn to the list."""
        if self.kind == "conversation" and reply.status == 404:
            self.note_lost_conversation(question, reply)
        elif self.kind in CHAINS and reply.status == 400 and b"previous_response_not_found" in reply.body:
            self.note_lost_response(question, reply)
        elif question.ending == "failed" or reply.status == 503:
            self.messages.append(question.message)
        elif reply.status != 200:
            self.ledger.faults.append(f"{question.word}: {reply.status} {reply.body!r}")
        else:
            self.messages += [question.message, {"role": "assistant", "content": make_reply(question.word)}]
            self.note_stored_words(question, reply)

    def note_lost_conversation(self, question: Question, reply: RawReply) -> None:
        """Notes that the conversation of a question is not found: a fault, unless it may have been forgotten."""
        self.conversation = None
        is_chat_forgotten = self.ledger.chat_forgettings[self.user] != self.chat_forgettings
        if not is_chat_forgotten and not self.may_lose_conversation:
            self.ledger.faults.append(f"the conversation of {question.word} is lost: {reply.body!r}")

    def note_lost_response(self, question: Question, reply: RawReply) -> None:
        """Notes that the response before a question is not found: a fault if nothing was forgotten since."""
        with self.ledger.lock:
            forgettings = self.ledger.forgettings[self.user]
            if (
                self.last_response is not None
                and self.last_response.forgettings == forgettings == question.forgettings.all
            ):
                self.ledger.faults.append(f"the response before {question.word} is lost: {reply.body!r}")
        self.last_response = None

    def note_stored_words(self, question: Question, reply: RawReply) -> None:
        """Notes that the words of a question and its reply must be stored, if the reply reports so."""
        ledger = self.ledger
        is_stored = reply.headers["x-mnemogate-memory"] == "on" and "x-mnemogate-durable" not in reply.headers
        if not is_stored:
            return
        with ledger.lock:
            now = ledger.count_forgettings(self.user)
            nothing_forgotten = not question.is_during_forgetting and now == question.forgettings
            # A socket does not report that a forgetting refused a turn (`send`).
            is_certain = self.kind != "socket" or nothing_forgotten
            if is_certain and now.chats == question.forgettings.chats:
                ledger.stored |= question.words - ledger.forgotten - ledger.off_record - ledger.undecided
            if self.kind in CHAINS:
                self.last_response = LastResponse(reply.json["id"], now.all if nothing_forgotten else None)

    def make_request(self, question: Question) -> tuple[str, Json]:
        """Returns the path and the body of the request with a question."""
        user, message = f"user-{self.user}", question.message
        match self.kind:
            case "append":
                return CHAT, {"model": "m", "user": user, "messages": [message]}
            case "messages":
                body = {"model": "m", "max_tokens": 99, "metadata": {"user_id": user}}
                return "/v1/messages", {**body, "messages": [*self.messages, message]}
            case "conversation":
                body = {"model": "m", "user": user, "conversation": self.conversation}
                return "/v1/responses", {**body, "input": message["content"]}
            case "chain" | "socket":
                last = self.last_response
                reference = {} if last is None else {"previous_response_id": last.id}
                return "/v1/responses", {"model": "m", "user": user, "input": message["content"], **reference}
        return CHAT, {"model": "m", "user": user, "messages": [*self.messages, message]}

    def make_headers(self, memory_mode: str) -> dict[str, str]:
        headers = {"content-type": "application/json", "x-mnemogate-memory": memory_mode}
        if self.conversation is not None and self.kind != "conversation":
            headers["x-mnemogate-conversation"] = self.conversation
        if self.kind == "append":
            headers["x-mnemogate-history"] = "append"
        return headers

    def send(self, world: World, path: str, body: Json, headers: dict[str, str]) -> RawReply:
        if self.kind != "socket":
            return world.gateway.ask("POST", path, json.dumps(body).encode(), headers)
        memory_mode = headers["x-mnemogate-memory"]
        with open_socket(world.gateway, x_mnemogate_memory=memory_mode) as socket:
            response = SocketClient(socket).ask(**body)
        # The events of a socket do not report whether the turn is stored. It is, unless a forgetting refuses it.
        reply_headers = {"x-mnemogate-memory": memory_mode}
        status = 200 if response.get("status") == "completed" else response.get("status")
        return RawReply(status if isinstance(status, int) else 500, reply_headers, orjson.dumps(response))

    def send_and_leave(self, world: World, path: str, body: Json, headers: dict[str, str], word: str) -> None:
        """Sends a request for a stream, and closes the connection after the first words of the reply."""
        gate = self.simulation.held[word] = Gate()
        with world.gateway.connect() as connection:
            connection.request("POST", path, json.dumps({**body, "stream": True}).encode(), headers)
            if connection.read_head().status == 200:
                connection.read_until(b"What")
        gate.open()
        del self.simulation.held[word]

    # -- forgetting

    def forget(self) -> None:
        """Forgets one or several messages wherever they are stored, a conversation, or the user's whole memory."""
        extent: Extent = self.dice.choices(("messages", "conversation", "memory"), (6, 2, 1))[0]
        world, ledger = self.dice.choice(self.simulation.worlds), self.ledger
        scope = Scope("default", "default", f"user:user-{self.user}")
        agent = world.gateway.call(world.store.agents.find_current(scope))
        exchanges = [each for each in read_exchanges(world) if each.subject == scope.subject]
        if agent is None or not any(exchange.words for exchange in exchanges):
            return
        target, words = self.choose_target(extent, exchanges)
        with ledger.lock:
            ledger.running_forgettings[self.user] += 1
            ledger.note_forgetting(self.user, extent, words)
        ledger.log.append(f"{self.user} forgets {extent} {sorted(words)} {target.message_seqs}")
        world.gateway.call(world.store.forgetting.forget(agent.id, target))
        with ledger.lock:
            ledger.running_forgettings[self.user] -= 1
            ledger.note_forgetting(self.user, extent, words)
            if extent == "messages":
                ledger.forgotten |= words

    def choose_target(
        self, extent: Extent, exchanges: Sequence[StoredExchange]
    ) -> tuple[ForgetTarget, set[str]]:
        """Returns what is to be forgotten, and the words that are stored nowhere else.

        exchanges: those of the user's memory, at least one of which has a word.
        """
        messages = [each for exchange in exchanges for each in exchange.messages if each.word is not None]
        match extent:
            case "messages":
                sample = self.dice.sample(messages, min(len(messages), self.dice.choice((1, 1, 3))))
                words = {each.word for each in sample if each.word is not None}
                return ForgetTarget(message_seqs=[each.seq for each in messages if each.word in words]), words
            case "conversation":
                row = self.dice.choice(exchanges).conversation_row
                words = {w for each in exchanges if each.conversation_row == row for w in each.words}
                other_words = {w for each in exchanges if each.conversation_row != row for w in each.words}
                return ForgetTarget(conversation_row=row), words - other_words
        return ForgetTarget(is_all=True), {word for each in exchanges for word in each.words}


# -- the database


class StoredMessage(NamedTuple):
    seq: int
    # The marker word; None: the message has none.
    word: str | None


@dataclass(frozen=True)
class StoredExchange:
    """The messages of a stored exchange."""

    # The subject of the memory.
    subject: str
    conversation_row: int
    messages: list[StoredMessage]

    @property
    def words(self) -> set[str]:
        return {each.word for each in self.messages if each.word is not None}


def read_exchanges(world: World) -> list[StoredExchange]:
    """Returns the exchanges of all memories."""

    async def read(connection: Connection) -> list[Any]:
        return await connection.fetch_rows(_EXCHANGES)

    exchanges = []
    for seq, raw_input, raw_reply, conversation_row, subject in world.gateway.call(
        world.store.database.read(read)
    ):
        raw_messages = orjson.loads(raw_input or b"[]")
        if raw_reply:
            raw_messages.append(orjson.loads(raw_reply))
        messages = [
            StoredMessage(seq + n, next(iter(find_words(str(each["content"]))), None))
            for n, each in enumerate(raw_messages)
        ]
        exchanges.append(StoredExchange(subject, conversation_row, messages))
    return exchanges


def read_file_content(file: Path) -> bytes:
    """Returns the bytes of a SQLite file, with compressed values also inflated."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return with_inflated(file.read_bytes())


def check_database(ledger: Ledger, exchanges: Sequence[StoredExchange], content: bytes) -> None:
    """Compares a database with the ledger.

    exchanges: the exchanges of all memories.
    content: all bytes of the database.
    Raises: FaultsFound: the database has a fault, or the ledger has noted one.
    """
    present = find_words(content)
    foreign = {
        word
        for exchange in exchanges
        for word in exchange.words
        if not exchange.subject.endswith(f"-{word[1]}")
    }
    faults = [*ledger.faults]
    for description, words in (
        ("off the record and stored", ledger.off_record & present),
        ("forgotten and stored", ledger.forgotten & present),
        ("reported as stored and missing", ledger.stored - present),
        ("in another user's memory", foreign),
    ):
        if words:
            faults.append(f"{description}: {sorted(words)}")
    if faults:
        raise FaultsFound(faults, ledger.log)


# -- a simulation


def simulate(seed: int, folder: Path, url: str | None, *, is_concurrent: bool) -> None:
    """Runs the simulation of a seed.

    folder: an empty folder for the SQLite file.
    url: a PostgreSQL database that two gateways use instead; None: one gateway over SQLite.
    is_concurrent: whether each client has a thread of its own.
    Raises: FaultsFound.
    """
    dice, ledger, clock = random.Random(seed), Ledger(), Clock()
    databases: list[Path | str] = [folder] if url is None else [url, url]
    with StrictUpstream() as upstream:
        simulation = Simulation([], ledger, upstream)
        upstream.script = simulation.answer
        clients = [
            Client(simulation, user, kind, conversation, random.Random(f"{seed} {user} {n}"))
            for user in USERS[: dice.choice((2, 3))]
            for n, (kind, conversation) in enumerate(dice.sample(CLIENTS, 3))
        ]
        for _ in range(STARTS):
            with ExitStack() as stack:
                simulation.worlds = [
                    stack.enter_context(
                        remember(upstream, database, clock=clock, upstreams=chat_upstreams(upstream))
                    )
                    for database in databases
                ]
                if is_concurrent:
                    _run_at_once(clients)
                else:
                    _run_in_turn(clients, dice, simulation.worlds)
                for world in simulation.worlds:
                    world.settle()
                exchanges = read_exchanges(simulation.worlds[0])
        content = EmptyDatabase(url).content() if url else read_file_content(folder / "memory.db")
        check_database(ledger, exchanges, content)


def _run_at_once(clients: Sequence[Client]) -> None:
    with ThreadPoolExecutor() as threads:
        for future in [threads.submit(client.run) for client in clients]:
            future.result()


def _run_in_turn(clients: Sequence[Client], dice: random.Random, worlds: Sequence[World]) -> None:
    for _ in range(STEPS * len(clients)):
        dice.choice(clients).step()
        for world in worlds:
            world.settle()


# -- the command


@contextmanager
def _start_postgres(is_wanted: bool) -> Iterator[str | None]:
    """Yields the URL of a new server; None: no server is wanted."""
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
    parser.add_argument("--log", action="store_true", help="print what the clients did before a fault")
    options = parser.parse_args()
    # The gateways log turns that a forgetting refuses and clients that leave. Both are part of each simulation.
    for name in ("mnemogate", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    fault_count = 0
    with _start_postgres(options.postgres) as server_url:
        for seed in range(options.first, options.last):
            with tempfile.TemporaryDirectory() as folder:
                url = None if server_url is None else empty_database(server_url).url
                try:
                    simulate(seed, Path(folder), url, is_concurrent=not options.in_turn)
                except FaultsFound as error:
                    fault_count += 1
                    print(f"seed {seed}:\n{error}", flush=True)
                    if options.log:
                        print("\n".join(error.log))
            if not (seed + 1) % 10:
                print(f"{seed + 1 - options.first} simulations, {fault_count} with faults", flush=True)
    print(f"{options.last - options.first} simulations, {fault_count} with faults")
    raise SystemExit(1 if fault_count else 0)


if __name__ == "__main__":
    main()
