"""A conversation that outgrows the model's context: it is cut to fit, and the cut stays put for several turns."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import tokens as tokens_module
from gateway.core.prompt import note_text
from gateway.core.prompt.note_text import NAMING_TOKENS
from gateway.core.upstream.policy import Target
from gateway.dialects.chat.parse import parse
from gateway.run import chat as chat_module
from gateway.run import round_requests
from gateway.run.memory import composer, note_search
from gateway.run.memory.fit import fit_prompt
from gateway.run.memory.fitted_window import NO_NOTE, FittedWindow, NoteRoom
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.recall import MIN_NOTE_TOKENS, NOTE_CONTEXT_DIVISOR
from gateway.settings import UpstreamSettings
from gateway.tokens import Tokenizer, choose_tokenizer, count_message_tokens
from tests.doubles.upstream import Call, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.sdk import Chat, World, agent, member_bytes, message_bytes, prefix_bytes, remember
from tests.rows import each_row

count = choose_tokenizer("gpt-4o").count

CONTEXT = 1500  # tokens
RESERVE = 300
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=CONTEXT)
    with remember(upstream, tmp_path, agent(), upstreams=(small,)) as made:
        yield made


def tokens(request: UpstreamRequest) -> int:
    """Roughly: four characters a token, for all that is sent."""
    return (len(prefix_bytes(request)) + len(member_bytes(request, "tools"))) // 4


def words(beginning: str, count: int) -> str:
    """A text of words that no other text here has, so that nothing is recalled for it."""
    mark = "".join(filter(str.isalnum, beginning)).lower()
    return beginning + "".join(f" {mark}{'abcdefghijklmnopqrstuvwxyz'[k]}" for k in range(count))


def long_talk(chat: Chat, turns: int, **options: Any) -> list[UpstreamRequest]:
    seen = []
    for n in range(turns):
        chat.world.upstream.queue(say(words(f"Answer {n}:", 6)))
        chat.say(words(f"Message {n}:", 11), **options)
        seen.append(chat.world.upstream.last)
    return seen


@pytest.mark.parametrize("user", [{}, {"user": "alice"}], ids=["nobody", "alice"])
def test_a_long_conversation_fits_its_window(world: World, user: dict[str, Any]) -> None:
    chat = world.chat(system="Be brief.", max_tokens=RESERVE, **user)
    seen = long_talk(chat, 40)
    assert len(chat.messages) == 81
    for each in seen:
        assert tokens(each) <= CONTEXT - RESERVE
        assert [m["role"] for m in each.messages[:2]] == ["system", "user"]
        assert each.messages[0]["content"].startswith("Be brief.")
    for n, each in enumerate(seen):
        assert each.messages[-1]["content"].endswith(chat.messages[1 + 2 * n]["content"])
    moved = sum(not prefix_bytes(two).startswith(prefix_bytes(one)) for one, two in itertools.pairwise(seen))
    assert 0 < moved <= 10, f"the window moved {moved} times in 40 turns"


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NoteRoom, FittedWindow]]:
    """Collects each window that is fitted, with the room that was asked for a note."""
    found: list[tuple[NoteRoom, FittedWindow]] = []

    async def noted(prompt: Prompt, *, note: NoteRoom = NO_NOTE, **options: Any) -> FittedWindow:
        window = await fit_prompt(prompt, note=note, **options)
        found.append((note, window))
        return window

    for module in (composer, chat_module, round_requests):
        monkeypatch.setattr(module, "fit_prompt", noted)
    return found


def test_the_window_of_a_request_is_fitted_once_and_has_room_for_its_note(
    world: World, fitted: list[tuple[NoteRoom, FittedWindow]]
) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    chat.say("My bicycle is a red Bianchi.")
    long_talk(chat, 30)
    before = len(fitted)
    assert before <= len(world.upstream.requests), "a short list is not even fitted"
    chat.say("What colour is my bicycle, and who made it?")
    assert "Bianchi" in world.upstream.last.messages[-1]["content"], "there is a note"
    assert fitted[-1][1].evicted_tokens > 0
    assert len(fitted) == before + 1
    assert tokens(world.upstream.last) <= CONTEXT - RESERVE


def test_the_window_has_room_for_a_note_of_changes_alone(
    upstream: StrictUpstream, tmp_path: Path, fitted: list[tuple[NoteRoom, FittedWindow]]
) -> None:
    # The definitions of the memory tools take 3,700 bytes of it.
    small = UpstreamSettings("up", base_url=upstream.base_url, context_window=5 * CONTEXT)
    with remember(upstream, tmp_path, agent(), upstreams=(small,), memory={"recall_tokens": 0}) as world:
        chat = world.chat(user="alice", model="agent/helper", max_tokens=RESERVE)
        chat.say("Hello!")
        assert fitted == []
        world.write_block("alice", "Her name is Alice.")
        chat.say("What is my name?")
        note, question, _ = upstream.last.messages[-1]["content"].partition("What is my name?")
        assert "Her name is Alice." in note
        assert question
        assert fitted[0][0].reserved_tokens >= count(note)


def test_a_note_takes_what_the_window_leaves_free(
    upstream: StrictUpstream, tmp_path: Path, fitted: list[tuple[NoteRoom, FittedWindow]]
) -> None:
    """The window moves when a short note has no room any more, not when the longest has none."""
    context = 6_400
    most = context // NOTE_CONTEXT_DIVISOR + NAMING_TOKENS * 5 // 4  # the first note also names its mark
    large = UpstreamSettings("up", base_url=upstream.base_url, context_window=context)
    with remember(upstream, tmp_path, upstreams=(large,)) as world:
        for n in range(20):
            world.chat(user="alice").say(words(f"Bicycle {n} is a Bianchi.", 26))
        chat = world.chat(user="alice", max_tokens=RESERVE)
        for _ in range(100):
            if fitted and fitted[-1][1].note_tokens not in (None, most):
                break
            long_talk(chat, 1)
        before = prefix_bytes(upstream.last)
        assert "</memory>" not in before.decode()
        chat.say("Which bicycle is a Bianchi?")
        question = upstream.last
        note = question.messages[-1]["content"].partition("Which bicycle")[0]
        left = fitted[-1][1].note_tokens
        assert left is not None
        assert MIN_NOTE_TOKENS <= left < most
        assert left - 100 < choose_tokenizer("m").count(note) <= left, "the note uses what is left"
        assert prefix_bytes(question).startswith(before), "no message leaves for it"
        assert sum(count_message_tokens(m, count) for m in question.messages) <= context - RESERVE
        long_talk(chat, 20)
        assert fitted[-1][1].evicted_tokens > 0
        assert all(w.note_tokens is None or w.note_tokens >= MIN_NOTE_TOKENS for _, w in fitted)


@pytest.mark.parametrize("user", [{}, {"user": "alice"}], ids=["nobody", "alice"])
def test_images_by_their_links_take_their_room(
    upstream: StrictUpstream, tmp_path: Path, user: dict[str, Any]
) -> None:
    """A link has a few bytes, and its image 1,000 tokens."""
    context = 8_000
    large = UpstreamSettings("up", base_url=upstream.base_url, context_window=context)
    with remember(upstream, tmp_path, upstreams=(large,)) as world:
        chat = world.chat(max_tokens=RESERVE, **user)
        for n in range(12):
            image = {"type": "image_url", "image_url": {"url": f"https://pictures.example/{n}.png"}}
            chat.messages.append(
                {"role": "user", "content": [{"type": "text", "text": f"Picture {n}?"}, image]}
            )
            chat.go_on()
            request = upstream.last
            assert sum(count_message_tokens(m, count) for m in request.messages) <= context - RESERVE
            assert request.messages[-1]["content"][-1] == image
        assert len(request.messages) > 8, "what fits is there"


def test_our_tools_take_their_room() -> None:
    """Those of an agent stand in no request, and may take most of its window."""
    tool = {"type": "function", "function": {"name": "look_up", "description": "It looks up. " * 800}}
    messages = [{"role": "user", "content": words(f"Message {n}:", 26)} for n in range(10)]
    request = parse(orjson.dumps({"model": "m", "messages": messages, "max_tokens": RESERVE}))
    context = 4_000
    target = Target("up", "gpt-4o", context)
    alone = asyncio.run(fit_prompt(Prompt(request, target)))
    assert not alone.dropped_indices
    room = context - RESERVE - count(orjson.dumps([tool]).decode())
    window = asyncio.run(fit_prompt(Prompt(request, target, tools=(tool,))))
    kept = [m for n, m in enumerate(messages) if n not in window.dropped_indices]
    assert sum(count_message_tokens(m, count) for m in kept) <= room
    assert kept


class Encoder:
    """Notes in which thread it counts."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def encode_ordinary(self, text: str) -> list[str]:
        self.threads.append(threading.current_thread())
        return text.split()


