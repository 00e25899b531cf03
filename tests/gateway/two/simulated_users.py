"""Simulated users, who chat through several gateways in the ways in which clients do, and note what must be stored.

Each user runs in a thread of its own. A turn is finished when the user has received its whole reply: its exchange is
stored once, with this reply, after the exchanges that were finished before it in its conversation. A turn whose reply
was lost may be stored or not.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from gateway.core.turn.events import TAKEN_OVER_LOSS
from tests.doubles.bell_webhook import RING_SCHEMA
from tests.gateway.two.deployment import (
    PATIENCE_S,
    ChatReply,
    Deployment,
    Gateway,
    MemoryUnavailable,
    NoReply,
    NotConnected,
)
from tests.server import RawReply

# Turns of a conversation with a whole history, before the user begins the next one.
TURNS = 12


class Message(NamedTuple):
    """A user's new message."""

    # Its marker word, which no other message has.
    word: str
    text: str


class PastTurn(NamedTuple):
    """A turn of the history that a client sends."""

    text: str
    reply: str


class Delivery(NamedTuple):
    """The reply to a request that was sent until it came."""

    reply: ChatReply
    # How often the request was sent.
    attempts: int


@dataclass(frozen=True)
class FinishedTurn:
    """A turn whose whole reply the user has received."""

    # The marker word of its message.
    word: str
    # Its message.
    text: str
    reply: str
    # Earlier messages of its conversation that must be on its path, oldest first.
    before: tuple[str, ...]
    # Whether its exchange must be active. If not, a later request with the same history may have superseded it, unless
    # a later turn continues it.
    must_be_active: bool = True


