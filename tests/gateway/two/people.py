"""People who talk at several gateways by turns, each in one of the ways in which clients do, and what must be left.

A person lives in a thread of its own. A turn whose reply was seen whole is finished: it stands once, with its reply,
after those that were finished before it in its conversation. A turn that was lost may be there or not.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.core.turn.events import TAKEN_OVER_LOSS
from tests.agents.kills import SCHEMA
from tests.gateway.two.world import PATIENCE_S, Absent, Gateway, Lost, Refused, Said, World

# Turns of a conversation that is sent whole, before the next one begins.
TURNS = 12


@dataclass(frozen=True)
class Turn:
    """A turn whose reply was seen. before: what had been said in its conversation, as far as it must be on its path.

    must_stand: False where a request for the same place may have come later; it stands where a turn went on from it.
    """

    word: str
    text: str
    reply: str
    before: tuple[str, ...]
    must_stand: bool = True


@dataclass
class Person:
    """Somebody with a user's name. turns: the finished ones, by their words. asked, lost: how many requests."""

    world: World
    mark: str
    seed: int
    turns: dict[str, Turn] = field(default_factory=dict)
    lost: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self._numbers = itertools.count(1)
        self._sends = itertools.count(self.seed)

    @property
    def user(self) -> str:
        return f"user-{self.mark}"

    def live(self, is_over: Callable[[], bool]) -> None:
        """Talks until it is over."""
        raise NotImplementedError

    # -- one turn

    def new(self, more: str = "") -> tuple[str, str]:
        """Returns a word and a text with it."""
        number = next(self._numbers)
        word = f"{self.mark}{number}z"
        return word, f"{word} lies in {self.mark}box{number}{more}"

    def gateway(self) -> Gateway:
        """Returns the next gateway: another one for each request."""
        return self.world.choose(next(self._sends))

    def try_once(
        self, messages: list[dict[str, str]], headers: Mapping[str, str] | None = None, **more: Any
    ) -> Said | None:
        """Sends a request to the next gateway; None: it was lost."""
        body = {"model": "m", "user": self.user, "messages": messages, **more}
        try:
            said = self.gateway().chat(body, headers or {})
        except Lost as error:
            if isinstance(error, Refused):
                self.world.unkept["refused"] += 1
            self.lost += not isinstance(error, Absent | Refused)
            time.sleep(0.02)
            return None
        self.asked += 1
        return said

    def send(
        self, messages: list[dict[str, str]], headers: Mapping[str, str] | None = None, **more: Any
    ) -> tuple[Said, int]:
        """Sends a request again and again, as clients do, until its reply is there.

        Returns the reply, and how often the request was sent.
        """
        until = time.monotonic() + PATIENCE_S
        for count in itertools.count(1):
            said = self.try_once(messages, headers, **more)
            if said is not None:
                return said, count
            assert time.monotonic() < until, f"nobody answers {self.mark}"
        raise AssertionError

    def finished(self, turn: Turn, said: Said) -> None:
        if said.unkept:
            self.world.unkept[said.unkept] += 1
        else:
            self.turns[turn.word] = turn

    def stream(self) -> bool:
        return self.dice.random() < 0.5

    def rest(self) -> None:
        time.sleep(self.dice.random() * 0.04)


def messages_of(turns: list[tuple[str, str]], text: str) -> list[dict[str, str]]:
    found = []
    for asked, answered in turns:
        found += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*found, {"role": "user", "content": text}]


