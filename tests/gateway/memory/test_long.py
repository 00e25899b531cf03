"""Long conversations: a request costs what is in its window, and not what was ever said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from gateway.core.conversation import lookup
from gateway.run.memory import context_reading, turn_write
from storage.commands import CandidateExchanges
from tests.doubles.upstream import Gate, StrictUpstream, say
from tests.gateway.compacting import Notes, compacted, compacting, text_of
from tests.gateway.sdk import CHAT, World, remember, replace_marks

RECENT = 6
NAMED = {"x-mnemogate-conversation": "c1"}
WAYS: dict[str, tuple[int | None, dict[str, str]]] = {
    "appended": (0, {"x-mnemogate-conversation": "c1", "x-mnemogate-history": "append"}),
    "trimmed, named": (6, {"x-mnemogate-conversation": "c1"}),
    "trimmed": (6, {}),
    "whole": (None, {}),
}


@contextmanager
def counting_loads(world: World) -> Iterator[list[int]]:
    """How many exchanges are loaded, each time any are."""
    loaded: list[int] = []
    turns = world.store.turns
    pool = turns.load_candidates

    async def counted(*args: Any) -> CandidateExchanges:
        found: CandidateExchanges = await pool(*args)
        loaded.append(len(found.exchanges))
        return found

    turns.load_candidates = counted  # type: ignore[method-assign]
    yield loaded


def talk(
    upstream: StrictUpstream, folder: Path, way: str, compaction: str, turns: int
) -> tuple[list[bytes], list[int]]:
    """What went upstream, and how many exchanges were loaded each time any were."""
    keeps, headers = WAYS[way]
    folder.mkdir()
    Notes(upstream)  # it answers from now on
    begun = len(upstream.requests)
    with compacting(upstream, folder, compaction=compaction) as world, counting_loads(world) as loaded:
        chat = world.chat(user="alice", max_tokens=300, headers=headers)
        for n in range(turns):
            if keeps is not None:
                chat.messages = chat.messages[len(chat.messages) - keeps :] if keeps else []
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            chat.say(text_of(n, 12))
            compacted(world)
    return [replace_marks(s.body) for s in upstream.requests[begun:] if s.json["model"] != "small"], loaded


@pytest.mark.parametrize(
    ("way", "compaction"),
    [("appended", "summary"), ("trimmed, named", "truncate"), ("trimmed", "summary"), ("whole", "truncate")],
)
def test_looking_at_the_end_of_a_conversation_is_enough(
    upstream: StrictUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    compaction: str,
) -> None:
    turns = 60
    whole, all_loaded = talk(upstream, tmp_path / "all", way, compaction, turns)
    for module in (lookup, context_reading, turn_write):
        monkeypatch.setattr(module, "RECENT_EXCHANGES", RECENT)
    part, loaded = talk(upstream, tmp_path / "end", way, compaction, turns)
    assert part == whole
    assert any(b"<summary " in body for body in whole) == (compaction == "summary")
    if way == "whole":
        assert not loaded, "plain turns load no tree"
    else:
        assert max(all_loaded) >= turns - 2
        assert max(loaded[-10:]) <= max(loaded[20:40]) + 2, "it does not grow with the conversation"


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-conversation": "c1"}], ids=["found", "named"])
def test_a_conversation_is_loaded_once_for_a_whole_list_that_was_interrupted(
    upstream: StrictUpstream, tmp_path: Path, headers: dict[str, str]
) -> None:
    turns = lookup.RECENT_EXCHANGES + 10
    with remember(upstream, tmp_path) as world, counting_loads(world) as loaded:
        chat = world.chat(user="alice", headers=headers)
        for n in range(turns):
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            chat.say(text_of(n, 3))
        world.settle()
        loaded.clear()
        chat.messages[-1]["content"] = f"Answer {turns - 1}: that is"
        chat.say("Stop.")
        assert loaded == [turns]


def test_a_message_that_is_changed_late_in_a_conversation_gets_no_note_of_its_former_text(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """What followed the first reply is far from the end of the conversation."""
    with remember(upstream, tmp_path) as world:
        chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"})
        for n in range(lookup.RECENT_EXCHANGES + 10):
            chat.say(text_of(n, 3))
        world.pass_time(10)
        first = chat.messages[:2]
        for city in ("Rome", "Cremona"):
            chat.messages = [*first]
            chat.say(f"My old violin comes from {city}.")
        assert "Rome" not in str(upstream.last.messages)


@pytest.mark.parametrize("text", ["Let us talk of Rome.", text_of(3, 12)], ids=["edited", "asked again"])
def test_a_message_alone_goes_on_from_what_was_said_last_far_from_the_end(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The branch that was left is deeper, and its window was cut."""
    for module in (lookup, context_reading, turn_write):
        monkeypatch.setattr(module, "RECENT_EXCHANGES", RECENT)
    headers = {"x-mnemogate-conversation": "c1"}
    append = {**headers, "x-mnemogate-history": "append"}
    with compacting(upstream, tmp_path, compaction="truncate") as world:
        messages: list[dict[str, Any]] = []
        for n in range(60):
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            alone = world.chat(user="alice", max_tokens=300, headers=append)
            alone.say(text_of(n, 12))
            messages += alone.messages
        whole = world.chat(user="alice", max_tokens=300, headers=headers)
        whole.messages = messages[:6]
        upstream.queue(say("Answer 3: that is how it is, and not otherwise."))
        whole.say(text)
        said = [*whole.messages]
        for next_one in ("Its roads.", "Its bridges."):
            alone = world.chat(user="alice", max_tokens=300, headers=append)
            alone.say(next_one)
            assert upstream.last.messages == [*said, *alone.messages[:1]]
            said += alone.messages


