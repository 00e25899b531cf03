"""A table of cases that hold in every dialect, except for those in its `unsupported_cases`."""

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
    """A conversation recalls what another conversation of the same user has said."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    client.new_conversation().say("What is my cat called?")
    assert "Miso" in client.upstream_messages()[-1][1]
    other = client.new_conversation(**{"x-mnemogate-user": "bob"})
    other.say("What is my cat called?")
    assert client.upstream_messages() == [("user", "What is my cat called?")]


def interception(client: Client) -> None:
    """The gateway runs a call of a memory tool, and the client gets one reply."""
    client.queue("One moment.", Call("memory_insert", {"label": "human", "new_string": "Likes tea."}))
    client.queue("Noted.")
    assert client.say("I like tea.", model="agent/helper").split() == ["One", "moment.", "Noted."] or (
        client.transcript[-1][1] == "One moment.Noted."
    )
    client.say("Good.", model="agent/helper")
    assert client.dialect.read_block(client) == "Likes tea."
    assert b"memory_insert" in client.requests[-1].body


def prefix(client: Client) -> None:
    """A request begins with the messages of the one before, byte for byte, with notes and after a pause."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    conversation = client.new_conversation()
    before: list[bytes] = []
    for words in ("What is my cat called?", "And its colour?", "What was its name?"):
        conversation.say(words)
        body = orjson.loads(client.requests[-1].body)
        sent = [orjson.dumps(each) for each in body[client.dialect.upstream_messages_key]]
        assert sent[: len(before)] == before
        before = sent
        client.world.pass_time(1000)


def cancel(client: Client) -> None:
    """A client that leaves cancels the upstream's reply, and text that it did not receive is not remembered."""
    _leave(client, "Where is it?")
    active_count = int(client.dialect.left_exchange_is_active)
    assert client.world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [active_count]


def barge_in(client: Client) -> None:
    """A client sends back the part of a reply that was heard, and continues the conversation after this part."""
    _leave(client, "Where is it?")
    client.transcript += [("user", "Where is it?"), ("assistant", "The treasure lies")]
    client.say("Stop. What is it?")
    assert client.world.query("SELECT count(*) FROM conversations") == [1]
    assert client.upstream_messages()[1] == ("assistant", "The treasure lies")


def regenerate(client: Client) -> None:
    """A list that is sent again gets another reply to the same question."""
    client.say("Name a colour.")
    client.transcript.pop()
    client.queue("Red.")
    client.go_on()
    client.say("Why?")
    assert client.world.query("SELECT count(*) FROM conversations") == [1]
    assert client.world.query("SELECT count(*) FROM exchanges") == [3]
    assert client.upstream_messages() == [("user", "Name a colour."), ("assistant", "Red."), ("user", "Why?")]


def edit(client: Client) -> None:
    """A message that was edited supersedes the earlier one."""
    client.say("My cat is called Miso.")
    client.say("She is red.")
    del client.transcript[-2:]
    client.say("She is black.")
    assert client.world.query("SELECT count(*) FROM conversations") == [1]
    client.world.pass_time(1000)
    client.new_conversation().say("Which colour has my cat Miso, is she red or black?")
    assert "She is black." in client.upstream_messages()[-1][1]
    assert "She is red." not in client.upstream_messages()[-1][1]


def append(client: Client) -> None:
    """In append mode the client sends its new message alone, and the gateway puts the history before it."""
    conversation = client.new_conversation(
        **{"x-mnemogate-history": "append", "x-mnemogate-conversation": "phone"}
    )
    for words in ("My cat is called Miso.", "She is red."):
        conversation.transcript.clear()
        conversation.say(words)
    assert [text for _, text in client.upstream_messages()] == [
        "My cat is called Miso.",
        "Ok.",
        "She is red.",
    ]