@dataclass
class SimulatedUser:
    """A user with a name of its own. Subclasses differ in how they send their history."""

    deployment: Deployment
    # The letters with which its marker words begin.
    mark: str
    # Of its random choices.
    seed: int
    # marker word -> the finished turn
    turns: dict[str, FinishedTurn] = field(default_factory=dict)
    # Requests that it tried to send, each attempt counted.
    attempts: int = 0
    # Attempts whose connection ended before the reply did.
    lost: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self._message_numbers = itertools.count(1)
        self._request_numbers = itertools.count(self.seed)

    @property
    def user(self) -> str:
        return f"user-{self.mark}"

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Takes turns until `should_stop` returns True."""
        raise NotImplementedError

    # -- one turn

    def make_message(self, suffix: str = "") -> Message:
        number = next(self._message_numbers)
        word = f"{self.mark}{number}z"
        return Message(word, f"{word} lies in {self.mark}box{number}{suffix}")

    def next_gateway(self) -> Gateway:
        """Returns the gateway of the next request, which is another one than that of the request before."""
        return self.deployment.pick_gateway(next(self._request_numbers))

    def try_send(
        self, messages: list[dict[str, str]], headers: Mapping[str, str] | None = None, **fields: Any
    ) -> ChatReply | None:
        """Sends a request to the next gateway once, and returns its reply, or None without one.

        fields: further fields of the body.
        """
        body = {"model": "m", "user": self.user, "messages": messages, **fields}
        self.attempts += 1
        try:
            return self.next_gateway().chat(body, headers or {})
        except NoReply as error:
            self._count_failure(error)
            time.sleep(0.02)
            return None

    def _count_failure(self, error: NoReply) -> None:
        if isinstance(error, MemoryUnavailable):
            self.deployment.unstored_turns["refused"] += 1
        elif not isinstance(error, NotConnected):
            self.lost += 1

    def send(
        self, messages: list[dict[str, str]], headers: Mapping[str, str] | None = None, **fields: Any
    ) -> Delivery:
        """Sends a request until its reply comes, as clients do."""
        until = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(1):
            reply = self.try_send(messages, headers, **fields)
            if reply is not None:
                return Delivery(reply, attempt)
            assert time.monotonic() < until, f"no gateway answers {self.mark}"
        raise AssertionError

    def record(self, turn: FinishedTurn, reply: ChatReply) -> None:
        """Records a finished turn if the gateway reports it as stored, and the reason otherwise."""
        if reply.unstored_reason:
            self.deployment.unstored_turns[reply.unstored_reason] += 1
        else:
            self.turns[turn.word] = turn

    def choose_stream(self) -> bool:
        return self.dice.random() < 0.5

    def pause(self) -> None:
        time.sleep(self.dice.random() * 0.04)


def make_messages(past: Sequence[PastTurn], text: str) -> list[dict[str, str]]:
    """Returns the messages of a request: those of the past turns, oldest first, and the new one."""
    messages = []
    for turn in past:
        messages.append({"role": "user", "content": turn.text})
        messages.append({"role": "assistant", "content": turn.reply})
    return [*messages, {"role": "user", "content": text}]


@dataclass
class HistoryUser(SimulatedUser):
    """Sends the whole history with each request."""

    # Whether its requests name their conversation in a header.
    names_conversation: bool = False
    # Whether it has the model note each marker word in a block.
    takes_notes: bool = False

    def run(self, should_stop: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            headers = {"x-mnemogate-conversation": f"chat-{number}"} if self.names_conversation else {}
            self._converse(headers, should_stop)
            if should_stop():
                return

    def _converse(self, headers: dict[str, str], should_stop: Callable[[], bool]) -> None:
        past: list[PastTurn] = []
        fields = {"model": "agent/noter"} if self.takes_notes else {}
        for _ in range(TURNS):
            word, text = self.make_message(" note it" if self.takes_notes else "")
            messages = make_messages(past, text)
            reply, _ = self.send(messages, headers, stream=self.choose_stream(), **fields)
            self.record(FinishedTurn(word, text, reply.text, tuple(turn.text for turn in past)), reply)
            past.append(PastTurn(text, reply.text))
            if should_stop():
                return
            self.pause()


@dataclass
class AppendingUser(SimulatedUser):
    """Sends its new message alone, in append mode.

    It does not send a lost message again: that may be stored, and the next message follows it.
    """

    def run(self, should_stop: Callable[[], bool]) -> None:
        headers = {"x-mnemogate-conversation": "room", "x-mnemogate-history": "append"}
        before: tuple[str, ...] = ()
        while not should_stop():
            word, text = self.make_message()
            reply = self.try_send(make_messages([], text), headers, stream=self.choose_stream())
            if reply is not None:
                self.record(FinishedTurn(word, text, reply.text, before), reply)
                if not reply.unstored_reason:
                    before = (*before, text)
            self.pause()


@dataclass
class ForkingUser(SimulatedUser):
    """Sends two requests at once with the same history, to both gateways, and continues one of the two replies."""

    def run(self, should_stop: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            headers = {"x-mnemogate-conversation": f"fork-{number}"}
            past: list[PastTurn] = []
            is_stored = True
            for _ in range(TURNS // 2):
                turn, is_stored = self._fork(past, headers, is_past_stored=is_stored)
                past.append(turn)
                if should_stop():
                    return
                self.pause()

    def _fork(
        self, past: list[PastTurn], headers: dict[str, str], *, is_past_stored: bool
    ) -> tuple[PastTurn, bool]:
        """Returns the turn to continue, and whether it is stored.

        is_past_stored: whether the last turn of `past` is stored.
        """
        messages = [self.make_message() for _ in range(2)]
        deliveries = self._send_pair(past, messages, headers)
        # The next turn seems to edit a turn that was not stored, and so supersedes the other one. The same holds if one
        # gateway knew the turn before, and the other did not know it yet.
        must_be_active = is_past_stored and all(
            delivery.attempts == 1 and not delivery.reply.unstored_reason for delivery in deliveries
        )
        before = tuple(turn.text for turn in past)
        branches = []
        for (word, text), (reply, _) in zip(messages, deliveries, strict=True):
            turn = FinishedTurn(word, text, reply.text, before, must_be_active=must_be_active)
            self.record(turn, reply)
            branches.append((PastTurn(text, reply.text), not reply.unstored_reason))
        return self.dice.choice(branches)

    def _send_pair(
        self, past: list[PastTurn], messages: list[Message], headers: dict[str, str]
    ) -> list[Delivery]:
        """Sends two messages after the same history at once."""
        pair = self.deployment.hold_pair(*(message.word for message in messages))
        deliveries: dict[int, Delivery] = {}

        def send(index: int) -> None:
            body = make_messages(past, messages[index].text)
            reply = self.try_send(body, headers, stream=self.choose_stream())
            if reply is not None:
                deliveries[index] = Delivery(reply, 1)
                return
            # The other request may wait for this one.
            self.deployment.release_pair(pair)
            reply, attempts = self.send(body, headers)
            deliveries[index] = Delivery(reply, 1 + attempts)

        run_concurrently(lambda: send(0), lambda: send(1))
        self.deployment.release_pair(pair)
        return [deliveries[0], deliveries[1]]


@dataclass
class NewUsers(SimulatedUser):
    """New users, one after the other, each of whom begins two conversations at both gateways at once."""

    users: list[SimulatedUser] = field(default_factory=list)

    def run(self, should_stop: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            mark = f"{self.mark[:-1]}{spell_digits(number)}x"
            user = SimulatedUser(self.deployment, mark, self.dice.randrange(1 << 30))
            self._begin_conversations(user)
            self.users.append(user)
            self.attempts += user.attempts
            self.lost += user.lost
            if should_stop():
                return
            self.pause()

    def _begin_conversations(self, user: SimulatedUser) -> None:
        """Begins two conversations, and takes the second turn of the first one."""
        openings = [user.make_message() for _ in range(2)]
        replies: dict[int, str] = {}

        def begin(index: int) -> None:
            word, text = openings[index]
            reply, _ = user.send(make_messages([], text), stream=user.choose_stream())
            user.record(FinishedTurn(word, text, reply.text, (), must_be_active=False), reply)
            replies[index] = reply.text

        run_concurrently(lambda: begin(0), lambda: begin(1))
        word, text = user.make_message()
        opening = openings[0].text
        reply, _ = user.send(make_messages([PastTurn(opening, replies[0])], text))
        user.record(FinishedTurn(word, text, reply.text, (opening,)), reply)


@dataclass
class ForgettingUser(SimulatedUser):
    """Chats, and forgets everything or one conversation, often while another gateway performs a turn of this user."""

    def run(self, should_stop: Callable[[], bool]) -> None:
        while not should_stop():
            conversation_id, words = self._converse()
            self._converse()
            if conversation_id and self.dice.random() < 0.5:
                self._forget(words, "--in", conversation_id)
            else:
                self._forget([*self.turns])

    def _converse(self) -> tuple[str, list[str]]:
        """Takes three turns. Returns the conversation's id, empty without memory, and the marker words."""
        past: list[PastTurn] = []
        words = []
        conversation_id = ""
        for _ in range(3):
            word, text = self.make_message()
            reply, _ = self.send(make_messages(past, text), stream=self.choose_stream())
            self.record(FinishedTurn(word, text, reply.text, tuple(turn.text for turn in past)), reply)
            past.append(PastTurn(text, reply.text))
            words.append(word)
            conversation_id = reply.headers.get("x-mnemogate-conversation", conversation_id)
            self.pause()
        return conversation_id, words

    def _forget(self, words: list[str], *options: str) -> None:
        """Forgets the turns with these words during another turn. options: further options of `memory forget`."""
        word, text = self.make_message()
        # No message has the second word: the reply is held until `release_pair`.
        pair = self.deployment.hold_pair(word, "a word of no message")
        turn_ended = threading.Event()

        def forget() -> None:
            time.sleep(self.dice.random() * 0.1)
            try:
                self.deployment.forget("--user", self.user, *options)
                # A request that was made before the forgetting may not have reached the upstream yet.
                while not (turn_ended.is_set() or pair.arrived):
                    time.sleep(0.01)
                self.deployment.add_forgotten_words(words)
            finally:
                self.deployment.release_pair(pair)

        def take_turn() -> None:
            # The forgetting may come before or after this turn, which is not recorded: it may be stored or not.
            self.try_send(make_messages([], text))
            turn_ended.set()

        run_concurrently(forget, take_turn)
        for forgotten in words:
            self.turns.pop(forgotten, None)