@pytest.mark.parametrize(("context", "most"), [(900, 10), (2000, 40)])
def test_a_single_message_after_whole_lists_loads_little_more_than_their_window(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: int, most: int
) -> None:
    for module in (lookup, context_reading, turn_write):
        monkeypatch.setattr(module, "RECENT_EXCHANGES", RECENT)
    headers = {"x-mnemogate-conversation": "c1"}
    with compacting(upstream, tmp_path, compaction="truncate", context=context) as world:
        whole = world.chat(user="alice", max_tokens=300, headers=headers)
        for n in range(60):
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            whole.say(text_of(n, 12))
        messages = upstream.last.messages
        with counting_loads(world) as loaded:
            alone = world.chat(
                user="alice", headers={**headers, "x-mnemogate-history": "append"}, max_tokens=300
            )
            alone.say(text_of(60, 12))
        assert upstream.last.messages[: len(messages)] == messages
        assert max(loaded) < most


@contextmanager
def far_branch(
    upstream: StrictUpstream, folder: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> Iterator[tuple[World, list[dict[str, Any]]]]:
    """A long conversation whose window was cut, with its messages; looks reach little further than its end."""
    for module in (lookup, context_reading, turn_write):
        monkeypatch.setattr(module, "RECENT_EXCHANGES", 2)
    with compacting(upstream, folder, compaction="truncate", context=900) as world:
        chat = world.chat(user="alice", max_tokens=300, headers=headers)
        for n in range(30):
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            chat.say(text_of(n, 12))
        yield world, chat.messages


@pytest.mark.parametrize("headers", [{}, NAMED], ids=["found", "named"])
def test_a_reply_that_comes_back_cut_and_alone_is_found_far_from_the_end(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """At the end the same was asked, and answered otherwise."""
    with far_branch(upstream, tmp_path, monkeypatch, headers) as (world, messages):
        chat = world.chat(user="alice", max_tokens=300, headers=headers)
        for end, reply in ((60, "No, it is not so."), (6, "Well, I would say that it is.")):
            chat.messages = messages[:end]
            upstream.queue(say(reply))
            chat.say("Is it so?")
        said = [*chat.messages[:-1], {"role": "assistant", "content": "Well, I"}]
        chat.messages = said[-2:]
        chat.say("Stop.")
        assert upstream.last.messages == [*said, {"role": "user", "content": "Stop."}]


def test_a_list_without_its_beginning_goes_on_from_what_was_said_last_far_from_the_end(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end the same was said."""
    with far_branch(upstream, tmp_path, monkeypatch, NAMED) as (world, messages):
        chat = world.chat(user="alice", max_tokens=300, headers=NAMED)
        for end in (60, 6):
            chat.messages = messages[:end]
            upstream.queue(say("No, it is not so."))
            chat.say("Is it so?")
        said = chat.messages
        chat.messages = said[-2:]
        chat.say("Why?")
        assert upstream.last.messages == [*said, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("headers", [{}, NAMED], ids=["found", "named"])
def test_a_whole_list_goes_on_from_where_it_ends_though_the_same_was_said_at_the_end(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    with far_branch(upstream, tmp_path, monkeypatch, headers) as (world, messages):
        chat = world.chat(user="alice", max_tokens=300, headers=headers)
        chat.messages = list(messages)
        for n in range(2):
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            chat.say(text_of(n, 12))
        chat.messages = messages[:4]
        chat.say("And what else?")
        assert upstream.last.messages == [*messages[:4], {"role": "user", "content": "And what else?"}]


class Wanderer:
    """A client that sends its whole list, a tail of it or the new message alone, goes back anywhere to edit or to ask
    again, returns to what it had left, asks for a title, is cut off, and leaves."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = Random(seed)
        self.messages: list[dict[str, Any]] = []
        self.left: list[list[dict[str, Any]]] = [[]]
        self.said = 0

    def turn(self) -> None:
        chance, upstream = self.chance, self.world.upstream
        kind = chance.choice(
            ["alone"] * 3 + ["whole"] * 2 + ["tail", "edit", "again", "return", "title", "cut"]
        )
        back = chance.randrange(0, len(self.messages) + 1, 2)
        self.said += 1
        message = {"role": "user", "content": text_of(self.said, 12)}
        if kind == "title":
            chat = self.world.chat(user="alice", max_tokens=300, headers=NAMED)
            upstream.queue(say("Message and answer"))
            chat.say(f"Find a title: {message['content']}")
            return
        if kind in ("edit", "again", "return"):
            self.left.append(self.messages)
            self.messages = chance.choice(self.left) if kind == "return" else self.messages[:back]
        elif kind == "cut" and self.messages:
            self.messages[-1] = {**self.messages[-1], "content": self.messages[-1]["content"][:12]}
        self.messages = [
            *self.messages,
            self.left[-1][back] if kind == "again" and back < len(self.left[-1]) else message,
        ]
        listed = self.messages[{"alone": -1, "tail": -5}.get(kind, 0) :]
        headers = NAMED | ({"x-mnemogate-history": "append"} if kind == "alone" else {})
        if chance.random() < 0.2:
            self.leave(listed, headers)
        reply = chance.choice(["Ok.", f"Answer {self.said}: that is how it is, and not otherwise."])
        upstream.queue(say(reply))
        self.world.chat(user="alice", max_tokens=300, headers=headers).complete(messages=listed)
        self.messages = [*self.messages, {"role": "assistant", "content": reply}]

    def leave(self, listed: list[dict[str, Any]], headers: dict[str, str]) -> None:
        """Sends a request, and hangs up before the reply has come."""
        upstream, number = self.world.upstream, len(self.world.upstream.requests)
        upstream.queue(say("", hold_before_headers=Gate()))
        body = orjson.dumps({"model": "m", "user": "alice", "max_tokens": 300, "messages": listed})
        with self.world.gateway.connect() as connection:
            connection.request("POST", CHAT, body, headers)
            upstream.request_gate(number + 1).wait_sync()
        upstream.requests[number].gone.wait_sync()
        self.world.settle()


def wander(upstream: StrictUpstream, folder: Path, seed: int, turns: int = 40) -> list[bytes]:
    """What goes upstream."""
    folder.mkdir()
    Notes(upstream)
    begun = len(upstream.requests)
    with compacting(upstream, folder, compaction="truncate", context=900) as world:
        wanderer = Wanderer(world, seed)
        for _ in range(turns):
            wanderer.turn()
            world.settle()
    return [replace_marks(s.body) for s in upstream.requests[begun:] if s.json["model"] != "small"]


@pytest.mark.parametrize("seed", [1, 2])  # with each of which it does all that it can
def test_a_client_that_wanders_is_answered_as_if_all_of_its_conversation_was_loaded(
    upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    whole = wander(upstream, tmp_path / "all", seed)
    for module in (lookup, context_reading, turn_write):
        monkeypatch.setattr(module, "RECENT_EXCHANGES", 2)
    assert wander(upstream, tmp_path / "end", seed) == whole
