"""What a person sees: an application with OpenAI's SDK changes its base_url, and its model remembers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from gateway.core.prompt.note_text import estimate_tokens
from gateway.run.admin.memory.show import ShowOperation
from gateway.run.memory.trial import TrialRunner
from gateway.settings import ProfileSettings, ProjectSettings, SideRequest
from gateway.tokens import choose_tokenizer
from storage.commands import CommittedTurn, TurnWrite
from storage.forget_commands import ForgetTarget
from storage.records import Agent, Scope
from storage.sql.terms import load_terms_since
from tests.doubles.upstream import Call, Gate, Reply, Rules, StrictUpstream, call_tools, fail, raw, say
from tests.gateway.process import serving
from tests.gateway.sdk import World, agent, remember, replace_marks
from tests.patience import becomes
from tests.server import chat_upstreams
from tests.stored import indexed_seqs

count = choose_tokenizer("gpt-4o").count

CLOSE = "</memory>\n\n"
FACT = "My cat is called Miso and she hates thunderstorms."
QUESTION = "What is the name of my cat?"
PATIENT = """
[memory]
recall_deadline_ms = 50000  # no deadline of a busy machine's shall decide what a test finds
"""


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        yield made


def sent(world: World) -> str:
    """What reached the upstream last, as text."""
    return world.upstream.last.body.decode()


# -- people


def test_a_new_conversation_knows_what_the_same_user_said_in_another(world: World) -> None:
    world.chat(user="alice").say(FACT)
    world.chat(user="alice").say(QUESTION)
    (message,) = world.upstream.last.messages
    note, question = message["content"].split("</memory>\n\n")
    assert question == QUESTION
    assert FACT in note
    assert "\nuser: " in note


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("I am going to quit my job.", "Go on, what about the whales?"),
        ("Write a function.", "Write a haiku."),
        ("And now?", "And now?"),
        ("Tell me about whales.", "Tell me about whales!"),
    ],
)
def test_words_that_everybody_uses_and_repetitions_bring_no_note(world: World, said: str, asked: str) -> None:
    world.chat(user="alice").say(said)
    world.chat(user="alice").say(asked)
    assert world.upstream.last.messages == [{"role": "user", "content": asked}]


def test_a_thought_within_a_reply_is_not_recalled(world: World) -> None:
    """Many local servers leave it in the text. It stays in the history, and nobody has said it."""
    thought = "<think>\nShe mentions her gazelles next.\n</think>\n\nThe tulips are noted."
    world.upstream.queue(say(thought))
    chat = world.chat(user="alice")
    chat.say("My tulips are red.")
    assert chat.messages[-1]["content"] == thought
    world.chat(user="alice").say("What of the tulips and of my gazelles?")
    note, _ = world.upstream.last.messages[0]["content"].split(CLOSE)
    assert "The tulips are noted." in note
    assert "gazelles" not in note
    chat.say("And then?")
    assert world.upstream.last.messages[1]["content"] == thought


def test_a_thought_within_a_reply_that_was_made_elsewhere_is_not_recalled(world: World) -> None:
    messages = [
        {"role": "user", "content": "My tulips are red."},
        {"role": "assistant", "content": "<think>Are there gazelles?</think>The tulips are noted."},
    ]
    begun = [*messages, {"role": "user", "content": "Thanks."}]
    world.upstream.queue(say("You are welcome."))
    world.post(begun, user="alice")
    answered = {"role": "assistant", "content": "You are welcome."}
    world.post([*begun, answered, {"role": "user", "content": "Bye."}], user="alice")
    world.chat(user="alice").say("What of the tulips and of my gazelles?")
    note, _ = world.upstream.last.messages[0]["content"].split(CLOSE)
    assert "The tulips are noted." in note
    assert "gazelles" not in note


def test_messages_that_were_made_elsewhere_are_recalled_once_they_are_continued(world: World) -> None:
    """The search index has the turn before that, without these messages."""
    messages = [
        {"role": "user", "content": "My tulips are red."},
        {"role": "assistant", "content": "The tulips are noted."},
    ]
    chat = world.chat(user="alice")
    chat.messages += messages
    chat.say("I ride a bicycle to work.")
    world.pass_time(10.0)
    world.chat(user="alice").say("What of my tulips?")
    assert world.upstream.last.messages == [{"role": "user", "content": "What of my tulips?"}]
    chat.say("Bye.")
    world.pass_time(10.0)
    world.chat(user="alice").say("Which colour have my tulips?")
    note, _ = world.upstream.last.messages[0]["content"].split(CLOSE)
    assert "My tulips are red." in note


def test_another_user_never_sees_it(world: World) -> None:
    world.chat(user="alice").say(FACT)
    world.chat(user="bob").say(QUESTION)
    assert world.upstream.last.messages == [{"role": "user", "content": QUESTION}]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_a_first_turn_reads_what_was_made_for_it_and_no_conversations(
    world: World, database_kind: str
) -> None:
    world.chat(user="bob").say("Hi")
    # One of several, since a gateway over PostgreSQL looks for jobs and at the server's health now and then.
    asked = [partial(world.chat(user=user).say, FACT) for user in ("alice", "ann", "eve", "kim", "zoe")]
    beginning, looking, writing = ["read", "insert agents"], ["read"], ["read", "insert conversations"]
    assert [*beginning, *looking, *writing, "update agents"] in [*map(world.statements_of, asked)]


@pytest.mark.sqlite
@pytest.mark.parametrize("stream", [False, True])
def test_a_search_that_is_late_is_not_waited_for(
    upstream: StrictUpstream, tmp_path: Path, stream: bool
) -> None:
    """A large memory is searched in a thread, which may be busy with something long."""
    with remember(upstream, tmp_path, memory={"recall_deadline_ms": 1}) as world:
        world.chat(user="alice").say(FACT)
        busy, begun = Gate(), Gate()

        async def make_large() -> None:
            await world.store.database.writer.submit(
                lambda c: c.execute("UPDATE agents SET next_seq = 100000")
            )
            world.store.recall._memories.clear()  # it is to be read

        def work(_: object) -> None:
            begun.open()
            busy.wait_sync()

        async def be_busy() -> asyncio.Task[None]:
            return asyncio.ensure_future(world.store.database.long_reader.run(work))

        world.gateway.call(make_large())
        working = world.gateway.call(be_busy())
        begun.wait_sync()
        question = [{"role": "user", "content": QUESTION}]
        reply = world.post(question, user="alice", stream=stream)
        assert (reply.status, reply.headers["x-mnemogate-recall"]) == (200, "unavailable")
        assert world.upstream.last.messages == question
        assert not working.done()
        busy.open()


def test_without_a_user_nothing_is_stored_and_the_body_passes_as_it_is(world: World) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": FACT}], "top_p": 1.0}).encode()
    reply = world.gateway.post(body)
    assert reply.headers["x-mnemogate-memory"] == "none"
    assert world.upstream.last.body == body
    world.chat().say(QUESTION)
    assert world.upstream.last.messages == [{"role": "user", "content": QUESTION}]
    assert world.query("SELECT count(*) FROM exchanges") == [0]


async def test_the_asynchronous_sdk_is_remembered_too(world: World) -> None:
    async with world.async_client() as sdk:
        for text in (FACT, QUESTION):
            stream = await sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}], user="alice", stream=True
            )
            pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
            assert "".join(pieces) == "Ok."
    assert "Miso" in sent(world)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-mnemogate-user": "alice"}, {}),
        ({"x-openwebui-user-id": "alice"}, {}),
        ({}, {"safety_identifier": "alice"}),
        ({}, {"metadata": {"user_id": "alice"}, "store": True}),
    ],
)
def test_a_user_is_named_in_any_of_the_usual_ways(
    world: World, headers: dict[str, str], body: dict[str, object]
) -> None:
    world.chat(headers=headers, extra_body=body).say(FACT)
    world.chat(user="alice").say(QUESTION)
    assert "Miso" in sent(world)


def test_single_user_makes_one_person_of_all_callers(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, memory={"single_user": True}) as world:
        world.chat().say(FACT)
        world.chat().say(QUESTION)
        assert "Miso" in sent(world)
        world.chat(user="bob").say(QUESTION)
        assert "Miso" in sent(world)


@pytest.mark.parametrize("flag", [["--single-user"], []], ids=["flag", "no flag"])
def test_the_flag_single_user_of_the_command_line(
    upstream: StrictUpstream, tmp_path: Path, flag: list[str]
) -> None:
    arguments = ["--upstream", upstream.base_url, *flag]
    with serving(tmp_path, *arguments, settings=PATIENT) as gateway, gateway.client() as sdk:
        for text in (FACT, QUESTION):
            messages: list[Any] = [{"role": "user", "content": text}]
            reply = sdk.chat.completions.with_raw_response.create(model="m", messages=messages)
            assert reply.headers["x-mnemogate-memory"] == ("on" if flag else "none")
    (message,) = upstream.last.messages
    assert ("Miso" in message["content"]) == bool(flag)
    assert message["content"].endswith(QUESTION)


def test_the_reply_is_remembered_as_well(world: World) -> None:
    world.upstream.queue(say("The warranty number is KX-2291."))
    world.chat(user="alice").say("Please look it up.")
    world.chat(user="alice").say("Which warranty number was it?")
    assert "KX-2291" in sent(world)


def tortoises(world: World, user: str, count: int) -> None:
    """Conversations of which each could answer the same question, with more words than any note may hold."""
    for n in range(count):
        text = f"The tortoise called Sheldon {n} eats dandelions and sleeps behind the garden shed {n * 7}."
        world.chat(user=user).say(text)


TORTOISES = "Which tortoise sleeps behind which shed, and what does she eat?"


@pytest.mark.parametrize(
    ("memory", "most", "is_indexed"), [({}, 1000, False), ({"recall_tokens": 300}, 300, True)]
)
def test_a_note_keeps_to_its_budget_as_the_upstream_received_it(
    upstream: StrictUpstream, tmp_path: Path, memory: dict[str, int], most: int, is_indexed: bool
) -> None:
    with remember(upstream, tmp_path, memory=memory) as world:
        tortoises(world, "alice", 80)
        if is_indexed:
            world.pass_time(1000)
        reply = world.post([{"role": "user", "content": TORTOISES}], user="alice")
        note = upstream.last.messages[-1]["content"].removesuffix(TORTOISES)
        assert note.startswith("<memory ")
        assert most * 0.8 < count(note) <= most  # OpenAI's own tokens
        assert most * 0.8 < int(reply.headers["x-mnemogate-recalled-tokens"]) <= most


@pytest.mark.parametrize("how", ["kept", "read", "again", "append"])
def test_a_reply_says_how_much_was_injected_for_all_notes_that_are_sent(
    world: World, upstream: StrictUpstream, how: str
) -> None:
    tortoises(world, "alice", 9)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: list[dict[str, Any]] = []
    for question in (TORTOISES, "And tortoise number 3?", "And who is the 8th?", "Thanks."):
        messages.append({"role": "user", "content": [{"type": "text", "text": question}, image]})
        if how == "read":
            world.store.turns._cache.clear()
        if how == "again":
            world.post(messages, user="alice")
        if how == "append":
            append = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
            reply = world.post(messages[-1:], append, user="alice")
        else:
            reply = world.post(messages, user="alice")
        sent = [m["content"][0]["text"] for m in upstream.last.messages if m["role"] == "user"]
        notes = [text[: text.find(CLOSE) + len(CLOSE)] for text in sent if CLOSE in text]
        assert int(reply.headers["x-mnemogate-injected-tokens"]) == sum(map(estimate_tokens, notes)) > 0
        messages.append(reply.json["choices"][0]["message"])


@pytest.mark.parametrize("is_indexed", [False, True], ids=["fresh", "indexed"])
def test_messages_of_other_users_change_neither_the_hits_nor_their_order(
    upstream: StrictUpstream, tmp_path: Path, is_indexed: bool
) -> None:
    """A word that is rare for alice may be on everybody's lips."""
    found = []
    for others in (0, 3):
        (tmp_path / str(others)).mkdir()
        with remember(upstream, tmp_path / str(others)) as world:
            for n in range(others):
                world.chat(user=f"u{n}").say(
                    "Sheldon! Dandelions, dandelions, and a shed behind every tortoise."
                )
                tortoises(world, f"u{n}", 8)
            tortoises(world, "alice", 40)
            for n in range(others):
                tortoises(world, f"u{n}", 8)
            assert (world.query("SELECT count(*) FROM agents")[0]) == 1 + others
            if is_indexed:
                world.pass_time(1000)
            world.chat(user="alice").say(TORTOISES)
            found.append(replace_marks(upstream.last.messages[-1]["content"].encode()).decode())
    assert found[0] == found[1]
    assert found[0].count("Sheldon") > 5