@dataclass
class Whole(Person):
    """Sends its history whole with each request. is_named: with an id of the conversation."""

    is_named: bool = False
    is_noting: bool = False

    def live(self, is_over: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            headers = {"x-mnemogate-conversation": f"chat-{number}"} if self.is_named else {}
            self._converse(headers, is_over)
            if is_over():
                return

    def _converse(self, headers: dict[str, str], is_over: Callable[[], bool]) -> None:
        past: list[tuple[str, str]] = []
        more = {"model": "agent/noter"} if self.is_noting else {}
        for _ in range(TURNS):
            word, text = self.new(" note it" if self.is_noting else "")
            said, _ = self.send(messages_of(past, text), headers, stream=self.stream(), **more)
            self.finished(Turn(word, text, said.text, tuple(asked for asked, _ in past)), said)
            past.append((text, said.text))
            if is_over():
                return
            self.rest()


@dataclass
class Appending(Person):
    """Sends its new message alone. What is lost is not sent again: it may be there, and the next turn follows."""

    def live(self, is_over: Callable[[], bool]) -> None:
        headers = {"x-mnemogate-conversation": "room", "x-mnemogate-history": "append"}
        before: tuple[str, ...] = ()
        while not is_over():
            word, text = self.new()
            said = self.try_once(messages_of([], text), headers, stream=self.stream())
            if said is not None:
                self.finished(Turn(word, text, said.text, before), said)
                if not said.unkept:
                    before = (*before, text)
            self.rest()


@dataclass
class Parallel(Person):
    """Sends two requests at once on the same history, to both gateways, and goes on from one of them."""

    def live(self, is_over: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            headers = {"x-mnemogate-conversation": f"fork-{number}"}
            past: list[tuple[str, str]] = []
            is_stored = True
            for _ in range(TURNS // 2):
                turn, is_stored = self._fork(past, headers, is_stored=is_stored)
                past.append(turn)
                if is_over():
                    return
                self.rest()

    def _fork(
        self, past: list[tuple[str, str]], headers: dict[str, str], *, is_stored: bool
    ) -> tuple[tuple[str, str], bool]:
        """Returns the turn to go on from, and whether it is stored. is_stored: the last one of the past is."""
        new = [self.new() for _ in range(2)]
        pair = self.world.held_together(*(word for word, _ in new))
        found: list[tuple[Said, int] | None] = [None, None]

        def ask(n: int) -> None:
            messages = messages_of(past, new[n][1])
            said = self.try_once(messages, headers, stream=self.stream())
            if said is None:
                self.world.let_go(pair)
                again, count = self.send(messages, headers)
                found[n] = again, count + 1
            else:
                found[n] = said, 1

        at_once(lambda: ask(0), lambda: ask(1))
        self.world.let_go(pair)
        before = tuple(asked for asked, _ in past)
        # Where one was not stored, whoever goes on from it seems to have edited the other one. The same holds where one
        # gateway knew the turn before, and the other did not yet.
        is_clean = is_stored and all(
            each is not None and each[1] == 1 and not each[0].unkept for each in found
        )
        replies = []
        for (word, text), each in zip(new, found, strict=True):
            assert each is not None
            self.finished(Turn(word, text, each[0].text, before, must_stand=is_clean), each[0])
            replies.append(((text, each[0].text), not each[0].unkept))
        return self.dice.choice(replies)


@dataclass
class Newcomers(Person):
    """Somebody new each time, whose first two conversations begin at both gateways at once."""

    people: list[Person] = field(default_factory=list)

    def live(self, is_over: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            person = Person(self.world, f"{self.mark[:-1]}{letters(number)}x", self.dice.randrange(1 << 30))
            self._meet(person)
            self.people.append(person)
            if is_over():
                return
            self.rest()

    def _meet(self, person: Person) -> None:
        openings = [person.new() for _ in range(2)]
        found: list[str] = ["", ""]

        def begin(n: int) -> None:
            word, text = openings[n]
            said, _ = person.send(messages_of([], text), stream=person.stream())
            person.finished(Turn(word, text, said.text, (), must_stand=False), said)
            found[n] = said.text

        at_once(lambda: begin(0), lambda: begin(1))
        word, text = person.new()
        said, _ = person.send(messages_of([(openings[0][1], found[0])], text))
        person.finished(Turn(word, text, said.text, (openings[0][1],)), said)
        self.lost += person.lost
        self.asked += person.asked


@dataclass
class Forgetful(Person):
    """Talks, and has all of it or one conversation forgotten, often while a turn is under way at another gateway."""

    forgettings: int = 0

    def live(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            talks = [self._talk() for _ in range(2)]
            if talks[0][0] and self.dice.random() < 0.5:
                self._forget(talks[0][1], "--in", talks[0][0])
            else:
                self._forget([*self.turns])
            self.forgettings += 1

    def _talk(self) -> tuple[str, list[str]]:
        """Returns the conversation's id and its words."""
        past: list[tuple[str, str]] = []
        words = []
        id = ""
        for _ in range(3):
            word, text = self.new()
            said, _ = self.send(messages_of(past, text), stream=self.stream())
            self.finished(Turn(word, text, said.text, tuple(asked for asked, _ in past)), said)
            past.append((text, said.text))
            words.append(word)
            id = said.headers.get("x-mnemogate-conversation", id)  # none without memory
            self.rest()
        return id, words

    def _forget(self, words: list[str], *which: str) -> None:
        word, text = self.new()
        pair = self.world.held_together(word, "what nobody says")
        asked = threading.Event()

        def forget() -> None:
            time.sleep(self.dice.random() * 0.1)
            try:
                self.world.forget("--user", self.user, *which)
                # What was read before may still be on its way to the upstream.
                while not (asked.is_set() or pair.came):
                    time.sleep(0.01)
                self.world.is_forgotten(words)
            finally:
                self.world.let_go(pair)

        def ask() -> None:
            # Nobody can say what was first, so this turn may be stored or not.
            self.try_once(messages_of([], text))
            asked.set()

        at_once(forget, ask)
        for gone in words:
            self.turns.pop(gone, None)


@dataclass
class Agent(Person):
    """Sends to an agent that was made over REST: live, in the background, streamed; some of it rings a bell.

    What was lost is sent again under its own id at another gateway, or left as it is; it stands once at most.
    """

    id: str = ""
    # (what was said, its run where it went on in the background)
    said: list[tuple[str, str | None]] = field(default_factory=list)
    perhaps: list[str] = field(default_factory=list)

    def make(self) -> None:
        gateway = self.gateway()
        tool = {"source_code": f"{self.world.webhook.url}/ring", "source_type": "webhook"}
        made = gateway.ask("PUT", "/v1/tools/", {**tool, "json_schema": SCHEMA}).json
        body = {
            "model": "openai/m",
            "tool_ids": [made["id"]],
            "memory_blocks": [{"label": "human", "value": ""}],
        }
        reply = gateway.ask("POST", "/v1/agents/", body)
        assert reply.status == 200, reply.body
        self.id = reply.json["id"]

    def live(self, is_over: Callable[[], bool]) -> None:
        for number in itertools.count(1):
            word, text = self.new()
            if number % 2:
                text = f"{text} ring {word}a {word}b"
            self._send(text, number % 3)
            if is_over():
                return
            self.rest()

    def _send(self, text: str, how: int) -> None:
        """how: 0 live, 1 in the background, 2 streamed in the background."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text, "otid": text}]}
        path = f"/v1/agents/{self.id}/messages"
        if how == 1:
            path += "/async"
        elif how == 2:
            path += "/stream"
            body |= {"streaming": True, "stream_tokens": True, "background": True}
        again = self.dice.random() < 0.7
        until = time.monotonic() + PATIENCE_S
        while True:
            self.asked += 1
            try:
                reply = self.gateway().ask("POST", path, body)
                # Another gateway may have gone on with the conversation of one that was cut off.
                if reply.status == 503 or TAKEN_OVER_LOSS.encode() in reply.body:
                    raise Refused(str(reply.body))
                assert reply.status == 200, f"{reply.status} {reply.body!r}"
                run = reply.json["id"] if how == 1 else run_of(reply.body) if how == 2 else None
                self.said.append((text, run))
                return
            except Lost as error:
                is_absent = isinstance(error, Absent | Refused)
                self.lost += not is_absent
                self.world.unkept["refused"] += isinstance(error, Refused)
                assert time.monotonic() < until, f"nobody answers {self.mark}"
                if not again and not is_absent:
                    self.perhaps.append(text)
                    return
                time.sleep(0.02)

    def check(self, gateway: Gateway) -> None:
        """Checks what a gateway lists: each message once, in the order in which it was sent; and each run's events."""
        for text, run in self.said:
            if run is not None:
                state = self._ended(gateway, run)
                assert state in ("completed", "failed"), f"{text}: {state}"
        listed = self._listed(gateway)
        counts = Counter(listed)
        assert not [text for text, count in counts.items() if count > 1], (
            f"stands twice: {counts.most_common(3)}"
        )
        assert set(listed) <= {text for text, _ in self.said} | set(self.perhaps)
        kept = [text for text, _ in self.said]
        stands = [text for text in listed if text in set(kept)]
        assert not set(kept) - set(stands), f"{set(kept) - set(stands)} are lost"
        swapped = [pair for pair in zip(kept, stands, strict=True) if pair[0] != pair[1]]
        assert not swapped, f"said and standing, where these differ: {swapped[:6]}"
        for _, run in self.said[-5:]:
            if run is not None:
                numbers = [event["seq_id"] for event in events(gateway, run)]
                assert numbers == sorted(set(numbers))

    def _ended(self, gateway: Gateway, run: str) -> str:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found = gateway.ask("GET", f"/v1/runs/{run}").json
            if found["status"] not in ("created", "running"):
                return str(found["status"])
            time.sleep(0.05)
        return "goes on"

    def _listed(self, gateway: Gateway) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            query = f"order=asc&limit=500{after}"
            page = gateway.ask("GET", f"/v1/agents/{self.id}/messages?{query}").json
            found += [m["content"] for m in page if m["message_type"] == "user_message"]
            if not page:
                return found
            after = f"&after={page[-1]['id']}"


def run_of(body: bytes) -> str | None:
    """Returns the run that a stream names."""
    found = re.search(rb'"run_id":\s*"(run-[^"]+)"', body)
    return None if found is None else found[1].decode()


def events(gateway: Gateway, run: str) -> list[dict[str, Any]]:
    """Attaches to a run again, and returns its events."""
    reply = gateway.ask("POST", f"/v1/runs/{run}/stream", {"starting_after": 0, "include_pings": False})
    assert reply.status == 200, reply.body
    lines = [line[6:] for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
    return [orjson.loads(line) for line in lines]


def at_once(*functions: Callable[[], None]) -> None:
    """Runs them in threads, and raises what one of them raises."""
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def letters(number: int) -> str:
    """Writes a number in letters, since numbers stand after a mark."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def everybody(world: World, seed: int) -> list[Person]:
    """Returns people of all kinds."""
    made: list[Person] = [
        Whole(world, "qwax", seed),
        Whole(world, "qwbx", seed + 1, is_named=True),
        Whole(world, "qnox", seed + 2, is_noting=True),
        Appending(world, "qapx", seed + 3),
        Parallel(world, "qpax", seed + 4),
        Newcomers(world, "qnex", seed + 5),
        Forgetful(world, "qfox", seed + 6),
    ]
    agents = [Agent(world, "qagx", seed + 7), Agent(world, "qahx", seed + 8)]
    for agent in agents:
        agent.make()
    return [*made, *agents]


def flat(people: list[Person]) -> Iterator[Person]:
    for person in people:
        if isinstance(person, Newcomers):
            yield from person.people
        else:
            yield person