def off(client: Client) -> None:
    """With memory off nothing is stored, and nothing is recalled."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    client.new_conversation(**{"x-mnemogate-memory": "off"}).say(
        "What is my cat called? My dog is called Bello."
    )
    assert [role for role, _ in client.upstream_messages()] == ["user"]
    assert "Miso" not in client.upstream_messages()[-1][1]
    assert b"Bello" not in client.world.data()


def read(client: Client) -> None:
    """A request in read mode gets a note, and nothing of it is stored."""
    client.say("My cat is called Miso.")
    client.world.pass_time(1000)
    client.new_conversation(**{"x-mnemogate-memory": "read"}).say(
        "What is my cat called? My dog is called Bello."
    )
    assert "Miso" in client.upstream_messages()[-1][1]
    assert b"Bello" not in client.world.data()


def strict(client: Client) -> None:
    """A request in strict mode is refused in the form of its dialect if it names no user, and otherwise remembered."""
    if not client.dialect.remembers_without_user:
        nameless = Client(client.dialect, client.world, client.stream, {"x-mnemogate-memory": "strict"})
        nameless.transcript.append(("user", "Hello"))
        reply = nameless.ask()
        assert reply.status == 400
        assert "strict" in (client.dialect.find_error(reply.json) or "")
    conversation = client.new_conversation(**{"x-mnemogate-memory": "strict"})
    conversation.transcript.append(("user", "Hello"))
    assert conversation.ask().headers["x-mnemogate-memory"] == "on"


def durability(client: Client) -> None:
    """The end of a reply leaves when the turn is on disk."""
    client.say("My cat is called Miso.")
    world = client.world

    # Not by `query`, which waits until all is on disk.
    rows = world.gateway.call(world.store.database.read(lambda c: c.fetch_rows(_COUNT, ())))
    assert [tuple(row) for row in rows] == [(1,)]


def failover(client: Client) -> None:
    """If the first upstream fails, the second one answers, and one turn is stored."""
    world, dialect = client.world, client.dialect
    world.upstream.queue(
        refuse(529, "overloaded_error") if isinstance(dialect, NativeMessages) else fail(503)
    )
    client.transcript.append(("user", "Hello"))
    reply = client.ask(model="smart")
    assert reply.status == 200, reply.body
    assert client.read(reply) == "Ok."
    assert reply.headers["x-mnemogate-upstream"] == "second"
    assert world.query("SELECT count(*) FROM exchanges") == [1]


def refused(client: Client) -> None:
    """A refusal of the upstream reaches the client with its status and message, in the form of the client's dialect."""
    is_native, words = isinstance(client.dialect, NativeMessages), "The temperature is too high."
    client.world.upstream.queue(
        refuse(400, "invalid_request_error", words) if is_native else fail(400, words)
    )
    client.transcript.append(("user", "Hello"))
    reply = client.ask()
    assert reply.status == 400
    assert client.dialect.find_error(reply.json) == words


def broken(client: Client) -> None:
    """A reply that breaks off ends with an error in the form of the client's dialect."""
    client.queue(
        "The treasure lies under the third palm tree.", cut_after=client.dialect.events_to_third_word
    )
    client.transcript.append(("user", "Where is it?"))
    reply = client.ask()
    assert reply.status == (200 if client.stream else 502)
    bodies = client.events(reply) if client.stream else [reply.json]
    errors = [words for each in bodies if (words := client.dialect.find_error(each)) is not None]
    assert ["ended in the middle" in words for words in errors] == [True]


def usage(client: Client) -> None:
    """The client is shown the tokens that the upstream has counted, and no estimate."""
    dialect = client.dialect
    client.queue("Hello.", usage=dialect.upstream_usage)
    client.transcript.append(("user", "Hello"))
    reply = client.ask(**(dialect.usage_options if client.stream else {}))
    bodies = client.events(reply) if client.stream else [reply.json]
    shown = [tokens for each in bodies if (tokens := dialect.find_tokens(each)) is not None]
    assert shown[-1:] == [dialect.reply_tokens]


