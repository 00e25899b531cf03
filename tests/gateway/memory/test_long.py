"""Long conversations: a request costs what is in its window, and not what was ever said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.core.conversation import lookup
from gateway.run.memory import known, record
from storage.commands import Pool
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.compacting import Notes, compacted, compacting, text_of
from tests.gateway.sdk import World, remember

RECENT = 6
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
    pool = turns.pool

    async def counted(*args: Any) -> Pool:
        found: Pool = await pool(*args)
        loaded.append(len(found.exchanges))
        return found

    turns.pool = counted  # type: ignore[method-assign]
    yield loaded


def talk(
    upstream: StrictUpstream, folder: Path, way: str, compaction: str, turns: int
) -> tuple[list[bytes], list[int]]:
    """What went upstream, and how many exchanges were loaded each time any were."""
    keeps, headers = WAYS[way]
    folder.mkdir()
    Notes(upstream)  # it answers from now on
    begun = len(upstream.seen)
    with compacting(upstream, folder, compaction=compaction) as world, counting_loads(world) as loaded:
        chat = world.chat(user="alice", max_tokens=300, headers=headers)
        for n in range(turns):
            if keeps is not None:
                chat.messages = chat.messages[len(chat.messages) - keeps :] if keeps else []
            upstream.queue(say(f"Answer {n}: that is how it is, and not otherwise."))
            chat.say(text_of(n, 12))
            compacted(world)
    return [s.body for s in upstream.seen[begun:] if s.json["model"] != "small"], loaded


@pytest.mark.parametrize("compaction", ["summary", "truncate"])
@pytest.mark.parametrize("way", WAYS)
def test_looking_at_the_end_of_a_conversation_is_enough(
    upstream: StrictUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    compaction: str,
) -> None:
    turns = 60
    whole, all_loaded = talk(upstream, tmp_path / "all", way, compaction, turns)
    for module in (lookup, known, record):
        monkeypatch.setattr(module, "RECENT", RECENT)
    part, loaded = talk(upstream, tmp_path / "end", way, compaction, turns)
    assert part == whole
    assert any(b"<summary>" in body for body in whole) == (compaction == "summary")
    if way == "whole":
        assert not loaded, "plain turns load no tree"
    else:
        assert max(all_loaded) >= turns - 2
        assert max(loaded[-10:]) <= max(loaded[20:40]) + 2, "it does not grow with the conversation"


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-conversation": "c1"}], ids=["found", "named"])
def test_a_conversation_is_loaded_once_for_a_whole_list_that_was_interrupted(
    upstream: StrictUpstream, tmp_path: Path, headers: dict[str, str]
) -> None:
    turns = lookup.RECENT + 10
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


def test_a_second_message_that_is_changed_late_in_a_conversation_is_not_told_what_it_was(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """What followed the first reply is far from the end of the conversation."""
    with remember(upstream, tmp_path) as world:
        chat = world.chat(user="alice", headers={"x-mnemogate-conversation": "c1"})
        for n in range(lookup.RECENT + 10):
            chat.say(text_of(n, 3))
        world.pass_time(10)
        first = chat.messages[:2]
        for city in ("Rome", "Cremona"):
            chat.messages = [*first]
            chat.say(f"My old violin comes from {city}.")
        assert "Rome" not in str(upstream.last.messages)
