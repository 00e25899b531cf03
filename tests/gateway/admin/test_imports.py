"""What a person brings along from another application is remembered, goes on live, and is taken away as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.upstream import StrictUpstream, say
from tests.exports import export
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S
from tests.server import RawReply

OWNER = {"x-mnemogate-admin": "the-owner"}
# Words that nothing else has, so that the file can be searched for them.
TALKS = {
    "c-1": (
        "My heron is called Zebulon.",
        "Zebulon is a fine name.",
        "He eats anchovies.",
        "Noted: anchovies.",
    ),
    "c-2": ("I live in Quxhaven.", "Quxhaven is by the sea."),
}
WORDS = ("Zebulon", "anchovies", "Quxhaven")

pytestmark = pytest.mark.both


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    upstream.script = lambda seen: say("Hello.")
    with remember(upstream, tmp_path, admin_token="the-owner") as made:
        yield made


def send(world: World, data: bytes, query: str = "", user: str = "alice") -> RawReply:
    return world.gateway.ask("POST", f"/v1/manage/imports?user={user}&{query}", data, OWNER)


def follow(world: World, begun: RawReply) -> dict[str, Any]:
    """Waits until an import has ended."""
    assert begun.status == 202, begun.body
    found, until = begun.json, time.monotonic() + PATIENCE_S
    while found["status"] == "running":
        assert time.monotonic() < until
        time.sleep(0.01)
        found = world.gateway.ask("GET", f"/v1/manage/imports/{found['id']}", None, OWNER).json
    return dict(found)


def counts(found: dict[str, Any], name: str) -> tuple[int, ...]:
    return tuple(found[name][each] for each in ("found", "new", "known", "skipped"))


def undo(world: World, id: str) -> dict[str, Any]:
    return dict(world.gateway.ask("DELETE", f"/v1/manage/imports/{id}", None, OWNER).json)


def shown(world: World, *options: str) -> str:
    """What `memory show` says."""
    reply = world.gateway.ask(
        "POST", "/admin/memory-show",
        b'{"project": "default", "user": "alice", "query": "heron Zebulon anchovies", "why": true}', OWNER,
    )  # fmt: skip
    assert reply.status == 200, reply.body
    return str(reply.json["text"])


def wire(talk: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(talk)]


@pytest.mark.parametrize("format", ["chatgpt", "claude", "jsonl", "mastra"])
def test_conversations_are_previewed_imported_continued_and_undone(world: World, format: str) -> None:
    data = export(format, TALKS)
    preview = send(world, data, "preview=true")
    assert (preview.status, preview.json["status"], preview.json["format"]) == (200, "preview", format)
    assert counts(preview.json, "conversations") == (2, 2, 0, 0)
    assert world.query("SELECT (SELECT count(*) FROM imports) + (SELECT count(*) FROM agents)") == [0]

    found = follow(world, send(world, data))
    assert found["status"] == "done", found
    assert counts(found, "conversations") == (2, 2, 0, 0)
    assert counts(found, "messages") == (6, 6, 0, 0)
    assert (found["first_at"], found["last_at"]) == ("2024-03-01T10:00:00Z", "2024-03-01T10:03:00Z")
    assert (found["user"], found["object"], found["error"], found["warnings"]) == (
        "alice",
        "import",
        None,
        [],
    )
    text = shown(world)
    assert "[2024-03-01 10:00] user: My heron is called Zebulon." in text
    assert f"import ({format}, 2025-10-09)" in text

    # A live chat that has the conversation goes on in it.
    asked = [*wire(TALKS["c-1"]), {"role": "user", "content": "What does my bird eat?"}]
    assert world.post(asked, user="alice").status == 200
    world.settle()
    assert world.query("SELECT count(*) FROM conversations") == [2]
    assert world.query("SELECT depth FROM exchanges ORDER BY id DESC LIMIT 1") == [2]

    again = follow(world, send(world, data))
    assert again["id"] == found["id"]
    assert counts(again, "messages") == (6, 0, 6, 0)
    assert world.query("SELECT count(*) FROM exchanges") == [4]

    assert undo(world, found["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)
    text = shown(world)
    assert "What does my bird eat?" in text
    assert "anchovies" not in text.partition("Would be recalled")[0]
    assert world.query("SELECT count(*) FROM marks WHERE kind = 'tomb'") == [0]

    # It can be imported again, before the live turn, too.
    third = follow(world, send(world, data))
    assert counts(third, "messages") == (6, 6, 0, 0), third
    assert "My heron is called Zebulon." in shown(world)
    assert undo(world, found["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)


@pytest.mark.parametrize("format", ["list", "mem0"])
def test_facts_are_previewed_imported_and_undone(world: World, format: str) -> None:
    data = export(format, TALKS)
    assert counts(send(world, data, "preview=true").json, "facts") == (3, 3, 0, 0)
    found = follow(world, send(world, data))
    assert (found["status"], found["format"], counts(found, "facts")) == ("done", format, (3, 3, 0, 0))
    text = shown(world)
    assert "[2024-03-01 00:00]  He eats anchovies." in text or format == "mem0"
    assert f"import ({format}, 2025-10-09)" in text
    assert counts(follow(world, send(world, data)), "facts") == (3, 0, 3, 0)
    assert counts(send(world, data, "preview=true").json, "facts") == (3, 0, 3, 0)
    assert undo(world, found["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)
    assert counts(follow(world, send(world, data)), "facts") == (3, 3, 0, 0)