@each_row(("messages", "is_beside_loop"), [(40, False), (400, True)])
def test_a_long_list_is_counted_beside_the_event_loop_and_once(
    messages: int, is_beside_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder()
    monkeypatch.setattr(tokens_module, "_load_encoding", lambda name: encoder)
    monkeypatch.setattr(tokens_module, "_tokenizer", cache(Tokenizer))  # others have counted nothing
    texts = [f"Message {n} of {messages}. " + "word " * 40 for n in range(messages)]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text} for text in texts]}
    prompt = Prompt(parse(orjson.dumps(body)), Target("up", "gpt-4o", 4_000))
    for _ in range(2):
        assert asyncio.run(fit_prompt(prompt)).tokens
        assert len(encoder.threads) == messages
    assert (encoder.threads[-1] is not threading.main_thread()) == is_beside_loop


def test_the_schema_of_a_structured_reply_takes_its_room() -> None:
    schema = {"type": "object", "properties": {f"field_{n}": {"type": "string"} for n in range(360)}}
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    messages = [{"role": "user", "content": words(f"Message {n}:", 26)} for n in range(10)]
    fields = {"model": "m", "messages": messages, "max_tokens": RESERVE, "response_format": form}
    context = 4_000
    window = asyncio.run(fit_prompt(Prompt(parse(orjson.dumps(fields)), Target("up", "gpt-4o", context))))
    kept = [m for n, m in enumerate(messages) if n not in window.dropped_indices]
    room = context - RESERVE - count(orjson.dumps(form).decode())
    assert 0 < sum(count_message_tokens(m, count) for m in kept) <= room


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("Bisikletimi İzmir'den aldım, değiştirdiğim vitesleri {n} yıldır sağlamdır.", "Bisikletimi nereden aldım?"),
        ("ብስክሌቴን ከአዲስ አበባ ገዛሁት በጣም ቆንጆ ነው {n} ዓመት ሆኖታል።", "ብስክሌቴን መቼ ገዛሁት?"),
        ("The bicycle's key is {n}aGVsbG8gd29ybGQgdGhpcyBpcyBhIHRl.", "What is the bicycle's key?"),
    ],
    ids=["Turkish", "Amharic", "random"],
)  # fmt: skip
def test_a_note_of_many_tokens_fits_what_is_left(
    upstream: StrictUpstream, tmp_path: Path, told: str, asked: str
) -> None:
    """Its size is estimated, too low for some languages; a full window is counted."""
    context, left = 6_400, 300
    large = UpstreamSettings("up", base_url=upstream.base_url, context_window=context)
    with remember(upstream, tmp_path, upstreams=(large,)) as world:
        for n in range(20):
            world.chat(user="alice").say(told.format(n=n))
        chat = world.chat(user="alice", model="gpt-4o", max_tokens=RESERVE)
        size = count_message_tokens({"content": asked}, count)
        for n in itertools.count():
            more = [
                {"role": "user", "content": words(f"Message {n}:", 11)},
                {"role": "assistant", "content": words(f"Answer {n}:", 6)},
            ]
            size += sum(count_message_tokens(m, count) for m in more)
            if size > context - RESERVE - left:
                break
            chat.messages += more
        chat.say(asked)
        request = upstream.last
        assert len(request.messages) == len(chat.messages) - 1, "nothing has to leave"
        assert left // 2 < count(request.messages[-1]["content"])
        assert sum(count_message_tokens(m, count) for m in request.messages) <= context - RESERVE