class AgentMessage(NamedTuple):
    """A message that a gateway has accepted for an agent."""

    text: str
    # The id of its run in the background. None: its client waited for the reply.
    run_id: str | None


@dataclass
class AgentUser(SimulatedUser):
    """Sends messages to an agent of the agents API: live, in the background, and streamed in the background.

    Every other message has the agent call a webhook. A message whose reply is lost is sent again under its own id at
    another gateway, or not at all; it is stored once at most.
    """

    agent_id: str = ""
    accepted: list[AgentMessage] = field(default_factory=list)
    # Texts whose reply was lost, and which were not sent again.
    unconfirmed: list[str] = field(default_factory=list)

    def create_agent(self) -> None:
        gateway = self.next_gateway()
        tool = {"source_code": f"{self.deployment.webhook.url}/ring", "source_type": "webhook"}
        tool_id = gateway.ask("PUT", "/v1/tools/", {**tool, "json_schema": RING_SCHEMA}).json["id"]
        body = {
            "model": "openai/m",
            "tool_ids": [tool_id],
            "memory_blocks": [{"label": "human", "value": ""}],
        }
        reply = gateway.ask("POST", "/v1/agents/", body)
        assert reply.status == 200, reply.body
        self.agent_id = reply.json["id"]

    def run(self, should_stop: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            word, text = self.make_message()
            if number % 2:
                text = f"{text} ring {word}a {word}b"
            self._send_to_agent(text, ("messages", "messages/async", "messages/stream")[number % 3])
            if should_stop():
                return
            self.pause()

    def _send_to_agent(self, text: str, path: str) -> None:
        """Sends a message until its reply comes, or with a chance of 0.3 until it is lost.

        path: the path of the send, below that of the agent.
        """
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text, "otid": text}]}
        if path == "messages/stream":
            body |= {"streaming": True, "stream_tokens": True, "background": True}
        sends_again = self.dice.random() < 0.7
        until = time.monotonic() + PATIENCE_S
        while True:
            self.attempts += 1
            try:
                reply = self.next_gateway().ask("POST", f"/v1/agents/{self.agent_id}/{path}", body)
                # A run that lost its connection may have been taken over by another gateway.
                if reply.status == 503 or TAKEN_OVER_LOSS.encode() in reply.body:
                    raise MemoryUnavailable(str(reply.body))
                assert reply.status == 200, f"{reply.status} {reply.body!r}"
            except NoReply as error:
                self._count_failure(error)
                assert time.monotonic() < until, f"no gateway answers {self.mark}"
                if not sends_again and not isinstance(error, NotConnected | MemoryUnavailable):
                    self.unconfirmed.append(text)
                    return
                time.sleep(0.02)
            else:
                self.accepted.append(AgentMessage(text, _get_run_id(path, reply)))
                return

    def check_messages(self, gateway: Gateway) -> None:
        """Checks what a gateway lists: each message once, in the order of the sends, and the events of the runs."""
        for text, run_id in self.accepted:
            if run_id is not None:
                status = _wait_for_run(gateway, run_id)
                assert status in ("completed", "failed"), f"{text}: {status}"
        listed = self.list_messages(gateway)
        counts = Counter(listed)
        assert max(counts.values(), default=1) == 1, f"a message is listed twice: {counts.most_common(3)}"
        accepted = [message.text for message in self.accepted]
        assert set(listed) <= {*accepted, *self.unconfirmed}
        lost = set(accepted) - set(listed)
        assert not lost, f"messages are lost: {lost}"
        listed_accepted = [text for text in listed if text in set(accepted)]
        swapped = [pair for pair in zip(accepted, listed_accepted, strict=True) if pair[0] != pair[1]]
        assert not swapped, f"(sent, listed) where the order differs: {swapped[:6]}"
        for _, run_id in self.accepted[-5:]:
            if run_id is not None:
                numbers = [event["seq_id"] for event in read_run_events(gateway, run_id)]
                assert numbers == sorted(set(numbers))

    def list_messages(self, gateway: Gateway) -> list[str]:
        """Returns the texts of all messages that the agent was sent, oldest first."""
        texts: list[str] = []
        after = ""
        while True:
            query = f"order=asc&limit=500{after}"
            page = gateway.ask("GET", f"/v1/agents/{self.agent_id}/messages?{query}").json
            texts += [m["content"] for m in page if m["message_type"] == "user_message"]
            if not page:
                return texts
            after = f"&after={page[-1]['id']}"