def limit(client: Client) -> None:
    """A request over a limit is refused in the form of the client's dialect, and no model is asked."""
    client.world.limit("requests", "day", 1)
    client.say("Hello")
    client.transcript.append(("user", "And now?"))
    reply = client.ask()
    assert reply.status == 429
    assert "1 request per day" in (client.dialect.find_error(reply.json) or "")
    assert len(client.requests) == 1


def bound_key(client: Client) -> None:
    """A request without a user gets the memory of the user to whom its key is bound."""
    world = client.world
    _, secret = world.gateway.call(world.store.keys.create("default", "phone", user="alice"))
    bound = Client(client.dialect, world, client.stream, {"authorization": f"Bearer {secret}"})
    bound.say("My cat is called Miso.")
    assert world.query("SELECT subject FROM agents") == ["user:alice"]


def not_a_message(client: Client) -> None:
    """A list is refused if one of its items is no message."""
    client.transcript.append(("user", "Hello"))
    reply = _ask_with(client, lambda messages: messages.insert(0, 7))
    _assert_refused(client, reply)


def long_list(client: Client) -> None:
    """A list of more messages than `server.max_messages` is refused."""
    client.transcript.append(("user", "Hello"))
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
    if (reason := dialect.unsupported_cases.get(case.__name__)) is not None:
        pytest.skip(reason)
    with serve(dialect, tmp_path, stream, has_fallback=case is failover) as made:
        yield made


# The request alone decides these cases, so only whole replies are tried.
DECIDED_BY_REQUEST: Final = frozenset(
    {edit, append, off, read, strict, limit, bound_key, not_a_message, long_list}
)
CASES_AND_FORMS: Final = [
    (case, stream)
    for case in CASES
    for stream in (False, True)
    if not (stream and case in DECIDED_BY_REQUEST)
]


@pytest.mark.parametrize(
    ("case", "stream"),
    CASES_AND_FORMS,
    ids=[f"{case.__name__}-{'streamed' if stream else 'whole'}" for case, stream in CASES_AND_FORMS],
)
def test_a_case_holds_in_a_dialect(client: Client, case: Callable[[Client], None]) -> None:
    case(client)


def test_unsupported_cases_are_in_the_table() -> None:
    assert {case for each in DIALECTS for case in each.unsupported_cases} <= {each.__name__ for each in CASES}


def _ask_with(client: Client, change: Callable[[list[Any]], None]) -> RawReply:
    """Sends a request whose list of messages `change` has changed."""
    dialect = client.dialect
    body = dialect.make_body(client.transcript)
    change(body[dialect.messages_key])
    path = dialect.request_path(client, dialect.model)
    return client.world.gateway.ask("POST", path, orjson.dumps(body), client.headers)


def _assert_refused(client: Client, reply: RawReply) -> None:
    """Asserts that a request was refused with a 400, by the gateway or by its upstream, and not stored."""
    assert reply.status == 400, reply.body
    assert client.dialect.find_error(reply.json)
    assert client.world.query("SELECT count(*) FROM exchanges") == [0]


def _leave(client: Client, words: str) -> None:
    """Sends a message in a new conversation, and leaves after the first three words of a stream."""
    gate = Gate()
    held: Json = {"hold_after": {client.dialect.events_to_third_word: gate}}
    client.queue("The treasure lies under the third palm tree.", **held)
    conversation = client.new_conversation()
    conversation.transcript.append(("user", words))
    count = len(client.requests) + 1
    with client.world.gateway.connect() as connection:
        connection.request(
            "POST",
            client.dialect.request_path(conversation, client.dialect.model),
            conversation.make_request(stream=True),
            conversation.headers,
        )
        client.world.upstream.request_gate(count).wait_sync()
        connection.read_until(b"lies")
    client.requests[-1].gone.wait_sync()
    client.world.upstream.endpoints.hold_events.clear()
    client.world.settle()
