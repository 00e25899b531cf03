"""What holds whatever dialect a client speaks: one table of cases. Each dialect says which it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from gateway.settings import ServerSettings
from storage.sql.statements import make_statement
from tests.doubles.anthropic_upstream import refuse
from tests.doubles.upstream import Call, Gate, fail
from tests.gateway.dialects.dialects import DIALECTS, Client, Dialect, NativeMessages, serve
from tests.server import RawReply

Json = dict[str, Any]


def memory(client: Client) -> None:
    """What one conversation says another recalls."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    client.again().say("What is my cat called?")
    assert "Miso" in client.sent()[-1][1]
    other = client.again(**{"x-mnemogate-user": "bob"})
    other.say("What is my cat called?")
    assert client.sent() == [("user", "What is my cat called?")]


def interception(client: Client) -> None:
    """A call of a memory tool runs here, and the client gets one reply."""
    client.queue("One moment.", Call("memory_insert", {"label": "human", "new_string": "Likes tea."}))
    client.queue("Noted.")
    assert client.say("I like tea.", model="agent/helper").split() == ["One", "moment.", "Noted."] or (
        client.talk[-1][1] == "One moment.Noted."
    )
    client.say("Good.", model="agent/helper")
    assert client.dialect.block(client) == "Likes tea."
    assert b"memory_insert" in client.requests[-1].body


def prefix(client: Client) -> None:
    """What was sent is the beginning of what is sent next, byte for byte, with notes and after a pause."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    talk = client.again()
    before: list[bytes] = []
    for words in ("What is my cat called?", "And its colour?", "What was its name?"):
        talk.say(words)
        body = orjson.loads(client.requests[-1].body)
        sent = [orjson.dumps(each) for each in body[client.dialect.listed]]
        assert sent[: len(before)] == before
        before = sent
        client.world.pass_time(1000)


def cancel(client: Client) -> None:
    """A client that leaves cancels the upstream, and nothing that it did not hear is remembered."""
    _leave(client, "Where is it?")
    stays = int(client.dialect.keeps_left_exchange)
    assert client.world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [stays]


def barge_in(client: Client) -> None:
    """A reply comes back as far as it was heard, and the conversation goes on from there."""
    _leave(client, "Where is it?")
    client.talk += [("user", "Where is it?"), ("assistant", "The treasure lies")]
    client.say("Stop. What is it?")
    assert client.world.query("SELECT count(*) FROM conversations") == [1]
    assert client.sent()[1] == ("assistant", "The treasure lies")


def regenerate(client: Client) -> None:
    """The same list again is another reply to the same question."""
    client.say("Name a colour.")
    client.talk.pop()
    client.queue("Red.")
    client.go_on()
    client.say("Why?")
    assert client.world.query("SELECT count(*) FROM conversations") == [1]
    assert client.world.query("SELECT count(*) FROM exchanges") == [3]
    assert client.sent() == [("user", "Name a colour."), ("assistant", "Red."), ("user", "Why?")]


def edit(client: Client) -> None:
    """A question that is asked in other words supersedes what it was."""
    client.say("My cat is called Miso.")
    client.say("She is red.")
    del client.talk[-2:]
    client.say("She is black.")
    assert client.world.query("SELECT count(*) FROM conversations") == [1]
    client.world.pass_time(1000)
    client.again().say("Which colour has my cat Miso, is she red or black?")
    assert "She is black." in client.sent()[-1][1]
    assert "She is red." not in client.sent()[-1][1]


def append(client: Client) -> None:
    """The client sends its new message alone, and the gateway puts the history before it."""
    talk = client.again(**{"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"})
    for words in ("My cat is called Miso.", "She is red."):
        talk.talk.clear()
        talk.say(words)
    assert [text for _, text in client.sent()] == ["My cat is called Miso.", "Ok.", "She is red."]


def off(client: Client) -> None:
    """With memory off nothing is stored, and nothing is recalled."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    client.again(**{"x-mnemogate-memory": "off"}).say("What is my cat called? My dog is called Bello.")
    assert [role for role, _ in client.sent()] == ["user"]
    assert "Miso" not in client.sent()[-1][1]
    assert b"Bello" not in client.world.data()