def _get_run_id(path: str, reply: RawReply) -> str | None:
    """Returns the id of the run that a reply to a send names, or None if the send was live."""
    if path == "messages/async":
        return str(reply.json["id"])
    match = re.search(rb'"run_id":\s*"(run-[^"]+)"', reply.body) if path == "messages/stream" else None
    return None if match is None else match[1].decode()


def _wait_for_run(gateway: Gateway, run_id: str) -> str:
    """Returns the status of a run when it has ended, or its last status after `PATIENCE_S`."""
    until = time.monotonic() + PATIENCE_S
    while True:
        status = str(gateway.ask("GET", f"/v1/runs/{run_id}").json["status"])
        if status not in ("created", "running") or time.monotonic() > until:
            return status
        time.sleep(0.05)


def read_run_events(gateway: Gateway, run_id: str) -> list[dict[str, Any]]:
    """Attaches to a run again, and returns its events from the first one on."""
    reply = gateway.ask("POST", f"/v1/runs/{run_id}/stream", {"starting_after": 0, "include_pings": False})
    assert reply.status == 200, reply.body
    lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
    return [orjson.loads(line) for line in lines]


def run_concurrently(*functions: Callable[[], None]) -> None:
    """Runs functions in threads until all have ended. Raises: the first error that one of them raised."""
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def spell_digits(number: int) -> str:
    """Returns a number with a letter for each digit, since a mark has no digits."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def make_users(deployment: Deployment, seed: int) -> list[SimulatedUser]:
    """Returns users of all kinds."""
    users: list[SimulatedUser] = [
        HistoryUser(deployment, "qwax", seed),
        HistoryUser(deployment, "qwbx", seed + 1, names_conversation=True),
        HistoryUser(deployment, "qnox", seed + 2, takes_notes=True),
        AppendingUser(deployment, "qapx", seed + 3),
        ForkingUser(deployment, "qpax", seed + 4),
        NewUsers(deployment, "qnex", seed + 5),
        ForgettingUser(deployment, "qfox", seed + 6),
    ]
    agent_users = [AgentUser(deployment, "qagx", seed + 7), AgentUser(deployment, "qahx", seed + 8)]
    for user in agent_users:
        user.create_agent()
    return [*users, *agent_users]


def flatten_users(users: Sequence[SimulatedUser]) -> Iterator[SimulatedUser]:
    """Yields each single user: instead of `NewUsers` its users."""
    for user in users:
        if isinstance(user, NewUsers):
            yield from user.users
        else:
            yield user
