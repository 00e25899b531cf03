"""The name of a user counts as the user in a question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, remember

DOG = "My Rottweiler eats more than I do."
GREETING = "My aunt wrote: dear Jon, come and see us."
QUESTION = "How much does Jon's Rottweiler eat?"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as made:
        for text in (DOG, GREETING):
            made.chat(user="alice").say(text)
        yield made


def note_for(world: World, headers: dict[str, str] | None = None, **message: str) -> str:
    world.post([{"role": "user", "content": QUESTION, **message}], headers, user="alice")
    return str(world.upstream.last.messages[-1]["content"])


def test_a_name_that_is_not_known_is_looked_for(world: World) -> None:
    note = note_for(world)
    assert DOG in note
    assert GREETING in note


@pytest.mark.parametrize("header", ["x-mnemogate-user-name", "x-openwebui-user-name"])
def test_the_name_in_a_header_is_not(world: World, header: str) -> None:
    note = note_for(world, {header: "Jon%20Snow"})
    assert DOG in note
    assert GREETING not in note
    assert note.endswith(QUESTION)


def test_nor_is_the_name_of_the_message(world: World) -> None:
    note = note_for(world, name="Jon")
    assert DOG in note
    assert GREETING not in note