def test_memory_show_prints_blocks_messages_and_what_would_be_recalled(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        note = {"label": "human", "new_string": "Has a cat, Miso."}
        upstream.queue(call_tools(Call("memory_insert", note), text=None), say("Noted."))
        chat = world.chat(model="agent/helper", user="alice")
        chat.say(FACT)
        chat.say("She is grey.")
        show = ShowOperation(world.store, TrialRunner(world.store, 1000, world.clock)).show

        async def shown() -> str:
            where = {"project": "default", "profile": "helper", "user": "alice", "query": QUESTION}
            return str((await show(where))["text"])

        world.settle()
        first, *lines = world.gateway.call(shown()).splitlines()
        assert first.startswith("user:alice  (project default, profile helper, memory ")
        parts = [part.splitlines() for part in "\n".join(lines).strip().split("\n\n")]
        assert [part[0] for part in parts] == [
            "Blocks",
            "Retained",
            "Recent messages",
            "Would be recalled",
            "Found, best first",
        ]
        assert parts[0][1:] == ["  human  (version 2, 16 of 2000 characters)", "    Has a cat, Miso."]
        said = [line.partition("] ")[2] for line in parts[2][1:]]
        assert said == [f"user: {FACT}", "assistant: Noted.", "user: She is grey.", "assistant: Ok."]
        note = "\n".join(line.removeprefix("  ") for line in parts[3][1:])
        assert f"user: {FACT}" in note
        assert re.fullmatch(rf"  1 \[[^]]+\] user: {FACT}", parts[4][1])
        world.chat(model="agent/helper", user="alice").say(QUESTION)
        assert upstream.last.messages[-1]["content"] == f"{note}\n\n{QUESTION}"


def test_a_template_around_every_message_finds_no_other_template(world: World) -> None:
    """As aider sends it: its rules stand below the newest message, and are gone when that comes back."""
    rules = (
        "\n\nTo suggest changes to a file you MUST return the entire content of the updated file.\nYou MUST use this "
        "*file listing* format:\n\npath/to/filename.js\n```\n// entire file content ...\n// ... goes in between\n```"
        "\n\nCreate a new file you MUST return a *file listing* which includes an appropriate filename.\n"
    )
    first = world.chat(user="alice")
    first.say("My cat is called Miso." + rules)
    first.messages[0]["content"] = "My cat is called Miso."
    for text in ("She is afraid of thunder.", "It rains.", "Tea is served."):
        world.chat(user="alice").say(text + rules)
    first.say("And she is grey." + rules)
    world.chat(user="alice").say("What is my cat called?" + rules)
    told, _, asked = world.upstream.last.messages[-1]["content"].partition("</memory>")
    assert asked.strip() == ("What is my cat called?" + rules).strip()
    assert "My cat is called Miso." in told
    assert "file listing" not in told
    assert "Tea is served" not in told


def test_messages_in_the_window_are_not_noted(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say(FACT)
    chat.say(QUESTION)
    assert world.upstream.last.messages[-1]["content"] == QUESTION


def test_messages_in_the_window_are_not_noted_for_an_edited_question_either(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say(FACT)
    chat.say("Who is Tom?")
    chat.messages = chat.messages[:2]
    chat.say(QUESTION)
    assert world.upstream.last.messages[-1]["content"] == QUESTION


def test_a_line_of_a_note_is_not_in_the_next_one(world: World) -> None:
    world.chat(user="alice").say(FACT)
    chat = world.chat(user="alice")
    chat.say(QUESTION)
    chat.say("And what does my cat Miso hate?")
    first, *_, last = world.upstream.last.messages
    assert FACT in first["content"]
    assert FACT not in last["content"]


def test_a_young_memory_that_notes_have_whole_is_not_searched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    recall = world.store.recall
    search = recall.search

    def noting(agent: Agent, query: str, **options: Any) -> Any:
        searched.append(query)
        return search(agent, query, **options)

    monkeypatch.setattr(recall, "search", noting)
    earlier = world.chat(user="alice")
    earlier.say(FACT)
    chat = world.chat(user="alice")
    chat.say(QUESTION)
    again = "And what does my cat Miso hate?"
    chat.say(again)
    assert again not in searched
    assert world.upstream.last.messages[-1]["content"] == again
    of_lines = f"Please answer in one word.\n{again}"  # the first line may be a template's
    chat.say(of_lines)
    assert of_lines in searched
    earlier.say("Miso hates the vacuum cleaner.")
    chat.say(again)
    assert again in searched
    assert "vacuum cleaner" in world.upstream.last.messages[-1]["content"]


def test_a_reply_that_quotes_a_note_is_not_noted_with_it(world: World) -> None:
    world.chat(user="alice").say(FACT)
    world.upstream.echo = True
    assert "</memory>" in world.chat(user="alice").say(QUESTION)
    world.chat(user="alice").say("Does my cat Miso hate thunderstorms?")
    note = world.upstream.last.messages[0]["content"]
    assert note.count("Notes from earlier conversations") == note.count(FACT) == 1


def test_a_few_shot_example_is_one_even_where_the_model_once_said_the_same(world: World) -> None:
    """The list is word for word a path that is stored; but it is known as a head that was made elsewhere."""
    example = [{"role": "user", "content": "I am Zoe."}, {"role": "assistant", "content": "name: Zoe"}]
    for text in ("I am Tom.", "I am Ann."):
        assert world.post([*example, {"role": "user", "content": text}], user="alice").status == 200
        world.upstream.queue(say("name: Zoe"))
        world.chat(user="alice").say("I am Zoe.")
        world.clock.sleep(1000)
    assert world.query("SELECT depth, head FROM exchanges ORDER BY id") == [(0, 2), (0, 0)] * 2


@pytest.mark.parametrize("text_first", [True, False])
def test_an_image_message_gets_its_note_before_its_words(world: World, text_first: bool) -> None:
    world.chat(user="alice").say(FACT)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    question = {"type": "text", "text": QUESTION}
    parts = [question, image] if text_first else [image, question]
    reply = world.post([{"role": "user", "content": parts}], user="alice")
    assert reply.status == 200
    (message,) = world.upstream.last.messages
    if text_first:
        note, _, words = message["content"][0]["text"].rpartition("\n")
        assert (words, message["content"][1:]) == (QUESTION, [image])
    else:
        note = message["content"][0]["text"]
        assert message["content"][1:] == parts
    assert "Miso" in note


# -- conversations


def test_a_named_conversation_without_a_user_remembers_itself_alone(world: World) -> None:
    room = {"x-mnemogate-conversation": "room-1"}
    first = world.chat(headers=room)
    first.say(FACT)
    first.say("Thank you.")
    assert len(world.upstream.last.messages) == 3
    world.chat(headers={"x-mnemogate-conversation": "room-2"}).say(QUESTION)
    assert "Miso" not in sent(world)
    world.chat().say(QUESTION)
    assert "Miso" not in sent(world)


@pytest.mark.parametrize("header", ["x-openwebui-chat-id", "x-session-id", "x-livekit-room-id"])
def test_each_name_of_a_conversation_finds_it_again(world: World, header: str) -> None:
    one = world.post([{"role": "user", "content": "Hi"}], {header: "c1"}, user="alice")
    two = world.post([{"role": "user", "content": "Something else"}], {header: "c1"}, user="alice")
    other = world.post([{"role": "user", "content": "Hi"}], {header: "c2"}, user="alice")
    names = [r.headers["x-mnemogate-conversation"] for r in (one, two, other)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("role", ["user", "system"])
def test_conversations_that_begin_alike_have_names_of_their_own(world: World, role: str, mode: str) -> None:
    for n in range(3):
        world.upstream.queue(say(f"Hello number {n}."))
        reply = world.post([{"role": role, "content": "Hi"}], {"x-mnemogate-memory": mode}, user="alice")
        stored = world.query("SELECT uid FROM conversations ORDER BY id DESC LIMIT 1")
        assert stored == [reply.headers["x-mnemogate-conversation"]]
        world.clock.sleep(100_000)
    assert world.query("SELECT count(*) FROM conversations") == [3]


def test_parallel_requests_that_begin_a_conversation_get_one_name(world: World) -> None:
    """The first of them has the memory's openings read, and the other knows them by then."""
    world.chat(user="alice").say("Hello.")
    over = Gate()
    world.upstream.queue(*(say(text, hold_before_headers=over) for text in ("One.", "Two.")))
    with ThreadPoolExecutor(2) as pool:
        replies = []
        for n in (2, 3):
            replies.append(pool.submit(world.post, [{"role": "user", "content": "Hi"}], user="alice"))
            world.upstream.request_gate(n).wait_sync()
        over.open()
        told = {reply.result().headers["x-mnemogate-conversation"] for reply in replies}
    assert [*told] == world.query("SELECT uid FROM conversations WHERE id > 1")


def test_messages_that_a_trimmed_list_left_out_go_before_it(world: World) -> None:
    chat = world.chat(system="Be kind.", user="alice")
    for n in range(6):
        chat.say(f"This is message number {n} of a long talk about gardens.")
    whole = [*chat.messages]
    chat.messages = [whole[0], *whole[-4:]]
    chat.say("And what did I say first?")
    assert world.upstream.last.messages[:-1] == whole


def test_a_reply_that_comes_back_under_an_agents_name_is_found_without_its_question(world: World) -> None:
    """LangChain's agents name each reply, and a summary may stand in place of the question."""
    messages: list[Any] = []
    told = []
    for question in (FACT, "What helps her?", "Thanks"):
        messages.append({"role": "user", "content": question})
        world.upstream.queue(say(f"I have thought a while about '{question}'"))
        if question == "Thanks":
            messages[:3] = [{"role": "user", "content": "Here is a summary: they have a cat."}]
        reply = world.post(messages, user="alice")
        messages.append({**reply.json["choices"][0]["message"], "name": "model"})
        told.append(reply.headers["x-mnemogate-conversation"])
    assert told == [told[0]] * 3


# -- the control header, side requests


def test_a_turn_off_the_record_is_not_stored_nor_when_it_is_sent_again(world: World) -> None:
    chat = world.chat(user="alice")
    chat.headers = {"x-mnemogate-memory": "off"}
    chat.say(FACT)
    assert world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL") == [0]
    chat.headers = {}
    chat.say("Now I want to be remembered: my dog is called Rex.")
    world.chat(user="alice").say("What are my cat and my dog called?")
    assert "Rex" in sent(world)
    assert "Miso" not in sent(world)
    assert "Miso" not in str(world.query('SELECT input, shown_reply, "full", notes FROM exchanges'))


@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_reply_says_that_its_turn_stays_off_the_record(world: World, mode: str) -> None:
    """A guardrail asked about the user's message off the record, and the same message comes to be answered."""
    asked = [{"role": "user", "content": FACT}]
    world.post(asked, {"x-mnemogate-memory": mode}, user="alice")
    reply = world.post(asked, user="alice")
    assert reply.headers["x-mnemogate-memory"] == "read"
    assert world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL") == [0]
    asked += [reply.json["choices"][0]["message"], {"role": "user", "content": "My dog is called Rex."}]
    assert world.post(asked, user="alice").headers["x-mnemogate-memory"] == "on"
    assert world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL") == [1]


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-conversation": "c1"}], ids=["found", "named"])
def test_a_turn_off_the_record_stays_so_before_a_new_question(world: World, headers: dict[str, str]) -> None:
    """Word for word among what is new, in a conversation that otherwise goes on as it is stored."""
    chat = world.chat(user="alice", headers=headers)
    chat.say("Hello.")
    secret = {"role": "user", "content": FACT}
    world.post([*chat.messages, secret], {**headers, "x-mnemogate-memory": "off"}, user="alice")
    chat.say("Never mind.")
    chat.messages.append(secret)
    chat.say("And now?")
    assert world.upstream.last.messages == chat.messages[:-1]
    assert "Miso" not in str(world.query("SELECT input, shown_reply FROM exchanges"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_question_off_the_record_that_failed_is_not_stored_with_the_next_one(
    world: World, stream: bool
) -> None:
    """Front ends leave the message of a failed request in their list."""
    chat = world.chat(user="alice")
    chat.say("Hello.")
    secret = {"role": "user", "content": FACT}
    late = {"error_after": (1, {"message": "Overloaded."})}
    world.upstream.queue(say("", **late) if stream else fail(500))
    world.post([*chat.messages, secret], {"x-mnemogate-memory": "off"}, user="alice", stream=stream)
    chat.messages.append(secret)
    chat.say("Never mind.")
    assert world.upstream.last.messages == chat.messages[:-1]
    assert "Miso" not in str(world.query("SELECT input, shown_reply FROM exchanges"))


def test_the_answer_to_a_question_off_the_record_is_not_stored_either(world: World) -> None:
    """Applications that mark the question alone send the results of their tools without the mark."""
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    world.upstream.queue(call_tools(Call("weather", {"at": "Miso's"})), say("Miso is safe: no thunder."))
    chat = world.chat(user="alice", tools=[weather])
    chat.headers = {"x-mnemogate-memory": "off"}
    chat.say(FACT)
    chat.headers = {}
    chat.answer(chat.messages[-1]["tool_calls"][0], "At Miso's: sunny")
    assert chat.go_on() == "Miso is safe: no thunder."
    assert world.upstream.last.messages == chat.messages[:-1]
    chat.say("My dog is called Rex.")
    assert world.upstream.last.messages == chat.messages[:-1]
    kept = str(world.query('SELECT input, shown_reply, "full", notes FROM exchanges'))
    assert "Miso" not in kept
    assert "Rex" in kept


@pytest.mark.both
@pytest.mark.parametrize("has_forgotten", [False, True])
def test_a_message_off_the_record_is_new_in_another_conversation(world: World, has_forgotten: bool) -> None:
    """Short answers come again, and so does the text of templates."""
    world.chat(user="alice").say("My tulips are red.")
    off = world.chat(user="alice", headers={"x-mnemogate-conversation": "one", "x-mnemogate-memory": "off"})
    off.say("Yes please, the second one.")
    world.settle()
    if has_forgotten:
        [memory] = world.query("SELECT id FROM agents WHERE subject = 'user:alice'")
        world.gateway.call(world.store.forgetting.forget(memory, ForgetTarget(message_seqs=[1])))
    world.pass_time(86_400)
    chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "two"})
    chat.messages = [
        {"role": "user", "content": "Yes please, the second one."},
        {"role": "assistant", "content": "The second one is a blue bicycle."},
    ]
    chat.say("What colour is my bicycle?")
    world.settle()
    last = world.query("SELECT input FROM exchanges ORDER BY id DESC LIMIT 1")
    assert "Yes please" in str(last)
    assert "blue bicycle" in str(last)


def test_off_the_record_in_append_mode_the_conversation_is_known_and_not_continued(world: World) -> None:
    headers = {"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"}
    sent = []
    for text, mode in (("My dog is Rex.", "on"), (FACT, "off"), ("And now?", "on")):
        reply = world.post(
            [{"role": "user", "content": text}], {**headers, "x-mnemogate-memory": mode}, user="alice"
        )
        assert reply.status == 200
        sent.append([m["content"] for m in world.upstream.last.messages])
    assert sent == [
        ["My dog is Rex."],
        ["My dog is Rex.", "Ok.", FACT],
        ["My dog is Rex.", "Ok.", "And now?"],
    ]
    assert "Miso" not in str(world.query('SELECT input, shown_reply, "full", notes FROM exchanges'))


def test_a_read_only_turn_recalls_and_is_not_recalled(world: World) -> None:
    world.chat(user="alice").say(FACT)
    reader = world.chat(user="alice", headers={"x-mnemogate-memory": "read"})
    reader.say(QUESTION + " I call her Princess.")
    assert "Miso" in sent(world)
    world.chat(user="alice").say("What do I call her, the cat?")
    assert "Princess" not in sent(world)


def profiled(memory: Any) -> Any:
    return {"profiles": (ProfileSettings("default", memory=memory),)}


def projected(**values: Any) -> Any:
    return {"projects": {"default": ProjectSettings(**values)}}


TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history."
OURS = (SideRequest("ours", "name this chat", "read"),)
ALICE = {"user": "alice"}
WISHES: list[tuple[Any, Any, dict[str, str], dict[str, str], str, str]] = [
    # [memory], other settings, headers, fields, what is said, what memory does
    ({}, {}, {}, ALICE, "Hi", "on"),
    ({"default": "off"}, {}, {}, ALICE, "Hi", "off"),
    ({"default": "off"}, {}, {"x-mnemogate-memory": "on"}, ALICE, "Hi", "on"),
    ({"default": "off"}, projected(memory="read"), {}, ALICE, "Hi", "read"),
    ({}, {**projected(memory="off"), **profiled("on")}, {}, ALICE, "Hi", "on"),
    ({}, profiled("read"), {}, ALICE, "Hi", "read"),
    ({}, {}, {}, ALICE, TITLE, "off"),
    ({"side_requests": OURS}, {}, {}, ALICE, "Name this chat, please.", "read"),
    ({"user_order": ("x-employee",)}, {}, {"x-employee": "e1"}, {}, "Hi", "on"),
    ({"user_order": ("x-employee",)}, {}, {}, ALICE, "Hi", "none"),
    ({"conversation_order": ("x-room",)}, {}, {"x-room": "r1"}, {}, "Hi", "on"),
    ({"conversation_order": ("x-room",)}, {}, {"x-session-id": "r1"}, {}, "Hi", "none"),
]


@pytest.mark.parametrize(("memory", "parts", "headers", "fields", "text", "status"), WISHES)
def test_what_the_settings_say_of_a_request_is_done(
    upstream: StrictUpstream,
    tmp_path: Path,
    memory: Any,
    parts: Any,
    headers: dict[str, str],
    fields: dict[str, str],
    text: str,
    status: str,
) -> None:
    with remember(
        upstream, tmp_path, *parts.get("profiles", ()), memory=memory, projects=parts.get("projects", {})
    ) as world:
        reply = world.post([{"role": "user", "content": text}], headers, **fields)
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, status)
        kept = world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL")
        assert kept == [1 if status == "on" else 0]


def test_a_project_has_a_profile_for_who_names_none(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent("helper"), **projected(profile="helper")) as world:
        world.chat(user="alice").say("Hi")
        assert world.upstream.last.messages[0]["content"].startswith("You help.")


def test_a_title_request_leaves_no_trace(world: World) -> None:
    chat = world.chat(user="alice", headers={"x-openwebui-chat-id": "c1"})
    chat.say(FACT)
    title = (
        "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n" + FACT
    )
    reply = world.post([{"role": "user", "content": title}], {"x-openwebui-chat-id": "c1"}, user="alice")
    assert reply.headers["x-mnemogate-memory"] == "off"
    assert world.upstream.last.messages == [{"role": "user", "content": title}]
    chat.say("Go on.")
    assert world.query("SELECT count(*) FROM exchanges WHERE input IS NOT NULL AND active <> 0") == [2]
    assert "concise" not in str(world.query("SELECT input, shown_reply FROM exchanges"))


def test_strict_needs_a_user(world: World) -> None:
    reply = world.post([{"role": "user", "content": "Hi"}], {"x-mnemogate-memory": "strict"})
    assert (reply.status, reply.error["param"]) == (400, "x-mnemogate-memory")
    assert world.upstream.requests == []


def test_a_store_that_is_down_costs_the_memory_and_not_the_answer(world: World) -> None:
    world.gateway.call(world.store.close())
    reply = world.post([{"role": "user", "content": "Hi"}], user="alice")
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "unavailable")
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "user": "alice"}
    with world.client() as sdk:
        for headers in (
            {"x-mnemogate-memory": "strict"},
            {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c"},
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                sdk.chat.completions.create(**body, extra_headers=headers)  # type: ignore[call-overload]
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"]
    assert len(world.upstream.requests) == 1


def test_words_off_the_record_stay_off_if_something_is_forgotten_while_they_are_answered(
    world: World, upstream: StrictUpstream
) -> None:
    """A later list has them, with memory on."""
    world.post([{"role": "user", "content": "Old."}], {"x-mnemogate-conversation": "c0"}, user="alice")
    alice = world.gateway.call(world.store.agents.find(Scope("default", "default", "user:alice")))
    assert alice is not None
    gate = Gate()
    chat = world.chat(user="alice")
    upstream.queue(say("Hm.", hold_before_headers=gate))
    with ThreadPoolExecutor() as threads:
        arrived = upstream.request_gate(len(upstream.requests) + 1)
        saying = threads.submit(chat.say, "Zqsecret.", extra_headers={"x-mnemogate-memory": "off"})
        arrived.wait_sync()
        world.gateway.call(world.store.forgetting.forget(alice.id, ForgetTarget(message_seqs=[1])))
        gate.open()
        assert saying.result() == "Hm."
    chat.say("And now?")
    assert "Zqsecret" in str(upstream.last.messages)
    assert b"Zqsecret" not in world.data()
    assert b"And now?" in world.data()


def test_the_next_message_waits_for_a_turn_off_the_record_that_is_planned_again(
    world: World, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something is forgotten while it is answered. The next message has what was heard of its reply."""
    append = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    world.post([{"role": "user", "content": "Old."}], {"x-mnemogate-conversation": "c0"}, user="alice")
    alice = world.gateway.call(world.store.agents.find(Scope("default", "default", "user:alice")))
    assert alice is not None
    heard = [{"role": "assistant", "content": "Zqheard"}, {"role": "user", "content": "And now?"}]
    queues = world.gateway.app.services.chat.keeper.queues
    queued, commit = [], world.store.turns.commit

    def count(write: TurnWrite) -> asyncio.Future[CommittedTurn]:
        queued.append(queues._counts[alice.uid, "c1"])
        return commit(write)

    monkeypatch.setattr(world.store.turns, "commit", count)
    gate = Gate()
    upstream.queue(say("Zqheard and more.", hold_before_headers=gate))
    with ThreadPoolExecutor() as threads:
        arrived = upstream.request_gate(len(upstream.requests) + 1)
        first = threads.submit(
            world.post, [{"role": "user", "content": "Zqsecret."}], {**append, "x-mnemogate-memory": "off"},
            user="alice",
        )  # fmt: skip
        arrived.wait_sync()
        second = threads.submit(world.post, heard, append, user="alice")
        becomes(lambda: queues._counts[alice.uid, "c1"] == 2)
        world.gateway.call(world.store.forgetting.forget(alice.id, ForgetTarget(message_seqs=[1])))
        gate.open()
        assert [first.result().status, second.result().status] == [200, 200]
    # The question before it is asked, the turn, which is refused, and the turn as it is planned again.
    assert queued[:3] == [1, 2, 2]
    assert not [word for word in (b"Zqsecret", b"Zqheard") if word in world.data()]
    assert b"And now?" in world.data()


@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_repeated_turn_off_the_record_stays_off_if_its_memory_is_forgotten_while_it_is_answered(
    world: World, upstream: StrictUpstream, mode: str
) -> None:
    """Nothing is left of the turn that it repeats, so nothing shows that it is off the record."""
    messages = [{"role": "user", "content": "Zqsecret."}]
    world.post([{"role": "user", "content": "Old."}], {"x-mnemogate-conversation": "c0"}, user="alice")
    world.post(messages, {"x-mnemogate-memory": mode}, user="alice")
    alice = world.gateway.call(world.store.agents.find(Scope("default", "default", "user:alice")))
    assert alice is not None
    gate = Gate()
    upstream.queue(say("Hm.", hold_before_headers=gate))
    with ThreadPoolExecutor() as threads:
        arrived = upstream.request_gate(len(upstream.requests) + 1)
        asking = threads.submit(world.post, messages, user="alice")
        arrived.wait_sync()
        world.gateway.call(world.store.forgetting.forget(alice.id, ForgetTarget(is_all=True)))
        gate.open()
        assert asking.result().headers["x-mnemogate-memory"] == "read"
    assert b"Zqsecret" not in world.data()


# -- append mode


APPEND = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}


def append(world: World, text: str, status: int = 200, *, again: bool = False) -> str:
    headers = {**APPEND, "x-stainless-retry-count": str(int(again))}
    reply = world.post([{"role": "user", "content": text}], headers, user="alice")
    assert reply.status == status
    return str(reply.json["choices"][0]["message"]["content"]) if status == 200 else ""


def test_a_message_is_appended_while_something_else_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither refused nor lost, and waits for its own place in the queue no second time."""
    world.post([{"role": "user", "content": "Zqold."}], {"x-mnemogate-conversation": "c0"}, user="alice")
    append(world, "My dog is Rex.")
    alice = world.gateway.call(world.store.agents.find(Scope("default", "default", "user:alice")))
    keeper = world.gateway.app.services.chat.keeper
    assert alice is not None
    assert keeper is not None
    open_turn, seqs = keeper.open, [1, 2]

    async def forget_first(*arguments: Any) -> Any:
        if seqs:
            await world.store.forgetting.forget(alice.id, ForgetTarget(message_seqs=[seqs.pop()]))
        return await open_turn(*arguments)

    monkeypatch.setattr(keeper, "open", forget_first)
    append(world, "And now?")
    assert [m["content"] for m in world.upstream.last.messages] == ["My dog is Rex.", "Ok.", "And now?"]
    append(world, "Go on.")
    assert len(world.upstream.last.messages) == 5
    assert b"Zqold" not in world.data()


def spoken(world: World) -> list[str]:
    return [m["content"] for m in world.upstream.last.messages]


def test_append_mode_goes_on_from_what_is_stored(world: World) -> None:
    world.upstream.queue(say("One."), say("Two."))
    append(world, "first")
    append(world, "second")
    append(world, "third")
    assert spoken(world) == ["first", "One.", "second", "Two.", "third"]


def test_a_profile_can_ask_for_append_mode(upstream: StrictUpstream, tmp_path: Path) -> None:
    profile = ProfileSettings("phone", model="m", system="You are on the phone.", history="append")
    with remember(upstream, tmp_path, profile) as world:
        for text in ("first", "second"):
            reply = world.post(
                [{"role": "user", "content": text}],
                {"x-mnemogate-conversation": "call-1"},
                user="alice",
                model="agent/phone",
            )
            assert reply.status == 200
        assert spoken(world) == ["You are on the phone.", "first", "Ok.", "second"]


@pytest.mark.parametrize("profiles", [(), (ProfileSettings("default"),)])
def test_all_agents_can_be_asked_for_append_mode(
    upstream: StrictUpstream, tmp_path: Path, profiles: tuple[ProfileSettings, ...]
) -> None:
    with remember(upstream, tmp_path, *profiles, memory={"history": "append"}) as world:
        for text in ("first", "second"):
            headers = {"x-mnemogate-conversation": "call-1"}
            assert world.post([{"role": "user", "content": text}], headers, user="alice").status == 200
        assert spoken(world) == ["first", "Ok.", "second"]
        # Without a conversation's name there is nothing to append to.
        world.post([{"role": "user", "content": "third"}], user="alice")
        assert spoken(world)[-1].endswith("third")
        assert len(spoken(world)) == 1


def test_a_profile_decides_before_all_agents_do(upstream: StrictUpstream, tmp_path: Path) -> None:
    profile = ProfileSettings("default", history="full")
    with remember(upstream, tmp_path, profile, memory={"history": "append"}) as world:
        for text in ("first", "second"):
            headers = {"x-mnemogate-conversation": "call-1"}
            world.post([{"role": "user", "content": text}], headers, user="alice")
        assert len(spoken(world)) == 1


def test_the_message_of_a_cancelled_send_goes_with_the_next_one(world: World) -> None:
    append(world, "first")
    never = Gate()
    world.upstream.queue(say("Never heard.", hold_before_headers=never))
    with world.gateway.connect() as client:
        arrived = world.upstream.request_gate(2)
        body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": "second"}]}
        client.request("POST", "/v1/chat/completions", json.dumps(body).encode(), APPEND)
        arrived.wait_sync()
    world.upstream.requests[1].gone.wait_sync()
    world.settle()
    append(world, "third")
    assert spoken(world) == ["first", "Ok.", "second", "third"]
    append(world, "fourth")
    assert spoken(world) == ["first", "Ok.", "second", "third", "Ok.", "fourth"]


def test_a_retried_send_is_one_message(world: World) -> None:
    append(world, "first")
    world.upstream.queue(fail(500))
    append(world, "second", status=500)
    append(world, "second", again=True)
    assert spoken(world) == ["first", "Ok.", "second"]
    append(world, "second", again=True)  # the answer was lost on its way
    assert spoken(world) == ["first", "Ok.", "second"]
    append(world, "third")
    assert spoken(world) == ["first", "Ok.", "second", "Ok.", "third"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_message_during_a_tool_call_waits_for_the_result(world: World, fails: bool) -> None:
    """Its send was cancelled, and the result has to follow its call."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "ship"}

    def post(message: dict[str, Any]) -> int:
        return world.post([message], APPEND, user="alice", tools=tools).status

    world.upstream.queue(call_tools(Call("look", id="call_1")), fail(500))
    assert [post({"role": "user", "content": "Look."}), post({"role": "user", "content": "Quick!"})] == [
        200,
        500,
    ]
    if fails:
        world.upstream.queue(fail(500))
        assert post(result) == 500
        assert spoken(world) == ["Look.", None, "ship"]
    world.upstream.queue(say("A ship."))
    assert post(result) == 200
    assert spoken(world) == ["Look.", None, "ship"]
    append(world, "And now?")
    assert spoken(world) == ["Look.", None, "ship", "A ship.", "Quick!", "And now?"]
    append(world, "Thanks.")
    assert spoken(world)[4:] == ["Quick!", "And now?", "Ok.", "Thanks."]


def test_a_result_that_failed_goes_before_what_is_said_next(world: World) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    world.upstream.queue(call_tools(Call("look", id="call_1")), fail(500), fail(500))
    for message in (
        {"role": "user", "content": "Look."},
        {"role": "user", "content": "Quick!"},
        {"role": "tool", "tool_call_id": "call_1", "content": "ship"},
    ):
        world.post([message], APPEND, user="alice", tools=tools)
    append(world, "And now?")
    assert spoken(world) == ["Look.", None, "ship", "Quick!", "And now?"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("heard", ["One two", "One two...", "One tw"])
def test_a_reply_that_was_interrupted_is_the_one_that_was_heard(
    world: World, heard: str, fails: bool
) -> None:
    """A voice agent was done with it when the user spoke, and says what was spoken in front of the new message."""
    world.upstream.queue(say("One two three four."))
    append(world, "Count.")
    spoken_part = {"role": "assistant", "content": heard}
    if fails:
        world.upstream.queue(fail(500))
    said = [spoken_part, {"role": "user", "content": "Stop."}]
    assert world.post(said, APPEND, user="alice").status == (500 if fails else 200)
    assert spoken(world) == ["Count.", heard, "Stop."]
    append(world, "Go on.")
    assert spoken(world) == ["Count.", heard, "Stop.", *(() if fails else ("Ok.",)), "Go on."]


@pytest.mark.parametrize("status", [400, 500])
def test_the_heard_part_may_be_sent_after_a_message_that_failed(world: World, status: int) -> None:
    world.upstream.queue(say("One two three four."), fail(status))
    append(world, "Count.")
    append(world, "Wait.", status=status)
    messages = [{"role": "assistant", "content": "One two"}, {"role": "user", "content": "Stop."}]
    assert world.post(messages, APPEND, user="alice").status == 200
    between = ["Wait."] if status == 500 else []
    assert spoken(world) == ["Count.", "One two", *between, "Stop."]
    append(world, "Go on.")
    assert spoken(world) == ["Count.", "One two", *between, "Stop.", "Ok.", "Go on."]


@pytest.mark.parametrize("again", ["Stop.", "Stop. Please."])
@pytest.mark.parametrize("status", [200, 500])
def test_the_heard_part_may_be_sent_again(world: World, status: int, again: str) -> None:
    """A voice agent sends a turn again that failed, was cancelled, or whose answer was lost on its way."""
    world.upstream.queue(say("One two three four."), *([fail(status)] if status == 500 else []))
    append(world, "Count.")
    retry = {"x-stainless-retry-count": "1"}
    for text, headers in (("Stop.", APPEND), (again, {**APPEND, **retry})):
        messages = [{"role": "assistant", "content": "One two"}, {"role": "user", "content": text}]
        world.post(messages, headers, user="alice")
    assert spoken(world) == ["Count.", "One two", again]
    append(world, "Go on.")
    assert spoken(world) == ["Count.", "One two", again, "Ok.", "Go on."]


def test_the_heard_part_comes_with_each_message_until_one_is_answered(world: World) -> None:
    """The reply is known as it was heard by then, and what failed after it was said all the same."""
    world.upstream.queue(say("One two three four."), fail(500))
    append(world, "Count.")
    for text in ("Stop.", "Where is my boat?"):
        messages = [{"role": "assistant", "content": "One two"}, {"role": "user", "content": text}]
        world.post(messages, APPEND, user="alice")
    assert spoken(world) == ["Count.", "One two", "Stop.", "Where is my boat?"]
    append(world, "Go on.")
    assert spoken(world) == ["Count.", "One two", "Stop.", "Where is my boat?", "Ok.", "Go on."]


def test_a_text_that_begins_no_stored_reply_is_a_message_of_its_own(world: World) -> None:
    world.upstream.queue(say("One two three four."))
    append(world, "Count.")
    messages = [{"role": "assistant", "content": "A joke."}, {"role": "user", "content": "Ha."}]
    assert world.post(messages, APPEND, user="alice").status == 200
    assert spoken(world) == ["Count.", "One two three four.", "A joke.", "Ha."]


def test_another_picture_is_another_message(world: World) -> None:
    """It may come with the same words as one whose send has failed, or with none."""

    def show(name: str, **headers: str) -> int:
        picture = {"type": "image_url", "image_url": {"url": f"https://example.com/{name}.jpg"}}
        messages = [{"role": "user", "content": [picture]}]
        return world.post(messages, {**APPEND, **headers}, user="alice").status

    def shown() -> list[str]:
        pictures = [m["content"][0] for m in world.upstream.last.messages if m["role"] == "user"]
        return [picture["image_url"]["url"].split("/")[-1] for picture in pictures]

    retry = {"x-stainless-retry-count": "1"}
    world.upstream.queue(fail(500), fail(500))
    assert [show("cat"), show("dog"), show("dog", **retry)] == [500, 500, 200]
    assert shown() == ["cat.jpg", "dog.jpg"]
    assert show("dog", **retry) == 200  # the answer was lost on its way
    assert shown() == ["cat.jpg", "dog.jpg"]
    assert show("bird", **retry) == 200
    assert shown() == ["cat.jpg", "dog.jpg", "bird.jpg"]


def test_a_turn_off_the_record_takes_no_message_of_a_cancelled_send_along(world: World) -> None:
    """Front ends ask for a title in between."""
    append(world, "first")
    world.upstream.queue(fail(500))
    append(world, "second", status=500)
    for title in ("A title?", "Another title?"):
        reply = world.post(
            [{"role": "user", "content": title}], {**APPEND, "x-mnemogate-memory": "off"}, user="alice"
        )
        assert reply.status == 200
        assert spoken(world) == ["first", "Ok.", "second", title]
    append(world, "third")
    assert spoken(world) == ["first", "Ok.", "second", "third"]
    append(world, "fourth")
    assert spoken(world) == ["first", "Ok.", "second", "third", "Ok.", "fourth"]


@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_turn_off_the_record_may_come_between_a_call_and_its_result(world: World, mode: str) -> None:
    """A front end asks for its title while the application's tool runs."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    world.upstream.queue(call_tools(Call("look", id="call_1")))
    world.post([{"role": "user", "content": "Look."}], APPEND, user="alice", tools=tools)
    off = {**APPEND, "x-mnemogate-memory": mode}
    assert world.post([{"role": "user", "content": "A title?"}], off, user="alice").status == 200
    world.upstream.queue(say("A ship."))
    result = {"role": "tool", "tool_call_id": "call_1", "content": "ship"}
    assert world.post([result], APPEND, user="alice", tools=tools).status == 200
    assert spoken(world) == ["Look.", None, "ship"]
    append(world, "And now?")
    assert spoken(world) == ["Look.", None, "ship", "A ship.", "And now?"]


@pytest.mark.parametrize("status", [200, 400])
def test_a_message_off_the_record_can_be_sent_on_the_record(world: World, status: int) -> None:
    """A list would repeat it; a client that sends its new message alone says something new."""
    append(world, "first")
    if status != 200:
        world.upstream.queue(fail(status))
    off = {**APPEND, "x-mnemogate-memory": "off"}
    assert world.post([{"role": "user", "content": "Go on."}], off, user="alice").status == status
    append(world, "Go on.")
    append(world, "third")
    assert spoken(world) == ["first", "Ok.", "Go on.", "Ok.", "third"]
    # Stored for the next send, it is on the record as well.
    world.upstream.queue(fail(500))
    append(world, "Go on.", status=500)
    append(world, "fourth")
    append(world, "fifth")
    assert spoken(world)[4:] == ["third", "Ok.", "Go on.", "fourth", "Ok.", "fifth"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("passing", "status"), [(429, 400), (429, 403), (404, 413)])
def test_a_refused_message_does_not_stay_in_a_conversation(
    world: World, stream: bool, passing: int, status: int
) -> None:
    """A filter refuses the words themselves, and would refuse every message that comes with them."""

    def post(text: str) -> int:
        return world.post([{"role": "user", "content": text}], APPEND, user="alice", stream=stream).status

    assert post("first") == 200
    world.upstream.queue(fail(passing), fail(status, "The prompt was filtered.", code="content_filter"))
    assert [post("second"), post("bad words"), post("third")] == [passing, status, 200]
    assert spoken(world) == ["first", "Ok.", "third"]
    assert post("fourth") == 200
    assert spoken(world) == ["first", "Ok.", "third", "Ok.", "fourth"]


FILTERED = json.dumps(
    {"error": {"message": "Filtered.", "type": "invalid_request_error", "code": "content_filter"}}
)
BEGUN = json.dumps({"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
UNDER_A_200: dict[str, Reply] = {
    "the first event": raw(f"data: {FILTERED}\n\n".encode()),
    "an event": raw(f"data: {BEGUN}\n\n".encode(), f"data: {FILTERED}\n\n".encode()),
    "a body": raw(FILTERED.encode(), content_type="application/json"),
}


@pytest.mark.parametrize("reply", UNDER_A_200.values(), ids=UNDER_A_200)
def test_a_message_that_is_refused_by_a_200_does_not_stay_either(
    upstream: StrictUpstream, tmp_path: Path, reply: Reply
) -> None:
    # With keep-alive comments the status leaves before the first event.
    with remember(upstream, tmp_path, server={"keep_alive_comment_s": 50}) as world:
        append(world, "first")
        upstream.queue(reply)
        stream = not reply.headers["content-type"].endswith("json")
        asked = world.post([{"role": "user", "content": "bad words"}], APPEND, user="alice", stream=stream)
        assert (asked.status, b"Filtered." in asked.body) == (200 if stream else 400, True)
        append(world, "third")
        assert spoken(world) == ["first", "Ok.", "third"]


def test_an_edited_message_leaves_the_search_index_and_comes_back_with_its_list(world: World) -> None:
    async def index() -> list[int]:
        found = []
        for each in await world.store.search_index.find_lagging_agents(-1, 100):
            await world.store.search_index.advance(each)
            blobs = await world.store.database.read(lambda c, agent=each: load_terms_since(c, agent, -1))
            found += [seq for _, _, blob in blobs for seq in indexed_seqs(blob)]
        return found

    chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"})
    chat.say("Good morning, my name is Alice.")
    chat.say(FACT)
    first, edited = chat.messages[:2], chat.messages[2:]
    assert world.gateway.call(index()) == [1, 2, 3, 4]
    chat.messages[2:] = []
    chat.say("My dog is called Rex and he loves the snow.")
    assert chat.messages[:2] == first
    assert world.gateway.call(index()) == [1, 2, 5, 6]
    chat.messages[2:] = edited
    chat.say("And she sleeps all day.")
    assert {3, 4} <= set(world.gateway.call(index()))


def test_a_message_that_was_indexed_before_its_reply_is_found_with_the_reply(world: World) -> None:
    """In append mode a message is on disk before its answer, and the index may be made in between."""
    gate = Gate()
    world.upstream.queue(say("Noted.", hold_before_headers=gate))

    async def index() -> None:
        for each in await world.store.search_index.find_lagging_agents(0, 100):
            await world.store.search_index.advance(each)

    with world.gateway.connect() as client:
        arrived = world.upstream.request_gate(1)
        body = {"model": "m", "user": "alice", "messages": [{"role": "user", "content": FACT}]}
        client.request("POST", "/v1/chat/completions", json.dumps(body).encode(), APPEND)
        arrived.wait_sync()
        world.gateway.call(index())
        gate.open()
        assert client.read_reply().status == 200
    world.chat(user="alice").say(QUESTION)
    assert FACT in sent(world)


def test_an_unanswered_call_in_append_mode_locks_nothing(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path) as world:
        tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
        world.upstream.queue(call_tools(Call("look")))
        reply = world.post([{"role": "user", "content": "Look."}], APPEND, user="alice", tools=tools)
        assert reply.json["choices"][0]["message"]["tool_calls"]
        reply = world.post([{"role": "user", "content": "Never mind."}], APPEND, user="alice", tools=tools)
        assert reply.status == 200
        roles = [m["role"] for m in world.upstream.last.messages]
        assert roles == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("arguments", ['{"place": "Ro', "", "[1]"])
def test_an_unreadable_call_blocks_nothing_in_append_mode(world: World, arguments: str) -> None:
    """The client gets it as it came; servers that parse the calls of the history would refuse all that follows."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    world.upstream.queue(call_tools(Call("look", arguments, "call_1"), finish_reason="length"))
    reply = world.post([{"role": "user", "content": "Look."}], APPEND, user="alice", tools=tools)
    (call,) = reply.json["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == arguments
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Where?"}
    for message in (result, {"role": "user", "content": "In Rome."}):
        assert world.post([message], APPEND, user="alice", tools=tools).status == 200
        (call,) = world.upstream.last.messages[1]["tool_calls"]
        assert (call["id"], call["function"]) == ("call_1", {"name": "look", "arguments": "{}"})


def test_two_agents_of_one_user_know_nothing_of_each_other(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent("one"), agent("two")) as world:
        world.chat(user="alice", model="agent/one").say(FACT)
        world.chat(user="alice", model="agent/two").say(QUESTION)
        assert "Miso" not in sent(world)
        world.chat(user="alice").say(QUESTION)
        assert "Miso" not in sent(world)
        world.chat(user="alice", model="agent/one").say(QUESTION)
        assert "Miso" in sent(world)


def test_the_parts_of_a_message_are_no_one_word(world: World) -> None:
    """An application puts a file's text, or a title, into a part of its own in front of the question."""
    parts = [{"type": "text", "text": text} for text in ("My plant is a fern", "Remember it")]
    chat = world.chat(user="alice")
    chat.messages.append({"role": "user", "content": parts})
    chat.go_on()
    world.chat(user="alice").say("Which fern do I have?")
    assert "user: My plant is a fern Remember it\n" in world.upstream.last.messages[-1]["content"]


# -- the client's words, and picky upstreams


def test_the_clients_values_go_upstream_as_they_came(world: World) -> None:
    world.upstream.rules = Rules(unknown_parameters=False)
    world.chat(user="alice").say(FACT)
    message = b'{ "content" : "Does my cat hate thunderstorms, caf\\u00e9 \\"1.10\\"?",\t"role":"user" , "name":"al"}'
    system = b'{"role":"system", "content": [ {"type":"text","text":"Be  kind."} ]}'
    body = (
        b'{"temperature" : 1.0,"seed_like":12345678901234567890123,"messages" : [ '
        + system
        + b" ,\n"
        + message
        + b'], "model":"m","user":"alice" }'
    )
    assert world.gateway.post(body).status == 200
    came, arrived = json.loads(body), json.loads(world.upstream.last.body)
    asked, said = came["messages"][-1], arrived["messages"][-1]
    assert "Miso" in said["content"]
    assert said["content"].endswith(asked["content"])
    assert said == {**asked, "content": said["content"]}
    assert arrived["messages"][0]["content"][:1] == came["messages"][0]["content"]
    for key in ("temperature", "seed_like", "model"):
        assert arrived[key] == came[key]


# Python 3.12 writes all levels that orjson reads.
@pytest.mark.parametrize(
    ("levels", "status"), [(400, 200), (1_020, 400 if sys.version_info < (3, 12) else 200)]
)
def test_a_member_that_is_too_deep_to_be_written_goes_as_it_came_or_is_refused(
    world: World, levels: int, status: int
) -> None:
    world.upstream.rules = Rules(unknown_parameters=False)
    world.chat(user="alice").say(FACT)
    deep = b"[" * levels + b"]" * levels
    body = orjson.dumps({"model": "m", "user": "alice", "messages": [{"role": "user", "content": QUESTION}]})
    reply = world.gateway.post(body[:-1] + b', "x": %b}' % deep)
    assert reply.status == status
    if status == 200:
        assert b"Miso" in world.upstream.last.body
        assert b'"x":' + deep in world.upstream.last.body
    else:
        assert b"nested too deep" in reply.body


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_strict_templates_are_satisfied(upstream: StrictUpstream, tmp_path: Path, system: str | None) -> None:
    upstream.rules = Rules(strict_template=True)
    with remember(upstream, tmp_path, agent()) as world:
        world.chat(user="alice", model="agent/helper").say(FACT)
        chat = world.chat(system, user="alice", model="agent/helper")
        upstream.queue(
            call_tools(Call("memory_insert", {"label": "human", "new_string": "x"})), say("Noted.")
        )
        chat.say(QUESTION)
        assert "Miso" in sent(world)
        for text in ("Go on.", "What was her name, the cat's?"):
            chat.say(text)
        assert [m["role"] for m in upstream.last.messages].count("system") == 1


def test_a_retry_of_the_sdk_is_one_turn(world: World) -> None:
    world.upstream.queue(fail(500), say("Hello."))
    with world.client(max_retries=1) as sdk:
        sdk._calculate_retry_timeout = lambda *_: 0.0  # type: ignore[method-assign]
        reply = sdk.chat.completions.create(
            model="m", user="alice", messages=[{"role": "user", "content": "Hi"}]
        )
    assert reply.choices[0].message.content == "Hello."
    assert world.upstream.last.headers["x-stainless-retry-count"] == "1"
    assert world.query("SELECT count(*) FROM exchanges") == [1]


@pytest.mark.parametrize(
    ("profiles", "memory"),
    [([ProfileSettings("default", history="client")], {}), ([], {"history": "client"})],
    ids=["of a profile", "of all"],
)
def test_trimmed_lists_can_stay_as_they_are(
    upstream: StrictUpstream, tmp_path: Path, profiles: list[ProfileSettings], memory: dict[str, str]
) -> None:
    with remember(upstream, tmp_path, *profiles, memory=memory) as world:
        chat = world.chat(user="alice")
        for n in range(4):
            chat.say(f"Message {n} about ships.")
        chat.messages = chat.messages[-2:]
        chat.say("And then?")
        assert len(world.upstream.last.messages) == 3


def test_a_request_in_append_mode_has_its_history_whatever_its_profile_asks_for(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    parts: Any = {"upstreams": chat_upstreams(upstream), "memory": {"recall_tokens": 0}}
    with remember(upstream, tmp_path, ProfileSettings("default", history="client"), **parts) as world:
        for n in range(2):
            world.post([{"role": "user", "content": f"Message {n}."}], APPEND, user="alice")
        appended = world.upstream.last.messages
        conversation = world.sdk.conversations.create()
        for n in range(2):
            world.sdk.responses.create(
                model="m", user="alice", input=f"Message {n}.", conversation=conversation.id
            )
        for messages in (appended, world.upstream.last.messages):
            assert [m["content"] for m in messages] == ["Message 0.", "Ok.", "Message 1."]


def test_a_clock_in_the_system_prompt_changes_nothing(world: World) -> None:
    chat = world.chat("It is 10:00.", user="alice")
    chat.say("Hello.")
    for minute in range(1, 4):
        chat.messages[0] = {"role": "system", "content": f"It is 10:0{minute}."}
        chat.say(f"Minute {minute}.")
    assert world.query("SELECT count(*) FROM conversations") == [1]
    assert "10:0" not in str(world.query("SELECT input, shown_reply, notes FROM exchanges"))


def test_a_fact_in_a_named_conversation_is_known_to_others_of_that_user(world: World) -> None:
    world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"}).say(FACT)
    world.chat(user="alice", headers={"x-mnemogate-conversation": "c2"}).say(QUESTION)
    assert "Miso" in sent(world)
    world.chat(user="alice").say(QUESTION + " Please.")
    assert "Miso" in sent(world)


def test_messages_survive_a_restart(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        chat = world.chat(user="alice", model="agent/helper")
        upstream.queue(
            call_tools(Call("memory_insert", {"label": "human", "new_string": "Has a cat."}), text=None),
            say("Noted."),
        )
        chat.say(FACT)
        before = upstream.last
    with remember(upstream, tmp_path, agent()) as world:
        chat.world = world
        chat.say("Thanks.")
        assert upstream.last.messages[: len(before.messages)] == before.messages
        world.chat(user="alice", model="agent/helper").say(QUESTION)
        assert "Miso" in upstream.last.messages[-1]["content"]
        assert "Has a cat." in upstream.last.messages[0]["content"]