def read(client: Client) -> None:
    """A request that reads gets a note, and leaves nothing."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    client.again(**{"x-mnemogate-memory": "read"}).say("What is my cat called? My dog is called Bello.")
    assert "Miso" in client.sent()[-1][1]
    assert b"Bello" not in client.world.data()


def strict(client: Client) -> None:
    """A request that demands memory is refused where it has none, in its dialect, and else remembered."""
    if not client.dialect.has_nameless_memory:
        nameless = Client(client.dialect, client.world, client.stream, {"x-mnemogate-memory": "strict"})
        nameless.talk.append(("user", "Hello"))
        reply = nameless.ask()
        assert reply.status == 400
        assert "strict" in (client.dialect.error(reply.json) or "")
    talk = client.again(**{"x-mnemogate-memory": "strict"})
    talk.talk.append(("user", "Hello"))
    assert talk.ask().headers["x-mnemogate-memory"] == "on"


def durability(client: Client) -> None:
    """The end of a reply leaves when the turn is on disk."""
    client.say("My cat is called Miso.")
    world = client.world

    # Not by `query`, which waits until all is on disk.
    rows = world.gateway.call(world.store.database.read(lambda c: c.fetch_rows(_COUNT, ())))
    assert [tuple(row) for row in rows] == [(1,)]


def failover(client: Client) -> None:
    """Another upstream answers where the first one fails, and the turn is one."""
    world, dialect = client.world, client.dialect
    world.upstream.queue(
        refuse(529, "overloaded_error") if isinstance(dialect, NativeMessages) else fail(503)
    )
    client.talk.append(("user", "Hello"))
    reply = client.ask(model="smart")
    assert reply.status == 200, reply.body
    assert client.read(reply) == "Ok."
    assert reply.headers["x-mnemogate-upstream"] == "second"
    assert world.query("SELECT count(*) FROM exchanges") == [1]


def refused(client: Client) -> None:
    """What the upstream refuses is refused with its status and its words, in the client's dialect."""
    is_native, words = isinstance(client.dialect, NativeMessages), "The temperature is too high."
    client.world.upstream.queue(
        refuse(400, "invalid_request_error", words) if is_native else fail(400, words)
    )
    client.talk.append(("user", "Hello"))
    reply = client.ask()
    assert reply.status == 400
    assert client.dialect.error(reply.json) == words


def broken(client: Client) -> None:
    """A reply that breaks off ends with an error in the client's dialect."""
    client.queue("The treasure lies under the third palm tree.", cut_after=client.dialect.third_word)
    client.talk.append(("user", "Where is it?"))
    reply = client.ask()
    assert reply.status == (200 if client.stream else 502)
    bodies = client.events(reply) if client.stream else [reply.json]
    errors = [words for each in bodies if (words := client.dialect.error(each)) is not None]
    assert ["ended in the middle" in words for words in errors] == [True]


def usage(client: Client) -> None:
    """The client sees the tokens that the upstream has counted, and no estimate."""
    dialect = client.dialect
    client.queue("Hello.", usage=dialect.reported)
    client.talk.append(("user", "Hello"))
    reply = client.ask(**(dialect.usage_options if client.stream else {}))
    bodies = client.events(reply) if client.stream else [reply.json]
    shown = [tokens for each in bodies if (tokens := dialect.tokens(each)) is not None]
    assert shown[-1:] == [dialect.reported_tokens]


def limit(client: Client) -> None:
    """What is over a limit is refused with its words in the client's dialect, and no model is asked."""
    client.world.limit("requests", "day", 1)
    client.say("Hello")
    client.talk.append(("user", "And now?"))
    reply = client.ask()
    assert reply.status == 429
    assert "1 request per day" in (client.dialect.error(reply.json) or "")
    assert len(client.requests) == 1