def test_a_note_that_takes_too_much_is_not_counted_twice(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are long, so that with a little less of a budget it would be the same."""
    counted: list[str] = []

    async def count_tokens(model: str, text: str) -> int:
        counted.append(text)
        return note_text.estimate_tokens(text) * percent // 100

    monkeypatch.setattr(note_search, "count_tokens", count_tokens)
    large = UpstreamSettings("up", base_url=upstream.base_url, context_window=16_000)
    with remember(upstream, tmp_path, upstreams=(large,)) as world:
        for n in range(20):
            world.chat(user="alice").say(f"My bicycle number {n} " + f"stands in yard {n} " * 12)
        most = 0
        for percent in range(100, 140, 4):
            chat = world.chat(user="alice", model="gpt-4o", max_tokens=RESERVE)
            chat.messages += [
                {"role": "user", "content": f"{percent} " + "word " * 14_000},
                {"role": "assistant", "content": "Yes."},
            ]
            counted.clear()
            chat.say("Where does my bicycle stand?")
            assert len({*counted}) == len(counted), percent
            most = max(most, len(counted))
    assert most > 1


def test_hidden_rounds_take_their_room(upstream: StrictUpstream, tmp_path: Path) -> None:
    """What a model looks up within its turn pushes out older messages, and not the reply."""
    context = 6_000
    large = UpstreamSettings("up", base_url=upstream.base_url, context_window=context)
    with remember(upstream, tmp_path, agent(model="gpt-4o"), upstreams=(large,)) as world:
        for n in range(12):
            world.chat(user="alice", model="agent/helper").say(words(f"My rose number {n} is red:", 26))
        chat = world.chat(user="alice", model="agent/helper", max_tokens=RESERVE)
        for n in range(26):
            chat.messages += [
                {"role": "user", "content": words(f"Message {n}:", 11)},
                {"role": "assistant", "content": words(f"Answer {n}:", 6)},
            ]
        chat_count = len(upstream.chats)
        searches = [Call("conversation_search", {"query": f"rose number {n}"}) for n in range(4)]
        upstream.queue(*(call_tools(search, text=None) for search in searches), say("Twelve."))
        assert chat.say("How many roses are red?") == "Twelve."
        rounds = upstream.chats[chat_count:]
        assert len(rounds) == 5
        for seen in rounds:
            size = sum(count_message_tokens(m, count) for m in seen.messages)
            assert size + count(orjson.dumps(seen.json["tools"]).decode()) <= context - RESERVE
            assert any(m["role"] == "user" and "How many roses" in m["content"] for m in seen.messages)
        results = [m for m in rounds[-1].messages if m["role"] == "tool"]
        assert len(results) == 4
        assert "number 3" in results[3]["content"]


def test_messages_that_left_the_window_are_still_found(world: World) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    chat.say("My bicycle is a red Bianchi.")
    long_talk(chat, 30)
    assert "Bianchi" not in world.upstream.last.body.decode()
    chat.say("What colour is my bicycle, and who made it?")
    assert "Bianchi" in world.upstream.last.messages[-1]["content"]
    assert tokens(world.upstream.last) <= CONTEXT - RESERVE


def test_in_a_small_window_a_note_is_small(world: World) -> None:
    chat = world.chat(user="alice", max_tokens=RESERVE)
    for n in range(60):
        chat.say(f"Message {n}: what about the weather, and how are the roads?")
    assert "<memory " in world.upstream.last.body.decode()
    reply = world.post([*chat.messages, {"role": "user", "content": "Weather, roads?"}], user="alice")
    assert 0 < int(reply.headers["x-mnemogate-recalled-tokens"]) <= CONTEXT // 16
    for request in world.upstream.requests:
        assert sum(count_message_tokens(m, count) for m in request.messages) <= CONTEXT - RESERVE


def test_messages_that_left_the_window_in_append_mode_are_found(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}

    def send(text: str) -> None:
        body = [{"role": "user", "content": text}]
        assert world.post(body, headers, user="alice", max_tokens=RESERVE).status == 200

    send("My bicycle is a red Bianchi.")
    for n in range(20):
        send(words(f"Message {n}:", 26))
    assert "Bianchi" not in world.upstream.last.body.decode()
    send("What colour is my bicycle, and who made it?")
    assert "Bianchi" in world.upstream.last.messages[-1]["content"]


def test_a_note_that_left_the_window_is_no_injected_text(world: World) -> None:
    world.chat(user="alice").say("My bicycle is a red Bianchi.")
    chat = world.chat(user="alice")
    chat.say("What colour is my bicycle?")
    assert "Bianchi" in world.upstream.last.body.decode()
    long_talk(chat, 30)
    reply = world.post([*chat.messages, {"role": "user", "content": "So?"}], user="alice")
    assert "Bianchi" not in world.upstream.last.body.decode()
    assert int(reply.headers["x-mnemogate-injected-tokens"]) == 0


def test_the_receipt_says_how_much_was_left_out(world: World) -> None:
    messages = []
    for n in range(40):
        messages.append({"role": "user", "content": f"Message {n} " + "of many words " * 10})
        messages.append({"role": "assistant", "content": "Yes."})
    messages.append({"role": "user", "content": "So?"})
    reply = world.post(messages)
    assert reply.status == 200
    assert int(reply.headers["x-mnemogate-evicted-tokens"]) > 0
    assert len(world.upstream.last.messages) < 81
    (last,) = [m for m in world.upstream.last.messages if m["content"] == "So?"]
    assert last == world.upstream.last.messages[-1]


def test_calls_are_never_torn_from_their_results(world: World) -> None:
    """The strict upstream would refuse it."""
    chat = world.chat(user="alice", model="agent/helper", tools=[WEATHER], max_tokens=200)
    for n in range(25):
        insert = Call("archival_memory_insert", {"content": f"fact {n}"})
        weather = Call("weather", {"n": n})
        world.upstream.queue(
            call_tools(insert, weather, text=None) if n % 2 else call_tools(insert, text="Hm. ")
        )
        chat.say(f"Message {n}: " + "tell me something " * 5)
        calls = chat.messages[-1].get("tool_calls") or []
        for call in calls:
            chat.answer(call, "sunny " * 20)
        if calls:
            chat.go_on()
    assert all(request.refusal is None for request in world.upstream.requests)
    assert len(world.upstream.last.messages) < len(chat.messages)


@pytest.mark.parametrize("resends", [None, 3], ids=["all", "its end"])
def test_a_call_that_left_takes_a_result_that_came_with_the_next_question_along(
    world: World, resends: int | None
) -> None:
    """Somebody who speaks while a tool runs is sent with the tool's result. The next turns begin after both."""
    chat = world.chat(user="alice", tools=[WEATHER], max_tokens=200)
    chat.say("Hello.")
    world.upstream.queue(call_tools(Call("weather"), text=None))
    chat.say("Is it raining? " + "tell me " * 300)
    chat.answer(chat.messages[-1]["tool_calls"][0], "rain " * 300)
    question = "What else? " + "tell me " * 300
    chat.say(question)
    assert [m["role"] for m in world.upstream.last.messages] == ["user"]
    for n in range(3):
        whole = chat.messages
        if resends:
            chat.messages = whole[-resends + 1 :]
        chat.say(f"And then, {n}?")
        chat.messages = [*whole, *chat.messages[-2:]]
        request = world.upstream.last
        assert request.refusal is None
        assert request.messages[0]["content"].endswith(question)


def test_a_window_begins_with_its_question_though_the_reply_before_it_came_back_cut(world: World) -> None:
    """A voice agent was interrupted before its call: the path is shorter than it was when the window was cut."""
    chat = world.chat(user="alice", tools=[WEATHER], max_tokens=200)
    chat.say("Hello.")
    world.upstream.queue(call_tools(Call("weather"), text="Let me look that up, it takes a moment."))
    chat.say("Is it raining? " + "tell me " * 300)
    del chat.messages[-1]["tool_calls"]
    question = "Never mind. " + "tell me " * 300
    chat.say(question)
    assert len(world.upstream.last.messages) == 1
    chat.say("And then?")
    assert world.upstream.last.messages[0]["content"].endswith(question)


def test_a_turn_longer_than_the_window_retains_its_question(world: World) -> None:
    chat = world.chat(user="alice", tools=[WEATHER], max_tokens=200)
    chat.say("The question: how many rainy days are there?")
    for n in range(12):
        world.upstream.queue(call_tools(Call("weather", {"day": n}), text=None))
        if n:
            chat.go_on()
        else:
            chat.say("Count the rainy days, please.")
        chat.answer(chat.messages[-1]["tool_calls"][0], "a little rain " * 30)
    assert chat.go_on() == "Ok."
    contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "user"]
    assert contents[-1].endswith("Count the rainy days, please.")
    assert tokens(world.upstream.last) <= CONTEXT


def test_an_unknown_window_is_not_cut(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path) as world:
        chat = world.chat(user="alice")
        long_talk(chat, 30)
        assert len(world.upstream.last.messages) == 59
        assert message_bytes(world.upstream.last)[0].startswith(b'{"role":"user","content":"Message 0')


def test_an_append_conversation_fits_too(world: World) -> None:
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "c1"}
    for n in range(30):
        world.upstream.queue(say(words(f"Answer {n}:", 6)))
        body = [{"role": "user", "content": words(f"Message {n}:", 11)}]
        reply = world.post(body, headers, user="alice", max_tokens=RESERVE)
        assert reply.status == 200
        assert tokens(world.upstream.last) <= CONTEXT - RESERVE
        assert world.upstream.last.messages[0]["role"] == "user"
    assert len(world.upstream.last.messages) > 5