def bound_key(client: Client) -> None:
    """A key that is bound to a user gives its memory to requests that name none."""
    world = client.world
    _, secret = world.gateway.call(world.store.keys.create("default", "phone", user="alice"))
    bound = Client(client.dialect, world, client.stream, {"authorization": f"Bearer {secret}"})
    bound.say("My cat is called Miso.")
    assert world.query("SELECT subject FROM agents") == ["user:alice"]


def not_a_message(client: Client) -> None:
    """A list with something that is no message is refused."""
    client.talk.append(("user", "Hello"))
    reply = _ask_with(client, lambda messages: messages.insert(0, 7))
    _assert_refused(client, reply)


def long_list(client: Client) -> None:
    """A list of more messages than `server.max_messages` is refused."""
    client.talk.append(("user", "Hello"))
    reply = _ask_with(client, lambda messages: messages.extend(messages * ServerSettings().max_messages))
    _assert_refused(client, reply)


_COUNT = make_statement("a test's", "SELECT count(*) FROM exchanges WHERE active = 1")
CASES: Final[tuple[Callable[[Client], None], ...]] = (
    *(memory, interception, prefix, cancel, barge_in, regenerate, edit, append),
    *(off, read, strict, durability, failover, refused, broken, usage, limit, bound_key),
    *(not_a_message, long_list),
)


@pytest.fixture(params=DIALECTS, ids=[each.name for each in DIALECTS])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


@pytest.fixture
def client(
    dialect: Dialect, case: Callable[[Client], None], stream: bool, tmp_path: Path
) -> Iterator[Client]:
    if (reason := dialect.lacks.get(case.__name__)) is not None:
        pytest.skip(reason)
    with serve(dialect, tmp_path, stream, has_fallback=case is failover) as made:
        yield made


# Of these the request alone decides, so they are tried with whole replies alone.
OF_REQUESTS: Final = frozenset({edit, append, off, read, strict, limit, bound_key, not_a_message, long_list})
WAYS: Final = [
    (case, stream) for case in CASES for stream in (False, True) if not (stream and case in OF_REQUESTS)
]


@pytest.mark.parametrize(
    ("case", "stream"),
    WAYS,
    ids=[f"{case.__name__}-{'streamed' if stream else 'whole'}" for case, stream in WAYS],
)
def test_each_dialect(client: Client, case: Callable[[Client], None]) -> None:
    case(client)


def test_what_a_dialect_lacks_is_a_case_of_the_table() -> None:
    assert {case for each in DIALECTS for case in each.lacks} <= {each.__name__ for each in CASES}


def _ask_with(client: Client, change: Callable[[list[Any]], None]) -> RawReply:
    """Asks with the list of messages as `change` leaves it."""
    dialect = client.dialect
    body = dialect.body(client.talk)
    change(body[dialect.own_listed])
    path = dialect.address(client, dialect.model)
    return client.world.gateway.ask("POST", path, orjson.dumps(body), client.headers)


def _assert_refused(client: Client, reply: RawReply) -> None:
    """The gateway refuses, or the upstream where the client's own request goes to it."""
    assert reply.status == 400, reply.body
    assert client.dialect.error(reply.json)
    assert client.world.query("SELECT count(*) FROM exchanges") == [0]


def _leave(client: Client, words: str) -> None:
    """Asks, reads the beginning of a reply (nothing of a whole one), and leaves."""
    gate = Gate()
    held: Json = {"hold_after": {client.dialect.third_word: gate}}
    client.queue("The treasure lies under the third palm tree.", **held)
    talk = client.again()
    talk.talk.append(("user", words))
    count = len(client.requests) + 1
    with client.world.gateway.connect() as connection:
        connection.request(
            "POST",
            client.dialect.address(talk, client.dialect.model),
            talk.request(stream=True),
            talk.headers,
        )
        client.world.upstream.request_gate(count).wait_sync()
        connection.read_until(b"lies")
    client.requests[-1].gone.wait_sync()
    client.world.upstream.endpoints.hold_events.clear()
    client.world.settle()
